//! A client's connections: the system's resolver, a plain socket, and HTTP/1 or HTTP/2 with prior knowledge on it.

use std::io::{self, ErrorKind};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::super::connection::Broken;
use super::content::Content;

/// Where to connect to, and how long everything may take.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) timeout: Duration,
}

impl Place {
    /// Of a URL's host and port.
    pub(super) fn of(url: &Uri, timeout: Duration) -> Result<Self, Broken> {
        let host = url.host().ok_or_else(|| Broken::Usage(format!("{url} names no host")))?;
        // An IPv6 address stands in brackets (RFC 3986, section 3.2.2).
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { host, port: url.port_u16().unwrap_or(80), timeout })
    }

    /// Resolves the name and tries its addresses in turn.
    pub(super) async fn connect(&self) -> Result<TcpStream, Broken> {
        let addresses = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let addresses = addresses.map_err(|error| Broken::NoName(self.host.clone(), error))?;
        let mut last = io::Error::from(ErrorKind::AddrNotAvailable);
        for address in addresses {
            match timeout(self.timeout, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Ok(Err(error)) => last = error,
                Err(_) => last = ErrorKind::TimedOut.into(),
            }
        }
        Err(Broken::NoConnection(format!("{}:{}", self.host, self.port), last))
    }

    /// A connection that speaks HTTP/1.
    pub(super) async fn http1(&self) -> Result<http1::SendRequest<Content>, Broken> {
        let (sender, connection) =
            http1::handshake(TokioIo::new(self.connect().await?)).await.map_err(|error| cut(&error))?;
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }

    /// A connection that speaks HTTP/2.
    pub(super) async fn http2(&self) -> Result<http2::SendRequest<Content>, Broken> {
        let io = TokioIo::new(self.connect().await?);
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), io).await.map_err(|error| cut(&error))?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// A connection for requests.
pub(super) enum Sender {
    One(http1::SendRequest<Content>),
    Two(http2::SendRequest<Content>),
}

impl Sender {
    /// Whether another request may be sent; waits until that is known.
    pub(super) async fn is_ready(&mut self) -> bool {
        match self {
            Self::One(sender) => sender.ready().await.is_ok(),
            Self::Two(sender) => sender.ready().await.is_ok(),
        }
    }

    pub(super) async fn send(&mut self, request: Request<Content>) -> Result<Response<Incoming>, Broken> {
        let sent = match self {
            Self::One(sender) => sender.send_request(request).await,
            Self::Two(sender) => sender.send_request(request).await,
        };
        sent.map_err(|error| cut(&error))
    }
}

/// What hyper says of a connection that did not hold, with its causes.
pub(super) fn cut(error: &(dyn std::error::Error + 'static)) -> Broken {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    Broken::Cut(io::Error::other(text))
}

/// Bounds a wait.
pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, Broken>>,
) -> Result<T, Broken> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(Broken::Cut(ErrorKind::TimedOut.into())))
}
