//! Hosts of ServiceEntries: which of them a name or an address means, and where connections to each go.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use baremesh_model::name::Label;
use baremesh_model::service_entry::{Address, Endpoints, Location};
use baremesh_model::virtual_service::{HostPattern, Visibility};
use baremesh_model::workload::{Labels, Locality};
use ipnet::IpNet;

use super::endpoint::Origin;
use super::{Endpoint, ServiceEntry, Snapshot, Transport};
use crate::dns::Found;
use crate::telemetry::metrics::Party;

/// From hosts of entries to services.
mod compile;
/// What a captured connection means.
mod meant;

pub use compile::{Host, of_mesh};
pub use meant::Meant;

/// What is known of a service that is a host of ServiceEntries.
#[derive(Debug)]
pub struct External {
    /// For whom it is.
    pub visibility: Visibility,
    /// Whether its endpoints are the mesh's.
    pub location: Location,
    /// Names of which a server's certificate must show one, where a rule names none.
    pub subject_alt_names: Vec<Arc<str>>,
    /// Addresses besides the virtual ones.
    pub addresses: Vec<IpNet>,
    /// Where connections to each port go, by the port's index.
    pub ways: Vec<Way>,
    /// Whether a port's endpoints are those that an entry lists, by the port's index.
    statics: Vec<bool>,
}

/// Where connections to a port go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// To one of its endpoints.
    Endpoints,
    /// Where the caller was going.
    OriginalDestination,
    /// To the addresses of the name that the caller asks for, if these hosts are meant by it.
    AskedName(HostPattern),
}

/// An endpoint that nobody listed.
pub fn ad_hoc(address: SocketAddr, host: &Arc<str>, origin: Origin) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        address,
        transport: Transport::Plain,
        origin,
        workload: Arc::clone(host),
        labels: Labels::new(),
        locality: Locality::default(),
        weight: 1,
        health: Default::default(),
        state: Arc::default(),
    })
}

/// The services that are hosts of ServiceEntries, by what they are called and reached by.
#[derive(Debug, Default)]
pub struct ExternalHosts {
    exact: HashMap<Arc<str>, Vec<Arc<ServiceEntry>>>,
    /// By what their names end in, the longest first.
    stars: Vec<(Arc<str>, Vec<Arc<ServiceEntry>>)>,
    addresses: HashMap<IpAddr, Vec<Arc<ServiceEntry>>>,
    /// The longest prefix first.
    networks: Vec<(IpNet, Vec<Arc<ServiceEntry>>)>,
    /// Those that nothing but names tell, by port.
    by_port: HashMap<u16, Vec<Arc<ServiceEntry>>>,
}

impl ExternalHosts {
    pub(super) fn new(all: &[Arc<ServiceEntry>]) -> Self {
        let mut tables = Self::default();
        let mut stars: BTreeMap<Arc<str>, Vec<Arc<ServiceEntry>>> = BTreeMap::new();
        let mut networks: BTreeMap<IpNet, Vec<Arc<ServiceEntry>>> = BTreeMap::new();
        for service in all {
            let Some(external) = &service.external else { continue };
            match service.host.strip_prefix('*') {
                Some(suffix) => stars.entry(suffix.into()).or_default().push(Arc::clone(service)),
                None => {
                    tables.exact.entry(Arc::clone(&service.host)).or_default().push(Arc::clone(service));
                }
            }
            for address in &service.addresses {
                tables.addresses.entry(*address).or_default().push(Arc::clone(service));
            }
            for network in &external.addresses {
                match network.prefix_len() == network.max_prefix_len() {
                    true => {
                        tables.addresses.entry(network.addr()).or_default().push(Arc::clone(service));
                    }
                    false => networks.entry(*network).or_default().push(Arc::clone(service)),
                }
            }
            if service.addresses.is_empty() && external.addresses.is_empty() {
                for port in &service.ports {
                    tables.by_port.entry(port.port).or_default().push(Arc::clone(service));
                }
            }
        }
        tables.stars = stars.into_iter().collect();
        tables.stars.sort_by_key(|(suffix, _)| Reverse(suffix.len()));
        tables.networks = networks.into_iter().collect();
        tables.networks.sort_by_key(|(network, _)| Reverse(network.prefix_len()));
        tables
    }

