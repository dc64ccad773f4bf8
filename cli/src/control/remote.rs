//! Orders from afar: at the port of hosts, below a path of their own, with an operator's credential. They are the orders of
//! the administration socket; what differs is who gives them, and that they come from strangers until that is known.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use baremesh_ca::ledger::OperatorRecord;
use baremesh_ca::service::Refusal;
use baremesh_ca::tls::LeafFacts;
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use serde_json::json;
use tokio::time::timeout;

use super::Server;
use super::calls::{collect, note_refusal, send, too_many, within_rate};
use super::endpoints::{OF_OPERATORS, find};
use super::limits::BODY_TIMEOUT;
use super::listener::Caller;
use super::orders::{self, Order};
use super::socket::{Denial, MAX_ORDER};
use super::who::Who;

/// How long an answer may take to be read.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of an answer that are handed to the connection at once.
const CHUNK: usize = 64 * 1024;

/// Answers one order. `target` is its path without what stands before all of them.
pub(super) async fn handle(
    server: &Arc<Server>,
    caller: &Caller,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let (head, body) = request.into_parts();
    if !within_rate(server, caller, head.uri.path()) {
        return send(&mut respond, too_many());
    }
    // Known before a byte of the body is read.
    let record = match admit(server, caller).await {
        Ok(record) => record,
        Err(refusal) => {
            note_refusal(server, caller, &format!("{} {}", head.method, head.uri.path()), &refusal).await;
            let told = refusal.to_string();
            let denial = json!({ "code": refusal.code(), "message": told, "error": told });
            return send(&mut respond, answer(refusal.status(), denial.to_string().into()));
        }
    };
    let target = head.uri.path().strip_prefix(baremesh_ca::client::ORDERS_PATH).unwrap_or_default();
    let Some((endpoint, name)) = find(&OF_OPERATORS, &head.method, target) else {
        return send(&mut respond, denied(&Denial::no_such_order()));
    };
    // Each holds a whole body: so many at once and no more, of one operator and of all.
    let Some(_place) = server.limits.order_place(&record.name) else {
        return send(&mut respond, too_many());
    };
    let who = Who::from(record);
    let Ok(_permit) = server.limits.orders.acquire().await else { return };
    let body = match timeout(BODY_TIMEOUT, collect(body, MAX_ORDER)).await {
        Ok(Some(body)) if body.len() <= MAX_ORDER => body,
        Ok(Some(_)) => {
            let reason = format!("the request is longer than {MAX_ORDER} bytes");
            return send(&mut respond, denied(&Denial::new(StatusCode::PAYLOAD_TOO_LARGE, reason)));
        }
        Ok(None) => return respond.send_reset(Reason::CANCEL),
        Err(_) => {
            let reason = format!("the request did not come within {} s", BODY_TIMEOUT.as_secs());
            return send(&mut respond, denied(&Denial::new(StatusCode::REQUEST_TIMEOUT, reason)));
        }
    };
    let query = head.uri.query().unwrap_or_default();
    let order = Order { endpoint, name, query, body, who };
    let response = match Box::pin(orders::carry_out(server.clone(), order)).await {
        Ok(value) => answer(StatusCode::OK, value.to_string().into()),
        Err(denial) => denied(&denial),
    };
    // A peer that does not read is no reason to keep its answer.
    if timeout(ANSWER_TIMEOUT, send_as_read(&mut respond, response)).await.is_err() {
        respond.send_reset(Reason::CANCEL);
    }
}

async fn admit(server: &Arc<Server>, caller: &Caller) -> Result<OperatorRecord, Refusal> {
    match &caller.peer {
        Some(peer) => check_operator(server, peer).await,
        None => Err(Refusal::NoCredential),
    }
}

/// Which operator a credential stands for, asked of the ledger.
pub(super) async fn check_operator(
    server: &Arc<Server>,
    peer: &LeafFacts,
) -> Result<OperatorRecord, Refusal> {
    let (ca, peer) = (server.ca.clone(), peer.clone());
    let checked = tokio::task::spawn_blocking(move || ca.check_operator(&peer, SystemTime::now())).await;
    checked.unwrap_or(Err(Refusal::Unavailable))
}

fn denied(denial: &Denial) -> Response<Bytes> {
    answer(denial.status, serde_json::to_vec(&denial.fault).unwrap_or_default().into())
}

fn answer(status: StatusCode, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Sends a whole answer as fast as the peer reads it: a list of resources may be large.
async fn send_as_read(respond: &mut SendResponse<Bytes>, response: Response<Bytes>) {
    let (head, mut body) = response.into_parts();
    let Ok(mut stream) = respond.send_response(Response::from_parts(head, ()), false) else { return };
    while !body.is_empty() {
        stream.reserve_capacity(body.len().min(CHUNK));
        match poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(Ok(capacity)) => {
                let next = body.split_to(capacity.min(body.len()));
                if stream.send_data(next, false).is_err() {
                    return;
                }
            }
            // The peer has gone.
            Some(Err(_)) | None => return,
        }
    }
    let _ = stream.send_data(Bytes::new(), true);
}
