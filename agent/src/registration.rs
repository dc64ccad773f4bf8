//! The services that run on this host, as its administrator registered them. Registrations are local files: where
//! a connection is delivered, and which processes are the service, comes from here and from nowhere else.

/// How a service is looked at.
pub mod check;
/// Services that are containers.
pub mod container;
/// Where the containers are that labels name.
pub mod labelled;
/// The registration files: reading, writing, removing.
pub mod file;
/// Drop-ins of units: starting after the mesh, and being noted.
pub mod drop_in;
/// What is left to a WorkloadGroup.
pub mod group;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;

use baremesh_model::health::Health;
use baremesh_model::identity::Identity;
use baremesh_model::name::{Key, Label, TrustDomain};
use baremesh_model::service::{Protocol, Service, ServicePort};
use baremesh_model::workload::{Labels, Locality, Workload};

use self::check::Check;
pub use self::container::{Contained, Container};
use self::group::{Grouping, Standing};
use crate::attribution::Matcher;
use crate::snapshot::Host;

/// What happens to a service's connections while the agent is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WhenGone {
    /// They are rejected until the agent is back.
    #[default]
    Closed,
    /// They flow as they would without a mesh.
    Open,
}

/// What is behind a service's ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Serves {
    /// A program of this host.
    #[default]
    Program,
    /// The agent itself: what comes leaves the mesh, as Gateways say.
    Gateway,
}

/// What this host is to the mesh. Its own configuration alone says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HostRole {
    /// Programs run on it.
    #[default]
    Member,
    /// Gateways may be registered on it as well.
    Gateway,
}

/// The label by which Gateways select a gateway that was registered without one of its own, as in Istio.
pub const GATEWAY_LABEL: (&str, &str) = ("istio", "egressgateway");

/// One port of a local service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPort {
    /// The port that callers name.
    pub port: NonZeroU16,
    /// The port under which the service is advertised at the host's addresses.
    pub target_port: NonZeroU16,
    /// What the port speaks.
    pub protocol: Protocol,
    /// The port's name.
    pub name: Option<Arc<str>>,
    /// Where the program listens; `127.0.0.1` suffices. Nowhere, which is an unspecified address, at a gateway and where it
    /// is not known.
    pub deliver: SocketAddr,
    /// Where `deliver` follows the container that labels name: its port there.
    pub of_container: Option<ContainerPort>,
}

/// A port of the container that labels name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContainerPort {
    /// The port, at the container's address.
    pub port: NonZeroU16,
    /// Whether the container that is delivered to is certain to be the service.
    pub certain: Certain,
}

/// Whether a container is certain to be the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certain {
    /// It is.
    Yes,
    /// Its address may be another's by now: nothing is delivered to it.
    No,
}

impl LocalPort {
    /// Whether what is delivered may go there.
    pub fn is_known(&self) -> bool {
        self.of_container.is_none_or(|own| own.certain == Certain::Yes)
    }

    /// Where a check finds the program: nowhere, where its container is not certain to be the service.
    fn looked_at(&self) -> SocketAddr {
        if self.is_known() { self.deliver } else { file::nowhere(self.deliver.port()) }
    }
}

/// One service of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalService {
    /// The service's namespace and name.
    pub key: Key,
    /// The account that it runs as; the service's name unless stated.
    pub service_account: Label,
    /// What is behind its ports.
    pub serves: Serves,
    /// Ports, at least one.
    pub ports: Vec<LocalPort>,
    /// The addresses that it is advertised at; the host's unless stated.
    pub addresses: Option<Vec<IpAddr>>,
    /// Which processes are the service, when they call others. Without one, only its inbound side is meshed.
    pub matcher: Option<Matcher>,
    /// Which container the service is, when it calls others.
    pub container: Option<Contained>,
    /// Labels, for selectors and subsets.
    pub labels: Labels,
    /// Where it stands; the host's unless stated.
    pub locality: Option<Locality>,
    /// Share of the connections.
    pub weight: u32,
    /// What happens while the agent is gone.
    pub when_gone: WhenGone,
    /// Whether peers that send no server name reach this service at its addresses.
    pub default_for_address: DefaultForAddress,
    /// How it is looked at; without that it is always healthy.
    pub check: Option<Arc<Check>>,
    /// What its check has found so far.
    pub health: Health,
    /// The WorkloadGroup that it names, where it names one.
    pub group: Option<Grouping>,
}

