//! What a connection is decided from: tables compiled from one whole validated mesh and this host's own
//! registrations. A snapshot never changes; a connection loads one and keeps to it. The state of endpoints (in
//! flight, ejections) and what limits counted are shared from snapshot to snapshot.

/// Compiling a snapshot.
mod build;
/// This host.
mod host;
/// How hosts of other networks are reached.
mod ways;
/// Ports and subsets as callers of this host call them.
pub mod cluster;
/// Endpoints and what is known of them.
pub mod endpoint;
/// How services are called, by kinds of callers.
mod views;
/// Services of this host.
mod local;
/// Gateways of this host.
pub mod gateway;
/// Hosts of ServiceEntries.
pub mod external;
/// Limits on requests, and what they counted.
pub mod rate_limit;
/// Services whose endpoints were not asked for.
mod unheld;
/// Names, as the DNS server answers them.
mod names;
/// The capture plan that a snapshot comes to.
pub mod plan;
/// What callers of this host reach.
mod reach;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use baremesh_model::destination_rule::{ClientTls, MergedRule};
use baremesh_model::endpoint_addresses::EndpointAddresses;
use baremesh_model::identity::Identity;
use baremesh_model::mesh::Mesh;
use baremesh_model::name::{Key, Label};
use baremesh_model::outbound::OutboundPolicy;
use baremesh_model::service::{Protocol, Service};
use baremesh_model::virtual_service::{Destination, Routing};
use baremesh_model::workload::{Labels, Workload};

use crate::attribution::CallerTable;
use crate::external_authorization::Providers;
use crate::jwt::{TokenKeys, TokenRules};
use crate::proxy::error::ProxyError;
use crate::registration::LocalService;
use crate::resolution::Resolved;
use crate::telemetry::metrics::Party;

use build::Basis;
pub use build::BuildError;
pub use cluster::{Cluster, NoEndpoint};
pub use endpoint::{Endpoint, EndpointState, Transport};
use external::{External, ExternalHosts};
pub use host::{Host, HostNetwork, NetworkRole};
pub use local::{From, LocalEndpoint};
pub use names::ShortNames;
use rate_limit::RateLimits;
pub use reach::Calls;
use reach::Listed;
pub use ways::OutOfReach;

/// One service, or one host of ServiceEntries, with what callers need of it.
#[derive(Debug)]
pub struct ServiceEntry {
    /// Namespace and name.
    pub key: Key,
    /// The full host name.
    pub host: Arc<str>,
    /// What every endpoint must show.
    pub identity: Identity,
    /// Virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// Declared ports.
    pub ports: Vec<PortEntry>,
    /// Endpoints of other networks that no gateway leads to.
    pub out_of_reach: Vec<OutOfReach>,
    /// The numbers at endpoints that nobody lists, by the index of the port.
    pub targets: Vec<u16>,
    /// What is known of it besides, where it is a host of ServiceEntries.
    pub external: Option<External>,
    /// Where its endpoints are, where nobody on this host has asked for them.
    pub elsewhere: Option<Arc<EndpointAddresses>>,
    /// Whether somebody on this host has called it since that was last looked at. Kept from one snapshot to the next.
    called: Arc<AtomicBool>,
    /// How it is called, by kinds of callers of this host.
    views: Views,
    /// What it was compiled from.
    service: Service,
    workloads: Box<[Arc<Workload>]>,
}

impl ServiceEntry {
    /// A port's cluster, or that of one of its subsets, as a caller of this host calls it: a registration by its index,
    /// or the host itself. `None` where no DestinationRule for that caller has the subset.
    pub fn cluster(&self, caller: Option<usize>, port: usize, subset: Option<&str>) -> Option<&Arc<Cluster>> {
        self.views.of(caller).ports.get(port)?.cluster(subset)
    }

    /// The index of a port by its number.
    pub fn port_index(&self, number: u16) -> Option<usize> {
        self.ports.iter().position(|port| port.port == number)
    }

    /// The port that a route's destination means to those who dialled `dialled`: the one that is named, else the only one
    /// that there is, else the one that was dialled.
    pub fn port_meant(&self, to: &Destination, dialled: u16) -> Option<usize> {
        self.port_index(match (to.port, &self.ports[..]) {
            (Some(port), _) => port.get(),
            (None, [only]) => only.port,
            (None, _) => dialled,
        })
    }

