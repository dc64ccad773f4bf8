//! What a DestinationRule adds to a connection: times, the caller's address ahead, a record of what failed, the called
//! side's own TLS.

use std::io;
use std::time::{Duration, Instant};

use baremesh_model::destination_rule::{Limits, ServerCheck};
use baremesh_model::outlier::Outcome;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::{Call, Leg, ProxyError, Upstream};
use crate::originate::{self, OriginationError};
use crate::snapshot::{Cluster, Endpoint};
use crate::telemetry::Record;

/// How long a DestinationRule lets a connection be quiet, and last; what it does not say is the agent's.
#[derive(Clone, Copy, Default)]
pub(super) struct Times {
    pub(super) idle: Option<Duration>,
    pub(super) longest: Option<Duration>,
}

impl Times {
    pub(super) fn of(limits: &Limits) -> Self {
        Self { idle: limits.tcp_idle_timeout, longest: limits.max_connection_duration }
    }
}

/// Ends after the time, if there is one.
pub(super) async fn over(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Sends the caller's address ahead, where the rule says so.
pub(super) async fn announce(leg: &mut Leg, cluster: &Cluster, record: &Record) -> Result<(), ProxyError> {
    let Some(version) = cluster.policy.proxy_protocol else { return Ok(()) };
    let header = version.header(record.client, record.destination.unwrap_or(record.client));
    match leg {
        Leg::Socket(upstream) => upstream.write_all(&header).await.map_err(ProxyError::UpstreamBroke),
        Leg::Tls(upstream) => {
            let written = async { upstream.write_all(&header).await.and(upstream.flush().await) };
            written.await.map_err(ProxyError::UpstreamBroke)
        }
        Leg::Tunnel(stream, _) => stream
            .send
            .send_data(header.into(), false)
            .map_err(|error| ProxyError::UpstreamBroke(io::Error::other(error))),
    }
}

/// Remembers that an endpoint could not be connected to.
pub(super) fn judge_failure(call: &Call<'_>, cluster: &Cluster, endpoint: &Endpoint) {
    if let Some(ejected) = cluster.judge(endpoint, Outcome::LocalFailure, Instant::now()) {
        call.worker.telemetry.metrics().ejections.inc();
        tracing::warn!(
            service = %cluster.name.host,
            endpoint = %endpoint.address,
            cause = ejected.cause.name(),
            times = ejected.times,
            "left out: too many failures in a row"
        );
    }
}

/// The called side's own TLS, as the DestinationRule says.
pub(super) async fn in_tls(
    Call { worker, .. }: &Call<'_>,
    cluster: &Cluster,
    server: &ServerCheck,
    socket: TcpStream,
) -> Result<Upstream, ProxyError> {
    let address = socket.peer_addr().map_err(ProxyError::UpstreamBroke)?;
    let failed = |source| ProxyError::Handshake { address, source };
    let tls =
        cluster.tls().map_or(Err(OriginationError::NotLoaded), |tls| worker.shared.originations.of(tls));
    let config = tls.map_err(|error| failed(io::Error::other(error)))?;
    let name = server.sni.as_ref().unwrap_or(&cluster.name.host);
    let handshake = originate::connect(config, name, socket);
    let stream = tokio::time::timeout(worker.shared.limits.handshake_timeout, handshake)
        .await
        .map_err(|_| failed(io::ErrorKind::TimedOut.into()))?
        .map_err(failed)?;
    Ok(Upstream::on(Leg::Tls(stream)))
}
