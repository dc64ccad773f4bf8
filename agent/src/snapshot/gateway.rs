//! Gateways of this host: which hosts leave the mesh through each of their ports, as the Gateways say that select them. That
//! a service of this host is a gateway at all is its own registration's to say.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use baremesh_model::authorization::{Carried, Hello};
use baremesh_model::gateway::{Carries, Server, ServerHost};
use baremesh_model::mesh::Mesh;
use baremesh_model::name::{Domain, Key};
use baremesh_model::virtual_service::{Gateway, HostName, HostPattern, Routes, Routing};
use baremesh_model::workload::Labels;

use super::external::Way;
use super::{Endpoint, ServiceEntry, Snapshot, Transport};
use crate::proxy::error::ProxyError;
use crate::registration::{LocalService, Serves};

/// One port of a gateway.
#[derive(Debug)]
pub struct GatewayPort {
    /// The gateway.
    pub service: Key,
    /// The port that callers name.
    pub port: u16,
    /// What tells which host is meant.
    pub carries: Carries,
    /// The gateway's labels, as routes match them.
    pub labels: Labels,
    /// Hosts that leave through it: exact ones first, then the longest star.
    listings: Vec<Listing>,
    domain: Domain,
}

/// Hosts that leave through a port.
#[derive(Debug)]
pub struct Listing {
    /// The Gateway that lists them, as VirtualServices name it.
    pub gateway: Gateway,
    /// The server's name, or its port's, where it has one.
    pub server: Option<Arc<str>>,
    host: ServerHost,
    /// The hosts with a service's name in full.
    resolved: HostPattern,
}

/// A host as somebody asks a gateway for it.
#[derive(Debug)]
pub struct AskedHost {
    /// In lower case, without the dot of the root.
    pub text: String,
    name: HostName,
    /// Whether it is spelled as a service of the mesh that there is not. A host outside of two labels would be found by that too,
    /// past policies that name it.
    is_nobody: bool,
}

impl GatewayPort {
    /// What the mesh's Gateways have a gateway with these labels carry at a port.
    pub fn new(mesh: &Mesh, (service, labels): (&Key, &Labels), port: u16, carries: Carries) -> Self {
        let domain = mesh.config.domain.clone();
        let selected = mesh.gateways.iter().filter(|gateway| gateway.selects(labels));
        let mut listings: Vec<_> = selected
            .flat_map(|gateway| {
                let (key, domain) = (&gateway.key, &domain);
                let here =
                    move |server: &&Server| server.port.get() == port && server.protocol.carries() == carries;
                gateway.servers.iter().filter(here).flat_map(move |server| {
                    let server_name = server.name.clone().or_else(|| server.port_name.clone());
                    server.hosts.iter().map(move |host| Listing {
                        gateway: Gateway::Named(key.clone()),
                        server: server_name.clone(),
                        host: host.clone(),
                        resolved: host.host.resolved(&key.namespace, domain),
                    })
                })
            })
            .collect();
        let rank = |listing: &Listing| {
            let is_star = !matches!(listing.host.host, HostPattern::Exact(_));
            (is_star, Reverse(listing.host.host.length()))
        };
        // Stable: of equals the first by the Gateways' keys.
        listings.sort_by_key(rank);
        Self { service: service.clone(), port, carries, labels: labels.clone(), listings, domain }
    }

    /// A host that somebody asks for, whether or not there is such a service.
    fn asked(&self, host: &str) -> AskedHost {
        let text = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let name = HostName::resolve(&text, &self.service.namespace, &self.domain);
        AskedHost { text, name, is_nobody: false }
    }

    /// What lists a host, the most special first; where bytes name none, everything that the port has.
    pub fn listed<'a>(&'a self, asked: Option<&'a AskedHost>) -> impl Iterator<Item = &'a Listing> {
        let lists = move |listing: &&Listing| match asked {
            Some(host) => listing.lists(host),
            None => self.carries == Carries::Bytes || listing.host.host == HostPattern::Any,
        };
        self.listings.iter().filter(lists)
    }

    /// Routes that hold here for a host, each with the Gateway that it is bound to, in the order in which they are tried.
    pub fn routes<'a, 'r>(
        &'a self,
        routing: &'r Routing,
        asked: Option<&'a AskedHost>,
    ) -> Vec<(&'a Gateway, &'r Arc<Routes>)> {
        let mut all: Vec<(&Gateway, &Arc<Routes>)> = Vec::new();
        if routing.is_empty() {
            return all;
        }
        for listing in self.listed(asked) {
            let bound: Vec<_> = match asked {
                Some(host) => {
                    routing.at_gateway(&self.service.namespace, &listing.gateway, &host.name).collect()
                }
                None => {
                    let is_for = |hosts: &[HostPattern]| listing.covers(hosts);
                    routing.of_gateway(&self.service.namespace, &listing.gateway, is_for)
                }
            };
            for routes in bound {
                let is_new = |(gateway, known): &(&Gateway, &Arc<Routes>)| {
                    **gateway != listing.gateway || known.key != routes.key
                };
                if listing.host.takes_from(&routes.key.namespace) && all.iter().all(is_new) {
                    all.push((&listing.gateway, routes));
                }
            }
        }
        all
    }