    /// The name by which records know it, and its namespace where that is not in the name.
    pub fn noted(&self) -> (Option<Arc<str>>, Option<Arc<str>>) {
        let namespace = self.external.as_ref().map(|_| self.key.namespace.as_str().into());
        (Some(Arc::clone(&self.host)), namespace)
    }

    /// Whether any caller of this host has the endpoint left out.
    pub fn is_ejected(&self, address: SocketAddr) -> bool {
        let clusters = self.views.views.iter().flat_map(|view| &view.ports).flat_map(PortView::clusters);
        let mut endpoints = clusters.flat_map(|cluster| cluster.endpoints());
        endpoints.any(|endpoint| endpoint.address == address && endpoint.state.is_ejected())
    }

    /// The DestinationRule by which a caller of this host calls the service.
    pub fn rule(&self, caller: Option<usize>) -> Option<&Arc<MergedRule>> {
        self.views.of(caller).rule.as_ref()
    }
}

/// How a service is called, by kinds of callers.
#[derive(Debug)]
struct Views {
    /// At least one.
    views: Vec<View>,
    /// Which view each registration has, and last the host; empty where all have the first.
    of_caller: Vec<u32>,
}

impl Views {
    fn of(&self, caller: Option<usize>) -> &View {
        let index = match caller {
            Some(index) => self.of_caller.get(index),
            None => self.of_caller.last(),
        };
        &self.views[index.map_or(0, |index| *index as usize)]
    }
}

/// How a service is called by one kind of callers.
#[derive(Debug)]
struct View {
    rule: Option<Arc<MergedRule>>,
    /// By the index of the port.
    ports: Vec<PortView>,
}

#[derive(Debug)]
struct PortView {
    whole: Arc<Cluster>,
    subsets: HashMap<Arc<str>, Arc<Cluster>>,
}

impl PortView {
    fn cluster(&self, subset: Option<&str>) -> Option<&Arc<Cluster>> {
        match subset {
            None => Some(&self.whole),
            Some(name) => self.subsets.get(name),
        }
    }

    fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        std::iter::once(&self.whole).chain(self.subsets.values())
    }
}

/// One port of a service and where it leads.
#[derive(Debug)]
pub struct PortEntry {
    /// The port that callers name.
    pub port: u16,
    /// What it speaks.
    pub protocol: Protocol,
    /// Where it leads.
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// A service of this host as a caller.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its identity.
    pub identity: Identity,
    /// Its labels, as routes match them.
    pub labels: Labels,
    /// The identity with labels, as records show it.
    pub party: Party,
    /// Whether it reaches what the registry does not have.
    pub outbound: OutboundPolicy,
    /// Which services it calls, where a Sidecar says so.
    pub calls: Option<Calls>,
    /// The rules by which tokens of its own requests are read where a route asks for claims.
    pub tokens: Option<Arc<TokenRules>>,
}

