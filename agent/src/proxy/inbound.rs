//! What arrives over mutual TLS: the handshake says who calls and which of our identities was shown; each stream
//! says where it wants to go, and is checked against both before anything is connected.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use baremesh_ca::tls::{LeafFacts, describe_io, peer_leaf_facts};
use baremesh_model::name::{Key, default_namespace};
use ::bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Request, Response, StatusCode};
use tokio::net::TcpStream;

use super::error::ProxyError;
use super::hbone::{self, Target};
use super::http::bytes;
use super::http::callee::{self, Arrived};
use super::open::Delivered;
use super::relay::{self, TunnelStream};
use super::socket;
use super::tls::{self, TlsStream};
use super::tunnel::until_dead;
use super::{Phase, Worker};
use crate::credentials::Credential;
use crate::snapshot::{LocalEndpoint, Snapshot};
use crate::telemetry::{Counted, Record, Reporter, Security};

/// Who is at the two ends of a tunnel.
struct Tunnel {
    client: SocketAddr,
    /// The address of this host that the peer dialled.
    local: SocketAddr,
    peer: LeafFacts,
    peer_serial: Arc<str>,
    /// The certificate that we showed.
    shown: Arc<Credential>,
}

impl Tunnel {
    /// Whether both certificates are valid still: no stream opens after either has expired.
    fn is_valid(&self, now: SystemTime) -> bool {
        now < self.peer.not_after && now < self.shown.not_after
    }
}

/// Serves one tunnel until it ends.
pub async fn serve(worker: Arc<Worker>, stream: TcpStream) {
    let Ok(client) = stream.peer_addr().map(socket::canonical) else { return };
    let Some(_entered) = worker.enter() else {
        let record = Record::new(Reporter::Destination, client);
        return worker.telemetry.finish(&record, None, &Err(ProxyError::Overloaded("max_connections")));
    };
    let shaken = match worker.handshakes.try_acquire() {
        Ok(_place) => Box::pin(handshake(&worker, stream, client)).await,
        Err(_) => Err(ProxyError::Overloaded("MAX_HANDSHAKES")),
    };
    match shaken {
        Ok((tls, tunnel)) => {
            let Some(_counted) = worker.peers.enter(&tunnel.peer.identity, client.ip()) else {
                let mut record = Record::new(Reporter::Destination, client);
                record.called_by(&tunnel.peer.identity);
                let refused = Err(ProxyError::Overloaded("MAX_TUNNELS_OF_PEER"));
                return worker.telemetry.finish(&record, None, &refused);
            };
            worker.telemetry.metrics().inbound_tunnels.inc();
            serve_streams(&worker, tls, Arc::new(tunnel)).await;
            worker.telemetry.metrics().inbound_tunnels.dec();
        }
        Err(error) => {
            let mut record = Record::new(Reporter::Destination, client);
            record.security = Security::Unknown;
            worker.telemetry.finish(&record, None, &Err(error));
        }
    }
}

async fn handshake(
    worker: &Worker,
    stream: TcpStream,
    client: SocketAddr,
) -> Result<(TlsStream, Tunnel), ProxyError> {
    let failed = |source: std::io::Error| ProxyError::Handshake { address: client, source };
    stream.set_nodelay(true).and_then(|()| socket::keep_alive(&stream)).map_err(failed)?;
    let local = socket::canonical(stream.local_addr().map_err(failed)?);
    let credentials = worker.shared.credentials.load_full();
    let snapshot = worker.shared.snapshot.load_full();
    let unnamed = snapshot.unnamed(local.ip());
    let config = credentials.listener(unnamed);
    let (tls, session) =
        tokio::time::timeout(worker.shared.limits.handshake_timeout, tls::accept(&config, stream))
            .await
            .map_err(|_| failed(std::io::ErrorKind::TimedOut.into()))?
            .map_err(|error| failed(std::io::Error::new(error.kind(), describe_io(&error))))?;
    let peer = peer_leaf_facts(&session.peer).map_err(|error| failed(std::io::Error::other(error)))?;
    let shown = credentials
        .shown(session.server_name.as_deref(), unnamed)
        .cloned()
        .ok_or_else(|| ProxyError::NoCertificate("the name that the peer asked for".to_owned()))?;
    let peer_serial = peer.serial.as_str().into();
    Ok((tls, Tunnel { client, local, peer, peer_serial, shown }))
}

