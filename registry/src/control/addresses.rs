//! Virtual addresses as the control server assigns them: a service starts from the address that its name hashes
//! to and takes the next free one. An assignment is remembered for a week after its service is gone, so that no
//! caller's cached answer, however old, leads to another service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use baremesh_model::name::Key;
use baremesh_model::virtual_address::VirtualRanges;

/// How long an address is not given to another service after its own is gone.
pub const QUARANTINE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Whose an address is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The service.
    pub service: Key,
    /// Since when the service is gone; `None` while it is there.
    pub released: Option<SystemTime>,
}

impl Assignment {
    fn lapsed(&self, now: SystemTime) -> bool {
        // A clock that was set back makes the quarantine longer, never shorter.
        self.released.is_some_and(|at| now.duration_since(at).is_ok_and(|gone| gone >= QUARANTINE))
    }
}

/// One change of the assignments: an address's new assignment, or that it is free.
pub type AddressChange = (IpAddr, Option<Assignment>);

/// Why a service has no virtual address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // The messages say what each is.
pub enum AddressError {
    #[error("no virtual address is left in {0}: widen the range in MeshConfig")]
    Exhausted(String),
    #[error(
        "the virtual address {address} of Service {service} is {other}'s already: choose another in `addresses`"
    )]
    Taken { address: IpAddr, service: Key, other: Key },
}

/// All assignments.
#[derive(Debug, Clone, Default)]
pub struct Addresses {
    by_address: BTreeMap<IpAddr, Assignment>,
    by_service: BTreeMap<Key, BTreeSet<IpAddr>>,
}

impl Addresses {
    /// Makes a change.
    pub fn apply(&mut self, (address, assignment): &AddressChange) {
        if let Some(before) = self.by_address.remove(address)
            && let Some(addresses) = self.by_service.get_mut(&before.service)
        {
            addresses.remove(address);
            if addresses.is_empty() {
                self.by_service.remove(&before.service);
            }
        }
        if let Some(assignment) = assignment {
            self.by_service.entry(assignment.service.clone()).or_default().insert(*address);
            self.by_address.insert(*address, assignment.clone());
        }
    }

    /// The services that hold an address or are remembered to have held one.
    pub fn services(&self) -> impl Iterator<Item = &Key> {
        self.by_service.keys()
    }

    /// The service that an address is or was given to.
    pub fn holder(&self, address: &IpAddr) -> Option<&Key> {
        self.by_address.get(address).map(|assignment| &assignment.service)
    }

    /// A service's addresses while it is there, IPv4 first.
    pub fn of(&self, service: &Key) -> Vec<IpAddr> {
        let held = |address: &&IpAddr| self.by_address.get(address).is_some_and(|a| a.released.is_none());
        self.by_service.get(service).into_iter().flatten().filter(held).copied().collect()
    }

    /// What gives a service its addresses: those that it states, else those that it has or had, else new ones.
    /// `pending` are changes that are decided and not applied yet; the new ones are added to them.
    pub fn assign(
        &self,
        service: &Key,
        stated: &[IpAddr],
        ranges: &VirtualRanges,
        now: SystemTime,
        pending: &mut BTreeMap<IpAddr, Option<Assignment>>,
    ) -> Result<(), AddressError> {
        let had: BTreeSet<IpAddr> = self.by_service.get(service).cloned().unwrap_or_default();
        let wanted = if stated.is_empty() {
            self.choose(service, &had, ranges, (now, pending))?
        } else {
            for address in stated {
                self.check_stated(service, *address, pending)?;
            }
            stated.to_vec()
        };
        let assignment = Assignment { service: service.clone(), released: None };
        for address in &wanted {
            if self.by_address.get(address) != Some(&assignment) || pending.contains_key(address) {
                pending.insert(*address, Some(assignment.clone()));
            }
        }
        for address in had.iter().filter(|address| !wanted.contains(address)) {
            let held = self.by_address.get(address).is_some_and(|before| before.released.is_none());
            if held && !pending.contains_key(address) {
                let released = Assignment { service: service.clone(), released: Some(now) };
                pending.insert(*address, Some(released));
            }
        }
        Ok(())
    }

    /// What takes back the addresses that a service has and no longer states, so that another may state them.
    pub fn vacate(
        &self,
        service: &Key,
        stated: &[IpAddr],
        now: SystemTime,
        pending: &mut BTreeMap<IpAddr, Option<Assignment>>,
    ) {
        for address in self.of(service).into_iter().filter(|address| !stated.contains(address)) {
            let released = Assignment { service: service.clone(), released: Some(now) };
            pending.entry(address).or_insert(Some(released));
        }
    }

