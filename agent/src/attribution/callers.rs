//! Which registered service a caller is, decided from what the kernel says about it: its user and its cgroup.
//!
//! A registration names a unit, a cgroup, a user, or several of them, and then all must hold. When several
//! registrations hold, the most specific wins: a place (unit or cgroup) together with a user before a place
//! alone before a user alone, and among those the deeper place. Services that are still level cannot be told
//! apart, and the caller is refused.

use std::collections::HashMap;

use super::place::{CgroupPath, Place, UnitName};
use super::sock_diag::Uid;

/// Why a registration's description of its callers was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MatcherError {
    /// Nothing is described.
    #[error("say which processes are the service: give a unit, a cgroup or a user")]
    Nothing,
    /// The root cgroup holds every process.
    #[error("every process of the host is in the cgroup `/`: name the service's own cgroup")]
    Everything,
}

/// Which processes are a service. Everything that is given must hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Matcher {
    unit: Option<UnitName>,
    cgroup: Option<CgroupPath>,
    user: Option<Uid>,
}

impl std::fmt::Display for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let unit = self.unit.as_ref().map(|unit| format!("unit {}", unit.as_str()));
        let cgroup = self.cgroup.as_ref().map(|cgroup| format!("cgroup {cgroup}"));
        let user = self.user.map(|Uid(uid)| format!("uid {uid}"));
        let parts: Vec<String> = [unit, cgroup, user].into_iter().flatten().collect();
        f.write_str(&parts.join(", "))
    }
}

impl Matcher {
    /// Processes of `unit`, in `cgroup` or below it, run by `user`; at least one is given.
    pub fn new(
        unit: Option<UnitName>,
        cgroup: Option<CgroupPath>,
        user: Option<Uid>,
    ) -> Result<Self, MatcherError> {
        if cgroup.as_ref().is_some_and(CgroupPath::is_root) {
            Err(MatcherError::Everything)
        } else if unit.is_none() && cgroup.is_none() && user.is_none() {
            Err(MatcherError::Nothing)
        } else {
            Ok(Self { unit, cgroup, user })
        }
    }

    /// The user that it names.
    pub fn user(&self) -> Option<Uid> {
        self.user
    }

    /// Whether `place` is the topmost cgroup of the processes that this describes by unit or cgroup.
    pub fn begins_at(&self, place: &Place) -> bool {
        let of_unit =
            |unit: &UnitName| place.unit.as_ref().filter(|(name, _)| name == unit).map(|(_, depth)| *depth);
        let of_cgroup = |cgroup: &CgroupPath| place.path.below(cgroup).map(|_| cgroup.depth());
        let top = match (&self.unit, &self.cgroup) {
            (Some(unit), None) => of_unit(unit),
            (None, Some(cgroup)) => of_cgroup(cgroup),
            (Some(unit), Some(cgroup)) => of_unit(unit).zip(of_cgroup(cgroup)).map(|(a, b)| a.max(b)),
            (None, None) => None,
        };
        top == Some(place.path.depth())
    }

    /// Whether `begins_at` can be true of a cgroup below `path`, on a system whose service manager owns what is below
    /// `manager`.
    pub fn may_begin_below(&self, path: &CgroupPath, manager: &CgroupPath) -> bool {
        // A unit begins where its directory would be the unit's, or anywhere below what is above the manager.
        let unit_begins = |unit: &UnitName| {
            let here = Place::new(path.child(unit.as_str()), manager);
            here.unit == Some((unit.clone(), path.depth() + 1)) || manager.below(path).is_some()
        };
        let is_in_unit = |unit: &UnitName| {
            Place::new(path.clone(), manager).unit.is_some_and(|(inside, _)| inside == *unit)
        };
        let cgroup_is_below = |cgroup: &CgroupPath| cgroup != path && cgroup.below(path).is_some();
        match (&self.unit, &self.cgroup) {
            (Some(unit), None) => unit_begins(unit),
            (None, Some(cgroup)) => cgroup_is_below(cgroup),
            (Some(unit), Some(cgroup)) if cgroup_is_below(cgroup) => unit_begins(unit) || is_in_unit(unit),
            (Some(unit), Some(cgroup)) => path.below(cgroup).is_some() && unit_begins(unit),
            (None, None) => false,
        }
    }

