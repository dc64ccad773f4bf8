//! What a caller of this host reaches: which services its Sidecar has it call, and whether it goes to where the mesh leads
//! nobody.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use baremesh_model::mesh::Mesh;
use baremesh_model::name::{Key, Label};
use baremesh_model::outbound::OutboundPolicy;
use baremesh_model::service_entry::{Address, Endpoints, hosts};
use baremesh_model::sidecar::Scope;
use baremesh_model::virtual_service::Visibility;
use ipnet::IpNet;

use super::{LocalEndpoint, Route, ServiceEntry, Snapshot, Source, Transport};
use crate::jwt::TokenRules;
use crate::proxy::error::ProxyError;
use crate::registration::LocalService;
use crate::telemetry::metrics::Party;

/// Which services are called, as a Sidecar says.
#[derive(Debug, Clone)]
pub struct Calls {
    /// The Sidecar.
    sidecar: Key,
    /// Services with those of their ports that are called.
    ports: HashMap<Key, Vec<u16>>,
}

/// Real addresses that the registry has, and that no agent serves.
#[derive(Debug, Default)]
pub(super) struct Listed {
    /// Endpoints of services.
    endpoints: HashSet<SocketAddr>,
    /// Of ServiceEntries: their addresses, and endpoints that stand in them.
    external: Vec<External>,
}

#[derive(Debug)]
struct External {
    block: IpNet,
    port: u16,
    seen_by: Visibility,
}

impl Listed {
    pub(super) fn new(mesh: &Mesh, services: &HashMap<Key, Arc<ServiceEntry>>) -> Self {
        let endpoints = services.values().flat_map(|service| &service.ports).flat_map(|port| &port.endpoints);
        let plain = endpoints.filter(|endpoint| matches!(endpoint.transport, Transport::Plain));
        let mut listed =
            Self { endpoints: plain.map(|endpoint| endpoint.address).collect(), ..Self::default() };
        for entry in mesh.service_entries.values() {
            let mut add = |block, port| {
                let seen_by = entry.export_to.clone();
                listed.external.push(External { block, port, seen_by });
            };
            for port in &entry.ports {
                entry.addresses.iter().for_each(|block| add(*block, port.port.get()));
                if let Endpoints::Listed(endpoints) = &entry.endpoints {
                    for endpoint in endpoints {
                        if let Address::Ip(address) = endpoint.address {
                            add(address.into(), endpoint.port(port));
                        }
                    }
                }
            }
        }
        listed
    }

    fn has(&self, destination: SocketAddr, namespace: &Label) -> bool {
        self.endpoints.contains(&destination)
            || self.external.iter().any(|external| {
                external.port == destination.port()
                    && external.block.contains(&destination.ip())
                    && external.seen_by.includes(namespace)
            })
    }
}

impl Snapshot {
    /// The route of a caller of this host, a registration by its index or the host, if it may go there. A service that is none of
    /// those that the caller's Sidecar names is no service to it; and what is one of the mesh's never goes there in
    /// plaintext instead.
    pub fn within_sidecar(&self, caller: Option<usize>, route: Route) -> Result<Route, ProxyError> {
        let (service, port) = match &route {
            Route::Service(service, port) => (&service.key, service.ports[*port].port),
            Route::Endpoint(service, port, _) => (&service.key, *port),
            Route::Local(local) => (&local.service, self.port_of(local)),
            Route::Passthrough => return Ok(route),
        };
        match self.sidecar_against(caller, service, port) {
            Some(sidecar) => {
                let (service, sidecar) = (service.clone(), sidecar.clone());
                Err(ProxyError::NotInSidecar { service, port, sidecar })
            }
            None => Ok(route),
        }
    }

    /// The Sidecar by which a caller of this host does not call that port of a service; nothing where it does.
    pub fn sidecar_against(&self, caller: Option<usize>, service: &Key, port: u16) -> Option<&Key> {
        let calls = self.sources[caller?].calls.as_ref()?;
        let called = calls.ports.get(service).is_some_and(|ports| ports.contains(&port));
        (!called).then_some(&calls.sidecar)
    }

    /// Whether a caller of this host may go to where the mesh leads nobody: a registration by its index, or the host.
    pub fn lets_out(&self, caller: Option<usize>, destination: SocketAddr) -> bool {
        let Some(index) =
            caller.filter(|index| self.sources[*index].outbound == OutboundPolicy::RegistryOnly)
        else {
            return true;
        };
        self.listed.has(destination, &self.registrations[index].key.namespace)
    }

    /// The port that callers name, of what is delivered here.
    fn port_of(&self, local: &LocalEndpoint) -> u16 {
        let advertised = local.advertised.port();
        let registered = self.registrations.iter().find(|registered| registered.key == local.service);
        let mut ports = registered.into_iter().flat_map(|registered| &registered.ports);
        ports.find(|port| port.target_port.get() == advertised).map_or(advertised, |port| port.port.get())
    }
}

/// A service of this host as a caller.
pub(super) fn source(local: &LocalService, mesh: &Mesh, tokens: Option<Arc<TokenRules>>) -> Source {
    let config = &mesh.config;
    let (identity, labels) = (local.identity(&config.trust_domain), local.labels());
    let party = Party::registered(&identity, None, &labels);
    let namespace = &local.key.namespace;
    let scope = Scope::of(&mesh.sidecars, (namespace, &labels), &config.root_namespace);
    let outbound = scope.outbound.unwrap_or(config.outbound);
    let calls = scope.egress.map(|(sidecar, _)| {
        let services = mesh.services.values().map(|service| {
            let ports = service.ports.iter().map(|port| port.port.get());
            (service.key.clone(), ports.collect::<Vec<_>>())
        });
        let external = hosts(&mesh.service_entries, &config.virtual_ranges).into_values().map(|host| {
            let ports = host.ports.iter().map(|port| port.port.port.get()).collect::<Vec<_>>();
            (host.key, ports)
        });
        let called = services.chain(external).filter_map(|(key, mut ports)| {
            ports.retain(|port| scope.calls((&key, *port), namespace, &config.domain));
            (!ports.is_empty()).then_some((key, ports))
        });
        Calls { sidecar: sidecar.clone(), ports: called.collect() }
    });
    Source { identity, labels, party, outbound, calls, tokens }
}
