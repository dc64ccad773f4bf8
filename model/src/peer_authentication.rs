//! Whether a workload takes plaintext: Istio's PeerAuthentication and its precedence.

use std::collections::BTreeMap;

use crate::name::{Key, Label};
use crate::workload::{Labels, selects};

/// The mode that is in force for one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MtlsMode {
    /// Mutual TLS is not asked for: plaintext is taken.
    Disable,
    /// Mutual TLS and plaintext are taken.
    Permissive,
    /// Plaintext is refused.
    Strict,
}

/// One PeerAuthentication. A mode of `None` is UNSET: inherited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// Namespace and name. In the root namespace, without a selector, it is for the whole mesh.
    pub key: Key,
    /// The workloads of the namespace that it is for.
    pub selector: Option<Labels>,
    /// The mode of every port that `ports` does not name.
    pub mode: Option<MtlsMode>,
    /// Modes by the workload's port; only together with a selector.
    pub ports: BTreeMap<u16, Option<MtlsMode>>,
}

/// Where a mode comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModeOrigin<'a> {
    /// What a policy with a selector for the workload says of the port.
    Port(&'a Key),
    /// What a policy with a selector for the workload says.
    Workload(&'a Key),
    /// What the policy of the workload's namespace says.
    Namespace(&'a Key),
    /// What the policy of the root namespace says.
    Root(&'a Key),
    /// No policy says anything: the mesh's default.
    Default,
}

/// The mode for `port` of a workload: of the policy with a selector for it, else the namespace's, else the root
/// namespace's, else the mesh's default. Where two stand at one level, the first by key decides.
pub fn mode_of(
    policies: &[PeerAuthentication],
    workload: (&Label, &Labels),
    port: u16,
    default: (&Label, MtlsMode),
) -> MtlsMode {
    mode_with_origin(policies, workload, port, default).0
}

/// As [`mode_of`], with where the mode comes from.
pub fn mode_with_origin<'a>(
    policies: &'a [PeerAuthentication],
    (namespace, labels): (&Label, &Labels),
    port: u16,
    (root_namespace, default): (&Label, MtlsMode),
) -> (MtlsMode, ModeOrigin<'a>) {
    let selected = policies.iter().find(|policy| {
        policy.key.namespace == *namespace
            && policy.selector.as_ref().is_some_and(|selector| selects(selector, labels))
    });
    let of_port = || {
        let policy = selected?;
        Some((policy.ports.get(&port).copied().flatten()?, ModeOrigin::Port(&policy.key)))
    };
    let of_selected = || selected.and_then(|policy| Some((policy.mode?, ModeOrigin::Workload(&policy.key))));
    let wide = |space: &Label, origin: fn(&'a Key) -> ModeOrigin<'a>| {
        let whole =
            |policy: &&PeerAuthentication| policy.key.namespace == *space && policy.selector.is_none();
        policies.iter().find(whole).and_then(|policy| Some((policy.mode?, origin(&policy.key))))
    };
    of_port()
        .or_else(of_selected)
        .or_else(|| wide(namespace, ModeOrigin::Namespace))
        .or_else(|| wide(root_namespace, ModeOrigin::Root))
        .unwrap_or((default, ModeOrigin::Default))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_policy_decides() {
        let label = |text: &str| Label::new(text).expect("a label");
        let policy = |namespace: &str, app: Option<&str>, mode| PeerAuthentication {
            key: Key::new(label(namespace), label("p")),
            selector: app.map(|app| [("app".into(), app.into())].into()),
            mode,
            ports: [(9000, Some(MtlsMode::Disable)), (9001, None)].into(),
        };
        let check = |policies: &[PeerAuthentication], port, expected| {
            let labels = [("app".into(), "orders".into())].into();
            let found = mode_of(
                policies,
                (&label("shop"), &labels),
                port,
                (&label("mesh-system"), MtlsMode::Permissive),
            );
            assert_eq!(found, expected, "{policies:?}");
        };
        let mesh = policy("mesh-system", None, Some(MtlsMode::Strict));
        let space = policy("shop", None, Some(MtlsMode::Permissive));
        let unset = policy("shop", None, None);
        let orders = policy("shop", Some("orders"), Some(MtlsMode::Strict));
        let others = policy("shop", Some("others"), Some(MtlsMode::Disable));
        check(&[], 80, MtlsMode::Permissive);
        check(std::slice::from_ref(&mesh), 80, MtlsMode::Strict);
        check(&[mesh.clone(), space.clone()], 80, MtlsMode::Permissive);
        check(&[mesh.clone(), unset], 80, MtlsMode::Strict);
        check(&[mesh, space.clone(), orders.clone(), others], 80, MtlsMode::Strict);
        check(&[space.clone(), orders.clone()], 9000, MtlsMode::Disable);
        check(&[space, orders], 9001, MtlsMode::Strict);
    }

    #[test]
    fn where_a_mode_comes_from() {
        let label = |text: &str| Label::new(text).expect("a label");
        let labels: Labels = [("app".into(), "orders".into())].into();
        let policy = |namespace: &str, name: &str, selector: bool, mode| PeerAuthentication {
            key: Key::new(label(namespace), label(name)),
            selector: selector.then(|| labels.clone()),
            mode,
            ports: if selector { [(9000, Some(MtlsMode::Disable))].into() } else { BTreeMap::new() },
        };
        let check = |policies: &[PeerAuthentication], port, expected: &str| {
            let default = (&label("mesh-system"), MtlsMode::Permissive);
            let (_, origin) = mode_with_origin(policies, (&label("shop"), &labels), port, default);
            assert_eq!(format!("{origin:?}"), expected);
        };
        let strict = Some(MtlsMode::Strict);
        let mesh = policy("mesh-system", "mesh", false, strict);
        let space = policy("shop", "space", false, strict);
        let (own, unset) = (policy("shop", "own", true, strict), policy("shop", "own", true, None));
        check(&[], 80, "Default");
        check(std::slice::from_ref(&mesh), 80, "Root(mesh.mesh-system)");
        check(&[mesh.clone(), space.clone()], 80, "Namespace(space.shop)");
        check(&[mesh.clone(), own.clone(), space.clone()], 80, "Workload(own.shop)");
        check(&[mesh, unset, space], 80, "Namespace(space.shop)");
        check(&[own], 9000, "Port(own.shop)");
    }
}
