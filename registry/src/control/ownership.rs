//! Whose address it is. Agents capture what programs open to an endpoint's address and port, so a host that could
//! announce any address could draw another machine's traffic into nothing. An address is a host's when the control
//! server has seen the host speak from it: over its session, or over a further connection that shows the host's node
//! credential, by which a host with both families shows the other one. Anything else an operator has to grant.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use baremesh_model::name::Label;
use baremesh_model::network::may_meet;
use serde::{Deserialize, Serialize};

use super::registration::{Registration, RegistrationError};

/// Where an agent asks which addresses are taken for its host's. The connection that asks shows one of them.
pub const ADDRESSES_PATH: &str = "/v1/addresses";
/// Most addresses that an agent asks about at once.
pub const MAX_ASKED: usize = 256;
/// Most addresses that a host shows; the one that was shown longest ago is forgotten first.
pub const MAX_SHOWN: usize = 64;
/// How long before a session an address may have been shown to count for it: agents show theirs, and then register.
pub const SHOWN_KEPT: Duration = Duration::from_secs(60);

/// How long it may have been shown so that a host which asks need not show it again: what it asks before its session must still
/// count when that begins.
const SHOWN_LONG_AGO: Duration = Duration::from_secs(30);

/// Says whether an operator granted an address to a host. Called on a thread that may block.
pub type AddressGrants = Arc<dyn Fn(&Label, IpAddr) -> bool + Send + Sync>;

/// What an agent asks at `ADDRESSES_PATH`, in JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AddressQuestion {
    /// The addresses that the host is to be reached at.
    pub addresses: Vec<IpAddr>,
}

/// What it is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AddressAnswer {
    /// From where this very connection came.
    pub seen: Option<IpAddr>,
    /// Those that would be refused as they stand.
    pub unknown: Vec<IpAddr>,
    /// Where the control server can be reached, so that addresses of the other family can be shown to it.
    pub control: Vec<SocketAddr>,
}

/// Why an address is not taken for a host's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // The messages say what each is.
pub enum NotOwn {
    #[error(
        "{address} is not known to be an address of host {host}, which speaks from {seen}: if it is (NAT, a container, an \
         address that moves), grant it with `addresses = [\"{address}\"]` in a HostGrant, or with a token's --address"
    )]
    NotShown { address: IpAddr, host: Label, seen: String },
    #[error("{address} is an address of host {other}, which speaks from it, and so not of host {host}")]
    Others { address: IpAddr, host: Label, other: Label },
}

impl NotOwn {
    /// The address.
    pub fn address(&self) -> IpAddr {
        match self {
            Self::NotShown { address, .. } | Self::Others { address, .. } => *address,
        }
    }
}

/// From where a host was heard.
#[derive(Debug, Default)]
struct Heard {
    /// The network that it says it is in.
    network: Option<Label>,
    /// What its open session stands for; empty while there is none.
    session: BTreeSet<IpAddr>,
    /// What else it showed, and when.
    shown: BTreeMap<IpAddr, Instant>,
}

impl Heard {
    fn speaks_from(&self, address: IpAddr) -> bool {
        self.session.contains(&address) || self.shown.contains_key(&address)
    }

    fn addresses(&self) -> impl Iterator<Item = &IpAddr> {
        self.session.iter().chain(self.shown.keys())
    }
}

/// From where every host was heard.
#[derive(Debug, Default)]
pub struct Speakers {
    hosts: BTreeMap<Label, Heard>,
    by_address: BTreeMap<IpAddr, BTreeSet<Label>>,
}

impl Speakers {
    /// A session has begun from an address; one from the control host itself stands for several.
    pub fn begin(&mut self, host: &Label, from: &[IpAddr], now: Instant) {
        self.update(host, |heard| {
            heard.shown.retain(|_, at| now.saturating_duration_since(*at) <= SHOWN_KEPT);
            heard.session = from.iter().copied().collect();
        });
        from.iter().for_each(|address| self.take_from_others(host, *address));
    }

    /// A connection with the host's node credential came from an address.
    pub fn show(&mut self, host: &Label, from: &[IpAddr], now: Instant) {
        self.update(host, |heard| {
            heard.shown.extend(from.iter().map(|address| (*address, now)));
            while heard.shown.len() > MAX_SHOWN {
                let oldest = heard.shown.iter().min_by_key(|(_, at)| **at).map(|(address, _)| *address);
                oldest.map(|oldest| heard.shown.remove(&oldest));
            }
        });
        from.iter().for_each(|address| self.take_from_others(host, *address));
    }

