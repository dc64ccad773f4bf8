//! The mesh's TLS. One provider, one way to verify a peer, and the configurations of every listener and caller
//! between members: TLS 1.3 only, HTTP/2 only, no resumption, because a resumed session would skip the verifier
//! and let a peer in whose certificate has ended.

use std::sync::{Arc, OnceLock};

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};

/// The roots that a member trusts.
mod bundle;
/// Configurations of listeners and callers.
mod config;
/// What a failed handshake means for an operator.
mod fault;
/// Verifying a server whose root is known by its fingerprint alone.
mod pinned;
/// Verifying a peer.
mod verify;

pub use bundle::{BundleError, FederatedRoots, MAX_FEDERATED, MAX_ROOTS, TrustBundle};
pub use config::{
    ALPN, client_config, control_server_config, join_client_config, placeholder_server_name, server_config,
    single_certificate,
};
pub use fault::{describe, describe_io};
pub use pinned::{Fingerprint, pinned_bundle};
pub use verify::{Expected, NODE_GRACE, PeerError, PeerVerifier, Purpose, verify_anonymous_chain};

pub use crate::leaf::{LeafError, LeafFacts, peer_identity, peer_leaf_facts, validity};

/// AWS-LC with the post-quantum hybrid first (RFC 9794 calls such a scheme a PQ/T hybrid), and AES-128-GCM before
/// AES-256-GCM because it is faster and as safe here. ChaCha20 is left out: every host of a mesh has AES in
/// hardware, and HBONE peers do not offer it.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let make = || CryptoProvider {
        cipher_suites: vec![cipher_suite::TLS13_AES_128_GCM_SHA256, cipher_suite::TLS13_AES_256_GCM_SHA384],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
        ..default_provider()
    };
    PROVIDER.get_or_init(|| Arc::new(make())).clone()
}

#[cfg(test)]
mod tests;
