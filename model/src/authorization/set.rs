//! All policies of a workload, compiled, and what they come to.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use super::facts::{Carried, Facts, ServerName};
use super::index::{RuleIndex, RuleRef};
use super::{Action, AuthorizationPolicy, DenyResponse, Enforcement};
use crate::name::{Key, Label};
use crate::workload::{Labels, selects};

/// The policies that one workload answers to, in the order of their keys.
#[derive(Debug, Clone, Default)]
pub struct PolicySet {
    policies: Vec<Arc<AuthorizationPolicy>>,
    /// Of DENY and ALLOW policies that decide.
    deny: RuleIndex,
    allow: RuleIndex,
    /// Of DENY and ALLOW policies that are dry runs.
    dry_deny: RuleIndex,
    dry_allow: RuleIndex,
    audit: RuleIndex,
    custom: RuleIndex,
    any: Any,
    asks_for_server_names: bool,
}

/// Which kinds of policies there are, those without rules included.
#[derive(Debug, Clone, Copy, Default)]
struct Any {
    allow: bool,
    dry_allow: bool,
    dry_run: bool,
}

/// Somebody is to be asked before anything is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asks<'a> {
    /// The provider's name.
    pub provider: &'a str,
    /// The CUSTOM policy that wants it.
    pub matched: Matched<'a>,
}

impl fmt::Display for Asks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Key { namespace, name } = &self.matched.policy.key;
        write!(f, "AuthorizationPolicy {namespace}/{name} asks the provider {}", self.provider)
    }
}

/// What the policies came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision<'a> {
    /// Whether the call goes on, and because of what.
    pub verdict: Verdict<'a>,
    /// What it would be if the dry runs decided, too; none where there are no dry runs.
    pub dry_run: Option<Verdict<'a>>,
    /// AUDIT policies that matched, and dry-run policies with what each would have done.
    pub notes: Vec<Note<'a>>,
}

/// Whether a call goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// No ALLOW policy is there for the workload.
    AllowedByDefault,
    /// An ALLOW policy matched.
    AllowedBy(Matched<'a>),
    /// A DENY policy matched.
    DeniedBy(Matched<'a>),
    /// ALLOW policies are there, and none matched.
    NotAllowed,
}

/// What matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matched<'a> {
    /// The policy, the first by its key of those that matched.
    pub policy: &'a AuthorizationPolicy,
    /// The index of its first rule that matched.
    pub rule: usize,
}

/// A policy that matched without deciding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note<'a> {
    /// The policy.
    pub policy: &'a Key,
    /// What it is for.
    pub action: Action,
}

impl Verdict<'_> {
    /// Whether the call goes on.
    pub fn allows(&self) -> bool {
        matches!(self, Self::AllowedByDefault | Self::AllowedBy(_))
    }

    /// Envoy's words for a call that is refused, as access logs have them.
    pub fn details(&self) -> Cow<'static, str> {
        match self {
            Self::DeniedBy(Matched { policy: AuthorizationPolicy { key, .. }, rule }) => {
                let Key { namespace, name } = key;
                format!("rbac_access_denied_matched_policy[ns[{namespace}]-policy[{name}]-rule[{rule}]]")
                    .into()
            }
            Self::AllowedByDefault | Self::AllowedBy(_) | Self::NotAllowed => {
                "rbac_access_denied_matched_policy[none]".into()
            }
        }
    }

    /// What the caller is told in the place of the usual answer.
    pub fn response(&self) -> Option<&DenyResponse> {
        match self {
            Self::DeniedBy(matched) => matched.policy.response.as_ref(),
            Self::AllowedByDefault | Self::AllowedBy(_) | Self::NotAllowed => None,
        }
    }
}

impl fmt::Display for Verdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllowedByDefault => f.write_str("no ALLOW policy selects the workload"),
            Self::AllowedBy(Matched { policy: AuthorizationPolicy { key, .. }, .. }) => {
                write!(f, "allowed by AuthorizationPolicy {}/{}", key.namespace, key.name)
            }
            Self::DeniedBy(Matched { policy: AuthorizationPolicy { key, .. }, .. }) => {
                write!(f, "denied by AuthorizationPolicy {}/{}", key.namespace, key.name)
            }
            Self::NotAllowed => f.write_str("no ALLOW policy of the workload matches"),
        }
    }
}

