//! The services that are known, and how much of each: the endpoints of those that this host calls, and where the others are.

use baremesh_model::health::Health;

use super::Agent;
use crate::admin::report::{EndpointReport, EndpointsReport, ServiceReport};
use crate::config::SourceConfig;
use crate::snapshot::{ServiceEntry, Snapshot, Transport};

impl Agent {
    /// Of how many services the endpoints are held, where they are asked for.
    pub(super) fn endpoints(&self, snapshot: &Snapshot) -> Option<EndpointsReport> {
        if matches!(self.config.source, SourceConfig::Files(_)) {
            return None;
        }
        let services = || snapshot.services().filter(|service| service.external.is_none());
        let asked = self.demand.asked();
        Some(EndpointsReport {
            all: asked.all,
            services: services().count(),
            held: services().filter(|service| service.elsewhere.is_none()).count(),
            called: asked.called,
            declared: asked.declared,
        })
    }

    pub(super) fn services(&self) -> Vec<ServiceReport> {
        let snapshot = self.publisher.snapshot().load_full();
        let mut all: Vec<_> = snapshot.services().map(|service| report(service)).collect();
        all.sort_by(|a, b| a.service.cmp(&b.service));
        all
    }
}

fn report(service: &ServiceEntry) -> ServiceReport {
    let known = service.ports.iter().flat_map(|port| &port.endpoints);
    let known =
        known.filter(|one| service.elsewhere.is_none() || matches!(one.transport, Transport::Local(_)));
    let endpoints = known.clone().map(|endpoint| EndpointReport {
        workload: endpoint.workload.to_string(),
        address: endpoint.address,
        transport: endpoint.transport.word().to_owned(),
        health: match endpoint.health {
            Health::Healthy if service.is_ejected(endpoint.address) => "ejected",
            health => health.word(),
        }
        .to_owned(),
        active: endpoint.state.active(),
    });
    let is_known = |address| known.clone().any(|endpoint| endpoint.address == address);
    let elsewhere = service.preferred_elsewhere().filter(|one| !is_known(one.address));
    let elsewhere = elsewhere.map(|one| EndpointReport {
        workload: String::new(),
        address: one.address,
        transport: one.tunnel.word().to_owned(),
        health: "not-asked".to_owned(),
        active: 0,
    });
    ServiceReport {
        service: service.key.to_string(),
        host: service.host.to_string(),
        identity: service.identity.to_string(),
        addresses: service.addresses.clone(),
        ports: service.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol)).collect(),
        endpoints: endpoints.chain(elsewhere).collect(),
    }
}
