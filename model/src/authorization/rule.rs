//! What one rule of a policy asks for.

use std::sync::Arc;

use ipnet::IpNet;

use super::path::PathPattern;
use crate::identity::Identity;
use crate::name::Label;
use crate::pattern::{Match, Pattern};

/// Sources AND operations AND conditions; each list empty asks for nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// Any of these.
    pub from: Vec<Source>,
    /// Any of these.
    pub to: Vec<Operation>,
    /// All of these.
    pub when: Vec<Condition>,
}

/// Who calls: every field must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Source {
    /// Principals, `<trust domain>/ns/<namespace>/sa/<service account>`.
    pub principals: Match<Pattern>,
    /// Who the request's token names, `<issuer>/<subject>`.
    pub request_principals: Match<Pattern>,
    /// Namespaces of the caller's identity.
    pub namespaces: Match<Pattern>,
    /// Service accounts.
    pub service_accounts: Match<ServiceAccount>,
    /// Trust domains of the caller's identity.
    pub trust_domains: Match<Pattern>,
    /// Addresses that the connection comes from.
    pub ip_blocks: Match<IpNet>,
    /// Addresses that the request comes from, as far as proxies before are believed.
    pub remote_ip_blocks: Match<IpNet>,
}

/// A service account in a namespace, written `<namespace>/<account>`, or `<account>` for the policy's own
/// namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    /// The namespace.
    pub namespace: Label,
    /// The account.
    pub account: Label,
}

impl ServiceAccount {
    pub(super) fn is(&self, identity: &Identity) -> bool {
        self.namespace == *identity.namespace() && self.account == *identity.service_account()
    }
}

/// What is called: every field must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Operation {
    /// Host names, with the port where one is written, without case.
    pub hosts: Match<Pattern>,
    /// Ports of the workload.
    pub ports: Match<u16>,
    /// Methods, with case.
    pub methods: Match<Pattern>,
    /// Paths without the query.
    pub paths: Match<PathPattern>,
}

impl super::AuthorizationPolicy {
    /// Whether a rule goes by `connection.sni`.
    pub(super) fn asks_for_server_names(&self) -> bool {
        let mut conditions = self.rules.iter().flat_map(|rule| &rule.when);
        conditions.any(|condition| matches!(condition, Condition::ConnectionSni(_)))
    }
}

/// One entry of `when`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// `source.ip`
    SourceIp(Match<IpNet>),
    /// `remote.ip`
    RemoteIp(Match<IpNet>),
    /// `source.namespace`
    SourceNamespace(Match<Pattern>),
    /// `source.principal`
    SourcePrincipal(Match<Pattern>),
    /// `source.serviceAccount`
    SourceServiceAccount(Match<ServiceAccount>),
    /// `source.trustDomain`
    SourceTrustDomain(Match<Pattern>),
    /// `destination.ip`
    DestinationIp(Match<IpNet>),
    /// `destination.port`
    DestinationPort(Match<u16>),
    /// `connection.sni`
    ConnectionSni(Match<Pattern>),
    /// `request.headers[x]`; the name in lower case. `:authority` and `host`, `:method`, `:path` and `:scheme` are what
    /// HTTP/2 has under these names.
    RequestHeader(Arc<str>, Match<Pattern>),
    /// `request.auth.principal`
    RequestPrincipal(Match<Pattern>),
    /// `request.auth.audiences`
    RequestAudiences(Match<Pattern>),
    /// `request.auth.presenter`
    RequestPresenter(Match<Pattern>),
    /// `request.auth.claims[x][y]`
    RequestClaim(Vec<Arc<str>>, Match<Pattern>),
}

impl Rule {
    /// Whether requests are asked about at all.
    pub fn asks_of_requests(&self) -> bool {
        self.from.iter().any(Source::asks_of_requests)
            || self.to.iter().any(Operation::asks_of_requests)
            || self.when.iter().any(Condition::asks_of_requests)
    }
}

impl Source {
    fn asks_of_requests(&self) -> bool {
        !self.request_principals.is_empty()
    }
}

impl Operation {
    fn asks_of_requests(&self) -> bool {
        !(self.hosts.is_empty() && self.methods.is_empty() && self.paths.is_empty())
    }
}

impl Condition {
    fn asks_of_requests(&self) -> bool {
        match self {
            Self::RequestHeader(..)
            | Self::RequestPrincipal(_)
            | Self::RequestAudiences(_)
            | Self::RequestPresenter(_)
            | Self::RequestClaim(..) => true,
            Self::SourceIp(_)
            | Self::RemoteIp(_)
            | Self::SourceNamespace(_)
            | Self::SourcePrincipal(_)
            | Self::SourceServiceAccount(_)
            | Self::SourceTrustDomain(_)
            | Self::DestinationIp(_)
            | Self::DestinationPort(_)
            | Self::ConnectionSni(_) => false,
        }
    }
}
