//! Which host a name or an address means, to whom.

use std::net::SocketAddr;

use baremesh_model::name::Label;

use super::super::tests::{host, mesh, registration};
use super::*;
use crate::snapshot::tests::ORDERS;
use crate::snapshot::{Route, ShortNames};

const ENTRIES: &str = r#"
[[ServiceEntry]]
name = "api"
hosts = ["api.example.com", "httpbin.org"]
resolution = "DNS"
ports = [{ number = 443, protocol = "TLS" }]

[[ServiceEntry]]
name = "wide"
hosts = ["*.example.com"]
resolution = "DYNAMIC_DNS"
ports = [{ number = 443, protocol = "TLS" }, { number = 80, protocol = "HTTP" }]

[[ServiceEntry]]
name = "block"
hosts = ["partner.example.net"]
addresses = ["10.1.0.0/16", "10.2.0.7"]
ports = [{ number = 5432, protocol = "TCP" }]

[[ServiceEntry]]
name = "listed"
hosts = ["listed.example.net"]
resolution = "STATIC"
ports = [{ number = 80, targetPort = 8080, protocol = "HTTP", name = "http" }]
endpoints = [{ address = "192.0.2.1" }, { address = "192.0.2.2", ports = { http = 9090 } }]

[[ServiceEntry]]
name = "untold"
hosts = ["*.untold.example"]
ports = [{ number = 443, protocol = "TLS" }]

[[ServiceEntry]]
name = "theirs"
namespace = "web"
exportTo = ["web"]
hosts = ["theirs.example.com"]
resolution = "DNS"
ports = [{ number = 443, protocol = "TLS" }]
"#;

fn snapshot() -> Snapshot {
    Snapshot::build(&mesh(ENTRIES), &[registration(ORDERS)], &host(), 15008, None).expect("a snapshot")
}

fn label(text: &str) -> Label {
    Label::new(text).expect("a label")
}

#[test]
fn names_mean_the_exact_host_before_a_wildcard_and_only_to_those_who_see_it() {
    let snapshot = snapshot();
    let check = |name: &str, expected: Option<&str>| {
        let found = snapshot.called(name, &label("shop")).map(|service| &*service.host);
        assert_eq!(found, expected, "{name}");
    };
    check("api.example.com", Some("api.example.com"));
    check("API.example.com.", Some("api.example.com"));
    check("b.example.com", Some("*.example.com"));
    check("example.com", None);
    check("httpbin.org", Some("httpbin.org"));
    // As routes have it in full.
    check("httpbin.org.mesh.internal", Some("httpbin.org"));
    check("theirs.example.com", Some("*.example.com"));
    check("elsewhere.test", None);
}

#[test]
fn dns_answers_for_hosts_with_an_address_and_forwards_the_rest() {
    let snapshot = snapshot();
    let check = |name: &str, expected: Option<&str>| {
        let found = match snapshot.find_name(name, ShortNames::Answered) {
            Found::Service { v4, .. } => v4.first().map(|address| address.to_string()),
            Found::Ports(_) | Found::NoSuchName | Found::NotOurs => None,
        };
        match expected {
            Some(part) => {
                assert!(found.as_ref().is_some_and(|found| found.contains(part)), "{name}: {found:?}");
            }
            None => assert_eq!(found, None, "{name}"),
        }
    };
    check("api.example.com", Some("240.240."));
    check("b.example.com", Some("240.240."));
    check("partner.example.net", Some("10.2.0.7"));
    check("a.untold.example", None);
    check("theirs.example.com", Some("240.240."));
    assert_ne!(
        snapshot.find_name("api.example.com", ShortNames::Answered),
        snapshot.find_name("b.example.com", ShortNames::Answered)
    );
}