    /// Why what was let through is not any more; nothing where it still is.
    pub fn lists_no_longer(&self, carried: Carried<'_>, hello: &Hello) -> Option<String> {
        let asked = match (carried, hello) {
            // A connection between two requests asks for nothing.
            (Carried::Requests, _) => return None,
            // Its name is not known yet.
            (Carried::Bytes, Hello::Pending) => return None,
            (Carried::Request(request), _) => Some(self.asked(request.head.host())),
            (Carried::Bytes, Hello::Named(name)) => Some(self.asked(name)),
            (Carried::Bytes, _) => None,
        };
        match self.listed(asked.as_ref()).next() {
            Some(_) => None,
            None => Some(self.unlisted(asked.as_ref()).to_string()),
        }
    }

    /// That no Gateway has a host leave here.
    pub fn unlisted(&self, asked: Option<&AskedHost>) -> ProxyError {
        ProxyError::NotAtGateway { gateway: self.service.clone(), port: self.port, host: in_words(asked) }
    }

    /// That a host may leave here, and nothing says where it is.
    pub fn no_way(&self, asked: Option<&AskedHost>, why: &'static str) -> ProxyError {
        ProxyError::NoWayFromGateway {
            gateway: self.service.clone(),
            port: self.port,
            host: in_words(asked),
            why,
        }
    }
}

fn in_words(asked: Option<&AskedHost>) -> String {
    match asked {
        Some(host) if !host.text.is_empty() => format!("`{}`", host.text),
        Some(_) | None => "a call that names no host".to_owned(),
    }
}

impl Listing {
    fn lists(&self, host: &AskedHost) -> bool {
        let is_meant = self.host.host.matches_text(&host.text) || self.resolved.matches(&host.name);
        is_meant && !host.is_nobody
    }

    /// Whether a VirtualService for these hosts is for some that leave here.
    fn covers(&self, hosts: &[HostPattern]) -> bool {
        hosts.iter().any(|host| self.host.host.covers(host) || self.resolved.covers(host))
    }
}

/// Services that are gateways: registered as such on this host, or with an agent at an endpoint that a Gateway selects.
pub(super) fn gateways_among(
    mesh: &Mesh,
    registrations: &[Arc<LocalService>],
    services: &HashMap<Key, Arc<ServiceEntry>>,
) -> HashSet<Key> {
    let here = registrations.iter().filter(|local| local.serves == Serves::Gateway);
    let mut all: HashSet<Key> = here.map(|local| local.key.clone()).collect();
    if mesh.gateways.is_empty() {
        return all;
    }
    let is_selected = |endpoint: &Arc<Endpoint>| {
        matches!(endpoint.transport, Transport::Hbone(_))
            && mesh.gateways.iter().any(|gateway| gateway.selects(&endpoint.labels))
    };
    let selected = services
        .values()
        .filter(|service| service.ports.iter().any(|port| port.endpoints.iter().any(is_selected)));
    all.extend(selected.map(|service| service.key.clone()));
    all
}

/// No VirtualService and no ServiceEntry.
const NOTHING_SAYS: &str =
    "no VirtualService bound to the Gateway takes it, and no ServiceEntry has it with that port";
/// `resolution: NONE`.
const WHERE_IT_WAS_GOING: &str = "its ServiceEntry has resolution NONE, and at a gateway nobody knows where its caller was going: set another";

impl Snapshot {
    /// Whether a service is a gateway: Gateways select it, or it is registered on this host as one.
    pub fn is_gateway(&self, service: &Key) -> bool {
        self.gateway_services.contains(service)
    }

    /// A host that somebody asks a gateway for. One with the full name of a service of the mesh is that or nobody.
    pub fn asked_at(&self, gateway: &GatewayPort, host: &str) -> AskedHost {
        let mut asked = gateway.asked(host);
        let own = asked.text.strip_suffix(gateway.domain.as_str()).is_some_and(|rest| rest.ends_with('.'));
        if own || asked.text.ends_with(".svc.cluster.local") {
            let key = Key::resolve(&asked.text, &gateway.service.namespace, &gateway.domain);
            asked.is_nobody = key.is_ok_and(|key| !self.services.contains_key(&key));
        }
        asked
    }