    /// Whether the host showed an address so long ago that it is to be shown anew: the next session would not count it.
    pub fn showed_long_ago(&self, host: &Label, address: IpAddr, now: Instant) -> bool {
        let heard = self.hosts.get(host).filter(|heard| !heard.session.contains(&address));
        let at = heard.and_then(|heard| heard.shown.get(&address));
        at.is_some_and(|at| now.saturating_duration_since(*at) > SHOWN_LONG_AGO)
    }

    /// The host's session has ended. What it showed is kept for the next one, which follows at once or shows it anew.
    pub fn end(&mut self, host: &Label) {
        self.update(host, |heard| heard.session.clear());
    }

    /// Forgets a host.
    pub fn forget(&mut self, host: &Label) {
        self.update(host, |heard| *heard = Heard::default());
        self.hosts.remove(host);
    }

    /// A host says which network it is in. An address that was granted to it there is not that of a host of another
    /// network which speaks from the same one.
    pub fn place(&mut self, host: &Label, network: Option<&Label>) {
        if let Some(heard) = self.hosts.get_mut(host) {
            heard.network = network.cloned();
        }
    }

    /// Whether an address is taken for the host's. Who speaks from it comes first, then who was granted it.
    pub fn check(
        &self,
        host: &Label,
        address: IpAddr,
        granted: &dyn Fn(&Label, IpAddr) -> bool,
    ) -> Result<(), NotOwn> {
        let heard = self.hosts.get(host);
        if heard.is_some_and(|heard| heard.speaks_from(address)) {
            return Ok(());
        }
        if let Some(other) = self.another(host, address) {
            return Err(NotOwn::Others { address, host: host.clone(), other: other.clone() });
        }
        if granted(host, address) {
            return Ok(());
        }
        let from = heard.into_iter().flat_map(|heard| &heard.session).map(IpAddr::to_string);
        let seen = from.collect::<Vec<_>>().join(", ");
        let seen = if seen.is_empty() { "nowhere at the moment".to_owned() } else { seen };
        Err(NotOwn::NotShown { address, host: host.clone(), seen })
    }

    /// Another host that is connected and speaks from the address, in a network where that is the same address.
    pub fn another(&self, host: &Label, address: IpAddr) -> Option<&Label> {
        let network = self.hosts.get(host).and_then(|heard| heard.network.as_ref());
        let meets = |heard: &Heard| !heard.session.is_empty() && may_meet(heard.network.as_ref(), network);
        let mut speakers = self.by_address.get(&address)?.iter().filter(|other| *other != host);
        speakers.find(|other| self.hosts.get(*other).is_some_and(meets))
    }

    /// An address that a host showed once and another shows now has moved. Two sessions from one address are two hosts
    /// behind one gateway, and neither takes it from the other.
    fn take_from_others(&mut self, host: &Label, address: IpAddr) {
        let speakers = self.by_address.get(&address).into_iter().flatten();
        for other in speakers.filter(|other| *other != host).cloned().collect::<Vec<_>>() {
            self.update(&other, |heard| _ = heard.shown.remove(&address));
        }
    }

    /// Changes what is known of a host, and the index with it.
    fn update(&mut self, host: &Label, change: impl FnOnce(&mut Heard)) {
        let heard = self.hosts.entry(host.clone()).or_default();
        let before: Vec<IpAddr> = heard.addresses().copied().collect();
        change(heard);
        for address in before.iter().filter(|address| !heard.speaks_from(**address)) {
            if let Some(speakers) = self.by_address.get_mut(address) {
                speakers.remove(host);
                if speakers.is_empty() {
                    self.by_address.remove(address);
                }
            }
        }
        for address in heard.addresses() {
            self.by_address.entry(*address).or_default().insert(host.clone());
        }
    }
}

/// A registration with those of its addresses that are the host's, and why it is without the others.
pub type Owned = (Result<Registration, RegistrationError>, Vec<NotOwn>);