async fn serve_streams(worker: &Arc<Worker>, tls: TlsStream, tunnel: Arc<Tunnel>) {
    let tunnels = u32::try_from(worker.telemetry.metrics().inbound_tunnels.get()).unwrap_or(u32::MAX);
    let window =
        (hbone::WINDOW_BUDGET / tunnels.max(1)).clamp(hbone::STREAM_WINDOW, hbone::CONNECTION_WINDOW);
    let handshake = builder().initial_connection_window_size(window).handshake::<_, Bytes>(tls);
    let Ok(Ok(mut connection)) =
        tokio::time::timeout(worker.shared.limits.handshake_timeout, handshake).await
    else {
        return;
    };
    let now = SystemTime::now();
    let life = tunnel.peer.not_after.min(tunnel.shown.not_after).duration_since(now).unwrap_or_default();
    let expiry = tokio::time::sleep_until((Instant::now() + life).into());
    let dead = until_dead(connection.ping_pong());
    tokio::pin!(expiry, dead);
    let mut phase = worker.shared.phase.clone();
    let mut leaving = false;
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    tokio::spawn(serve_stream(Arc::clone(worker), Arc::clone(&tunnel), request, respond));
                }
                Some(Err(error)) => {
                    tracing::debug!(peer = %tunnel.client, %error, "a tunnel ended");
                    return;
                }
                None => return,
            },
            _ = phase.wait_for(|phase| *phase >= Phase::Draining), if !leaving => {
                leaving = true;
                connection.graceful_shutdown();
            }
            () = &mut expiry, if !leaving => {
                leaving = true;
                connection.graceful_shutdown();
            }
            () = &mut dead => return,
        }
    }
}

/// The server's side of a tunnel, with the bounds of what a peer may have us hold.
pub fn builder() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(hbone::STREAM_WINDOW)
        .initial_connection_window_size(hbone::CONNECTION_WINDOW)
        .max_frame_size(hbone::MAX_FRAME)
        .max_header_list_size(hbone::MAX_HEADER_LIST)
        .max_concurrent_streams(hbone::MAX_STREAMS)
        .max_concurrent_reset_streams(hbone::MAX_RESETS)
        .max_local_error_reset_streams(Some(hbone::MAX_RESETS));
    builder
}

/// Carries one stream, and writes its record.
async fn serve_stream(
    worker: Arc<Worker>,
    tunnel: Arc<Tunnel>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let mut record = Record::new(Reporter::Destination, tunnel.client);
    record.security = Security::MutualTls;
    record.called_by(&tunnel.peer.identity);
    record.peer_serial = Some(Arc::clone(&tunnel.peer_serial));
    let mut counted = None;
    let outcome =
        judge_and_deliver(&worker, &tunnel, (request, &mut respond), &mut record, &mut counted).await;
    match outcome {
        Ok(Carried::Bytes) => worker.telemetry.finish(&record, counted.as_deref(), &Ok(())),
        Ok(Carried::Requests(arrived, stream)) => {
            Box::pin(callee::serve(worker, *arrived, bytes::of_tunnel(stream), record)).await;
        }
        Err(error) => worker.telemetry.finish(&record, counted.as_deref(), &Err(error)),
    }
}

/// What became of a stream.
enum Carried {
    /// It was carried to its end.
    Bytes,
    /// It is for a port that speaks HTTP, and each of its requests is carried for itself.
    Requests(Box<Arrived>, TunnelStream),
}

