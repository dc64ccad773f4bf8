//! One request to Consul: which address, which limits, what the status means.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use baremesh_ca::client::Dial;
use bytes::Bytes;
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Body as _;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;

pub use super::connect::plain_dial;
use super::connect::{Connector, Stream, token};
use super::error::ConsulError;
use super::query::{Answer, Consistency, Read};
use super::settings::{Address, Settings};

/// The largest answer that is taken: the whole catalog, or everything below a prefix.
pub const MAX_ANSWER: usize = 64 << 20;
/// The largest head of an answer.
const MAX_HEAD: usize = 64 << 10;
/// How long an answer may take beyond what was asked to be waited for, its body included.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much of what Consul says of a failure is shown, in bytes.
const MAX_SAID: usize = 300;

/// Asks Consul. Clones share what they know of its addresses.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    settings: Settings,
    connector: Connector,
    /// The address that answered last.
    preferred: AtomicUsize,
}

/// What is asked.
pub(super) struct Asked {
    pub(super) method: Method,
    /// Escaped, with its slash at the beginning.
    pub(super) path: String,
    pub(super) parameters: Vec<(&'static str, String)>,
    pub(super) body: Bytes,
    /// How long Consul may wait before it answers.
    pub(super) wait: Duration,
}

impl Asked {
    /// A change, or a question without an index.
    pub(super) fn new(method: Method, path: String) -> Self {
        Self { method, path, parameters: Vec::new(), body: Bytes::new(), wait: Duration::ZERO }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.parameters.push((name, value.into()));
        self
    }

    pub(super) fn body(self, body: Vec<u8>) -> Self {
        Self { body: body.into(), ..self }
    }

    fn target(&self) -> String {
        let mut target = self.path.clone();
        for (i, (name, value)) in self.parameters.iter().enumerate() {
            target.push(if i == 0 { '?' } else { '&' });
            target.push_str(name);
            if !value.is_empty() {
                target.push('=');
                target.push_str(&escape(value, Slash::Escaped));
            }
        }
        target
    }
}

/// What came.
pub(super) struct Came {
    pub(super) address: String,
    pub(super) path: String,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Came {
    /// The body as JSON.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, ConsulError> {
        serde_json::from_slice(&self.body).map_err(|error| ConsulError::Malformed {
            address: self.address.clone(),
            path: self.path.clone(),
            reason: error.to_string(),
        })
    }

    /// The answer's index and value.
    pub(super) fn answer<T: DeserializeOwned>(&self) -> Result<Answer<T>, ConsulError> {
        Ok(Answer { value: self.json()?, index: self.index() })
    }

    pub(super) fn index(&self) -> u64 {
        self.number("x-consul-index").unwrap_or(0)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.headers.get(name)?.to_str().ok()?.parse().ok()
    }

    /// Whether a server that heard of the leader longer ago than `bound`, or knows of none, gave the answer.
    fn is_older_than(&self, bound: Duration) -> bool {
        let knows_leader = self.headers.get("x-consul-knownleader").is_none_or(|known| known == "true");
        let last_contact = self.number("x-consul-lastcontact").unwrap_or(0);
        !knows_leader || Duration::from_millis(last_contact) > bound
    }

    fn said(&self) -> String {
        said(&self.body)
    }
}

impl Client {
    /// A client; sockets are opened by `dial`, which marks them perhaps.
    pub fn new(settings: Settings, dial: Arc<Dial>) -> Self {
        Self(Arc::new(Inner { settings, connector: Connector::new(dial), preferred: AtomicUsize::new(0) }))
    }

    /// What it was made of.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Asks a question that may wait for something new. An answer that is too stale is asked of the leader instead.
    pub(super) async fn read(&self, asked: Asked, read: Read) -> Result<Came, ConsulError> {
        let ask = |read: Read| {
            let mut parameters = asked.parameters.clone();
            parameters.extend(read.parameters());
            let (method, path) = (asked.method.clone(), asked.path.clone());
            self.ask(Asked { method, path, parameters, body: asked.body.clone(), wait: read.longest() })
        };
        let came = Box::pin(ask(read)).await?;
        match read.consistency {
            Consistency::Stale(bound) if came.is_older_than(bound) => {
                tracing::debug!(address = came.address, path = came.path, "the answer is too stale");
                Box::pin(ask(Read { consistency: Consistency::Leader, ..read })).await
            }
            _ => Ok(came),
        }
    }

    /// Asks, of one address after the other, beginning with the one that answered last.
    pub(super) async fn ask(&self, mut asked: Asked) -> Result<Came, ConsulError> {
        let Inner { settings, preferred, .. } = &*self.0;
        if let Some(datacenter) = &settings.datacenter {
            asked = asked.with("dc", datacenter.clone());
        }
        let first = preferred.load(Ordering::Relaxed);
        let count = settings.addresses.len();
        let mut failed = None;
        for step in 0..count {
            let at = (first + step) % count;
            match Box::pin(self.ask_one(&settings.addresses[at], &asked)).await {
                Ok(came) => {
                    preferred.store(at, Ordering::Relaxed);
                    return Ok(came);
                }
                Err(error) => {
                    let again = match asked.method {
                        Method::GET => error.may_be_asked_again(),
                        _ => error.is_elsewhere_perhaps(),
                    };
                    if !again || step + 1 == count {
                        return Err(failed.filter(|_| again).unwrap_or(error));
                    }
                    tracing::debug!(%error, "another of Consul's addresses is asked");
                    // What the preferred address said is what the operator wants to see.
                    failed.get_or_insert(error);
                }
            }
        }
        unreachable!("settings have an address")
    }

