//! What catalogs come to: a mesh in any case, and nothing in plaintext that is meshed.

/// Whose an address and port are.
mod claimed;

use std::sync::Arc;

use baremesh_model::mesh::Mesh;
use baremesh_model::workload::{OF_CATALOG, Tunnel};
use serde_json::json;

use super::super::mark::service_of;
use super::*;
use crate::control::registration::Registration;
use crate::format::source::{Origin, Source, Span};
use crate::resource::Located;
use crate::set::assemble;

fn key(name: &str) -> Key {
    service_of(name).expect("a service")
}

fn mesh(derived: &Derived) -> Mesh {
    let located = derived.entries.iter().map(|(key, value)| {
        let origin = Origin { source: Arc::new(Source::new(key, "")), span: Span::default() };
        Located { value: format::decode(value).expect("a resource"), origin }
    });
    assemble(located.collect(), Vec::new())
        .map(|loaded| loaded.mesh)
        .unwrap_or_else(|refused| panic!("{refused}"))
}

/// An instance that an agent on `host` registered, of the account of its service unless stated.
fn ours(service: &str, host: &str, address: &str, account: Option<&str>) -> Value {
    let registration = Registration::read(&json!({
        "service": key(service).to_string(), "ports": [{ "port": 80, "targetPort": 8080, "name": "http" }],
        "addresses": [address], "serviceAccount": account,
    }))
    .expect("a registration");
    let label = host.parse().expect("a label");
    let made = mark::registration(&label, &registration).expect("registered");
    instance(
        host,
        address,
        &json!({
            "ID": made.id, "Service": made.name, "Tags": made.tags, "Meta": made.meta, "Port": made.port, "Address": address,
        }),
    )
}

fn foreign(service: &str, node: &str, address: &str, port: u16) -> Value {
    instance(node, address, &json!({ "ID": service, "Service": service, "Port": port, "Tags": ["v=2"] }))
}

fn instance(node: &str, address: &str, service: &Value) -> Value {
    json!({ "Node": { "Node": node, "Address": address }, "Service": service, "Checks": [] })
}

fn inputs(of: &[(&str, Value)], resources: &[Value]) -> BTreeMap<String, Value> {
    let mut inputs: BTreeMap<String, Value> =
        of.iter().map(|(name, all)| (format!("{INSTANCES}{name}"), all.clone())).collect();
    for resource in resources {
        let id = format::decode(resource).expect("a resource").id();
        inputs.insert(format!("{}/{}/{}", id.kind, id.key.namespace, id.key.name), resource.clone());
    }
    inputs
}

fn resource(toml: &str) -> Value {
    let parsed = format::Form::Toml.parse(toml, "r.toml");
    format::encode(&parsed.resources.first().expect("a resource").value)
}

/// Each endpoint of a service: where, and over which tunnel.
fn endpoints(derived: &Derived, service: &str) -> Vec<String> {
    let mesh = mesh(derived);
    let Some(service) = mesh.services.get(&key(service)) else { return vec!["no service".to_owned()] };
    let port = &service.ports[0];
    let shown = mesh
        .workloads_of(service)
        .iter()
        .map(|w| format!("{} {:?} {}", w.endpoint(port), w.tunnel, w.health.word()));
    let mut shown: Vec<_> = shown.collect();
    shown.sort();
    shown
}

const ORDERS: &str = "[[Service]]\nname = \"orders\"\nports = [{ port = 80, targetPort = 8080 }]\n";

#[test]
fn what_others_registered_is_plain_and_what_agents_registered_is_not() {
    let all = [
        ("orders", json!([ours("orders", "h1", "10.0.0.1", None), ours("orders", "h2", "10.0.0.2", None)])),
        ("db", json!([foreign("db", "n1", "10.0.0.8", 5432), foreign("db", "n2", "10.0.0.9", 5433)])),
        ("consul", json!([foreign("consul", "n1", "10.0.0.8", 8300)])),
        ("Not A Name", json!([])),
    ];
    let derived = derive(&inputs(&all, &[]), &Settings::default());
    assert_eq!(endpoints(&derived, "orders"), ["10.0.0.1:8080 Hbone healthy", "10.0.0.2:8080 Hbone healthy"]);
    assert_eq!(endpoints(&derived, "db"), ["10.0.0.8:5432 Plain healthy", "10.0.0.9:5433 Plain healthy"]);
    assert_eq!(endpoints(&derived, "consul"), ["no service"]);
    let Report { agents, plain, left_out, named } = &derived.report;
    assert_eq!((*agents, *plain, *left_out), (2, 2, 1));
    assert!(named["Not A Name"].contains("lower-case"));
}