#[test]
fn addresses_blocks_and_listed_endpoints_are_captured() {
    let snapshot = snapshot();
    let route = |address: &str| {
        let address: SocketAddr = address.parse().expect("an address");
        match snapshot.route(address) {
            Ok(Route::Endpoint(service, port, endpoint)) => {
                format!("{} {port} {}", service.host, endpoint.address)
            }
            Ok(Route::Passthrough) => {
                let from = label("shop");
                let found = snapshot.external.at(address, &from).next();
                found.map_or("passthrough".to_owned(), |service| service.host.to_string())
            }
            other => format!("{other:?}"),
        }
    };
    assert_eq!(route("10.1.2.3:5432"), "partner.example.net");
    assert_eq!(route("10.2.0.7:5432"), "partner.example.net");
    assert_eq!(route("10.1.2.3:80"), "passthrough");
    assert_eq!(route("192.0.2.1:8080"), "listed.example.net 80 192.0.2.1:8080");
    assert_eq!(route("192.0.2.2:9090"), "listed.example.net 80 192.0.2.2:9090");
    assert_eq!(route("192.0.2.2:8080"), "passthrough");
    let captured: Vec<String> =
        snapshot.external_addresses().iter().map(|(network, port)| format!("{network} {port}")).collect();
    assert_eq!(captured, ["10.1.0.0/16 5432", "10.2.0.7/32 5432", "192.0.2.1/32 8080", "192.0.2.2/32 9090"]);
}

#[test]
fn the_names_of_what_is_called_here_are_looked_up() {
    let names = snapshot().names_to_resolve();
    assert_eq!(names, ["api.example.com".into(), "httpbin.org".into()] as [Arc<str>; 2]);
}

#[test]
fn a_selector_takes_no_endpoint_of_a_catalog_into_which_others_write() {
    let toml = r#"
[[ServiceEntry]]
name = "vms"
hosts = ["vms.example.com"]
resolution = "STATIC"
ports = [{ number = 80, protocol = "TCP" }]
workloadSelector = { labels = { app = "vm" } }

[[WorkloadEntry]]
name = "written"
address = "192.0.2.1"
labels = { app = "vm" }

[[WorkloadEntry]]
name = "foreign"
address = "192.0.2.2"
labels = { app = "vm", consul-catalog = "true" }
"#;
    let snapshot =
        Snapshot::build(&mesh(toml), &[registration(ORDERS)], &host(), 15008, None).expect("a snapshot");
    let service = snapshot.called("vms.example.com", &label("default")).expect("the host");
    let endpoints: Vec<String> =
        service.ports[0].endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect();
    assert_eq!(endpoints, ["192.0.2.1:80"]);
}

#[test]
fn every_host_that_somebody_here_calls_is_resolved_and_no_other() {
    let toml = r#"
[[ServiceEntry]]
name = "a"
exportTo = ["~"]
hosts = ["hidden.example.org"]
resolution = "DNS"
ports = [{ number = 443, protocol = "TCP" }]

[[ServiceEntry]]
name = "b"
hosts = ["one.example.org", "two.example.org"]
resolution = "DNS"
ports = [{ number = 443, protocol = "TCP" }]
"#;
    let snapshot =
        Snapshot::build(&mesh(toml), &[registration(ORDERS)], &host(), 15008, None).expect("a snapshot");
    let names = snapshot.names_to_resolve();
    assert_eq!(names.iter().map(|name| &**name).collect::<Vec<_>>(), ["one.example.org", "two.example.org"]);
}

/// Two namespaces with services on this host, each with entries of its own: of one name, of one block, and hidden ones.
const NEIGHBOURS: &str = r#"
[[ServiceEntry]]
name = "api"
namespace = "default"
exportTo = ["."]
hosts = ["api.example.com"]
resolution = "DNS"
addresses = ["198.51.100.1"]
ports = [{ number = 443, protocol = "TCP" }]

[[ServiceEntry]]
name = "api"
namespace = "web"
hosts = ["api.example.com"]
resolution = "DNS"
ports = [{ number = 443, protocol = "TCP" }]

[[ServiceEntry]]
name = "secret"
namespace = "web"
exportTo = ["."]
hosts = ["secret.example.com"]
resolution = "DNS"
ports = [{ number = 443, protocol = "TCP" }]

[[ServiceEntry]]
name = "listed"
namespace = "web"
exportTo = ["."]
hosts = ["listed.example.com"]
resolution = "STATIC"
ports = [{ number = 5432, protocol = "TCP" }]
endpoints = [{ address = "10.1.0.7" }]

[[ServiceEntry]]
name = "wide"
namespace = "aaa"
hosts = ["wide.example.com"]
addresses = ["10.1.0.0/16"]
ports = [{ number = 5432, protocol = "TCP" }]

[[ServiceEntry]]
name = "near"
namespace = "aaa"
hosts = ["near.example.com"]
addresses = ["10.1.2.0/24"]
ports = [{ number = 5432, protocol = "TCP" }]

