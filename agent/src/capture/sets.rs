//! Named sets and their elements. Endpoints come and go all day while the rules stay as they are: a change of
//! elements alone is a transaction of a few lines, and loads in milliseconds.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};

use baremesh_model::name::Key;
use ipnet::IpNet;

use super::plan::{CapturePlan, LocalService, Strictness};
use crate::attribution::sock_diag::dump::Family;

/// Our table's name, in the family `inet`.
pub(super) const TABLE: &str = "baremesh";

/// The set that holds what the other sets and the rules should hash to, as comments of its elements.
pub(super) const SEAL: &str = "seal";

/// The element of the seal that speaks of the other sets' elements.
pub(super) const SEAL_OF_ELEMENTS: u32 = 1;

/// The element of the seal that speaks of chains, rules and set definitions.
pub(super) const SEAL_OF_STRUCTURE: u32 = 2;

/// How the names of sets begin whose elements are on other hosts.
const ENDPOINTS: &str = "endpoints";
const EXTERNAL: &str = "external";

/// So many elements go into one transaction where the kernel bounds a netlink message by the socket's send buffer
/// (a user namespace): 212,992 bytes by default, and an element takes less than 200.
pub(super) const ELEMENTS_PER_TRANSACTION: usize = 1_000;

/// What a set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Element {
    /// A port, or a number of the seal.
    Number(u32),
    /// An address and a port.
    Socket(SocketAddr),
    /// A block of addresses and a port.
    Network(IpNet, u16),
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Socket(address) => write!(f, "{} . {}", address.ip(), address.port()),
            Self::Network(network, port) => write!(f, "{network} . {port}"),
        }
    }
}

/// A set's elements, each with its comment.
pub(super) type Elements = BTreeMap<Element, Option<String>>;

/// A named set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NamedSet {
    pub(super) name: String,
    /// The nft type, as `ipv4_addr . inet_service`, and flags behind it.
    pub(super) kind: &'static str,
    pub(super) elements: Elements,
}

impl NamedSet {
    pub(super) fn new(name: &str, kind: &'static str, elements: Elements) -> Self {
        Self { name: name.to_owned(), kind, elements }
    }

    /// A set of ports.
    pub(super) fn of_ports(name: &str, ports: impl IntoIterator<Item = u16>) -> Self {
        let elements = ports.into_iter().map(|port| (Element::Number(port.into()), None)).collect();
        Self::new(name, "inet_service", elements)
    }

    /// Two sets, `{name}4` and `{name}6`, of addresses with ports.
    pub(super) fn of_sockets(name: &str, sockets: &BTreeMap<SocketAddr, Option<String>>) -> [Self; 2] {
        let of = |v4: bool| {
            let chosen = sockets.iter().filter(|(address, _)| address.is_ipv4() == v4);
            chosen.map(|(address, comment)| (Element::Socket(*address), comment.clone())).collect()
        };
        [
            Self::new(&format!("{name}4"), "ipv4_addr . inet_service", of(true)),
            Self::new(&format!("{name}6"), "ipv6_addr . inet_service", of(false)),
        ]
    }
}

/// The sets of a plan, the seal last. What is asked for first when a load is split comes first: what keeps
/// neighbours from going round policy, then the endpoints.
pub(super) fn sets_of(plan: &CapturePlan) -> Vec<NamedSet> {
    let strict = plan.local.iter().filter(|service| service.strictness == Strictness::Strict);
    let mut sets = vec![NamedSet::of_ports("exempt_ports", plan.exempt_ports())];
    sets.push(named_ports("local_ports", plan, &plan.local));
    sets.extend(NamedSet::of_sockets("local", &local_addresses(plan, plan.local.iter())));
    sets.push(NamedSet::of_ports("inbound_ports", inbound_ports(plan, plan.local.iter())));
    sets.push(NamedSet::of_ports("strict_ports", inbound_ports(plan, strict.clone())));
    sets.extend(NamedSet::of_sockets("strict", &local_addresses(plan, strict)));
    sets.extend(endpoints(plan));
    sets.extend(plan.held.set());
    sets.extend(external(plan));
    sets.push(seal(&sets));
    sets
}

