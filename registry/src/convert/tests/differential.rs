use std::sync::Arc;

use baremesh_model::authorization::{Carried, Connection, Facts, PolicySet, Request, ServerName};
use baremesh_model::http::RequestHead;
use baremesh_model::identity::Identity;
use baremesh_model::mesh_config::MeshConfig;
use baremesh_model::name::{Label, default_namespace};
use baremesh_model::workload::Labels;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;

use super::*;
use crate::format::source::{Origin, Source, Span};
use crate::resource::Located;
use crate::set::{Loaded, assemble};

const SERVICES: [&str; 4] = ["a", "b", "c", "d"];

/// A request as both sides see it.
#[derive(Debug, Clone)]
struct Asked {
    from: &'static str,
    to: &'static str,
    path: &'static str,
    method: &'static str,
    fields: Vec<(&'static str, &'static str)>,
}

fn any_permission() -> impl Strategy<Value = Json> {
    let path = prop_oneof![
        2 => Just(json!({})),
        1 => select(vec!["/a", "/a/b", "/b"]).prop_map(|path| json!({ "PathExact": path })),
        2 => select(vec!["/", "/a", "/a/"]).prop_map(|path| json!({ "PathPrefix": path })),
        1 => select(vec!["/a/.*", ".*b", "/a/[^/]+"]).prop_map(|path| json!({ "PathRegex": path })),
    ];
    let methods = select(vec![json!([]), json!([]), json!(["GET"]), json!(["GET", "POST"])]);
    let way = select(vec![
        json!({ "Present": true }),
        json!({ "Exact": "1" }),
        json!({ "Prefix": "1" }),
        json!({ "Suffix": "2" }),
    ]);
    let field = (select(vec!["x-a", "X-B"]), way, any::<bool>()).prop_map(|(name, mut way, invert)| {
        way["Name"] = name.into();
        way["Invert"] = invert.into();
        way
    });
    let fields = proptest::collection::vec(field, 0..=2);
    (any::<bool>(), path, methods, fields).prop_map(|(allow, mut http, methods, fields)| {
        http["Methods"] = methods;
        http["Header"] = fields.into();
        json!({ "Action": if allow { "allow" } else { "deny" }, "HTTP": http })
    })
}

fn any_intentions() -> impl Strategy<Value = Vec<Json>> {
    let name = || select(vec!["a", "b", "c", "*"]);
    let permissions = proptest::collection::vec(any_permission(), 1..=3);
    let act = prop_oneof![
        Just(json!({ "Action": "allow" })),
        Just(json!({ "Action": "deny" })),
        permissions.prop_map(|permissions| json!({ "Permissions": permissions })),
    ];
    proptest::collection::btree_map((name(), name()), act, 1..=6).prop_map(|intentions| {
        let one = |((from, to), mut act): ((&str, &str), Json)| {
            if to == "*" && act.get("Permissions").is_some() {
                act = json!({ "Action": "allow" });
            }
            act["SourceName"] = from.into();
            act["DestinationName"] = to.into();
            act
        };
        intentions.into_iter().map(one).collect()
    })
}

fn any_request() -> impl Strategy<Value = Asked> {
    let value = || proptest::option::of(select(vec!["1", "12", "2", "3"]));
    (
        select(SERVICES.to_vec()),
        select(SERVICES.to_vec()),
        select(vec!["/", "/a", "/a/b", "/a/b/c", "/ab", "/b", "/c"]),
        select(vec!["GET", "POST", "PUT"]),
        (value(), value()),
    )
        .prop_map(|(from, to, path, method, (a, b))| {
            let fields = [("x-a", a), ("x-b", b)];
            let fields = fields.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
            Asked { from, to, path, method, fields }
        })
}

/// Consul's own rules, read from the JSON: the most exact intention by destination and then by source; of its permissions
/// the first that matches; else the default.
fn by_consul(intentions: &[Json], default: bool, asked: &Asked) -> bool {
    let find = |from: &str, to: &str| {
        intentions.iter().find(|one| one["SourceName"] == from && one["DestinationName"] == to)
    };
    let order = [(asked.from, asked.to), ("*", asked.to), (asked.from, "*"), ("*", "*")];
    let Some(intention) = order.into_iter().find_map(|(from, to)| find(from, to)) else { return default };
    match intention.get("Permissions").and_then(Json::as_array) {
        None => intention["Action"] == "allow",
        Some(permissions) => {
            let first = permissions.iter().find(|permission| asks(&permission["HTTP"], asked));
            first.map_or(default, |permission| permission["Action"] == "allow")
        }
    }
}