    /// What takes a service's addresses back when it is gone; they stay in quarantine.
    pub fn release(
        &self,
        service: &Key,
        now: SystemTime,
        pending: &mut BTreeMap<IpAddr, Option<Assignment>>,
    ) {
        self.vacate(service, &[], now, pending);
    }

    /// The assignments whose quarantine is over: what forgets them.
    pub fn lapsed(&self, now: SystemTime) -> Vec<AddressChange> {
        let lapsed = self.by_address.iter().filter(|(_, assignment)| assignment.lapsed(now));
        lapsed.map(|(address, _)| (*address, None)).collect()
    }

    /// An operator's word goes before the quarantine, never before another service that is there.
    fn check_stated(
        &self,
        service: &Key,
        address: IpAddr,
        pending: &BTreeMap<IpAddr, Option<Assignment>>,
    ) -> Result<(), AddressError> {
        let holder = match pending.get(&address) {
            Some(decided) => decided.as_ref(),
            None => self.by_address.get(&address),
        };
        match holder.filter(|holder| holder.released.is_none() && holder.service != *service) {
            Some(holder) => {
                Err(AddressError::Taken { address, service: service.clone(), other: holder.service.clone() })
            }
            None => Ok(()),
        }
    }

    fn choose(
        &self,
        service: &Key,
        had: &BTreeSet<IpAddr>,
        ranges: &VirtualRanges,
        (now, pending): (SystemTime, &BTreeMap<IpAddr, Option<Assignment>>),
    ) -> Result<Vec<IpAddr>, AddressError> {
        let free = |address: &IpAddr| {
            let holder = match pending.get(address) {
                Some(decided) => decided.as_ref(),
                None => self.by_address.get(address),
            };
            holder.is_none_or(|holder| holder.service == *service || holder.lapsed(now))
        };
        let mut chosen = Vec::with_capacity(2);
        for hashed in ranges.hashed(service) {
            let same_family = |address: &&IpAddr| address.is_ipv4() == hashed.is_ipv4();
            let kept = had.iter().filter(same_family).find(|a| ranges.contains(**a) && free(a)).copied();
            let found =
                kept.or_else(|| candidates(hashed, ranges, self.by_address.len() + pending.len()).find(free));
            let range = || if hashed.is_ipv4() { ranges.v4.to_string() } else { "the IPv6 range".to_owned() };
            chosen.push(found.ok_or_else(|| AddressError::Exhausted(range()))?);
        }
        Ok(chosen)
    }
}

