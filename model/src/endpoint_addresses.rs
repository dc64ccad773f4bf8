//! Where the endpoints of a service are, and nothing else of them: what a host knows of services that it does not call. A
//! connection to the real address of an endpoint is the mesh's all the same, and never leaves in plaintext.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::name::Label;
use crate::service::Service;
use crate::workload::{Tunnel, Workload};

/// Where the endpoints of one service are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndpointAddresses {
    /// Those that are alike in all but their addresses.
    pub groups: Vec<EndpointGroup>,
}

/// Endpoints that are alike in all but their addresses, as most of a service are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointGroup {
    /// How they are reached.
    pub tunnel: Tunnel,
    /// The network that they are in; none: they are reached from everywhere.
    pub network: Option<Label>,
    /// Ports of the service, each with the number that it has there.
    pub ports: Vec<(u16, u16)>,
    /// The addresses of each, the preferred one first.
    pub places: Vec<Box<[IpAddr]>>,
}

/// One port of one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointAddress<'a> {
    /// The port of the service, as callers name it.
    pub port: u16,
    /// Where it is.
    pub address: SocketAddr,
    /// How it is reached.
    pub tunnel: Tunnel,
    /// The network that it is in.
    pub network: Option<&'a Label>,
    /// Whether it is the one that its workload prefers.
    pub preferred: bool,
}

impl EndpointAddresses {
    /// Of a service's workloads; nothing where there are none.
    pub fn of<'a>(service: &Service, workloads: impl IntoIterator<Item = &'a Workload>) -> Option<Self> {
        let mut groups: BTreeMap<_, Vec<Box<[IpAddr]>>> = BTreeMap::new();
        for workload in workloads {
            let number = |port| workload.endpoint(port).port();
            let ports: Vec<_> = service.ports.iter().map(|port| (port.port.get(), number(port))).collect();
            let alike = (workload.tunnel == Tunnel::Plain, workload.network.clone(), ports);
            let place = std::iter::once(&workload.address).chain(&workload.other_addresses).copied();
            groups.entry(alike).or_default().push(place.collect());
        }
        let group = |((plain, network, ports), mut places): ((bool, _, _), Vec<_>)| {
            // A hand-written entry and a registration may name the same place.
            places.sort_unstable();
            places.dedup();
            EndpointGroup {
                tunnel: if plain { Tunnel::Plain } else { Tunnel::Hbone },
                network,
                ports,
                places,
            }
        };
        let groups: Vec<_> = groups.into_iter().map(group).collect();
        (!groups.is_empty()).then_some(Self { groups })
    }

    /// Every port of every endpoint, under each of its addresses.
    pub fn all(&self) -> impl Iterator<Item = EndpointAddress<'_>> {
        self.groups.iter().flat_map(|group| {
            let (tunnel, network) = (group.tunnel, group.network.as_ref());
            group.places.iter().flat_map(move |place| {
                place.iter().enumerate().flat_map(move |(index, address)| {
                    group.ports.iter().map(move |(port, number)| EndpointAddress {
                        port: *port,
                        address: SocketAddr::new(*address, *number),
                        tunnel,
                        network,
                        preferred: index == 0,
                    })
                })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::health::Health;
    use crate::name::Key;
    use crate::service::ServicePort;
    use crate::workload::Locality;

    fn label(text: &str) -> Label {
        Label::new(text).expect("a label")
    }

    fn service() -> Service {
        let port = |name: &str, port: u16, target: u16| ServicePort {
            name: Some(name.into()),
            port: port.try_into().expect("a port"),
            target_port: target.try_into().expect("a port"),
            protocol: Default::default(),
        };
        Service {
            key: Key::new(label("x"), label("a")),
            ports: vec![port("http", 80, 8080), port("admin", 81, 81)],
            selector: None,
            service_account: label("a"),
            addresses: Vec::new(),
            federated: None,
        }
    }

    fn workload(name: &str, addresses: &[&str], tunnel: Tunnel) -> Workload {
        let mut addresses = addresses.iter().map(|address| address.parse().expect("an address"));
        Workload {
            key: Key::new(label("x"), label(name)),
            address: addresses.next().expect("an address"),
            other_addresses: addresses.collect(),
            service: Some(label("a")),
            host: None,
            ports: BTreeMap::new(),
            labels: BTreeMap::new(),
            network: None,
            locality: Locality::default(),
            weight: 1,
            service_account: None,
            tunnel,
            health: Health::Healthy,
        }
    }

    fn check(workloads: &[Workload], groups: usize, expected: &[&str]) {
        let found = EndpointAddresses::of(&service(), workloads).unwrap_or_default();
        let shown: Vec<String> = found
            .all()
            .map(|one| {
                let network = one.network.map_or("-", Label::as_str);
                let mark = if one.preferred { "" } else { "*" };
                format!("{}={}{mark} {:?} {network}", one.port, one.address, one.tunnel)
            })
            .collect();
        assert_eq!((found.groups.len(), shown), (groups, expected.iter().map(ToString::to_string).collect()));
    }

    #[test]
    fn endpoints_that_are_alike_are_one_group() {
        let one = workload("w1", &["10.0.0.1"], Tunnel::Hbone);
        let both = workload("w2", &["10.0.0.2", "fd00::2"], Tunnel::Hbone);
        let plain = workload("w3", &["10.0.0.3"], Tunnel::Plain);
        let far = Workload { network: Some(label("eu")), ..one.clone() };
        let unwell = Workload { health: Health::Unhealthy, weight: 7, ..one.clone() };
        let mapped =
            Workload { ports: [("http".into(), 9.try_into().expect("a port"))].into(), ..one.clone() };
        check(&[], 0, &[]);
        check(&[one, unwell], 1, &["80=10.0.0.1:8080 Hbone -", "81=10.0.0.1:81 Hbone -"]);
        check(
            &[both],
            1,
            &[
                "80=10.0.0.2:8080 Hbone -",
                "81=10.0.0.2:81 Hbone -",
                "80=[fd00::2]:8080* Hbone -",
                "81=[fd00::2]:81* Hbone -",
            ],
        );
        check(
            &[plain, far, mapped],
            3,
            &[
                "80=10.0.0.1:9 Hbone -",
                "81=10.0.0.1:81 Hbone -",
                "80=10.0.0.1:8080 Hbone eu",
                "81=10.0.0.1:81 Hbone eu",
                "80=10.0.0.3:8080 Plain -",
                "81=10.0.0.3:81 Plain -",
            ],
        );
    }
}
