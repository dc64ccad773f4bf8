//! What hosts ask for: to be let in, certificates, and the mesh's state. Each request is one stream of a connection.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use baremesh_ca::client::ORDERS_PATH;
use baremesh_ca::ledger::{AuditRecord, Outcome};
use baremesh_ca::protocol::{CERTIFICATES_PATH, Call, JOIN_PATH, MAX_BODY, answer};
use baremesh_ca::service::Refusal;
use baremesh_ca::tls::LeafFacts;
use baremesh_model::name::Label;
use baremesh_registry::control::flows::FLOWS_PATH;
use baremesh_registry::control::ownership::ADDRESSES_PATH;
use baremesh_registry::control::reach::{REACH_PATH, ReachAsked, ReachTold};
use baremesh_registry::control::stream::{StreamReader, StreamWriter};
use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderValue, Request, Response, StatusCode};
use serde_json::json;
use tokio::time::timeout;

use super::addresses::spoken_from;
use super::endpoints::{Access, HostCall, OF_HOSTS, find};
use super::limits::{BODY_TIMEOUT, network_of};
use super::listener::Caller;
use super::{Server, addresses, flows, remote, stopped};

/// Answers one request.
pub(super) async fn handle(
    server: Arc<Server>,
    caller: Arc<Caller>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let path = request.uri().path();
    if path.strip_prefix(ORDERS_PATH).is_some_and(|target| target.starts_with('/')) {
        return remote::handle(&server, &caller, request, respond).await;
    }
    let Some((endpoint, _)) = find(&OF_HOSTS, request.method(), path) else {
        let refusal = Refusal::NoSuchCall;
        return send(&mut respond, refused(refusal.status(), refusal.code(), &refusal.to_string()));
    };
    if !within_rate(&server, &caller, path) {
        return send(&mut respond, too_many());
    }
    // Who may make the call is known before a byte of its body is read.
    let host = match admit(&server, &caller, endpoint.access).await {
        Ok(host) => host,
        Err(refusal) => {
            note_refusal(&server, &caller, endpoint.path, &refusal).await;
            return send(&mut respond, refused(refusal.status(), refusal.code(), &refusal.to_string()));
        }
    };
    match (endpoint.call, host) {
        (HostCall::State, Some(host)) => state(&server, &caller, host, request, respond).await,
        (call, host) => answered(&server, caller, (call, host), request, respond).await,
    }
}

/// The host that makes a call, where only a member may.
async fn admit(server: &Arc<Server>, caller: &Caller, access: Access) -> Result<Option<Label>, Refusal> {
    match (access, &caller.peer) {
        (Access::Token, _) => Ok(None),
        (Access::Node, Some(peer)) => check_node(server, peer).await.map(Some),
        (Access::NodeOrEnded, Some(peer)) => {
            let (ca, peer) = (server.ca.clone(), peer.clone());
            let known = tokio::task::spawn_blocking(move || ca.known_node(&peer)).await;
            known.unwrap_or(Err(Refusal::Unavailable)).map(Some)
        }
        (Access::Node | Access::NodeOrEnded, None) => Err(Refusal::NoCredential),
        // Not a rule for hosts.
        (Access::Operator(_), _) => Err(Refusal::NoSuchCall),
    }
}

/// Logs a refusal. Of one who showed a certificate of the mesh it is in the audit as well; strangers do not get to write to
/// the disk, and that the ledger is away for a moment is no refusal.
pub(super) async fn note_refusal(server: &Arc<Server>, caller: &Caller, what: &str, refusal: &Refusal) {
    let peer = caller.peer.as_ref().map(|peer| peer.identity.principal());
    tracing::warn!(from = %caller.address, peer, what, code = refusal.code(), "refused: {refusal}");
    let Some(who) = peer.filter(|_| refusal.code() != "unavailable") else { return };
    let record = AuditRecord {
        at: SystemTime::now(),
        who,
        what: what.to_owned(),
        outcome: Outcome::Refused,
        reason: refusal.to_string(),
    };
    let ca = server.ca.clone();
    let noted = tokio::task::spawn_blocking(move || ca.ledger().audit(&record)).await;
    if let Ok(Err(error)) = noted {
        tracing::error!("the refusal could not be recorded: {error}");
    }
}

