//! Fetching what a resource names a URL of: keys of issuers, roots of other trust domains. Whoever may write the resource
//! may name a URL, and this process may reach more than he may: so no address of this host or of its link is connected to
//! unless whoever runs it allows it, the address that was judged is the one that is connected to, redirections are few and
//! judged anew, and what is served is bounded, and repeated nowhere.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use baremesh_model::address::is_nobodys;
use baremesh_model::address::is_this_host;
use baremesh_model::request_authentication::KeyUrl;
use baremesh_model::virtual_address::VirtualRanges;
use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, HOST, LOCATION, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::originate::{self, OriginationError};
use crate::proxy::socket::{self, Mark};

/// The largest answer, in bytes.
pub const MAX_BODY: usize = 512 * 1024;
/// The most redirections that are followed.
const MAX_REDIRECTS: usize = 3;
/// The most addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;
/// The largest head of an answer.
const MAX_HEAD: usize = 16 * 1024;

/// Why nothing came from a server. Nothing of what it served is in it.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The name has an address that is not connected to.
    #[error("{host} is at {address}, {why}: allow it with {by} if that is meant")]
    Blocked {
        /// The name, or the address as it was written.
        host: String,
        /// The address.
        address: IpAddr,
        /// What it is.
        why: &'static str,
        /// What allows it.
        by: &'static str,
    },
    /// It has no address.
    #[error("{host} has no address: {source}")]
    Resolve {
        /// The name.
        host: String,
        /// What the system said.
        source: io::Error,
    },
    /// No connection came about.
    #[error("{address} cannot be connected to: {source}")]
    Connect {
        /// The last address that was tried.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The authorities cannot be read.
    #[error("{0}")]
    Authorities(#[from] OriginationError),
    /// The server did not prove that it is who it should be.
    #[error("TLS with {host}: {source}")]
    Tls {
        /// The name.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// No HTTP, or an answer that broke off.
    #[error("the answer is not to be read: {0}")]
    Http(String),
    /// Another status than 200.
    #[error("the server answered {0}")]
    Status(u16),
    /// A redirection to no URL, or from https to http.
    #[error("a redirection leads to {0}")]
    Redirect(&'static str),
    /// One redirection after another.
    #[error("more than {MAX_REDIRECTS} redirections")]
    Redirects,
    /// A body beyond `MAX_BODY`.
    #[error("the answer is larger than 512 KiB")]
    TooLarge,
    /// It took longer than the rule lets it.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// It is no text.
    #[error("the answer is no text")]
    NoText,
}

impl FetchError {
    /// The reason as metrics have it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Blocked { .. } => "blocked_address",
            Self::Resolve { .. } => "no_address",
            Self::Connect { .. } => "connect",
            Self::Authorities(_) | Self::Tls { .. } => "tls",
            Self::Http(_) => "http",
            Self::Status(_) => "status",
            Self::Redirect(_) | Self::Redirects => "redirect",
            Self::TooLarge => "too_large",
            Self::Timeout(_) => "timeout",
            Self::NoText => "no_text",
        }
    }
}

/// Who fetches.
#[derive(Debug, Clone)]
pub struct Fetcher {
    /// The mark of the agent's own sockets.
    pub mark: Mark,
    /// Addresses that are connected to although they are this host's or its link's.
    pub allow: Vec<IpNet>,
    /// What whoever runs this process says which with, for messages.
    pub allowed_by: &'static str,
    /// A PEM file of authorities; the system's without.
    pub authorities: Option<PathBuf>,
}

/// What an answer comes to.
enum Answer {
    Body(Bytes),
    Elsewhere(String),
}

impl Fetcher {
    /// The text that a URL serves.
    pub async fn fetch(
        &self,
        url: &KeyUrl,
        virtual_ranges: &VirtualRanges,
        timeout: Duration,
    ) -> Result<String, FetchError> {
        let fetching = Box::pin(self.follow(url.clone(), virtual_ranges, timeout));
        let body =
            tokio::time::timeout(timeout, fetching).await.map_err(|_| FetchError::Timeout(timeout))??;
        String::from_utf8(body.into()).map_err(|_| FetchError::NoText)
    }

    async fn follow(
        &self,
        mut url: KeyUrl,
        virtual_ranges: &VirtualRanges,
        timeout: Duration,
    ) -> Result<Bytes, FetchError> {
        for _ in 0..=MAX_REDIRECTS {
            match self.ask(&url, virtual_ranges, timeout).await? {
                Answer::Body(body) => return Ok(body),
                Answer::Elsewhere(location) => {
                    let to = url.redirected(&location).map_err(|_| FetchError::Redirect("what is no URL"))?;
                    if url.is_https() && !to.is_https() {
                        return Err(FetchError::Redirect("http from https"));
                    }
                    url = to;
                }
            }
        }
        Err(FetchError::Redirects)
    }

    async fn ask(
        &self,
        url: &KeyUrl,
        virtual_ranges: &VirtualRanges,
        timeout: Duration,
    ) -> Result<Answer, FetchError> {
        let socket = self.connect(url, virtual_ranges, timeout).await?;
        if !url.is_https() {
            return get(url, socket).await;
        }
        let file = self.authorities.clone();
        let config = tokio::task::spawn_blocking(move || originate::trusting(file.as_deref())).await;
        let mut config = config.map_err(|error| FetchError::Http(error.to_string()))??;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let shaken = originate::connect(Arc::new(config), url.host(), socket).await;
        let stream = shaken.map_err(|source| FetchError::Tls { host: url.host().to_owned(), source })?;
        get(url, stream).await
    }

    /// Connects to one of the addresses that were judged, and to no other.
    async fn connect(
        &self,
        url: &KeyUrl,
        virtual_ranges: &VirtualRanges,
        timeout: Duration,
    ) -> Result<tokio::net::TcpStream, FetchError> {
        let host = || url.host().to_owned();
        let found = tokio::net::lookup_host((url.host(), url.port())).await;
        let found = found.map_err(|source| FetchError::Resolve { host: host(), source })?;
        let is_allowed = |ip: IpAddr| self.allow.iter().any(|block| block.contains(&ip));
        let mut failed = FetchError::Resolve { host: host(), source: io::ErrorKind::NotFound.into() };
        for address in found.map(socket::canonical).take(MAX_ADDRESSES) {
            let ip = address.ip();
            if let Some(why) = kept_from(ip, virtual_ranges)
                && !is_allowed(ip)
            {
                failed = FetchError::Blocked { host: host(), address: ip, why, by: self.allowed_by };
                continue;
            }
            match socket::connect(address, self.mark, timeout).await {
                // An address of this host's own is spoken to from itself.
                Ok(stream) if stream.local_addr().is_ok_and(|own| own.ip() == ip) && !is_allowed(ip) => {
                    let (why, by) = ("this host itself", self.allowed_by);
                    failed = FetchError::Blocked { host: host(), address: ip, why, by };
                }
                Ok(stream) => return Ok(stream),
                Err(source) => failed = FetchError::Connect { address, source },
            }
        }
        Err(failed)
    }
}

/// What an address is that is not connected to; nothing where it is.
pub(crate) fn kept_from(address: IpAddr, virtual_ranges: &VirtualRanges) -> Option<&'static str> {
    if virtual_ranges.contains(address) {
        return Some("a virtual address of the mesh, which the agent itself does not call");
    }
    if is_this_host(address) { Some("this host itself") } else { is_nobodys(address) }
}

