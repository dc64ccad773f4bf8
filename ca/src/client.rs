//! The calling side: joining a mesh, and asking for certificates with the node credential. Keys are made here and
//! never leave the host. Every wait has a limit, and every error says what to look at.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use baremesh_model::identity::Identity;
use baremesh_model::name::{Domain, Label};
use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::client::ResolvesClientCert;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::clock::to_verification_time;
use crate::issued::Issued;
use crate::key::{KeyError, PrivateKey, PublicKey};
use crate::leaf::{parse, peer_identity};
use crate::protocol::{CERTIFICATES_PATH, JOIN_PATH, MAX_ANSWER, caller};
use crate::service::{IssueItem, MAX_BATCH};
use crate::tls::{
    Expected, PeerVerifier, Purpose, TrustBundle, client_config, describe, describe_io, join_client_config,
    pinned_bundle, placeholder_server_name,
};
use crate::token::Token;

/// Orders of operators.
mod operator;

pub use operator::{ORDERS_PATH, OperatorClient};

/// The control server's port.
pub const CONTROL_PORT: u16 = 15012;
/// How long one address may take to accept a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the TLS handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a call may take from its first byte to the last of its answer.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may take to end after its call.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How many addresses of a name are tried.
pub const MAX_ADDRESSES: usize = 8;

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address cannot be read or resolved.
    #[error("{address} is no address of a control server (`host` or `host:port`): {reason}")]
    Address {
        /// As it was written.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody accepts connections there.
    #[error(
        "nothing answers at {address} ({reason}): is `baremesh control` running there, and is its port open to this host?"
    )]
    Unreachable {
        /// The address that was tried last.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// The handshake failed.
    #[error("no secure connection to the control server at {address}: {reason}")]
    Handshake {
        /// The address.
        address: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The call broke off.
    #[error("the control server at {address} did not answer properly: {reason}")]
    Call {
        /// The address.
        address: String,
        /// What happened.
        reason: String,
    },
    /// The control server refuses.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// What it sent is not what was asked for.
    #[error("the control server's answer is not taken: {0}")]
    Answer(String),
    /// A key could not be made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// More certificates than one call carries.
    #[error("one call asks for 1 to {MAX_BATCH} certificates, not {0}")]
    BatchSize(usize),
}

/// A refusal by the control server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the control server refuses: {message}")]
pub struct Refused {
    /// Its stable code.
    pub code: String,
    /// Its message.
    pub message: String,
}

impl Refused {
    /// Whether asking again later may help, without anybody changing anything.
    pub fn is_temporary(&self) -> bool {
        self.code == "unavailable"
    }
}

/// What a host has after joining.
pub struct Joined {
    /// The name under which it joined.
    pub host: Label,
    /// Its node credential.
    pub node: Issued,
    /// What it trusts from now on.
    pub bundle: TrustBundle,
    /// The domain of service names, where the mesh has set one.
    pub domain: Option<Domain>,
}

impl fmt::Debug for Joined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Joined").field("host", &self.host).field("node", &self.node).finish_non_exhaustive()
    }
}

/// Joins the mesh whose control server answers at `address` (`host`, `host:port`, `[v6]:port`). Whoever keeps
/// `key` and calls again within ten minutes gets the same answer, so the key belongs on the disk before the call.
pub async fn join(
    address: &str,
    token: &Token,
    host: &Label,
    key: &PrivateKey,
) -> Result<Joined, ClientError> {
    join_by(address, token, host, key, &*plain_dial()).await
}

/// As `join`, over a connection that `dial` opens.
pub async fn join_by(
    address: &str,
    token: &Token,
    host: &Label,
    key: &PrivateKey,
    dial: &Dial,
) -> Result<Joined, ClientError> {
    let stream = connect(address, dial, join_client_config(token.root())).await?;
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let time = to_verification_time(SystemTime::now());
    let pinned = pinned_bundle(shown, token.root(), time)
        .map_err(|error| ClientError::Handshake { address: address.to_owned(), reason: describe(&error) })?;
    let body = caller::join(&token.reveal(), host, &key.request()?).ok_or_else(unreadable)?;
    let answer = call(address, stream, JOIN_PATH, body).await?;
    let answer = caller::joined(&answer).ok_or_else(unreadable)?;
    if answer.trust_domain != *pinned.trust_domain() || !answer.roots.contains(&pinned.roots()[0]) {
        return Err(ClientError::Answer("it is about another mesh than the token".to_owned()));
    }
    let bundle = TrustBundle::new(answer.trust_domain, answer.roots)
        .map_err(|error| ClientError::Answer(error.to_string()))?;
    let identity = Identity::node(bundle.trust_domain().clone(), host.clone());
    let bundle = Arc::new(bundle);
    let node = accept(&bundle, &identity, answer.chain, key)?;
    Ok(Joined { host: answer.host, node, bundle: (*bundle).clone(), domain: answer.domain })
}