#[test]
fn nobody_turns_a_meshed_service_to_plaintext_by_registering_under_its_name() {
    let evil = foreign("orders", "evil", "10.6.6.6", 8080);
    let check = |of: &[Value], resources: &[Value], meshed: bool, plain: &[&str], expected: &[&str]| {
        let mut inputs = inputs(&[("orders", json!(of))], resources);
        if meshed {
            inputs.insert(format!("{MESHED}orders.default"), 1.into());
        }
        let plain = plain.iter().map(|name| key(name)).collect();
        let derived = derive(&inputs, &Settings { plain, ..Settings::default() });
        assert_eq!(endpoints(&derived, "orders"), expected, "{of:?}");
        // Whatever was not taken is said.
        assert_eq!(derived.report.left_out, of.len() - derived.report.agents - derived.report.plain);
    };
    let own = ours("orders", "h1", "10.0.0.1", None);
    let (hbone, plain) = ("10.0.0.1:8080 Hbone healthy", "10.6.6.6:8080 Plain healthy");
    check(&[own.clone(), evil.clone()], &[], false, &[], &[hbone]);
    check(&[own, evil.clone()], &[], false, &["orders"], &[hbone, plain]);
    // Its agents gone, or taken out of the catalog by whoever may.
    check(std::slice::from_ref(&evil), &[], true, &[], &["no service"]);
    check(std::slice::from_ref(&evil), &[resource(ORDERS)], false, &[], &[]);
    check(std::slice::from_ref(&evil), &[resource(ORDERS)], false, &["orders"], &[plain]);
    check(std::slice::from_ref(&evil), &[], false, &[], &[plain]);
}

#[test]
fn a_service_has_no_second_name_in_the_catalog_to_take_it_over_by() {
    let all = [
        ("orders", json!([ours("orders", "h1", "10.0.0.1", None)])),
        ("orders.default", json!([foreign("orders.default", "evil", "10.6.6.6", 8080)])),
    ];
    for (resources, meshed) in [(vec![], false), (vec![resource(ORDERS)], false), (vec![], true)] {
        // Of those under its own name, some instances, or none any more.
        for of in [&all[..], &all[1..]] {
            let mut inputs = inputs(of, &resources);
            if meshed {
                inputs.insert(format!("{MESHED}orders.default"), 1.into());
            }
            let derived = derive(&inputs, &Settings::default());
            let found = endpoints(&derived, "orders");
            assert!(!found.iter().any(|endpoint| endpoint.contains("Plain")), "{found:?}");
            assert_eq!(found.contains(&"10.0.0.1:8080 Hbone healthy".to_owned()), of.len() == 2, "{found:?}");
            let why = &derived.report.named["orders.default"];
            assert!(why.contains("no second name"), "{why}");
        }
    }
}

#[test]
fn nobody_chooses_whom_callers_trust_by_registering() {
    let mallory = ours("orders", "evil", "10.6.6.6", Some("mallory"));
    let check = |of: &[Value], resources: &[Value], expected: &[&str]| {
        let derived = derive(&inputs(&[("orders", json!(of))], resources), &Settings::default());
        assert_eq!(endpoints(&derived, "orders"), expected);
        let mesh = mesh(&derived);
        mesh.services.values().for_each(|service| assert_ne!(service.service_account.as_str(), "mallory"));
    };
    check(std::slice::from_ref(&mallory), &[], &["no service"]);
    let own = ours("orders", "h1", "10.0.0.1", None);
    check(&[mallory.clone(), own], &[], &["10.0.0.1:8080 Hbone healthy"]);
    check(std::slice::from_ref(&mallory), &[resource(ORDERS)], &[]);
}

