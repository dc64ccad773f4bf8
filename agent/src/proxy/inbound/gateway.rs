//! A host that is a gateway of its network carries connections from outside to the agents in it. What it carries is the
//! callers' own mutual TLS with those agents: who may call whom is decided there, by certificates that are none of the
//! gateway's. It leads to agents that the mesh knows in its own network, at the port of tunnels, and nowhere else.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::SystemTime;

use baremesh_model::identity::Identity;
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, Response};

use super::{Carried, Tunnel, cut, refuse};
use crate::proxy::Worker;
use crate::proxy::error::ProxyError;
use crate::proxy::hbone::{self, Target};
use crate::proxy::relay::{self, TunnelStream};
use crate::proxy::socket;
use crate::share::{Share, Shares};
use crate::snapshot::Snapshot;
use crate::telemetry::{Counted, Record};

/// Carries one stream to the agent that it names.
pub(super) async fn carry(
    worker: &Arc<Worker>,
    (tunnel, snapshot): (&Tunnel, &Arc<Snapshot>),
    (request, respond): (Request<RecvStream>, &mut SendResponse<Bytes>),
    (record, counted): (&mut Record, &mut Option<Arc<Counted>>),
) -> Result<Carried, ProxyError> {
    let (_entered, full) =
        worker.enter().map_or_else(|full| (None, Some(full)), |entered| (Some(entered), None));
    let connecting = async {
        full.map_or(Ok(()), Err)?;
        let place = place(&worker.shared.led, &tunnel.peer.identity)?;
        let address = judge(worker, tunnel, snapshot, &request)?;
        (record.destination, record.upstream) = (Some(address), Some(address));
        let connected = socket::connect(address, worker.shared.mark, worker.shared.limits.connect_timeout);
        let connected = connected.await.map_err(|source| ProxyError::Connect { address, source })?;
        Ok((connected, place))
    };
    // A stream that its peer resets meanwhile leaves no connect behind.
    let reset = poll_fn(|cx| respond.poll_reset(cx));
    let connected = tokio::select! {
        biased;
        connected = connecting => connected,
        _ = reset => Err(ProxyError::ClientBroke(std::io::ErrorKind::ConnectionReset.into())),
    };
    // The place is held for as long as the stream lives.
    let (mut upstream, _place) = connected.inspect_err(|error| refuse(respond, error))?;
    let send = respond
        .send_response(Response::new(()), false)
        .map_err(|source| ProxyError::Tunnel { address: tunnel.client, source })?;
    let mut stream = TunnelStream { send, receive: request.into_body() };
    let counted = counted.insert(worker.telemetry.open(record));
    let entry = worker.open.enter(Some(Arc::clone(counted)), None);
    let idle = worker.shared.limits.idle_timeout;
    let relayed = tokio::select! {
        biased;
        reason = entry.until_closed() => Err(reason),
        ended = relay::tunnel_to_upstream(&mut stream, &mut upstream, &counted.meter, idle) => {
            ended.map_err(ProxyError::from)
        }
    };
    if let Err(error) = &relayed {
        cut(error, &upstream, &mut stream);
    }
    relayed.map(|()| Carried::Bytes)
}

/// A place among those that one member has.
fn place(led: &Shares<Identity>, member: &Identity) -> Result<Share<Identity>, ProxyError> {
    let place = led.take(member.clone(), hbone::MAX_STREAMS_OF_MEMBER);
    place.ok_or(ProxyError::Overloaded("MAX_STREAMS_OF_MEMBER"))
}

/// The agent that is asked for, where this host leads to it.
fn judge(
    worker: &Worker,
    tunnel: &Tunnel,
    snapshot: &Snapshot,
    request: &Request<RecvStream>,
) -> Result<std::net::SocketAddr, ProxyError> {
    let target = hbone::read_request(request).map_err(|error| ProxyError::BadRequest(error.0))?;
    if !tunnel.is_valid(SystemTime::now()) {
        return Err(ProxyError::CertificateExpired);
    }
    match target {
        // Other meshes have no agents in this one's networks.
        Target::Address(address)
            if address.port() == worker.shared.ports.hbone
                && tunnel.stranger.is_none()
                && snapshot.leads_to(address.ip(), tunnel.client.ip()) =>
        {
            Ok(address)
        }
        target => Err(ProxyError::NotRegistered { authority: target.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::error::Reason;

    #[test]
    fn one_member_takes_not_all_that_a_gateway_carries() {
        let of = |name: &str| -> Identity {
            Identity::parse(&format!("spiffe://mesh.internal/ns/default/sa/{name}")).expect("an identity")
        };
        let led = Shares::default();
        let greedy: Vec<_> =
            (0..hbone::MAX_STREAMS_OF_MEMBER).map(|_| place(&led, &of("greedy")).expect("a place")).collect();
        let refused = place(&led, &of("greedy")).expect_err("its share is used up");
        assert_eq!(refused.reason(), Reason::Overloaded);
        assert!(refused.to_string().contains("MAX_STREAMS_OF_MEMBER"), "{refused}");
        assert!(place(&led, &of("other")).is_ok(), "others have theirs");
        drop(greedy);
        assert!(place(&led, &of("greedy")).is_ok());
    }
}
