//! What arrives in plaintext from another host for a service of this one: refused under STRICT, and without an
//! identity otherwise.

use std::sync::Arc;

use baremesh_model::authorization::Hello;
use baremesh_model::flow::Way;
use baremesh_model::peer_authentication::MtlsMode;
use tokio::net::TcpStream;

use super::Worker;
use super::error::ProxyError;
use super::http::bytes;
use super::http::callee::{self, Arrived};
use super::open::Delivered;
use super::relay;
use super::sniff::First;
use super::socket;
use crate::telemetry::{Counted, Record, Reporter, Security};

/// Carries one captured plaintext connection, and writes its record.
pub async fn carry(worker: Arc<Worker>, mut client: TcpStream) {
    let Ok(address) = client.peer_addr() else { return };
    let mut record = Record::new(Reporter::Destination, socket::canonical(address));
    let mut counted = None;
    let outcome = judge_and_deliver(&worker, &mut client, &mut record, &mut counted).await;
    if let Ok(Some(arrived)) = outcome {
        // Who calls in plaintext costs itself a connection with each.
        let _ = Box::pin(callee::serve(worker, arrived, bytes::of_socket(client), record)).await;
        return;
    }
    if outcome.is_err() {
        relay::reset_on_close(&client);
    }
    worker.telemetry.finish(&record, counted.as_deref(), &outcome.map(|_| ()));
}

/// A connection for a port that speaks HTTP comes back, so that its requests are carried one by one.
async fn judge_and_deliver(
    worker: &Arc<Worker>,
    client: &mut TcpStream,
    record: &mut Record,
    counted: &mut Option<Arc<Counted>>,
) -> Result<Option<Arrived>, ProxyError> {
    let entered = worker.enter()?;
    let destination = socket::original_destination(client).map_err(|_| ProxyError::NotCaptured)?;
    record.destination = Some(destination);
    record.security = Security::None;
    let snapshot = worker.shared.snapshot.load_full();
    if worker.is_own(&snapshot, destination) {
        return Err(ProxyError::NotCaptured);
    }
    let local = snapshot
        .local(destination)
        .ok_or_else(|| ProxyError::NotRegistered { authority: destination.to_string() })?;
    record.calls(local, snapshot.service(&local.service).map(|service| Arc::clone(&service.host)));
    let source_ip = record.client.ip();
    if local.mode == MtlsMode::Strict {
        worker.shared.flows.note(local, None, source_ip, (Way::Plaintext, record.started));
        return Err(ProxyError::PlaintextRefused);
    }
    let allowed_by = worker.authorize(local, (None, source_ip), record).await?;
    client.set_nodelay(true).map_err(ProxyError::ClientBroke)?;
    let mut upstream = worker.deliver(local, record).await?;
    let mut delivered = Delivered {
        local: Arc::clone(local),
        source: None,
        source_ip,
        serial: None,
        allowed_by,
        hello: Hello::Unread,
    };
    let asked = (First::Socket(client), &upstream);
    if worker.speaks_http(&mut delivered, &snapshot, asked, record).await? {
        let (decided_by, program, entered) = (Arc::clone(&snapshot), Some(upstream), Some(entered));
        let (counts, tunnel) = ((None, None), None);
        return Ok(Some(Arrived { delivered, decided_by, program, entered, counts, tunnel }));
    }
    let counted = counted.insert(worker.telemetry.open(record));
    let entry = worker.open.enter(Some(Arc::clone(counted)), Some(delivered));
    entry.judge_again(&snapshot, &worker.shared.snapshot);
    let idle = worker.shared.limits.idle_timeout;
    tokio::select! {
        biased;
        reason = entry.until_closed() => Err(reason),
        ended = relay::client_to_upstream(client, &mut upstream, &counted.meter, idle) => {
            ended.map_err(ProxyError::from).map(|()| None)
        }
    }
}
