//! The administration socket: HTTP/1.1 over a Unix socket of the control host. Its file's mode lets root and the group
//! `baremesh` in; the kernel says whose process it is, and what is done is written down with that uid.

use std::convert::Infallible;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use baremesh_agent::admin::server::GROUP;
use baremesh_registry::files::MAX_FILE_BYTES;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Server;
use super::orders::{self, Order};
use super::report::Fault;

/// Connections at once; more wait.
const MAX_CONNECTIONS: usize = 32;
/// How long a client may take to send a request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one connection may take from its first byte to its last.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes of a request's body: a file of the largest size, every byte of it escaped once.
const MAX_BODY: usize = 2 * MAX_FILE_BYTES as usize + 64 * 1024;
/// How long accepting pauses when descriptors have run out.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Why an order was not carried out.
pub(super) struct Denial {
    pub(super) status: StatusCode,
    pub(super) fault: Fault,
}

impl Denial {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, fault: Fault { error: error.into(), findings: Vec::new() } }
    }

    /// What the server could not do, through no fault of the order.
    pub(super) fn failed(error: &dyn std::fmt::Display) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

/// The socket, and who besides root and this process's own uid may use it.
pub(super) struct Administration {
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

/// Makes the socket. It is made in a directory that nobody else can enter, and moved into place: nobody can connect to
/// it before it has its permissions, and one that an earlier run left behind is replaced.
pub(super) fn bind(path: &Path) -> anyhow::Result<Administration> {
    let failed = || format!("{} cannot be listened on", path.display());
    let directory = path.parent().unwrap_or(Path::new("."));
    let private = tempfile::Builder::new().prefix(".control-").tempdir_in(directory).with_context(failed)?;
    let aside = private.path().join("s");
    let listener = UnixListener::bind(&aside).with_context(failed)?;
    let mut members = Members::None;
    let prepared = std::fs::set_permissions(&aside, Permissions::from_mode(0o600)).and_then(|()| {
        if let Some(group) = group_id(GROUP) {
            match chown(&aside, None, Some(group)) {
                Ok(()) => members = Members::OfGroup,
                Err(error) => {
                    tracing::warn!("{} cannot be given to the group `{GROUP}`: {error}", path.display());
                }
            }
        }
        let mode = if members == Members::OfGroup { 0o660 } else { 0o600 };
        std::fs::set_permissions(&aside, Permissions::from_mode(mode))?;
        std::fs::rename(&aside, path)
    });
    prepared.with_context(failed)?;
    Ok(Administration { listener, members })
}

/// The number of a group of this host.
fn group_id(name: &str) -> Option<u32> {
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    let mut fields = groups.lines().map(|line| line.split(':'));
    let mut group = fields.find_map(|mut fields| (fields.next() == Some(name)).then_some(fields))?;
    group.nth(1)?.parse().ok()
}

/// Serves for as long as the server runs.
pub(super) async fn serve(server: Arc<Server>, administration: Administration) {
    let Administration { listener, members } = administration;
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let server = server.clone();
                connections.spawn(async move {
                    connection(server, stream, members).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!("an administration connection cannot be accepted: {error}");
                sleep(EXHAUSTED_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(server: Arc<Server>, stream: UnixStream, members: Members) {
    let uid = match stream.peer_cred() {
        Ok(credentials) => credentials.uid(),
        Err(error) => {
            tracing::warn!("an administration connection shows no credentials: {error}");
            return;
        }
    };
    let own = rustix::process::geteuid().as_raw();
    let admitted = uid == 0 || uid == own || members == Members::OfGroup;
    let service = service_fn(move |request: Request<Incoming>| {
        let server = server.clone();
        async move {
            let answer = if admitted {
                carry_out(server, uid, request).await
            } else {
                let error =
                    format!("uid {uid} may not administer the mesh: be root, or in the group `{GROUP}`");
                Err(Denial::new(StatusCode::FORBIDDEN, error))
            };
            Ok::<_, Infallible>(respond(answer))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    // A client that goes away is its own affair.
    let _ = timeout(CONNECTION_TIMEOUT, connection).await;
}

async fn carry_out(server: Arc<Server>, uid: u32, request: Request<Incoming>) -> Result<Value, Denial> {
    let (head, body) = request.into_parts();
    let body: Bytes = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => {
            let error = format!("the request is longer than {MAX_BODY} bytes, or broke off");
            return Err(Denial::new(StatusCode::PAYLOAD_TOO_LARGE, error));
        }
    };
    let order = Order {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        body,
        who: format!("uid {uid}"),
    };
    orders::carry_out(server, order).await
}

fn respond(answer: Result<Value, Denial>) -> Response<Full<Bytes>> {
    let (status, body) = match answer {
        Ok(value) => (StatusCode::OK, value.to_string()),
        Err(Denial { status, fault }) => (status, serde_json::to_string(&fault).unwrap_or_default()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

impl From<io::Error> for Denial {
    fn from(error: io::Error) -> Self {
        Self::failed(&error)
    }
}
