//! What a host says it runs. A registration is checked here as far as it can be on its own; whether it fits the
//! rest of the mesh is `admission`'s to say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use baremesh_model::health::Health;
use baremesh_model::identity::{Identity, RESERVED_NAMESPACES};
use baremesh_model::name::{Key, Label};
use baremesh_model::service::{Protocol, Service, ServicePort};
use baremesh_model::workload::{Labels, Locality, Tunnel, Workload};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::digest::Digest;
use super::message::Finding;
use super::ownership::NotOwn;
use super::subscription::service_key;

/// Most ports of a registration.
pub const MAX_PORTS: usize = 64;
/// Most addresses of a registration.
pub const MAX_ADDRESSES: usize = 8;
/// Most labels of a registration.
pub const MAX_LABELS: usize = 64;
/// Longest label, key or value, and longest locality, in bytes.
pub const MAX_TEXT: usize = 253;
/// Longest name, in bytes: an RFC 1123 label.
const MAX_NAME: usize = 63;

/// One port of a registration. What is not stated is the Service's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The port that callers name.
    pub port: NonZeroU16,
    /// The port that endpoints advertise.
    pub target_port: NonZeroU16,
    /// What it speaks.
    pub protocol: Option<Protocol>,
    /// Its name.
    pub name: Option<Arc<str>>,
}

/// One service on one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The service.
    pub service: Key,
    /// Its ports, at least one, no number twice.
    pub ports: Vec<Port>,
    /// Where other hosts reach it, the preferred address first; at least one.
    pub addresses: Vec<IpAddr>,
    /// Labels of the workload.
    pub labels: Labels,
    /// The network whose hosts reach it at its addresses; none: everybody does.
    pub network: Option<Label>,
    /// Where it stands.
    pub locality: Locality,
    /// Share of the connections; at least 1.
    pub weight: u32,
    /// The account that it runs as, where it says so.
    pub service_account: Option<Label>,
    /// Whether its host's checks find it fit to be called.
    pub health: Health,
}

/// Why a registration is none, whatever the rest of the mesh is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // The messages say what each is.
pub enum RegistrationError {
    #[error("the registration cannot be read: {0}")]
    Unreadable(String),
    #[error("`{0}` is not a service: write name.namespace")]
    Service(String),
    #[error("the namespace `{0}` is the mesh's own: choose another")]
    ReservedNamespace(Label),
    #[error("{what} has {found} entries, and the limit is {limit}")]
    TooMany { what: &'static str, found: usize, limit: usize },
    #[error("{0} is missing: at least one is needed")]
    Missing(&'static str),
    #[error("{what} `{text}` is not valid: {rule}")]
    Text { what: &'static str, text: String, rule: &'static str },
    #[error("the port {0} is there twice")]
    PortTwice(u16),
    #[error("the port name `{0}` is there twice")]
    NameTwice(Arc<str>),
    #[error("the address {0} is not one that other hosts can reach: register the host's own address")]
    Unreachable(IpAddr),
    #[error("the weight must be at least 1")]
    Weight,
    #[error("the Service of that name is another mesh's ({0}): choose another name")]
    Federated(Identity),
    #[error(
        "the first registration of this host says that it is in {first}, and this one {stated}: a host is in one network, make them the same"
    )]
    Networks { first: String, stated: String },
    #[error(transparent)]
    NotOwn(#[from] NotOwn),
}

/// A registration as it is written on the wire and in the store.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    service: String,
    ports: Vec<RawPort>,
    addresses: Vec<IpAddr>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    network: Option<String>,
    #[serde(default)]
    locality: String,
    #[serde(default = "one")]
    weight: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    service_account: Option<String>,
    /// `unhealthy`, or nothing: as it was before there were checks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    health: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPort {
    port: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target_port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    protocol: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

fn one() -> u32 {
    1
}

impl Registration {
    /// Reads the written form.
    pub fn read(value: &Value) -> Result<Self, RegistrationError> {
        let raw =
            Raw::deserialize(value).map_err(|error| RegistrationError::Unreadable(error.to_string()))?;
        // A host of a ServiceEntry has a key too, and nobody runs it as a service of the mesh.
        let service = service_key(&raw.service).filter(|key| key.as_host().is_none());
        let service = service.ok_or_else(|| RegistrationError::Service(raw.service.clone()))?;
        if RESERVED_NAMESPACES.contains(&service.namespace.as_str()) {
            return Err(RegistrationError::ReservedNamespace(service.namespace));
        }
        if raw.weight == 0 {
            return Err(RegistrationError::Weight);
        }
        bounded("ports", raw.ports.len(), MAX_PORTS)?;
        bounded("labels", raw.labels.len(), MAX_LABELS)?;
        let service_account = raw.service_account.as_deref().map(|name| label("serviceAccount", name));
        Ok(Self {
            service,
            ports: read_ports(&raw.ports)?,
            addresses: read_addresses(raw.addresses)?,
            labels: read_labels(&raw.labels)?,
            network: raw.network.as_deref().map(|name| label("the network", name)).transpose()?,
            locality: Locality::parse(text("locality", &raw.locality)?),
            weight: raw.weight,
            service_account: service_account.transpose()?,
            health: raw.health.as_deref().map_or(Ok(Health::Healthy), read_health)?,
        })
    }

