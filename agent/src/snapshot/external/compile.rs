//! From hosts of ServiceEntries to what callers need of them.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use baremesh_model::mesh::Mesh;
use baremesh_model::name::{Key, Label};
use baremesh_model::service_entry::{
    Address, Endpoints, EntryEndpoint, ExternalHost, HostPort, Location, Resolution, hosts,
};
use baremesh_model::virtual_service::HostPattern;
use baremesh_model::workload::{OF_CATALOG, Tunnel, Workload, selects};

use super::super::endpoint::{Agent, Origin};
use super::super::views::Callers;
use super::super::ways::{Way as Reached, Ways};
use super::super::{Endpoint, EndpointState, LocalEndpoint, PortEntry, ServiceEntry, Transport};
use super::{External, Way};
use crate::resolution::Resolved;

/// One host as the mesh has it, ready to be compiled.
pub struct Host<'a> {
    host: ExternalHost,
    mesh: &'a Mesh,
    resolved: &'a Resolved,
}

/// Every host that some caller of this host sees.
pub fn of_mesh<'a>(
    mesh: &'a Mesh,
    namespaces: &[&Label],
    resolved: &'a Resolved,
) -> impl Iterator<Item = Host<'a>> + use<'a> {
    let all = hosts(&mesh.service_entries, &mesh.config.virtual_ranges);
    let seen = |host: &ExternalHost| {
        let visibility = &host.entries[0].export_to;
        namespaces.iter().any(|namespace| visibility.includes(namespace))
    };
    let all: Vec<_> = all.into_values().filter(seen).collect();
    all.into_iter().map(move |host| Host { host, mesh, resolved })
}

/// What was learnt of an endpoint, by its address.
type State<'a> = &'a dyn Fn(SocketAddr) -> Arc<EndpointState>;

/// The services of this host at their advertised addresses, and the ways from this host.
type Here<'a> = (&'a HashMap<SocketAddr, Arc<LocalEndpoint>>, &'a Ways<'a>);