#[test]
fn whoever_may_write_to_the_catalog_keeps_no_state_from_coming_into_force() {
    // Two identities at one address and port; the same host twice; a name of the mesh's own; a federated service.
    let mut elsewhere = ours("evil", "h9", "10.0.0.1", None);
    elsewhere["Node"]["Address"] = "10.9.9.9".into();
    let federated = "[[Service]]\nname = \"theirs\"\nports = [{ port = 80 }]\nsubjectAltNames = [\"spiffe://other.test/ns/default/sa/theirs\"]\n";
    let config = "[[MeshConfig]]\nfederation = [{ trustDomain = \"other.test\", bundleFile = \"/x.pem\" }]\n";
    let mut all = vec![
        ("orders", json!([ours("orders", "h1", "10.0.0.1", None), ours("orders", "h1", "10.0.0.1", None)])),
        ("evil", json!([elsewhere])),
        ("x.control", json!([foreign("x.control", "n", "10.0.0.3", 1)])),
        ("theirs", json!([foreign("theirs", "n", "10.0.0.3", 1)])),
        ("odd", json!([foreign("odd", "n", "240.240.0.9", 1)])),
    ];
    let resources = [federated, config].map(|text| format::Form::Toml.parse(text, "r.toml"));
    let resources: Vec<_> =
        resources.iter().flat_map(|p| &p.resources).map(|r| format::encode(&r.value)).collect();
    assert_eq!(resources.len(), 2);
    let derived = derive(&inputs(&all, &resources), &Settings::default());
    assert_eq!(endpoints(&derived, "orders"), ["10.0.0.1:8080 Hbone healthy"]);
    assert_eq!(endpoints(&derived, "evil"), ["no service"]);
    assert_eq!(endpoints(&derived, "theirs"), NO_ENDPOINTS);
    assert_eq!(derived.report.left_out, 5, "{:?}", derived.report);
    // Names whose hashes meet: a range with room for few.
    let names: Vec<String> = (0..40).map(|n| format!("s{n}")).collect();
    all = names.iter().map(|name| (name.as_str(), json!([foreign(name, "n", "10.0.0.3", 1)]))).collect();
    let small = resource("[[MeshConfig]]\nvirtualRanges = { v4 = \"240.240.0.0/26\", v6 = \"off\" }\n");
    let mut inputs = inputs(&all, &[small]);
    let derived = derive(&inputs, &Settings::default());
    let taken = mesh(&derived).services.len();
    assert!(taken < 40 && taken + derived.report.left_out == 40, "{taken}");
    let waiting = names.iter().find(|name| !mesh(&derived).services.contains_key(&key(name))).expect("one");
    let record = AddressRecord { service: key(waiting).to_string(), since: 0, released: None };
    inputs.insert(format!("{ADDRESS}240.240.0.61"), serde_json::to_value(record).expect("JSON"));
    let derived = derive(&inputs, &Settings::default());
    assert_eq!(mesh(&derived).services[&key(waiting)].addresses[0].to_string(), "240.240.0.61");
}

const NO_ENDPOINTS: [&str; 0] = [];

#[test]
fn meshed_services_are_remembered_for_a_week() {
    let mut now = inputs(&[("orders", json!([ours("orders", "h1", "10.0.0.1", None)]))], &[]);
    let memory = format!("{MESHED}orders.default");
    remember(&mut now, 1000);
    remember(&mut now, 2000);
    assert_eq!(now[&memory], 1000, "the state does not change with each look");
    remember(&mut now, 1000 + 24 * 3600);
    assert_eq!(now[&memory], 1000 + 24 * 3600);
    now.remove(&format!("{INSTANCES}orders"));
    remember(&mut now, 24 * 3600 + MESHED_FOR);
    assert!(now.contains_key(&memory));
    remember(&mut now, 1000 + 24 * 3600 + MESHED_FOR);
    assert!(!now.contains_key(&memory));
}

