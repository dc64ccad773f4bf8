//! `Sidecar`: which services a workload calls.

use baremesh_model::sidecar::{Egress, EgressHost, Sidecar};
use serde_json::{Map, Value as Json, json};

use super::decode::{At, Decoder, Fields, optional};
use super::document::Metadata;
use super::fields::{Field, enforced, no_effect, refused};
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
    refused(
        "ingress",
        "which ports a service takes, and where they are delivered, is for its host's own registration to say",
    ),
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
    let outbound = optional(spec.take("outboundTrafficPolicy"), |at| outbound_policy::decode(d, &at));
    Some(Sidecar {
        key: metadata.key.clone(),
        selector: selector?.flatten().filter(|labels| !labels.is_empty()),
        // An empty list is what leaving it out means.
        egress: egress?.filter(|entries| !entries.is_empty()),
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
    if let Some(policy) = sidecar.outbound {
        spec.insert("outboundTrafficPolicy".into(), outbound_policy::encode(policy));
    }
    Json::Object(spec)
}
