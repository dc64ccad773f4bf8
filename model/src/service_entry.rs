//! Hosts that callers name and no Service stands for: Istio's ServiceEntry. Most are outside the mesh; some are its
//! workloads under another name.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use ipnet::IpNet;

use crate::identity::Identity;
use crate::name::Key;
use crate::service::ServicePort;
use crate::virtual_service::{HostPattern, Visibility};
use crate::workload::{Labels, Locality, Workload, selects};

/// All hosts of a mesh's entries, each once.
mod hosts;

pub use hosts::{ExternalHost, HostPort, hosts};

/// The most hosts of one ServiceEntry, and the most addresses, and the most endpoints.
pub const MAX_ITEMS: usize = 1024;

/// Whether the endpoints are the mesh's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Location {
    /// They are not.
    #[default]
    External,
    /// They are.
    Internal,
}

impl Location {
    /// The name as written.
    pub fn name(self) -> &'static str {
        match self {
            Self::External => "MESH_EXTERNAL",
            Self::Internal => "MESH_INTERNAL",
        }
    }
}

/// How the addresses are found that connections go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Resolution {
    /// Where the caller was going: the agent looks nothing up.
    #[default]
    None,
    /// The endpoints, which have addresses.
    Static,
    /// All addresses that DNS has for the endpoints, or for the host itself.
    Dns,
    /// The first address that DNS has at the time of each connection.
    DnsRoundRobin,
    /// The addresses of whatever name under the wildcard a caller asks for.
    DynamicDns,
}

impl Resolution {
    /// The name as written.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Static => "STATIC",
            Self::Dns => "DNS",
            Self::DnsRoundRobin => "DNS_ROUND_ROBIN",
            Self::DynamicDns => "DYNAMIC_DNS",
        }
    }

    /// Whether it is `NONE`.
    pub fn is_none(self) -> bool {
        self == Self::None
    }

    /// Whether names are looked up in the background.
    pub fn is_dns(self) -> bool {
        matches!(self, Self::Dns | Self::DnsRoundRobin)
    }
}

/// Where an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// At an address.
    Ip(IpAddr),
    /// At the addresses of a name, in lower case.
    Name(Arc<str>),
}

/// One endpoint as the entry lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryEndpoint {
    /// Where it is.
    pub address: Address,
    /// Port names to its port numbers.
    pub ports: BTreeMap<Arc<str>, NonZeroU16>,
    /// Labels, for subsets.
    pub labels: Labels,
    /// Where it stands.
    pub locality: Locality,
    /// Share of the connections, relative to the other endpoints; at least 1.
    pub weight: u32,
}

impl EntryEndpoint {
    /// The endpoint that a host itself is.
    pub fn of_name(name: Arc<str>) -> Self {
        Self {
            address: Address::Name(name),
            ports: BTreeMap::new(),
            labels: Labels::new(),
            locality: Locality::default(),
            weight: 1,
        }
    }

    /// Its number for a port.
    pub fn port(&self, port: &ServicePort) -> u16 {
        let mapped = port.name.as_ref().and_then(|name| self.ports.get(name));
        mapped.unwrap_or(&port.target_port).get()
    }
}

/// Where the endpoints come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoints {
    /// The entry lists them; none: the host itself is the endpoint, or nothing is.
    Listed(Vec<EntryEndpoint>),
    /// The WorkloadEntries of its namespace with these labels.
    Selected(Labels),
}

/// Tells which workloads some of these entries have as endpoints by their labels: those of an entry's own namespace.
pub fn selected_by<'e>(entries: impl Iterator<Item = &'e ServiceEntry>) -> impl Fn(&Workload) -> bool {
    let selecting: Vec<_> = entries
        .filter_map(|entry| match &entry.endpoints {
            Endpoints::Selected(labels) => Some((&entry.key.namespace, labels)),
            Endpoints::Listed(_) => None,
        })
        .collect();
    move |workload| {
        let mut of_namespace = selecting.iter().filter(|(of, _)| **of == workload.key.namespace);
        of_namespace.any(|(_, labels)| selects(labels, &workload.labels))
    }
}

/// Istio's ServiceEntry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Namespace and name.
    pub key: Key,
    /// At least one; never `*`, never one label.
    pub hosts: Vec<HostPattern>,
    /// The addresses by which callers reach the hosts; without any the mesh has virtual ones for each.
    pub addresses: Vec<IpNet>,
    /// No number twice. Without any the hosts lead nowhere.
    pub ports: Vec<ServicePort>,
    /// Whether the endpoints are the mesh's.
    pub location: Location,
    /// How addresses are found.
    pub resolution: Resolution,
    /// Where the endpoints come from.
    pub endpoints: Endpoints,
    /// Names of which the called side's certificate must show one.
    pub subject_alt_names: Vec<Arc<str>>,
    /// For whom it is.
    pub export_to: Visibility,
    /// Virtual addresses that hosts were assigned.
    pub assigned: BTreeMap<Arc<str>, Vec<IpAddr>>,
}

impl ServiceEntry {
    /// The hosts by their names, stars included.
    pub fn host_names(&self) -> impl Iterator<Item = Arc<str>> + '_ {
        self.hosts.iter().map(|host| match host {
            HostPattern::Exact(name) => Arc::clone(name),
            star => star.to_string().into(),
        })
    }

    /// The key by which a host of it is known.
    pub fn key_of(&self, host: &str) -> Key {
        Key::of_host(self.key.namespace.clone(), host)
    }

    /// Whether the mesh gives its hosts virtual addresses: nothing else says where they are reached, and the agent knows
    /// where connections to them go.
    pub fn needs_virtual_addresses(&self) -> bool {
        !self.resolution.is_none() && self.addresses.is_empty()
    }

    /// The one identity that endpoints with an agent must show, where the entry names it.
    pub fn identity(&self) -> Option<Identity> {
        match &self.subject_alt_names[..] {
            [one] => Identity::parse(one).ok(),
            _ => None,
        }
    }
}
