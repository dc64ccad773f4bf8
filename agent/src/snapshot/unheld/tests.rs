use baremesh_model::endpoint_addresses::EndpointAddresses;
use baremesh_registry::control::endpoint_addresses;
use serde_json::{Value, json};

use super::*;
use crate::snapshot::tests::{host, mesh, registration, routed, settings};
use crate::snapshot::{Host, HostNetwork};

const SERVICES: &str = r#"
[[MeshConfig]]
outboundTrafficPolicy = { mode = "REGISTRY_ONLY" }

[[Service]]
name = "web"
ports = [{ port = 80, targetPort = 8080 }]

[[Service]]
name = "orders"
ports = [{ port = 7000 }]

[[Service]]
name = "pay"
namespace = "shop"
ports = [{ port = 80 }]
"#;

const ORDERS: &str = "name = \"orders\"\nports = [{ port = 7000 }]\n";

fn key(text: &str) -> Key {
    Key::read(text).expect("a key")
}

fn addresses(groups: &Value) -> Arc<EndpointAddresses> {
    Arc::new(endpoint_addresses::read(&json!({ "groups": groups })).expect("addresses"))
}

fn web() -> (Key, Arc<EndpointAddresses>) {
    let groups = json!([
        { "ports": "80:8080", "at": "10.0.0.2,fd00::2 10.0.0.3" },
        { "ports": "80:8080", "at": "10.0.0.4", "tunnel": "plain" },
        { "ports": "80:8080", "at": "10.0.0.5", "network": "eu" },
    ]);
    (key("web.default"), addresses(&groups))
}

fn built(
    unheld: &[(Key, Arc<EndpointAddresses>)],
    registered: &[&str],
    previous: Option<&Snapshot>,
) -> Snapshot {
    let mesh = mesh(SERVICES).holding_all_but(unheld.iter().cloned().collect());
    let registered: Vec<_> = registered.iter().map(|text| registration(text)).collect();
    Snapshot::build(&mesh, &registered, &host(), 15008, previous).expect("a snapshot")
}

fn service<'a>(snapshot: &'a Snapshot, name: &str) -> &'a Arc<ServiceEntry> {
    snapshot.service(&key(name)).expect("a service")
}

#[test]
fn real_addresses_of_what_was_not_asked_for_are_the_mesh_s() {
    let snapshot = built(&[web()], &[ORDERS], None);
    for (destination, expected) in [
        ("10.0.0.2:8080", "unheld web.default 80"),
        ("[fd00::2]:8080", "unheld web.default 80"),
        ("10.0.0.3:8080", "unheld web.default 80"),
        ("10.0.0.3:81", "passthrough"),
        ("10.0.0.4:8080", "passthrough"),
        ("10.0.0.5:8080", "passthrough"),
        ("10.0.0.1:7000", "local orders.default at 127.0.0.1:7000"),
    ] {
        assert_eq!(routed(&snapshot, destination), expected, "{destination}");
    }
    let captured: Vec<_> =
        snapshot.capture_plan(&settings()).endpoints.iter().map(ToString::to_string).collect();
    assert_eq!(captured, ["10.0.0.2:8080", "10.0.0.3:8080", "[fd00::2]:8080"]);
    let mut agents: Vec<_> = snapshot.agents_elsewhere().map(|(at, _)| at.to_string()).collect();
    agents.sort();
    assert_eq!(agents, ["10.0.0.2:15008", "10.0.0.3:15008", "[fd00::2]:15008"]);
    // REGISTRY_ONLY has what no agent serves as well.
    for (destination, expected) in [("10.0.0.4:8080", true), ("10.0.0.5:8080", false), ("10.0.0.4:1", false)]
    {
        let found = snapshot.lets_out(Some(0), destination.parse().expect("an address"));
        assert_eq!(found, expected, "{destination}");
    }
}

