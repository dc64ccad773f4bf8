//! The roots that a member trusts, the trust domain whose identities they vouch for, and the certificates under them
//! that are revoked.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use baremesh_model::name::TrustDomain;
use rustls_pki_types::{CertificateDer, TrustAnchor};
use webpki::anchor_from_trusted_cert;

use crate::issued::{chain_from_pem, chain_to_pem};
use crate::revocation::Revoked;

/// The most roots in one bundle: the one in force, and a few while roots are replaced.
pub const MAX_ROOTS: usize = 8;

/// The most other trust domains whose roots go with a bundle.
pub const MAX_FEDERATED: usize = 16;

/// The roots of other trust domains. Each vouches for identities of its own domain alone.
pub type FederatedRoots = BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>;

/// Why certificates cannot serve as roots.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// None, or too many.
    #[error("a trust bundle has 1 to {MAX_ROOTS} root certificates in PEM, not {0}")]
    Count(usize),
    /// More than there may be.
    #[error("{0} trust domains are federated, and {MAX_FEDERATED} at most may be")]
    TooManyFederated(usize),
    /// One's own roots are not somebody else's to give.
    #[error("{0} is the trust domain of this mesh: nobody else's roots vouch for it")]
    FederatedSelf(TrustDomain),
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
    federated: Arc<BTreeMap<TrustDomain, Roots>>,
}

/// The roots of another trust domain.
#[derive(Clone)]
struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

impl TrustBundle {
    /// Checks and takes roots.
    pub fn new(trust_domain: TrustDomain, roots: Vec<CertificateDer<'static>>) -> Result<Self, BundleError> {
        if roots.is_empty() || roots.len() > MAX_ROOTS {
            return Err(BundleError::Count(roots.len()));
        }
        let anchors = anchors_of(&roots)?;
        Ok(Self { trust_domain, roots, anchors, revoked: Arc::default(), federated: Arc::default() })
    }

    /// The same roots, with these certificates refused.
    pub fn refusing(&self, revoked: Revoked) -> Self {
        Self { revoked: Arc::new(revoked), ..self.clone() }
    }

    /// The same roots, and those of other trust domains, instead of the ones that there were.
    pub fn with_federated(&self, federated: FederatedRoots) -> Result<Self, BundleError> {
        if federated.len() > MAX_FEDERATED {
            return Err(BundleError::TooManyFederated(federated.len()));
        }
        let read = |(domain, certificates): (TrustDomain, Vec<CertificateDer<'static>>)| {
            if domain == self.trust_domain {
                return Err(BundleError::FederatedSelf(domain));
            }
            if certificates.is_empty() || certificates.len() > MAX_ROOTS {
                return Err(BundleError::Count(certificates.len()));
            }
            let anchors = anchors_of(&certificates)?;
            Ok((domain, Roots { certificates, anchors }))
        };
        let federated = federated.into_iter().map(read).collect::<Result<_, _>>()?;
        Ok(Self { federated: Arc::new(federated), ..self.clone() })
    }

    /// The other trust domains whose identities are taken.
    pub fn federated(&self) -> impl ExactSizeIterator<Item = &TrustDomain> {
        self.federated.keys()
    }

    /// What vouches for the identities of another trust domain: its own roots, and nothing else.
    pub(super) fn anchors_of_federated(&self, domain: &TrustDomain) -> Option<&[TrustAnchor<'static>]> {
        self.federated.get(domain).map(|roots| &roots.anchors[..])
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
        let (domain, roots, federated) = (&self.trust_domain, self.roots.len(), self.federated.len());
        write!(f, "TrustBundle({domain}, {roots} roots, {federated} federated)")
    }
}

impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        let mut federated = self.federated.iter().zip(other.federated.iter());
        let same = |((a, ours), (b, theirs)): ((&TrustDomain, &Roots), (&TrustDomain, &Roots))| {
            a == b && ours.certificates == theirs.certificates
        };
        (&self.trust_domain, &self.roots, &self.revoked)
            == (&other.trust_domain, &other.roots, &other.revoked)
            && self.federated.len() == other.federated.len()
            && federated.all(same)
    }
}

impl Eq for TrustBundle {}

fn anchors_of(roots: &[CertificateDer<'static>]) -> Result<Vec<TrustAnchor<'static>>, BundleError> {
    let anchors = roots.iter().map(|root| anchor_from_trusted_cert(root).map(|anchor| anchor.to_owned()));
    anchors.collect::<Result<_, _>>().map_err(|error| BundleError::Root(error.to_string()))
}