#[test]
fn a_foreign_instance_is_marked_as_one_whatever_it_says_of_itself() {
    for meta in [json!({}), json!({ OF_CATALOG: "false" })] {
        let legacy = json!({ "ID": "legacy", "Service": "legacy", "Port": 5432, "Meta": meta });
        let of = [
            ("legacy", json!([instance("n1", "10.0.0.9", &legacy)])),
            ("web", json!([ours("web", "h1", "10.0.0.1", None)])),
        ];
        let derived = derive(&inputs(&of, &[]), &Settings::default());
        let mesh = mesh(&derived);
        assert_eq!(mesh.workloads.len(), 2);
        for workload in mesh.workloads.values() {
            let expected = (workload.tunnel == Tunnel::Plain).then_some("true");
            assert_eq!(workload.labels.get(OF_CATALOG).map(|value| &**value), expected, "{}", workload.key);
        }
    }
}

/// Resources of several kinds.
fn resources(toml: &str) -> Vec<Value> {
    let parsed = format::Form::Toml.parse(toml, "r.toml");
    parsed.resources.iter().map(|resource| format::encode(&resource.value)).collect()
}

#[test]
fn the_same_inputs_with_another_catalog_keep_all_else() {
    let now = inputs(&[("db", json!([1]))], &[resource(ORDERS)]);
    let before = inputs(&[("legacy", json!([2]))], &[]);
    let names = |of: BTreeMap<String, Value>| of.into_keys().collect::<Vec<_>>();
    assert_eq!(names(with_catalog(&now, None)), ["Service/default/orders"]);
    assert_eq!(
        names(with_catalog(&now, Some(&before))),
        ["Service/default/orders", "consul/instances/legacy"]
    );
}

#[test]
fn marks_alone_put_no_service_out() {
    let db = foreign("db", "n1", "10.0.0.8", 5432);
    let mut elsewhere = ours("db", "evil", "10.6.6.6", None);
    elsewhere["Node"]["Address"] = "10.9.9.9".into();
    let mut unreadable = ours("db", "evil", "10.6.6.6", None);
    unreadable["Service"]["Meta"] = json!({ "baremesh-host": "evil" });
    let mut others = ours("web", "evil", "10.6.6.6", None);
    others["Service"]["Service"] = "db".into();
    for marked in [elsewhere, unreadable, others, ours("db", "evil", "10.6.6.6", Some("mallory"))] {
        let mut inputs = inputs(&[("db", json!([db, marked]))], &[]);
        for _ in 0..2 {
            let derived = derive(&inputs, &Settings::default());
            assert_eq!(endpoints(&derived, "db"), ["10.0.0.8:5432 Plain healthy"], "{marked}");
            remember(&mut inputs, 1000);
        }
        assert!(!inputs.keys().any(|key| key.starts_with(MESHED)), "{marked}");
    }
}

#[test]
fn no_public_name_is_taken_by_a_registration() {
    let name = "github.com";
    let check = |toml: &str, plain: &[&str], expected: &[&str]| {
        let all = [(name, json!([foreign(name, "n1", "10.6.6.6", 443)]))];
        let plain = plain.iter().map(|name| key(name)).collect();
        let settings = Settings { plain, ..Settings::default() };
        let derived = derive(&inputs(&all, &resources(toml)), &settings);
        assert_eq!(endpoints(&derived, name), expected, "{toml}");
        let why = derived.report.named.get(name).map(String::as_str).unwrap_or_default();
        assert_eq!(why.contains("no resource is in that namespace"), expected == ["no service"], "{why}");
    };
    let taken = ["10.6.6.6:443 Plain healthy"];
    let peers =
        "[[PeerAuthentication]]\nname = \"default\"\nnamespace = \"com\"\nmtls = { mode = \"STRICT\" }\n";
    check("", &[], &["no service"]);
    check(ORDERS, &[], &["no service"]);
    check(peers, &[], &taken);
    check("", &[name], &taken);
    let grant =
        |services: &str| format!("[[HostGrant]]\nname = \"g\"\nhost = \"h1\"\nservices = [\"{services}\"]\n");
    check(&grant("x.com"), &[], &taken);
    check(&grant("*.c*"), &[], &["no service"]);
    // An agent's own.
    let all = [("orders.shop", json!([ours("orders.shop", "h1", "10.0.0.1", None)]))];
    let derived = derive(&inputs(&all, &[]), &Settings::default());
    assert_eq!(endpoints(&derived, "orders.shop"), ["10.0.0.1:8080 Hbone healthy"]);
}
