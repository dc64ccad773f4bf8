//! `ServiceEntry`: hosts that callers name and no Service stands for.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use baremesh_model::service::{Protocol, ServicePort};
use baremesh_model::service_entry::{
    Address, Endpoints, EntryEndpoint, Location, MAX_ITEMS, Resolution, ServiceEntry,
};
use baremesh_model::virtual_service::HostPattern;
use baremesh_model::workload::Locality;
use ipnet::IpNet;

use super::decode::{At, Decoder, Fields, optional};
use super::document::Metadata;
use super::fields::{Field, enforced, no_effect};
use super::service::port_name;
use super::tree::{Entry, Node, Value};
use super::virtual_service::export_to;
use super::workload_entry;
use crate::diagnostic::{Code, quote};

/// Back to a document.
mod encode;

pub(super) use encode::encode;

/// The fields of the kind.
pub(super) static FIELDS: &[Field] = &[
    enforced(
        "hosts",
        "domain names of at least two labels, outside the mesh's domain; `*.` and a domain for all below it. Requests and TLS \
         are matched by them, and DNS answers for them",
    ),
    enforced(
        "addresses",
        "IP addresses, or blocks with NONE and STATIC, by which callers reach the hosts; connections to them are captured. \
         Without any, hosts have virtual addresses, save with NONE",
    ),
    enforced("ports", "the ports that callers name; no number twice"),
    enforced("ports[].number", "the number that callers name, 1 to 65535"),
    enforced(
        "ports[].protocol",
        "HTTP, HTTP2, GRPC, HTTPS or TLS (the caller's own, by its server name), TCP, MONGO, MYSQL, REDIS; told by the first \
         bytes unless set",
    ),
    enforced("ports[].name", "letters, digits and hyphens; endpoints map ports by it"),
    enforced("ports[].targetPort", "the number at the endpoints; `number` unless set"),
    enforced(
        "location",
        "MESH_EXTERNAL (default): nothing there is the mesh's; MESH_INTERNAL: endpoints are, and those with an agent are \
         reached by it",
    ),
    enforced(
        "resolution",
        "NONE (default): to where the caller was going; STATIC: to the endpoints; DNS: to all addresses of the endpoints' \
         names, or the host's; DNS_ROUND_ROBIN: to the first of them; DYNAMIC_DNS: to what DNS has for the name that a \
         request or TLS asks for, below the wildcard",
    ),
    enforced("endpoints", "where the hosts are; not with NONE, DYNAMIC_DNS or `workloadSelector`"),
    enforced("endpoints[].address", "an IP address; with DNS and DNS_ROUND_ROBIN a domain name too"),
    enforced("endpoints[].ports", "port names to the endpoint's numbers"),
    enforced("endpoints[].labels", "for subsets"),
    enforced("endpoints[].locality", "region/zone/subzone"),
    enforced("endpoints[].weight", "share of the connections relative to the other endpoints; 1 unless set"),
    no_effect("endpoints[].network", "every endpoint is taken to be reachable at its address"),
    no_effect(
        "endpoints[].serviceAccount",
        "endpoints that are listed here have no agent: select WorkloadEntries by `workloadSelector`",
    ),
    enforced("workloadSelector", "instead of `endpoints`: WorkloadEntries of the namespace"),
    enforced("workloadSelector.labels", "labels that they must carry, all of them"),
    enforced(
        "subjectAltNames",
        "names of which the server's certificate must show one where a DestinationRule originates TLS and names none itself; \
         with WorkloadEntries that have an agent the one SPIFFE identity that they show",
    ),
    enforced("exportTo", "namespaces whose callers it is for: `.` its own, `*` all (default), `~` none"),
    enforced(
        "virtualAddresses",
        "a host's virtual addresses within the mesh's ranges, by host, at most one of each family; assigned unless set. In \
         Istio's documents `status.addresses`",
    ),
];

