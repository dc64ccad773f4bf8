//! `WorkloadEntry`: one running copy of a service.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use baremesh_model::health::Health;
use baremesh_model::mesh::Kind;
use baremesh_model::workload::{Locality, Tunnel, Workload};
use serde_json::{Map, Value as Json};

use super::decode::{At, Decoder, Fields, optional};
use super::document::Metadata;
use super::fields::{Field, enforced};
use super::labels::is_port_name;
use crate::diagnostic::{Code, quote};

/// The fields of the kind.
pub(super) static FIELDS: &[Field] = &[
    enforced("address", "where connections are sent to: an IPv4 or IPv6 address"),
    enforced("otherAddresses", "further addresses of the same workload, such as its IPv6 one"),
    enforced("service", "the service that it was registered under; without it, labels and selectors decide"),
    enforced("host", "the host that registered it; set by the registration"),
    enforced("ports", "port names of the service to this workload's port numbers"),
    enforced("labels", "for selectors; labels of the metadata go before them"),
    enforced("locality", "region/zone/subzone"),
    enforced("weight", "share of the connections relative to the other endpoints; 1 unless set"),
    enforced("serviceAccount", "the account that it runs as; must be that of its services"),
    enforced("tunnel", "hbone (an agent is there) or plain (default)"),
    enforced(
        "health",
        "healthy (default) or unhealthy, which takes no calls; the host that registered it says so",
    ),
    enforced(
        "network",
        "the network whose hosts reach its address; from others a gateway of `networks` in MeshConfig leads there. Without it the address is reached from everywhere",
    ),
];

pub(super) fn decode(d: &mut Decoder<'_>, metadata: &Metadata<'_>, spec: &Fields<'_>) -> Option<Workload> {
    let address = d.required(spec, "address").and_then(|at| address(d, &at));
    let others = optional(spec.take("otherAddresses"), |at| d.each(&at, address_item));
    let service = optional(spec.take("service"), |at| d.label(&at));
    let host = optional(spec.take("host"), |at| d.label(&at));
    let ports = optional(spec.take("ports"), |at| ports(d, &at));
    let labels = optional(spec.take("labels"), |at| d.labels(&at));
    let metadata_labels = optional(metadata.labels.clone(), |at| d.labels(&at));
    let network = optional(spec.take("network"), |at| d.label(&at));
    let locality = optional(spec.take("locality"), |at| d.text(&at).map(Locality::parse));
    let weight = optional(spec.take("weight"), |at| weight(d, &at));
    let account = optional(spec.take("serviceAccount"), |at| d.label(&at));
    let tunnel = optional(spec.take("tunnel"), |at| tunnel(d, &at));
    let health = optional(spec.take("health"), |at| health(d, &at));
    let mut labels = labels?.unwrap_or_default();
    labels.extend(metadata_labels?.unwrap_or_default());
    Some(Workload {
        key: metadata.key.clone(),
        address: address?,
        other_addresses: others?.unwrap_or_default(),
        service: service?,
        host: host?,
        ports: ports?.unwrap_or_default(),
        labels,
        network: network?,
        locality: locality?.unwrap_or_default(),
        weight: weight?.unwrap_or(1),
        service_account: account?,
        tunnel: tunnel?.unwrap_or_default(),
        health: health?.unwrap_or_default(),
    })
}

fn address(d: &mut Decoder<'_>, at: &At<'_>) -> Option<IpAddr> {
    let text = d.text(at)?;
    if text.starts_with("unix:") {
        d.invalid(
            at,
            "Unix sockets are not taken as an address",
            "give an IP address and let the service listen on TCP",
        );
        return None;
    }
    if text.parse::<IpAddr>().is_err()
        && text.contains(|c: char| c.is_ascii_alphabetic())
        && !text.contains(':')
    {
        let message = format!("{} is a name: host names are not resolved yet", quote(text));
        d.invalid(at, message, "write the IP address");
        return None;
    }
    address_item(d, at)
}

fn address_item(d: &mut Decoder<'_>, at: &At<'_>) -> Option<IpAddr> {
    let address = d.address(at)?;
    if address.is_unspecified() || address.is_multicast() {
        d.invalid(at, format!("no single workload can be reached at {address}"), "");
        return None;
    }
    Some(address)
}

/// Port names to port numbers.
pub(super) fn ports(d: &mut Decoder<'_>, at: &At<'_>) -> Option<BTreeMap<Arc<str>, NonZeroU16>> {
    let mut ports = BTreeMap::new();
    for entry in d.map(at)? {
        let at = at.entry(entry);
        if !is_port_name(&entry.key) {
            d.invalid(&at, "is not a port name", "use letters, digits and hyphens");
            return None;
        }
        ports.insert(entry.key.clone(), d.port(&at)?);
    }
    Some(ports)
}

/// A share of the connections.
pub(super) fn weight(d: &mut Decoder<'_>, at: &At<'_>) -> Option<u32> {
    let number = d.integer(at)?;
    match u32::try_from(number) {
        Ok(0) => {
            let message = format!("`{}`: 0 counts as 1, as in Istio", at.path);
            let help = match d.kind {
                Kind::WorkloadGroup => "deregister the service to send it nothing".to_owned(),
                _ => format!("delete the {} to send it nothing", d.endpoint_noun()),
            };
            d.findings.warning(at.node.span, Code::NoEffect, message, &help);
            Some(1)
        }
        Ok(weight) => Some(weight),
        Err(_) => {
            d.invalid(at, format!("{number} is not a weight between 1 and {}", u32::MAX), "");
            None
        }
    }
}

fn tunnel(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Tunnel> {
    let text = d.text(at)?;
    let tunnel = Tunnel::of_word(text);
    if tunnel.is_none() {
        d.invalid(at, format!("{} is not hbone or plain", quote(text)), "");
    }
    tunnel
}

fn health(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Health> {
    let text = d.text(at)?;
    let health = Health::of_word(text);
    if health.is_none() {
        d.invalid(at, format!("{} is not healthy or unhealthy", quote(text)), "");
    }
    health
}

pub(super) fn encode(workload: &Workload) -> Json {
    let mut spec = Map::new();
    let mut put = |key: &str, value: Json| {
        spec.insert(key.into(), value);
    };
    put("address", workload.address.to_string().into());
    put("weight", workload.weight.into());
    put("tunnel", workload.tunnel.word().into());
    if !workload.health.is_healthy() {
        put("health", workload.health.word().into());
    }
    if !workload.other_addresses.is_empty() {
        let others: Vec<Json> = workload.other_addresses.iter().map(|a| a.to_string().into()).collect();
        put("otherAddresses", others.into());
    }
    for (key, label) in [
        ("service", &workload.service),
        ("host", &workload.host),
        ("serviceAccount", &workload.service_account),
        ("network", &workload.network),
    ] {
        if let Some(label) = label {
            put(key, label.as_str().into());
        }
    }
    if !workload.ports.is_empty() {
        let ports = workload.ports.iter().map(|(name, port)| (name.to_string(), port.get().into()));
        put("ports", Json::Object(ports.collect()));
    }
    if !workload.labels.is_empty() {
        put("labels", super::json::labels(&workload.labels));
    }
    if workload.locality != Locality::default() {
        put("locality", encode_locality(&workload.locality).into());
    }
    Json::Object(spec)
}

/// All parts with their slashes where a later one is set, so that an empty zone keeps its place.
pub(super) fn encode_locality(locality: &Locality) -> String {
    let Locality { region, zone, subzone } = locality;
    format!("{region}/{zone}/{subzone}").trim_end_matches('/').to_owned()
}
