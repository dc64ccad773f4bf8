//! How workloads are reached from this host: at their own address, through a gateway of their network, or not at all.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use baremesh_model::mesh::Mesh;
use baremesh_model::name::Label;
use baremesh_model::network::Network;
use baremesh_model::workload::{Tunnel, Workload};

use super::Host;

/// An endpoint that is not called from here, because no way leads there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutOfReach {
    /// The workload's name.
    pub workload: Arc<str>,
    /// The network that it is in.
    pub network: Label,
    /// Why.
    pub reason: &'static str,
}

impl fmt::Display for OutOfReach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { workload, network, reason } = self;
        write!(f, "{workload} is in the network {network}, and {reason}")
    }
}

/// How a workload is reached from this host.
pub(super) enum Way {
    /// At its own address.
    Direct,
    /// By the gateways of its network.
    Through(Arc<Network>),
}

/// The ways from this host.
pub(super) struct Ways<'a> {
    own: Option<&'a Label>,
    networks: HashMap<&'a Label, Arc<Network>>,
    pub(super) hbone_port: u16,
}

impl<'a> Ways<'a> {
    pub(super) fn new(mesh: &'a Mesh, host: &'a Host, hbone_port: u16) -> Self {
        let networks = &mesh.config.networks;
        let networks = networks.iter().map(|network| (&network.name, Arc::new(network.clone()))).collect();
        Self { own: host.network_name(), networks, hbone_port }
    }

    /// Whether addresses of a network are dialled from here.
    pub(super) fn is_near(&self, network: Option<&Label>) -> bool {
        network.is_none_or(|network| Some(network) == self.own)
    }

    /// How a workload is reached, or why it is not.
    pub(super) fn to(&self, workload: &Workload) -> Result<Way, OutOfReach> {
        let Some(network) = workload.network.as_ref().filter(|network| Some(*network) != self.own) else {
            return Ok(Way::Direct);
        };
        let reason = match (self.networks.get(network), workload.tunnel) {
            (Some(gateways), Tunnel::Hbone) => return Ok(Way::Through(Arc::clone(gateways))),
            (Some(_), Tunnel::Plain) => "no agent is there, and gateways lead to agents alone",
            (None, _) => "`networks` of MeshConfig names no gateway that leads there",
        };
        let workload = workload.key.name.as_str().into();
        Err(OutOfReach { workload, network: network.clone(), reason })
    }
}

/// The addresses of the agents in a network.
pub(super) fn agents_of(mesh: &Mesh, network: &Label) -> HashSet<IpAddr> {
    let within = |workload: &&Arc<Workload>| {
        workload.tunnel == Tunnel::Hbone && workload.network.as_ref() == Some(network)
    };
    let workloads = mesh.workloads.values().filter(within);
    workloads
        .flat_map(|workload| std::iter::once(workload.address).chain(workload.other_addresses.clone()))
        .collect()
}