/// One call with a body and an answer.
async fn answered(
    server: &Arc<Server>,
    caller: Arc<Caller>,
    (call, host): (HostCall, Option<Label>),
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let (head, body) = request.into_parts();
    let body = match timeout(BODY_TIMEOUT, collect(body, MAX_BODY)).await {
        Ok(Some(body)) => body,
        Ok(None) => return respond.send_reset(Reason::CANCEL),
        Err(_) => {
            let message = format!("the request did not come within {} s", BODY_TIMEOUT.as_secs());
            return send(&mut respond, refused(StatusCode::REQUEST_TIMEOUT, "malformed", &message));
        }
    };
    // Held until the answer is there: calls wait for one disk, and more at once would only take memory.
    let Ok(_permit) = server.limits.calls.acquire().await else { return };
    match (call, host) {
        (HostCall::Addresses, Some(host)) => {
            let response = addresses::answer(server, host, caller.address, &body).await;
            return send(&mut respond, response);
        }
        (HostCall::Flows, Some(host)) => return send(&mut respond, flows::answer(server, &host, &body)),
        (HostCall::Reach, Some(_)) => return send(&mut respond, reach(server, &body)),
        _ => {}
    }
    let blocking = server.clone();
    let answered = tokio::task::spawn_blocking(move || {
        let (method, path) = (&head.method, head.uri.path());
        let call = Call { method, path, peer: caller.peer.as_ref(), body: &body };
        let response = answer(&blocking.ca, call, SystemTime::now());
        if path == JOIN_PATH && response.status() == StatusCode::OK {
            // Before the host knows that it has joined: what is granted to its name counts from its first request on.
            if let Err(error) = blocking.grants.refresh() {
                tracing::error!("the grants of a host that joined are not known yet: {error}");
            }
            // Whoever held the name before is no member any more.
            blocking.membership.send_modify(|generation| *generation += 1);
        }
        response
    });
    match answered.await {
        Ok(response) => send(&mut respond, response),
        Err(_) => respond.send_reset(Reason::INTERNAL_ERROR),
    }
}

/// That this server is there, and what its clock says.
fn reach(server: &Server, body: &[u8]) -> Response<Bytes> {
    let Ok(asked) = serde_json::from_slice::<ReachAsked>(body) else {
        return refused(StatusCode::BAD_REQUEST, "malformed", "the question cannot be read");
    };
    let told = ReachTold::to(&asked, *server.control.versions().borrow(), SystemTime::now());
    let mut response = Response::new(serde_json::to_vec(&told).unwrap_or_default().into());
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}

pub(super) fn too_many() -> Response<Bytes> {
    // Agents take this code for one that passes by itself.
    refused(StatusCode::TOO_MANY_REQUESTS, "unavailable", "too many requests: ask again in a minute")
}

/// Whether a caller has not asked too often: a host and an operator count by their names, everybody else by the network.
pub(super) fn within_rate(server: &Server, caller: &Caller, path: &str) -> bool {
    let (limits, now) = (&server.limits, Instant::now());
    let identity = caller.peer.as_ref().map(|peer| &peer.identity);
    if let Some(operator) = identity.and_then(|identity| identity.as_operator()) {
        return limits.ordering.allow(operator.clone(), now);
    }
    match identity.and_then(|identity| identity.as_node()) {
        Some(host) if path == CERTIFICATES_PATH => limits.issuing.allow(host.clone(), now),
        Some(host) if path == ADDRESSES_PATH => limits.showing.allow(host.clone(), now),
        Some(host) if path == FLOWS_PATH => limits.telling.allow(host.clone(), now),
        Some(host) if path == REACH_PATH => limits.reaching.allow(host.clone(), now),
        // The state, and whatever a host has no business with.
        Some(host) => limits.following.allow(host.clone(), now),
        None => limits.joining.allow(network_of(caller.address), now),
    }
}

/// The body, of which at most a byte more is read than is taken: whoever judges it then says that it is too long. `None`
/// when the stream broke off.
pub(super) async fn collect(mut body: RecvStream, most: usize) -> Option<Bytes> {
    let mut collected = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.ok()?;
        collected.extend_from_slice(&data[..data.len().min(most + 1 - collected.len())]);
        body.flow_control().release_capacity(data.len()).ok()?;
        if collected.len() > most {
            break;
        }
    }
    Some(collected.freeze())
}

/// Sends a whole answer. A peer that has gone does not read it.
pub(super) fn send(respond: &mut SendResponse<Bytes>, response: Response<Bytes>) {
    let (head, body) = response.into_parts();
    let sent = respond.send_response(Response::from_parts(head, ()), false);
    if let Ok(mut stream) = sent {
        let _ = stream.send_data(body, true);
    }
}

pub(super) fn refused(status: StatusCode, code: &str, message: &str) -> Response<Bytes> {
    let mut response = Response::new(json!({ "code": code, "message": message }).to_string().into());
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}

/// Which host a credential stands for, asked of the ledger.
pub(super) async fn check_node(server: &Arc<Server>, peer: &LeafFacts) -> Result<Label, Refusal> {
    let (ca, peer) = (server.ca.clone(), peer.clone());
    let checked = tokio::task::spawn_blocking(move || ca.check_node(&peer)).await;
    checked.unwrap_or(Err(Refusal::Unavailable))
}

/// The mesh's state, for as long as the host wants it.
async fn state(
    server: &Arc<Server>,
    caller: &Caller,
    host: Label,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let Ok(stream) = respond.send_response(Response::new(()), false) else { return };
    let (reader, writer) = (StreamReader::new(request.into_body()), StreamWriter::new(stream));
    tracing::info!(%host, from = %caller.address, "connected");
    let mut stop = server.stop.clone();
    tokio::select! {
        ended = server.control.connect(host.clone(), spoken_from(caller.address), reader, writer) => match ended {
            Ok(()) => tracing::info!(%host, "disconnected"),
            Err(error) => tracing::info!(%host, "disconnected: {error}"),
        },
        // The agent connects again, to the next run of the server.
        () = stopped(&mut stop) => {}
    }
}
