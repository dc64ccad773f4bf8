//! What hosts ask for: to be let in, certificates, and the mesh's state. Each request is one stream of a connection.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use baremesh_ca::protocol::{CERTIFICATES_PATH, Call, JOIN_PATH, MAX_BODY, answer, serves};
use baremesh_ca::service::Refusal;
use baremesh_ca::tls::LeafFacts;
use baremesh_model::name::Label;
use baremesh_registry::control::ownership::ADDRESSES_PATH;
use baremesh_registry::control::stream::{StreamReader, StreamWriter};
use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use serde_json::json;
use tokio::time::timeout;

use super::addresses::spoken_from;
use super::limits::{BODY_TIMEOUT, network_of};
use super::listener::Caller;
use super::{Server, addresses, stopped};

/// The path of the control protocol.
pub(super) const STATE_PATH: &str = "/v1/state";

/// Answers one request.
pub(super) async fn handle(
    server: Arc<Server>,
    caller: Arc<Caller>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    match request.uri().path() {
        STATE_PATH => state(&server, &caller, request, respond).await,
        _ => call(&server, caller, request, respond).await,
    }
}

/// One call to the authority: a body, an answer.
async fn call(
    server: &Arc<Server>,
    caller: Arc<Caller>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let (head, body) = request.into_parts();
    let served = serves(head.uri.path()) || head.uri.path() == ADDRESSES_PATH;
    if served && !within_rate(server, &caller, head.uri.path()) {
        return send(&mut respond, too_many());
    }
    let body = match timeout(BODY_TIMEOUT, collect(body)).await {
        Ok(Some(body)) => body,
        Ok(None) => return respond.send_reset(Reason::CANCEL),
        Err(_) => {
            let message = format!("the request did not come within {} s", BODY_TIMEOUT.as_secs());
            return send(&mut respond, refused(StatusCode::REQUEST_TIMEOUT, "malformed", &message));
        }
    };
    // Held until the answer is there: calls wait for one disk, and more at once would only take memory.
    let Ok(_permit) = server.limits.calls.acquire().await else { return };
    if head.uri.path() == ADDRESSES_PATH {
        let response = addresses::answer(server, &caller, &head.method, &body).await;
        return send(&mut respond, response);
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

fn too_many() -> Response<Bytes> {
    // Agents take this code for one that passes by itself.
    refused(StatusCode::TOO_MANY_REQUESTS, "unavailable", "too many requests: ask again in a minute")
}

fn within_rate(server: &Server, caller: &Caller, path: &str) -> bool {
    let node = caller.peer.as_ref().and_then(|peer| peer.identity.as_node());
    let (limits, now) = (&server.limits, Instant::now());
    match node {
        Some(host) if path == CERTIFICATES_PATH => limits.issuing.allow(host.clone(), now),
        Some(host) if path == ADDRESSES_PATH => limits.showing.allow(host.clone(), now),
        Some(host) if path == STATE_PATH => limits.following.allow(host.clone(), now),
        _ => limits.joining.allow(network_of(caller.address), now),
    }
}

/// The body, of which at most a byte more is read than is taken: the authority then says that it is too long. `None`
/// when the stream broke off.
async fn collect(mut body: RecvStream) -> Option<Bytes> {
    let mut collected = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.ok()?;
        collected.extend_from_slice(&data[..data.len().min(MAX_BODY + 1 - collected.len())]);
        body.flow_control().release_capacity(data.len()).ok()?;
        if collected.len() > MAX_BODY {
            break;
        }
    }
    Some(collected.freeze())
}

/// Sends a whole answer. A peer that has gone does not read it.
fn send(respond: &mut SendResponse<Bytes>, response: Response<Bytes>) {
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
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    if !within_rate(server, caller, STATE_PATH) {
        return send(&mut respond, too_many());
    }
    let admitted = match (request.method(), &caller.peer) {
        (&Method::POST, Some(peer)) => check_node(server, peer).await,
        (&Method::POST, None) => Err(Refusal::NoCredential),
        _ => Err(Refusal::NoSuchCall),
    };
    let host = match admitted {
        Ok(host) => host,
        Err(refusal) => {
            let peer = caller.peer.as_ref().map(|peer| peer.identity.to_string());
            tracing::warn!(from = %caller.address, peer, code = refusal.code(), "the state is refused: {refusal}");
            return send(&mut respond, refused(refusal.status(), refusal.code(), &refusal.to_string()));
        }
    };
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