[[ServiceEntry]]
name = "wide"
namespace = "default"
hosts = ["own.example.com"]
addresses = ["10.1.0.0/16"]
ports = [{ number = 5432, protocol = "TCP" }]
"#;

/// What a connection of the service means that is registered here by that name.
fn meant(snapshot: &Snapshot, caller: &str, to: &str) -> String {
    let index = snapshot.registrations.iter().position(|local| local.key.name.as_str() == caller);
    let destination: SocketAddr = to.parse().expect("an address");
    let route = snapshot.route(destination).expect("a route");
    let named = |hosts: Vec<&Arc<ServiceEntry>>| {
        hosts.iter().map(|host| format!("{}/{}", host.key.namespace, host.host)).collect::<Vec<_>>().join(" ")
    };
    match snapshot.meant(index, (route, destination)) {
        Ok(Meant::Routed(Route::Endpoint(service, ..))) => format!("endpoint {}", service.host),
        Ok(Meant::Routed(route)) => format!("{route:?}"),
        Ok(Meant::Hosts(hosts)) => named(hosts),
        Ok(Meant::Unaddressed(hosts)) => format!("outside {}", named(hosts)),
        Ok(Meant::Unseen(host)) => format!("unseen {}", host.host),
        Err(error) => error.reason().name().to_owned(),
    }
}

#[test]
fn of_several_hosts_the_callers_own_is_meant_and_none_that_it_may_not_call() {
    let shop = registration("name = \"shop\"\nnamespace = \"web\"\nports = [{ port = 7100 }]\nuser = 8\n");
    let build = |further: &str| {
        let mesh = mesh(&format!("{NEIGHBOURS}{further}"));
        Snapshot::build(&mesh, &[registration(ORDERS), Arc::clone(&shop)], &host(), 15008, None)
            .expect("a snapshot")
    };
    let snapshot = build("");
    let virtual_of = |name: &str| {
        let service = snapshot.external.named(name, &label("web")).expect("the host");
        format!("{}:443", service.addresses[0])
    };
    let (api, secret) = (virtual_of("api.example.com"), virtual_of("secret.example.com"));
    let check = |snapshot: &Snapshot, caller: &str, to: &str, expected: &str| {
        assert_eq!(meant(snapshot, caller, to), expected, "{caller} {to}");
    };
    // DNS does not know who asks: what it gave may be the host of another namespace.
    check(&snapshot, "shop", &api, "web/api.example.com");
    check(&snapshot, "orders", &api, "default/api.example.com");
    check(&snapshot, "shop", &secret, "web/secret.example.com");
    check(&snapshot, "orders", &secret, "unseen secret.example.com");
    // The nearest block, and of one block the caller's own.
    check(&snapshot, "orders", "10.1.9.9:5432", "default/own.example.com aaa/wide.example.com");
    check(
        &snapshot,
        "orders",
        "10.1.2.9:5432",
        "aaa/near.example.com default/own.example.com aaa/wide.example.com",
    );
    // An endpoint that is hidden may be in a block that is not.
    check(&snapshot, "shop", "10.1.0.7:5432", "endpoint listed.example.com");
    check(&snapshot, "orders", "10.1.0.7:5432", "default/own.example.com aaa/wide.example.com");
    check(&snapshot, "orders", "203.0.113.1:5432", "outside ");
    let sidecar = |host: &str| {
        build(&format!(
            "[[Sidecar]]\nname = \"default\"\nnamespace = \"default\"\negress = [{{ hosts = [\"{host}\"] }}]\n"
        ))
    };
    check(&sidecar("aaa/wide.example.com"), "orders", "10.1.2.9:5432", "aaa/wide.example.com");
    // What is forbidden is there to be refused.
    check(&sidecar("./orders"), "orders", "10.1.9.9:5432", "default/own.example.com aaa/wide.example.com");
}

#[test]
fn of_equals_the_first_is_the_best() {
    let snapshot = Snapshot::build(&mesh(NEIGHBOURS), &[registration(ORDERS)], &host(), 15008, None);
    let snapshot = snapshot.expect("a snapshot");
    let all: Vec<_> = snapshot.services().filter(|service| &*service.host == "api.example.com").collect();
    assert_eq!(all.len(), 2);
    for order in [[0, 1], [1, 0]] {
        let found = best(order.into_iter().map(|at| all[at]), "API.example.com.").expect("one of them");
        assert!(Arc::ptr_eq(found, all[order[0]]));
    }
}
