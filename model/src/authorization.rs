//! Who may call whom: Istio's AuthorizationPolicy on connections and on requests. Denials come before allowances; with
//! an ALLOW policy in force, what no policy allows is refused. A rule about identity fails closed on a connection that
//! has none, and a rule about requests where none can be seen.

/// What policies decide on.
mod facts;
/// Finding the rules that may match, among thousands.
mod index;
/// Whether a rule matches.
mod matching;
/// Paths as policies write them.
mod path;
/// What rules ask for.
mod rule;
/// All policies of a workload, and what they come to.
mod set;

use std::sync::Arc;

use crate::name::Key;
use crate::workload::Labels;

pub use facts::{Carried, Connection, Facts, Hello, Request, ServerName, server_name, server_names};
pub use matching::Unmet;
pub use path::{PathPattern, PathTemplate, TemplateError};
pub use rule::{Condition, Operation, Rule, ServiceAccount, Source};
pub use set::{Asks, Decision, Matched, Note, PolicySet, Verdict};

/// What a policy does when one of its rules matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Lets the call through, unless something denies it.
    Allow,
    /// Refuses the call.
    Deny,
    /// Decides nothing; the match is recorded.
    Audit,
    /// Has the policy's provider asked, before anything else is decided.
    Custom,
}

/// Whether a policy decides, or only says what it would have decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Enforcement {
    /// Decides.
    Enforced,
    /// Is logged and counted; a dry-run ALLOW grants nothing.
    DryRun,
}

/// One AuthorizationPolicy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// Namespace and name. A policy of the root namespace is for the whole mesh.
    pub key: Key,
    /// The workloads of the namespace that it is for; all of them without a selector.
    pub selector: Option<Labels>,
    /// What a match does.
    pub action: Action,
    /// Whether it decides.
    pub enforcement: Enforcement,
    /// Any of these makes a match. None at all matches nothing: `spec: {}` allows nothing.
    pub rules: Vec<Rule>,
    /// What the caller of a denied request is told, instead of 403 and `RBAC: access denied`. Of DENY policies alone.
    pub response: Option<DenyResponse>,
    /// Who is asked, an extension provider of the mesh by its name. Of CUSTOM policies alone, which all have one.
    pub provider: Option<Arc<str>>,
}

/// What the caller of a denied request is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DenyResponse {
    status: u16,
    body: Option<Arc<str>>,
}

impl DenyResponse {
    /// The longest body, in bytes: it is for people, and goes to whoever is refused.
    pub const MAX_BODY: usize = 4096;

    /// A status of 400 to 599, and a text in the place of `RBAC: access denied`.
    pub fn new(status: u16, body: Option<Arc<str>>) -> Option<Self> {
        let fits = body.as_ref().is_none_or(|body| body.len() <= Self::MAX_BODY);
        ((400..=599).contains(&status) && fits).then_some(Self { status, body })
    }

    /// The status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The body, where the policy has one.
    pub fn body(&self) -> Option<&str> {
        self.body.as_deref()
    }
}

#[cfg(test)]
mod tests;
