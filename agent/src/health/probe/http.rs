//! A GET whose answer's status decides: 200 to 399, as in Kubernetes. A redirection is an answer and is not followed.
//! Of the answer, nothing but the head is read.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, Version, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{MAX_HEAD, USER_AGENT};
use crate::originate::verify::Unverified;
use crate::registration::check::{HttpGet, Scheme};

/// What is the same for all GETs.
pub(super) struct Client {
    /// For HTTP/1.1, and for HTTP/2.
    tls: [Option<Arc<ClientConfig>>; 2],
}

impl Client {
    pub(super) fn new() -> Self {
        Self { tls: [tls(b"http/1.1"), tls(b"h2")] }
    }

    pub(super) async fn get(&self, get: &HttpGet, socket: TcpStream) -> Result<(), String> {
        if get.scheme == Scheme::Http {
            return ask(get, socket).await;
        }
        let config = self.tls[usize::from(get.http2)].clone().ok_or("TLS cannot be set up")?;
        let connector = TlsConnector::from(config);
        // Certificates name hosts; an address asks for none in particular.
        let shaken = connector.connect(ServerName::IpAddress(get.at.ip().into()), socket).await;
        let stream = shaken.map_err(|error| format!("TLS with {}: {error}", get.at))?;
        Box::pin(ask(get, stream)).await
    }
}

/// TLS with whoever answers: the agent looks at its own host's program, whose certificate may be of any name.
fn tls(protocol: &[u8]) -> Option<Arc<ClientConfig>> {
    let provider = Arc::new(default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .ok()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unverified(provider)));
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    Some(Arc::new(config))
}

async fn ask<S>(get: &HttpGet, stream: S) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let status = match get.http2 {
        false => over_http1(get, stream).await,
        true => over_http2(get, stream).await,
    };
    match status.map_err(|error| format!("asking {}: {error}", get.at))? {
        status if (200..400).contains(&status.as_u16()) => Ok(()),
        status => Err(format!("{} answered {status}", get.path)),
    }
}

async fn over_http1<S>(get: &HttpGet, stream: S) -> io::Result<StatusCode>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut request = request(get, Uri::from(get.path.clone()))?;
    let headers = request.headers_mut();
    if !headers.contains_key(header::HOST) {
        let host = HeaderValue::try_from(get.at.to_string()).map_err(io::Error::other)?;
        headers.insert(header::HOST, host);
    }
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    let mut builder = hyper::client::conn::http1::Builder::new();
    let shaken = builder.max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(io::Error::other)?;
    let answer = sender.send_request(request.map(|()| Empty::<Bytes>::new()));
    tokio::pin!(connection, answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer.map(|answer| answer.status()).map_err(io::Error::other),
        ended = &mut connection => match ended {
            // Its end may have been read together with the answer.
            Ok(()) => answer.await.map(|answer| answer.status()).map_err(io::Error::other),
            Err(error) => Err(io::Error::other(error)),
        },
    }
}

async fn over_http2<S>(get: &HttpGet, stream: S) -> io::Result<StatusCode>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let scheme = if get.scheme == Scheme::Https { "https" } else { "http" };
    let uri = Uri::builder().scheme(scheme).authority(get.at.to_string()).path_and_query(get.path.clone());
    let mut request = request(get, uri.build().map_err(io::Error::other)?)?;
    *request.version_mut() = Version::HTTP_2;
    let mut builder = h2::client::Builder::new();
    let shaken = builder.max_header_list_size(MAX_HEAD as u32).handshake::<_, Bytes>(stream).await;
    let (sender, connection) = shaken.map_err(io::Error::other)?;
    let asking = async {
        let mut sender = sender.ready().await?;
        let (answer, _) = sender.send_request(request, true)?;
        answer.await.map(|answer| answer.status())
    };
    tokio::select! {
        biased;
        status = asking => status.map_err(io::Error::other),
        ended = connection => Err(ended.err().map_or_else(closed, io::Error::other)),
    }
}

/// The connection ended before its answer.
pub(super) fn closed() -> io::Error {
    io::Error::other("the connection was closed without an answer")
}

fn request(get: &HttpGet, uri: Uri) -> io::Result<Request<()>> {
    let request = Request::builder().method(Method::GET).uri(uri).body(());
    let mut request = request.map_err(io::Error::other)?;
    let headers = request.headers_mut();
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    for name in get.headers.keys() {
        headers.remove(name);
        for value in get.headers.get_all(name) {
            headers.append(name, value.clone());
        }
    }
    Ok(request)
}
