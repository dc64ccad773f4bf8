//! `Sidecar`: which services a workload calls, and at which ports it is called.

use std::net::SocketAddr;

use baremesh_model::sidecar::{Egress, EgressHost, Ingress, Sidecar};
use serde_json::{Map, Value as Json, json};

use super::decode::{At, Decoder, Fields, optional};
use super::document::Metadata;
use super::fields::{Field, enforced, no_effect, refused};
use super::service_entry::protocol;
use super::{json, outbound_policy};
use crate::diagnostic::quote;

/// The fields of the kind.
pub(super) static FIELDS: &[Field] = &[
    enforced(
        "workloadSelector",
        "the workloads of the namespace that it is for; without one all of the namespace, in the root namespace of the mesh",
    ),
    enforced("workloadSelector.labels", "labels that a workload must carry, all of them"),
    enforced(
        "egress",
        "what they call, and nothing else of the mesh; without it as the less specific Sidecar says, or everything",
    ),
    enforced("egress[].port", "the port of the services; without one all ports that no other entry names"),
    enforced("egress[].port.number", "its number"),
    no_effect("egress[].port.protocol", "what a port speaks is the Service's to say"),
    no_effect("egress[].port.name", "ports are found by their numbers"),
    refused("egress[].port.targetPort", "where endpoints listen is the Service's to say: remove it"),
    refused("egress[].bind", "programs dial services by their own addresses: remove it"),
    no_effect("egress[].captureMode", "what is captured is said in agent.toml"),
    enforced(
        "egress[].hosts",
        "namespace/dnsName; `.` is the own namespace, `*` any, `~` none; the name may be `*` or begin with `*.`",
    ),
    enforced(
        "ingress",
        "the ports at which they are called, and no others; without it as the less specific Sidecar says, or all",
    ),
    enforced("ingress[].port", "a port of the workload"),
    enforced("ingress[].port.number", "its number: the `targetPort` of the service's port"),
    enforced(
        "ingress[].port.protocol",
        "what the service's port speaks, which the Service says; an entry that says something else is not of it",
    ),
    no_effect("ingress[].port.name", "ports are found by their numbers"),
    refused("ingress[].port.targetPort", "`number` is the workload's port already: remove it"),
    refused("ingress[].bind", "a workload is called at the addresses that its host announces: remove it"),
    enforced("ingress[].captureMode", "DEFAULT alone: what is captured is said in agent.toml"),
    enforced(
        "ingress[].defaultEndpoint",
        "127.0.0.1 or 0.0.0.0 ([::1], [::]) with the port's own number: where programs are, their host's registration says",
    ),
    refused("ingress[].tls", "tunnels end in mutual TLS of the mesh's own: remove it"),
    refused("ingress[].connectionPool", "limits stand in the DestinationRule of the called service"),
    refused("inboundConnectionPool", "limits stand in the DestinationRule of the called service"),
    enforced(
        "outboundTrafficPolicy",
        "what they reach besides; as MeshConfig says without (docs/registry-only.md)",
    ),
    enforced(
        "outboundTrafficPolicy.mode",
        "ALLOW_ANY (default here): anything outside of the mesh; REGISTRY_ONLY: what the registry has",
    ),
    refused("outboundTrafficPolicy.egressProxy", "a proxy is named by a VirtualService: remove it"),
];

pub(super) fn decode(d: &mut Decoder<'_>, metadata: &Metadata<'_>, spec: &Fields<'_>) -> Option<Sidecar> {
    let selector = optional(spec.take("workloadSelector"), |at| {
        let fields = d.fields(&at)?;
        optional(fields.take("labels"), |at| d.labels(&at))
    });
    let egress = optional(spec.take("egress"), |at| d.each(&at, entry));
    let ingress = optional(spec.take("ingress"), |at| ingress(d, &at));
    let outbound = optional(spec.take("outboundTrafficPolicy"), |at| outbound_policy::decode(d, &at));
    Some(Sidecar {
        key: metadata.key.clone(),
        selector: selector?.flatten().filter(|labels| !labels.is_empty()),
        // An empty list is what leaving it out means.
        egress: egress?.filter(|entries| !entries.is_empty()),
        ingress: ingress?.filter(|entries| !entries.is_empty()),
        outbound: outbound?,
    })
}

