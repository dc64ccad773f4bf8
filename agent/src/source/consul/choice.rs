//! Which services are waited for, and which are read in turn. Consul lets one address have 200 connections at once unless
//! told otherwise, and a wait is one.

use std::collections::{BTreeMap, BTreeSet};

use baremesh_registry::consul::mark::{TAG, service_named};

/// Most services that are waited for.
pub(super) const MAX_WAITED: usize = 64;

/// Consul's own servers: where they are, no endpoint is taken.
const CONSUL_ITSELF: &str = "consul";

/// What is done about each name of the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Choice {
    /// Whose changes are waited for.
    pub(super) waited: BTreeSet<String>,
    /// What is read in turn.
    pub(super) in_turn: Vec<String>,
}

/// Services of this mesh come first, because agents hold the endpoints of all of them, and then those that are waited for
/// already, so that none changes sides without need. What is no service of the mesh is not read.
pub(super) fn choose(names: &BTreeMap<String, Vec<String>>, waited: &BTreeSet<String>) -> Choice {
    let mut ranked: Vec<_> = names
        .iter()
        .filter(|(name, _)| service_named(name).is_ok())
        .map(|(name, tags)| {
            (
                *name != CONSUL_ITSELF && !tags.iter().any(|tag| tag == TAG),
                !waited.contains(name),
                name.clone(),
            )
        })
        .collect();
    ranked.sort();
    let mut all = ranked.into_iter().map(|(_, _, name)| name);
    let waited = all.by_ref().take(MAX_WAITED).collect();
    Choice { waited, in_turn: all.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_of_the_mesh_are_waited_for_first_and_none_changes_sides_without_need() {
        let named = |name: String, tags: &[&str]| (name, tags.iter().map(|tag| (*tag).to_owned()).collect());
        let mut names: BTreeMap<_, _> = (0..100).map(|n| named(format!("a{n:02}"), &[])).collect();
        names.extend([named("zz".to_owned(), &["x", TAG]), named("consul".to_owned(), &[])]);
        let choice = choose(&names, &BTreeSet::new());
        assert!(choice.waited.contains("zz") && choice.waited.len() == MAX_WAITED);
        assert!(choice.waited.contains("consul"));
        assert_eq!(choice.in_turn.len(), 102 - MAX_WAITED);
        names.extend([
            named("a".to_owned(), &[]),
            named("zz.default".to_owned(), &[TAG]),
            named("No_Name".to_owned(), &[]),
        ]);
        let again = choose(&names, &choice.waited);
        assert_eq!(again.waited, choice.waited);
        let small: BTreeMap<_, _> = [named("a".to_owned(), &[])].into();
        assert_eq!(
            choose(&small, &choice.waited),
            Choice { waited: ["a".to_owned()].into(), in_turn: vec![] }
        );
    }
}