    /// The written form.
    pub fn written(&self) -> Value {
        let port = |port: &Port| RawPort {
            port: port.port.get(),
            target_port: Some(port.target_port.get()),
            protocol: port.protocol.map(|protocol| protocol.name().to_owned()),
            name: port.name.as_deref().map(str::to_owned),
        };
        let raw = Raw {
            service: self.service.to_string(),
            ports: self.ports.iter().map(port).collect(),
            addresses: self.addresses.clone(),
            labels: self.labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            network: self.network.as_ref().map(ToString::to_string),
            locality: self.locality.to_string(),
            weight: self.weight,
            service_account: self.service_account.as_ref().map(ToString::to_string),
            health: (!self.health.is_healthy()).then(|| self.health.word().to_owned()),
        };
        serde_json::to_value(raw).expect("text keys and plain values")
    }

    /// The account that it runs as: the service's own name unless stated.
    pub fn account(&self) -> &Label {
        self.service_account.as_ref().unwrap_or(&self.service.name)
    }

    /// The Service that it comes to where no resource says what the service is.
    pub fn implicit_service(&self) -> Service {
        let port = |port: &Port| ServicePort {
            port: port.port,
            target_port: port.target_port,
            protocol: port.protocol.unwrap_or_default(),
            name: port.name.clone(),
        };
        Service {
            key: self.service.clone(),
            ports: self.ports.iter().map(port).collect(),
            selector: None,
            service_account: self.account().clone(),
            addresses: Vec::new(),
            federated: None,
        }
    }

    /// The endpoint that it comes to. Target ports that differ from the service's are mapped by the ports' names.
    pub fn workload(&self, name: Label, host: Label, service: &Service) -> Workload {
        let mapped = self.ports.iter().filter_map(|own| {
            let declared = service.port(own.port.get())?;
            let name = declared.name.clone()?;
            (declared.target_port != own.target_port).then_some((name, own.target_port))
        });
        Workload {
            key: Key::new(self.service.namespace.clone(), name),
            address: self.addresses[0],
            other_addresses: self.addresses[1..].to_vec(),
            service: Some(self.service.name.clone()),
            host: Some(host),
            ports: mapped.collect(),
            labels: self.labels.clone(),
            network: self.network.clone(),
            locality: self.locality.clone(),
            weight: self.weight,
            service_account: self.service_account.clone(),
            tunnel: Tunnel::Hbone,
            health: self.health,
        }
    }
}

/// What has changed in the health of what is registered; `None` where something else has changed.
pub(super) fn health_changes(before: &[Registration], after: &[Registration]) -> Option<Vec<Finding>> {
    if before.len() != after.len() {
        return None;
    }
    let mut changes = Vec::new();
    for (before, after) in before.iter().zip(after) {
        if before.health != after.health {
            let (service, health) = (after.service.to_string(), after.health.word().to_owned());
            changes.push(Finding { service, health });
        }
        if before != after && (Registration { health: after.health, ..before.clone() }) != *after {
            return None;
        }
    }
    Some(changes)
}

/// The workload's name: `<service>-<host>`, cut and told apart by a hash where that is too long or `taken`
/// (`a-b` on `c` and `a` on `b-c` would share one).
pub fn workload_name(service: &Label, host: &Label, taken: impl Fn(&Label) -> bool) -> Label {
    let plain = format!("{service}-{host}");
    if let Some(name) = Label::new(&plain).ok().filter(|name| !taken(name)) {
        return name;
    }
    let hash = Digest::of(service.as_str(), host.as_str()).short();
    let cut = &plain[..plain.len().min(MAX_NAME - 1 - hash.len())];
    Label::new(&format!("{cut}-{hash}"))
        .expect("letters, digits and hyphens, with a letter or digit at each end")
}

/// What a word of a host's says of its service.
pub(super) fn read_health(word: &str) -> Result<Health, RegistrationError> {
    let rule = "use healthy or unhealthy";
    Health::of_word(word).ok_or_else(|| RegistrationError::Text { what: "the health", text: cut(word), rule })
}

fn bounded(what: &'static str, found: usize, limit: usize) -> Result<(), RegistrationError> {
    if found > limit { Err(RegistrationError::TooMany { what, found, limit }) } else { Ok(()) }
}

fn label(what: &'static str, name: &str) -> Result<Label, RegistrationError> {
    let rule = "use 1 to 63 lower-case letters, digits and hyphens";
    Label::new(name).map_err(|_| RegistrationError::Text { what, text: cut(name), rule })
}

fn text<'a>(what: &'static str, text: &'a str) -> Result<&'a str, RegistrationError> {
    let rule = "use at most 253 bytes and no control characters";
    let valid = text.len() <= MAX_TEXT && !text.chars().any(char::is_control);
    if valid { Ok(text) } else { Err(RegistrationError::Text { what, text: cut(text), rule }) }
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_NAME).flat_map(char::escape_debug).collect()
}

