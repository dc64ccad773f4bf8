//! Where Consul is: no endpoint of the mesh. Were one taken there, agents would lead what programs ask of Consul elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use super::super::instance::of_node;
use super::super::settings::Settings;
use super::{CONSUL_ITSELF, instances};

/// The ports of Consul's servers and agents among each other, and those that it is asked at (HTTP, HTTPS, gRPC).
const PORTS: [std::ops::RangeInclusive<u16>; 2] = [8300..=8302, 8500..=8503];

/// Consul's servers, and what this host asks.
pub(super) struct ConsulItself {
    hosts: BTreeSet<IpAddr>,
    asked: BTreeSet<SocketAddr>,
}

impl ConsulItself {
    /// As the settings and the catalog say it.
    pub(super) fn of(inputs: &BTreeMap<String, Value>, settings: &Settings) -> Self {
        let named = settings.addresses.iter().chain([&settings.agent]);
        let place = |(host, port): (&str, u16)| {
            Some(SocketAddr::new(host.parse::<IpAddr>().ok()?.to_canonical(), port))
        };
        let asked: BTreeSet<SocketAddr> =
            named.filter_map(|address| place((&address.host, address.port))).collect();
        let servers = instances(inputs).filter(|(name, _)| *name == CONSUL_ITSELF);
        let servers = servers.flat_map(|(_, all)| all).flat_map(|one| of_node(&one));
        Self { hosts: servers.chain(asked.iter().map(SocketAddr::ip)).collect(), asked }
    }

    /// Whether that is Consul.
    pub(super) fn is_at(&self, at: SocketAddr) -> bool {
        self.asked.contains(&at)
            || (self.hosts.contains(&at.ip()) && PORTS.iter().any(|ports| ports.contains(&at.port())))
    }
}
