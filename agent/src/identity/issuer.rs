//! Who signs this host's certificates: the control server, asked with the node credential, or on a host that is its
//! own mesh, the authority in this process.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use baremesh_ca::client::{Client, ClientError};
use baremesh_ca::issued::{Issued, IssuedError};
use baremesh_ca::local::LocalIssuer;
use baremesh_model::identity::Identity;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;

/// Why one certificate was not issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotIssued {
    /// The reason, for people.
    pub reason: String,
    /// Whether asking again may help though nobody changes anything.
    pub is_temporary: bool,
    /// Whether the host was not granted it.
    pub is_not_granted: bool,
}

/// The code of a refusal of what the host was not granted.
const NOT_GRANTED: &str = "not_granted";

/// Who signs.
pub enum Issuer {
    /// The control server.
    Control(Box<Client>),
    /// The authority of a mesh of one host. It blocks for some milliseconds, on the disk at most.
    Local(Arc<Mutex<LocalIssuer>>),
}

impl Issuer {
    /// Asks for a certificate for each identity: one answer each, in order.
    pub async fn issue(
        &self,
        identities: &[Identity],
    ) -> Result<Vec<Result<Issued, NotIssued>>, ClientError> {
        match self {
            Self::Control(client) => {
                let answers = Box::pin(client.issue(identities)).await?;
                let refused = |refused: baremesh_ca::client::Refused| NotIssued {
                    is_temporary: refused.is_temporary(),
                    is_not_granted: refused.code == NOT_GRANTED,
                    reason: refused.message,
                };
                Ok(answers.into_iter().map(|answer| answer.map_err(refused)).collect())
            }
            Self::Local(issuer) => {
                let mut issuer = issuer.lock().unwrap_or_else(PoisonError::into_inner);
                let now = SystemTime::now();
                if let Err(error) = issuer.maintain(now) {
                    tracing::warn!(%error, "the intermediate certificate could not be renewed");
                }
                let answers = issuer.issue(identities, now).into_iter();
                let refused = |refusal: baremesh_ca::service::Refusal| NotIssued {
                    is_temporary: refusal.code() == "unavailable",
                    is_not_granted: refusal.code() == NOT_GRANTED,
                    reason: refusal.to_string(),
                };
                Ok(answers.map(|answer| answer.map_err(refused)).collect())
            }
        }
    }
}

/// The node credential, replaced while connections to the control server are made with it.
#[derive(Debug)]
pub struct NodeCredential(ArcSwap<CertifiedKey>);

impl NodeCredential {
    /// The credential that joining left.
    pub fn new(issued: &Issued) -> Result<Arc<Self>, IssuedError> {
        Ok(Arc::new(Self(ArcSwap::new(issued.certified_key()?))))
    }

    /// Puts a renewed one in its place.
    pub fn replace(&self, issued: &Issued) -> Result<(), IssuedError> {
        self.0.store(issued.certified_key()?);
        Ok(())
    }
}

impl ResolvesClientCert for NodeCredential {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