fn entry(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Egress> {
    let fields = d.fields(at)?;
    let port = optional(fields.take("port"), |at| {
        let fields = d.fields(&at)?;
        optional(fields.take("number"), |at| d.port(&at))
    });
    let hosts = d.required(&fields, "hosts").and_then(|at| {
        let hosts = d.each(&at, host)?;
        if hosts.is_empty() {
            d.invalid(&at, "names nothing", "write `~/*` for no service at all");
            return None;
        }
        Some(hosts)
    });
    Some(Egress { port: port?.flatten().map(|port| port.get()), hosts: hosts? })
}

fn ingress(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Vec<Ingress>> {
    let entries = d.each(at, ingress_entry)?;
    let twice = entries
        .iter()
        .enumerate()
        .find(|(index, entry)| entries[..*index].iter().any(|before| before.port == entry.port));
    if let Some((_, entry)) = twice {
        d.invalid(at, format!("port {} is there twice", entry.port), "leave one entry for each port");
        return None;
    }
    Some(entries)
}

fn ingress_entry(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Ingress> {
    let fields = d.fields(at)?;
    let entry = d.required(&fields, "port").and_then(|at| {
        let fields = d.fields(&at)?;
        let number = d.required(&fields, "number").and_then(|at| d.port(&at));
        let speaks = optional(fields.take("protocol"), |at| protocol(d, &at));
        Some(Ingress { port: number?.get(), protocol: speaks?.flatten() })
    });
    let mode = optional(fields.take("captureMode"), |at| {
        let is_default = d.text(&at)? == "DEFAULT";
        if !is_default {
            d.invalid(&at, "only DEFAULT is taken: what is captured is said in agent.toml", "remove it");
        }
        is_default.then_some(())
    });
    let endpoint = optional(fields.take("defaultEndpoint"), |at| {
        let text = d.text(&at)?;
        // Anything else would have what is pushed say where a host delivers to, which is for its own registration alone.
        let says_nothing_new = text.is_empty() || is_where_it_listens(text, entry?.port);
        if !says_nothing_new {
            let fault = format!("{} is refused: it is not where the port itself is", quote(text));
            let way = "remove it: where a program listens is said on its host, by `baremesh service register --port … --deliver …`";
            d.invalid(&at, fault, way);
        }
        says_nothing_new.then_some(())
    });
    mode?;
    endpoint?;
    entry
}

/// Whether an address is that of the program itself at its own port, on loopback or whatever it listens at.
fn is_where_it_listens(text: &str, port: u16) -> bool {
    let read = text.parse::<SocketAddr>();
    read.is_ok_and(|at| at.port() == port && (at.ip().is_loopback() || at.ip().is_unspecified()))
}

fn host(d: &mut Decoder<'_>, at: &At<'_>) -> Option<EgressHost> {
    let text = d.text(at)?;
    match EgressHost::parse(text) {
        Ok(host) => Some(host),
        Err(fault) => {
            d.invalid(at, format!("{}: {fault}", quote(text)), "write such as `./*` or `shop/orders`");
            None
        }
    }
}

pub(super) fn encode(sidecar: &Sidecar) -> Json {
    let mut spec = Map::new();
    if let Some(selector) = &sidecar.selector {
        spec.insert("workloadSelector".into(), json!({ "labels": json::labels(selector) }));
    }
    if let Some(egress) = &sidecar.egress {
        let entry = |entry: &Egress| {
            let hosts: Vec<String> = entry.hosts.iter().map(ToString::to_string).collect();
            match entry.port {
                Some(port) => json!({ "port": { "number": port }, "hosts": hosts }),
                None => json!({ "hosts": hosts }),
            }
        };
        spec.insert("egress".into(), egress.iter().map(entry).collect());
    }
    if let Some(ingress) = &sidecar.ingress {
        let entry = |entry: &Ingress| match entry.protocol {
            Some(protocol) => json!({ "port": { "number": entry.port, "protocol": protocol.name() } }),
            None => json!({ "port": { "number": entry.port } }),
        };
        spec.insert("ingress".into(), ingress.iter().map(entry).collect());
    }
    if let Some(policy) = sidecar.outbound {
        spec.insert("outboundTrafficPolicy".into(), outbound_policy::encode(policy));
    }
    Json::Object(spec)
}
