//! What a DestinationRule adds to a connection: times, the caller's address ahead, a record of what failed, the called
//! side's own TLS.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use baremesh_model::destination_rule::{Limits, ServerCheck};
use baremesh_model::outlier::Outcome;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::{Leg, ProxyError, Worker};
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

impl Worker {
    /// Remembers how an endpoint did, and tells of one that is left out for it.
    pub(in crate::proxy) fn judge(&self, cluster: &Cluster, endpoint: &Endpoint, outcome: Outcome) {
        if let Some(ejected) = cluster.judge(endpoint, outcome, Instant::now()) {
            self.telemetry.metrics().ejections.inc();
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
    pub(in crate::proxy) async fn in_tls(
        &self,
        cluster: &Cluster,
        server: &ServerCheck,
        (address, socket): (SocketAddr, TcpStream),
    ) -> Result<Box<TlsStream<TcpStream>>, ProxyError> {
        let failed = |source| ProxyError::Handshake { address, source };
        let tls =
            cluster.tls().map_or(Err(OriginationError::NotLoaded), |tls| self.shared.originations.of(tls));
        let config = tls.map_err(|error| failed(io::Error::other(error)))?;
        let name = server.sni.as_ref().unwrap_or(&cluster.name.host);
        let handshake = originate::connect(config, name, socket);
        tokio::time::timeout(self.shared.limits.handshake_timeout, handshake)
            .await
            .map_err(|_| failed(io::ErrorKind::TimedOut.into()))?
            .map_err(failed)
    }
}
