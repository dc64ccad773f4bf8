//! TLS towards endpoints without an agent. Those with one are always reached over mutual TLS between the agents.

use std::sync::Arc;

/// How an endpoint without an agent is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ClientTls {
    /// In plaintext.
    Disable,
    /// Not at all: only endpoints with an agent take the mesh's own certificates.
    IstioMutual,
    /// TLS.
    Simple(ServerCheck),
    /// TLS with a client certificate.
    Mutual(ClientCertificate, ServerCheck),
}

impl ClientTls {
    /// The same where the server's certificate must show one of these names; nothing where it makes no TLS, or names some
    /// itself.
    pub fn held_to(&self, names: &[Arc<str>]) -> Option<Self> {
        let held = |check: &ServerCheck| {
            let subject_alt_names = names.to_vec();
            check.subject_alt_names.is_empty().then(|| ServerCheck { subject_alt_names, ..check.clone() })
        };
        match self {
            Self::Disable | Self::IstioMutual => None,
            Self::Simple(check) => held(check).map(Self::Simple),
            Self::Mutual(certificate, check) => {
                held(check).map(|check| Self::Mutual(certificate.clone(), check))
            }
        }
    }

    /// The mode as written.
    pub fn mode(&self) -> &'static str {
        match self {
            Self::Disable => "DISABLE",
            Self::IstioMutual => "ISTIO_MUTUAL",
            Self::Simple(_) => "SIMPLE",
            Self::Mutual(..) => "MUTUAL",
        }
    }
}

/// A client certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ClientCertificate {
    /// Files of the caller's host.
    Files {
        /// The chain, PEM.
        certificate: Arc<str>,
        /// The key, PEM.
        key: Arc<str>,
    },
    /// `tls.crt` and `tls.key` in the folder of that name in the credentials directory.
    Credential(Arc<str>),
}

/// What the server must show.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct ServerCheck {
    /// Who signed it.
    pub trust: Trust,
    /// The name that is asked for; without it, the service's host.
    pub sni: Option<Arc<str>>,
    /// Names of which the certificate must show one; without any, that of `sni`.
    pub subject_alt_names: Vec<Arc<str>>,
    /// Whether it is checked at all.
    pub verify: Verify,
}

/// Who may have signed a server's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Trust {
    /// The authorities that the system trusts.
    #[default]
    System,
    /// Those of a file, PEM.
    File(Arc<str>),
    /// Those of `ca.crt` in the folder of that name in the credentials directory.
    Credential(Arc<str>),
}

/// Whether a server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Verify {
    /// Signature, time and name.
    #[default]
    Full,
    /// Nothing: whoever answers is taken.
    Nothing,
}
