//! The connection that an attempt is made on: a kept one, or a new one within the limits of the rule and of the host.

use std::time::Duration;

use ::bytes::BytesMut;
use baremesh_model::destination_rule::H2Upgrade;
use baremesh_model::http::Version;
use baremesh_model::service::Protocol;

use super::Caller;
use super::dial::Target;
use super::plan::Forward;
use super::tries::Miss;
use crate::proxy::Entered;
use crate::proxy::error::ProxyError;
use crate::proxy::http::attempt::{Download, Leg};
use crate::proxy::http::bytes::Joined;
use crate::proxy::http::downstream::Exchange;
use crate::proxy::http::upstream::{Connection, Lent, Need, ShareError, Terms, Via};
use crate::telemetry::request_record::RequestRecord;

/// How long a request waits for one of the connections that its rule allows.
const PATIENCE: Duration = Duration::from_secs(60);

/// One attempt's connection.
pub(super) struct Line {
    carrier: Carrier,
    /// A socket for one of many requests of a connection counts as a connection itself.
    _entered: Option<Entered>,
}

enum Carrier {
    Kept(Connection),
    Fresh(Connection),
    Shared(Lent),
}

/// Whether a connection of HTTP/1 may have carried requests before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Freshness {
    /// It may.
    Any,
    /// It may not.
    New,
}

/// What an attempt needs.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    freshness: Freshness,
    /// What the endpoint is spoken to in.
    over_http2: bool,
    /// The caller sends requests side by side, and each may have a socket of its own.
    is_one_of_many: bool,
}

impl Wanted {
    pub(super) fn by(exchange: &Exchange<'_>, forward: &Forward<'_>, freshness: Freshness) -> Self {
        Self {
            freshness,
            over_http2: speaks_http2(forward, exchange.head.version),
            is_one_of_many: exchange.answer.is_http2(),
        }
    }
}

impl Line {
    pub(super) fn was_kept(&self) -> bool {
        matches!(self.carrier, Carrier::Kept(_))
    }

    /// Leaves a shared connection whose peer takes no more requests to those who are on it. Whether it is one.
    pub(super) fn retire_if_told_to(&mut self) -> bool {
        match &mut self.carrier {
            Carrier::Shared(lent) => lent.retire_if_told_to(),
            Carrier::Kept(_) | Carrier::Fresh(_) => false,
        }
    }

    pub(super) fn leg(&mut self) -> Leg<'_> {
        match &mut self.carrier {
            Carrier::Kept(connection) | Carrier::Fresh(connection) => Leg::Http1(connection),
            Carrier::Shared(lent) => Leg::Http2(lent.sender.clone()),
        }
    }
}

impl Caller {
    /// A connection for one request.
    pub(super) async fn line(
        &self,
        target: &Target<'_>,
        wanted: Wanted,
        record: &mut RequestRecord,
    ) -> Result<Line, Miss> {
        if wanted.over_http2 {
            let carrier = Carrier::Shared(self.shared(target, record).await?);
            return Ok(Line { carrier, _entered: None });
        }
        let key = self.key(target);
        let has_own_socket = !matches!(key.via, Via::Tunnel(_));
        let entered = match wanted.is_one_of_many && has_own_socket {
            true => Some(self.worker.enter().map_err(|_| Miss::Overflow)?),
            false => None,
        };
        let upstreams = &self.worker.upstreams;
        let mut waiting = None;
        let patience = tokio::time::Instant::now() + PATIENCE;
        let carrier = loop {
            let freed = target.cluster.freed();
            tokio::pin!(freed);
            // Listened to before looking, so that what is freed in between is heard.
            freed.as_mut().enable();
            let kept = (wanted.freshness == Freshness::Any).then(|| upstreams.take(&key)).flatten();
            if let Some(kept) = kept {
                record.peers.peer_serial = kept.peer_serial();
                break Carrier::Kept(kept);
            }
            if let Ok(held) = target.cluster.connection() {
                let dialled = self.dial(target, &mut record.peers).await.map_err(Miss::NotConnected)?;
                let places = (dialled.place, Some(held));
                break Carrier::Fresh(Connection::new(dialled.reader, dialled.writer, places));
            }
            // Every connection that the rule allows is in use: one waits for it, within the rule's bound on that.
            if waiting.is_none() {
                let pending = target.cluster.pending().map_err(|_| Miss::Overflow)?;
                waiting = Some((pending, upstreams.wait(key.clone())));
            }
            if tokio::time::timeout_at(patience, freed).await.is_err() {
                return Err(Miss::Overflow);
            }
        };
        Ok(Line { carrier, _entered: entered })
    }

    /// A place on a connection of HTTP/2. A worker's first to an endpoint is opened whatever `maxConnections` says, as
    /// Envoy does: what others have open is of no use to it.
    async fn shared(&self, target: &Target<'_>, record: &mut RequestRecord) -> Result<Lent, Miss> {
        let connect = async |need| {
            let held = match need {
                Need::First => target.cluster.first_connection(),
                Need::Further => target.cluster.connection().map_err(|_| Miss::Overflow)?,
            };
            let dialled = self.dial(target, &mut record.peers).await.map_err(Miss::NotConnected)?;
            let io = Joined::new(dialled.reader, dialled.writer, BytesMut::new());
            Ok((io, (dialled.place, Some(held))))
        };
        let address = target.endpoint.address;
        let lent = self.worker.upstreams.share(&self.key(target), self.terms(target), connect).await;
        let lent = lent.map_err(|error| match error {
            ShareError::Connect(miss) => miss,
            ShareError::Handshake(source) => Miss::NotConnected(ProxyError::Connect { address, source }),
            ShareError::Full => Miss::Overflow,
        })?;
        record.peers.peer_serial = lent.peer_serial();
        Ok(lent)
    }

    pub(super) fn put_back(&self, target: &Target<'_>, line: Line, download: &Download) {
        let most_requests = target.cluster.limits().max_requests_per_connection;
        match line.carrier {
            Carrier::Kept(connection) | Carrier::Fresh(connection) => {
                if download.is_clean && connection.can_be_kept() && connection.served < most_requests {
                    let (key, terms) = (self.key(target), self.terms(target));
                    self.worker.upstreams.keep(key, connection, &terms, target.cluster.waiting());
                }
            }
            Carrier::Shared(lent) => {
                if lent.served() >= most_requests {
                    lent.retire();
                }
            }
        }
    }

    fn terms(&self, target: &Target<'_>) -> Terms {
        Terms::of(target.cluster, self.worker.shared.limits.idle_timeout)
    }
}

/// Whether the endpoint is spoken to in HTTP/2.
fn speaks_http2(forward: &Forward<'_>, callers: Version) -> bool {
    let limits = forward.cluster.limits();
    let by_port = match forward.service.ports[forward.port].protocol {
        // Nobody said what it speaks: what the caller does.
        Protocol::Auto => callers == Version::Http2,
        declared => matches!(declared, Protocol::Http2 | Protocol::Grpc),
    };
    match limits.h2_upgrade {
        _ if limits.use_client_protocol => callers == Version::Http2,
        H2Upgrade::Upgrade => true,
        H2Upgrade::Default | H2Upgrade::DoNotUpgrade => by_port,
    }
}
