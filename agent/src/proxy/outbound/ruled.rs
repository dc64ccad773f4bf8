//! What a DestinationRule adds to a connection: times, the caller's address ahead, the way through an HTTP proxy, a record
//! of what failed, the called side's own TLS.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use baremesh_model::destination_rule::{Limits, ServerCheck, Tunnel};
use baremesh_model::http::ResponseHead;
use baremesh_model::outlier::Outcome;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::{Leg, ProxyError, Worker};
use crate::originate::{self, OriginationError};
use crate::proxy::http::h1::{Asked, HttpLimits, Parser};
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
    leg.say(header).await.map_err(ProxyError::UpstreamBroke)
}

/// Asks the HTTP proxy that the endpoint is for a connection, within the time, and returns what of the target's bytes came
/// with its answer.
pub(super) async fn through_proxy(
    leg: &mut Leg,
    tunnel: &Tunnel,
    endpoint: &Endpoint,
    time: Duration,
) -> Result<BytesMut, ProxyError> {
    let address = endpoint.address;
    let failed = |source| ProxyError::Connect { address, source };
    let asked = async {
        leg.say(tunnel.request()).await.map_err(failed)?;
        let (mut answer, mut head) = (Parser::new(HttpLimits::default()), ResponseHead::default());
        loop {
            let read = leg.hear().await.map_err(failed)?;
            if read.is_empty() {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()));
            }
            answer.feed(&read);
            // As of HEAD: whatever a 2xx says of a body, what follows is the target's.
            while let Some(_hop) =
                answer.response(&mut head, Asked::Head).map_err(|error| failed(io::Error::other(error)))?
            {
                match head.status {
                    100..200 => {}
                    200..300 => return Ok(answer.into_buffer()),
                    status => return Err(ProxyError::RefusedByProxy { address, status }),
                }
            }
        }
    };
    tokio::time::timeout(time, asked).await.unwrap_or_else(|_| Err(failed(io::ErrorKind::TimedOut.into())))
}

/// What an HTTP proxy's answer is read in.
const CHUNK: usize = 4096;

impl Leg {
    /// Sends what comes before the caller's bytes.
    pub(super) async fn say(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        match self {
            Self::Socket(upstream) => upstream.write_all(&bytes).await,
            Self::Tls(upstream) => upstream.write_all(&bytes).await.and(upstream.flush().await),
            Self::Tunnel(stream, _) => stream.send.send_data(bytes.into(), false).map_err(io::Error::other),
        }
    }

    /// What comes next; nothing at the end.
    async fn hear(&mut self) -> io::Result<Bytes> {
        let mut bytes = BytesMut::with_capacity(CHUNK);
        match self {
            Self::Socket(upstream) => upstream.read_buf(&mut bytes).await?,
            Self::Tls(upstream) => upstream.read_buf(&mut bytes).await?,
            Self::Tunnel(stream, _) => {
                let Some(read) = stream.receive.data().await else { return Ok(Bytes::new()) };
                let read = read.map_err(io::Error::other)?;
                stream.receive.flow_control().release_capacity(read.len()).map_err(io::Error::other)?;
                return Ok(read);
            }
        };
        Ok(bytes.freeze())
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