fn read_ports(raw: &[RawPort]) -> Result<Vec<Port>, RegistrationError> {
    let (mut numbers, mut names) = (BTreeSet::new(), BTreeSet::new());
    let number = |number: u16| {
        let rule = "use 1 to 65535";
        NonZeroU16::new(number).ok_or(RegistrationError::Text { what: "the port", text: "0".into(), rule })
    };
    let read = |raw: &RawPort| {
        let port = number(raw.port)?;
        if !numbers.insert(port) {
            return Err(RegistrationError::PortTwice(raw.port));
        }
        let name: Option<Arc<str>> = match &raw.name {
            Some(name) => Some(label("the port name", name)?.as_str().into()),
            None => None,
        };
        if let Some(name) = name.iter().find(|name| !names.insert((*name).clone())) {
            return Err(RegistrationError::NameTwice(name.clone()));
        }
        let protocol = raw.protocol.as_deref().map(str::parse::<Protocol>).transpose();
        let rule = "use tcp, tls, http, http2, grpc, https, mongo, mysql, redis or auto";
        let protocol = protocol.map_err(|unknown| RegistrationError::Text {
            what: "the protocol",
            text: cut(&unknown.0),
            rule,
        })?;
        Ok(Port { port, target_port: raw.target_port.map_or(Ok(port), number)?, protocol, name })
    };
    let ports = raw.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    if ports.is_empty() { Err(RegistrationError::Missing("a port")) } else { Ok(ports) }
}

