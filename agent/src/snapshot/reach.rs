//! What a caller of this host reaches: which services its Sidecar has it call, and whether it goes to where the mesh leads
//! nobody.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use baremesh_model::mesh::Mesh;
use baremesh_model::name::{Key, Label};
use baremesh_model::outbound::OutboundPolicy;
use baremesh_model::service_entry::{Address, Endpoints, hosts};
use baremesh_model::sidecar::Scope;
use baremesh_model::virtual_service::Visibility;
use baremesh_model::workload::Tunnel;
use ipnet::IpNet;

use super::ways::Ways;
use super::{Endpoint, LocalEndpoint, Route, ServiceEntry, Snapshot, Source, Transport};
use crate::jwt::TokenRules;
use crate::proxy::error::ProxyError;
use crate::registration::{LocalService, Serves};
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
    /// Endpoints of services, with the services and their ports.
    endpoints: HashMap<SocketAddr, Vec<(Key, u16)>>,
    /// Of ServiceEntries: their addresses, and endpoints that stand in them.
    external: Vec<External>,
}

#[derive(Debug)]
struct External {
    block: IpNet,
    port: u16,
    seen_by: Visibility,
    /// The entry's hosts, and their port that it is of.
    hosts: (Arc<[Key]>, u16),
}

impl Listed {
    pub(super) fn new(mesh: &Mesh, services: &HashMap<Key, Arc<ServiceEntry>>, ways: &Ways<'_>) -> Self {
        let mut listed = Self::default();
        // What a ServiceEntry's names resolve to is reached by the name: who else is at such an address is not known.
        for service in services.values().filter(|service| service.external.is_none()) {
            for port in &service.ports {
                let plain = |endpoint: &&Arc<Endpoint>| matches!(endpoint.transport, Transport::Plain);
                for endpoint in port.endpoints.iter().filter(plain) {
                    let of = listed.endpoints.entry(endpoint.address).or_default();
                    of.push((service.key.clone(), port.port));
                }
            }
        }
        for (key, addresses) in &mesh.unheld {
            let plain =
                addresses.all().filter(|one| one.tunnel == Tunnel::Plain && ways.is_near(one.network));
            for one in plain {
                listed.endpoints.entry(one.address).or_default().push((key.clone(), one.port));
            }
        }
        for entry in mesh.service_entries.values() {
            let hosts: Arc<[Key]> = entry.host_names().map(|host| entry.key_of(&host)).collect();
            let mut add = |block, port, of| {
                let (seen_by, hosts) = (entry.export_to.clone(), (Arc::clone(&hosts), of));
                listed.external.push(External { block, port, seen_by, hosts });
            };
            for port in &entry.ports {
                let number = port.port.get();
                entry.addresses.iter().for_each(|block| add(*block, number, number));
                if let Endpoints::Listed(endpoints) = &entry.endpoints {
                    for endpoint in endpoints {
                        if let Address::Ip(address) = endpoint.address {
                            add(address.into(), endpoint.port(port), number);
                        }
                    }
                }
            }
        }
        listed
    }

    /// Whether somebody of a namespace, who calls those services that `calls` says, goes there.
    fn has(&self, destination: SocketAddr, namespace: &Label, calls: impl Fn(&Key, u16) -> bool) -> bool {
        let mut services = self.endpoints.get(&destination).into_iter().flatten();
        services.any(|(service, port)| calls(service, *port))
            || self.external.iter().any(|external| {
                let (hosts, port) = &external.hosts;
                external.port == destination.port()
                    && external.block.contains(&destination.ip())
                    && external.seen_by.includes(namespace)
                    && hosts.iter().any(|host| calls(host, *port))
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
            Route::Endpoint(service, port, _) | Route::Unheld(service, port) => (&service.key, *port),
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

    /// Whether a caller of this host reaches the registry alone: a registration by its index, or the host.
    pub fn is_held(&self, caller: Option<usize>) -> bool {
        caller.is_some_and(|index| self.sources[index].outbound == OutboundPolicy::RegistryOnly)
    }

    /// Whether a caller of this host may go to where the mesh leads nobody: a registration by its index, or the host.
    pub fn lets_out(&self, caller: Option<usize>, destination: SocketAddr) -> bool {
        let Some(index) = caller.filter(|_| self.is_held(caller)) else { return true };
        let calls = |service: &Key, port| self.sidecar_against(caller, service, port).is_none();
        self.listed.has(destination, &self.registrations[index].key.namespace, calls)
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
    // A gateway leads nowhere but where the registry does.
    let outbound = match local.serves {
        Serves::Gateway => OutboundPolicy::RegistryOnly,
        Serves::Program => scope.outbound.unwrap_or(config.outbound),
    };
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

#[cfg(test)]
mod tests;