    /// The unit that it names.
    pub fn unit(&self) -> Option<&UnitName> {
        self.unit.as_ref()
    }

    /// Whether it names a unit or a cgroup.
    pub fn names_a_place(&self) -> bool {
        self.unit.is_some() || self.cgroup.is_some()
    }

    /// How specifically this describes the caller; `None` when it does not.
    fn rank(&self, uid: Uid, place: Option<&Place>) -> Option<Rank> {
        if self.user.is_some_and(|user| user != uid) {
            return None;
        }
        let mut depth = 0;
        if let Some(unit) = &self.unit {
            let (_, at) = place?.unit.as_ref().filter(|(name, _)| name == unit)?;
            depth = *at;
        }
        if let Some(cgroup) = &self.cgroup {
            place?.path.below(cgroup)?;
            depth = depth.max(cgroup.depth());
        }
        Some(match (self.names_a_place(), self.user.is_some()) {
            (true, true) => Rank::PlaceAndUser { depth },
            (true, false) => Rank::Place { depth },
            (false, _) => Rank::User,
        })
    }
}

/// From the least to the most specific.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    User,
    Place { depth: usize },
    PlaceAndUser { depth: usize },
}

/// Who opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller<K> {
    /// A process of this registered service.
    Service(K),
    /// A process of this host that no registration describes.
    Host,
}

/// Registrations of different services describe one caller equally well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "several services are registered for the caller's unit, cgroup or user: make one registration more specific, or remove one"
)]
pub struct Ambiguous;

/// All registrations of the host, compiled for look-ups. `K` names a service.
#[derive(Debug, Clone)]
pub struct CallerTable<K> {
    entries: Vec<(Matcher, K)>,
    by_unit: HashMap<UnitName, Vec<usize>>,
    by_cgroup: HashMap<Box<str>, Vec<usize>>,
    by_user: HashMap<Uid, Vec<usize>>,
}

impl<K: Clone + PartialEq> CallerTable<K> {
    /// Compiles it. A service may have several matchers.
    pub fn new(registrations: impl IntoIterator<Item = (Matcher, K)>) -> Self {
        let entries: Vec<_> = registrations.into_iter().collect();
        let mut table = Self {
            entries: Vec::new(),
            by_unit: HashMap::new(),
            by_cgroup: HashMap::new(),
            by_user: HashMap::new(),
        };
        for (index, (matcher, _)) in entries.iter().enumerate() {
            let list = match matcher {
                Matcher { unit: Some(unit), .. } => table.by_unit.entry(unit.clone()).or_default(),
                Matcher { cgroup: Some(cgroup), .. } => {
                    table.by_cgroup.entry(cgroup.as_str().into()).or_default()
                }
                Matcher { user: Some(user), .. } => table.by_user.entry(*user).or_default(),
                Matcher { unit: None, cgroup: None, user: None } => continue,
            };
            list.push(index);
        }
        Self { entries, ..table }
    }

    /// Whether a caller's cgroup must be known to decide.
    pub fn needs_place(&self) -> bool {
        !self.by_unit.is_empty() || !self.by_cgroup.is_empty()
    }

    /// Who the caller is. `place` may be left out only where `needs_place` is false.
    pub fn decide(&self, uid: Uid, place: Option<&Place>) -> Result<Caller<K>, Ambiguous> {
        let mut best: Option<(Rank, &K)> = None;
        let mut level = false;
        for index in self.candidates(uid, place) {
            let (matcher, key) = &self.entries[*index];
            let Some(rank) = matcher.rank(uid, place) else { continue };
            match best {
                Some((highest, _)) if rank < highest => {}
                Some((highest, other)) if rank == highest => level |= other != key,
                _ => (best, level) = (Some((rank, key)), false),
            }
        }
        match best {
            _ if level => Err(Ambiguous),
            Some((_, key)) => Ok(Caller::Service(key.clone())),
            None => Ok(Caller::Host),
        }
    }

