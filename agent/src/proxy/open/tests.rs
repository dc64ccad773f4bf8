//! Which connections out of the mesh a new state ends.

use baremesh_model::name::Label;

use super::*;
use crate::snapshot::tests::{ORDERS, host, mesh, registration};

const HELD: &str = "[[MeshConfig]]\noutboundTrafficPolicy = { mode = \"REGISTRY_ONLY\" }\n";
/// Another service of the same account, which a Sidecar holds where `orders` is not held.
const TWIN: &str = "name = \"twin\"\nserviceAccount = \"orders\"\nports = [{ port = 7200 }]\nuser = 9\n";
const NEIGHBOUR: &str = "name = \"shop\"\nnamespace = \"web\"\nports = [{ port = 7100 }]\nuser = 8\n";

fn entry(export_to: &str, port: u16) -> String {
    format!(
        "[[ServiceEntry]]\nname = \"api\"\nnamespace = \"web\"\nexportTo = [\"{export_to}\"]\nhosts = [\"api.example.com\"]\n\
         resolution = \"DNS\"\nports = [{{ number = {port}, protocol = \"TCP\" }}]\n"
    )
}

/// The reason for which a connection of `caller` is ended, by its name.
fn ended(toml: &str, caller: &str, beyond: Beyond) -> Option<&'static str> {
    let registrations = [ORDERS, TWIN, NEIGHBOUR].map(registration);
    let snapshot = Snapshot::build(&mesh(toml), &registrations, &host(), 15008, None).expect("a snapshot");
    let caller = registrations.iter().find(|local| local.key.name.as_str() == caller).expect("registered");
    let outside = Outside { caller: caller.key.clone(), beyond };
    outside.no_longer_allowed(&snapshot).map(|error| error.reason().name())
}

#[test]
fn connections_to_a_host_end_when_it_is_gone_hidden_or_forbidden() {
    let key = Key::of_host(Label::new("web").expect("a label"), "api.example.com");
    let (dialled, routed) = (Beyond::Host(key.clone(), 443), Beyond::Routed(key));
    let sidecar =
        "[[Sidecar]]\nname = \"default\"\nnamespace = \"default\"\negress = [{ hosts = [\"./*\"] }]\n";
    let (shown, hidden, moved) = (entry("*", 443), entry(".", 443), entry("*", 444));
    let gone = Some("not_in_registry");
    for (toml, beyond, expected) in [
        (format!("{HELD}{shown}"), &dialled, None),
        (format!("{HELD}{shown}"), &routed, None),
        (HELD.to_owned(), &dialled, gone),
        (HELD.to_owned(), &routed, gone),
        (format!("{HELD}{hidden}"), &dialled, gone),
        (format!("{HELD}{hidden}"), &routed, gone),
        (format!("{HELD}{moved}"), &dialled, gone),
        (format!("{HELD}{shown}{sidecar}"), &dialled, Some("not_in_sidecar")),
        // Where a route leads a Sidecar need not name.
        (format!("{HELD}{shown}{sidecar}"), &routed, None),
        // Whoever is not held goes on.
        (String::new(), &dialled, None),
        (sidecar.to_owned(), &dialled, None),
    ] {
        assert_eq!(ended(&toml, "orders", beyond.clone()), expected, "{beyond:?} {toml}");
    }
    assert_eq!(ended(&format!("{HELD}{hidden}"), "shop", dialled), None, "its own namespace sees it");
}

#[test]
fn services_of_one_account_are_held_each_by_its_own_policy() {
    let held = "[[Sidecar]]\nname = \"twin\"\nnamespace = \"default\"\nworkloadSelector = { labels = { app = \"twin\" } }\n\
                outboundTrafficPolicy = { mode = \"REGISTRY_ONLY\" }\n";
    let address = Beyond::Address("203.0.113.1:443".parse().expect("an address"));
    assert_eq!(ended(held, "orders", address.clone()), None);
    assert_eq!(ended(held, "twin", address), Some("not_in_registry"));
}
