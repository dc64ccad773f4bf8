//! Connections of hosts: accepted within limits, TLS, and HTTP/2 on it. A connection with a node credential lasts as
//! long as the host is a member and the credential valid; any other is for joining, and short.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use baremesh_ca::tls::{LeafFacts, describe_io, peer_leaf_facts};
use baremesh_model::name::Label;
use bytes::Bytes;
use h2::server::SendResponse;
use http::Request;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::limits::{
    BACKLOG, HANDSHAKE_TIMEOUT, IDLE_TIMEOUT, MAX_HEADER, MAX_STREAMS, Place, RECHECK, SEND_BUFFER,
    STRANGER_LIFETIME, STREAM_WINDOW,
};
use super::{Server, calls, remote, stopped};

/// How long a peer may take to close a connection that has come to its end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long accepting pauses when descriptors or memory have run out.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end of a connection.
#[derive(Debug)]
pub(super) struct Caller {
    /// The address.
    pub(super) address: IpAddr,
    /// What its verified certificate says, where it showed one.
    pub(super) peer: Option<LeafFacts>,
}

/// What a connection holds of the limits while it lasts.
enum Hold {
    Stranger { _strange: Strange },
    Member { _permit: OwnedSemaphorePermit, _place: Place<Label> },
}

/// What a connection holds while nobody knows whose it is.
struct Strange {
    _permit: OwnedSemaphorePermit,
    _place: Place<IpAddr>,
}

impl Strange {
    fn take(server: &Server, from: SocketAddr) -> Option<Self> {
        let permit = server.limits.strangers.clone().try_acquire_owned().ok()?;
        Some(Self { _permit: permit, _place: server.limits.strange_place(from.ip())? })
    }
}

/// Takes connections until the server stops, then waits for those that it took.
pub(super) async fn serve(server: Arc<Server>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    let mut stop = server.stop.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            () = stopped(&mut stop) => break,
        };
        match accepted {
            Ok((stream, from)) => match Strange::take(&server, from) {
                Some(strange) => {
                    let tls = server.tls.borrow().clone();
                    connections.spawn(connection(server.clone(), stream, from, (tls, strange)));
                }
                None => {
                    tracing::warn!(%from, "too many connections without a credential: this one is closed");
                }
            },
            Err(error) => {
                tracing::warn!("a connection cannot be accepted: {error}");
                sleep(EXHAUSTED_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(
    server: Arc<Server>,
    stream: TcpStream,
    from: SocketAddr,
    (tls, stranger): (TlsAcceptor, Strange),
) {
    // Without it small messages wait for the acknowledgement of those before.
    let _ = stream.set_nodelay(true);
    let began = Instant::now();
    let stream = match timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::info!(%from, "a handshake failed: {}", describe_io(&error));
            return;
        }
        Err(_) => {
            tracing::info!(%from, "a handshake took longer than {} s", HANDSHAKE_TIMEOUT.as_secs());
            return;
        }
    };
    let peer = stream.get_ref().1.peer_certificates().and_then(|chain| peer_leaf_facts(chain.first()?).ok());
    let caller = Arc::new(Caller { address: from.ip(), peer });
    let Some(hold) = hold(&server, &caller, stranger) else {
        tracing::warn!(%from, peer = ?caller.peer.as_ref().map(|peer| &peer.identity), "too many connections: this one is closed");
        return;
    };
    let end = match hold {
        Hold::Stranger { .. } => Some(began + STRANGER_LIFETIME),
        Hold::Member { .. } => None,
    };
    let shaken = timeout(HANDSHAKE_TIMEOUT, http2().handshake(stream)).await;
    if let Ok(Ok(connection)) = shaken {
        Connection { server, caller, connection }.run(end).await;
    }
    drop(hold);
}

/// A host's connection counts as the host's, any other as a stranger's.
fn hold(server: &Server, caller: &Caller, stranger: Strange) -> Option<Hold> {
    let node = caller.peer.as_ref().and_then(|peer| peer.identity.as_node());
    match node {
        None => Some(Hold::Stranger { _strange: stranger }),
        Some(host) => {
            let permit = server.limits.members.clone().try_acquire_owned().ok()?;
            Some(Hold::Member { _permit: permit, _place: server.limits.place(host)? })
        }
    }
}

fn http2() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAM_WINDOW * MAX_STREAMS)
        .max_send_buffer_size(SEND_BUFFER);
    builder
}

