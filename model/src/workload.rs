//! Workloads: one running copy of a service, where it is, and how it is reached.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;

use crate::health::Health;
use crate::name::{Key, Label};
use crate::service::{Service, ServicePort};

/// Labels of a workload, or the labels that a selector asks for.
pub type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// The label, whatever its value, of a workload that is in a catalog into which others write: nobody of the mesh answers for
/// its other labels.
pub const OF_CATALOG: &str = "consul-catalog";

/// Whether every label of `selector` stands in `labels` with the same value.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// How a workload takes connections from the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Tunnel {
    /// An agent is there: mutual TLS on port 15008, never plaintext.
    Hbone,
    /// No agent is there: its own port, as it is.
    #[default]
    Plain,
}

impl Tunnel {
    /// The word for it, in resources and reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::Hbone => "hbone",
            Self::Plain => "plain",
        }
    }

    /// What the word means.
    pub fn of_word(word: &str) -> Option<Self> {
        [Self::Hbone, Self::Plain].into_iter().find(|tunnel| tunnel.word() == word)
    }
}

/// Region, zone and sub-zone; each may be empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Locality {
    /// Region, such as `eu-west`.
    pub region: Arc<str>,
    /// Zone within the region.
    pub zone: Arc<str>,
    /// Sub-zone within the zone: a rack, a room.
    pub subzone: Arc<str>,
}

impl Locality {
    /// Reads `region/zone/subzone`; the parts after the first may be left out.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.splitn(3, '/').map(Arc::from);
        let mut next = || parts.next().unwrap_or_default();
        Self { region: next(), zone: next(), subzone: next() }
    }
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.region)?;
        for part in [&self.zone, &self.subzone] {
            if !part.is_empty() {
                write!(f, "/{part}")?;
            }
        }
        Ok(())
    }
}

/// One running copy of one or more services: Istio's WorkloadEntry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Namespace and name.
    pub key: Key,
    /// Where it is: the address that connections are sent to.
    pub address: IpAddr,
    /// Further addresses of the same workload, such as its IPv6 one; callers may dial them directly.
    pub other_addresses: Vec<IpAddr>,
    /// The service that it was registered under, where it was registered.
    pub service: Option<Label>,
    /// The host that registered it, where an agent did.
    pub host: Option<Label>,
    /// Service port names to this workload's port numbers.
    pub ports: BTreeMap<Arc<str>, NonZeroU16>,
    /// Labels, for selectors and subsets.
    pub labels: Labels,
    /// The network whose hosts reach its addresses; without one they are reached from everywhere.
    pub network: Option<Label>,
    /// Where it stands.
    pub locality: Locality,
    /// Share of the connections, relative to the other endpoints; at least 1.
    pub weight: u32,
    /// The account that it runs as, where it says so; must agree with its services'.
    pub service_account: Option<Label>,
    /// How it is reached.
    pub tunnel: Tunnel,
    /// Whether it is to be called, as far as its host knows.
    pub health: Health,
}

impl Workload {
    /// Whether this workload is an endpoint of `service`: by the service's selector, else by the name that it
    /// was registered under, else by its label `app`. Namespaces must agree.
    pub fn serves(&self, service: &Service) -> bool {
        if self.key.namespace != service.key.namespace {
            return false;
        }
        match (&service.selector, &self.service) {
            (_, Some(registered)) => *registered == service.key.name,
            (Some(selector), None) => selects(selector, &self.labels),
            (None, None) => self.labels.get("app").is_some_and(|app| **app == *service.key.name.as_str()),
        }
    }

    /// The address at which this workload takes connections for `port`.
    pub fn endpoint(&self, port: &ServicePort) -> SocketAddr {
        SocketAddr::new(self.address, self.port(port))
    }

    /// Every address at which this workload takes connections for `port`, the preferred one first.
    pub fn endpoints<'a>(&'a self, port: &'a ServicePort) -> impl Iterator<Item = SocketAddr> + 'a {
        let addresses = std::iter::once(&self.address).chain(&self.other_addresses);
        addresses.map(move |address| SocketAddr::new(*address, self.port(port)))
    }

    fn port(&self, port: &ServicePort) -> u16 {
        let mapped = port.name.as_ref().and_then(|name| self.ports.get(name));
        mapped.unwrap_or(&port.target_port).get()
    }
}
