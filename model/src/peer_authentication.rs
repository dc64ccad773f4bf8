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

/// The mode for `port` of a workload: of the policy with a selector for it, else the namespace's, else the root
/// namespace's, else the mesh's default. Where two stand at one level, the first by key decides.
pub fn mode_of(
    policies: &[PeerAuthentication],
    (namespace, labels): (&Label, &Labels),
    port: u16,
    (root_namespace, default): (&Label, MtlsMode),
) -> MtlsMode {
    let selected = policies.iter().find(|policy| {
        policy.key.namespace == *namespace
            && policy.selector.as_ref().is_some_and(|selector| selects(selector, labels))
    });
    let of_port = selected.and_then(|policy| policy.ports.get(&port).copied().flatten());
    let of_selected = selected.and_then(|policy| policy.mode);
    let wide = |space: &Label| {
        let whole =
            |policy: &&PeerAuthentication| policy.key.namespace == *space && policy.selector.is_none();
        policies.iter().find(whole).and_then(|policy| policy.mode)
    };
    of_port.or(of_selected).or_else(|| wide(namespace)).or_else(|| wide(root_namespace)).unwrap_or(default)
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
}
