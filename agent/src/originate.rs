//! TLS towards endpoints without an agent, as DestinationRules ask for it. Certificates, keys and authorities are files of
//! this host: they are read when a state comes into force and once a minute after that, and never on the data path. A
//! file that cannot be read leaves the last good configuration in force; without one, nothing is sent.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use baremesh_model::destination_rule::{ClientCertificate, ClientTls, ServerCheck, Trust, Verify};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::snapshot::Snapshot;

/// What a server's certificate must show.
pub(crate) mod verify;

use verify::{AnyOfNames, Unverified};

/// How often the files are read again.
pub const REREAD: Duration = Duration::from_secs(60);
/// Where systems keep the authorities that they trust: Debian, Red Hat, SUSE, Alpine.
const SYSTEM_AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// The largest file that is read.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// Why there is no TLS towards an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OriginationError {
    /// A file.
    #[error("{path}: {reason}")]
    File {
        /// Its path.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A host without authorities.
    #[error("this host has no file of trusted authorities: install ca-certificates, or set `caCertificates`")]
    NoAuthorities,
    /// The certificate does not go with the key, and the like.
    #[error("the client certificate cannot be used: {0}")]
    Certificate(String),
    /// Nothing was loaded for it yet.
    #[error("its certificates have not been loaded yet")]
    NotLoaded,
}

/// A configuration, or why there is none.
type Loaded = Result<Arc<ClientConfig>, OriginationError>;

/// The configurations of everything that the rules in force ask for.
pub struct Originations {
    credentials: PathBuf,
    loaded: ArcSwap<HashMap<ClientTls, Loaded>>,
}

impl Originations {
    /// None yet; `credentials` is the directory with a folder for each credential.
    pub fn new(credentials: PathBuf) -> Self {
        Self { credentials, loaded: ArcSwap::default() }
    }

    /// Reads what the rules of a snapshot name.
    pub fn load(&self, snapshot: &Snapshot) {
        let wanted: HashSet<&ClientTls> = snapshot.originations().collect();
        let before = self.loaded.load();
        if wanted.is_empty() && before.is_empty() {
            return;
        }
        let load = |tls: &ClientTls| match (self.configuration(tls), before.get(tls)) {
            (Ok(config), _) => Ok(Arc::new(config)),
            (Err(error), Some(Ok(good))) => {
                tracing::error!(%error, "certificates of a DestinationRule cannot be read again; the last good ones stay in force");
                Ok(Arc::clone(good))
            }
            (Err(error), old) => {
                if old.and_then(|old| old.as_ref().err()) != Some(&error) {
                    tracing::error!(%error, "no TLS as a DestinationRule asks for it: its calls are refused");
                }
                Err(error)
            }
        };
        let loaded = wanted.into_iter().map(|tls| (tls.clone(), load(tls))).collect();
        self.loaded.store(Arc::new(loaded));
    }

    /// The configuration of a rule's TLS.
    pub fn of(&self, tls: &ClientTls) -> Loaded {
        self.loaded.load().get(tls).cloned().unwrap_or(Err(OriginationError::NotLoaded))
    }

    fn configuration(&self, tls: &ClientTls) -> Result<ClientConfig, OriginationError> {
        let (client, server) = match tls {
            ClientTls::Disable | ClientTls::IstioMutual => return Err(OriginationError::NotLoaded),
            ClientTls::Simple(server) => (None, server),
            ClientTls::Mutual(client, server) => (Some(client), server),
        };
        let verifier = self.verifier(server)?;
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| OriginationError::Certificate(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let Some(client) = client else { return Ok(config.with_no_client_auth()) };
        let (chain, key) = match client {
            ClientCertificate::Files { certificate, key } => {
                (PathBuf::from(&**certificate), PathBuf::from(&**key))
            }
            ClientCertificate::Credential(name) => {
                let folder = self.credentials.join(&**name);
                (folder.join("tls.crt"), folder.join("tls.key"))
            }
        };
        let text = read(&key)?;
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| fault(&key, &error))?;
        config
            .with_client_auth_cert(certificates(&chain)?, key)
            .map_err(|error| OriginationError::Certificate(error.to_string()))
    }

    fn verifier(&self, server: &ServerCheck) -> Result<Arc<dyn ServerCertVerifier>, OriginationError> {
        let provider = Arc::new(default_provider());
        if server.verify == Verify::Nothing {
            return Ok(Arc::new(Unverified(provider)));
        }
        let mut roots = RootCertStore::empty();
        let file = self.authorities(&server.trust)?;
        // One that cannot be parsed among many of a system's does not count; none at all is an error.
        roots.add_parsable_certificates(certificates(&file)?);
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        let verifier = verifier.map_err(|error| fault(&file, &error))?;
        if server.subject_alt_names.is_empty() {
            return Ok(verifier);
        }
        let name = |name: &Arc<str>| {
            ServerName::try_from(name.to_string()).map_err(|error| fault(Path::new(&**name), &error))
        };
        let names = server.subject_alt_names.iter().map(name).collect::<Result<_, _>>()?;
        Ok(Arc::new(AnyOfNames { names, verifier }))
    }

    fn authorities(&self, trust: &Trust) -> Result<PathBuf, OriginationError> {
        match trust {
            Trust::System => of_system(),
            Trust::File(path) => Ok(PathBuf::from(&**path)),
            Trust::Credential(name) => Ok(self.credentials.join(&**name).join("ca.crt")),
        }
    }
}

/// The file of authorities that this system trusts.
fn of_system() -> Result<PathBuf, OriginationError> {
    let mut known = SYSTEM_AUTHORITIES.iter().map(PathBuf::from);
    known.find(|path| path.is_file()).ok_or(OriginationError::NoAuthorities)
}

/// The configuration of a client that trusts the authorities of a file, or the system's. Reads the disk.
pub(crate) fn trusting(file: Option<&Path>) -> Result<ClientConfig, OriginationError> {
    let file = file.map_or_else(of_system, |file| Ok(file.to_owned()))?;
    let mut roots = RootCertStore::empty();
    // As above: one among many that cannot be parsed does not count.
    roots.add_parsable_certificates(certificates(&file)?);
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| OriginationError::Certificate(error.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn fault(path: &Path, reason: &impl ToString) -> OriginationError {
    OriginationError::File { path: path.display().to_string(), reason: reason.to_string() }
}

fn read(path: &Path) -> Result<Vec<u8>, OriginationError> {
    use std::io::Read as _;
    let file = std::fs::File::open(path).map_err(|error| fault(path, &error))?;
    let mut text = Vec::new();
    let read = file.take(MAX_FILE).read_to_end(&mut text).map_err(|error| fault(path, &error))?;
    if read as u64 == MAX_FILE {
        return Err(fault(path, &"larger than 4 MiB"));
    }
    Ok(text)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, OriginationError> {
    let text = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let all = all.map_err(|error| fault(path, &error))?;
    if all.is_empty() { Err(fault(path, &"holds no certificate in PEM form")) } else { Ok(all) }
}

/// The handshake with a server, under the name that it is asked for.
pub async fn connect(
    config: Arc<ClientConfig>,
    name: &str,
    socket: TcpStream,
) -> io::Result<Box<TlsStream<TcpStream>>> {
    let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
    TlsConnector::from(config).connect(name, socket).await.map(Box::new)
}

#[cfg(test)]
mod tests;