fn asks(http: &Json, asked: &Asked) -> bool {
    let path = match http.as_object().and_then(|http| http.iter().find(|(key, _)| key.starts_with("Path"))) {
        None => true,
        Some((key, value)) => match (key.as_str(), text_of(value)) {
            ("PathExact", path) => asked.path == path,
            ("PathPrefix", path) => asked.path.starts_with(path),
            (_, "/a/.*") => asked.path.starts_with("/a/"),
            (_, ".*b") => asked.path.ends_with('b'),
            (_, _) => {
                asked.path.strip_prefix("/a/").is_some_and(|rest| !rest.is_empty() && !rest.contains('/'))
            }
        },
    };
    let methods = http["Methods"].as_array().expect("methods");
    let method = methods.is_empty() || methods.iter().any(|method| method == asked.method);
    let field = |wanted: &Json| {
        let name = text_of(&wanted["Name"]).to_lowercase();
        let value = asked.fields.iter().find(|(field, _)| **field == name).map(|(_, value)| *value);
        let inverted = wanted["Invert"] == true;
        let Some(value) = value else {
            // What is missing matches nothing but the wish that it be missing.
            return inverted && wanted.get("Present").is_some();
        };
        let matches = wanted.get("Present").is_some()
            || wanted.get("Exact").is_some_and(|text| text == value)
            || wanted.get("Prefix").is_some_and(|text| value.starts_with(text_of(text)))
            || wanted.get("Suffix").is_some_and(|text| value.ends_with(text_of(text)));
        matches != inverted
    };
    path && method && http["Header"].as_array().expect("fields").iter().all(field)
}

fn by_policies(loaded: &Loaded, asked: &Asked) -> bool {
    let label = |text: &str| Label::new(text).expect("a label");
    let config = MeshConfig::default();
    let source = Identity::new(config.trust_domain.clone(), default_namespace(), label(asked.from));
    let mut head = RequestHead {
        method: asked.method.into(),
        authority: asked.to.into(),
        target: asked.path.into(),
        ..RequestHead::default()
    };
    for (name, value) in &asked.fields {
        head.headers.append(name, value.as_bytes()).expect("a field");
    }
    let address = "10.0.0.1".parse().expect("an address");
    let request = Request { head: &head, token: None, remote_ip: address, allowed_by: &[] };
    let connection = Connection {
        source: Some(&source),
        source_ip: address,
        destination_ip: address,
        destination_port: 80,
        server_name: ServerName::None,
    };
    let labels = Labels::from([(Arc::from("app"), Arc::from(asked.to))]);
    let policies = &loaded.mesh.authorization_policies;
    let namespace = default_namespace();
    let selected =
        PolicySet::select(policies, &namespace, &labels, &config.root_namespace).cloned().collect();
    let facts = Facts { connection, carried: Carried::Request(&request) };
    PolicySet::new(selected).decide(facts).verdict.allows()
}

/// Cases that are tried; of them at least so many of a hundred are converted.
const CASES: u32 = 600;
const CONVERTED: usize = 50;

#[test]
fn policies_decide_as_consul_does_on_random_intentions_and_requests() {
    let mut runner = TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() });
    let counts: [std::cell::Cell<usize>; 4] = Default::default();
    let count = |index: usize| counts[index].set(counts[index].get() + 1);
    let cases = (any_intentions(), any::<bool>(), proptest::collection::vec(any_request(), 24));
    let ran = runner.run(&cases, |(intentions, default, requests)| {
        count(0);
        let policy = if default { DefaultPolicy::Allow } else { DefaultPolicy::Deny };
        let protocol = r#"{"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}}"#;
        let json = format!("{protocol}{}", Json::from(intentions.clone()));
        let ports: Vec<(&str, u16)> = SERVICES.iter().map(|name| (*name, 80)).collect();
        let made = match converted(&json, &options(Some(policy), &ports)) {
            Ok(made) => made,
            Err(refusals) => {
                let known = |refusal: &Refusal| refusal.reason.contains("Consul's documentation");
                prop_assert!(refusals.iter().all(known), "{refusals:?}");
                return Ok(());
            }
        };
        count(1);
        let origin = Origin { source: Arc::new(Source::new("made", "")), span: Span::default() };
        let located = made.resources.into_iter().map(|value| Located { value, origin: origin.clone() });
        let loaded = assemble(located.collect(), Vec::new()).expect("a set that holds together");
        for asked in &requests {
            let expected = by_consul(&intentions, default, asked);
            prop_assert_eq!(
                by_policies(&loaded, asked),
                expected,
                "{:?} {:#?}",
                asked,
                loaded.mesh.authorization_policies
            );
            count(if expected { 2 } else { 3 });
        }
        Ok(())
    });
    ran.unwrap_or_else(|error| panic!("{error}"));
    let [tried, made, allowed, refused] = counts.map(|count| count.get());
    assert!(made * 100 >= tried * CONVERTED, "{made} of {tried}");
    // The test compares something: both answers come often.
    assert!(allowed * 4 > refused && refused * 4 > allowed, "{allowed} allowed, {refused} refused");
}
