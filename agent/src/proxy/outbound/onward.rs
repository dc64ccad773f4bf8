//! What leaves the mesh through a gateway of this host as bytes: the agent is the caller now, in the gateway's own name.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::attempts::any_endpoint;
use super::external::Opened;
use super::{Call, Leg, Upstream, ruled, stream_route};
use crate::proxy::Worker;
use crate::proxy::error::ProxyError;
use crate::proxy::open::{Beyond, Outside};
use crate::proxy::relay::{self, Meter, TunnelStream};
use crate::snapshot::gateway::GatewayPort;
use crate::snapshot::{LocalEndpoint, Snapshot};
use crate::telemetry::Record;

/// A connection to where something leaves for.
pub struct Onward {
    upstream: Upstream,
    /// Who leads there, and where that is, if it is outside of the mesh.
    pub outside: Option<Outside>,
}

/// Connects to where a connection leaves for that asks for `name`. The record stays that of the call to the gateway, and says
/// where it went.
pub async fn connect(
    worker: &Arc<Worker>,
    snapshot: &Arc<Snapshot>,
    (local, gateway): (&LocalEndpoint, &GatewayPort),
    name: Option<&str>,
    record: &mut Record,
) -> Result<Onward, ProxyError> {
    let (mut snapshot, began) = (Arc::clone(snapshot), Instant::now());
    loop {
        match Box::pin(connect_by(worker, &snapshot, (local, gateway), name, record)).await {
            // A host with a gateway asks for all endpoints, and they may be on their way.
            Err(error @ ProxyError::EndpointsUnknown { .. }) => {
                Box::pin(worker.shared.demand.wait(error, began)).await?;
                snapshot = worker.shared.snapshot.load_full();
            }
            ended => return ended,
        }
    }
}

async fn connect_by(
    worker: &Arc<Worker>,
    snapshot: &Arc<Snapshot>,
    (local, gateway): (&LocalEndpoint, &GatewayPort),
    name: Option<&str>,
    record: &mut Record,
) -> Result<Onward, ProxyError> {
    let at = (gateway, local.advertised.ip());
    let target = stream_route::from_gateway(snapshot, at, name, rand::random())?;
    let index = snapshot.registration(Some(&local.service));
    let call = Call { worker, snapshot, caller: local.identity.clone(), index };
    let (of_gateway, security, serial) = (record.target.clone(), record.security, record.peer_serial.clone());
    (record.service_host, record.external_namespace) = target.service.noted();
    let connected = any_endpoint(&call, Opened::Named(name), &target, record).await;
    (record.target, record.security, record.peer_serial) = (of_gateway, security, serial);
    let upstream = connected?;
    if upstream.delivered.is_some() {
        // By a way that endpoints do not show, to a program of this host.
        let to = target.service.key.clone();
        return Err(ProxyError::GatewayLoop { gateway: gateway.service.clone(), to });
    }
    let beyond = target.service.external.is_some().then(|| Beyond::Routed(target.service.key.clone()));
    let outside = beyond.map(|beyond| Outside { caller: local.service.clone(), beyond });
    Ok(Onward { upstream, outside })
}

impl Onward {
    /// Carries a caller's stream there, what was taken of it already first, until both directions have ended.
    pub async fn relay(
        self,
        caller: &mut TunnelStream,
        first: Bytes,
        meter: &Meter,
        idle: Duration,
    ) -> Result<(), ProxyError> {
        let Upstream { mut leg, times, first: answered, in_flight: _in_flight, held: _held, .. } =
            self.upstream;
        let idle = times.idle.unwrap_or(idle);
        let relayed = async {
            let taken = first.len();
            if taken > 0 {
                leg.say(first.to_vec()).await.map_err(ProxyError::UpstreamBroke)?;
                meter.sent(taken);
                // Fails on a stream that is gone, which the relay finds out with its reason.
                let _ = caller.receive.flow_control().release_capacity(taken);
            }
            if let Some(answered) = answered.filter(|answered| !answered.is_empty()) {
                let length = answered.len();
                relay::send_all(&mut caller.send, answered.freeze())
                    .await
                    .map_err(ProxyError::ClientBroke)?;
                meter.answered(length);
            }
            let ended = match &mut leg {
                Leg::Socket(upstream) => relay::tunnel_to_upstream(caller, upstream, meter, idle).await,
                Leg::Tunnel(called, _) => relay::tunnel_to_tunnel(caller, called, meter, idle).await,
                Leg::Tls(upstream) => Box::pin(relay::tunnel_to_tls(caller, upstream, meter, idle)).await,
            };
            ended.map_err(ProxyError::from)
        };
        tokio::select! {
            ended = relayed => ended,
            () = ruled::over(times.longest) => Err(ProxyError::TooLong),
        }
    }
}
