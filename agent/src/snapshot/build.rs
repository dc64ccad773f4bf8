//! From a whole mesh and this host's registrations to a snapshot. What is registered here holds whatever the
//! registry says of it: a service of this host is delivered to with no registry in reach.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use baremesh_model::authorization::{Action, AuthorizationPolicy, Enforcement, PolicySet, server_names};
use baremesh_model::destination_rule::DestinationRule;
use baremesh_model::gateway::Carries;
use baremesh_model::identity::Identity;
use baremesh_model::mesh::{Mesh, MeshError, Parts};
use baremesh_model::name::{Domain, Key, Label, TrustDomain};
use baremesh_model::network::{Network, may_meet};
use baremesh_model::peer_authentication::mode_of;
use baremesh_model::service::{Service, ServicePort};
use baremesh_model::sidecar::Scope;
use baremesh_model::virtual_service::Routing;
use baremesh_model::workload::{Labels, Tunnel, Workload};

use super::endpoint::{Agent, Origin};
use super::external::{self, ExternalHosts};
use super::gateway::{GatewayPort, gateways_among};
use super::rate_limit::RateLimits;
use super::reach::{Listed, source};
use super::unheld;
use super::views;
use super::ways::{Way, Ways, agents_of, gateways_of};
use super::{
    Endpoint, EndpointState, Host, LocalEndpoint, NetworkRole, PortEntry, ServiceEntry, Snapshot, Transport,
};
use crate::attribution::CallerTable;
use crate::external_authorization::Providers;
use crate::jwt::{TokenKeys, TokenRules};
use crate::registration::{DefaultForAddress, LocalService, Serves};
use crate::resolution::Resolved;

/// Why a mesh and this host's registrations do not go together. The last good snapshot stays.
#[derive(Debug, thiserror::Error)]
#[error("this host's registrations do not fit the mesh: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct BuildError(pub Vec<MeshError>);

impl Snapshot {
    /// Compiles a snapshot. `previous` lends the state of the endpoints that it knew. `hbone_port` is the port on
    /// which every agent of the mesh takes tunnels.
    pub fn build(
        mesh: &Mesh,
        registrations: &[Arc<LocalService>],
        host: &Host,
        hbone_port: u16,
        previous: Option<&Self>,
    ) -> Result<Self, BuildError> {
        let resolved = previous.map(|previous| Arc::clone(&previous.resolved)).unwrap_or_default();
        Self::build_resolved(mesh, registrations, (host, hbone_port), (previous, &resolved))
    }