impl PolicySet {
    /// Picks from `all` the policies for a workload of `namespace` with `labels`.
    pub fn select<'a>(
        all: &'a [Arc<AuthorizationPolicy>],
        namespace: &'a Label,
        labels: &'a Labels,
        root_namespace: &'a Label,
    ) -> impl Iterator<Item = &'a Arc<AuthorizationPolicy>> {
        all.iter().filter(move |policy| {
            (policy.key.namespace == *root_namespace || policy.key.namespace == *namespace)
                && policy.selector.as_ref().is_none_or(|selector| selects(selector, labels))
        })
    }

    /// Compiles policies, which are in the order of their keys.
    pub fn new(policies: Vec<Arc<AuthorizationPolicy>>) -> Self {
        let is = |policy: &AuthorizationPolicy, action, enforcement| {
            policy.action == action && policy.enforcement == enforcement
        };
        let index = |action, enforcement| RuleIndex::new(&policies, |policy| is(policy, action, enforcement));
        let any = |action, enforcement| policies.iter().any(|policy| is(policy, action, enforcement));
        Self {
            deny: index(Action::Deny, Enforcement::Enforced),
            allow: index(Action::Allow, Enforcement::Enforced),
            dry_deny: index(Action::Deny, Enforcement::DryRun),
            dry_allow: index(Action::Allow, Enforcement::DryRun),
            audit: RuleIndex::new(&policies, |policy| policy.action == Action::Audit),
            custom: RuleIndex::new(&policies, |policy| policy.action == Action::Custom),
            any: Any {
                allow: any(Action::Allow, Enforcement::Enforced),
                dry_allow: any(Action::Allow, Enforcement::DryRun),
                dry_run: any(Action::Allow, Enforcement::DryRun) || any(Action::Deny, Enforcement::DryRun),
            },
            asks_for_server_names: policies.iter().any(|policy| policy.asks_for_server_names()),
            policies,
        }
    }

    /// The policies, in the order of their keys.
    pub fn policies(&self) -> &[Arc<AuthorizationPolicy>] {
        &self.policies
    }

    /// Whether any of them goes by `connection.sni`, so that it is worth waiting for.
    pub fn asks_for_server_names(&self) -> bool {
        self.asks_for_server_names
    }

    /// Whether a call may have somebody asked.
    pub fn may_ask(&self) -> bool {
        !self.custom.is_empty()
    }

    /// Who is to be asked about a call next: the provider of the first CUSTOM policy that matches, other than those that
    /// have allowed it already. All of them must, before `decide` is asked.
    pub fn asks(&self, facts: Facts<'_>, allowed_by: &[Arc<str>]) -> Option<Asks<'_>> {
        let at = self.custom.first(facts, |at| {
            self.policy(at).is_some_and(|policy| {
                let is_answered = policy.provider.as_ref().is_some_and(|name| allowed_by.contains(name));
                !is_answered && policy.rule_matches(at.rule(), facts)
            })
        })?;
        let policy = self.policy(at)?;
        // A policy without a provider asks somebody whom nobody knows, which refuses.
        let provider = policy.provider.as_deref().unwrap_or_default();
        Some(Asks { provider, matched: Matched { policy, rule: at.rule() } })
    }

    /// Decides on a call: any DENY that matches refuses, then any ALLOW that matches lets through, and without an enforced
    /// ALLOW policy everything else is let through. While requests, or a server name, are still to come nothing is noted:
    /// each has notes.
    pub fn decide(&self, facts: Facts<'_>) -> Decision<'_> {
        let denied = self.first(&self.deny, facts);
        let allowed = || self.first(&self.allow, facts);
        let verdict = verdict(denied, allowed, self.any.allow);
        let more_to_come = matches!(facts.carried, Carried::Requests)
            || matches!(facts.connection.server_name, ServerName::Pending);
        if more_to_come && verdict.allows() {
            return Decision { verdict, dry_run: None, notes: Vec::new() };
        }
        let dry_run = self.any.dry_run.then(|| {
            let denied = denied.or_else(|| self.first(&self.dry_deny, facts));
            let allowed = || match verdict {
                Verdict::AllowedBy(matched) => Some(matched),
                _ => self.first(&self.dry_allow, facts),
            };
            self::verdict(denied, allowed, self.any.allow || self.any.dry_allow)
        });
        let mut notes = Vec::new();
        for index in [&self.audit, &self.dry_deny, &self.dry_allow] {
            self.note(index, facts, &mut notes);
        }
        Decision { verdict, dry_run, notes }
    }

    /// The first rule that matches, in the order of the policies and of their rules.
    fn first(&self, index: &RuleIndex, facts: Facts<'_>) -> Option<Matched<'_>> {
        let matches =
            |at: RuleRef| self.policy(at).is_some_and(|policy| policy.rule_matches(at.rule(), facts));
        let at = index.first(facts, matches)?;
        self.policy(at).map(|policy| Matched { policy, rule: at.rule() })
    }

    /// Notes each policy with a rule that matches, once.
    fn note<'a>(&'a self, index: &RuleIndex, facts: Facts<'_>, notes: &mut Vec<Note<'a>>) {
        index.each(facts, |at| {
            let Some(policy) = self.policy(at) else { return };
            let is_noted = || notes.iter().any(|note| std::ptr::eq(note.policy, &policy.key));
            if policy.rule_matches(at.rule(), facts) && !is_noted() {
                notes.push(Note { policy: &policy.key, action: policy.action });
            }
        });
    }

    fn policy(&self, at: RuleRef) -> Option<&AuthorizationPolicy> {
        self.policies.get(at.policy()).map(|policy| &**policy)
    }
}

fn verdict<'a>(
    denied: Option<Matched<'a>>,
    allowed: impl FnOnce() -> Option<Matched<'a>>,
    any_allow: bool,
) -> Verdict<'a> {
    match denied {
        Some(matched) => Verdict::DeniedBy(matched),
        None if !any_allow => Verdict::AllowedByDefault,
        None => allowed().map_or(Verdict::NotAllowed, Verdict::AllowedBy),
    }
}
