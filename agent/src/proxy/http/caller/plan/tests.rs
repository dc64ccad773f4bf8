//! Which service and whose routes a request gets, where a Sidecar or `exportTo` keeps some from the caller.

use super::*;
use crate::snapshot::tests::{ORDERS, host, mesh, registration};

const MESH: &str = r#"
[[Service]]
name = "web"
addresses = ["240.240.0.2"]
ports = [{ port = 80, protocol = "http" }]

[[Service]]
name = "vault"
addresses = ["240.240.0.3"]
ports = [{ port = 80, protocol = "http" }]

[[VirtualService]]
name = "vault"
hosts = ["vault"]
http = [{ route = [{ destination = { host = "vault" } }] }]

[[VirtualService]]
name = "alias"
hosts = ["alias.example.com"]
http = [{ route = [{ destination = { host = "web" } }] }]

[[ServiceEntry]]
name = "theirs"
namespace = "other"
exportTo = ["other"]
hosts = ["theirs.example.com"]
resolution = "STATIC"
ports = [{ number = 80, protocol = "HTTP" }]
endpoints = [{ address = "192.0.2.1" }]

[[VirtualService]]
name = "theirs"
hosts = ["theirs.example.com"]
http = [{ route = [{ destination = { host = "vault" } }] }]
"#;

const WEB_ALONE: &str =
    "[[Sidecar]]\nname = \"default\"\nnamespace = \"default\"\negress = [{ hosts = [\"./web\"] }]\n";
const NEIGHBOUR: &str = "name = \"shop\"\nnamespace = \"other\"\nports = [{ port = 7100 }]\nuser = 8\n";

/// The service and the VirtualService of a request of `orders` for `authority` on a connection to `dialled`.
fn concerns(further: &str, dialled: &str, authority: &str) -> Option<(String, Option<String>)> {
    let registrations = [registration(ORDERS), registration(NEIGHBOUR)];
    let mesh = mesh(&format!("{MESH}{further}"));
    let snapshot = Snapshot::build(&mesh, &registrations, &host(), 15008, None).expect("a snapshot");
    let key = match dialled.contains('.') {
        true => Key::of_host(Label::new("other").expect("a label"), dialled),
        false => Key::resolve(dialled, &baremesh_model::name::default_namespace(), &mesh.config.domain)
            .expect("a service's name"),
    };
    let caller = snapshot.registrations.iter().position(|local| local.key.name.as_str() == "orders");
    let identity = &snapshot.sources[caller.expect("registered")].identity;
    let (token, real_address) = (None, false);
    let (service, port) = (&key, 80);
    let asked = Asked { identity, caller, service, port, token, authority: Authority::Names, real_address };
    let head = RequestHead { authority: authority.to_owned(), ..RequestHead::default() };
    let (service, routes) = concerned(&snapshot, asked, &head)?;
    Some((service.key.to_string(), routes.map(|routes| routes.key.name.to_string())))
}

#[test]
fn neither_service_nor_routes_are_used_that_the_caller_may_not_call() {
    let check =
        |sidecar: &str, (dialled, authority): (&str, &str), expected: Option<(&str, Option<&str>)>| {
            let found = concerns(sidecar, dialled, authority);
            let expected = expected.map(|(service, routes)| (service.to_owned(), routes.map(str::to_owned)));
            assert_eq!(found, expected, "{dialled} {authority} {sidecar}");
        };
    check("", ("web", "vault"), Some(("vault.default", Some("vault"))));
    check(WEB_ALONE, ("web", "vault"), Some(("web.default", None)));
    check(WEB_ALONE, ("web", "vault.default.mesh.internal:80"), Some(("web.default", None)));
    // A name that routes alone give is no service's.
    check(WEB_ALONE, ("web", "alias.example.com"), Some(("web.default", Some("alias"))));
    // A host that is hidden, with routes that are not.
    check("", ("web", "theirs.example.com"), Some(("web.default", None)));
    check("", ("web", "THEIRS.example.com."), Some(("web.default", None)));
    // On a connection from before.
    check(WEB_ALONE, ("vault", "vault"), None);
    check(WEB_ALONE, ("vault", "web"), Some(("web.default", None)));
    check("", ("theirs.example.com", "theirs.example.com"), None);
    check("", ("theirs.example.com", "unknown"), None);
}
