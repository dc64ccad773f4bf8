//! Whom REGISTRY_ONLY lets go where. `orders` is of this host, in the namespace `default`; 10.0.0.9 has no agent.

use std::sync::Arc;

use super::super::tests::{ORDERS, host, mesh, registration};
use super::*;
use crate::resolution::Resolved;

const MESH: &str = r#"
[[MeshConfig]]
outboundTrafficPolicy = { mode = "REGISTRY_ONLY" }

[[Service]]
name = "legacy"
ports = [{ port = 5432, protocol = "tcp" }]

[[Service]]
name = "again"
ports = [{ port = 6000, targetPort = 5432, protocol = "tcp" }]

[[WorkloadEntry]]
name = "legacy-1"
address = "10.0.0.9"
labels = { app = "legacy" }

[[WorkloadEntry]]
name = "again-1"
address = "10.0.0.9"
labels = { app = "again" }

[[ServiceEntry]]
name = "named"
hosts = ["api.example.com"]
resolution = "DNS"
ports = [{ number = 443, protocol = "TCP" }]

[[ServiceEntry]]
name = "listed"
hosts = ["listed.example.com"]
resolution = "STATIC"
ports = [{ number = 80, targetPort = 8080, protocol = "TCP" }]
endpoints = [{ address = "192.0.2.1" }]

[[ServiceEntry]]
name = "block"
hosts = ["block.example.com"]
addresses = ["10.1.0.0/16"]
ports = [{ number = 5432, protocol = "TCP" }]

[[ServiceEntry]]
name = "theirs"
namespace = "web"
exportTo = ["."]
hosts = ["theirs.example.com"]
resolution = "STATIC"
ports = [{ number = 443, protocol = "TCP" }]
endpoints = [{ address = "192.0.2.9" }]
"#;

/// Of somebody else on this host, who sees what `theirs` hides from `orders`.
const NEIGHBOUR: &str = "name = \"shop\"\nnamespace = \"web\"\nports = [{ port = 7100 }]\nuser = 8\n";

fn snapshot(sidecar: &str) -> Snapshot {
    let (mesh, registrations) =
        (mesh(&format!("{MESH}{sidecar}")), [registration(ORDERS), registration(NEIGHBOUR)]);
    let resolved = Arc::new(Resolved::of([("api.example.com", &["198.51.100.7"])]));
    Snapshot::build_resolved(&mesh, &registrations, (&host(), 15008), (None, &resolved)).expect("a snapshot")
}

fn let_out(snapshot: &Snapshot, name: &str, destination: &str) -> bool {
    let index = snapshot.registrations.iter().position(|local| local.key.name.as_str() == name);
    snapshot.lets_out(Some(index.expect("a registration")), destination.parse().expect("an address"))
}

#[test]
fn registry_only_lets_out_to_what_the_registry_shows_the_caller() {
    let snapshot = snapshot("");
    for (caller, destination, expected) in [
        ("orders", "10.0.0.9:5432", true),
        ("orders", "10.0.0.9:22", false),
        ("orders", "192.0.2.1:8080", true),
        ("orders", "192.0.2.1:80", false),
        ("orders", "10.1.2.3:5432", true),
        // What it may not see.
        ("orders", "192.0.2.9:443", false),
        ("shop", "192.0.2.9:443", true),
        // Reached by its name alone.
        ("orders", "198.51.100.7:443", false),
    ] {
        assert_eq!(let_out(&snapshot, caller, destination), expected, "{caller} {destination}");
    }
    assert!(snapshot.lets_out(None, "203.0.113.1:443".parse().expect("an address")), "the host goes out");
}

#[test]
fn registry_only_lets_nobody_out_to_what_its_sidecar_does_not_name() {
    let of = |egress: &str| {
        snapshot(&format!(
            "[[Sidecar]]\nname = \"default\"\nnamespace = \"default\"\negress = [{{ hosts = [{egress}] }}]\n"
        ))
    };
    let check = |egress: &str, destination: &str, expected: bool| {
        assert_eq!(let_out(&of(egress), "orders", destination), expected, "{egress} {destination}");
    };
    check("\"./legacy\"", "10.0.0.9:5432", true);
    // Any of the services whose endpoint it is.
    check("\"./again\"", "10.0.0.9:5432", true);
    check("\"./orders\"", "10.0.0.9:5432", false);
    check("\"./orders\"", "192.0.2.1:8080", false);
    check("\"./listed.example.com\"", "192.0.2.1:8080", true);
    check("\"./listed.example.com\"", "10.1.2.3:5432", false);
    check("\"./block.example.com\"", "10.1.2.3:5432", true);
}

#[test]
fn a_port_that_no_sidecar_takes_is_refused_with_its_name_and_delivery_is_the_registration_s() {
    let check = |ingress: &str, expected: Option<&str>| {
        let sidecar =
            format!("[[Sidecar]]\nname = \"default\"\nnamespace = \"default\"\ningress = [{ingress}]\n");
        let snapshot = snapshot(if ingress.is_empty() { "" } else { &sidecar });
        let mut local: Vec<_> =
            snapshot.advertised.values().filter(|local| local.service.name.as_str() == "orders").collect();
        local.sort_by_key(|local| local.advertised);
        let registered = &snapshot.registrations[0].ports[0];
        assert_eq!(local[0].deliver, registered.deliver, "{ingress}");
        let refused = local[0].taken().err().map(|error| (error.reason().name(), error.to_string()));
        match (refused, expected) {
            (None, None) => {}
            (Some((reason, said)), Some(word)) => {
                assert_eq!(reason, "not_in_sidecar_ingress");
                assert!(said.contains(word), "{said}");
            }
            (refused, _) => panic!("{ingress}: {refused:?}"),
        }
        let others = snapshot.advertised.values().filter(|local| local.service.namespace.as_str() == "web");
        assert!(others.into_iter().all(|local| local.taken().is_ok()), "it is of another namespace");
    };
    check("", None);
    check("{ port = { number = 7000 } }", None);
    check("{ port = { number = 7000 }, defaultEndpoint = \"127.0.0.1:7000\" }", None);
    check(
        "{ port = { number = 7001 } }",
        Some("default.default does not have orders.default called at port 7000"),
    );
}
