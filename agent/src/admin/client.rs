//! The command line's side of a Unix socket that speaks HTTP: one request, one answer.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

/// How long an answer may take that waits for nothing but the rules being read.
pub const AT_ONCE: Duration = Duration::from_secs(10);
/// How long another may take: `apply` validates and writes a whole set, rules are changed, other hosts are tried.
const AT_LENGTH: Duration = Duration::from_secs(60);
/// The largest answer that is read.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Why a request to the socket came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Nobody listens.
    #[error("nothing answers at {path}: {source}; is `{program}` running, and are you root or in its group?")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The program that should listen.
        program: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody listens, and does not answer.
    #[error("`{program}` has not answered at {path} for {} s: {}", .limit.as_secs(), what_to_do(.program))]
    Silent {
        /// The socket.
        path: PathBuf,
        /// The program that listens.
        program: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// The answer broke off.
    #[error("{path}: {reason}")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
    /// The request was refused.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// The reason, for people.
        message: String,
    },
}

impl SocketError {
    /// Whether no program listens: one that listens and may not be spoken to is there.
    pub fn is_nobody_there(&self) -> bool {
        matches!(self, Self::Connect { source, .. } if source.kind() != io::ErrorKind::PermissionDenied)
    }
}

/// What to do about a program that does not answer.
fn what_to_do(program: &str) -> String {
    let unit = match program {
        "baremesh agent" => "baremesh",
        "baremesh control" => "baremesh-control",
        _ => return "is it stopped, or stuck?".to_owned(),
    };
    format!(
        "it is stopped, stuck or short of time; `systemctl status {unit}` and `journalctl -u {unit}` say more, and `systemctl restart {unit}` starts it anew"
    )
}

/// A socket, and the program that listens there.
#[derive(Debug, Clone, Copy)]
pub struct Socket<'a> {
    /// The socket.
    pub path: &'a Path,
    /// `baremesh agent` or `baremesh control`.
    pub program: &'static str,
}

impl Socket<'_> {
    /// Asks for what is answered at once.
    pub async fn ask(&self, target: &str) -> Result<Bytes, SocketError> {
        self.call_within(AT_ONCE, Method::GET, target, Vec::new()).await
    }

    /// Sends one request, which may take its time, and gives the answer's body. Any status but 200 is an error with the body as
    /// message.
    pub async fn call(&self, method: Method, target: &str, body: Vec<u8>) -> Result<Bytes, SocketError> {
        self.call_within(AT_LENGTH, method, target, body).await
    }

    /// The same for at most so long.
    pub async fn call_within(
        &self,
        limit: Duration,
        method: Method,
        target: &str,
        body: Vec<u8>,
    ) -> Result<Bytes, SocketError> {
        let exchange = Box::pin(self.exchange(method, target, body));
        let silent = |_| SocketError::Silent { path: self.path.to_owned(), program: self.program, limit };
        tokio::time::timeout(limit, exchange).await.map_err(silent)?
    }

    async fn exchange(&self, method: Method, target: &str, body: Vec<u8>) -> Result<Bytes, SocketError> {
        let request = Request::builder().method(method).uri(target).body(Full::new(Bytes::from(body)));
        let (answer, driver) = self.send(request).await?;
        let body = self.checked(answer, StatusCode::OK).await?;
        let body = Limited::new(body.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| self.broken(error.to_string()))?.to_bytes();
        driver.abort();
        Ok(body)
    }

    /// Sends one request whose answer goes on and on, and gives its body.
    pub async fn stream(&self, target: &str) -> Result<Incoming, SocketError> {
        let (answer, _) = self.send(Request::builder().uri(target).body(Full::default())).await?;
        Ok(self.checked(answer, StatusCode::OK).await?.into_body())
    }

    /// Asks for another protocol, and gives the connection that then speaks it.
    pub async fn upgrade(&self, target: &str, protocol: &str) -> Result<Upgraded, SocketError> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(target)
            .header(http::header::CONNECTION, "upgrade")
            .header(http::header::UPGRADE, protocol)
            .body(Full::default());
        let (answer, _) = self.send(request).await?;
        let answer = self.checked(answer, StatusCode::SWITCHING_PROTOCOLS).await?;
        hyper::upgrade::on(answer).await.map_err(|error| self.broken(error.to_string()))
    }

    async fn send(
        &self,
        request: http::Result<Request<Full<Bytes>>>,
    ) -> Result<(Response<Incoming>, JoinHandle<hyper::Result<()>>), SocketError> {
        let connected = UnixStream::connect(self.path).await;
        let stream = connected.map_err(|source| SocketError::Connect {
            path: self.path.to_owned(),
            program: self.program,
            source,
        })?;
        let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = shaken.map_err(|error| self.broken(error.to_string()))?;
        let driver = tokio::spawn(connection.with_upgrades());
        let mut request = request.map_err(|error| self.broken(error.to_string()))?;
        request.headers_mut().insert(http::header::HOST, HeaderValue::from_static("baremesh"));
        let answer = sender.send_request(request).await.map_err(|error| self.broken(error.to_string()))?;
        Ok((answer, driver))
    }

    /// The answer where it has this status; any other is an error with the body as message.
    async fn checked(
        &self,
        answer: Response<Incoming>,
        expected: StatusCode,
    ) -> Result<Response<Incoming>, SocketError> {
        let status = answer.status();
        if status == expected {
            return Ok(answer);
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| self.broken(error.to_string()))?.to_bytes();
        let message = String::from_utf8_lossy(&body).trim_end().to_owned();
        Err(SocketError::Refused { status, message })
    }

    fn broken(&self, reason: String) -> SocketError {
        SocketError::Broken { path: self.path.to_owned(), reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_listens_and_never_answers_is_named_with_what_to_do() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("x.sock");
        let listener = tokio::net::UnixListener::bind(&path).expect("a socket");
        for (program, unit) in [("baremesh agent", "baremesh`"), ("baremesh control", "baremesh-control`")] {
            let socket = Socket { path: &path, program };
            let called = socket.call_within(Duration::from_secs(1), Method::GET, "/status", Vec::new()).await;
            let error = called.expect_err("nobody answers");
            let said = error.to_string();
            assert!(matches!(error, SocketError::Silent { .. }) && !error.is_nobody_there(), "{error:?}");
            for part in [program, "for 1 s", &format!("systemctl restart {unit}"), "x.sock"] {
                assert!(said.contains(part), "{part}: {said}");
            }
        }
        drop(listener);
        let called = Socket { path: &path, program: "baremesh agent" }.ask("/status").await;
        assert!(called.expect_err("nobody listens").is_nobody_there());
    }
}