    /// The same with what DNS says of names.
    pub fn build_resolved(
        mesh: &Mesh,
        registrations: &[Arc<LocalService>],
        (host, hbone_port): (&Host, u16),
        (previous, resolved): (Option<&Self>, &Arc<Resolved>),
    ) -> Result<Self, BuildError> {
        let mesh = with_registrations(mesh, registrations, host)?;
        let config = &mesh.config;
        let known_keys = previous.map(|previous| &previous.token_keys);
        let mut token_keys = TokenKeys::new(known_keys);
        let mut rules_of = |local: &LocalService| {
            TokenRules::compile(&mesh, (&local.key.namespace, &local.labels()), &mut token_keys, known_keys)
        };
        let tokens: Vec<_> = registrations.iter().map(|local| rules_of(local)).collect();
        let providers = Arc::new(Providers::new(&mesh, previous.map(|previous| &*previous.providers)));
        let local = local_endpoints(&mesh, (registrations, &tokens, &providers), host, previous);
        let advertised: HashMap<_, _> =
            local.iter().map(|local| (local.advertised, Arc::clone(local))).collect();
        let callers = views::Callers::new(&mesh, registrations, host);
        let ways = Ways::new(&mesh, host, hbone_port);
        let basis = Basis::new(&mesh, (&callers, &advertised), (host, hbone_port));
        let same_basis = previous.is_some_and(|previous| previous.basis == basis);
        let compile = |service: &Service| {
            let former = previous.and_then(|previous| previous.services.get(&service.key));
            match former.filter(|former| same_basis && former.is_of(service, &mesh)) {
                Some(former) => Arc::clone(former),
                None => Arc::new(service_entry((&mesh, &callers), service, &advertised, &ways, former)),
            }
        };
        let mut services: HashMap<_, _> =
            mesh.services.values().map(|service| (service.key.clone(), compile(service))).collect();
        let host_identity = Identity::host(config.trust_domain.clone(), host.name.clone());
        let mut namespaces: Vec<_> = registrations.iter().map(|local| &local.key.namespace).collect();
        namespaces.push(host_identity.namespace());
        let here = (&advertised, &ways);
        let compile = |host: external::Host<'_>| {
            let former = previous.and_then(|previous| previous.services.get(host.key()));
            Arc::new(host.compiled(&callers, here, former.map(|former| &**former)))
        };
        let hosts: Vec<_> = external::of_mesh(&mesh, &namespaces, resolved).map(compile).collect();
        services.extend(hosts.iter().map(|host| (host.key.clone(), Arc::clone(host))));
        let of_addresses = |service: &Arc<ServiceEntry>| {
            let entry = Arc::clone(service);
            service.addresses.clone().into_iter().map(move |address| (address, Arc::clone(&entry)))
        };
        let matched = registrations.iter().enumerate();
        let matched = matched.filter_map(|(index, local)| Some((local.matcher.clone()?, index)));
        let leading = host.network.as_ref().filter(|network| network.role == NetworkRole::Gateway);
        let leading = leading.map(|network| &network.name);
        Ok(Self {
            host: host.clone(),
            identities: identities(&local, &host_identity),
            host_identity: host_identity.clone(),
            callers: CallerTable::new(matched),
            containers: containers(registrations),
            gateway_services: gateways_among(&mesh, registrations, &services),
            virtual_addresses: services.values().flat_map(of_addresses).collect(),
            endpoints: dialled_directly(&mesh, &services, (&hosts, &ways)),
            unheld: unheld::dialled_directly(&mesh, &services, (&advertised, &ways)),
            listed: Listed::new(&mesh, &services, &ways),
            basis,
            captured: captured(&local),
            captured_ports: captured_ports(&local),
            unnamed: unnamed(registrations, &local, host),
            sources: registrations
                .iter()
                .zip(&tokens)
                .map(|(local, tokens)| source(local, &mesh, tokens.clone()))
                .collect(),
            routes_ask_for_claims: mesh.virtual_services.iter().any(|service| service.asks_for_claims()),
            token_keys,
            providers,
            registrations: registrations.to_vec(),
            routing: Routing::new(&mesh.virtual_services, &config.domain),
            rate_limits: RateLimits::new(
                &mesh,
                registrations,
                previous.map(|previous| &previous.rate_limits),
            ),
            agents: leading.map(|network| agents_of(&mesh, network)).unwrap_or_default(),
            gateways: leading.map(|network| gateways_of(&mesh, network)).unwrap_or_default(),
            external: ExternalHosts::new(&hosts),
            resolved: Arc::clone(resolved),
            services,
            advertised,
            mesh: Arc::new(mesh),
        })
    }
}

/// Those that are reached at this host, and the host's own.
fn identities(local: &[Arc<LocalEndpoint>], own: &Identity) -> Vec<Identity> {
    let reached: BTreeSet<_> = local.iter().map(|local| &local.identity).chain([own]).collect();
    reached.into_iter().cloned().collect()
}

/// Registrations by the addresses of their containers, of those that are certain to be theirs.
fn containers(registrations: &[Arc<LocalService>]) -> HashMap<IpAddr, usize> {
    let with_index = registrations.iter().enumerate();
    let own = with_index.filter_map(|(index, local)| Some((index, &local.container.as_ref()?.sources)));
    let addresses = own.flat_map(|(index, own)| own.iter().map(move |own| (index, &own.addresses)));
    addresses.flat_map(|(index, own)| own.iter().map(move |address| (*address, index))).collect()
}

/// The mesh with this host's own services in it, declared or not.
fn with_registrations(
    mesh: &Mesh,
    registrations: &[Arc<LocalService>],
    host: &Host,
) -> Result<Mesh, BuildError> {
    let mut parts = mesh.clone().into_parts();
    drop_intruders(&mut parts, registrations, host);
    for local in registrations {
        parts.services.entry(local.key.clone()).or_insert_with(|| local.implied_service());
        if let Some(workload) = local.workload(host) {
            parts.workloads.insert(workload.key.clone(), workload.into());
        }
    }
    Mesh::assemble(parts).map_err(BuildError)
}