    async fn ask_one(&self, address: &Address, asked: &Asked) -> Result<Came, ConsulError> {
        let Inner { settings, connector, .. } = &*self.0;
        let token = token(settings)?;
        let stream = connector.connect(address, settings).await?;
        let limit = asked.wait + PATIENCE;
        let (shown, path) = (address.to_string(), asked.path.clone());
        let mut request = Request::builder()
            .method(asked.method.clone())
            .uri(asked.target())
            .header(HOST, address.authority())
            .header(USER_AGENT, concat!("baremesh/", env!("CARGO_PKG_VERSION")))
            .header(CONNECTION, "close");
        if let Some(token) = token {
            request = request.header("x-consul-token", token);
        }
        let broken =
            |reason: String| ConsulError::Broken { address: shown.clone(), path: path.clone(), reason };
        let request =
            request.body(Full::new(asked.body.clone())).map_err(|error| broken(error.to_string()))?;
        let exchange = Box::pin(exchange(stream, request));
        let (status, headers, body) = match tokio::time::timeout(limit, exchange).await {
            Ok(Ok(came)) => came,
            Ok(Err(Failed::TooLarge)) => {
                return Err(ConsulError::TooLarge { address: shown, path, limit: MAX_ANSWER });
            }
            Ok(Err(Failed::Http(reason))) => return Err(broken(reason)),
            Err(_) => return Err(ConsulError::Timeout { address: shown, path, after: limit }),
        };
        judge(Came { address: shown, path, status, headers, body })
    }
}

enum Failed {
    TooLarge,
    Http(String),
}

async fn exchange(
    stream: Box<dyn Stream>,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, HeaderMap, Bytes), Failed> {
    let http = |error: hyper::Error| Failed::Http(error.to_string());
    let mut builder = hyper::client::conn::http1::Builder::new();
    let connecting = builder.max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream));
    let (mut sender, connection) = connecting.await.map_err(http)?;
    let asking = async move {
        let answer = sender.send_request(request).await.map_err(http)?;
        let (head, body) = answer.into_parts();
        if body.size_hint().lower() > MAX_ANSWER as u64 {
            return Err(Failed::TooLarge);
        }
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() { Failed::TooLarge } else { Failed::Http(error.to_string()) }
        })?;
        Ok((head.status, head.headers, body.to_bytes()))
    };
    tokio::pin!(connection, asking);
    tokio::select! {
        biased;
        answer = &mut asking => answer,
        ended = &mut connection => match ended {
            // Its end may have been read together with the answer.
            Ok(()) => asking.await,
            Err(error) => Err(http(error)),
        },
    }
}

/// What a status means. What is not there (404) and a transaction that lost (409) are answers.
fn judge(came: Came) -> Result<Came, ConsulError> {
    let said = || came.said();
    let (address, path) = (came.address.clone(), came.path.clone());
    match came.status {
        StatusCode::OK | StatusCode::NOT_FOUND | StatusCode::CONFLICT => Ok(came),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Err(ConsulError::Denied { address, path, said: said() })
        }
        StatusCode::TOO_MANY_REQUESTS => Err(ConsulError::TooMany { address, path }),
        status if status.is_server_error() && is_without_leader(&came.body) => {
            Err(ConsulError::NoLeader { address, path, said: said() })
        }
        // Consul 1.8 answers 500 where ACLs forbid a remote call.
        status if status.is_server_error() && contains(&came.body, "Permission denied") => {
            Err(ConsulError::Denied { address, path, said: said() })
        }
        status => Err(ConsulError::Status { address, path, status: status.as_u16(), said: said() }),
    }
}

/// The words of `structs.ErrNoLeader` and of a Consul agent that knows no server.
fn is_without_leader(body: &[u8]) -> bool {
    ["No cluster leader", "No known Consul servers", "leadership lost", "node is not the leader"]
        .iter()
        .any(|words| contains(body, words))
}

fn contains(body: &[u8], words: &str) -> bool {
    body.windows(words.len()).any(|window| window == words.as_bytes())
}

/// The beginning of what was said, in one line, without what would not be printed.
fn said(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(MAX_SAID)]);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
}

/// Whether slashes stay what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slash {
    /// They part segments of a path.
    Kept,
    /// They are part of a name.
    Escaped,
}

/// Percent-encodes what is not unreserved (RFC 3986, section 2.3).
pub(super) fn escape(text: &str, slash: Slash) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(byte as char),
            b'/' if slash == Slash::Kept => escaped.push('/'),
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}