/// The endpoints of other hosts.
pub(super) fn endpoints(plan: &CapturePlan) -> [NamedSet; 2] {
    let endpoints = plan.endpoints.iter().filter(|e| plan.capturable(e.ip(), e.port()));
    NamedSet::of_sockets(ENDPOINTS, &endpoints.map(|e| (plain(*e), None)).collect())
}

/// Where hosts of ServiceEntries are reached. What lies within a block for the same port is left out: the kernel takes no
/// intervals that overlap.
pub(super) fn external(plan: &CapturePlan) -> [NamedSet; 2] {
    let all = || plan.external.iter().filter(|(network, port)| plan.capturable(network.addr(), *port));
    let is_within = |(network, port): &(IpNet, u16)| {
        all().any(|(other, of)| of == port && other != network && other.contains(network))
    };
    let of = |v4: bool| {
        let chosen = all().filter(|one| matches!(one.0, IpNet::V4(_)) == v4 && !is_within(one));
        let element = |(network, port): &(IpNet, u16)| match network.prefix_len() == network.max_prefix_len()
        {
            true => Element::Socket(SocketAddr::new(network.addr(), *port)),
            false => Element::Network(*network, *port),
        };
        chosen.map(|one| (element(one), None)).collect()
    };
    [
        NamedSet::new(&format!("{EXTERNAL}4"), "ipv4_addr . inet_service; flags interval", of(true)),
        NamedSet::new(&format!("{EXTERNAL}6"), "ipv6_addr . inet_service; flags interval", of(false)),
    ]
}

/// Exact addresses of services, with their owners' names.
pub(super) fn local_addresses<'a>(
    plan: &CapturePlan,
    services: impl Iterator<Item = &'a LocalService>,
) -> BTreeMap<SocketAddr, Option<String>> {
    let mut found = BTreeMap::new();
    for service in services {
        for address in service.addresses.iter().filter(|a| plan.capturable(a.ip(), a.port())) {
            found.entry(plain(*address)).or_insert_with(|| Some(comment(&service.name)));
        }
    }
    found
}

/// The ports at which services are called from other hosts.
pub(super) fn inbound_ports<'a>(
    plan: &CapturePlan,
    services: impl Iterator<Item = &'a LocalService>,
) -> BTreeSet<u16> {
    let of_service = |service: &'a LocalService| {
        let addresses = service.addresses.iter().filter(|a| plan.capturable(a.ip(), a.port()));
        service.ports.iter().copied().chain(addresses.map(SocketAddr::port))
    };
    services.flat_map(of_service).filter(|port| plan.capturable_port(*port)).collect()
}

fn named_ports(name: &str, plan: &CapturePlan, services: &[LocalService]) -> NamedSet {
    let mut elements = Elements::new();
    for service in services {
        for port in service.ports.iter().filter(|port| plan.capturable_port(**port)) {
            let element = Element::Number((*port).into());
            elements.entry(element).or_insert_with(|| Some(comment(&service.name)));
        }
    }
    NamedSet::new(name, "inet_service", elements)
}

/// A name of two labels has at most 127 bytes, one below what nft takes as a comment.
fn comment(name: &Key) -> String {
    name.to_string()
}

/// An IPv4 address written as IPv6 is an IPv4 packet on the wire, and a scope is not part of one.
pub(super) fn plain(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(v6) => SocketAddr::new(v6.to_ipv4_mapped().map_or(v6.into(), Into::into), address.port()),
        IpAddr::V4(v4) => SocketAddr::new(v4.into(), address.port()),
    }
}

fn seal(sets: &[NamedSet]) -> NamedSet {
    let hash = hash_of_elements(sets.iter().map(|set| (set.name.as_str(), &set.elements)));
    let elements = Elements::from([(Element::Number(SEAL_OF_ELEMENTS), Some(format!("{hash:016x}")))]);
    NamedSet::new(SEAL, "mark", elements)
}