    /// The host that somebody in `from` means by a name, in whatever case: the exact one before a wildcard, that of the own
    /// namespace before others'.
    pub fn named(&self, name: &str, from: &Label) -> Option<&Arc<ServiceEntry>> {
        if self.exact.is_empty() && self.stars.is_empty() {
            return None;
        }
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let below = |suffix: &str| name.len() > suffix.len() && name.ends_with(suffix);
        let stars = self.stars.iter().filter(|(suffix, _)| below(suffix)).map(|(_, hosts)| hosts);
        self.exact.get(&*name).into_iter().chain(stars).find_map(|hosts| seen(hosts, from).next())
    }

    /// Whether a name is that of hosts of which somebody in `from` sees none.
    pub fn hides(&self, name: &str, from: &Label) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        self.answered(&name).is_some() && self.named(&name, from).is_none()
    }

    /// A host that DNS answers for, whoever asks.
    pub(super) fn answered(&self, name: &str) -> Option<&Arc<ServiceEntry>> {
        let below = |suffix: &str| name.len() > suffix.len() && name.ends_with(suffix);
        let stars = self.stars.iter().filter(|(suffix, _)| below(suffix)).map(|(_, hosts)| hosts);
        self.exact.get(name).into_iter().chain(stars).find_map(|hosts| hosts.first())
    }

    /// The domains below which DNS answers for hosts: a host itself, what a wildcard's hosts lie below. Sorted.
    pub fn domains(&self) -> BTreeSet<String> {
        let answers = |hosts: &Vec<Arc<ServiceEntry>>| {
            hosts.first().is_some_and(|host| !matches!(host.found(), Found::NotOurs))
        };
        let exact = self.exact.iter().filter(|(_, hosts)| answers(hosts)).map(|(name, _)| &**name);
        let stars = self.stars.iter().filter(|(_, hosts)| answers(hosts));
        let parents = stars.filter_map(|(suffix, _)| suffix.strip_prefix('.'));
        exact.chain(parents).filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }

    /// Whether any host is reached at that address and port, for whomever.
    pub fn is_at(&self, destination: SocketAddr) -> bool {
        self.groups_at(destination).flatten().any(|service| has_port(destination)(&service))
    }

    /// The hosts that somebody in `from` reaches at that address and port: the nearest block's first, and of one block his own
    /// namespace's.
    pub fn at<'a>(
        &'a self,
        destination: SocketAddr,
        from: &'a Label,
    ) -> impl Iterator<Item = &'a Arc<ServiceEntry>> {
        self.groups_at(destination).flat_map(move |hosts| seen(hosts, from)).filter(has_port(destination))
    }

    /// The hosts without an address that somebody in `from` may mean by a connection to that port.
    pub fn on_port<'a>(&'a self, port: u16, from: &'a Label) -> impl Iterator<Item = &'a Arc<ServiceEntry>> {
        self.by_port.get(&port).into_iter().flat_map(move |hosts| seen(hosts, from))
    }

    fn groups_at(&self, destination: SocketAddr) -> impl Iterator<Item = &Vec<Arc<ServiceEntry>>> {
        let exact = self.addresses.get(&destination.ip()).into_iter();
        let within = self.networks.iter().filter(move |(network, _)| network.contains(&destination.ip()));
        exact.chain(within.map(|(_, hosts)| hosts))
    }
}

fn has_port(destination: SocketAddr) -> impl Fn(&&Arc<ServiceEntry>) -> bool {
    move |service| service.port_index(destination.port()).is_some()
}

/// Of several hosts the exact one of a name, else the longest wildcard; of equals the first.
pub fn best<'a>(
    hosts: impl Iterator<Item = &'a Arc<ServiceEntry>>,
    name: &str,
) -> Option<&'a Arc<ServiceEntry>> {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let meant = hosts.filter(|host| match host.host.strip_prefix('*') {
        Some(suffix) => name.len() > suffix.len() && name.ends_with(suffix),
        None => *host.host == *name,
    });
    meant.min_by_key(|host| (host.host.starts_with('*'), Reverse(host.host.len())))
}

/// Those that callers of a namespace see, its own first.
fn seen<'a, 'b>(
    hosts: &'a [Arc<ServiceEntry>],
    from: &'b Label,
) -> impl Iterator<Item = &'a Arc<ServiceEntry>> + use<'a, 'b> {
    let own = hosts.iter().filter(move |host| host.key.namespace == *from);
    let others = hosts.iter().filter(move |host| host.key.namespace != *from);
    own.chain(others).filter(move |host| is_seen(host, from))
}

fn is_seen(service: &ServiceEntry, from: &Label) -> bool {
    service.external.is_some() && service.is_for(from)
}

