//! Where a route holds: for whom a VirtualService is visible, at which gateways, from which workloads, on which port. All
//! of it is known before a request's head is read.

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU16;

use super::unmet::Unmet;
use crate::name::{Key, Label};
use crate::workload::{Labels, selects};

/// Where traffic enters routing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Gateway {
    /// The agents beside the callers: the reserved name `mesh`.
    #[default]
    Mesh,
    /// A Gateway by its key.
    Named(Key),
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh => f.write_str("mesh"),
            Self::Named(key) => write!(f, "{}/{}", key.namespace, key.name),
        }
    }
}

/// Whose traffic a resource is for: `exportTo`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Visibility {
    /// Everybody's.
    #[default]
    Everywhere,
    /// That of workloads in these namespaces. None at all means nobody's.
    Namespaces(BTreeSet<Label>),
}

impl Visibility {
    /// Whether workloads of `namespace` see it.
    pub fn includes(&self, namespace: &Label) -> bool {
        match self {
            Self::Everywhere => true,
            Self::Namespaces(namespaces) => namespaces.contains(namespace),
        }
    }

    /// Whether there are workloads that see what is for these and what is for those.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Everywhere, Self::Everywhere) => true,
            (Self::Everywhere, Self::Namespaces(some)) | (Self::Namespaces(some), Self::Everywhere) => {
                !some.is_empty()
            }
            (Self::Namespaces(these), Self::Namespaces(those)) => !these.is_disjoint(those),
        }
    }
}

/// Who asks, as far as routes look at it.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// Where the traffic enters: for a caller beside its agent the mesh.
    pub gateway: &'a Gateway,
    /// The namespace of the calling workload.
    pub namespace: &'a Label,
    /// The labels of the calling workload.
    pub labels: &'a Labels,
}

/// What a match asks of the caller and the port. A default one asks for nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scope {
    /// The gateways at which it holds; empty: wherever the resource does.
    pub gateways: Vec<Gateway>,
    /// Labels of the caller.
    pub source_labels: Labels,
    /// The caller's namespace.
    pub source_namespace: Option<Label>,
    /// The port that the caller dialled.
    pub port: Option<NonZeroU16>,
}

impl Scope {
    /// Whether a match on requests holds here. With gateways of its own it does not look at the source.
    pub(super) fn holds_for_requests(&self, caller: Caller<'_>, port: u16) -> bool {
        self.unmet_by_request(caller, port).is_none()
    }

    /// What a request does not have of it, if anything.
    pub(super) fn unmet_by_request(&self, caller: Caller<'_>, port: u16) -> Option<Unmet<'_>> {
        let source =
            if self.gateways.is_empty() { self.unmet_source(caller) } else { self.unmet_gateway(caller) };
        source.or_else(|| self.unmet_port(port))
    }

    /// What a connection does not have of it: everything that is asked for counts.
    pub(super) fn unmet_by_connection(&self, caller: Caller<'_>, port: u16) -> Option<Unmet<'_>> {
        self.unmet_gateway(caller).or_else(|| self.unmet_source(caller)).or_else(|| self.unmet_port(port))
    }

    fn unmet_gateway(&self, caller: Caller<'_>) -> Option<Unmet<'_>> {
        let holds = self.gateways.is_empty() || self.gateways.contains(caller.gateway);
        (!holds).then_some(Unmet::Gateways(&self.gateways))
    }

    fn unmet_source(&self, caller: Caller<'_>) -> Option<Unmet<'_>> {
        if !selects(&self.source_labels, caller.labels) {
            return Some(Unmet::SourceLabels(&self.source_labels));
        }
        let other = |namespace: &&Label| *namespace != caller.namespace;
        self.source_namespace.as_ref().filter(other).map(Unmet::SourceNamespace)
    }

    fn unmet_port(&self, port: u16) -> Option<Unmet<'_>> {
        self.port.filter(|asked| asked.get() != port).map(Unmet::Port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_of_a_match_replace_the_source_for_requests_alone() {
        let namespace = Label::new("shop").expect("a label");
        let labels = Labels::from([("app".into(), "a".into())]);
        let other = Gateway::Named(Key::new(namespace.clone(), Label::new("public").expect("a label")));
        let check = |scope: &Scope, gateway: &Gateway, expected: (bool, bool)| {
            let caller = Caller { gateway, namespace: &namespace, labels: &labels };
            let of_connections = scope.unmet_by_connection(caller, 80).is_none();
            let found = (scope.holds_for_requests(caller, 80), of_connections);
            assert_eq!(found, expected, "{scope:?} at {gateway}");
        };
        let all = Scope::default();
        check(&all, &Gateway::Mesh, (true, true));
        let b = Scope { source_labels: Labels::from([("app".into(), "b".into())]), ..Scope::default() };
        check(&b, &Gateway::Mesh, (false, false));
        let at_mesh = Scope { gateways: vec![Gateway::Mesh], ..b };
        check(&at_mesh, &Gateway::Mesh, (true, false));
        check(&at_mesh, &other, (false, false));
        let port = |number: u16| Scope { port: NonZeroU16::new(number), ..Scope::default() };
        check(&port(80), &Gateway::Mesh, (true, true));
        check(&port(81), &Gateway::Mesh, (false, false));
        let elsewhere = Scope { source_namespace: Label::new("web").ok(), ..Scope::default() };
        check(&elsewhere, &Gateway::Mesh, (false, false));
    }

    #[test]
    fn exported_to_nobody_everybody_or_some() {
        let web = Label::new("web").expect("a label");
        assert!(Visibility::Everywhere.includes(&web));
        assert!(!Visibility::Namespaces(BTreeSet::new()).includes(&web));
        assert!(Visibility::Namespaces(BTreeSet::from([web.clone()])).includes(&web));
    }
}