/// The addresses from the hashed one on. One more than there are assignments is enough to meet a free one.
fn candidates(hashed: IpAddr, ranges: &VirtualRanges, taken: usize) -> impl Iterator<Item = IpAddr> + use<> {
    let ranges = *ranges;
    let start = match hashed {
        // `nth_v4` counts from the second address of the range.
        IpAddr::V4(v4) => {
            u64::from(u32::from(v4)).saturating_sub(u64::from(u32::from(ranges.v4.network())) + 1)
        }
        IpAddr::V6(v6) => {
            let network = ranges.v6.map_or(0, |range| u128::from(range.network()));
            u64::try_from(u128::from(v6).saturating_sub(network) & u128::from(u64::MAX)).unwrap_or(0)
        }
    };
    (0..taken as u64 + 2).filter_map(move |step| {
        let number = start.wrapping_add(step);
        if hashed.is_ipv4() {
            Some(IpAddr::V4(ranges.nth_v4(number)))
        } else {
            ranges.nth_v6(number).map(IpAddr::V6)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::subscription::service_key;
    use super::*;

    fn key(name: &str) -> Key {
        service_key(name).expect("a service")
    }

    fn at(days: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs((10_000 + days) * 24 * 60 * 60)
    }

    /// A range of six addresses.
    fn small() -> VirtualRanges {
        VirtualRanges { v4: "240.240.0.0/29".parse().expect("a range"), v6: None }
    }

    fn assign(
        addresses: &mut Addresses,
        service: &str,
        stated: &[&str],
        day: u64,
    ) -> Result<Vec<String>, AddressError> {
        let stated: Vec<IpAddr> = stated.iter().map(|address| address.parse().expect("an address")).collect();
        let mut pending = BTreeMap::new();
        addresses.assign(&key(service), &stated, &small(), at(day), &mut pending)?;
        pending.into_iter().for_each(|change| addresses.apply(&change));
        Ok(addresses.of(&key(service)).iter().map(ToString::to_string).collect())
    }

    fn release(addresses: &mut Addresses, service: &str, day: u64) {
        let mut pending = BTreeMap::new();
        addresses.release(&key(service), at(day), &mut pending);
        pending.into_iter().for_each(|change| addresses.apply(&change));
    }

    #[test]
    fn gives_each_service_its_own_until_none_is_left() {
        let mut addresses = Addresses::default();
        let mut seen = BTreeSet::new();
        for n in 0..6 {
            let given = assign(&mut addresses, &format!("s{n}.x"), &[], 0).expect("an address");
            assert_eq!(given.len(), 1);
            assert!(seen.insert(given), "twice the same");
        }
        let again = assign(&mut addresses, "s3.x", &[], 1).expect("the one it has");
        assert!(seen.contains(&again));
        assert!(matches!(assign(&mut addresses, "s6.x", &[], 0), Err(AddressError::Exhausted(_))));
    }

    #[test]
    fn one_plan_gives_no_address_twice() {
        let addresses = Addresses::default();
        let mut pending = BTreeMap::new();
        for n in 0..6 {
            addresses.assign(&key(&format!("s{n}.x")), &[], &small(), at(0), &mut pending).expect("free");
        }
        assert_eq!(pending.len(), 6);
    }

    #[test]
    fn keeps_addresses_back_for_seven_days() {
        let mut addresses = Addresses::default();
        for n in 0..6 {
            assign(&mut addresses, &format!("s{n}.x"), &[], 0).expect("an address");
        }
        let freed = addresses.of(&key("s2.x"))[0].to_string();
        release(&mut addresses, "s2.x", 1);
        assert_eq!(addresses.of(&key("s2.x")), Vec::<IpAddr>::new());
        assert!(assign(&mut addresses, "new.x", &[], 7).is_err(), "six days later");
        assert!(addresses.lapsed(at(7)).is_empty());
        assert!(assign(&mut addresses, "new.x", &[], 0).is_err(), "the clock was set back");
        let mut returned = addresses.clone();
        assert_eq!(assign(&mut returned, "s2.x", &[], 3).as_deref(), Ok(&[freed.clone()][..]));
        assert_eq!(addresses.lapsed(at(8)).len(), 1);
        assert_eq!(assign(&mut addresses, "new.x", &[], 8), Ok(vec![freed]));
    }

    #[test]
    fn respects_what_a_service_states() {
        let mut addresses = Addresses::default();
        assert_eq!(assign(&mut addresses, "a.x", &["240.240.0.3"], 0), Ok(vec!["240.240.0.3".into()]));
        let taken = assign(&mut addresses, "b.x", &["240.240.0.3"], 0).expect_err("it is a.x's");
        assert!(taken.to_string().contains("a.x's already"), "{taken}");
        for n in 0..5 {
            let given = assign(&mut addresses, &format!("s{n}.x"), &[], 0).expect("an address");
            assert_ne!(given, ["240.240.0.3"]);
        }
        // Stated anew, the former address goes into quarantine; the operator may still give it away.
        release(&mut addresses, "s0.x", 0);
        let freed = addresses.lapsed(at(30))[0].0.to_string();
        assert_eq!(assign(&mut addresses, "a.x", &[&freed], 1), Ok(vec![freed]));
        assert!(assign(&mut addresses, "c.x", &[], 2).is_err());
        assert_eq!(assign(&mut addresses, "c.x", &["240.240.0.3"], 2), Ok(vec!["240.240.0.3".into()]));
    }

    #[test]
    fn moves_when_the_range_does() {
        let mut addresses = Addresses::default();
        let mut pending = BTreeMap::new();
        let wide = VirtualRanges::default();
        addresses.assign(&key("a.x"), &[], &wide, at(0), &mut pending).expect("free");
        assert_eq!(pending.keys().copied().collect::<Vec<_>>(), wide.hashed(&key("a.x")), "both families");
        pending.into_iter().for_each(|change| addresses.apply(&change));
        let moved = assign(&mut addresses, "a.x", &[], 0).expect("an address");
        assert!(moved.len() == 1 && small().contains(moved[0].parse().expect("an address")));
    }
}