/// What is registered here holds: a workload that others place at an address of a service of this host, under another
/// identity, is left out. Refusing the whole state instead would let one host stop another's policies.
fn drop_intruders(parts: &mut Parts, registrations: &[Arc<LocalService>], host: &Host) {
    let mut ours: HashMap<SocketAddr, &LocalService> = HashMap::new();
    for local in registrations {
        for address in local.addresses(&host.addresses) {
            ours.extend(
                local.ports.iter().map(|port| (SocketAddr::new(*address, port.target_port.get()), &**local)),
            );
        }
    }
    let is_anothers = |service: &Service, address: &SocketAddr| {
        ours.get(address).is_some_and(|local| {
            local.key.namespace != service.key.namespace || local.service_account != service.service_account
        })
    };
    let Parts { services, workloads, .. } = parts;
    workloads.retain(|key, workload| {
        let here = std::iter::once(&workload.address).chain(&workload.other_addresses);
        let met = may_meet(workload.network.as_ref(), host.network_name());
        if workload.tunnel == Tunnel::Plain || !met || !here.into_iter().any(|at| ours.keys().any(|own| own.ip() == *at)) {
            return true;
        }
        let intrudes = services.values().filter(|service| workload.serves(service)).any(|service| {
            let mut places = service.ports.iter().flat_map(|port| workload.endpoints(port));
            places.any(|address| is_anothers(service, &address))
        });
        if intrudes {
            tracing::error!(workload = %key, "left out: it claims an address and port of a service of this host");
        }
        !intrudes
    });
}

/// What the services of this host are made of: registrations, the rules for tokens of each, and who may be asked.
type Given<'a> = (&'a [Arc<LocalService>], &'a [Option<Arc<TokenRules>>], &'a Arc<Providers>);

fn local_endpoints(
    mesh: &Mesh,
    (registrations, tokens, providers): Given<'_>,
    host: &Host,
    previous: Option<&Snapshot>,
) -> Vec<Arc<LocalEndpoint>> {
    let mut all = Vec::new();
    let config = &mesh.config;
    for (local, tokens) in registrations.iter().zip(tokens) {
        let labels = local.labels();
        let namespace = &local.key.namespace;
        let policies = policies(mesh, (local, &labels), previous);
        let service_host = local.key.host(&config.domain);
        let identity = local.identity(&config.trust_domain);
        let scope = Scope::of(&mesh.sidecars, (namespace, &labels), &config.root_namespace);
        for port in &local.ports {
            let number = port.target_port.get();
            let default = (&config.root_namespace, config.default_mtls);
            let server_names = server_names(&service_host, &local.key, port.port.get());
            let is_provider = config.is_provider(&local.key, port.port.get());
            let carries = Carries::of_port(port.protocol).filter(|_| local.serves == Serves::Gateway);
            let at = (&local.key, &labels);
            let gateway =
                carries.map(|carries| Arc::new(GatewayPort::new(mesh, at, port.port.get(), carries)));
            let mode = mode_of(&mesh.peer_authentications, (namespace, &labels), number, default);
            for address in local.addresses(&host.addresses) {
                all.push(Arc::new(LocalEndpoint {
                    service: local.key.clone(),
                    identity: identity.clone(),
                    labels: labels.clone(),
                    advertised: SocketAddr::new(*address, number),
                    deliver: port.deliver,
                    is_known: port.is_known(),
                    gateway: gateway.clone(),
                    protocol: port.protocol,
                    refused_by: scope.ingress_against(number, port.protocol).cloned(),
                    mode,
                    policies: Arc::clone(&policies),
                    tokens: tokens.clone(),
                    server_names: Arc::clone(&server_names),
                    providers: Arc::clone(providers),
                    is_provider,
                }));
            }
        }
    }
    all
}