async fn judge_and_deliver(
    worker: &Worker,
    tunnel: &Tunnel,
    (request, respond): (Request<RecvStream>, &mut SendResponse<Bytes>),
    record: &mut Record,
    counted: &mut Option<Arc<Counted>>,
) -> Result<Carried, ProxyError> {
    let snapshot = worker.shared.snapshot.load_full();
    let entered = worker.enter();
    let judged = match entered {
        Some(_) => judge(worker, tunnel, &snapshot, &request, record),
        None => Err(ProxyError::Overloaded("max_connections")),
    };
    let delivered = match judged {
        Ok(local) => {
            // A stream that its peer resets meanwhile leaves no connect behind.
            let reset = poll_fn(|cx| respond.poll_reset(cx));
            let delivered = tokio::select! {
                delivered = worker.deliver(&local, record) => delivered,
                _ = reset => Err(ProxyError::ClientBroke(std::io::ErrorKind::ConnectionReset.into())),
            };
            delivered.map(|upstream| (local, upstream))
        }
        Err(error) => Err(error),
    };
    let (local, upstream) = match delivered {
        Ok(delivered) => delivered,
        Err(error) => {
            refuse(respond, &error);
            return Err(error);
        }
    };
    let send = respond
        .send_response(Response::new(()), false)
        .map_err(|source| ProxyError::Tunnel { address: tunnel.client, source })?;
    let mut stream = TunnelStream { send, receive: request.into_body() };
    let source_ip = tunnel.client.ip();
    let is_http = local.protocol.is_http();
    let delivered = Delivered { local, source: Some(tunnel.peer.identity.clone()), source_ip };
    if is_http {
        let arrived = Arrived { delivered, decided_by: snapshot, program: upstream, entered };
        return Ok(Carried::Requests(Box::new(arrived), stream));
    }
    let counted = counted.insert(worker.telemetry.open(record));
    let entry = worker.open.enter(Some(Arc::clone(counted)), Some(delivered));
    entry.judge_again(&snapshot, &worker.shared.snapshot);
    let idle = worker.shared.limits.idle_timeout;
    let relayed = tokio::select! {
        biased;
        reason = entry.until_closed() => Err(reason),
        ended = relay::tunnel_to_upstream(&mut stream, &upstream, &counted.meter, idle) => {
            ended.map_err(ProxyError::from)
        }
    };
    if let Err(ProxyError::NoLongerAllowed(_) | ProxyError::Draining) = &relayed {
        relay::reset_on_close(&upstream);
        stream.send.send_reset(Reason::REFUSED_STREAM);
    }
    relayed.map(|()| Carried::Bytes)
}

/// Every check that stands before a delivery.
fn judge(
    worker: &Worker,
    tunnel: &Tunnel,
    snapshot: &Snapshot,
    request: &Request<RecvStream>,
    record: &mut Record,
) -> Result<Arc<LocalEndpoint>, ProxyError> {
    let target = hbone::read_request(request).map_err(|error| ProxyError::BadRequest(error.0))?;
    if !tunnel.is_valid(SystemTime::now()) {
        return Err(ProxyError::CertificateExpired);
    }
    let local = match &target {
        Target::Address(address) => {
            record.destination = Some(*address);
            snapshot.advertised(*address)
        }
        Target::Host(host, port) => by_host(snapshot, host, *port, tunnel.local),
    };
    // The authority must belong to the very identity that this connection was verified to reach.
    let local = local
        .filter(|local| local.identity == tunnel.shown.identity)
        .ok_or_else(|| ProxyError::NotRegistered { authority: target.to_string() })?;
    record.calls(local, snapshot.service(&local.service).map(|service| Arc::clone(&service.host)));
    record.destination = Some(local.advertised);
    worker.authorize(local, Some(&tunnel.peer.identity), tunnel.client.ip(), record)?;
    Ok(Arc::clone(local))
}

/// A service named by its host, as gateways of Istio do: its port on the address that was dialled.
fn by_host<'a>(
    snapshot: &'a Snapshot,
    host: &str,
    port: u16,
    dialled: SocketAddr,
) -> Option<&'a Arc<LocalEndpoint>> {
    let key = Key::resolve(host, &default_namespace(), &snapshot.mesh.config.domain).ok()?;
    let service = snapshot.mesh.services.get(&key)?;
    let target = service.port(port)?.target_port.get();
    snapshot.advertised(SocketAddr::new(dialled.ip(), target)).filter(|local| local.service == key)
}

fn refuse(respond: &mut SendResponse<Bytes>, error: &ProxyError) {
    let status = match error {
        ProxyError::BadRequest(_) => StatusCode::BAD_REQUEST,
        ProxyError::Denied(_) | ProxyError::CertificateExpired => hbone::DENIED,
        _ => hbone::UNAVAILABLE,
    };
    let mut response = Response::new(());
    *response.status_mut() = status;
    // The peer may be gone already; then there is nobody to tell.
    let _ = respond.send_response(response, true);
}
