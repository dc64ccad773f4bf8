//! Verifying a peer: the chain to a root of the bundle, time, purpose, and the identity. The name that was asked
//! for (SNI) plays no part; who a peer is stands in its certificate's one URI name.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use baremesh_model::identity::Identity;
use baremesh_model::name::TrustDomain;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::{TrustBundle, provider};
use crate::clock::to_verification_time;
use crate::issued::MAX_CHAIN;
use crate::leaf::{LeafError, Purposes, identity_and_purposes, peer_leaf_facts, purposes, serial};

/// How long after its end a node credential still opens the control server, to be renewed and for nothing else: as long as
/// the mesh keeps the virtual addresses of what is gone. A host that was off for longer joins again.
pub const NODE_GRACE: Duration = Duration::from_secs(7 * 86_400);

/// What is wrong with a peer whose chain and dates are right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The certificate shows no identity.
    #[error(transparent)]
    Leaf(#[from] LeafError),
    /// The certificate is for something else than this side of TLS.
    #[error("the peer's certificate ({0}) is not meant for this side of TLS (extended key usage)")]
    Purpose(Identity),
    /// Another mesh.
    #[error("the peer is {found}, but this mesh's trust domain is {expected}")]
    OtherTrustDomain {
        /// Who the peer is.
        found: Identity,
        /// Whose peers are taken.
        expected: TrustDomain,
    },
    /// What another mesh keeps for itself: its control server, its nodes, its operators.
    #[error("the peer shows {0}, which is no service of its mesh: those are for its own control server only")]
    FederatedReserved(Identity),
    /// A member of the mesh, but not the one that was called.
    #[error(
        "the peer is {found}, not {expected}: does another service, or another agent, answer at this address?"
    )]
    Unexpected {
        /// Who the peer is.
        found: Identity,
        /// Who was called.
        expected: String,
    },
    /// A host's node credential, shown to a member of the mesh.
    #[error("the peer shows {0}, a node credential: those are for the control server only")]
    NodeCredential(Identity),
    /// Taken back by an operator.
    #[error(
        "the peer shows a certificate of {0} that was revoked: `baremesh certs revoked` on the control host says when"
    )]
    Revoked(Identity),
    /// An operator's credential, shown to a member of the mesh.
    #[error("the peer shows {0}, an operator's credential: those are for the control server only")]
    OperatorCredential(Identity),
    /// More certificates than a member shows; to look for a path among them is what a stranger would have us do.
    #[error("the peer shows {0} certificates, and a chain has {MAX_CHAIN} at most")]
    TooLong(usize),
    /// None of the presented certificates is the root that the token names.
    #[error(
        "the server shows no root with the fingerprint of the token: is this the control server that made the token?"
    )]
    NotPinned,
}

impl From<PeerError> for Error {
    fn from(error: PeerError) -> Self {
        CertificateError::Other(OtherError(Arc::new(error))).into()
    }
}

/// On which side of TLS the verified peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The peer is the server.
    Server,
    /// The peer is the client.
    Client,
}

impl Purpose {
    /// webpki takes a certificate without extended key usage for any purpose; a mesh leaf names its purposes.
    fn is_among(self, named: &Purposes) -> bool {
        match self {
            Self::Server => named.server,
            Self::Client => named.client,
        }
    }
}

/// Whom a caller takes for the callee.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Any member of the mesh.
    Anyone,
    /// One of these, byte for byte. An empty list takes nobody.
    OneOf(Arc<[Identity]>),
}

impl Expected {
    /// This identity and no other.
    pub fn exactly(identity: Identity) -> Self {
        Self::OneOf(Arc::from([identity]))
    }

    fn check(&self, found: &Identity) -> Result<(), PeerError> {
        match self {
            Self::Anyone => Ok(()),
            Self::OneOf(allowed) if allowed.contains(found) => Ok(()),
            Self::OneOf(allowed) => {
                let expected = allowed.iter().map(Identity::to_string).collect::<Vec<_>>().join(" or ");
                Err(PeerError::Unexpected { found: found.clone(), expected })
            }
        }
    }
}

/// Whose connections a listener takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listener {
    /// Members', with a certificate; node credentials and those of operators are for the control server only.
    Mesh,
    /// Those of hosts' agents, of operators, and of hosts that join and have no certificate yet. One that is shown is
    /// verified.
    Control,
}

/// Verifies peers against one bundle, on either side of TLS.
#[derive(Debug)]
pub struct PeerVerifier {
    bundle: Arc<TrustBundle>,
    expected: Expected,
    listener: Listener,
}

impl PeerVerifier {
    /// Takes every member of the bundle's mesh.
    pub fn new(bundle: Arc<TrustBundle>) -> Self {
        Self { bundle, expected: Expected::Anyone, listener: Listener::Mesh }
    }

    /// Takes only the expected members.
    pub fn expecting(bundle: Arc<TrustBundle>, expected: Expected) -> Self {
        Self { expected, ..Self::new(bundle) }
    }

    pub(super) fn of_control(bundle: Arc<TrustBundle>) -> Self {
        Self { listener: Listener::Control, ..Self::new(bundle) }
    }

    /// Verifies a presented chain, and says who the peer is.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        purpose: Purpose,
        now: SystemTime,
    ) -> Result<Identity, Error> {
        self.verify_at(leaf, intermediates, purpose, to_verification_time(now))
    }

    fn verify_at(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        purpose: Purpose,
        now: UnixTime,
    ) -> Result<Identity, Error> {
        if let Some(anchors) = self.anchors_of_stranger(leaf) {
            return self.verify_federated(verify_chain(leaf, intermediates, anchors, purpose, now)?);
        }
        let found = verify_chain(leaf, intermediates, self.bundle.anchors(), purpose, now)?;
        if found.trust_domain() != self.bundle.trust_domain() {
            let expected = self.bundle.trust_domain().clone();
            return Err(PeerError::OtherTrustDomain { found, expected }.into());
        }
        self.expected.check(&found)?;
        let revoked = self.bundle.revoked();
        if !revoked.is_empty() && revoked.contains(&serial(leaf).map_err(PeerError::from)?) {
            return Err(PeerError::Revoked(found).into());
        }
        Ok(found)
    }
}