/// The policies of a service of this host; compiled anew only where they are others than before.
fn policies(
    mesh: &Mesh,
    (local, labels): (&LocalService, &Labels),
    previous: Option<&Snapshot>,
) -> Arc<PolicySet> {
    let root = &mesh.config.root_namespace;
    let chosen = PolicySet::select(&mesh.authorization_policies, &local.key.namespace, labels, root);
    let mut chosen: Vec<_> = chosen.cloned().collect();
    if local.misses_its_group() {
        chosen = vec![Arc::new(nobody(local))];
    }
    let former = previous.into_iter().flat_map(|previous| previous.advertised.values());
    let mut former = former.filter(|former| former.service == local.key).map(|former| &former.policies);
    match former.find(|former| former.policies() == chosen) {
        Some(former) => Arc::clone(former),
        None => Arc::new(PolicySet::new(chosen)),
    }
}

/// The policy of a service whose group is not there: which policies select it is not known, so nobody is let in.
fn nobody(local: &LocalService) -> AuthorizationPolicy {
    AuthorizationPolicy {
        key: local.key.clone(),
        selector: None,
        action: Action::Allow,
        enforcement: Enforcement::Enforced,
        rules: Vec::new(),
        response: None,
        provider: None,
    }
}

/// What every service is compiled with besides itself and its workloads. Where nothing of it changed, a service that did not
/// change is taken over from the snapshot before: most changes are of a few endpoints among thousands.
#[derive(Debug, PartialEq)]
pub(super) struct Basis {
    domain: Domain,
    trust_domain: TrustDomain,
    root_namespace: Label,
    pub(super) hbone_port: u16,
    /// The network of this host.
    network: Option<Label>,
    networks: Vec<Network>,
    callers: Vec<views::From>,
    rules: Vec<Arc<DestinationRule>>,
    /// Where services of this host are.
    advertised: BTreeSet<SocketAddr>,
}

impl Basis {
    fn new(
        mesh: &Mesh,
        (callers, advertised): (&views::Callers, &HashMap<SocketAddr, Arc<LocalEndpoint>>),
        (host, hbone_port): (&Host, u16),
    ) -> Self {
        let config = &mesh.config;
        Self {
            domain: config.domain.clone(),
            trust_domain: config.trust_domain.clone(),
            root_namespace: config.root_namespace.clone(),
            hbone_port,
            network: host.network_name().cloned(),
            networks: config.networks.clone(),
            callers: callers.list().to_vec(),
            rules: mesh.destination_rules.clone(),
            advertised: advertised.keys().copied().collect(),
        }
    }
}

impl ServiceEntry {
    /// Whether it is what these come to, under the same basis. One with an endpoint on this host never is: what belongs to
    /// that endpoint is made anew with each snapshot.
    fn is_of(&self, service: &Service, mesh: &Mesh) -> bool {
        let workloads = mesh.workloads_of(service);
        let same = |(one, other): (&Arc<Workload>, &Arc<Workload>)| Arc::ptr_eq(one, other) || one == other;
        let mut endpoints = self.ports.iter().flat_map(|port| &port.endpoints);
        *service == self.service
            && self.elsewhere.as_ref() == mesh.unheld.get(&service.key)
            && workloads.len() == self.workloads.len()
            && workloads.iter().zip(&self.workloads).all(same)
            && !endpoints.any(|endpoint| matches!(endpoint.transport, Transport::Local(_)))
    }
}