/// How a connection to an address is opened.
pub type Dial =
    dyn Fn(SocketAddr) -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>> + Send + Sync;

/// Asks one control server for certificates.
pub struct Client {
    address: String,
    trust: watch::Receiver<Arc<TrustBundle>>,
    credential: Arc<dyn ResolvesClientCert>,
    dial: Arc<Dial>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Client {
    /// Calls the control server at `address` with the node credential that `credential` shows.
    /// The server and what it issues are verified against what `trust` holds at each call.
    pub fn new(
        address: String,
        trust: watch::Receiver<Arc<TrustBundle>>,
        credential: Arc<dyn ResolvesClientCert>,
    ) -> Self {
        Self { address, trust, credential, dial: plain_dial() }
    }

    /// Opens connections by `dial`, which marks them perhaps, from now on.
    pub fn dialing(self, dial: Arc<Dial>) -> Self {
        Self { dial, ..self }
    }

    /// Asks for a certificate with a fresh key for each identity, at most `MAX_BATCH`: one answer each, in order.
    pub async fn issue(&self, identities: &[Identity]) -> Result<Vec<Result<Issued, Refused>>, ClientError> {
        if !(1..=MAX_BATCH).contains(&identities.len()) {
            return Err(ClientError::BatchSize(identities.len()));
        }
        let keys = identities.iter().map(|_| PrivateKey::generate()).collect::<Result<Vec<_>, _>>()?;
        let items = identities
            .iter()
            .zip(&keys)
            .map(|(identity, key)| Ok(IssueItem { identity: identity.clone(), request: key.request()? }));
        let items = items.collect::<Result<Vec<_>, KeyError>>()?;
        let body = caller::issue(&items).ok_or_else(unreadable)?;
        let stream = connect(&self.address, &*self.dial, self.config()).await?;
        let answer = call(&self.address, stream, CERTIFICATES_PATH, body).await?;
        let answers = caller::issued(&answer, &items).ok_or_else(unreadable)?;
        let bundle = Arc::clone(&self.trust.borrow());
        let answers = answers.into_iter().zip(items.iter().zip(&keys));
        let taken = answers.map(|(answer, (item, key))| match answer {
            Ok(chain) => Ok(Ok(accept(&bundle, &item.identity, chain, key)?)),
            Err((code, message)) => Ok(Err(Refused { code, message })),
        });
        taken.collect()
    }

    /// Takes the control server of the mesh, and nobody else.
    fn config(&self) -> ClientConfig {
        let bundle = Arc::clone(&self.trust.borrow());
        let control = Identity::control(bundle.trust_domain().clone());
        let mut config = client_config(self.credential.clone(), bundle, Expected::exactly(control));
        config.enable_sni = false;
        config
    }
}

/// Takes a certificate only if peers will: for this identity, with this key, under the mesh's roots, valid now.
fn accept(
    bundle: &Arc<TrustBundle>,
    identity: &Identity,
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKey,
) -> Result<Issued, ClientError> {
    let refused = |reason: String| ClientError::Answer(reason);
    let (leaf, rest) = chain.split_first().ok_or_else(unreadable)?;
    let named = peer_identity(leaf).map_err(|error| refused(error.to_string()))?;
    if named != *identity {
        return Err(refused(format!("it is a certificate for {named}, not for {identity}")));
    }
    if !holds(leaf, &key.public()) {
        return Err(refused("it is a certificate for another key".to_owned()));
    }
    PeerVerifier::new(bundle.clone())
        .verify(leaf, rest, Purpose::Client, SystemTime::now())
        .map_err(|error| refused(format!("peers would refuse it: {}", describe(&error))))?;
    Issued::new(chain, key.to_der()).map_err(|error| refused(error.to_string()))
}

fn holds(leaf: &CertificateDer<'_>, key: &PublicKey) -> bool {
    parse(leaf).is_ok_and(|leaf| crate::key::sha256(leaf.public_key().raw) == key.fingerprint())
}

fn unreadable() -> ClientError {
    ClientError::Answer(
        "it cannot be read: are both of the same version of baremesh, or one apart?".to_owned(),
    )
}

fn plain_dial() -> Arc<Dial> {
    Arc::new(|address| Box::pin(TcpStream::connect(address)))
}

async fn connect(
    address: &str,
    dial: &Dial,
    config: ClientConfig,
) -> Result<TlsStream<TcpStream>, ClientError> {
    let stream = connect_tcp(address, dial).await?;
    let handshake = TlsConnector::from(Arc::new(config)).connect(placeholder_server_name(), stream);
    let reason = match timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => return Ok(stream),
        Ok(Err(error)) => describe_io(&error),
        Err(_) => format!("no handshake within {} s", HANDSHAKE_TIMEOUT.as_secs()),
    };
    Err(ClientError::Handshake { address: address.to_owned(), reason })
}