/// Whether a service answers peers that do not say whom they want.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DefaultForAddress {
    /// Only while it is the only one at the address.
    #[default]
    IfAlone,
    /// Yes; no other service of the address may say so too.
    Yes,
}

impl LocalService {
    /// The identity that the service's certificate shows.
    pub fn identity(&self, trust_domain: &TrustDomain) -> Identity {
        Identity::new(trust_domain.clone(), self.key.namespace.clone(), self.service_account.clone())
    }

    /// Whether the same is looked at in the same way, so that what was found of the one holds for the other.
    pub fn is_checked_like(&self, other: &Self) -> bool {
        self.key == other.key && self.check == other.check && self.ports == other.ports
    }

    /// What it is held to be before its check has found anything, where `before` was registered in its place. One that
    /// is new takes no calls until its check passes; one that took calls goes on until its check fails.
    pub fn first_health(&self, before: Option<&Self>) -> Health {
        let standing = self.group.as_ref().map(|group| &group.standing);
        match (&self.check, before) {
            (None, _) if matches!(standing, Some(Standing::Missing | Standing::Unusable(_))) => {
                Health::Unhealthy
            }
            (None, _) if !self.ports.iter().all(LocalPort::is_known) => Health::Unhealthy,
            (None, _) => Health::Healthy,
            (Some(_), Some(before)) if before.ports == self.ports => before.health,
            (Some(_), _) => Health::Unhealthy,
        }
    }

    /// The addresses that the service is advertised at on a host with these.
    pub fn addresses<'a>(&'a self, host: &'a [IpAddr]) -> &'a [IpAddr] {
        self.addresses.as_deref().unwrap_or(host)
    }

    /// The labels with `app` and the service's own defaults filled in, as policies and metrics see them.
    pub fn labels(&self) -> Labels {
        let mut labels = self.labels.clone();
        labels.entry("app".into()).or_insert_with(|| self.key.name.as_str().into());
        if self.serves == Serves::Gateway {
            let (key, value) = GATEWAY_LABEL;
            labels.entry(key.into()).or_insert_with(|| value.into());
        }
        labels
    }

    /// The Service that this registration stands for where none was declared.
    pub fn implied_service(&self) -> Service {
        let port = |port: &LocalPort| ServicePort {
            port: port.port,
            target_port: port.target_port,
            protocol: port.protocol,
            name: port.name.clone(),
        };
        Service {
            key: self.key.clone(),
            ports: self.ports.iter().map(port).collect(),
            selector: None,
            service_account: self.service_account.clone(),
            addresses: Vec::new(),
            federated: None,
        }
    }

    /// The workload that this registration makes on `host`, or `None` where the host has no address.
    pub fn workload(&self, host: &Host) -> Option<Workload> {
        let (address, other_addresses) = self.addresses(&host.addresses).split_first()?;
        let named = |port: &LocalPort| Some((port.name.clone()?, port.target_port));
        Some(Workload {
            key: Key::new(self.key.namespace.clone(), workload_name(&self.key.name, &host.name)),
            address: *address,
            other_addresses: other_addresses.to_vec(),
            service: Some(self.key.name.clone()),
            host: Some(host.name.clone()),
            ports: self.ports.iter().filter_map(named).collect::<BTreeMap<_, _>>(),
            labels: self.labels(),
            network: host.network_name().cloned(),
            locality: self.locality.clone().unwrap_or_default(),
            weight: self.weight,
            service_account: Some(self.service_account.clone()),
            tunnel: baremesh_model::workload::Tunnel::Hbone,
            health: self.health,
        })
    }
}

/// `<service>-<host>`, cut to a label's length.
fn workload_name(service: &Label, host: &Label) -> Label {
    let full = format!("{service}-{host}");
    let cut = full.get(..full.len().min(63)).unwrap_or(&full).trim_end_matches('-');
    Label::new(cut).unwrap_or_else(|_| service.clone())
}