    /// The registrations that may hold: those of the unit, of each cgroup above, of the user.
    fn candidates(&self, uid: Uid, place: Option<&Place>) -> impl Iterator<Item = &usize> {
        let unit = place.and_then(|place| place.unit.as_ref());
        let of_unit = unit.and_then(|(unit, _)| self.by_unit.get(unit));
        let lineage = place.into_iter().flat_map(|place| place.path.lineage());
        let of_cgroups = lineage.filter_map(|(_, path)| self.by_cgroup.get(path));
        of_unit.into_iter().chain(of_cgroups).chain(self.by_user.get(&uid)).flatten()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const PAYLOAD: &str = "/system.slice/orders.service/worker";

    /// A matcher from words, a unit, a path, a user's number, joined by `+`.
    pub fn matcher(text: &str) -> Matcher {
        let (mut unit, mut cgroup, mut user) = (None, None, None);
        for word in text.split('+') {
            if word.starts_with('/') {
                cgroup = Some(CgroupPath::new(word).expect("a path"));
            } else if let Ok(uid) = word.parse() {
                user = Some(Uid(uid));
            } else {
                unit = Some(UnitName::new(word).expect("a unit"));
            }
        }
        Matcher::new(unit, cgroup, user).expect("not empty")
    }

    fn check(registrations: &[(&str, u8)], path: &str, uid: u32, expected: Result<Caller<u8>, Ambiguous>) {
        let table = CallerTable::new(registrations.iter().map(|(text, key)| (matcher(text), *key)));
        let reversed = CallerTable::new(registrations.iter().rev().map(|(text, key)| (matcher(text), *key)));
        let place = Place::new(CgroupPath::new(path).expect("a path"), &CgroupPath::root());
        for table in [table, reversed] {
            assert_eq!(table.decide(Uid(uid), Some(&place)), expected, "{registrations:?} {path} {uid}");
        }
    }

    #[test]
    fn all_that_is_given_must_hold() {
        let service = Ok(Caller::Service(1));
        check(&[("orders.service", 1)], PAYLOAD, 5, service);
        check(&[("orders.service+5", 1)], PAYLOAD, 5, service);
        check(&[("orders.service+6", 1)], PAYLOAD, 5, Ok(Caller::Host));
        check(&[("/system.slice", 1)], PAYLOAD, 5, service);
        check(&[(PAYLOAD, 1)], PAYLOAD, 5, service);
        check(&[("/system.slice/orders", 1)], PAYLOAD, 5, Ok(Caller::Host));
        check(&[("orders.service+/system.slice/orders.service/other", 1)], PAYLOAD, 5, Ok(Caller::Host));
        check(&[("orders.service+/system.slice+5", 1)], PAYLOAD, 5, service);
        check(&[("5", 1)], PAYLOAD, 5, service);
        check(&[("5", 1)], "/", 5, service);
        check(&[("5", 1)], PAYLOAD, 6, Ok(Caller::Host));
        check(&[], PAYLOAD, 0, Ok(Caller::Host));
        let user_unit = "/user.slice/user-5.slice/user@5.service/app.slice/orders.service";
        check(&[("orders.service", 1)], user_unit, 5, Ok(Caller::Host));
    }

    #[test]
    fn what_cannot_be_seen_matters_only_where_a_service_may_begin() {
        let path = |text: &str| {
            if text == "/" { CgroupPath::root() } else { CgroupPath::new(text).expect("a path") }
        };
        let may = |matcher_: &str, below: &str, manager: &str| {
            matcher(matcher_).may_begin_below(&path(below), &path(manager))
        };
        for (text, below) in [
            ("orders.service", "/"),
            ("orders.service", "/system.slice"),
            ("orders.service", "/shop.slice/shop-eu.slice"),
            ("/jail/shop", "/jail"),
            ("/jail/shop", "/"),
            ("orders.service+/system.slice/orders.service/worker", "/system.slice/orders.service"),
            ("orders.service+/system.slice", "/system.slice"),
        ] {
            assert!(may(text, below, "/"), "{text} below {below}");
        }
        for (text, below) in [
            ("orders.service", "/system.slice/orders.service"),
            ("orders.service", "/memory"),
            ("orders.service", "/user.slice/user-5.slice"),
            ("orders.service+/system.slice", "/shop.slice"),
            ("/jail/shop", "/jail/shop"),
            ("/jail/shop", "/jail/shopping"),
            ("/jail/shop", "/memory"),
            ("5", "/"),
        ] {
            assert!(!may(text, below, "/"), "{text} below {below}");
        }
        let payload = "/machine.slice/box.scope/payload";
        assert!(may("orders.service", "/machine.slice", payload));
        assert!(!may("orders.service", "/system.slice", payload));
        // Whatever a service begins at is below all that is above it.
        for (text, at) in [
            ("orders.service", "/system.slice/orders.service"),
            ("memory.service", "/system.slice/_memory.service"),
            ("orders.service+/system.slice/orders.service/a/b", "/system.slice/orders.service/a/b"),
            ("/a/b/c+7", "/a/b/c"),
        ] {
            assert!(matcher(text).begins_at(&Place::new(path(at), &CgroupPath::root())), "{text}");
            let above = at.match_indices('/').map(|(end, _)| if end == 0 { "/" } else { &at[..end] });
            above.for_each(|above| assert!(may(text, above, "/"), "{text} below {above}"));
        }
    }

    #[test]
    fn the_most_specific_registration_wins() {
        let second = Ok(Caller::Service(2));
        check(&[("5", 1), ("orders.service", 2)], PAYLOAD, 5, second);
        check(&[("orders.service", 1), ("orders.service+5", 2)], PAYLOAD, 5, second);
        check(&[("/system.slice", 1), ("orders.service", 2)], PAYLOAD, 5, second);
        check(&[("orders.service", 1), (PAYLOAD, 2)], PAYLOAD, 5, second);
        check(&[(PAYLOAD, 1), ("/system.slice+5", 2)], PAYLOAD, 5, second);
        check(&[("/system.slice+5", 1), ("orders.service+5", 2)], PAYLOAD, 5, second);
    }

    #[test]
    fn services_that_cannot_be_told_apart_are_refused() {
        check(&[("orders.service", 1), ("orders.service", 2)], PAYLOAD, 5, Err(Ambiguous));
        check(&[("orders.service", 1), ("/system.slice/orders.service", 2)], PAYLOAD, 5, Err(Ambiguous));
        check(&[("5", 1), ("5", 2)], PAYLOAD, 5, Err(Ambiguous));
        check(&[("5", 1), ("5", 1)], PAYLOAD, 5, Ok(Caller::Service(1)));
        check(&[("5", 1), ("5", 2), ("orders.service", 3)], PAYLOAD, 5, Ok(Caller::Service(3)));
        let three = [("orders.service", 1), ("orders.service", 2), ("orders.service", 1)];
        check(&three, PAYLOAD, 5, Err(Ambiguous));
    }

    #[test]
    fn a_matcher_says_something_and_not_everything() {
        assert_eq!(Matcher::new(None, None, None), Err(MatcherError::Nothing));
        assert_eq!(Matcher::new(None, Some(CgroupPath::root()), Some(Uid(5))), Err(MatcherError::Everything));
        assert!(!CallerTable::new([(matcher("5"), 1)]).needs_place());
        assert!(CallerTable::new([(matcher("5+/a"), 1)]).needs_place());
    }
}
