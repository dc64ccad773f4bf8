//! Names of the mesh, as the DNS server answers them: services, their namespaces, `_NAME._tcp` of a service's ports,
//! and virtual addresses backwards.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use baremesh_model::name::{Key, default_namespace};
use baremesh_model::service::ServicePort;

use super::{ServiceEntry, Snapshot};
use crate::dns::{Found, Ports};

/// Whether services answer to names outside the mesh's domain too: `orders` (of the namespace `default`) and
/// `orders.shop`. A resolver asks for the first only when its own search list has no such host; the second comes before
/// the list, and hides a public name where a namespace is called as a top-level domain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShortNames {
    /// They do.
    Answered,
    /// Such names are none of the mesh's business.
    Left,
}

/// What follows the name of a service in the cluster whose configuration was brought along.
const CLUSTER: &str = "svc.cluster.local";

impl Snapshot {
    /// What the DNS server answers for `name`, lower case, without the final dot.
    pub fn find_name(&self, name: &str, short: ShortNames) -> Found {
        let domain = self.mesh.config.domain.as_str();
        let full = is_in(name, domain) || is_in(name, CLUSTER);
        let may_be_service = full || short == ShortNames::Answered;
        let found =
            may_be_service.then(|| self.find_service(name).or_else(|| self.find_port(name))).flatten();
        match found {
            Some(found) => found,
            // A namespace is a name with others below it: saying that it does not exist would deny those too.
            None if is_in(name, domain) && self.is_namespace(name) => EMPTY,
            None if is_in(name, domain) => Found::NoSuchName,
            None => self.external.answered(name).map_or(Found::NotOurs, |host| host.found()),
        }
    }

    /// The full name behind a virtual address.
    pub fn find_address(&self, address: IpAddr) -> Option<String> {
        self.virtual_addresses.get(&address).map(|service| service.host.to_string())
    }

    fn named(&self, name: &str) -> Option<&Arc<ServiceEntry>> {
        let key = Key::resolve(name, &default_namespace(), &self.mesh.config.domain).ok()?;
        self.services.get(&key)
    }

    fn find_service(&self, name: &str) -> Option<Found> {
        let (v4, v6) = addresses(self.named(name)?);
        Some(Found::Service { v4, v6 })
    }

    /// `_NAME._tcp.SERVICE`: NAME is a port's name, its number, or what it speaks; a service of the mesh has no port but
    /// for TCP.
    fn find_port(&self, name: &str) -> Option<Found> {
        if name.strip_prefix("_tcp.").is_some_and(|service| self.named(service).is_some()) {
            return Some(EMPTY);
        }
        let (label, rest) = name.strip_prefix('_')?.split_once('.')?;
        let service = self.named(rest.strip_prefix("_tcp.")?)?;
        let has_name = |port: &&ServicePort| match &port.name {
            Some(name) if name.eq_ignore_ascii_case(label) => true,
            _ => port.protocol.name() == label || port.port.get().to_string() == label,
        };
        let declared = self.mesh.services.get(&service.key)?.ports.iter();
        let ports: Vec<u16> = declared.filter(has_name).map(|port| port.port.get()).collect();
        if ports.is_empty() {
            return Some(Found::NoSuchName);
        }
        let (v4, v6) = addresses(service);
        Some(Found::Ports(Ports { host: service.host.to_string(), ports, v4, v6 }))
    }

    fn is_namespace(&self, name: &str) -> bool {
        let domain = self.mesh.config.domain.as_str();
        let space = name.strip_suffix(domain).map(|rest| rest.trim_end_matches('.'));
        space.is_some_and(|space| {
            let within = |key: &Key| key.as_host().is_none() && key.namespace.as_str() == space;
            space.is_empty() || self.services.keys().any(within)
        })
    }
}

/// The name exists, and has no records of its own.
const EMPTY: Found = Found::Service { v4: Vec::new(), v6: Vec::new() };

/// Whether a name in lower case is the domain or in it.
fn is_in(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn addresses(service: &ServiceEntry) -> (Vec<Ipv4Addr>, Vec<Ipv6Addr>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for address in &service.addresses {
        match address {
            IpAddr::V4(address) => v4.push(*address),
            IpAddr::V6(address) => v6.push(*address),
        }
    }
    (v4, v6)
}