/// Compiles a service; `former` is what it was in the snapshot before, which lends what was learnt.
fn service_entry(
    (mesh, callers): (&Mesh, &views::Callers),
    service: &Service,
    advertised: &HashMap<SocketAddr, Arc<LocalEndpoint>>,
    ways: &Ways<'_>,
    former: Option<&Arc<ServiceEntry>>,
) -> ServiceEntry {
    let host: Arc<str> = service.key.host(&mesh.config.domain).into();
    let workloads = mesh.workloads_of(service);
    let (mut reached, mut out_of_reach) = (Vec::new(), Vec::new());
    for workload in workloads {
        match ways.to(workload) {
            Ok(way) => reached.push((workload, way)),
            Err(fault) => out_of_reach.push(fault),
        }
    }
    let known: HashMap<Spot<'_>, &Arc<EndpointState>> = former
        .into_iter()
        .flat_map(|former| former.ports.iter().flat_map(|port| &port.endpoints))
        .map(|endpoint| (endpoint.place(), &endpoint.state))
        .collect();
    let endpoint = |(workload, way): &(&Arc<Workload>, Way), port: &ServicePort| {
        let address = workload.endpoint(port);
        let transport = match (way, advertised.get(&address), workload.tunnel) {
            // A gateway takes what comes by tunnel alone, from programs of its own host too.
            (Way::Direct, Some(local), _) if local.gateway.is_none() => Transport::Local(Arc::clone(local)),
            (way, _, Tunnel::Hbone) => {
                let beyond = match way {
                    Way::Direct => None,
                    Way::Through(network) => Some(Arc::clone(network)),
                };
                Transport::Hbone(Agent { address: SocketAddr::new(address.ip(), ways.hbone_port), beyond })
            }
            (_, _, Tunnel::Plain) => Transport::Plain,
        };
        let beyond = match &transport {
            Transport::Hbone(agent) => agent.beyond.as_ref().map(|network| &network.name),
            Transport::Plain | Transport::Local(_) => None,
        };
        let state = known.get(&(address, beyond)).map(|state| Arc::clone(state)).unwrap_or_default();
        Arc::new(Endpoint {
            address,
            transport,
            origin: Origin::Given,
            workload: workload.key.name.as_str().into(),
            labels: workload.labels.clone(),
            locality: workload.locality.clone(),
            weight: workload.weight,
            health: workload.health,
            state,
        })
    };
    let port = |port: &ServicePort| {
        let mut endpoints: Vec<_> = reached.iter().map(|reached| endpoint(reached, port)).collect();
        // A hand-written entry and a registration may name the same place: it is one endpoint, and healthy if neither
        // says otherwise.
        endpoints.sort_by(|one, other| one.place().cmp(&other.place()));
        endpoints.dedup_by(|other, kept| {
            let same = other.place() == kept.place();
            if same && !other.health.is_healthy() {
                *kept = Arc::new(Endpoint { health: other.health, ..Endpoint::clone(kept) });
            }
            same
        });
        PortEntry { port: port.port.get(), protocol: port.protocol, endpoints }
    };
    let ports: Vec<PortEntry> = service.ports.iter().map(port).collect();
    ServiceEntry {
        targets: service.ports.iter().map(|port| port.target_port.get()).collect(),
        external: None,
        elsewhere: mesh.unheld.get(&service.key).cloned(),
        called: former.map(|former| Arc::clone(&former.called)).unwrap_or_default(),
        views: callers.views(&service.key, &host, &ports, former.map(|former| &former.views)),
        ports,
        identity: mesh.identity_of(service),
        addresses: service.addresses.clone(),
        out_of_reach,
        key: service.key.clone(),
        host,
        service: service.clone(),
        workloads: workloads.into(),
    }
}

/// What tells endpoints of a service apart.
type Spot<'a> = (SocketAddr, Option<&'a Label>);