#[test]
fn what_was_not_asked_for_is_not_called_before_it_is() {
    let snapshot = built(&[web()], &[], None);
    assert!(!snapshot.holds(&key("web.default")) && snapshot.holds(&key("pay.shop")));
    assert!(snapshot.holds(&key("nobody.shop")), "there is nothing to ask for");
    let within = Duration::from_secs(3);
    let refused = service(&snapshot, "web.default").call(within);
    assert!(
        matches!(refused, Err(ProxyError::EndpointsUnknown { service, within: time }) if service == key("web.default") && time == within)
    );
    assert!(service(&snapshot, "pay.shop").call(within).is_ok());
    // Who was called is known in the next state too, once.
    let next = built(&[], &[], Some(&snapshot));
    let called = |name| service(&next, name).take_called();
    assert_eq!((called("web.default"), called("pay.shop"), called("orders.default")), (true, true, false));
    assert!(!called("web.default"));
}

#[test]
fn a_service_of_this_host_is_called_here_while_the_others_were_not_asked_for() {
    let elsewhere =
        (key("orders.default"), addresses(&json!([{ "ports": "7000", "at": "10.0.0.1 10.0.0.9" }])));
    let snapshot = built(&[elsewhere], &[ORDERS], None);
    assert!(service(&snapshot, "orders.default").call(Duration::ZERO).is_ok());
    assert!(!snapshot.holds(&key("orders.default")));
    assert_eq!(routed(&snapshot, "10.0.0.1:7000"), "local orders.default at 127.0.0.1:7000");
    assert_eq!(routed(&snapshot, "10.0.0.9:7000"), "unheld orders.default 7000");
}

#[test]
fn what_did_not_change_is_taken_over() {
    let first = built(&[web()], &[], None);
    let second = built(&[web()], &[], Some(&first));
    assert!(Arc::ptr_eq(service(&first, "web.default"), service(&second, "web.default")));
    let third = built(&[], &[], Some(&second));
    assert!(service(&third, "web.default").is_held());
    let moved = (key("web.default"), addresses(&json!([{ "ports": "80:8080", "at": "10.0.0.7" }])));
    let fourth = built(&[moved], &[], Some(&first));
    assert_eq!(routed(&fourth, "10.0.0.7:8080"), "unheld web.default 80");
    assert_eq!(routed(&fourth, "10.0.0.2:8080"), "passthrough");
}

#[test]
fn what_sidecars_name_is_asked_for_beforehand() {
    let check = |egress: &str, expected: &[&str]| {
        let sidecar = format!(
            "{SERVICES}[[Sidecar]]\nname = \"s\"\nworkloadSelector = {{ labels = {{ app = \"orders\" }} }}\negress = [{{ hosts = [{egress}] }}]\n"
        );
        let orders = [registration(ORDERS)];
        let snapshot = Snapshot::build(&mesh(&sidecar), &orders, &host(), 15008, None).expect("a snapshot");
        let declared = snapshot.declared_calls().expect("not all");
        let declared: Vec<_> = declared.iter().map(ToString::to_string).collect();
        assert_eq!(declared, expected, "{egress}");
    };
    check("\"*/*\"", &["orders.default"]);
    check("\"shop/pay\"", &["orders.default", "pay.shop"]);
    check("\"./*\"", &["orders.default", "web.default"]);
    check("\"*/pay.shop.mesh.internal\", \"~/*\"", &["orders.default", "pay.shop"]);
    let network = |role| HostNetwork { name: baremesh_model::name::Label::new("eu").expect("a label"), role };
    let of = |role| {
        let host = Host { network: Some(network(role)), ..host() };
        Snapshot::build(&mesh(SERVICES), &[], &host, 15008, None).expect("a snapshot").declared_calls()
    };
    assert_eq!(of(crate::snapshot::NetworkRole::Gateway), None, "a gateway of a network needs all");
    let leads_out =
        built(&[], &["name = \"out\"\ngateway = true\nports = [{ port = 443, protocol = \"TLS\" }]\n"], None);
    assert_eq!(leads_out.declared_calls(), None, "and so does one out of the mesh");
    assert_eq!(of(crate::snapshot::NetworkRole::Member), Some(BTreeSet::new()));
}
