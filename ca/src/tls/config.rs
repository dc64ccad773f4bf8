//! Configurations of listeners and callers. Every one of them is TLS 1.3, HTTP/2, without resumption.

use std::sync::Arc;

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;

use super::pinned::PinnedVerifier;
use super::{Expected, Fingerprint, PeerVerifier, TrustBundle, provider};

/// The one protocol that members speak inside TLS, RFC 9113.
pub const ALPN: &[u8] = b"h2";

/// A member's listener: a client certificate is required, and verified against `bundle`. Node credentials, which
/// outlast the others and are for the control server, are refused.
pub fn server_config(resolver: Arc<dyn ResolvesServerCert>, bundle: Arc<TrustBundle>) -> ServerConfig {
    listener(resolver, PeerVerifier::new(bundle))
}

/// The control server's listener. A client that joins has no certificate yet; one that shows a certificate is
/// verified. The resolver's chain must end with the root, because a client that joins knows its fingerprint only.
pub fn control_server_config(
    resolver: Arc<dyn ResolvesServerCert>,
    bundle: Arc<TrustBundle>,
) -> ServerConfig {
    listener(resolver, PeerVerifier::of_control(bundle))
}

fn listener(resolver: Arc<dyn ResolvesServerCert>, verifier: PeerVerifier) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has suites and groups for TLS 1.3")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    // A peer that prefers AES-256-GCM gets the faster AES-128-GCM when it offers that too.
    config.ignore_client_order = true;
    config
}

/// A member that calls: shows the resolver's certificate, takes only the expected callees.
pub fn client_config(
    resolver: Arc<dyn ResolvesClientCert>,
    bundle: Arc<TrustBundle>,
    expected: Expected,
) -> ClientConfig {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has suites and groups for TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PeerVerifier::expecting(bundle, expected)))
        .with_client_cert_resolver(resolver);
    without_resumption(config)
}

/// A host that joins: no certificate of its own, and only the root's fingerprint to go by. After the handshake,
/// `pinned_bundle` on the presented chain yields root and trust domain.
pub fn join_client_config(fingerprint: Fingerprint) -> ClientConfig {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has suites and groups for TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedVerifier(fingerprint)))
        .with_no_client_auth();
    let mut config = without_resumption(config);
    config.enable_sni = false;
    config
}

fn without_resumption(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config
}

/// Always the same certificate, on either side of TLS.
pub fn single_certificate(key: Arc<CertifiedKey>) -> Arc<SingleCertAndKey> {
    Arc::new(SingleCertAndKey::from(key))
}

/// What stands for a server name where none is sent and none is verified.
pub fn placeholder_server_name() -> ServerName<'static> {
    ServerName::try_from("mesh.invalid").expect("a DNS name (RFC 6761 reserves its end)")
}