impl ServiceEntry {
    /// Whether callers of a namespace see it. Services are everybody's.
    pub fn is_for(&self, from: &Label) -> bool {
        self.external.as_ref().is_none_or(|external| external.visibility.includes(from))
    }

    /// What DNS answers for it.
    pub(super) fn found(&self) -> Found {
        let networks = self.external.iter().flat_map(|external| &external.addresses);
        let alone = networks.filter(|network| network.prefix_len() == network.max_prefix_len());
        let all: Vec<IpAddr> =
            self.addresses.iter().copied().chain(alone.map(|network| network.addr())).collect();
        // Without an address of its own the real answer is the right one.
        if all.is_empty() {
            return Found::NotOurs;
        }
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for address in all {
            match address {
                IpAddr::V4(address) => v4.push(address),
                IpAddr::V6(address) => v6.push(address),
            }
        }
        Found::Service { v4, v6 }
    }

    /// The called side at one of its endpoints, as records show it. Nobody outside the mesh has shown who it is.
    pub fn party(&self, endpoint: &Endpoint) -> Party {
        let workload = Some(Arc::clone(&endpoint.workload));
        let party = Party::registered(&self.identity, workload, &endpoint.labels);
        match (&self.external, &endpoint.transport) {
            (Some(_), Transport::Plain) => Party { identity: None, ..party },
            _ => party,
        }
    }

    /// Where connections to a port go.
    pub fn way(&self, port: usize) -> &Way {
        self.external.as_ref().and_then(|external| external.ways.get(port)).unwrap_or(&Way::Endpoints)
    }
}

impl Snapshot {
    /// Whether connections to a real address are captured for the sake of a ServiceEntry.
    pub fn is_captured_for_external(&self, destination: SocketAddr) -> bool {
        let of_external = |service: &ServiceEntry| service.external.is_some();
        self.external.is_at(destination)
            || self.endpoints.get(&destination).is_some_and(|(service, ..)| of_external(service))
    }

    /// The names that are to be looked up for endpoints, in order.
    pub fn names_to_resolve(&self) -> Vec<Arc<str>> {
        let mut names: Vec<Arc<str>> = Vec::new();
        for entry in self.mesh.service_entries.values().filter(|entry| entry.resolution.is_dns()) {
            // What nobody here calls needs no address here.
            let mut called =
                entry.host_names().filter(|host| self.services.contains_key(&entry.key_of(host)));
            match &entry.endpoints {
                Endpoints::Listed(listed) if listed.is_empty() => names.extend(called),
                _ if called.next().is_none() => {}
                Endpoints::Listed(listed) => {
                    names.extend(listed.iter().filter_map(|endpoint| match &endpoint.address {
                        Address::Name(name) => Some(Arc::clone(name)),
                        Address::Ip(_) => None,
                    }));
                }
                Endpoints::Selected(_) => {}
            }
        }
        let domain = self.mesh.config.domain.as_str();
        let in_mesh = |name: &str| name.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
        names.retain(|name| !in_mesh(name) && !name.starts_with('*'));
        names.sort();
        names.dedup();
        names
    }

    /// Real addresses and ports by which hosts of ServiceEntries are reached: what the rules bring here.
    pub(super) fn external_addresses(&self) -> BTreeSet<(IpNet, u16)> {
        let mut all = BTreeSet::new();
        for service in self.services.values() {
            let Some(external) = &service.external else { continue };
            for port in &service.ports {
                all.extend(external.addresses.iter().map(|network| (*network, port.port)));
            }
            all.extend(
                captured_endpoints(service)
                    .map(|(_, endpoint)| (IpNet::from(endpoint.address.ip()), endpoint.address.port())),
            );
        }
        all
    }
}

/// Endpoints of STATIC hosts, which are captured where they are dialled by their own addresses, with the host's port.
pub(super) fn captured_endpoints(service: &ServiceEntry) -> impl Iterator<Item = (u16, &Arc<Endpoint>)> {
    let statics = service.external.as_ref().map(|external| &external.statics[..]).unwrap_or_default();
    let ports = service.ports.iter().zip(statics).filter(|(_, is_static)| **is_static);
    ports.flat_map(|(port, _)| {
        let plain = port.endpoints.iter().filter(|endpoint| matches!(endpoint.transport, Transport::Plain));
        plain.map(move |endpoint| (port.port, endpoint))
    })
}

#[cfg(test)]
mod tests;