/// What a table's elements hash to, the seal's left out. The order of sets and elements does not count.
pub(super) fn hash_of_elements<'a>(sets: impl Iterator<Item = (&'a str, &'a Elements)>) -> u64 {
    let mut text = String::new();
    let ordered: BTreeMap<&str, &Elements> = sets.filter(|(name, _)| *name != SEAL).collect();
    for (name, elements) in ordered {
        let _ = writeln!(text, "{name}");
        for element in elements.keys() {
            let _ = writeln!(text, "{element}");
        }
    }
    fnv1a(text.as_bytes())
}

/// The 64-bit FNV-1a hash: stable across builds, and enough against changes by accident.
pub(super) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// What it takes to bring `old` to `new`, as one transaction, and how many elements that adds and removes. Both
/// must come from the same rules, and so have the same sets.
pub(super) fn difference(old: &[NamedSet], new: &[NamedSet]) -> (String, usize, usize) {
    let (mut text, mut added, mut removed) = (String::new(), 0, 0);
    for (old, new) in old.iter().zip(new) {
        let gone =
            old.elements.iter().filter(|(element, comment)| new.elements.get(element) != Some(comment));
        let come =
            new.elements.iter().filter(|(element, comment)| old.elements.get(element) != Some(comment));
        let gone: Vec<_> = gone.map(|(element, _)| (element, &None)).collect();
        let come: Vec<_> = come.collect();
        statement(&mut text, "delete", &new.name, &gone);
        statement(&mut text, "add", &new.name, &come);
        if new.name != SEAL {
            (added, removed) = (added + come.len(), removed + gone.len());
        }
    }
    (text, added, removed)
}

/// Places on other hosts.
#[derive(Debug, Default)]
pub(super) struct Destinations {
    sockets: HashSet<SocketAddr>,
    networks: Vec<(IpNet, u16)>,
}

impl Destinations {
    /// Those that `new` captures and `old` does not.
    pub(super) fn between(old: &[NamedSet], new: &[NamedSet]) -> Self {
        let mut found = Self::default();
        for set in new.iter().filter(|set| set.name.starts_with(ENDPOINTS) || set.name.starts_with(EXTERNAL))
        {
            let before = old.iter().find(|old| old.name == set.name);
            let is_new = |element: &&Element| before.is_none_or(|old| !old.elements.contains_key(element));
            for element in set.elements.keys().filter(is_new) {
                match element {
                    Element::Socket(address) => _ = found.sockets.insert(*address),
                    Element::Network(network, port) => found.networks.push((*network, *port)),
                    Element::Number(_) => {}
                }
            }
        }
        found
    }

    /// Whether there are any of the family.
    pub(super) fn are_of(&self, family: Family) -> bool {
        let is_v4 = family == Family::V4;
        self.sockets.iter().any(|address| address.is_ipv4() == is_v4)
            || self.networks.iter().any(|(network, _)| network.addr().is_ipv4() == is_v4)
    }

    pub(super) fn contain(&self, to: SocketAddr) -> bool {
        self.sockets.contains(&to)
            || self.networks.iter().any(|(network, port)| *port == to.port() && network.contains(&to.ip()))
    }
}

/// The elements of sets as `add element` statements, at most `limit` to each of the returned texts.
pub(super) fn loading(sets: &[NamedSet], limit: usize) -> Vec<String> {
    let all: Vec<_> = sets.iter().flat_map(|set| set.elements.iter().map(move |e| (&set.name, e))).collect();
    let chunks = all.chunks(limit).map(|chunk| {
        let mut text = String::new();
        for run in chunk.chunk_by(|(one, _), (next, _)| one == next) {
            let elements: Vec<_> = run.iter().map(|(_, element)| *element).collect();
            statement(&mut text, "add", run[0].0, &elements);
        }
        text
    });
    chunks.collect()
}

