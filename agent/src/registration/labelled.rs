//! Where the containers are that registrations name by label, and who they are: what engines tell is joined with what is
//! registered. A container of which two registrations could say that it is theirs is neither's.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::check::Check;
use super::container::{Contained, Container, Named, Standing};
use super::file::nowhere;
use super::group::Grouping;
use super::{Certain, ContainerPort, LocalPort, LocalService};
use crate::capture::Interface;
use crate::containers::{Following, Known, Running};

/// The registrations with the containers that they name. Those that name none by label come back as they are, but for
/// addresses that a container of another registration has too.
pub fn in_containers(registrations: &[Arc<LocalService>], known: &Known) -> Vec<Arc<LocalService>> {
    let claims = Claims::new(registrations, known);
    registrations.iter().enumerate().map(|(index, local)| claims.settle(index, local)).collect()
}

/// A container that runs, and the registrations that name it.
struct Seen<'a> {
    running: &'a Running,
    /// Where it is. What an engine that is followed says of an address goes before what another one said.
    at: Vec<(&'a Interface, IpAddr)>,
    following: Following,
    /// Registrations by their index.
    named_by: BTreeSet<usize>,
}

impl Seen<'_> {
    fn addresses(&self) -> impl Iterator<Item = &IpAddr> {
        self.at.iter().map(|(_, address)| address)
    }
}

struct Claims<'a> {
    registrations: &'a [Arc<LocalService>],
    seen: Vec<Seen<'a>>,
    /// Whether at least one engine is followed.
    is_followed: bool,
    /// The registrations that each address could be.
    owners: HashMap<IpAddr, BTreeSet<usize>>,
    /// Addresses of containers that more than one could be.
    contested: HashSet<IpAddr>,
}

impl<'a> Claims<'a> {
    fn new(registrations: &'a [Arc<LocalService>], known: &'a Known) -> Self {
        let with_index = || registrations.iter().enumerate();
        let selectors: Vec<_> = with_index()
            .filter_map(|(index, local)| Some((index, local.container.as_ref()?.selector()?)))
            .collect();
        let mut seen = Vec::new();
        let mut owners: HashMap<IpAddr, BTreeSet<usize>> = HashMap::new();
        for (index, local) in with_index() {
            if let Some(Contained { named: Named::At(own), .. }) = &local.container {
                for address in &own.addresses {
                    owners.entry(*address).or_default().insert(index);
                }
            }
        }
        let followed = known.followed_addresses();
        for engine in known.engines.values() {
            let stands =
                |address: &IpAddr| engine.following == Following::Followed || !followed.contains(address);
            for running in &engine.containers {
                let named_by = selectors.iter().filter(|(_, selector)| selector.matches(&running.labels));
                let named_by: BTreeSet<_> = named_by.map(|(index, _)| *index).collect();
                let on =
                    |place: &'a Container| place.addresses.iter().map(|address| (&place.interface, *address));
                let at = running.places.iter().flat_map(on).filter(|(_, address)| stands(address)).collect();
                let one = Seen { running, at, following: engine.following, named_by };
                one.addresses().for_each(|address| owners.entry(*address).or_default().extend(&one.named_by));
                seen.push(one);
            }
        }
        let is_contested = |one: &&Seen<'_>| {
            !one.named_by.is_empty() && one.addresses().any(|address| owners[address].len() > 1)
        };
        let contested = seen.iter().filter(is_contested).flat_map(|one| one.addresses().copied()).collect();
        let is_followed = known.engines.values().any(|engine| engine.following == Following::Followed);
        Self { registrations, seen, is_followed, owners, contested }
    }

    /// The registration with what is known of its container.
    fn settle(&self, index: usize, local: &Arc<LocalService>) -> Arc<LocalService> {
        let Some(own) = &local.container else { return Arc::clone(local) };
        let (sources, suspended, ports) = match &own.named {
            Named::At(at) => {
                let at: Vec<_> = at.addresses.iter().map(|address| (&at.interface, *address)).collect();
                let (suspended, sources): (Vec<_>, Vec<_>) =
                    at.into_iter().partition(|(_, address)| self.contested.contains(address));
                (places(sources), places(suspended), local.ports.clone())
            }
            Named::Labelled(_) => {
                let (sources, suspended) = self.places_of(index);
                (sources, suspended, self.ports_of(index, local))
            }
        };
        let standing = match self.conflict(index, &ports) {
            Some(with) => Standing::Contested(with.into()),
            None if !sources.is_empty() => Standing::Found,
            None if !suspended.is_empty() || !self.is_followed => Standing::Unfollowed,
            None => Standing::Absent,
        };
        let ports = match standing {
            Standing::Contested(_) => ports.into_iter().map(uncertain).collect(),
            Standing::Found | Standing::Absent | Standing::Unfollowed => ports,
        };
        with(local, Contained { sources, suspended, standing, ..own.clone() }, ports)
    }

    fn containers_of(&self, index: usize) -> impl Iterator<Item = &Seen<'a>> {
        self.seen.iter().filter(move |one| one.named_by.contains(&index))
    }

    /// Where a registration's containers are: certain to be it, and not.
    fn places_of(&self, index: usize) -> (Vec<Container>, Vec<Container>) {
        let (mut certain, mut not) = (Vec::new(), Vec::new());
        for one in self.containers_of(index) {
            for (interface, address) in &one.at {
                let is_certain = one.following == Following::Followed && !self.contested.contains(address);
                let list = if is_certain { &mut certain } else { &mut not };
                list.push((*interface, *address));
            }
        }
        (places(certain), places(not))
    }

    /// A registration's ports, delivered to the container that was made first of those that are certain to be it.
    fn ports_of(&self, index: usize, local: &LocalService) -> Vec<LocalPort> {
        let mut choices: Vec<_> = self
            .containers_of(index)
            .filter_map(|one| {
                let address = first_address(&one.at)?;
                let rank = match one.following {
                    _ if self.contested.contains(&address) => 3,
                    Following::Followed => 0,
                    Following::Lingering => 1,
                    Following::Lost => 2,
                };
                Some((rank, one.running.created, &one.running.id, address))
            })
            .collect();
        choices.sort();
        let chosen = choices.first().map(|(rank, .., address)| (*rank < 2, *address));
        let follow = |port: &LocalPort| {
            let Some(own) = port.of_container else { return port.clone() };
            let (certain, deliver) = match chosen {
                Some((true, address)) => (Certain::Yes, SocketAddr::new(address, own.port.get())),
                Some((false, address)) => (Certain::No, SocketAddr::new(address, own.port.get())),
                None => (Certain::No, nowhere(own.port.get())),
            };
            LocalPort { deliver, of_container: Some(ContainerPort { certain, ..own }), ..port.clone() }
        };
        local.ports.iter().map(follow).collect()
    }

    /// Why a registration's container is not certain to be it, where another registration has it as well.
    fn conflict(&self, index: usize, ports: &[LocalPort]) -> Option<String> {
        let key = |other: usize| &self.registrations[other].key;
        for one in &self.seen {
            let shared = one
                .addresses()
                .find(|address| self.contested.contains(*address) && self.owners[*address].contains(&index));
            let Some(address) = shared else { continue };
            let other = self.owners[address].iter().find(|other| **other != index);
            return Some(match other {
                Some(other) => format!(
                    "the container {} at {address} is {} too: nobody could tell them apart, so it is neither; change the labels of one",
                    one.running.name,
                    key(*other)
                ),
                None => format!(
                    "the container {} at {address} is another service's at another of its addresses, so it is neither",
                    one.running.name
                ),
            });
        }
        for port in ports.iter().filter(|port| port.of_container.is_some()) {
            let others = self.registrations.iter().enumerate().filter(|(other, _)| *other != index);
            let fixed = |other: &LocalPort| other.of_container.is_none() && other.deliver == port.deliver;
            for (_, other) in others {
                if other.ports.iter().any(fixed) {
                    return Some(format!("{} is delivered to {} already", other.key, port.deliver));
                }
            }
        }
        None
    }
}