/// The addresses of the gateways of a network: those where others reach them, and those within that their hosts register.
pub(super) fn gateways_of(mesh: &Mesh, network: &Label) -> HashSet<IpAddr> {
    let own = mesh.config.networks.iter().filter(|known| known.name == *network);
    let gateways: Vec<_> = own.flat_map(|network| &network.gateways).collect();
    let is_theirs = |workload: &&Arc<Workload>| {
        workload.tunnel == Tunnel::Hbone
            && workload.network.as_ref() == Some(network)
            && gateways.iter().any(|gateway| workload.host.as_ref() == Some(&gateway.host))
    };
    let within = mesh.workloads.values().filter(is_theirs);
    within
        .flat_map(|workload| std::iter::once(workload.address).chain(workload.other_addresses.clone()))
        .chain(gateways.iter().map(|gateway| gateway.address.ip()))
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::snapshot::tests::{host, mesh};
    use crate::snapshot::{Host, HostNetwork, NetworkRole, Route, Snapshot, Transport};

    use super::*;

    const MESH: &str = r#"
[[MeshConfig]]
networks = [{ name = "eu", gateways = [{ host = "gw", address = "203.0.113.5" }] }]

[[Service]]
name = "orders"
ports = [{ port = 80, targetPort = 8080 }]

[[WorkloadEntry]]
name = "near"
service = "orders"
address = "10.0.0.5"
network = "home"
tunnel = "hbone"

[[WorkloadEntry]]
name = "far"
service = "orders"
address = "10.0.0.5"
network = "eu"
tunnel = "hbone"

[[Service]]
name = "edge"
ports = [{ port = 80 }]

[[WorkloadEntry]]
name = "of-gateway"
service = "edge"
host = "gw"
address = "10.0.0.8"
network = "eu"
tunnel = "hbone"

[[WorkloadEntry]]
name = "lost"
service = "orders"
address = "10.0.0.6"
network = "us"
tunnel = "hbone"

[[WorkloadEntry]]
name = "plain"
service = "orders"
address = "10.0.0.7"
network = "eu"
"#;

    fn snapshot(network: &str, role: NetworkRole) -> Snapshot {
        let network = HostNetwork { name: Label::new(network).expect("a label"), role };
        let host = Host { network: Some(network), ..host() };
        Snapshot::build(&mesh(MESH), &[], &host, 15008, None).expect("a snapshot")
    }

    #[test]
    fn an_endpoint_of_another_network_is_reached_through_a_gateway_or_not_at_all() {
        let snapshot = snapshot("home", NetworkRole::Member);
        let orders = snapshot.services().find(|service| service.key.name.as_str() == "orders");
        let orders = orders.expect("the service");
        let shown: Vec<String> = orders.ports[0]
            .endpoints
            .iter()
            .map(|endpoint| {
                let network = endpoint.network().map_or("home", Label::as_str);
                format!("{} {network} {}", endpoint.workload, endpoint.address)
            })
            .collect();
        assert_eq!(shown, ["near home 10.0.0.5:8080", "far eu 10.0.0.5:8080"], "one address, two hosts");
        let lost: Vec<String> = orders.out_of_reach.iter().map(ToString::to_string).collect();
        assert_eq!(lost.len(), 2);
        assert!(lost[0].contains("names no gateway") && lost[1].contains("no agent is there"), "{lost:?}");
        let dialled = snapshot.route("10.0.0.5:8080".parse().expect("an address")).expect("a route");
        let Route::Endpoint(.., endpoint) = dialled else { panic!("the near one is captured") };
        assert_eq!(&*endpoint.workload, "near");
        assert!(matches!(&endpoint.transport, Transport::Hbone(agent) if agent.beyond.is_none()));
        for other in ["10.0.0.6:8080", "10.0.0.7:8080"] {
            let route = snapshot.route(other.parse().expect("an address")).expect("a route");
            assert!(matches!(route, Route::Passthrough), "{other} is another host's here");
        }
    }

    #[test]
    fn a_gateway_leads_from_outside_to_agents_of_its_network() {
        let (outside, gateway) = ("192.0.2.1", snapshot("eu", NetworkRole::Gateway));
        let leads = |snapshot: &Snapshot, to: &str, from: &str| {
            snapshot.leads_to(to.parse().expect("an address"), from.parse().expect("an address"))
        };
        assert!(leads(&gateway, "10.0.0.5", outside));
        // A member may come from where everybody behind the same address translation does.
        assert!(leads(&gateway, "10.0.0.5", "10.0.0.5"));
        for (to, from) in [
            ("10.0.0.7", outside),
            ("10.0.0.6", outside),
            ("10.0.0.1", outside),
            ("127.0.0.1", outside),
            // Gateways: another by where it is reached from outside and where it is within, and this one.
            ("10.0.0.5", "203.0.113.5"),
            ("10.0.0.5", "10.0.0.8"),
            ("10.0.0.5", "10.0.0.1"),
            ("10.0.0.5", "127.0.0.1"),
        ] {
            assert!(!leads(&gateway, to, from), "{to} from {from}");
        }
        assert!(!leads(&snapshot("eu", NetworkRole::Member), "10.0.0.5", outside));
    }
}