/// Everything that connections are decided from.
pub struct Snapshot {
    /// What it was compiled from, this host's registrations included.
    pub mesh: Arc<Mesh>,
    /// This host.
    pub host: Host,
    /// The identity of callers that match no registration.
    pub host_identity: Identity,
    /// The identities that this host needs certificates for, each once.
    pub identities: Vec<Identity>,
    /// The registrations of this host, by the index that the caller table gives.
    pub registrations: Vec<Arc<LocalService>>,
    /// Each registration's service as a caller, by the same index.
    pub sources: Vec<Source>,
    /// Routes of requests and connections.
    pub routing: Routing,
    /// Whether any route asks for claims of a token.
    pub routes_ask_for_claims: bool,
    /// Keys that tokens are verified with.
    pub token_keys: TokenKeys,
    /// Limits on requests.
    pub rate_limits: RateLimits,
    /// Who is asked by CUSTOM policies.
    pub providers: Arc<Providers>,
    /// Which processes are which service of this host.
    pub callers: CallerTable<usize>,
    /// What the services were compiled with.
    basis: Basis,
    /// Hosts of ServiceEntries, by what they are called and reached by.
    pub external: ExternalHosts,
    /// Addresses of their endpoints' names.
    pub resolved: Arc<Resolved>,
    services: HashMap<Key, Arc<ServiceEntry>>,
    virtual_addresses: HashMap<IpAddr, Arc<ServiceEntry>>,
    endpoints: HashMap<SocketAddr, (Arc<ServiceEntry>, u16, Arc<Endpoint>)>,
    /// Endpoints with agents of services whose endpoints were not asked for, with the services and their ports.
    unheld: HashMap<SocketAddr, (Arc<ServiceEntry>, u16)>,
    advertised: HashMap<SocketAddr, Arc<LocalEndpoint>>,
    captured: HashMap<SocketAddr, Arc<LocalEndpoint>>,
    captured_ports: HashMap<u16, Arc<LocalEndpoint>>,
    unnamed: HashMap<IpAddr, Identity>,
    /// The agents of this host's network, where this host takes connections to them from outside.
    agents: HashSet<IpAddr>,
    /// Where the gateways of that network are.
    gateways: HashSet<IpAddr>,
    /// What the registry has besides.
    listed: Listed,
    /// The registration of each container's address.
    containers: HashMap<IpAddr, usize>,
    /// Services that Gateways select.
    gateway_services: HashSet<Key>,
}

/// Where a captured connection goes.
#[derive(Debug, Clone)]
pub enum Route {
    /// To any endpoint of a service's port; the index is that of the port.
    Service(Arc<ServiceEntry>, usize),
    /// To exactly this endpoint, which was dialled by its own address.
    Endpoint(Arc<ServiceEntry>, u16, Arc<Endpoint>),
    /// To exactly one endpoint, which was dialled by its own address, of a service whose endpoints are not held; with the
    /// service's port.
    Unheld(Arc<ServiceEntry>, u16),
    /// To a service of this host, which was dialled by its own address.
    Local(Arc<LocalEndpoint>),
    /// To where it was going, outside the mesh.
    Passthrough,
}

impl Snapshot {
    /// Where a connection to `destination` goes.
    pub fn route(&self, destination: SocketAddr) -> Result<Route, ProxyError> {
        if let Some(service) = self.virtual_addresses.get(&destination.ip()) {
            return match service.port_index(destination.port()) {
                Some(index) => Ok(Route::Service(Arc::clone(service), index)),
                None => {
                    Err(ProxyError::NoSuchPort { service: service.key.clone(), port: destination.port() })
                }
            };
        }
        if self.mesh.config.virtual_ranges.contains(destination.ip()) {
            return Err(ProxyError::NoSuchService(destination));
        }
        if let Some(local) = self.local(destination) {
            return Ok(Route::Local(Arc::clone(local)));
        }
        if let Some((service, port, endpoint)) = self.endpoints.get(&destination) {
            return Ok(Route::Endpoint(Arc::clone(service), *port, Arc::clone(endpoint)));
        }
        match self.unheld.get(&destination) {
            Some((service, port)) => Ok(Route::Unheld(Arc::clone(service), *port)),
            None => Ok(Route::Passthrough),
        }
    }

    /// The service of this host that is reached at `destination`, a delivery address or one of the host's.
    pub fn local(&self, destination: SocketAddr) -> Option<&Arc<LocalEndpoint>> {
        let by_port =
            || self.captured_ports.get(&destination.port()).filter(|_| self.is_here(destination.ip()));
        self.captured.get(&destination).or_else(by_port)
    }

    /// The service of this host that is advertised at exactly `destination`.
    pub fn advertised(&self, destination: SocketAddr) -> Option<&Arc<LocalEndpoint>> {
        self.advertised.get(&destination)
    }

    /// The registration, by its index, of the container with this address on a bridge.
    pub fn container(&self, address: IpAddr) -> Option<usize> {
        self.containers.get(&address.to_canonical()).copied()
    }

    /// A registration that the container with this address on a bridge may be, where it is not certain to be.
    pub fn suspended(&self, address: IpAddr) -> Option<&LocalService> {
        let address = address.to_canonical();
        let may_be = |local: &&Arc<LocalService>| {
            let own = local.container.iter().flat_map(|own| &own.suspended);
            own.into_iter().any(|place| place.addresses.contains(&address))
        };
        self.registrations.iter().find(may_be).map(|local| &**local)
    }

