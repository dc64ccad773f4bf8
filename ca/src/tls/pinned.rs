//! Verifying the control server before the mesh's root is known: the join token carries the root's fingerprint,
//! the server shows its chain with the root last, and only the control server's own identity is taken.

use baremesh_model::identity::Identity;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::anchor_from_trusted_cert;

use super::verify::{refuse_tls12, signature_algorithms, verify_chain};
use super::{PeerError, Purpose, TrustBundle};
use crate::issued::MAX_CHAIN;
use crate::key::sha256;

/// SHA-256 over a root certificate in DER.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of a root.
    pub fn of(root: &CertificateDer<'_>) -> Self {
        Self(sha256(root))
    }

    /// Takes a fingerprint as a token carries it.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The hash itself.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// In lower-case hexadecimal.
impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Verifies that `chain`, as a server showed it, is a control server's under the root with this fingerprint.
/// Returns that root with the trust domain that the server's identity names.
pub fn pinned_bundle(
    chain: &[CertificateDer<'_>],
    fingerprint: Fingerprint,
    now: UnixTime,
) -> Result<TrustBundle, Error> {
    let (leaf, rest) = chain.split_first().ok_or(PeerError::NotPinned)?;
    let root = rest.iter().take(MAX_CHAIN).find(|shown| Fingerprint::of(shown) == fingerprint);
    let root = root.ok_or(PeerError::NotPinned)?;
    let anchor = anchor_from_trusted_cert(root).map_err(|_| PeerError::NotPinned)?;
    let found = verify_chain(leaf, rest, &[anchor], Purpose::Server, now)?;
    let control = Identity::control(found.trust_domain().clone());
    if found != control {
        return Err(PeerError::Unexpected { found, expected: control.to_string() }.into());
    }
    TrustBundle::new(found.trust_domain().clone(), vec![root.clone().into_owned()])
        .map_err(|error| Error::General(error.to_string()))
}

/// The verifier of a client that joins.
#[derive(Debug)]
pub(super) struct PinnedVerifier(pub(super) Fingerprint);

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let mut chain = vec![end_entity.clone()];
        chain.extend(intermediates.iter().cloned());
        pinned_bundle(&chain, self.0, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(refuse_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &signature_algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        signature_algorithms().supported_schemes()
    }
}
