//! Connections to Consul. Each request has one of its own: most of them wait for minutes, and what is read from files
//! (token, certificates) is then always what stands there now.

use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use baremesh_ca::client::Dial;
use baremesh_ca::file::{read, read_secret};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::error::ConsulError;
use super::settings::{Address, Scheme, Settings};

/// How long connecting to one address may take, and a handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How many addresses of one name are tried.
const MAX_RESOLVED: usize = 4;
/// The longest token: Consul's are UUIDs.
const MAX_TOKEN: usize = 4096;

/// Either kind of stream.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Files as they were when the configuration was made of them: path, length, time of the last change.
type Stamps = Vec<(PathBuf, u64, Option<SystemTime>)>;

/// Makes connections.
pub(super) struct Connector {
    dial: Arc<Dial>,
    tls: Mutex<Option<(Stamps, Arc<ClientConfig>)>>,
}

/// Opens a socket as the system does.
pub fn plain_dial() -> Arc<Dial> {
    Arc::new(|address| Box::pin(TcpStream::connect(address)))
}

impl Connector {
    pub(super) fn new(dial: Arc<Dial>) -> Self {
        Self { dial, tls: Mutex::default() }
    }

    /// A connection to one of Consul's addresses.
    pub(super) async fn connect(
        &self,
        address: &Address,
        settings: &Settings,
    ) -> Result<Box<dyn Stream>, ConsulError> {
        let stream = self.socket(address).await?;
        match address.scheme {
            Scheme::Http => Ok(Box::new(stream)),
            Scheme::Https => self.secure(stream, address, settings).await,
        }
    }

    async fn socket(&self, address: &Address) -> Result<TcpStream, ConsulError> {
        let failed = |reason: String| ConsulError::Unreachable { address: address.to_string(), reason };
        let resolving = timeout(CONNECT_TIMEOUT, lookup_host((address.host.as_str(), address.port)));
        let found = resolving.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let mut last = failed("the name has no address".to_owned());
        for candidate in found.map_err(|error| failed(error.to_string()))?.take(MAX_RESOLVED) {
            let attempt = timeout(CONNECT_TIMEOUT, (self.dial)(candidate)).await;
            match attempt.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => {
                    stream.set_nodelay(true).ok();
                    return Ok(stream);
                }
                Err(error) => last = failed(error.to_string()),
            }
        }
        Err(last)
    }

    async fn secure(
        &self,
        stream: TcpStream,
        address: &Address,
        settings: &Settings,
    ) -> Result<Box<dyn Stream>, ConsulError> {
        let failed = |reason: String| ConsulError::Tls { address: address.to_string(), reason };
        let name = settings.server_name.clone().unwrap_or_else(|| address.host.clone());
        let name = ServerName::try_from(name).map_err(|error| failed(error.to_string()))?;
        let config = self.configuration(settings)?;
        let handshake = TlsConnector::from(config).connect(name, stream);
        match timeout(CONNECT_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed(format!("no handshake within {CONNECT_TIMEOUT:?}"))),
        }
    }

    /// The configuration made of the files as they are now. They are read when they have changed.
    fn configuration(&self, settings: &Settings) -> Result<Arc<ClientConfig>, ConsulError> {
        let pair = settings.client.iter().flat_map(|(certificate, key)| [certificate, key]);
        let stamps: Stamps = settings.ca_certificates.iter().chain(pair).map(|path| stamp(path)).collect();
        let mut tls = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made_of, config)) = &*tls
            && *made_of == stamps
        {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(configuration(settings)?);
        *tls = Some((stamps, Arc::clone(&config)));
        Ok(config)
    }
}

fn stamp(path: &Path) -> (PathBuf, u64, Option<SystemTime>) {
    let metadata = std::fs::metadata(path).ok();
    let length = metadata.as_ref().map_or(0, std::fs::Metadata::len);
    (path.to_owned(), length, metadata.and_then(|metadata| metadata.modified().ok()))
}

fn configuration(settings: &Settings) -> Result<ClientConfig, ConsulError> {
    let content = |path: &Path, reason: String| ConsulError::Content { path: path.to_owned(), reason };
    let mut roots = RootCertStore::empty();
    let authorities = settings.ca_certificates.as_deref().unwrap_or(Path::new(""));
    for certificate in certificates(authorities)? {
        roots.add(certificate).map_err(|error| content(authorities, error.to_string()))?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| content(authorities, error.to_string()))?
        .with_root_certificates(roots);
    let Some((chain, key)) = &settings.client else { return Ok(builder.with_no_client_auth()) };
    let secret = read_secret(key)?;
    let secret =
        PrivateKeyDer::from_pem_slice(&secret).map_err(|error| content(key, format!("no key: {error}")))?;
    let client = builder.with_client_auth_cert(certificates(chain)?, secret);
    client.map_err(|error| content(chain, error.to_string()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConsulError> {
    let bytes = read(path)?;
    let all = CertificateDer::pem_reader_iter(BufReader::new(&bytes[..])).collect::<Result<Vec<_>, _>>();
    let reason = match all {
        Ok(all) if !all.is_empty() => return Ok(all),
        Ok(_) => "holds no certificate in PEM form".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(ConsulError::Content { path: path.to_owned(), reason })
}

/// The token that stands in its file now.
pub(super) fn token(settings: &Settings) -> Result<Option<String>, ConsulError> {
    let Some(path) = &settings.token_file else { return Ok(None) };
    let bytes = read_secret(path)?;
    let text = std::str::from_utf8(&bytes).unwrap_or_default().trim();
    if text.is_empty() || text.len() > MAX_TOKEN || !text.bytes().all(|b| b.is_ascii_graphic()) {
        let reason = "holds no token: write Consul's SecretID, and nothing else, into it".to_owned();
        return Err(ConsulError::Content { path: path.clone(), reason });
    }
    Ok(Some(text.to_owned()))
}
