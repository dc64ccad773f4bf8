//! A ServiceEntry as a document.

use std::sync::Arc;

use baremesh_model::service::{Protocol, ServicePort};
use baremesh_model::service_entry::{Address, Endpoints, EntryEndpoint, Location, Resolution, ServiceEntry};
use baremesh_model::workload::Locality;
use serde_json::{Map, Value as Json, json};

use crate::format::json::labels;
use crate::format::virtual_service::encode_export_to;
use crate::format::workload_entry::encode_locality;

pub(in crate::format) fn encode(entry: &ServiceEntry) -> Json {
    let texts = |all: &[Arc<str>]| all.iter().map(|text| Json::from(&**text)).collect::<Vec<_>>();
    let mut spec = Map::new();
    let mut put = |key: &str, value: Json| _ = spec.insert(key.into(), value);
    put("hosts", entry.host_names().map(|host| Json::from(&*host)).collect());
    if !entry.addresses.is_empty() {
        let alone = |network: &ipnet::IpNet| network.prefix_len() == network.max_prefix_len();
        let written = entry.addresses.iter().map(|network| match alone(network) {
            true => network.addr().to_string(),
            false => network.to_string(),
        });
        put("addresses", written.collect());
    }
    if !entry.ports.is_empty() {
        put("ports", entry.ports.iter().map(port).collect());
    }
    if entry.location != Location::External {
        put("location", entry.location.name().into());
    }
    if entry.resolution != Resolution::None {
        put("resolution", entry.resolution.name().into());
    }
    match &entry.endpoints {
        Endpoints::Listed(all) if all.is_empty() => {}
        Endpoints::Listed(all) => put("endpoints", all.iter().map(endpoint).collect()),
        Endpoints::Selected(selected) => put("workloadSelector", json!({ "labels": labels(selected) })),
    }
    if !entry.subject_alt_names.is_empty() {
        put("subjectAltNames", texts(&entry.subject_alt_names).into());
    }
    if let Some(namespaces) = encode_export_to(&entry.export_to) {
        put("exportTo", namespaces);
    }
    if !entry.assigned.is_empty() {
        let of_host = |(host, addresses): (&Arc<str>, &Vec<std::net::IpAddr>)| {
            (host.to_string(), addresses.iter().map(|address| Json::from(address.to_string())).collect())
        };
        put("virtualAddresses", Json::Object(entry.assigned.iter().map(of_host).collect()));
    }
    Json::Object(spec)
}

fn port(port: &ServicePort) -> Json {
    let mut out = json!({ "number": port.port.get() });
    if port.protocol != Protocol::Auto {
        out["protocol"] = port.protocol.name().to_ascii_uppercase().into();
    }
    if port.target_port != port.port {
        out["targetPort"] = port.target_port.get().into();
    }
    if let Some(name) = &port.name {
        out["name"] = (&**name).into();
    }
    out
}

fn endpoint(endpoint: &EntryEndpoint) -> Json {
    let address = match &endpoint.address {
        Address::Ip(address) => address.to_string(),
        Address::Name(name) => name.to_string(),
    };
    let mut out = json!({ "address": address });
    if !endpoint.ports.is_empty() {
        let ports = endpoint.ports.iter().map(|(name, port)| (name.to_string(), port.get().into()));
        out["ports"] = Json::Object(ports.collect());
    }
    if !endpoint.labels.is_empty() {
        out["labels"] = labels(&endpoint.labels);
    }
    if endpoint.locality != Locality::default() {
        out["locality"] = encode_locality(&endpoint.locality).into();
    }
    if endpoint.weight != 1 {
        out["weight"] = endpoint.weight.into();
    }
    out
}
