//! A certificate with its key, as a member of the mesh holds it in memory and on disk. On disk both stand in one
//! PEM file, so that one rename replaces them together.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use baremesh_model::identity::Identity;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::leaf::{LeafError, peer_leaf_facts};
use crate::tls::provider;

/// The most certificates in a chain, as a peer shows it or a PEM text holds it: a leaf, its issuers, a root. The time
/// that it takes to find no path grows with their factorial when a stranger gives all of them one name: 6 ms of CPU
/// for 7 certificates, 230 ms for 11 (of a build with few optimisations).
pub const MAX_CHAIN: usize = 7;

/// Why a certificate with its key could not be read or used.
#[derive(Debug, thiserror::Error)]
pub enum IssuedError {
    /// No certificate or no key in the text, or too many.
    #[error("the text holds no private key followed by 1 to {MAX_CHAIN} certificates in PEM")]
    Incomplete,
    /// The leaf is not one of the mesh.
    #[error(transparent)]
    Leaf(#[from] LeafError),
    /// The key does not belong to the leaf, or is of a kind that TLS cannot use.
    #[error("the private key cannot be used with the certificate: {0}")]
    Key(rustls::Error),
}

/// A leaf certificate, its chain and its private key.
pub struct Issued {
    /// Whose certificate it is.
    pub identity: Identity,
    /// The leaf first, then its issuers; the control server's own ends with the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key.
    pub key: PrivateKeyDer<'static>,
    /// From when on it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
    /// The leaf's serial number in hexadecimal.
    pub serial: String,
}

impl Issued {
    /// Joins a chain with its key; reads the rest from the leaf.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, IssuedError> {
        let leaf = chain.first().ok_or(IssuedError::Incomplete)?;
        let facts = peer_leaf_facts(leaf)?;
        Ok(Self {
            identity: facts.identity,
            not_before: facts.not_before,
            not_after: facts.not_after,
            serial: facts.serial,
            chain,
            key,
        })
    }

    /// What rustls' certificate resolvers hand out. Fails when the key does not belong to the leaf.
    pub fn certified_key(&self) -> Result<Arc<CertifiedKey>, IssuedError> {
        CertifiedKey::from_der(self.chain.clone(), self.key.clone_key(), &provider())
            .map(Arc::new)
            .map_err(IssuedError::Key)
    }

    /// Key and chain in one PEM text. It is a secret: written with mode 0600.
    pub fn to_pem(&self) -> String {
        let label = match self.key {
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        encode_pem(label, self.key.secret_der()) + &chain_to_pem(&self.chain)
    }

    /// Reads what `to_pem` wrote, and checks that key and leaf belong together.
    pub fn from_pem(pem: &str) -> Result<Self, IssuedError> {
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| IssuedError::Incomplete)?;
        let chain = chain_from_pem(pem.as_bytes()).ok_or(IssuedError::Incomplete)?;
        let issued = Self::new(chain, key)?;
        issued.certified_key()?;
        Ok(issued)
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("identity", &self.identity)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Certificates as PEM text, in their order.
pub fn chain_to_pem(chain: &[CertificateDer<'_>]) -> String {
    chain.iter().map(|certificate| encode_pem("CERTIFICATE", certificate)).collect()
}

/// The certificates of a PEM text in their order; none when there is none, a broken one, or too many.
pub fn chain_from_pem(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(pem).take(MAX_CHAIN + 1).collect::<Result<_, _>>().ok()?;
    (1..=MAX_CHAIN).contains(&chain.len()).then_some(chain)
}

fn encode_pem(label: &str, der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(label, der), config)
}