/// Takes the addresses out of a registration that are not the host's. One that has no other is refused.
pub fn owned(
    registration: Result<Registration, RegistrationError>,
    check: impl Fn(IpAddr) -> Result<(), NotOwn>,
) -> Owned {
    let Ok(mut registration) = registration else { return (registration, Vec::new()) };
    let mut faults = Vec::new();
    registration.addresses.retain(|address| match check(*address) {
        Ok(()) => true,
        Err(fault) => {
            faults.push(fault);
            false
        }
    });
    match faults.first() {
        Some(first) if registration.addresses.is_empty() => (Err(first.clone().into()), Vec::new()),
        _ => (Ok(registration), faults),
    }
}

/// The network of a host by what it registers, and its list without those that say another than the first.
pub fn of_one_network(
    list: Vec<Result<Registration, RegistrationError>>,
) -> (Option<Label>, Vec<Result<Registration, RegistrationError>>) {
    let first = list.iter().flatten().next().and_then(|registration| registration.network.clone());
    let words = |network: &Option<Label>| match network {
        Some(network) => format!("the network {network}"),
        None => "no network".to_owned(),
    };
    let of_first = |registration: Registration| match registration.network == first {
        true => Ok(registration),
        false => {
            let (first, stated) = (words(&first), words(&registration.network));
            Err(RegistrationError::Networks { first, stated })
        }
    };
    let list = list.into_iter().map(|registration| registration.and_then(of_first)).collect();
    (first, list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_in_the_network_that_its_first_registration_says() {
        let check = |networks: &[Option<&str>], expected: Option<&str>, taken: &[bool]| {
            let read = |network: &Option<&str>| {
                let mut raw = serde_json::json!({
                    "service": "orders.shop", "ports": [{ "port": 80, "targetPort": 8080 }], "addresses": ["10.0.0.7"]
                });
                if let Some(network) = network {
                    raw["network"] = (*network).into();
                }
                Registration::read(&raw)
            };
            let (network, list) = of_one_network(networks.iter().map(read).collect());
            assert_eq!(network, expected.map(label), "{networks:?}");
            assert_eq!(list.iter().map(Result::is_ok).collect::<Vec<_>>(), taken, "{networks:?}");
            let refused = list.into_iter().filter_map(Result::err);
            assert!(
                refused.into_iter().all(|error| matches!(error, RegistrationError::Networks { .. })),
                "{networks:?}"
            );
        };
        check(&[], None, &[]);
        check(&[None, None], None, &[true, true]);
        check(&[Some("eu"), Some("eu")], Some("eu"), &[true, true]);
        check(&[Some("eu"), Some("us"), Some("eu")], Some("eu"), &[true, false, true]);
        check(&[Some("eu"), None], Some("eu"), &[true, false]);
        check(&[None, Some("us")], None, &[true, false]);
    }

    fn label(text: &str) -> Label {
        Label::new(text).expect("a label")
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// Everything below 10.9.0.0/16 is granted to everybody.
    fn granted(_: &Label, address: IpAddr) -> bool {
        address.to_string().starts_with("10.9.")
    }

    fn check(speakers: &Speakers, host: &str, text: &str, expected: &str) {
        let found = speakers.check(&label(host), address(text), &granted);
        let found = found.err().map(|fault| fault.to_string()).unwrap_or_default();
        assert!(
            found.contains(expected) && found.is_empty() == expected.is_empty(),
            "{host} {text}: {found}"
        );
    }

    #[test]
    fn an_address_is_theirs_who_speak_from_it_or_were_granted_it() {
        let (mut speakers, now) = (Speakers::default(), Instant::now());
        check(&speakers, "h1", "10.0.0.1", "speaks from nowhere at the moment");
        speakers.begin(&label("h1"), &[address("10.0.0.1")], now);
        check(&speakers, "h1", "10.0.0.1", "");
        check(&speakers, "h1", "10.0.0.2", "speaks from 10.0.0.1: if it is");
        check(&speakers, "h1", "10.9.0.9", "");
        check(&speakers, "h2", "10.0.0.1", "an address of host h1");
        speakers.show(&label("h1"), &[address("fd00::1")], now);
        check(&speakers, "h1", "fd00::1", "");
        check(&speakers, "h2", "fd00::1", "an address of host h1");
        // Who speaks from an address comes before who was granted it.
        speakers.begin(&label("h2"), &[address("10.9.0.9")], now);
        check(&speakers, "h1", "10.9.0.9", "an address of host h2");
        speakers.end(&label("h2"));
        check(&speakers, "h1", "10.9.0.9", "");
        // Unless it is in another network, where the address is another one.
        speakers.begin(&label("h2"), &[address("10.9.0.9")], now);
        speakers.place(&label("h1"), Some(&label("us")));
        check(&speakers, "h1", "10.9.0.9", "an address of host h2");
        speakers.place(&label("h2"), Some(&label("eu")));
        check(&speakers, "h1", "10.9.0.9", "");
        check(&speakers, "h1", "10.0.0.9", "speaks from 10.0.0.1: if it is");
        speakers.end(&label("h2"));
        speakers.forget(&label("h1"));
        check(&speakers, "h1", "10.0.0.1", "nowhere");
        check(&speakers, "h2", "10.0.0.1", "nowhere");
        speakers.forget(&label("h2"));
        assert!(speakers.by_address.is_empty() && speakers.hosts.is_empty(), "{speakers:?}");
    }

    #[test]
    fn what_was_shown_moves_with_the_address_and_counts_for_the_next_session_if_it_was_recent() {
        let (mut speakers, now) = (Speakers::default(), Instant::now());
        speakers.show(&label("h1"), &[address("fd00::1")], now);
        speakers.begin(&label("h1"), &[address("10.0.0.1")], now + SHOWN_KEPT);
        check(&speakers, "h1", "fd00::1", "");
        speakers.show(&label("h2"), &[address("fd00::1"), address("10.0.0.1")], now + SHOWN_KEPT);
        check(&speakers, "h1", "fd00::1", "is not known");
        // The session stands: these two are behind one gateway.
        check(&speakers, "h1", "10.0.0.1", "");
        check(&speakers, "h2", "10.0.0.1", "");
        speakers.begin(&label("h2"), &[address("10.0.0.2")], now + SHOWN_KEPT * 3);
        check(&speakers, "h2", "fd00::1", "speaks from 10.0.0.2");
    }

    #[test]
    fn what_the_next_session_would_not_count_is_to_be_shown_anew() {
        let (mut speakers, now) = (Speakers::default(), Instant::now());
        let (host, shown) = (label("h1"), address("fd00::1"));
        assert!(!speakers.showed_long_ago(&host, shown, now), "never");
        speakers.show(&host, &[shown], now);
        speakers.begin(&host, &[address("10.0.0.1")], now);
        assert!(!speakers.showed_long_ago(&host, shown, now + SHOWN_LONG_AGO));
        // The session stands, and it counts for that one still.
        let later = now + SHOWN_KEPT * 2;
        check(&speakers, "h1", "fd00::1", "");
        assert!(speakers.showed_long_ago(&host, shown, later));
        assert!(!speakers.showed_long_ago(&host, address("10.0.0.1"), later), "its session's");
        speakers.show(&host, &[shown], later);
        speakers.begin(&host, &[address("10.0.0.1")], later);
        check(&speakers, "h1", "fd00::1", "");
    }

    #[test]
    fn remembers_no_more_than_it_may() {
        let (mut speakers, now) = (Speakers::default(), Instant::now());
        for n in 0..=u8::try_from(MAX_SHOWN).expect("small") {
            let at = now + Duration::from_millis(n.into());
            speakers.show(&label("h1"), &[address(&format!("10.0.0.{n}"))], at);
        }
        assert_eq!(speakers.by_address.len(), MAX_SHOWN);
        check(&speakers, "h1", "10.0.0.0", "is not known");
        check(&speakers, "h1", "10.0.0.1", "");
    }

    #[test]
    fn a_registration_keeps_the_addresses_that_are_the_host_s() {
        let read = |addresses: &[&str]| {
            let raw =
                serde_json::json!({ "service": "a.x", "ports": [{ "port": 80 }], "addresses": addresses });
            Registration::read(&raw)
        };
        let own = |found: IpAddr| match found.is_ipv4() {
            true => Ok(()),
            false => Err(NotOwn::Others { address: found, host: label("h1"), other: label("h2") }),
        };
        let (kept, faults) = owned(read(&["fd00::1", "10.0.0.1"]), own);
        assert_eq!(kept, read(&["10.0.0.1"]));
        assert_eq!(faults.iter().map(NotOwn::address).collect::<Vec<_>>(), [address("fd00::1")]);
        let (refused, faults) = owned(read(&["fd00::1"]), own);
        assert!(refused.expect_err("nothing is left").to_string().contains("host h2") && faults.is_empty());
        assert!(owned(read(&[]), own).0.is_err(), "what was refused before stays so");
    }
}
