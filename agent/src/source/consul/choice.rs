//! Which services are waited for, which are read in turn, and which are read seldom. Consul lets one address have 200 connections at once unless
//! told otherwise, and a wait is one.

use std::collections::{BTreeMap, BTreeSet};

use baremesh_registry::consul::mark::{TAG, service_named};
use baremesh_registry::control::subscription::Subscription;

/// Most services that are waited for.
pub(super) const MAX_WAITED: usize = 64;

/// Consul's own servers: where they are, no endpoint is taken.
const CONSUL_ITSELF: &str = "consul";

/// A service to read. One that comes to be asked for is another, and read anew.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Reading {
    /// Its name in the catalog.
    pub(super) name: String,
    /// Whether its endpoints are asked for on this host.
    pub(super) is_asked: bool,
}

/// What is done about each name of the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Choice {
    /// Whose changes are waited for.
    pub(super) waited: BTreeSet<Reading>,
    /// What is read in turn.
    pub(super) in_turn: BTreeSet<Reading>,
    /// What is read seldom: of those that nobody here calls the ones that are no services of the mesh.
    pub(super) seldom: BTreeSet<Reading>,
}

/// Services that are asked for come first. Then come those of the mesh, because a connection to the real address of any of
/// their endpoints is captured, and of these the ones that are waited for already, so that none changes sides without need. What
/// is no service of the mesh is not read.
pub(super) fn choose(
    names: &BTreeMap<String, Vec<String>>,
    waited: &BTreeSet<Reading>,
    subscription: &Subscription,
) -> Choice {
    let is_waited = |name: &str| {
        let mut either = [true, false].into_iter();
        either.any(|is_asked| waited.contains(&Reading { name: name.to_owned(), is_asked }))
    };
    let mut choice = Choice::default();
    let mut ranked = Vec::new();
    for (name, tags) in names {
        let Ok(service) = service_named(name) else { continue };
        let reading = Reading { name: name.clone(), is_asked: subscription.covers(&service) };
        let is_of_mesh = name == CONSUL_ITSELF || tags.iter().any(|tag| tag == TAG);
        if reading.is_asked || is_of_mesh {
            ranked.push((!is_by_name(subscription, &reading), !is_of_mesh, !is_waited(name), reading));
        } else {
            choice.seldom.insert(reading);
        }
    }
    ranked.sort();
    let mut all = ranked.into_iter().map(|(_, _, _, reading)| reading);
    choice.waited = all.by_ref().take(MAX_WAITED).collect();
    choice.in_turn = all.collect();
    choice
}

/// Whether a service is asked for as itself, and not because all are.
fn is_by_name(subscription: &Subscription, reading: &Reading) -> bool {
    reading.is_asked && *subscription != Subscription::All
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, tags: &[&str]) -> (String, Vec<String>) {
        (name.to_owned(), tags.iter().map(|tag| (*tag).to_owned()).collect())
    }

    fn has(set: &BTreeSet<Reading>, name: &str) -> bool {
        set.iter().any(|reading| reading.name == name)
    }

    #[test]
    fn services_of_the_mesh_are_waited_for_first_and_none_changes_sides_without_need() {
        let all = Subscription::All;
        let mut names: BTreeMap<_, _> = (0..100).map(|n| named(&format!("a{n:02}"), &[])).collect();
        names.extend([named("zz", &["x", TAG]), named("consul", &[])]);
        let choice = choose(&names, &BTreeSet::new(), &all);
        assert!(has(&choice.waited, "zz") && choice.waited.len() == MAX_WAITED);
        assert!(has(&choice.waited, "consul"));
        assert_eq!((choice.in_turn.len(), choice.seldom.len()), (102 - MAX_WAITED, 0));
        names.extend([named("a", &[]), named("zz.default", &[TAG]), named("No_Name", &[])]);
        let again = choose(&names, &choice.waited, &all);
        assert_eq!(again.waited, choice.waited);
        let small: BTreeMap<_, _> = [named("a", &[])].into();
        let expected = BTreeSet::from([Reading { name: "a".to_owned(), is_asked: true }]);
        let choice = choose(&small, &choice.waited, &all);
        assert_eq!(choice, Choice { waited: expected, ..Choice::default() });
    }

    #[test]
    fn services_that_are_asked_for_are_waited_for_before_those_of_the_mesh_and_others_are_read_seldom() {
        let asked = Subscription::read(&["legacy.default".to_owned()]).expect("services");
        let mut names: BTreeMap<_, _> = (0..100).map(|n| named(&format!("m{n:02}"), &[TAG])).collect();
        names.extend([named("legacy", &[]), named("other", &[])]);
        let before = choose(&names, &BTreeSet::new(), &Subscription::default());
        assert!(has(&before.seldom, "legacy") && has(&before.seldom, "other"));
        assert_eq!((before.waited.len(), before.in_turn.len()), (MAX_WAITED, 100 - MAX_WAITED));
        let after = choose(&names, &before.waited, &asked);
        assert!(after.waited.contains(&Reading { name: "legacy".to_owned(), is_asked: true }));
        assert!(has(&after.seldom, "other") && after.seldom.len() == 1);
        assert_eq!(after.waited.intersection(&before.waited).count(), MAX_WAITED - 1);
    }
}