pub(super) fn decode(
    d: &mut Decoder<'_>,
    metadata: &Metadata<'_>,
    spec: &Fields<'_>,
) -> Option<ServiceEntry> {
    let hosts = d.required(spec, "hosts").and_then(|at| hosts(d, &at));
    let addresses = optional(spec.take("addresses"), |at| items(d, &at, address));
    let ports = optional(spec.take("ports"), |at| ports(d, &at));
    let location = optional(spec.take("location"), |at| location(d, &at));
    let resolution = optional(spec.take("resolution"), |at| resolution(d, &at));
    let listed = optional(spec.take("endpoints"), |at| items(d, &at, endpoint));
    let selector = optional(spec.take("workloadSelector"), |at| selector(d, &at));
    let names = optional(spec.take("subjectAltNames"), |at| items(d, &at, |d, at| d.text(at).map(Arc::from)));
    let namespace = &metadata.key.namespace;
    let export_to = optional(spec.take("exportTo"), |at| export_to(d, &at, namespace));
    let assigned = optional(spec.take("virtualAddresses"), |at| assigned(d, &at));
    let selector = selector?.flatten();
    if let (Some(at), Some(_)) = (spec.take("endpoints"), &selector) {
        d.invalid(&at, "only one of WorkloadSelector or Endpoints is allowed in Service Entry", "remove one");
        return None;
    }
    let entry = ServiceEntry {
        key: metadata.key.clone(),
        hosts: hosts?,
        addresses: addresses?.unwrap_or_default(),
        ports: ports?.unwrap_or_default(),
        location: location?.unwrap_or_default(),
        resolution: resolution?.unwrap_or_default(),
        endpoints: match selector {
            Some(labels) => Endpoints::Selected(labels),
            None => Endpoints::Listed(listed?.unwrap_or_default()),
        },
        subject_alt_names: names?.unwrap_or_default(),
        export_to: export_to?.unwrap_or_default(),
        assigned: assigned?.unwrap_or_default(),
    };
    fits_together(d, spec, &entry).then_some(entry)
}

/// Puts the addresses that Istio keeps in `status.addresses` where they are read; says whether the entry was that. What else
/// is in a status is left to be reported.
pub(super) fn take_status(entry: &Entry, spec: &mut Option<Node>) -> bool {
    let ("status", Some(list)) = (&*entry.key, entry.node.entry("addresses")) else { return false };
    let Some(Node { value: Value::Map(fields), .. }) = spec else { return false };
    if fields.iter().any(|field| &*field.key == "virtualAddresses") {
        return false;
    }
    let text = |node: &Node, key: &str| match node.entry(key).map(|entry| &entry.node.value) {
        Some(Value::Text(text)) => Some(Arc::clone(text)),
        _ => None,
    };
    let Value::List(items) = &list.node.value else { return false };
    let mut hosts: Vec<Entry> = Vec::new();
    for item in items {
        let (Some(host), Some(address)) = (text(item, "host"), text(item, "value")) else { return false };
        let address = Node { span: item.span, value: Value::Text(address) };
        match hosts.iter_mut().find(|known| known.key == host) {
            Some(Entry { node: Node { value: Value::List(addresses), .. }, .. }) => addresses.push(address),
            _ => hosts.push(Entry {
                key: host,
                key_span: item.span,
                node: Node { span: item.span, value: Value::List(vec![address]) },
            }),
        }
    }
    let node = Node::map(list.node.span, hosts);
    fields.push(Entry { key: "virtualAddresses".into(), key_span: list.key_span, node });
    true
}

/// What no field shows by itself, as Istio's validation has it.
fn fits_together(d: &mut Decoder<'_>, spec: &Fields<'_>, entry: &ServiceEntry) -> bool {
    let mut fault = |key: &str, message: &str, help: &str| {
        match spec.take(key) {
            Some(at) => d.invalid(&at, message, help),
            None => d.findings.error(spec.span, Code::InvalidValue, format!("`{key}`: {message}"), help),
        }
        false
    };
    let listed = match &entry.endpoints {
        Endpoints::Listed(listed) => &listed[..],
        Endpoints::Selected(_) => &[],
    };
    let is_wide = |network: &IpNet| network.prefix_len() < network.max_prefix_len();
    let named = |endpoint: &EntryEndpoint| matches!(endpoint.address, Address::Name(_));
    let has_star = entry.hosts.iter().any(|host| matches!(host, HostPattern::Suffix(_)));
    let selects = matches!(entry.endpoints, Endpoints::Selected(_));
    match entry.resolution {
        Resolution::None if !listed.is_empty() => {
            return fault("endpoints", "NONE mode cannot set endpoints", "set `resolution: STATIC`");
        }
        Resolution::None if selects => {
            return fault("workloadSelector", "NONE mode selects no endpoints", "set `resolution: STATIC`");
        }
        Resolution::Static if listed.iter().any(named) => {
            let message = "endpoints with a name need DNS: STATIC has IP addresses alone";
            return fault("endpoints", message, "set `resolution: DNS`");
        }
        Resolution::Dns | Resolution::DnsRoundRobin if has_star && listed.is_empty() && !selects => {
            let message =
                "a wildcard has no address: hosts must be whole names if no endpoints are provided for DNS";
            return fault("hosts", message, "list `endpoints`, or set `resolution: DYNAMIC_DNS`");
        }
        Resolution::DnsRoundRobin if listed.len() > 1 => {
            let message = "there must only be 0 or 1 endpoint for resolution mode DNS_ROUND_ROBIN";
            return fault("endpoints", message, "set `resolution: DNS`");
        }
        Resolution::DynamicDns if !listed.is_empty() || selects => {
            let message = "DYNAMIC_DNS looks up what callers ask for: it has no endpoints";
            return fault("resolution", message, "remove `endpoints` and `workloadSelector`, or set DNS");
        }
        Resolution::DynamicDns if entry.ports.iter().any(|port| port.protocol == Protocol::Tcp) => {
            let message = "nothing names a host in plain TCP: DYNAMIC_DNS needs HTTP or TLS ports";
            return fault("ports", message, "set the ports' `protocol`");
        }
        Resolution::Dns | Resolution::DnsRoundRobin | Resolution::DynamicDns
            if entry.addresses.iter().any(is_wide) =>
        {
            let message = "CIDR addresses are allowed only for NONE/STATIC resolution types";
            return fault("addresses", message, "write single addresses");
        }
        _ => {}
    }
    let is_port = |name: &str| entry.ports.iter().any(|port| port.name.as_deref() == Some(name));
    for (index, endpoint) in listed.iter().enumerate() {
        if let Some(other) = endpoint.ports.keys().find(|name| !is_port(name)) {
            let message = format!(
                "endpoint {index} maps the port {}, which the service entry does not define",
                quote(other)
            );
            return fault("endpoints", &message, "name a port of `ports`");
        }
    }
    let own = |host: &str| entry.host_names().any(|name| *name == *host);
    if let Some(other) = entry.assigned.keys().find(|host| !own(host)) {
        return fault("virtualAddresses", &format!("{} is not among `hosts`", quote(other)), "");
    }
    true
}