async fn get<S>(url: &KeyUrl, stream: S) -> Result<Answer, FetchError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = Request::get(url.target())
        .header(HOST, url.authority())
        .header(ACCEPT, "application/jwk-set+json, application/json, */*;q=0.1")
        .header(USER_AGENT, concat!("baremesh/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| FetchError::Http(error.to_string()))?;
    let unreadable = |error: hyper::Error| FetchError::Http(error.to_string());
    let mut builder = hyper::client::conn::http1::Builder::new();
    let (mut sender, connection) =
        builder.max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await.map_err(unreadable)?;
    let asking = async move {
        let answer = sender.send_request(request).await.map_err(unreadable)?;
        match answer.status() {
            StatusCode::OK => {}
            status if status.is_redirection() => {
                let location = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
                let location = location.ok_or(FetchError::Status(status.as_u16()))?;
                return Ok(Answer::Elsewhere(location.to_owned()));
            }
            status => return Err(FetchError::Status(status.as_u16())),
        }
        let body = Limited::new(answer.into_body(), MAX_BODY).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                FetchError::TooLarge
            } else {
                FetchError::Http(error.to_string())
            }
        })?;
        Ok(Answer::Body(body.to_bytes()))
    };
    tokio::pin!(connection, asking);
    tokio::select! {
        biased;
        answer = &mut asking => answer,
        ended = &mut connection => match ended {
            // Its end may have been read together with the answer.
            Ok(()) => asking.await,
            Err(error) => Err(unreadable(error)),
        },
    }
}

#[cfg(test)]
mod tests;