fn read_addresses(raw: Vec<IpAddr>) -> Result<Vec<IpAddr>, RegistrationError> {
    bounded("addresses", raw.len(), MAX_ADDRESSES)?;
    let mut addresses: Vec<IpAddr> = Vec::with_capacity(raw.len());
    for address in raw {
        let address = address.to_canonical();
        // A link-local IPv6 address means nothing without the caller's interface.
        let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
        let nowhere = address.is_unspecified() || address.is_multicast() || address.is_loopback();
        if nowhere || link_local || broadcast {
            return Err(RegistrationError::Unreachable(address));
        }
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() { Err(RegistrationError::Missing("an address")) } else { Ok(addresses) }
}

fn read_labels(raw: &BTreeMap<String, String>) -> Result<Labels, RegistrationError> {
    let read = |(key, value): (&String, &String)| {
        let (key, value) = (text("the label", key)?, text("the label's value", value)?);
        Ok((Arc::from(key), Arc::from(value)))
    };
    raw.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn full() -> Value {
        json!({
            "service": "orders.shop",
            "ports": [{ "port": 80, "targetPort": 8080, "protocol": "http", "name": "web" }],
            "addresses": ["10.0.0.7", "fd00::7"],
            "labels": { "version": "v2" },
            "locality": "eu/a",
            "weight": 3,
            "serviceAccount": "clerk",
            "health": "unhealthy"
        })
    }

    #[test]
    fn reads_what_it_writes() {
        let registration = Registration::read(&full()).expect("a registration");
        assert_eq!(registration.written(), full());
        let least = json!({ "service": "a.b", "ports": [{ "port": 1 }], "addresses": ["10.0.0.1"] });
        let registration = Registration::read(&least).expect("a registration");
        assert_eq!(registration.ports[0].target_port.get(), 1);
        assert_eq!(registration.account().as_str(), "a");
        assert!(registration.health.is_healthy(), "of a host that does not say");
        assert_eq!(Registration::read(&registration.written()), Ok(registration));
    }

    fn check(field: &str, value: Value, expected: &str) {
        let mut raw = full();
        raw[field] = value;
        let error = Registration::read(&raw).expect_err(field).to_string();
        assert!(error.contains(expected), "{error} should say {expected}");
    }

    #[test]
    fn refuses_what_is_none() {
        check("service", json!("orders"), "write name.namespace");
        check("service", json!("shop/api.example.com"), "write name.namespace");
        check("service", json!("h1.hosts"), "the mesh's own");
        check("service", json!("control.control"), "the mesh's own");
        check("ports", json!([]), "a port is missing");
        check("ports", json!([{ "port": 0 }]), "1 to 65535");
        check("ports", json!([{ "port": 1, "targetPort": 0 }]), "1 to 65535");
        check("ports", json!([{ "port": 70000 }]), "cannot be read");
        check("ports", json!([{ "port": 1 }, { "port": 1 }]), "twice");
        check("ports", json!([{ "port": 1, "name": "a" }, { "port": 2, "name": "a" }]), "twice");
        check("ports", json!([{ "port": 1, "name": "A" }]), "lower-case");
        check("ports", json!([{ "port": 1, "protocol": "smtp" }]), "use tcp");
        check("ports", json!((1..=65).map(|n| json!({ "port": n })).collect::<Vec<_>>()), "limit is 64");
        check("addresses", json!([]), "an address is missing");
        check("addresses", json!(["10.0.0.0/8"]), "cannot be read");
        for address in ["0.0.0.0", "127.0.0.1", "::1", "::ffff:127.0.0.1", "224.0.0.1", "fe80::1"] {
            check("addresses", json!([address]), "other hosts can reach");
        }
        check("labels", json!({ "a": "b\nc" }), "control characters");
        check("locality", json!("x".repeat(254)), "at most 253");
        check("weight", json!(0), "at least 1");
        check("serviceAccount", json!("Root"), "lower-case");
        check("health", json!("fine"), "healthy or unhealthy");
    }

    #[test]
    fn changes_of_health_are_told_apart_from_others() {
        let registration = |service: &str, weight: u32, health: &str| {
            let raw = json!({
                "service": service, "ports": [{ "port": 80 }], "addresses": ["10.0.0.1"], "weight": weight,
                "health": health,
            });
            Registration::read(&raw).expect("a registration")
        };
        let list = |services: &[(&str, u32, &str)]| -> Vec<Registration> {
            services.iter().map(|(service, weight, health)| registration(service, *weight, health)).collect()
        };
        let before = list(&[("a.x", 1, "healthy"), ("b.x", 1, "unhealthy")]);
        let check = |after: &[(&str, u32, &str)], expected: Option<&[(&str, &str)]>| {
            let found = health_changes(&before, &list(after));
            let found: Option<Vec<_>> =
                found.map(|found| found.into_iter().map(|one| (one.service, one.health)).collect());
            let own = |(service, health): &(&str, &str)| ((*service).to_owned(), (*health).to_owned());
            assert_eq!(found, expected.map(|expected| expected.iter().map(own).collect()), "{after:?}");
        };
        check(&[("a.x", 1, "healthy"), ("b.x", 1, "unhealthy")], Some(&[]));
        check(&[("a.x", 1, "unhealthy"), ("b.x", 1, "unhealthy")], Some(&[("a.x", "unhealthy")]));
        let both = Some(&[("a.x", "unhealthy"), ("b.x", "healthy")][..]);
        check(&[("a.x", 1, "unhealthy"), ("b.x", 1, "healthy")], both);
        check(&[("a.x", 2, "unhealthy"), ("b.x", 1, "unhealthy")], None);
        check(&[("c.x", 1, "healthy"), ("b.x", 1, "unhealthy")], None);
        check(&[("a.x", 1, "healthy")], None);
        check(&[], None);
    }

    #[test]
    fn becomes_a_service_and_a_workload() {
        let registration = Registration::read(&full()).expect("a registration");
        let service = registration.implicit_service();
        assert_eq!(service.service_account.as_str(), "clerk");
        let label = |text| Label::new(text).expect("a label");
        let workload = registration.workload(label("orders-h1"), label("h1"), &service);
        assert!(workload.serves(&service));
        assert_eq!(workload.endpoint(&service.ports[0]).to_string(), "10.0.0.7:8080");
        let mut declared = service;
        declared.ports[0].target_port = NonZeroU16::MIN;
        let workload = registration.workload(label("orders-h1"), label("h1"), &declared);
        assert_eq!(workload.endpoint(&declared.ports[0]).to_string(), "10.0.0.7:8080", "mapped by name");
    }

    #[test]
    fn names_workloads_apart() {
        let label = |text: &str| Label::new(text).expect("a label");
        let name = |a: &str, b: &str, taken: bool| workload_name(&label(a), &label(b), |_| taken).to_string();
        assert_eq!(name("orders", "h1", false), "orders-h1");
        assert_ne!(name("a-b", "c", true), name("a", "b-c", true));
        let long = "x".repeat(63);
        assert_eq!(name(&long, "h1", false).len(), 63);
        assert_ne!(name(&long, "h1", false), name(&long, "h2", false));
    }
}
