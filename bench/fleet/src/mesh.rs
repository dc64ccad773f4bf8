//! What the hosts of the mesh run: services spread over namespaces, endpoints over hosts, so that each host runs as many and
//! no two of one service.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;

use anyhow::{Result, bail};
use baremesh_model::health::Health;
use baremesh_model::name::{Key, Label};
use baremesh_model::service::Protocol;
use baremesh_model::workload::{Labels, Locality};
use baremesh_registry::control::registration::{Port, Registration};

/// Namespaces that the services are spread over.
const NAMESPACES: usize = 20;
/// The first address of the hosts: one of 100.64.0.0/10, which the front gives to this process.
const FIRST: u32 = u32::from_be_bytes([100, 64, 0, 1]);
/// Most hosts: as many addresses as there are in the block.
const MAX_AGENTS: usize = 1 << 20;
/// Most services: each has a port of its own.
const MAX_SERVICES: usize = 50_000;
/// Most endpoints of one host: what a registration list takes.
const MAX_OF_HOST: usize = 256;

/// How large the mesh is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Hosts with an agent.
    pub agents: usize,
    /// Services.
    pub services: usize,
    /// Endpoints over all services.
    pub endpoints: usize,
    /// Of how many services each agent asks for the endpoints; of all where none is given.
    pub subscribed: Option<usize>,
}

impl Size {
    /// Whether such a mesh can be made.
    pub fn check(self) -> Result<()> {
        let Self { agents, services, endpoints, .. } = self;
        if !(1..=MAX_AGENTS).contains(&agents) || !(1..=MAX_SERVICES).contains(&services) {
            bail!("1 to {MAX_AGENTS} agents and 1 to {MAX_SERVICES} services are needed");
        }
        let of_host = endpoints.div_ceil(agents);
        if endpoints < services || of_host > MAX_OF_HOST.min(services) {
            bail!(
                "{endpoints} endpoints: each service needs one, and a host has {MAX_OF_HOST} at most, each of another service"
            );
        }
        Ok(())
    }

    /// The services that an endpoint of a host is of, by their numbers.
    fn services_of(self, agent: usize) -> impl Iterator<Item = usize> {
        let first = |agent: usize| (agent * self.endpoints).div_ceil(self.agents);
        (first(agent)..first(agent + 1)).map(move |endpoint| endpoint % self.services)
    }

    /// What a host registers.
    pub fn registrations(self, agent: usize) -> Vec<Registration> {
        self.services_of(agent).map(|service| registration(service, agent)).collect()
    }

    /// The services whose endpoints an agent asks for, as they are written in a subscription.
    pub fn subscription(self, agent: usize) -> Vec<String> {
        match self.subscribed {
            None => vec!["*".to_owned()],
            Some(count) => self.called(agent, count).map(|service| key(service).to_string()).collect(),
        }
    }

    /// How many endpoints an agent is sent.
    pub fn expected(self, agent: usize) -> usize {
        match self.subscribed {
            None => self.endpoints,
            Some(count) => {
                let of = |service: usize| (self.endpoints - service).div_ceil(self.services);
                self.called(agent, count).map(of).sum()
            }
        }
    }

    fn called(self, agent: usize, count: usize) -> impl Iterator<Item = usize> {
        (0..count.min(self.services)).map(move |n| (agent * count + n) % self.services)
    }
}

/// A service's name.
pub fn key(service: usize) -> Key {
    let label = |text: String| Label::new(&text).expect("letters and digits");
    Key::new(label(format!("t{}", service % NAMESPACES)), label(format!("s{service}")))
}

/// A host's name.
pub fn host(agent: usize) -> Label {
    Label::new(&format!("h{agent}")).expect("letters and digits")
}

/// A host's address.
pub fn address(agent: usize) -> Ipv4Addr {
    Ipv4Addr::from(FIRST + u32::try_from(agent).expect("at most MAX_AGENTS"))
}

/// A service as a host registers it.
pub fn registration(service: usize, agent: usize) -> Registration {
    let port = |number: usize| {
        u16::try_from(number).ok().and_then(NonZeroU16::new).expect("at most MAX_SERVICES and a thousand")
    };
    Registration {
        service: key(service),
        ports: vec![Port {
            port: port(8080),
            target_port: port(1_000 + service),
            protocol: Some(Protocol::Http),
            name: Some("http".into()),
        }],
        addresses: vec![IpAddr::V4(address(agent))],
        labels: Labels::from([
            ("app".into(), key(service).name.as_str().into()),
            ("version".into(), format!("v{}", agent % 3).into()),
        ]),
        network: None,
        locality: Locality::parse(&format!("eu/zone-{}", agent % 3)),
        weight: 1,
        service_account: None,
        health: Health::Healthy,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn check(agents: usize, services: usize, endpoints: usize) {
        let size = Size { agents, services, endpoints, subscribed: Some(3) };
        size.check().expect("it can be made");
        let (mut total, mut of_service) = (0, BTreeMap::<usize, usize>::new());
        for agent in 0..agents {
            let here: Vec<_> = size.services_of(agent).collect();
            assert_eq!(here.iter().collect::<BTreeSet<_>>().len(), here.len(), "twice on host {agent}");
            total += here.len();
            here.into_iter().for_each(|service| *of_service.entry(service).or_default() += 1);
        }
        assert_eq!((total, of_service.len()), (endpoints, services));
        for agent in [0, 1, agents - 1] {
            let expected: usize = size.called(agent, 3).map(|service| of_service[&service]).sum();
            assert_eq!(size.expected(agent), expected);
        }
    }

    #[test]
    fn every_endpoint_is_somewhere_and_no_host_has_two_of_one_service() {
        check(2000, 1000, 20_000);
        check(20, 10, 100);
        check(7, 13, 50);
        assert!(Size { agents: 1, services: 2, endpoints: 3, subscribed: None }.check().is_err());
        assert!(Size { agents: 10, services: 20, endpoints: 10, subscribed: None }.check().is_err());
    }
}
