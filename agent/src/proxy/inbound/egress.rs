//! What arrives at a gateway of this host, after the checks that stand before every delivery. It has no program behind it:
//! requests are routed one by one from here, bytes by the name that their own TLS asks for, or by the port.

use std::future::poll_fn;
use std::sync::Arc;

use baremesh_model::authorization::Hello;
use baremesh_model::gateway::Carries;
use bytes::{Bytes, BytesMut};
use h2::Reason;

use super::Carried;
use crate::proxy::error::ProxyError;
use crate::proxy::http::bytes::of_tunnel_with;
use crate::proxy::http::callee::{Arrived, Through};
use crate::proxy::open::Delivered;
use crate::proxy::outbound::onward::{self, Onward};
use crate::proxy::relay::TunnelStream;
use crate::proxy::sniff::{First, hello_of};
use crate::proxy::{Entered, Worker};
use crate::snapshot::Snapshot;
use crate::snapshot::gateway::GatewayPort;
use crate::telemetry::{Counted, Record};

/// A stream that policies let through to a port of a gateway.
pub(super) struct Arrival {
    /// What they decided on.
    pub(super) delivered: Delivered,
    /// The stream, after its 200.
    pub(super) stream: TunnelStream,
    /// Counts against the limit on connections.
    pub(super) entered: Option<Entered>,
    /// The tunnel that it came in.
    pub(super) through: Through,
}

/// Carries a stream to where it leaves for.
pub(super) async fn carry(
    worker: &Arc<Worker>,
    snapshot: Arc<Snapshot>,
    arrival: Arrival,
    (record, counted): (&mut Record, &mut Option<Arc<Counted>>),
) -> Result<Carried, ProxyError> {
    let Arrival { mut delivered, mut stream, entered, through } = arrival;
    let local = Arc::clone(&delivered.local);
    let Some(gateway) = &local.gateway else {
        return Err(ProxyError::NotRegistered { authority: local.advertised.to_string() });
    };
    if gateway.carries == Carries::Requests {
        let (program, counts, tunnel) = (None, (None, None), Some(through));
        let arrived = Arrived { delivered, decided_by: snapshot, program, entered, counts, tunnel };
        let ends = of_tunnel_with(stream, Bytes::new());
        return Ok(Carried::Requests(Box::new(arrived), Box::new(ends)));
    }
    let mut first = BytesMut::new();
    let opened = open(worker, (&snapshot, gateway), (&mut delivered, &mut stream), &mut first, record).await;
    let mut onward = opened.inspect_err(|_| stream.send.send_reset(Reason::REFUSED_STREAM))?;
    let counted = counted.insert(worker.telemetry.open(record));
    let outside = onward.outside.take();
    let entry = worker.open.enter_outside(Some(Arc::clone(counted)), Some(delivered), outside);
    entry.judge_again(&snapshot, &worker.shared.snapshot);
    let idle = worker.shared.limits.idle_timeout;
    let relayed = tokio::select! {
        biased;
        reason = entry.until_closed() => Err(reason),
        ended = onward.relay(&mut stream, first.freeze(), &counted.meter, idle) => ended,
    };
    // What is no longer allowed, or took too long; what broke was reset where it was relayed.
    relayed.inspect_err(|_| stream.send.send_reset(Reason::REFUSED_STREAM)).map(|()| Carried::Bytes)
}

/// Finds out what a stream asks for, decides on it anew where policies go by that, and connects to where it leaves for. A
/// stream that its peer resets meanwhile leaves no connect behind.
async fn open(
    worker: &Arc<Worker>,
    (snapshot, gateway): (&Arc<Snapshot>, &GatewayPort),
    (delivered, stream): (&mut Delivered, &mut TunnelStream),
    first: &mut BytesMut,
    record: &mut Record,
) -> Result<Onward, ProxyError> {
    let local = Arc::clone(&delivered.local);
    if gateway.carries == Carries::Tls {
        let mut seen = First::Stream(&mut stream.receive, first);
        let told = hello_of(&mut seen, local.protocol, None);
        delivered.hello = worker.while_allowed(delivered, snapshot, told).await?;
        if local.policies.asks_for_server_names() {
            worker.authorize_bytes(delivered, record).await?;
        }
    }
    let name = match &delivered.hello {
        Hello::Named(name) => Some(&**name),
        Hello::Unread | Hello::Pending | Hello::Absent | Hello::Nameless => None,
    };
    let reset = poll_fn(|cx| stream.send.poll_reset(cx));
    tokio::select! {
        biased;
        connected = onward::connect(worker, snapshot, (&local, gateway), name, record) => connected,
        _ = reset => Err(ProxyError::ClientBroke(std::io::ErrorKind::ConnectionReset.into())),
    }
}