impl Host<'_> {
    /// Its key.
    pub(in crate::snapshot) fn key(&self) -> &Key {
        &self.host.key
    }

    /// The host with its ports and endpoints, as callers of this host call it.
    pub(in crate::snapshot) fn compiled(
        &self,
        callers: &Callers,
        here: Here<'_>,
        former: Option<&ServiceEntry>,
    ) -> ServiceEntry {
        let (name, external) = (Arc::clone(&self.host.name), self.external());
        let known: HashMap<SocketAddr, &Arc<EndpointState>> = former
            .into_iter()
            .flat_map(|former| former.ports.iter().flat_map(|port| &port.endpoints))
            .map(|endpoint| (endpoint.address, &endpoint.state))
            .collect();
        let state: State<'_> = &|at| known.get(&at).map(|state| Arc::clone(state)).unwrap_or_default();
        let port = |port: &HostPort| PortEntry {
            port: port.port.port.get(),
            protocol: port.port.protocol,
            endpoints: self.endpoints(port, here, state),
        };
        let ports: Vec<PortEntry> = self.host.ports.iter().map(port).collect();
        ServiceEntry {
            views: callers.views_of_external(
                (&self.host.key, &name),
                &ports,
                &external.subject_alt_names,
                former.map(|former| &former.views),
            ),
            ports,
            targets: self.host.ports.iter().map(|port| port.port.target_port.get()).collect(),
            external: Some(external),
            // What ServiceEntries select is told to every host.
            elsewhere: None,
            called: former.map(|former| Arc::clone(&former.called)).unwrap_or_default(),
            identity: self.mesh.identity_of(&self.host.as_service()),
            addresses: self.host.virtual_addresses.clone(),
            out_of_reach: Vec::new(),
            service: self.host.as_service(),
            workloads: Box::default(),
            key: self.host.key.clone(),
            host: name,
        }
    }

    fn external(&self) -> External {
        let first = &self.host.entries[0];
        let way = |port: &HostPort| match port.entry.resolution {
            Resolution::None => Way::OriginalDestination,
            Resolution::DynamicDns => Way::AskedName(pattern(&self.host.name)),
            Resolution::Static | Resolution::Dns | Resolution::DnsRoundRobin => Way::Endpoints,
        };
        let is_static = |port: &HostPort| {
            port.entry.resolution == Resolution::Static
                && matches!(port.entry.endpoints, Endpoints::Listed(_))
        };
        External {
            visibility: first.export_to.clone(),
            location: first.location,
            subject_alt_names: first.subject_alt_names.clone(),
            addresses: self.host.addresses.clone(),
            ways: self.host.ports.iter().map(way).collect(),
            statics: self.host.ports.iter().map(is_static).collect(),
        }
    }

    /// The endpoints of a port. Of the mesh's workloads with an agent only those are among them that show the one identity
    /// that is expected.
    fn endpoints(
        &self,
        port: &HostPort,
        (advertised, ways): Here<'_>,
        state: State<'_>,
    ) -> Vec<Arc<Endpoint>> {
        let entry = &port.entry;
        let mut endpoints: Vec<Endpoint> = match &entry.endpoints {
            _ if matches!(entry.resolution, Resolution::None | Resolution::DynamicDns) => Vec::new(),
            Endpoints::Listed(listed) => {
                let itself = EntryEndpoint::of_name(Arc::clone(&self.host.name));
                let own = entry.resolution.is_dns() && listed.is_empty();
                let all = listed.iter().chain(own.then_some(&itself));
                all.flat_map(|endpoint| self.listed(port, endpoint, state)).collect()
            }
            Endpoints::Selected(labels) => {
                let workloads = self.mesh.workloads.values();
                // Who may write into a catalog does not get the calls of a host by the labels that he writes there.
                let chosen = workloads.filter(|workload| {
                    workload.key.namespace == entry.key.namespace
                        && selects(labels, &workload.labels)
                        && !workload.labels.contains_key(OF_CATALOG)
                });
                chosen
                    .filter_map(|workload| self.selected(port, workload, (advertised, ways), state))
                    .collect()
            }
        };
        endpoints.sort_by_key(|endpoint| endpoint.address);
        endpoints.dedup_by_key(|endpoint| endpoint.address);
        endpoints.into_iter().map(Arc::new).collect()
    }

    fn listed(&self, port: &HostPort, endpoint: &EntryEndpoint, state: State<'_>) -> Vec<Endpoint> {
        let (addresses, origin): (&[IpAddr], _) = match &endpoint.address {
            Address::Ip(address) => (std::slice::from_ref(address), Origin::Given),
            Address::Name(name) => (self.resolved.addresses(name), Origin::Dns),
        };
        let most = if port.entry.resolution == Resolution::DnsRoundRobin { 1 } else { usize::MAX };
        let number = endpoint.port(&port.port);
        let at = |address: &IpAddr| {
            let address = SocketAddr::new(*address, number);
            Endpoint {
                address,
                transport: Transport::Plain,
                origin,
                workload: Arc::clone(&self.host.name),
                labels: endpoint.labels.clone(),
                locality: endpoint.locality.clone(),
                weight: endpoint.weight,
                health: Default::default(),
                state: state(address),
            }
        };
        addresses.iter().take(most).map(at).collect()
    }

    fn selected(
        &self,
        port: &HostPort,
        workload: &Workload,
        (advertised, ways): Here<'_>,
        state: State<'_>,
    ) -> Option<Endpoint> {
        if !matches!(ways.to(workload), Ok(Reached::Direct)) {
            tracing::warn!(
                host = %self.host.key,
                workload = %workload.key,
                "left out: it is in another network, where gateways lead to services of the mesh alone"
            );
            return None;
        }
        let address = workload.endpoint(&port.port);
        let transport = match (advertised.get(&address), workload.tunnel) {
            (Some(local), _) if local.gateway.is_none() => Transport::Local(Arc::clone(local)),
            (_, Tunnel::Plain) => Transport::Plain,
            (_, Tunnel::Hbone) => {
                let service = self.mesh.services.values().find(|service| workload.serves(service));
                let shown = service.map(|service| self.mesh.identity_of(service));
                let wanted = self.host.entries[0].identity();
                if port.entry.location == Location::External || shown.is_none() || shown != wanted {
                    tracing::warn!(
                        host = %self.host.key,
                        workload = %workload.key,
                        "left out: it has an agent, and `subjectAltNames` of the MESH_INTERNAL entry does not name the identity that it shows"
                    );
                    return None;
                }
                Transport::Hbone(Agent::direct(SocketAddr::new(address.ip(), ways.hbone_port)))
            }
        };
        Some(Endpoint {
            address,
            transport,
            origin: Origin::Given,
            workload: workload.key.name.as_str().into(),
            labels: workload.labels.clone(),
            locality: workload.locality.clone(),
            weight: workload.weight,
            health: workload.health,
            state: state(address),
        })
    }
}

fn pattern(name: &Arc<str>) -> HostPattern {
    match name.strip_prefix('*') {
        Some(suffix) => HostPattern::Suffix(suffix.into()),
        None => HostPattern::Exact(Arc::clone(name)),
    }
}