struct Connection {
    server: Arc<Server>,
    caller: Arc<Caller>,
    connection: h2::server::Connection<TlsStream<TcpStream>, Bytes>,
}

impl Connection {
    /// Serves requests until the peer, the end, the ledger or the server's stop ends it.
    async fn run(mut self, mut end: Option<Instant>) {
        let mut requests = JoinSet::new();
        let (mut stop, mut membership) = (self.server.stop.clone(), self.server.membership.subscribe());
        let mut closing = false;
        let mut quiet_since = Instant::now();
        loop {
            tokio::select! {
                accepted = self.connection.accept() => match accepted {
                    Some(Ok((request, respond))) => self.begin(&mut requests, request, respond),
                    // The peer's end, or a fault of the connection: either way nobody is there to be told.
                    Some(Err(_)) | None => return,
                },
                Some(_) = requests.join_next(), if !requests.is_empty() => quiet_since = Instant::now(),
                () = sleep_until(quiet_since + IDLE_TIMEOUT), if requests.is_empty() && !closing => {
                    closing = true;
                    self.connection.graceful_shutdown();
                    // A peer that the network has lost does not close.
                    end = Some(Instant::now() + CLOSE_TIMEOUT);
                }
                () = until(end) => return,
                () = recheck(&mut membership), if self.caller.peer.is_some() => {
                    if !self.still_welcome().await {
                        return;
                    }
                }
                () = stopped(&mut stop), if !closing => {
                    closing = true;
                    self.connection.graceful_shutdown();
                }
            }
        }
    }

    fn begin(
        &self,
        requests: &mut JoinSet<()>,
        request: Request<h2::RecvStream>,
        respond: SendResponse<Bytes>,
    ) {
        requests.spawn(calls::handle(self.server.clone(), self.caller.clone(), request, respond));
    }

    /// Whether the peer's certificate is still valid and the ledger still knows it: the host as a member, the operator as one.
    async fn still_welcome(&self) -> bool {
        let Some(peer) = &self.caller.peer else { return true };
        if SystemTime::now() > peer.not_after {
            tracing::info!(peer = %peer.identity, "the certificate of an open connection has ended, and so does the connection");
            return false;
        }
        let checked = match (peer.identity.as_node(), peer.identity.as_operator()) {
            (Some(_), _) => calls::check_node(&self.server, peer).await.map(drop),
            (None, Some(_)) => remote::check_operator(&self.server, peer).await.map(drop),
            (None, None) => return true,
        };
        match checked {
            Ok(()) => true,
            // The ledger being away for a moment is no reason to cut everybody off.
            Err(refusal) if refusal.code() == "unavailable" => true,
            Err(refusal) => {
                tracing::warn!(peer = %peer.identity, "an open connection is cut: {refusal}");
                false
            }
        }
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Waits until a connection is to be looked at: now and then, and when somebody was shut out.
async fn recheck(membership: &mut watch::Receiver<u64>) {
    tokio::select! {
        () = sleep(RECHECK) => {}
        changed = membership.changed() => if changed.is_err() {
            std::future::pending::<()>().await;
        },
    }
}

/// Binds a listener. A host without IPv6 serves on IPv4 alone.
pub(super) fn bind(address: SocketAddr, of: usize) -> anyhow::Result<Option<TcpListener>> {
    use socket2::{Domain, Protocol, Socket, Type};
    let open = || -> std::io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // Of an earlier run connections may still be waiting for their end.
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            // The IPv4 address has a listener of its own.
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        TcpListener::from_std(socket.into())
    };
    match open() {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && of > 1 && is_without_ipv6(&error) => {
            tracing::info!("this machine has no IPv6: hosts reach the control server over IPv4 alone");
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("{address} cannot be listened on")),
    }
}

fn is_without_ipv6(error: &std::io::Error) -> bool {
    let code = error.raw_os_error();
    let none = [rustix::io::Errno::AFNOSUPPORT, rustix::io::Errno::ADDRNOTAVAIL];
    none.iter().any(|errno| code == Some(errno.raw_os_error()))
}