/// Endpoints that are captured when they are dialled by their own address: those that an agent serves, under each
/// of their addresses.
fn dialled_directly(
    mesh: &Mesh,
    services: &HashMap<Key, Arc<ServiceEntry>>,
    (hosts, ways): (&[Arc<ServiceEntry>], &Ways<'_>),
) -> HashMap<SocketAddr, (Arc<ServiceEntry>, u16, Arc<Endpoint>)> {
    let mut all = HashMap::with_capacity(mesh.workloads.len());
    // Those of the mesh's services, which come after, go before them.
    for host in hosts {
        all.extend(
            external::captured_endpoints(host)
                .map(|(port, endpoint)| (endpoint.address, (Arc::clone(host), port, Arc::clone(endpoint)))),
        );
    }
    for service in mesh.services.values() {
        let Some(entry) = services.get(&service.key) else { continue };
        // An address of another network is another host's here, or nobody's.
        let near = |workload: &&Arc<Workload>| matches!(ways.to(workload), Ok(Way::Direct));
        let hbone = entry.workloads.iter().filter(|workload| workload.tunnel == Tunnel::Hbone);
        for workload in hbone.filter(near) {
            for (port, compiled) in service.ports.iter().zip(&entry.ports) {
                let preferred = workload.endpoint(port);
                // They are in the order of their places.
                let found =
                    compiled.endpoints.binary_search_by(|known| known.place().cmp(&(preferred, None)));
                let Ok(known) = found.map(|index| &compiled.endpoints[index]) else { continue };
                for address in workload.endpoints(port) {
                    let endpoint = at_address(known, address);
                    all.insert(address, (Arc::clone(entry), compiled.port, endpoint));
                }
            }
        }
    }
    all
}

/// The same endpoint under another of its addresses; the agent is dialled at that address too.
fn at_address(known: &Arc<Endpoint>, address: SocketAddr) -> Arc<Endpoint> {
    let transport = match &known.transport {
        _ if known.address == address => return Arc::clone(known),
        Transport::Hbone(agent) => {
            Transport::Hbone(Agent::direct(SocketAddr::new(address.ip(), agent.address.port())))
        }
        other => other.clone(),
    };
    Arc::new(Endpoint {
        address,
        transport,
        origin: known.origin,
        workload: Arc::clone(&known.workload),
        labels: known.labels.clone(),
        locality: known.locality.clone(),
        weight: known.weight,
        health: known.health,
        state: Arc::clone(&known.state),
    })
}

/// Where callers of this host reach a service of this host: its delivery address and the advertised ones.
fn captured(local: &[Arc<LocalEndpoint>]) -> HashMap<SocketAddr, Arc<LocalEndpoint>> {
    let both = |local: &Arc<LocalEndpoint>| {
        let places = local.delivers_at().into_iter().chain([local.advertised]);
        let owner = Arc::clone(local);
        places.map(move |address| (address, Arc::clone(&owner))).collect::<Vec<_>>()
    };
    of_programs(local).flat_map(both).collect()
}

/// Those behind which a program is: a gateway has nothing that could be gone round.
fn of_programs(local: &[Arc<LocalEndpoint>]) -> impl Iterator<Item = &Arc<LocalEndpoint>> {
    local.iter().filter(|local| local.gateway.is_none())
}

/// Ports that belong to one service of this host alone, at whatever address of the host.
fn captured_ports(local: &[Arc<LocalEndpoint>]) -> HashMap<u16, Arc<LocalEndpoint>> {
    let mut owners: HashMap<u16, Option<Arc<LocalEndpoint>>> = HashMap::new();
    for endpoint in of_programs(local) {
        let delivered_here =
            endpoint.deliver.ip().is_loopback() || endpoint.deliver.ip() == endpoint.advertised.ip();
        let ports = [Some(endpoint.advertised.port()), delivered_here.then(|| endpoint.deliver.port())];
        for port in ports.into_iter().flatten() {
            let owner = owners.entry(port).or_insert_with(|| Some(Arc::clone(endpoint)));
            if owner.as_ref().is_some_and(|owner| owner.service != endpoint.service) {
                *owner = None;
            }
        }
    }
    owners.into_iter().filter_map(|(port, owner)| Some((port, owner?))).collect()
}

/// The identity that peers without a server name reach at each address: the only one there, or the one that was
/// registered as the address's default.
fn unnamed(
    registrations: &[Arc<LocalService>],
    local: &[Arc<LocalEndpoint>],
    host: &Host,
) -> HashMap<IpAddr, Identity> {
    let mut at: HashMap<IpAddr, Vec<&Identity>> = HashMap::new();
    for endpoint in local {
        let identities = at.entry(endpoint.advertised.ip()).or_default();
        if !identities.contains(&&endpoint.identity) {
            identities.push(&endpoint.identity);
        }
    }
    let chosen = |address: &IpAddr| {
        let mut defaults = registrations
            .iter()
            .filter(|local| local.default_for_address == DefaultForAddress::Yes)
            .filter(|local| local.addresses(&host.addresses).contains(address));
        let default = defaults.next().filter(|_| defaults.next().is_none())?;
        let of_default = |endpoint: &&Arc<LocalEndpoint>| endpoint.service == default.key;
        local.iter().find(of_default).map(|endpoint| endpoint.identity.clone())
    };
    at.into_iter()
        .filter_map(|(address, identities)| match identities[..] {
            [only] => Some((address, only.clone())),
            _ => chosen(&address).map(|identity| (address, identity)),
        })
        .collect()
}
