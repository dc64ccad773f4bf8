//! What arrives over mutual TLS: the handshake says who calls and which of our identities was shown; each stream
//! says where it wants to go, and is checked against both before anything is connected.

/// A tunnel's streams, and its end.
mod streams;
/// To the agents of this host's network, for callers of others.
mod gateway;
/// Out of the mesh.
mod egress;

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Poll;
use std::time::SystemTime;

use ::bytes::{Bytes, BytesMut};
use baremesh_ca::tls::{LeafFacts, Purpose, describe_io, peer_leaf_facts};
use baremesh_model::authorization::Hello;
use baremesh_model::name::{Key, default_namespace};
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Request, Response, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::SemaphorePermit;
use tokio::time::Instant;

use super::Worker;
use super::error::ProxyError;
use super::flood::{Ended, Flooded, GIVEN_UP_WITHIN, MAX_RESET_UNHEARD, Starts, Watched};
use super::hbone::{self, Target};
use super::http::bytes::{self, ByteReader, ByteWriter};
use super::http::callee::{self, Arrived, Through};
use super::open::Delivered;
use super::relay::{self, TunnelStream};
use super::sniff::First;
use super::socket;
use super::tls::{self, TlsStream};
use crate::credentials::{Credential, Listening};
use crate::share::{Share, host_of};
use crate::snapshot::{LocalEndpoint, Snapshot};
use crate::telemetry::{Counted, Record, Reporter, Security};
use crate::trust::{Ends, Stranger, until_untrusted};
use streams::{End, Life};

/// Who is at the two ends of a tunnel.
struct Tunnel {
    client: SocketAddr,
    /// The address of this host that the peer dialled.
    local: SocketAddr,
    peer: LeafFacts,
    peer_serial: Arc<str>,
    /// The peer, where it is of another trust domain.
    stranger: Option<Stranger>,
    /// As programs are told of the tunnel.
    through: Through,
    /// The certificate that we showed.
    shown: Arc<Credential>,
}

impl Tunnel {
    /// Whether both certificates are valid still: no stream opens after either has expired.
    fn is_valid(&self, now: SystemTime) -> bool {
        now < self.peer.not_after && now < self.shown.not_after
    }

    fn ends(&self) -> Ends<'_> {
        Ends { serials: [&self.peer_serial, &self.shown.serial], stranger: self.stranger.as_ref() }
    }
}

/// Serves one tunnel until it ends.
pub async fn serve(worker: Arc<Worker>, stream: TcpStream) {
    let Ok(client) = stream.peer_addr().map(socket::canonical) else { return };
    let _entered = match worker.enter() {
        Ok(entered) => entered,
        Err(error) => {
            let record = Record::new(Reporter::Destination, client);
            return worker.telemetry.finish(&record, None, &Err(error));
        }
    };
    let shaken = match may_shake_hands(&worker, client) {
        Ok(_places) => Box::pin(handshake(&worker, stream, client)).await,
        Err(limit) => Err(ProxyError::Overloaded(limit)),
    };
    let mut record = Record::new(Reporter::Destination, client);
    let ended = match shaken {
        Ok((tls, tunnel)) => {
            record.security = Security::MutualTls;
            record.called_by(&tunnel.peer.identity);
            record.peer_serial = Some(Arc::clone(&tunnel.peer_serial));
            let peer = (tunnel.peer.identity.clone(), client.ip());
            match worker.peers.take(peer, hbone::MAX_TUNNELS_OF_PEER) {
                Some(_counted) => serve_streams(&worker, tls, Arc::new(tunnel)).await,
                None => Err(ProxyError::Overloaded("MAX_TUNNELS_OF_PEER")),
            }
        }
        Err(error) => Err(error),
    };
    // A tunnel that ended in good order has no record of its own: each of its streams has one.
    if ended.is_err() {
        worker.telemetry.finish(&record, None, &ended);
    }
}

