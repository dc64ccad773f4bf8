//! `networks` of MeshConfig: which gateways lead to hosts of other networks.

use std::net::SocketAddr;

use baremesh_model::network::{Gateway, Network};
use serde_json::{Value as Json, json};

use super::decode::{At, Decoder, optional};
use crate::diagnostic::quote;

/// Most networks of a mesh, and most gateways of one of them.
const MAX_NETWORKS: usize = 1024;
const MAX_GATEWAYS: usize = 16;
/// The port of an agent, where a gateway's is not said.
const HBONE: u16 = 15008;

pub(super) fn decode(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Vec<Network>> {
    let mut all = d.each(at, network)?;
    all.sort_by(|one, other| one.name.cmp(&other.name));
    if let Some(twice) = all.windows(2).find(|pair| pair[0].name == pair[1].name) {
        d.invalid(at, format!("the network {} is there twice", quote(twice[0].name.as_str())), "make it one");
        return None;
    }
    few(d, at, "networks", all, MAX_NETWORKS)
}

fn network(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Network> {
    let fields = d.fields(at)?;
    let name = d.required(&fields, "name").and_then(|at| d.label(&at));
    let gateways = d.required(&fields, "gateways").and_then(|at| {
        let gateways = d.each(&at, gateway)?;
        if gateways.is_empty() {
            d.invalid(&at, "no gateway leads there", "name one, or leave the network out");
            return None;
        }
        few(d, &at, "gateways", gateways, MAX_GATEWAYS)
    });
    Some(Network { name: name?, gateways: gateways? })
}

fn gateway(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Gateway> {
    let fields = d.fields(at)?;
    let host = d.required(&fields, "host").and_then(|at| d.label(&at));
    let address = d.required(&fields, "address").and_then(|at| {
        let address = d.address(&at)?;
        if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
            d.invalid(&at, format!("no other host is reached at {address}"), "write the gateway's own");
            return None;
        }
        Some(address)
    });
    let port = optional(fields.take("port"), |at| d.port(&at));
    let port = port?.map_or(HBONE, |port| port.get());
    Some(Gateway { host: host?, address: SocketAddr::new(address?, port) })
}

fn few<T>(d: &mut Decoder<'_>, at: &At<'_>, what: &str, all: Vec<T>, most: usize) -> Option<Vec<T>> {
    if all.len() > most {
        d.invalid(at, format!("{} {what}, and {most} is the most", all.len()), "");
        return None;
    }
    Some(all)
}

pub(super) fn encode(all: &[Network]) -> Json {
    let gateway = |gateway: &Gateway| {
        let (host, address) = (gateway.host.as_str(), gateway.address);
        json!({ "host": host, "address": address.ip().to_string(), "port": address.port() })
    };
    let network = |network: &Network| {
        let gateways: Vec<Json> = network.gateways.iter().map(gateway).collect();
        json!({ "name": network.name.as_str(), "gateways": gateways })
    };
    all.iter().map(network).collect()
}

#[cfg(test)]
mod tests {
    use crate::format::Form;

    /// What reading the networks says: nothing, or the first fault.
    fn check(networks: &str, expected: &str) {
        let text = format!("[[MeshConfig]]\nnetworks = [{networks}]\n");
        let parsed = Form::Toml.parse(&text, "x.toml");
        let found = parsed.findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        assert!(found.contains(expected) && found.is_empty() == expected.is_empty(), "{networks}: {found}");
    }

    #[test]
    fn a_network_has_gateways_and_stands_once() {
        let one = |name: &str, gateways: &str| format!("{{ name = \"{name}\", gateways = [{gateways}] }}");
        let gateway = "{ host = \"gw1\", address = \"203.0.113.5\", port = 443 }";
        check(&one("eu", gateway), "");
        check(&one("eu", "{ host = \"gw1\", address = \"2001:db8::5\" }"), "");
        check(&format!("{}, {}", one("eu", gateway), one("us", gateway)), "");
        check(&format!("{}, {}", one("eu", gateway), one("eu", gateway)), "twice");
        check(&one("EU", gateway), "not a valid name");
        check(&one("eu", ""), "no gateway");
        check("{ name = \"eu\" }", "`networks[0].gateways` is required");
        check(&one("eu", "{ host = \"gw1\" }"), "address` is required");
        check(&one("eu", "{ address = \"203.0.113.5\" }"), "host` is required");
        check(&one("eu", "{ host = \"gw1\", address = \"127.0.0.1\" }"), "no other host");
        check(&one("eu", "{ host = \"gw1\", address = \"203.0.113.5\", port = 0 }"), "not a port");
        check(&one("eu", &vec![gateway; 17].join(",")), "16 is the most");
    }
}