    /// The identity that peers which send no server name reach at `address`.
    pub fn unnamed(&self, address: IpAddr) -> Option<&Identity> {
        self.unnamed.get(&address)
    }

    /// The registration of a service of this host, by its index: the same service's from one state to the next, where several
    /// have one identity. None for the host itself, and for a service that is registered here no longer.
    pub fn registration(&self, service: Option<&Key>) -> Option<usize> {
        let service = service?;
        self.registrations.iter().position(|local| local.key == *service)
    }

    /// The labels of a caller of this host, as routes match them. The host itself has none.
    pub fn labels_of(&self, caller: Option<usize>) -> &Labels {
        static NONE: Labels = Labels::new();
        caller.map_or(&NONE, |index| &self.sources[index].labels)
    }

    /// The service of this host that an endpoint is. One without an agent that a resource places here is that, too.
    pub fn here<'a>(&'a self, endpoint: &'a Endpoint) -> Option<&'a Arc<LocalEndpoint>> {
        match &endpoint.transport {
            Transport::Local(local) => Some(local),
            Transport::Plain => self.local(endpoint.address),
            Transport::Hbone(_) => None,
        }
    }

    /// A service by its full host name.
    pub fn service_of_host(&self, host: &str) -> Option<&Arc<ServiceEntry>> {
        let key = Key::resolve(host, &baremesh_model::name::default_namespace(), &self.mesh.config.domain);
        self.service(&key.ok()?)
    }

    /// A service by its full host name, or the host of a ServiceEntry that callers of a namespace see. A name of two labels
    /// may be either: a service of another namespace goes first.
    pub fn called(&self, host: &str, from: &Label) -> Option<&Arc<ServiceEntry>> {
        let domain = self.mesh.config.domain.as_str();
        let as_written = || host.strip_suffix(domain)?.strip_suffix('.');
        let external = || {
            let named = self.external.named(host, from);
            named.or_else(|| self.external.named(as_written()?, from))
        };
        self.service_of_host(host).or_else(external)
    }

    /// The namespace of a caller of this host: a registration by its index, or the host itself.
    pub fn namespace_of(&self, caller: Option<usize>) -> &Label {
        caller.map_or(self.host_identity.namespace(), |index| self.sources[index].identity.namespace())
    }

    /// A service by its key.
    pub fn service(&self, key: &Key) -> Option<&Arc<ServiceEntry>> {
        self.services.get(key)
    }

    /// The TLS that rules ask for towards endpoints without an agent; not each once.
    pub fn originations(&self) -> impl Iterator<Item = &ClientTls> {
        let views = self.services.values().flat_map(|service| &service.views.views);
        let clusters = views.flat_map(|view| &view.ports).flat_map(PortView::clusters);
        let asked = clusters.filter_map(|cluster| cluster.tls());
        asked.filter(|tls| matches!(tls, ClientTls::Simple(_) | ClientTls::Mutual(..)))
    }

    /// Every service, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        self.services.values()
    }

    /// Every port of every service of this host, under each address that it is advertised at.
    pub fn local_endpoints(&self) -> impl Iterator<Item = &Arc<LocalEndpoint>> {
        self.advertised.values()
    }

    /// Whether this host, as a gateway of its network, leads to the agent at `address` for somebody at `client`. Not for itself,
    /// nor for another gateway of the network, so that no connection goes round by gateways without end. Who else is within is
    /// not asked: an address that a member says it has may be the one that many come from.
    pub fn leads_to(&self, address: IpAddr, client: IpAddr) -> bool {
        let is_gateway = self.is_here(client) || self.gateways.contains(&client);
        !is_gateway && self.agents.contains(&address)
    }

    /// Whether a service of this host is reached at that port, at whichever address.
    pub fn serves_port(&self, port: u16) -> bool {
        self.captured_ports.contains_key(&port) || self.captured.keys().any(|address| address.port() == port)
    }

    fn is_here(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.host.addresses.contains(&address)
    }
}

#[cfg(test)]
pub(crate) mod tests;