/// Places for one handshake: one of the worker's, and one of those of the peer's host, so that nobody who merely
/// connects takes them all. The name of the limit that is reached, if one is.
fn may_shake_hands(
    worker: &Worker,
    client: SocketAddr,
) -> Result<(SemaphorePermit<'_>, Share<IpAddr>), &'static str> {
    let of_all = worker.handshakes.try_acquire().map_err(|_| "MAX_HANDSHAKES")?;
    // Where there are few places at all, one stranger has not all of them.
    let most = hbone::MAX_HANDSHAKES_OF_HOST.min((worker.shared.limits.max_connections / 8).max(1));
    let of_host = worker.shaking.take(host_of(client.ip()), most);
    Ok((of_all, of_host.ok_or("MAX_HANDSHAKES_OF_HOST")?))
}

async fn handshake(
    worker: &Worker,
    stream: TcpStream,
    client: SocketAddr,
) -> Result<(TlsStream, Tunnel), ProxyError> {
    let failed = |source: std::io::Error| ProxyError::Handshake { address: client, source };
    stream.set_nodelay(true).and_then(|()| socket::keep_alive(&stream)).map_err(failed)?;
    let local = socket::canonical(stream.local_addr().map_err(failed)?);
    let snapshot = worker.shared.snapshot.load_full();
    let listening = Listening {
        unnamed: snapshot.unnamed(local.ip()).cloned(),
        gateway: snapshot.host.is_gateway().then(|| snapshot.host_identity.clone()),
    };
    let shaking = async {
        let credentials = worker.certificates_for(&stream, &snapshot, &listening).await;
        let config = credentials.listener(&listening);
        tls::accept(&config, stream).await.map(|(tls, session)| (tls, session, credentials))
    };
    let (tls, session, credentials) = tokio::time::timeout(worker.shared.limits.handshake_timeout, shaking)
        .await
        .map_err(|_| failed(std::io::ErrorKind::TimedOut.into()))?
        .map_err(|error| failed(std::io::Error::new(error.kind(), describe_io(&error))))?;
    let peer = peer_leaf_facts(&session.peer).map_err(|error| failed(std::io::Error::other(error)))?;
    let shown = credentials
        .shown(session.server_name.as_deref(), &listening)
        .cloned()
        .ok_or_else(|| ProxyError::NoCertificate("the name that the peer asked for".to_owned()))?;
    let stranger = Stranger::of(
        (&session.peer, &session.issuers),
        peer.identity.trust_domain(),
        Purpose::Client,
        credentials.bundle(),
    );
    let peer_serial = peer.serial.as_str().into();
    let fingerprint: String = peer.fingerprint.iter().map(|byte| format!("{byte:02x}")).collect();
    let life = peer.not_after.min(shown.not_after).duration_since(SystemTime::now()).unwrap_or_default();
    let through = Through { ends: Instant::now() + life, fingerprint: fingerprint.into() };
    Ok((tls, Tunnel { client, local, peer, peer_serial, stranger, through, shown }))
}

async fn serve_streams(worker: &Arc<Worker>, tls: TlsStream, tunnel: Arc<Tunnel>) -> Result<(), ProxyError> {
    let standing = &worker.telemetry.metrics().inbound_tunnels;
    let tunnels = u32::try_from(standing.inc() + 1).unwrap_or(u32::MAX);
    let window =
        (hbone::WINDOW_BUDGET / tunnels.max(1)).clamp(hbone::STREAM_WINDOW, hbone::CONNECTION_WINDOW);
    let (tls, alarm) = Watched::new(tls, Starts::Peer);
    let handshake = builder().initial_connection_window_size(window).handshake::<_, Bytes>(tls);
    let shaken = tokio::time::timeout(worker.shared.limits.handshake_timeout, handshake).await;
    let ended = match shaken {
        Ok(Ok(connection)) => {
            let revoked = until_either_is_untrusted(worker, &tunnel);
            let life = Life { expiry: tunnel.through.ends, phase: worker.shared.phase.clone(), revoked };
            let carry =
                |request, respond| serve_stream(Arc::clone(worker), Arc::clone(&tunnel), request, respond);
            streams::serve((connection, alarm), life, carry).await
        }
        // What connects and leaves, or says nothing, has asked for nothing.
        Ok(Err(_)) | Err(_) => Ok(()),
    };
    standing.dec();
    ended.map_err(|end| match end {
        End::Flooded(Flooded(what)) => ProxyError::Flooded(what),
        End::Revoked => ProxyError::CertificateRevoked,
    })
}

/// Ends when one of the tunnel's two ends is trusted no more, with its streams told why they end.
async fn until_either_is_untrusted(worker: &Worker, tunnel: &Tunnel) {
    let mut trust = worker.shared.trust.clone();
    until_untrusted(&mut trust, &tunnel.ends()).await;
    worker.open.close_of(&tunnel.peer_serial);
    worker.open.close_revoked(trust.borrow().revoked());
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
        // Those that are given up before they are taken up are counted when they are, like all others.
        .max_pending_accept_reset_streams(MAX_RESET_UNHEARD as usize)
        .max_local_error_reset_streams(Some(hbone::MAX_RESETS));
    builder
}

/// Carries one stream, and writes its record.
async fn serve_stream(
    worker: Arc<Worker>,
    tunnel: Arc<Tunnel>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> Ended {
    let mut record = Record::new(Reporter::Destination, tunnel.client);
    record.security = Security::MutualTls;
    record.called_by(&tunnel.peer.identity);
    record.peer_serial = Some(Arc::clone(&tunnel.peer_serial));
    let mut counted = None;
    let started = record.started;
    let outcome =
        judge_and_deliver(&worker, &tunnel, (request, &mut respond), &mut record, &mut counted).await;
    let outcome = match outcome {
        Ok(Carried::Bytes) => Ok(()),
        Ok(Carried::Requests(arrived, ends)) => {
            let ended = Box::pin(callee::serve(worker, *arrived, *ends, record)).await;
            return match started.elapsed() < GIVEN_UP_WITHIN {
                true => ended,
                false => Ended::Normally,
            };
        }
        Err(error) => Err(error),
    };
    worker.telemetry.finish(&record, counted.as_deref(), &outcome);
    let answered = counted.is_some_and(|counted| counted.meter.bytes_to_client() > 0);
    let is_given_up = match outcome {
        Err(ProxyError::ClientBroke(_)) => !answered,
        // Refused, and reset before anybody could hear of it.
        Err(_) => is_reset(&mut respond).await,
        Ok(()) => false,
    };
    match is_given_up && started.elapsed() < GIVEN_UP_WITHIN {
        true => Ended::GivenUp,
        false => Ended::Normally,
    }
}

/// Whether the peer has reset a stream by now.
async fn is_reset(respond: &mut SendResponse<Bytes>) -> bool {
    poll_fn(|cx| Poll::Ready(matches!(respond.poll_reset(cx), Poll::Ready(Ok(_))))).await
}

/// What became of a stream.
enum Carried {
    /// It was carried to its end.
    Bytes,
    /// It is for a port that speaks HTTP, and each of its requests is carried for itself.
    Requests(Box<Arrived>, Box<(ByteReader, ByteWriter)>),
}

async fn judge_and_deliver(
    worker: &Arc<Worker>,
    tunnel: &Tunnel,
    (request, respond): (Request<RecvStream>, &mut SendResponse<Bytes>),
    record: &mut Record,
    counted: &mut Option<Arc<Counted>>,
) -> Result<Carried, ProxyError> {
    let snapshot = worker.shared.snapshot.load_full();
    if tunnel.shown.identity == snapshot.host_identity {
        return gateway::carry(worker, (tunnel, &snapshot), (request, respond), (record, counted)).await;
    }
    let (entered, full) =
        worker.enter().map_or_else(|full| (None, Some(full)), |entered| (Some(entered), None));
    let delivering = async {
        full.map_or(Ok(()), Err)?;
        let (local, allowed_by) = judge(worker, tunnel, &snapshot, &request, record).await?;
        let upstream = match &local.gateway {
            Some(_) => None,
            None => Some(worker.deliver(&local, record).await?),
        };
        Ok((local, allowed_by, upstream))
    };
    // A stream that its peer resets meanwhile leaves neither a question nor a connect behind.
    let reset = poll_fn(|cx| respond.poll_reset(cx));
    let delivered = tokio::select! {
        biased;
        delivered = delivering => delivered,
        _ = reset => Err(ProxyError::ClientBroke(std::io::ErrorKind::ConnectionReset.into())),
    };
    let (local, allowed_by, upstream) = match delivered {
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
    let (source, serial) = (Some(tunnel.peer.identity.clone()), Some(Arc::clone(&tunnel.peer_serial)));
    let mut delivered = Delivered { local, source, source_ip, serial, allowed_by, hello: Hello::Unread };
    let Some(mut upstream) = upstream else {
        let through = tunnel.through.clone();
        let arrived = egress::Arrival { delivered, stream, entered, through };
        return Box::pin(egress::carry(worker, snapshot, arrived, (record, counted))).await;
    };
    let mut first = BytesMut::new();
    let asked = First::Stream(&mut stream.receive, &mut first);
    let is_http = worker.speaks_http(&mut delivered, &snapshot, (asked, &upstream), record).await;
    if is_http.inspect_err(|error| cut(error, &upstream, &mut stream))? {
        let (decided_by, program, counts) = (snapshot, Some(upstream), (None, None));
        let through = Some(tunnel.through.clone());
        let arrived = Arrived { delivered, decided_by, program, entered, counts, tunnel: through };
        let ends = bytes::of_tunnel_with(stream, first.freeze());
        return Ok(Carried::Requests(Box::new(arrived), Box::new(ends)));
    }
    let counted = counted.insert(worker.telemetry.open(record));
    let entry = worker.open.enter(Some(Arc::clone(counted)), Some(delivered));
    entry.judge_again(&snapshot, &worker.shared.snapshot);
    let idle = worker.shared.limits.idle_timeout;
    let relayed = async {
        // What was looked at goes first, and only then may the peer send as much again.
        upstream.write_all(&first).await.map_err(ProxyError::UpstreamBroke)?;
        counted.meter.sent(first.len());
        // Fails on a stream that is gone, which the relay finds out with its reason.
        let _ = stream.receive.flow_control().release_capacity(first.len());
        let ended = relay::tunnel_to_upstream(&mut stream, &mut upstream, &counted.meter, idle).await;
        ended.map_err(ProxyError::from)
    };
    let relayed = tokio::select! {
        biased;
        reason = entry.until_closed() => Err(reason),
        ended = relayed => ended,
    };
    if let Err(error) = &relayed {
        cut(error, &upstream, &mut stream);
    }
    relayed.map(|()| Carried::Bytes)
}

/// Ends what is no longer allowed with a reset of both sides; what broke was reset where it was relayed.
fn cut(error: &ProxyError, upstream: &TcpStream, stream: &mut TunnelStream) {
    if let ProxyError::NoLongerAllowed(_)
    | ProxyError::Denied(_)
    | ProxyError::DeniedByProvider(_)
    | ProxyError::NoProvidersAnswer { .. }
    | ProxyError::CertificateRevoked
    | ProxyError::Draining = error
    {
        relay::reset_on_close(upstream);
        stream.send.send_reset(Reason::REFUSED_STREAM);
    }
}

/// Every check that stands before a delivery: the service, and the providers that were asked and allow it.
async fn judge(
    worker: &Arc<Worker>,
    tunnel: &Tunnel,
    snapshot: &Snapshot,
    request: &Request<RecvStream>,
    record: &mut Record,
) -> Result<(Arc<LocalEndpoint>, Vec<Arc<str>>), ProxyError> {
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
    let from = (Some(&tunnel.peer.identity), tunnel.client.ip());
    let allowed_by = worker.authorize(local, from, record).await?;
    Ok((Arc::clone(local), allowed_by))
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
        ProxyError::Denied(_)
        | ProxyError::DeniedByProvider(_)
        | ProxyError::NoProvidersAnswer { .. }
        | ProxyError::NotInSidecarIngress { .. }
        | ProxyError::CertificateExpired => hbone::DENIED,
        _ => hbone::UNAVAILABLE,
    };
    let mut response = Response::new(());
    *response.status_mut() = status;
    // The peer may be gone already; then there is nobody to tell.
    let _ = respond.send_response(response, true);
}
