//! Serving the administration socket, the metrics and the readiness. Every request is small and answered from what
//! is in memory, but for the few commands that change something.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

/// The group whose members may use the socket.
pub const GROUP: &str = "baremesh";
/// Connections that are served at once; more wait.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send its request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one connection may take from its first byte to its last.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);
/// The largest body of a request.
pub const MAX_BODY: usize = 4 * 1024 * 1024;

/// An answer.
pub type Answer = Response<Full<Bytes>>;

/// A text with a status.
pub fn text(status: StatusCode, text: impl Into<String>) -> Answer {
    with(status, "text/plain; charset=utf-8", text.into().into_bytes())
}

/// A value as JSON.
pub fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => with(StatusCode::OK, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// A body of a media type.
pub fn with(status: StatusCode, media_type: &'static str, body: Vec<u8>) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(media_type));
    answer
}

/// Binds a Unix socket that root and the group `baremesh` may use. A socket that a dead process left is replaced; one
/// that is answered is not.
pub fn bind_socket(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            let message = format!("{} is answered by another process: is one running already?", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(_) => std::fs::remove_file(path)?,
    }
    // Closed to all others until its mode is set: it is made in a directory that only its owner can enter.
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    if let Some(group) = group_id(GROUP) {
        std::os::unix::fs::chown(path, None, Some(group))?;
    }
    Ok(listener)
}

/// The number of a group by `/etc/group`.
fn group_id(name: &str) -> Option<u32> {
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    let line = groups.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split(':').nth(2)?.parse().ok()
}

/// Serves requests of a Unix socket.
pub async fn serve_socket<H, F>(listener: UnixListener, handle: H)
where
    H: Fn(Request<Bytes>) -> F + Send + Sync + Clone + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let handle = handle.clone();
                tokio::spawn(async move {
                    serve(stream, handle).await;
                    drop(place);
                });
            }
            Err(error) => exhausted(&error).await,
        }
    }
}

/// Serves requests of a TCP listener.
pub async fn serve_tcp<H, F>(listener: TcpListener, handle: H)
where
    H: Fn(Request<Bytes>) -> F + Send + Sync + Clone + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let handle = handle.clone();
                tokio::spawn(async move {
                    serve(stream, handle).await;
                    drop(place);
                });
            }
            Err(error) => exhausted(&error).await,
        }
    }
}

/// Binds a TCP listener, with the address in the error.
pub async fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|error| io::Error::new(error.kind(), format!("listening on {address}: {error}")))
}

async fn exhausted(error: &io::Error) {
    tracing::warn!(%error, "an administration connection could not be accepted");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn serve<S, H, F>(stream: S, handle: H)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Bytes>) -> F + Send + Sync + Clone + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let handle = handle.clone();
        async move { Ok::<_, Infallible>(collect(request, handle).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    // A client that goes away, or takes too long, is its own affair.
    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
}

async fn collect<H, F>(request: Request<Incoming>, handle: H) -> Answer
where
    H: Fn(Request<Bytes>) -> F,
    F: Future<Output = Answer>,
{
    let (head, body) = request.into_parts();
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => handle(Request::from_parts(head, body.to_bytes())).await,
        Err(_) => text(StatusCode::PAYLOAD_TOO_LARGE, format!("a body of at most {MAX_BODY} bytes is taken\n")),
    }
}
