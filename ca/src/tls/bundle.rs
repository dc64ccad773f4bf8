//! The roots that a member trusts, the trust domain whose identities they vouch for, and the certificates under them
//! that are revoked.

use std::fmt;
use std::sync::Arc;

use baremesh_model::name::TrustDomain;
use rustls_pki_types::{CertificateDer, TrustAnchor};
use webpki::anchor_from_trusted_cert;

use crate::issued::{chain_from_pem, chain_to_pem};
use crate::revocation::Revoked;

/// The most roots in one bundle: the one in force, and a few while roots are replaced.
pub const MAX_ROOTS: usize = 8;

/// Why certificates cannot serve as roots.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// None, or too many.
    #[error("a trust bundle has 1 to {MAX_ROOTS} root certificates in PEM, not {0}")]
    Count(usize),
    /// Not usable as a trust anchor.
    #[error("a root certificate cannot be used as a trust anchor: {0}")]
    Root(String),
}

/// Roots and their trust domain. At least one root, each usable.
#[derive(Clone)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    revoked: Arc<Revoked>,
}

impl TrustBundle {
    /// Checks and takes roots.
    pub fn new(trust_domain: TrustDomain, roots: Vec<CertificateDer<'static>>) -> Result<Self, BundleError> {
        if roots.is_empty() || roots.len() > MAX_ROOTS {
            return Err(BundleError::Count(roots.len()));
        }
        let anchors = roots
            .iter()
            .map(|root| anchor_from_trusted_cert(root).map(|anchor| anchor.to_owned()))
            .collect::<Result<_, _>>()
            .map_err(|error| BundleError::Root(error.to_string()))?;
        Ok(Self { trust_domain, roots, anchors, revoked: Arc::default() })
    }

    /// The same roots, with these certificates refused.
    pub fn refusing(&self, revoked: Revoked) -> Self {
        Self { revoked: Arc::new(revoked), ..self.clone() }
    }

    /// The certificates that are refused.
    pub fn revoked(&self) -> &Revoked {
        &self.revoked
    }

    /// Reads roots from PEM.
    pub fn from_pem(trust_domain: TrustDomain, pem: &[u8]) -> Result<Self, BundleError> {
        Self::new(trust_domain, chain_from_pem(pem).ok_or(BundleError::Count(0))?)
    }

    /// The roots as PEM.
    pub fn to_pem(&self) -> String {
        chain_to_pem(&self.roots)
    }

    /// The trust domain of every peer.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The roots in DER.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    pub(super) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustBundle({}, {} roots)", self.trust_domain, self.roots.len())
    }
}

impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        (&self.trust_domain, &self.roots, &self.revoked)
            == (&other.trust_domain, &other.roots, &other.revoked)
    }
}

impl Eq for TrustBundle {}
