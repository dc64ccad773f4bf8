//! What a snapshot asks the capture rules for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use baremesh_model::name::Key;
use baremesh_model::outbound::OutboundPolicy;
use baremesh_model::peer_authentication::MtlsMode;

use super::{LocalEndpoint, Snapshot, Transport};
use crate::attribution::Matcher;
use crate::capture::held::Held;
use crate::capture::{
    AgentPorts, CapturePlan, Containers, DnsCapture, Interface, LocalService, Outbound, Strictness, Units,
    WhenGone,
};
use crate::registration::{self, Contained};

/// What the rules depend on besides the mesh: this host's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureSettings {
    /// The uid that the agent runs as.
    pub agent_uid: u32,
    /// The agent's ports.
    pub ports: AgentPorts,
    /// Whether DNS is captured.
    pub dns: DnsCapture,
    /// How much of what leaves the host is captured.
    pub outbound: Outbound,
    /// Ports of sshd besides 22.
    pub ssh_ports: BTreeSet<u16>,
    /// Bridges whose containers are captured, none that leads outside.
    pub interfaces: BTreeSet<Interface>,
}

fn when_gone(registered: registration::WhenGone) -> WhenGone {
    match registered {
        registration::WhenGone::Open => WhenGone::Open,
        registration::WhenGone::Closed => WhenGone::Closed,
    }
}

fn of_containers<'a>(containers: impl Iterator<Item = &'a registration::Container>) -> Containers {
    let mut found = Containers::new();
    for own in containers {
        found.entry(own.interface.clone()).or_default().extend(&own.addresses);
    }
    found
}

impl Snapshot {
    /// The plan for this host: virtual addresses, remote endpoints, and the services of the host itself.
    pub fn capture_plan(&self, settings: &CaptureSettings) -> CapturePlan {
        let ranges = &self.mesh.config.virtual_ranges;
        CapturePlan {
            virtual_v4: ranges.v4,
            virtual_v6: ranges.v6,
            endpoints: self.remote_endpoints(),
            external: self.external_addresses(),
            local: self.local_services(),
            agent_uid: settings.agent_uid,
            ports: settings.ports,
            dns: settings.dns,
            outbound: settings.outbound,
            ssh_ports: settings.ssh_ports.clone(),
            held: Held::default(),
            held_when_gone: Held::default(),
            units: self.units(),
            bridges: settings
                .interfaces
                .iter()
                .map(|name| (name.clone(), self.containers_on(name)))
                .collect(),
            uncaptured: of_containers(
                self.containers().filter(|own| !settings.interfaces.contains(&own.interface)),
            ),
        }
    }

    /// What describes the processes that are held to the registry, and the service that they are.
    pub fn held(&self) -> impl Iterator<Item = (&Matcher, &registration::LocalService)> {
        let all = self.registrations.iter().zip(&self.sources);
        let held = all.filter(|(_, source)| source.outbound == OutboundPolicy::RegistryOnly);
        held.filter_map(|(registered, _)| Some((registered.matcher.as_ref()?, registered.as_ref())))
    }

    /// The services that are told by their units.
    fn units(&self) -> Units {
        let all = self.registrations.iter().zip(&self.sources);
        let told =
            all.filter(|(registered, _)| registered.matcher.as_ref().and_then(Matcher::unit).is_some());
        told.map(|(registered, source)| {
            let held = source.outbound == OutboundPolicy::RegistryOnly;
            (registered.key.clone(), held.then(|| when_gone(registered.when_gone)))
        })
        .collect()
    }

    /// The containers that are held to the registry, on whatever interface; with `Some`, those of them with which that
    /// becomes of them while the agent is gone.
    pub fn held_containers(&self, when_gone: Option<registration::WhenGone>) -> Containers {
        let all = self.registrations.iter().zip(&self.sources);
        let held = all.filter(|(registered, source)| {
            source.outbound == OutboundPolicy::RegistryOnly
                && when_gone.is_none_or(|wanted| registered.when_gone == wanted)
        });
        of_containers(
            held.filter_map(|(registered, _)| registered.container.as_ref()).flat_map(Contained::held),
        )
    }

    /// Those that are nobody at this time are among them: what holds a container holds them too.
    fn containers(&self) -> impl Iterator<Item = &registration::Container> {
        self.registrations.iter().filter_map(|local| local.container.as_ref()).flat_map(Contained::held)
    }

    fn containers_on(&self, interface: &Interface) -> BTreeSet<IpAddr> {
        let on_it = self.containers().filter(|own| own.interface == *interface);
        on_it.flat_map(|own| own.addresses.iter().copied()).collect()
    }

    fn remote_endpoints(&self) -> BTreeSet<SocketAddr> {
        let remote = |endpoint: &super::Endpoint| matches!(endpoint.transport, Transport::Hbone(_));
        self.endpoints
            .iter()
            .filter(|(_, (.., endpoint))| remote(endpoint))
            .map(|(address, _)| address)
            .chain(self.unheld.keys())
            .copied()
            .collect()
    }

    fn local_services(&self) -> Vec<LocalService> {
        let mut by_service: BTreeMap<&Key, Vec<&LocalEndpoint>> = BTreeMap::new();
        for local in self.advertised.values().filter(|local| local.gateway.is_none()) {
            by_service.entry(&local.service).or_default().push(local);
        }
        by_service.into_iter().map(|(key, endpoints)| self.local_service(key, &endpoints)).collect()
    }

    fn local_service(&self, key: &Key, endpoints: &[&LocalEndpoint]) -> LocalService {
        let both =
            endpoints.iter().flat_map(|local| local.delivers_at().into_iter().chain([local.advertised]));
        // A port that belongs to this service alone is captured at every address of the host, those that appear
        // later included; one that is shared only at the exact addresses.
        let alone = |address: &SocketAddr| {
            self.captured_ports.get(&address.port()).is_some_and(|local| local.service == *key)
                && (self.is_here(address.ip()) || address.ip().is_unspecified())
        };
        let (by_port, exact): (Vec<_>, Vec<_>) = both.partition(alone);
        let strict = endpoints.iter().any(|local| local.mode == MtlsMode::Strict);
        let registered = self.registrations.iter().find(|registered| registered.key == *key);
        let when_gone = registered.map_or(registration::WhenGone::Closed, |registered| registered.when_gone);
        LocalService {
            name: key.clone(),
            ports: by_port.iter().map(SocketAddr::port).collect(),
            addresses: exact.into_iter().collect(),
            strictness: if strict { Strictness::Strict } else { Strictness::Permissive },
            when_gone: self::when_gone(when_gone),
        }
    }
}
