//! Serving the administration socket, the metrics and the readiness. Every request is small and answered from what
//! is in memory, but for the few commands that change something.

use std::convert::Infallible;
use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
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

/// An administration socket, and who besides root and this process's own uid may use it.
pub struct AdminSocket {
    listener: UnixListener,
    members: Members,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Members {
    /// Whoever the file's mode lets in: the group.
    OfGroup,
    /// Nobody: the group does not exist, or the file could not be given to it.
    None,
}

/// How a socket's requests are answered.
pub trait Administer: Clone + Send + Sync + 'static {
    /// The largest body of a request.
    const MAX_BODY: usize;

    /// Answers a request of the process whose uid the kernel names.
    fn answer(&self, uid: u32, request: Request<Bytes>) -> impl Future<Output = Answer> + Send;

    /// Says that a request is refused before anybody looked at it.
    fn refuse(&self, status: StatusCode, reason: String) -> Answer;
}

/// Makes the socket. It is made in a directory that nobody else can enter, and moved into place: nobody can connect
/// to it before it has its permissions. One that a dead process left is replaced; one that is answered is not.
pub fn bind_socket(path: &Path) -> io::Result<AdminSocket> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        let message = format!("{} is answered by another process: is one running already?", path.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
    }
    let directory = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory)?;
    let aside = directory.join(format!(".socket-{:016x}", rand::random::<u64>()));
    std::fs::DirBuilder::new().mode(0o700).create(&aside)?;
    let made = make_in(&aside.join("s"), path);
    // Nothing is left in it but, after a failure, the socket.
    let _ = std::fs::remove_dir_all(&aside);
    made
}

fn make_in(aside: &Path, path: &Path) -> io::Result<AdminSocket> {
    let listener = UnixListener::bind(aside)?;
    std::fs::set_permissions(aside, Permissions::from_mode(0o600))?;
    let mut members = Members::None;
    if let Some(group) = group_id(GROUP) {
        match chown(aside, None, Some(group)) {
            Ok(()) => {
                members = Members::OfGroup;
                std::fs::set_permissions(aside, Permissions::from_mode(0o660))?;
            }
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "the socket cannot be given to the group `{GROUP}`");
            }
        }
    }
    std::fs::rename(aside, path)?;
    Ok(AdminSocket { listener, members })
}

/// The number of a group of this host.
fn group_id(name: &str) -> Option<u32> {
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    let line = groups.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split(':').nth(2)?.parse().ok()
}

/// Serves requests of an administration socket.
pub async fn serve_socket(socket: AdminSocket, administer: impl Administer) {
    let AdminSocket { listener, members } = socket;
    let own = rustix::process::geteuid().as_raw();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                exhausted(&error).await;
                continue;
            }
        };
        // A peer without credentials is nobody.
        let Ok(uid) = stream.peer_cred().map(|credentials| credentials.uid()) else { continue };
        let admitted = uid == 0 || uid == own || members == Members::OfGroup;
        let administer = administer.clone();
        tokio::spawn(async move {
            serve(stream, move |request| answer(administer.clone(), (uid, admitted), request)).await;
            drop(place);
        });
    }
}

async fn answer<A: Administer>(
    administer: A,
    (uid, admitted): (u32, bool),
    request: Request<Incoming>,
) -> Answer {
    if !admitted {
        let reason = format!("uid {uid} may not administer baremesh: be root, or in the group `{GROUP}`");
        return administer.refuse(StatusCode::FORBIDDEN, reason);
    }
    match collect(request, A::MAX_BODY).await {
        Some(request) => administer.answer(uid, request).await,
        None => {
            let reason = format!("the request is longer than {} bytes, or broke off", A::MAX_BODY);
            administer.refuse(StatusCode::PAYLOAD_TOO_LARGE, reason)
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
                    serve(stream, move |request| ask(handle.clone(), request)).await;
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

async fn ask<H, F>(handle: H, request: Request<Incoming>) -> Answer
where
    H: Fn(Request<Bytes>) -> F,
    F: Future<Output = Answer>,
{
    // Scrapers and probes send no body.
    match collect(request, 0).await {
        Some(request) => handle(request).await,
        None => text(StatusCode::PAYLOAD_TOO_LARGE, "no body is taken here\n"),
    }
}

async fn serve<S, H, F>(stream: S, handle: H)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Answer>,
{
    let service = hyper::service::service_fn(|request: Request<Incoming>| {
        let answer = handle(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    // A client that goes away, or takes too long, is its own affair.
    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
}

/// The request with its whole body, unless that is longer than `limit` or breaks off.
async fn collect(request: Request<Incoming>, limit: usize) -> Option<Request<Bytes>> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, limit).collect().await.ok()?;
    Some(Request::from_parts(head, body.to_bytes()))
}