    /// The host itself that somebody asks a gateway for, with the index of its port: a ServiceEntry's, and nothing else. A
    /// service of the mesh is led to by routes alone.
    pub fn itself_from_gateway(
        &self,
        gateway: &GatewayPort,
        asked: Option<&AskedHost>,
    ) -> Result<(&Arc<ServiceEntry>, usize), ProxyError> {
        let found = asked.and_then(|host| {
            let service = self.external.named(&host.text, &gateway.service.namespace)?;
            let mut listed = gateway.listed(asked);
            let counts = listed.any(|listing| listing.host.takes_from(&service.key.namespace));
            Some((service, counts.then(|| service.port_index(gateway.port)).flatten()?))
        });
        found.ok_or_else(|| gateway.no_way(asked, NOTHING_SAYS))
    }

    /// Refuses where nothing goes on to from a gateway of this host, whatever routes say.
    pub fn goes_on(
        &self,
        gateway: &GatewayPort,
        asked: Option<&AskedHost>,
        (service, port): (&ServiceEntry, usize),
    ) -> Result<(), ProxyError> {
        if self.is_gateway(&service.key) {
            let (gateway, to) = (gateway.service.clone(), service.key.clone());
            return Err(ProxyError::GatewayLoop { gateway, to });
        }
        if *service.way(port) == Way::OriginalDestination {
            return Err(gateway.no_way(asked, WHERE_IT_WAS_GOING));
        }
        let (key, number) = (service.key.clone(), service.ports[port].port);
        match self.sidecar_against(self.registration(Some(&gateway.service)), &key, number) {
            Some(sidecar) => {
                Err(ProxyError::NotInSidecar { service: key, port: number, sidecar: sidecar.clone() })
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use baremesh_model::gateway::{Gateway as Resource, ServerProtocol};
    use baremesh_model::mesh::Parts;
    use baremesh_model::name::Label;

    use super::*;

    fn key(text: &str) -> Key {
        let (namespace, name) = text.split_once('/').expect("a key");
        Key::new(Label::new(namespace).expect("a label"), Label::new(name).expect("a label"))
    }

    fn gateway(name: &str, selector: &str, servers: &[(u16, ServerProtocol, &[&str])]) -> Arc<Resource> {
        let host = |text: &&str| {
            let (namespace, name) =
                text.split_once('/').map_or((None, *text), |(space, name)| (Some(space), name));
            ServerHost {
                namespace: namespace.map(|space| Label::new(space).expect("a label")),
                host: HostPattern::new(name).expect("a host"),
            }
        };
        let servers = servers.iter().map(|(port, protocol, hosts)| Server {
            port: NonZeroU16::new(*port).expect("a port"),
            port_name: None,
            protocol: *protocol,
            name: None,
            hosts: hosts.iter().map(host).collect(),
        });
        let selector = Labels::from([("istio".into(), selector.into())]);
        Arc::new(Resource { key: key(name), selector, servers: servers.collect() })
    }

    #[test]
    fn a_host_leaves_where_a_gateway_that_selects_lists_it_at_the_port_and_as_what_it_carries() {
        let (http, tls, tcp) = (ServerProtocol::Http, ServerProtocol::TlsPassthrough, ServerProtocol::Tcp);
        let gateways = vec![
            gateway("a/one", "egressgateway", &[(80, http, &["api.example.com", "*.example.org"])]),
            gateway("a/two", "egressgateway", &[(443, tls, &["*.example.org"]), (80, http, &["*"])]),
            gateway("a/other", "another", &[(80, http, &["else.where"]), (90, http, &["else.where"])]),
            gateway("a/raw", "egressgateway", &[(5432, tcp, &["*"])]),
        ];
        let mesh = Mesh::assemble(Parts { gateways, ..Parts::default() }).expect("a mesh");
        let labels = Labels::from([("istio".into(), "egressgateway".into())]);
        let service = key("mesh-system/egress");
        let check = |port: u16, carries: Carries, host: Option<&str>, expected: &[&str]| {
            let port = GatewayPort::new(&mesh, (&service, &labels), port, carries);
            let asked = host.map(|host| port.asked(host));
            let found: Vec<_> = port.listed(asked.as_ref()).map(|by| by.gateway.to_string()).collect();
            assert_eq!(found, expected, "{host:?} at {} {carries}", port.port);
        };
        check(80, Carries::Requests, Some("API.example.com."), &["a/one", "a/two"]);
        check(80, Carries::Requests, Some("www.example.org"), &["a/one", "a/two"]);
        check(80, Carries::Requests, Some("example.org"), &["a/two"]);
        check(443, Carries::Tls, Some("www.example.org"), &["a/two"]);
        check(443, Carries::Tls, Some("example.com"), &[]);
        check(443, Carries::Tls, None, &[]);
        check(443, Carries::Requests, Some("www.example.org"), &[]);
        check(90, Carries::Requests, Some("else.where"), &[]);
        check(5432, Carries::Bytes, None, &["a/raw"]);
        check(5433, Carries::Bytes, None, &[]);
    }
}