async fn connect_tcp(address: &str, dial: &Dial) -> Result<TcpStream, ClientError> {
    let mut last = None;
    for candidate in resolve(address).await?.into_iter().take(MAX_ADDRESSES) {
        let attempt = timeout(CONNECT_TIMEOUT, dial(candidate)).await;
        let reason = match attempt.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => {
                stream.set_nodelay(true).ok();
                return Ok(stream);
            }
            Err(error) => error.to_string(),
        };
        last = Some(ClientError::Unreachable { address: candidate.to_string(), reason });
    }
    let reason = "the name has no address".to_owned();
    Err(last.unwrap_or(ClientError::Address { address: address.to_owned(), reason }))
}

async fn resolve(address: &str) -> Result<Vec<SocketAddr>, ClientError> {
    let failed = |reason: String| ClientError::Address { address: address.to_owned(), reason };
    let found = tokio::net::lookup_host(with_port(address)).await;
    Ok(found.map_err(|error| failed(error.to_string()))?.collect())
}

/// Adds the control server's port where none is written. A bare IPv6 address has colons but no port.
fn with_port(address: &str) -> String {
    let bare_v6 = address.parse::<std::net::Ipv6Addr>().is_ok();
    let has_port = address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    match (bare_v6, has_port) {
        (true, _) => format!("[{address}]:{CONTROL_PORT}"),
        (false, true) => address.to_owned(),
        (false, false) => format!("{address}:{CONTROL_PORT}"),
    }
}

/// One call on a connection of its own: calls are hours apart.
async fn call(
    address: &str,
    stream: TlsStream<TcpStream>,
    path: &'static str,
    body: Bytes,
) -> Result<Bytes, ClientError> {
    let failed = |reason: String| ClientError::Call { address: address.to_owned(), reason };
    let asked = Asked { method: Method::POST, path, body, most: MAX_ANSWER };
    let exchange = timeout(CALL_TIMEOUT, exchange(stream, asked)).await;
    let exchange = exchange.map_err(|_| failed(format!("no answer within {} s", CALL_TIMEOUT.as_secs())))?;
    let (status, body) = exchange.map_err(|error| failed(error.to_string()))?;
    if status == StatusCode::OK {
        return Ok(body);
    }
    let (code, message) = caller::refused(&body).ok_or_else(|| failed(format!("status {status}")))?;
    Err(Refused { code, message }.into())
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// One request.
struct Asked<'a> {
    method: Method,
    path: &'a str,
    body: Bytes,
    /// Bytes of the answer that are taken.
    most: usize,
}

async fn exchange(stream: TlsStream<TcpStream>, asked: Asked<'_>) -> Result<(StatusCode, Bytes), AnyError> {
    let io = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
    // Aborted together with the call when that takes too long.
    let mut connection = AbortOnDrop(tokio::spawn(connection));
    let uri = Uri::builder().scheme("https").authority("control").path_and_query(asked.path).build()?;
    let request = Request::builder()
        .method(asked.method)
        .uri(uri)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(asked.body))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), asked.most).collect().await?.to_bytes();
    drop(sender);
    // The answer is there; a connection that does not end properly is of no interest.
    let _ = timeout(CLOSE_TIMEOUT, &mut connection.0).await;
    Ok((status, body))
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests;