impl PeerVerifier {
    /// What vouches for a leaf that claims an identity of a federated trust domain. The roots are chosen by what it claims,
    /// and then have to prove it: no domain's roots are asked about another one's identities. The control server takes
    /// members of its own mesh alone.
    fn anchors_of_stranger(&self, leaf: &CertificateDer<'_>) -> Option<&[TrustAnchor<'static>]> {
        if self.listener == Listener::Control || self.bundle.federated().len() == 0 {
            return None;
        }
        let (claimed, _) = identity_and_purposes(leaf).ok()?;
        self.bundle.anchors_of_federated(claimed.trust_domain())
    }

    /// Checks what is left to check of an identity that its own domain's roots vouch for. That domain's list of revoked
    /// certificates is not known here, and this mesh's says nothing of its serial numbers.
    fn verify_federated(&self, found: Identity) -> Result<Identity, Error> {
        if found.is_reserved() && found.as_host().is_none() {
            return Err(PeerError::FederatedReserved(found).into());
        }
        self.expected.check(&found)?;
        Ok(found)
    }
}

/// When a node credential ended, if it did and not too long ago.
fn ended_within_grace(leaf: &CertificateDer<'_>, now: UnixTime) -> Option<SystemTime> {
    let facts = peer_leaf_facts(leaf).ok().filter(|facts| facts.identity.as_node().is_some())?;
    let ended = to_verification_time(facts.not_after);
    let late = now.as_secs().checked_sub(ended.as_secs())?;
    (late > 0 && late <= NODE_GRACE.as_secs()).then_some(facts.not_after)
}

/// Verifies everything about a chain but whose it is: what `PeerVerifier` does before it reads the identity. For chains
/// of other authorities, whose leaves name nobody of a mesh; it lets nobody in.
pub fn verify_anonymous_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &[CertificateDer<'_>],
    purpose: Purpose,
    now: SystemTime,
) -> Result<(), Error> {
    let anchors =
        roots.iter().map(anchor_from_trusted_cert).collect::<Result<Vec<_>, _>>().map_err(to_tls_error)?;
    verify_path(leaf, intermediates, &anchors, purpose, to_verification_time(now))?;
    match purpose.is_among(&purposes(leaf).map_err(PeerError::from)?) {
        true => Ok(()),
        false => Err(CertificateError::InvalidPurpose.into()),
    }
}

/// Chain, dates and purpose through webpki, then the one identity.
pub(super) fn verify_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'_>],
    purpose: Purpose,
    now: UnixTime,
) -> Result<Identity, Error> {
    verify_path(leaf, intermediates, anchors, purpose, now)?;
    let (identity, purposes) = identity_and_purposes(leaf).map_err(PeerError::from)?;
    if purpose.is_among(&purposes) { Ok(identity) } else { Err(PeerError::Purpose(identity).into()) }
}

fn verify_path(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'_>],
    purpose: Purpose,
    now: UnixTime,
) -> Result<(), Error> {
    let shown = 1 + intermediates.len();
    if shown > MAX_CHAIN {
        return Err(PeerError::TooLong(shown).into());
    }
    let usage = match purpose {
        Purpose::Server => KeyUsage::server_auth(),
        Purpose::Client => KeyUsage::client_auth(),
    };
    let end_entity = EndEntityCert::try_from(leaf).map_err(to_tls_error)?;
    end_entity
        .verify_for_usage(signature_algorithms().all, anchors, intermediates, now, usage, None, None)
        .map_err(to_tls_error)?;
    Ok(())
}

/// Keeps apart what deserves an alert and an explanation of its own.
fn to_tls_error(error: webpki::Error) -> Error {
    use webpki::Error as Pki;
    match error {
        Pki::BadDer | Pki::BadDerTime | Pki::TrailingData(_) => CertificateError::BadEncoding,
        Pki::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after },
        Pki::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }
        }
        Pki::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        Pki::UnknownIssuer => CertificateError::UnknownIssuer,
        Pki::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    }
    .into()
}

pub(super) fn signature_algorithms() -> WebPkiSupportedAlgorithms {
    provider().signature_verification_algorithms
}

/// TLS 1.2 is never negotiated; should it be one day, it must not pass silently.
pub(super) fn refuse_tls12() -> Error {
    Error::General("the mesh speaks TLS 1.3 only".to_owned())
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify_at(end_entity, intermediates, Purpose::Server, now)?;
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

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.listener == Listener::Mesh
    }

    /// No hints: every caller has one certificate to show, and hints would only name the mesh to strangers.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let found = match (self.verify_at(end_entity, intermediates, Purpose::Client, now), self.listener) {
            (Err(error), Listener::Control) => {
                let ended = ended_within_grace(end_entity, now).ok_or(error)?;
                self.verify_at(end_entity, intermediates, Purpose::Client, to_verification_time(ended))?
            }
            (found, _) => found?,
        };
        if self.listener == Listener::Mesh && found.as_node().is_some() {
            return Err(PeerError::NodeCredential(found).into());
        }
        if self.listener == Listener::Mesh && found.as_operator().is_some() {
            return Err(PeerError::OperatorCredential(found).into());
        }
        Ok(ClientCertVerified::assertion())
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