/// A list with a bound.
fn items<T>(
    d: &mut Decoder<'_>,
    at: &At<'_>,
    read: impl FnMut(&mut Decoder<'_>, &At<'_>) -> Option<T>,
) -> Option<Vec<T>> {
    if d.list(at)?.len() > MAX_ITEMS {
        d.invalid(at, format!("more than {MAX_ITEMS} items"), "write several");
        return None;
    }
    d.each(at, read)
}

fn hosts(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Vec<HostPattern>> {
    let mut seen = HashSet::new();
    let hosts = items(d, at, |d, at| {
        let text = d.text(at)?;
        let host = HostPattern::new(text).map_err(|error| d.invalid(at, error.to_string(), "")).ok()?;
        let (message, help) = match &host {
            HostPattern::Any => ("hostname cannot be wildcard alone", "use `*.` and a domain"),
            HostPattern::Suffix(rest) if !rest.starts_with('.') => ("a wildcard is `*.` and a domain", ""),
            HostPattern::Exact(name) if name.parse::<IpAddr>().is_ok() => {
                ("an IP address is no host", "write it into `addresses`, and a name here")
            }
            HostPattern::Exact(name) if !name.contains('.') => (
                "a name of one label is a service's",
                "write a domain name of at least two labels, or a Service",
            ),
            host if !seen.insert(host.clone()) => ("the host stands here twice", ""),
            _ => return Some(host),
        };
        d.invalid(at, format!("{}: {message}", quote(text)), help);
        None
    })?;
    if hosts.is_empty() {
        d.invalid(at, "service entry must have at least one host", "");
        return None;
    }
    Some(hosts)
}

fn address(d: &mut Decoder<'_>, at: &At<'_>) -> Option<IpNet> {
    let text = d.text(at)?;
    let alone = || text.parse::<IpAddr>().ok().map(|address| IpNet::from(address.to_canonical()));
    let Some(network) = text.parse::<IpNet>().ok().map(|network| network.trunc()).or_else(alone) else {
        d.invalid(at, format!("{} is not an IP address or a CIDR block", quote(text)), "");
        return None;
    };
    let first = network.network();
    if first.is_loopback() || first.is_multicast() || (first.is_unspecified() && network.prefix_len() > 0) {
        d.invalid(at, format!("{} is no address of another host", quote(text)), "");
        return None;
    }
    if network.prefix_len() == 0 {
        let help = "set `capture.outbound = \"all\"` of the agents, and leave `addresses` out";
        d.invalid(at, "every address there is", help);
        return None;
    }
    Some(network)
}

fn ports(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Vec<ServicePort>> {
    let (mut numbers, mut names) = (HashSet::new(), HashSet::new());
    items(d, at, |d, at| {
        let fields = d.fields(at)?;
        let number = d.required(&fields, "number").and_then(|at| d.port(&at));
        let target = optional(fields.take("targetPort"), |at| d.port(&at));
        let name = optional(fields.take("name"), |at| port_name(d, &at));
        let protocol = optional(fields.take("protocol"), |at| protocol(d, &at));
        let (port, name) = (number?, name?);
        if !numbers.insert(port) {
            d.invalid(at, format!("Duplicate value: port {port} stands here twice"), "give each port once");
            return None;
        }
        if let Some(name) = name.as_ref().filter(|name| !names.insert(Arc::clone(name))) {
            d.invalid(at, format!("Duplicate value: the port name {} stands here twice", quote(name)), "");
            return None;
        }
        let protocol = protocol?.flatten().unwrap_or(Protocol::Auto);
        Some(ServicePort { port, target_port: target?.unwrap_or(port), protocol, name })
    })
}

/// What the port speaks; nothing where the text is empty, which Istio takes for none.
pub(super) fn protocol(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Option<Protocol>> {
    let text = d.any_text(at)?;
    if text.is_empty() {
        return Some(None);
    }
    if text.eq_ignore_ascii_case("udp") {
        d.invalid(at, "the mesh carries TCP alone", "leave the port out: it is reached without the mesh");
        return None;
    }
    let read = text.parse::<Protocol>();
    read.map(Some).map_err(|error| d.invalid(at, error.to_string(), "")).ok()
}

fn location(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Location> {
    let text = d.text(at)?;
    let found = [Location::External, Location::Internal].into_iter().find(|location| location.name() == text);
    if found.is_none() {
        d.invalid(at, format!("{} is not MESH_EXTERNAL or MESH_INTERNAL", quote(text)), "");
    }
    found
}

/// Every resolution.
const RESOLUTIONS: [Resolution; 5] = [
    Resolution::None,
    Resolution::Static,
    Resolution::Dns,
    Resolution::DnsRoundRobin,
    Resolution::DynamicDns,
];

fn resolution(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Resolution> {
    let text = d.text(at)?;
    let found = RESOLUTIONS.into_iter().find(|resolution| resolution.name() == text);
    if found.is_none() {
        let all = RESOLUTIONS.map(Resolution::name).join(", ");
        d.invalid(at, format!("{} is not one of {all}", quote(text)), "");
    }
    found
}

fn endpoint(d: &mut Decoder<'_>, at: &At<'_>) -> Option<EntryEndpoint> {
    let fields = d.fields(at)?;
    let address = d.required(&fields, "address").and_then(|at| endpoint_address(d, &at));
    let ports = optional(fields.take("ports"), |at| workload_entry::ports(d, &at));
    let labels = optional(fields.take("labels"), |at| d.labels(&at));
    let locality = optional(fields.take("locality"), |at| d.text(&at).map(Locality::parse));
    let weight = optional(fields.take("weight"), |at| workload_entry::weight(d, &at));
    Some(EntryEndpoint {
        address: address?,
        ports: ports?.unwrap_or_default(),
        labels: labels?.unwrap_or_default(),
        locality: locality?.unwrap_or_default(),
        weight: weight?.unwrap_or(1),
    })
}

fn endpoint_address(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Address> {
    let text = d.text(at)?;
    if text.starts_with("unix:") {
        let help = "let the service listen on TCP, on loopback if need be, and register it";
        d.invalid(at, "a Unix socket is of one host, and this holds for all hosts of the mesh", help);
        return None;
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        let address = address.to_canonical();
        if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
            d.invalid(at, format!("{address} is no address of another host"), "");
            return None;
        }
        return Some(Address::Ip(address));
    }
    match HostPattern::new(text) {
        Ok(HostPattern::Exact(name)) if name.contains('.') => Some(Address::Name(name)),
        _ => {
            d.invalid(at, format!("{} is not an IP address or a domain name", quote(text)), "");
            None
        }
    }
}

/// Labels that endpoints carry. Empty ones, which Istio takes, select nothing.
fn selector(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Option<baremesh_model::workload::Labels>> {
    let fields = d.fields(at)?;
    let labels = optional(fields.take("labels"), |at| d.labels(&at))?;
    Some(labels.filter(|labels| !labels.is_empty()))
}

fn assigned(d: &mut Decoder<'_>, at: &At<'_>) -> Option<BTreeMap<Arc<str>, Vec<IpAddr>>> {
    let mut all = BTreeMap::new();
    for entry in d.map(at)? {
        let at = at.entry(entry);
        let addresses = d.each(&at, |d, at| d.address(at))?;
        let of = |v4: bool| addresses.iter().filter(|address| address.is_ipv4() == v4).count();
        if of(true) > 1 || of(false) > 1 {
            d.invalid(&at, "a host has at most one virtual address of each family", "");
            return None;
        }
        all.insert(entry.key.to_ascii_lowercase().into(), addresses);
    }
    Some(all)
}
