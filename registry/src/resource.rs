//! One resource as read, with the place where it stands.

use std::sync::Arc;

use baremesh_model::authorization::AuthorizationPolicy;
use baremesh_model::destination_rule::DestinationRule;
use baremesh_model::gateway::Gateway;
use baremesh_model::grant::{AddressGrant, Grant};
use baremesh_model::mesh::{Kind, ResourceId};
use baremesh_model::mesh_config::MeshConfig;
use baremesh_model::name::{Key, Label, default_namespace};
use baremesh_model::pattern::Pattern;
use baremesh_model::peer_authentication::PeerAuthentication;
use baremesh_model::rate_limit::RateLimit;
use baremesh_model::request_authentication::RequestAuthentication;
use baremesh_model::service::Service;
use baremesh_model::service_entry::ServiceEntry;
use baremesh_model::sidecar::Sidecar;
use baremesh_model::virtual_service::VirtualService;
use baremesh_model::workload::Workload;
use baremesh_model::workload_group::WorkloadGroup;

pub use crate::format::source::Origin;

/// A resource of any kind. Those of which a mesh has thousands are shared by all who hold them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // Each is what the kind's type says.
pub enum Resource {
    MeshConfig(Box<MeshConfig>),
    Service(Box<Service>),
    Workload(Arc<Workload>),
    VirtualService(Box<VirtualService>),
    PeerAuthentication(Box<PeerAuthentication>),
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
    HostGrant(Box<HostGrant>),
    DestinationRule(Box<DestinationRule>),
    RateLimit(Box<RateLimit>),
    RequestAuthentication(Box<RequestAuthentication>),
    ServiceEntry(Box<ServiceEntry>),
    WorkloadGroup(Box<WorkloadGroup>),
    Sidecar(Box<Sidecar>),
    Gateway(Box<Gateway>),
}

impl Resource {
    /// The kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::MeshConfig(_) => Kind::MeshConfig,
            Self::Service(_) => Kind::Service,
            Self::Workload(_) => Kind::WorkloadEntry,
            Self::VirtualService(_) => Kind::VirtualService,
            Self::PeerAuthentication(_) => Kind::PeerAuthentication,
            Self::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Self::HostGrant(_) => Kind::HostGrant,
            Self::DestinationRule(_) => Kind::DestinationRule,
            Self::RateLimit(_) => Kind::RateLimit,
            Self::RequestAuthentication(_) => Kind::RequestAuthentication,
            Self::ServiceEntry(_) => Kind::ServiceEntry,
            Self::WorkloadGroup(_) => Kind::WorkloadGroup,
            Self::Sidecar(_) => Kind::Sidecar,
            Self::Gateway(_) => Kind::Gateway,
        }
    }

    /// Namespace and name. A mesh has one MeshConfig, whose key is always the same, so that a changed name
    /// replaces it instead of standing beside it.
    pub fn key(&self) -> Key {
        match self {
            Self::MeshConfig(_) => mesh_config_key(),
            Self::Service(service) => service.key.clone(),
            Self::Workload(workload) => workload.key.clone(),
            Self::VirtualService(service) => service.key.clone(),
            Self::PeerAuthentication(policy) => policy.key.clone(),
            Self::AuthorizationPolicy(policy) => policy.key.clone(),
            Self::HostGrant(grant) => grant.key.clone(),
            Self::DestinationRule(rule) => rule.key.clone(),
            Self::RateLimit(limit) => limit.key.clone(),
            Self::RequestAuthentication(policy) => policy.key.clone(),
            Self::ServiceEntry(entry) => entry.key.clone(),
            Self::WorkloadGroup(group) => group.key.clone(),
            Self::Sidecar(sidecar) => sidecar.key.clone(),
            Self::Gateway(gateway) => gateway.key.clone(),
        }
    }

    /// Which resource it is.
    pub fn id(&self) -> ResourceId {
        ResourceId { kind: self.kind(), key: self.key() }
    }
}

/// The key of the one MeshConfig.
pub fn mesh_config_key() -> Key {
    Key::new(default_namespace(), Label::new("mesh").expect("a label"))
}

/// Every kind that is taken, in the order of the reference.
pub const KINDS: [Kind; 14] = [
    Kind::MeshConfig,
    Kind::Service,
    Kind::WorkloadEntry,
    Kind::VirtualService,
    Kind::PeerAuthentication,
    Kind::AuthorizationPolicy,
    Kind::HostGrant,
    Kind::DestinationRule,
    Kind::RateLimit,
    Kind::RequestAuthentication,
    Kind::ServiceEntry,
    Kind::WorkloadGroup,
    Kind::Sidecar,
    Kind::Gateway,
];

/// Which services a host may be issued identities for, and which addresses it may announce. It grants something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostGrant {
    /// Namespace and name of the resource.
    pub key: Key,
    /// The hosts that it is for.
    pub host: HostPattern,
    /// What they may be.
    pub services: Vec<Grant>,
    /// Where else than at the addresses that they speak from they may say that they are.
    pub addresses: Vec<AddressGrant>,
}

/// Hosts by name: exact, `web-*`, `*-eu` or `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPattern(Pattern);

impl HostPattern {
    /// Reads a pattern; `None` if no host's name could match it.
    pub fn new(text: &str) -> Option<Self> {
        let bare = text.strip_prefix('*').or_else(|| text.strip_suffix('*')).unwrap_or(text);
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let exact = !text.contains('*');
        let valid = if exact { Label::new(text).is_ok() } else { bare.bytes().all(allowed) };
        (valid && text.len() <= 63).then(|| Self(Pattern::new(text)))
    }

    /// Whether a host is meant.
    pub fn matches(&self, host: &Label) -> bool {
        self.0.matches(host.as_str())
    }
}

impl std::fmt::Display for HostPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Something that was read, with the place where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<T> {
    /// What was read.
    pub value: T,
    /// Where it stands.
    pub origin: Origin,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_patterns_match_names_of_hosts_alone() {
        let check = |pattern: &str, host: &str, expected: Option<bool>| {
            let host = Label::new(host).expect("a label");
            let found = HostPattern::new(pattern).map(|pattern| pattern.matches(&host));
            assert_eq!(found, expected, "{pattern} on {host}");
        };
        check("h1", "h1", Some(true));
        check("h1", "h10", Some(false));
        check("web-*", "web-1", Some(true));
        check("*-eu", "db-eu", Some(true));
        check("*", "h1", Some(true));
        for bad in ["", "H1", "a*b", "*a*", "**", "a.b", "a b", "-a"] {
            check(bad, "h1", None);
        }
    }
}
