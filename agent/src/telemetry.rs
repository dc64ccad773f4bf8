//! What the agent tells about its work: Istio's TCP metrics, its own metrics, and one access log line a
//! connection. Everything about a connection is written by `Telemetry::finish` and nowhere else.

/// The access log: one line a connection, written by a task of its own.
pub mod access_log;
/// The metrics of checks.
pub mod health;
/// What a line of the log says.
pub mod line;
/// The series that a worker counts in.
pub mod cache;
/// The metrics, and the series that connections count in.
pub mod metrics;
/// The final record of one HTTP request.
pub mod request_record;
/// When certificates expire.
pub mod expiry;
/// The metrics of providers of CUSTOM policies.
pub mod external_authorization;
/// The metrics of limits on requests.
pub mod rate_limits;
/// Tokens.
pub mod tokens;
/// The metrics of HTTP and gRPC requests.
pub mod requests;
/// Look-ups of names outside the mesh.
pub mod resolution;
/// The forms that metrics are served in.
pub mod text_format;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use baremesh_model::identity::Identity;

use crate::proxy::error::{ProxyError, Reason};
use crate::proxy::relay::Meter;
use crate::snapshot::rate_limit::Decision;
use access_log::AccessLog;
use cache::SeriesCache;
use metrics::{Metrics, Party, Series, SeriesKey};
use request_record::RequestRecord;
use requests::{RequestKey, RequestProtocol};

/// Which of the two agents reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The caller's.
    Source,
    /// The called side's.
    Destination,
}

impl Reporter {
    /// As the label's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// How a connection travelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Security {
    /// Mutual TLS between two agents.
    MutualTls,
    /// Plaintext, or within the host.
    None,
    /// It never got so far.
    Unknown,
}

impl Security {
    /// As the label's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::None => "none",
            Self::Unknown => "unknown",
        }
    }
}

/// What is known of one connection. It fills up as the connection goes on, and is written once at its end.
#[derive(Debug, Clone)]
pub struct Record {
    /// When it was accepted.
    pub started: Instant,
    /// The same on the wall.
    pub at: SystemTime,
    /// Which side this is.
    pub reporter: Reporter,
    /// Where it came from.
    pub client: SocketAddr,
    /// Where it was going.
    pub destination: Option<SocketAddr>,
    /// Who calls.
    pub source: Party,
    /// Who is called.
    pub target: Party,
    /// The called service's full host name.
    pub service_host: Option<Arc<str>>,
    /// The namespace of the ServiceEntry, where the host is one's.
    pub external_namespace: Option<Arc<str>>,
    /// Where it was carried to.
    pub upstream: Option<SocketAddr>,
    /// How it travelled.
    pub security: Security,
    /// The serial number of the peer's certificate.
    pub peer_serial: Option<Arc<str>>,
    /// Names of policies that matched without deciding, with what they would have done.
    pub notes: Vec<String>,
    /// What would have become of it with the dry runs in force, where that is something else.
    pub dry_run: Option<String>,
}

impl Record {
    /// A connection that was just accepted.
    pub fn new(reporter: Reporter, client: SocketAddr) -> Self {
        Self {
            started: Instant::now(),
            at: SystemTime::now(),
            reporter,
            client,
            destination: None,
            source: Party::default(),
            target: Party::default(),
            service_host: None,
            external_namespace: None,
            upstream: None,
            security: Security::Unknown,
            peer_serial: None,
            notes: Vec::new(),
            dry_run: None,
        }
    }

    /// The same peers, for a request that has just come in.
    pub fn again(&self) -> Self {
        Self { started: Instant::now(), at: SystemTime::now(), ..self.clone() }
    }

    /// Who calls, by certificate or attestation.
    pub fn called_by(&mut self, identity: &Identity) {
        self.source = Party::of(identity);
    }
}

/// An open connection's bytes, and what of them has been counted.
#[derive(Debug)]
pub struct Counted {
    /// The relay counts here.
    pub meter: Meter,
    series: Arc<Series>,
    from_client: AtomicU64,
    to_client: AtomicU64,
}

impl Counted {
    /// Adds what moved since the last time to the series.
    pub fn flush(&self) {
        let add = |total: u64, counted: &AtomicU64, counter: &metrics::Counter| {
            let before = counted.swap(total, Ordering::Relaxed);
            counter.inc_by(total.saturating_sub(before));
        };
        // Istio's `received` is what the called side received.
        add(self.meter.bytes_from_client(), &self.from_client, &self.series.received_bytes);
        add(self.meter.bytes_to_client(), &self.to_client, &self.series.sent_bytes);
    }
}

/// One worker's way to the metrics and the log.
pub struct Telemetry {
    metrics: Arc<Metrics>,
    connections: SeriesCache<SeriesKey>,
    requests: SeriesCache<RequestKey>,
    log: AccessLog,
}

impl Telemetry {
    /// A worker's own handle.
    pub fn new(metrics: Arc<Metrics>, log: AccessLog) -> Self {
        Self { metrics, connections: SeriesCache::default(), requests: SeriesCache::default(), log }
    }

    /// The process's metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Counts a connection as opened, and gives it what it counts its bytes in.
    pub fn open(&self, record: &Record) -> Arc<Counted> {
        let series = self.series(record, "-");
        series.opened.inc();
        self.metrics.open_connections.inc();
        Arc::new(Counted {
            meter: Meter::default(),
            series,
            from_client: AtomicU64::new(0),
            to_client: AtomicU64::new(0),
        })
    }

    /// Writes the final record of a connection. `counted` is there where it got as far as being carried.
    pub fn finish(&self, record: &Record, counted: Option<&Counted>, outcome: &Result<(), ProxyError>) {
        let reason = outcome.as_ref().err().map(ProxyError::reason);
        let flags = reason.map_or("-", Reason::response_flags);
        match counted {
            Some(counted) => {
                counted.flush();
                self.metrics.open_connections.dec();
            }
            None => {
                self.series(record, "-").opened.inc();
            }
        }
        self.series(record, flags).closed.inc();
        if let Some(reason) = reason {
            self.metrics.failed(record.reporter, reason);
        }
        self.log.write(record, counted.map(|counted| &counted.meter), outcome);
    }

    /// Writes the final record of a request.
    pub fn finish_request(&self, record: &RequestRecord) {
        let peers = Self::series_key(&record.peers, record.flags);
        let protocol = record.protocol;
        // Values that a program chooses are few: the codes that there are.
        let code = if (100..600).contains(&record.status) { record.status } else { 0 };
        let grpc_status = record.grpc_status.filter(|_| protocol == RequestProtocol::Grpc);
        let key = RequestKey { peers, protocol, code, grpc_status };
        self.requests.series(&self.metrics, key).count(&record.sizes);
        record.limited.iter().for_each(Decision::count);
        record.token.into_iter().for_each(|outcome| self.metrics.tokens.judged(outcome));
        self.log.write_request(record);
    }

    /// Forgets the series of connections that ended long ago.
    pub fn sweep(&self) {
        self.connections.sweep_into(&self.metrics);
        self.requests.sweep_into(&self.metrics);
    }

    fn series(&self, record: &Record, flags: &'static str) -> Arc<Series> {
        self.connections.series(&self.metrics, Self::series_key(record, flags))
    }

    fn series_key(record: &Record, flags: &'static str) -> SeriesKey {
        SeriesKey {
            reporter: record.reporter,
            source: record.source.clone(),
            target: record.target.clone(),
            service_host: record.service_host.clone(),
            external_namespace: record.external_namespace.clone(),
            security: record.security,
            flags,
        }
    }
}

/// A duration as logs write it.
fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