fn uncertain(port: LocalPort) -> LocalPort {
    let of_container = port.of_container.map(|own| ContainerPort { certain: Certain::No, ..own });
    LocalPort { of_container, ..port }
}

/// The address that a container is called at: the first bridge's in the order of names, and IPv4 before IPv6.
fn first_address(at: &[(&Interface, IpAddr)]) -> Option<IpAddr> {
    at.iter()
        .min_by_key(|(bridge, address)| (*bridge, address.is_ipv6(), *address))
        .map(|(_, address)| *address)
}

fn places<'i>(addresses: impl IntoIterator<Item = (&'i Interface, IpAddr)>) -> Vec<Container> {
    let mut on: BTreeMap<_, BTreeSet<IpAddr>> = BTreeMap::new();
    for (interface, address) in addresses {
        on.entry(interface.clone()).or_default().insert(address);
    }
    on.into_iter()
        .map(|(interface, addresses)| Container { interface, addresses: addresses.into_iter().collect() })
        .collect()
}

/// The registration with its container and ports, looked at where it is now.
fn with(local: &Arc<LocalService>, own: Contained, ports: Vec<LocalPort>) -> Arc<LocalService> {
    let moved = ports != local.ports;
    let mut changed = LocalService { ports, container: Some(own), ..LocalService::clone(local) };
    let written = changed.container.as_ref().and_then(|own| own.check.clone());
    if let Some(written) = written.filter(|_| moved) {
        // It was read with the same ports before, whatever their address: nothing new can be wrong with it.
        if let Ok(check) = Check::of(&written, &changed.ports, None) {
            let check = Some(Arc::new(check));
            if let Some(group) = changed.group {
                changed.group = Some(Grouping { check: check.clone(), ..group });
            }
            changed.check = check;
        }
    }
    if moved {
        changed.health = changed.first_health(Some(local));
    }
    if changed == **local { Arc::clone(local) } else { Arc::new(changed) }
}

#[cfg(test)]
mod tests;
