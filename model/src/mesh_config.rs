//! Mesh-wide settings: Istio's MeshConfig, as far as it is in force here.

use std::sync::Arc;

use crate::access_log::AccessLogFormat;
use crate::external_authorization::ExtensionProvider;
use crate::federation::Federated;
use crate::http::PathNormalization;
use crate::name::{Domain, Key, Label, TrustDomain};
use crate::network::Network;
use crate::outbound::OutboundPolicy;
use crate::peer_authentication::MtlsMode;
use crate::virtual_address::VirtualRanges;
use crate::virtual_service::RetryPolicy;

/// What holds for the whole mesh. There is one, and `Default` is what an empty file means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshConfig {
    /// The mesh's name: the `cluster` label of every metric.
    pub name: Label,
    /// The trust domain of every identity.
    pub trust_domain: TrustDomain,
    /// The DNS domain of services.
    pub domain: Domain,
    /// The namespace whose policies are for the whole mesh.
    pub root_namespace: Label,
    /// Whether plaintext is taken where no PeerAuthentication says.
    pub default_mtls: MtlsMode,
    /// Where virtual addresses are taken from.
    pub virtual_ranges: VirtualRanges,
    /// How requests are tried again whose route does not say; none: as `RetryPolicy::default` has it.
    pub default_retries: Option<RetryPolicy>,
    /// What the access log looks like.
    pub access_log: AccessLogFormat,
    /// What is done to the paths of requests before anything looks at them.
    pub path_normalization: PathNormalization,
    /// How many proxies before a service are believed when they say in `x-forwarded-for` whom they had a request from:
    /// Istio's `gatewayTopology.numTrustedProxies`.
    pub trusted_proxies: u32,
    /// Who may be asked by CUSTOM policies, each under a name of its own.
    pub extension_providers: Vec<Arc<ExtensionProvider>>,
    /// Other trust domains whose identities are taken.
    pub federation: Vec<Federated>,
    /// Networks that are reached through gateways, by name.
    pub networks: Vec<Network>,
    /// Whether services reach what the registry does not know.
    pub outbound: OutboundPolicy,
}

impl MeshConfig {
    /// The network of that name, where gateways lead to it.
    pub fn network(&self, name: &Label) -> Option<&Network> {
        self.networks.iter().find(|network| network.name == *name)
    }

    /// Whether somebody who is asked by CUSTOM policies is asked at this port of a service. Nobody is asked about that.
    pub fn is_provider(&self, service: &Key, port: u16) -> bool {
        let is_there = |provider: &Arc<ExtensionProvider>| {
            provider.port == port && provider.service(&self.domain).is_some_and(|key| key == *service)
        };
        self.extension_providers.iter().any(is_there)
    }
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            name: Label::new("baremesh").expect("a label"),
            trust_domain: TrustDomain::new("mesh.internal").expect("a domain"),
            domain: Domain::new("mesh.internal").expect("a domain"),
            root_namespace: Label::new("mesh-system").expect("a label"),
            default_mtls: MtlsMode::Permissive,
            virtual_ranges: VirtualRanges::default(),
            default_retries: None,
            access_log: AccessLogFormat::default(),
            path_normalization: PathNormalization::default(),
            extension_providers: Vec::new(),
            trusted_proxies: 0,
            federation: Vec::new(),
            networks: Vec::new(),
            outbound: OutboundPolicy::default(),
        }
    }
}
