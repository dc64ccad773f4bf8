//! Subscriptions: every agent holds all services, policies and settings; endpoints it holds only of the services
//! that it asks for.

use std::collections::BTreeSet;

use baremesh_model::name::Key;

/// Most services that an agent asks for by name; one that needs more asks for all.
pub const MAX_SUBSCRIBED: usize = 2048;

/// The services whose endpoints an agent asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subscription {
    /// All.
    All,
    /// These.
    Services(BTreeSet<Key>),
}

impl Default for Subscription {
    fn default() -> Self {
        Self::Services(BTreeSet::new())
    }
}

impl Subscription {
    /// These services, or all when they are more than can be asked for by name.
    pub fn of(services: BTreeSet<Key>) -> Self {
        if services.len() > MAX_SUBSCRIBED { Self::All } else { Self::Services(services) }
    }

    /// Whether the endpoints of a service are asked for.
    pub fn covers(&self, service: &Key) -> bool {
        match self {
            Self::All => true,
            Self::Services(services) => services.contains(service),
        }
    }

    /// The written form: `*`, or `name.namespace` of each service.
    pub fn written(&self) -> Vec<String> {
        match self {
            Self::All => vec!["*".to_owned()],
            Self::Services(services) => services.iter().map(ToString::to_string).collect(),
        }
    }

    /// Reads the written form. `None` when something in it is no service's name.
    pub fn read(written: &[String]) -> Option<Self> {
        if written.iter().any(|name| name == "*") {
            return Some(Self::All);
        }
        written.iter().map(|name| service_key(name)).collect::<Option<_>>().map(Self::of)
    }
}

/// Reads `name.namespace`, or `namespace/host` of a ServiceEntry's host.
pub fn service_key(text: &str) -> Option<Key> {
    Key::read(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(written: &[&str], expected: Option<&[&str]>) {
        let written: Vec<String> = written.iter().map(ToString::to_string).collect();
        let found = Subscription::read(&written).map(|subscription| subscription.written());
        let expected: Option<Vec<String>> =
            expected.map(|names| names.iter().map(ToString::to_string).collect());
        assert_eq!(found, expected, "{written:?}");
    }

    #[test]
    fn reads_what_it_writes() {
        check(&[], Some(&[]));
        check(&["*"], Some(&["*"]));
        check(&["orders.shop", "*"], Some(&["*"]));
        check(&["b.x", "a.x", "b.x"], Some(&["a.x", "b.x"]));
        check(&["orders"], None);
        check(&["a.b.c"], None);
        check(&[".b"], None);
    }

    #[test]
    fn asks_for_all_when_the_names_are_too_many() {
        let keys = |n| (0..n).filter_map(|i| service_key(&format!("s{i}.default"))).collect();
        assert_ne!(Subscription::of(keys(MAX_SUBSCRIBED)), Subscription::All);
        assert_eq!(Subscription::of(keys(MAX_SUBSCRIBED + 1)), Subscription::All);
    }
}