fn statement(text: &mut String, verb: &str, set: &str, elements: &[(&Element, &Option<String>)]) {
    if elements.is_empty() {
        return;
    }
    let _ = writeln!(text, "{verb} element inet {TABLE} {set} {{");
    for (element, comment) in elements {
        let _ = match comment {
            Some(comment) => writeln!(text, "\t{element} comment \"{comment}\","),
            None => writeln!(text, "\t{element},"),
        };
    }
    let _ = writeln!(text, "}}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(name: &str, ports: &[u16]) -> NamedSet {
        NamedSet::of_ports(name, ports.iter().copied())
    }

    #[test]
    fn a_difference_names_only_what_differs() {
        let (text, added, removed) = difference(&[ports("a", &[1, 2])], &[ports("a", &[2, 3])]);
        assert_eq!((added, removed), (1, 1));
        assert_eq!(
            text,
            "delete element inet baremesh a {\n\t1,\n}\nadd element inet baremesh a {\n\t3,\n}\n"
        );
        assert_eq!(difference(&[ports("a", &[1])], &[ports("a", &[1])]), (String::new(), 0, 0));
    }

    #[test]
    fn a_changed_comment_replaces_the_element() {
        let set = |comment: &str| {
            let elements = Elements::from([(Element::Number(1), Some(comment.to_owned()))]);
            [NamedSet::new("a", "inet_service", elements)]
        };
        let (text, ..) = difference(&set("x"), &set("y"));
        assert!(text.contains("delete element inet baremesh a {\n\t1,\n}"), "{text}");
        assert!(text.contains("\t1 comment \"y\","), "{text}");
    }

    #[test]
    fn a_load_is_split_across_sets_without_losing_an_element() {
        let sets = [ports("a", &[1, 2, 3]), ports("b", &[4, 5])];
        let texts = loading(&sets, 2);
        assert_eq!(texts.len(), 3);
        assert_eq!(
            texts[1],
            "add element inet baremesh a {\n\t3,\n}\nadd element inet baremesh b {\n\t4,\n}\n"
        );
        assert_eq!(loading(&[ports("a", &[])], 2), Vec::<String>::new());
    }

    #[test]
    fn the_hash_sees_elements_and_not_the_order_of_sets() {
        let hash = |sets: &[NamedSet]| hash_of_elements(sets.iter().map(|s| (s.name.as_str(), &s.elements)));
        let (a, b) = (ports("a", &[1]), ports("b", &[2]));
        assert_eq!(hash(&[a.clone(), b.clone()]), hash(&[b.clone(), a.clone()]));
        assert_ne!(hash(&[a.clone(), b]), hash(&[a, ports("b", &[3])]));
    }

    #[test]
    fn what_is_captured_anew_is_what_was_not_before() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let endpoints = |all: &[&str]| {
            NamedSet::of_sockets(ENDPOINTS, &all.iter().map(|text| (address(text), None)).collect())
        };
        let network = Element::Network("192.0.2.0/24".parse().expect("a network"), 443);
        let external = NamedSet::new("external4", "", Elements::from([(network, None)]));
        let old = endpoints(&["10.0.0.1:80"]);
        let new =
            [&endpoints(&["10.0.0.1:80", "10.0.0.2:80"])[..], &[external, ports("inbound_ports", &[9])]]
                .concat();
        let anew = Destinations::between(&old, &new);
        for (to, is_new) in [
            ("10.0.0.1:80", false),
            ("10.0.0.2:80", true),
            ("10.0.0.2:81", false),
            ("192.0.2.7:443", true),
            ("192.0.2.7:80", false),
            ("192.0.3.7:443", false),
            ("10.0.0.3:9", false),
        ] {
            assert_eq!(anew.contain(address(to)), is_new, "{to}");
        }
        assert_eq!([Family::V4, Family::V6].map(|family| anew.are_of(family)), [true, false]);
        assert!(!Destinations::between(&new, &new).are_of(Family::V4));
        assert!(Destinations::between(&[], &new).contain(address("10.0.0.1:80")));
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        let mapped = "[::ffff:10.0.0.1]:80".parse().expect("an address");
        assert_eq!(plain(mapped), "10.0.0.1:80".parse().expect("an address"));
    }
}
