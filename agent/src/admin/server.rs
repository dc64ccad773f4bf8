//! Serving the administration socket, the metrics and the readiness. Every request is small and answered from what
//! is in memory, but for the few commands that change something.

use std::convert::Infallible;
use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
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

use crate::share::{Shares, host_of};
use crate::telemetry::metrics::Counter;

/// The group whose members may use the socket.
pub const GROUP: &str = "baremesh";
/// Connections that are served at once; more wait.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send its request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one connection to a socket may take from its first byte to its last: some orders run `nft`, or wait for
/// the disk.
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

impl AsFd for AdminSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
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

/// A socket at `path` that another process of ours made, and listens on as well.
pub fn taken_over(listener: std::os::unix::net::UnixListener, path: &Path) -> io::Result<AdminSocket> {
    let group = std::fs::metadata(path)?.gid();
    let members = match group_id(GROUP) {
        Some(members) if members == group => Members::OfGroup,
        _ => Members::None,
    };
    listener.set_nonblocking(true)?;
    Ok(AdminSocket { listener: UnixListener::from_std(listener)?, members })
}

/// The number of a group of this host.
pub(crate) fn group_id(name: &str) -> Option<u32> {
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
            let connection = Connection { stream, keep_alive: KeepAlive::On, patience: CONNECTION_TIMEOUT };
            connection.serve(move |request| answer(administer.clone(), (uid, admitted), request)).await;
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

/// What strangers may take of a TCP listener: anybody can connect to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Connections of one host that are served at once; what comes beyond is closed.
    pub of_one_host: usize,
    /// How long one connection, which is one request, may take from its first byte to its last. Scrapers wait 10 s
    /// unless told otherwise.
    pub patience: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { of_one_host: 8, patience: Duration::from_secs(20) }
    }
}

/// Serves requests of a TCP listener, one a connection. `refused` counts connections that were closed unheard because
/// their host has enough.
pub async fn serve_tcp<H, F>(listener: TcpListener, bounds: Bounds, refused: Counter, handle: H)
where
    H: Fn(Request<Bytes>) -> F + Send + Sync + Clone + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let hosts = Shares::default();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                exhausted(&error).await;
                continue;
            }
        };
        let Some(share) = hosts.take(host_of(from.ip()), bounds.of_one_host) else {
            refused.inc();
            continue;
        };
        let handle = handle.clone();
        tokio::spawn(async move {
            let connection = Connection { stream, keep_alive: KeepAlive::Off, patience: bounds.patience };
            connection.serve(move |request| ask(handle.clone(), request)).await;
            drop((place, share));
        });
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

/// One client, and how long it is served.
struct Connection<S> {
    stream: S,
    keep_alive: KeepAlive,
    patience: Duration,
}

/// Whether a connection may bring further requests.
#[derive(Clone, Copy, PartialEq, Eq)]
enum KeepAlive {
    On,
    Off,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Connection<S> {
    async fn serve<H, F>(self, handle: H)
    where
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
            .keep_alive(self.keep_alive == KeepAlive::On)
            .serve_connection(TokioIo::new(self.stream), service)
            .with_upgrades();
        // A client that goes away, or takes too long, is its own affair.
        let _ = tokio::time::timeout(self.patience, connection).await;
    }
}

/// The request with its whole body, unless that is longer than `limit` or breaks off.
async fn collect(request: Request<Incoming>, limit: usize) -> Option<Request<Bytes>> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, limit).collect().await.ok()?;
    Some(Request::from_parts(head, body.to_bytes()))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    /// More than fits between a server and a client that does not read.
    const LONG: usize = 64 << 20;

    /// Asks for `path`, without reading the answer.
    async fn ask(address: SocketAddr, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n");
        // One that is refused may be closed already.
        let _ = stream.write_all(request.as_bytes()).await;
        stream
    }

    /// What is answered to the end of the connection; nothing where that is a reset.
    async fn answer(address: SocketAddr) -> String {
        let mut answer = String::new();
        let _ = ask(address, "/short").await.read_to_string(&mut answer).await;
        answer
    }

    async fn serving(bounds: Bounds) -> (SocketAddr, Counter) {
        let listener = bind_tcp(([127, 0, 0, 1], 0).into()).await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let refused = Counter::default();
        let handle = |request: Request<Bytes>| async move {
            let length = if request.uri().path() == "/long" { LONG } else { 5 };
            with(StatusCode::OK, "text/plain", vec![b'x'; length])
        };
        tokio::spawn(serve_tcp(listener, bounds, refused.clone(), handle));
        (address, refused)
    }

    #[tokio::test]
    async fn a_host_whose_clients_do_not_read_has_its_share_and_no_more() {
        let patient = Bounds { patience: Duration::from_secs(86_400), ..Bounds::default() };
        let (address, refused) = serving(patient).await;
        assert!(answer(address).await.ends_with("xxxxx"), "one request, and the connection ends");
        let mut slow = Vec::new();
        for _ in 0..patient.of_one_host {
            let mut stream = ask(address, "/long").await;
            stream.read_u8().await.expect("it is served");
            slow.push(stream);
        }
        for turn in 1..=2 * MAX_CONNECTIONS {
            assert_eq!(answer(address).await, "", "turn {turn}");
            assert_eq!(refused.get(), turn as u64);
        }
        drop(slow.pop());
        // The place is free once the server has seen its client go.
        while answer(address).await.is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn who_does_not_read_is_closed_when_the_patience_ends() {
        let hasty = Bounds { patience: Duration::from_secs(1), of_one_host: 1 };
        let (address, _) = serving(hasty).await;
        let mut slow = ask(address, "/long").await;
        while answer(address).await.is_empty() {
            tokio::task::yield_now().await;
        }
        let mut rest = Vec::new();
        let _ = slow.read_to_end(&mut rest).await;
        assert!(rest.len() < LONG, "it was cut off");
    }
}
