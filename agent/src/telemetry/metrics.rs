//! Metrics under Istio's names and labels, and the agent's own, which start with `baremesh_`. A label's value is
//! never something that a caller can choose: identities, services and workloads are registered things.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use baremesh_model::identity::Identity;
use baremesh_model::workload::Labels;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter as GenericCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::cache::Key;
use super::expiry::ExpiryMetrics;
use super::external_authorization::ExternalAuthorizationMetrics;
use super::health::HealthMetrics;
use super::rate_limits::RateLimitMetrics;
use super::requests::RequestMetrics;
use super::resolution::Lookups;
use super::tokens::TokenMetrics;
use super::{Reporter, Security};
use crate::dns::DnsCounters;
use crate::proxy::error::Reason;

/// A count that only grows.
pub type Counter = GenericCounter<u64, AtomicU64>;

/// One side of a connection, as labels name it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Party {
    /// The identity, where it is known.
    pub identity: Option<Identity>,
    /// The workload's name, where a registration says it.
    pub workload: Option<Arc<str>>,
    /// The label `app`.
    pub app: Option<Arc<str>>,
    /// The label `version`.
    pub version: Option<Arc<str>>,
}

impl Party {
    /// A side of which the identity alone is known.
    pub fn of(identity: &Identity) -> Self {
        Self { identity: Some(identity.clone()), ..Self::default() }
    }

    /// A side whose registration is known.
    pub fn registered(identity: &Identity, workload: Option<Arc<str>>, labels: &Labels) -> Self {
        Self {
            identity: Some(identity.clone()),
            workload,
            app: labels.get("app").cloned(),
            version: labels.get("version").cloned(),
        }
    }
}

/// What tells one series of connections from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SeriesKey {
    /// Which side reports.
    pub reporter: Reporter,
    /// Who calls.
    pub source: Party,
    /// Who is called.
    pub target: Party,
    /// The called service's full host name.
    pub service_host: Option<Arc<str>>,
    /// The namespace of the ServiceEntry, where the host is one's.
    pub external_namespace: Option<Arc<str>>,
    /// How it travels.
    pub security: Security,
    /// Envoy's response flags, or `-`.
    pub flags: &'static str,
}

/// The counters of one series.
#[derive(Debug, Clone)]
pub struct Series {
    /// Connections opened.
    pub opened: Counter,
    /// Connections closed.
    pub closed: Counter,
    /// Bytes to the caller.
    pub sent_bytes: Counter,
    /// Bytes from the caller.
    pub received_bytes: Counter,
}

/// Istio's labels of a TCP series, in its order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct TcpLabels {
    reporter: &'static str,
    source_workload: Arc<str>,
    source_canonical_service: Arc<str>,
    source_canonical_revision: Arc<str>,
    source_workload_namespace: Arc<str>,
    source_principal: Arc<str>,
    source_app: Arc<str>,
    source_version: Arc<str>,
    source_cluster: Arc<str>,
    destination_workload: Arc<str>,
    destination_workload_namespace: Arc<str>,
    destination_principal: Arc<str>,
    destination_app: Arc<str>,
    destination_version: Arc<str>,
    destination_service: Arc<str>,
    destination_canonical_service: Arc<str>,
    destination_canonical_revision: Arc<str>,
    destination_service_name: Arc<str>,
    destination_service_namespace: Arc<str>,
    destination_cluster: Arc<str>,
    connection_security_policy: &'static str,
    response_flags: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    reporter: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    component: &'static str,
    tag: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// Every metric of the process.
pub struct Metrics {
    registry: Mutex<Registry>,
    cluster: Mutex<Arc<str>>,
    opened: Family<TcpLabels, Counter>,
    closed: Family<TcpLabels, Counter>,
    sent_bytes: Family<TcpLabels, Counter>,
    received_bytes: Family<TcpLabels, Counter>,
    failures: Family<FailureLabels, Counter>,
    /// When certificates expire.
    pub expiry: ExpiryMetrics,
    dns: Family<OutcomeLabels, Counter>,
    pub(super) requests: RequestMetrics,
    /// Limits on requests.
    pub rate_limits: RateLimitMetrics,
    /// Providers of CUSTOM policies.
    pub external_authorization: ExternalAuthorizationMetrics,
    /// Tokens, and keys for them.
    pub tokens: TokenMetrics,
    /// What checks of this host's services have found.
    pub health: HealthMetrics,
    /// Look-ups of names outside the mesh.
    pub lookups: Arc<Lookups>,
    /// Connections open at this moment.
    pub open_connections: Gauge,
    /// Sockets to endpoints that are kept without a request at this moment.
    pub kept_connections: Gauge,
    /// Tunnels to other agents that stand at this moment.
    pub tunnels: Gauge,
    /// Tunnels from other agents that stand at this moment.
    pub inbound_tunnels: Gauge,
    /// The version of the state in force.
    pub snapshot_version: Gauge,
    /// Seconds since 1970 at which the state in force was taken.
    pub snapshot_taken: Gauge,
    /// 1 while the control server is connected.
    pub registry_connected: Gauge,
    /// 1 while the capture rules stand as they were meant.
    pub capture_in_place: Gauge,
    /// Times that the rules were put back after somebody else had changed them.
    pub restored_rules: Counter,
    /// States that were refused, the last good one staying in force.
    pub rejected_configurations: Counter,
    /// Lists of revoked certificates that were older than the one in force.
    pub refused_revocation_lists: Counter,
    /// Certificate requests that failed; each is tried again.
    pub issue_failures: Counter,
    /// Access log lines dropped because the writer could not keep up, or could not write them.
    pub dropped_log_lines: Counter,
    /// Policies that matched without deciding: AUDIT and dry run.
    pub policy_notes: Counter,
    /// Connections and requests that were let through, and would be refused with the dry runs in force.
    pub dry_run_refused: Counter,
    /// Connections and requests that were refused, and would be let through with the dry runs in force.
    pub dry_run_allowed: Counter,
    /// Copies of requests that were not sent: too many under way, or a body too long to be kept.
    pub dropped_mirrors: Counter,
    /// Endpoints that outlier detection left out.
    pub ejections: Counter,
    /// Services whose endpoints were asked for because somebody called them for the first time.
    pub endpoints_asked: Counter,
    /// Calls that failed because the endpoints of their service did not come in time.
    pub endpoints_not_told: Counter,
    /// Connections to metrics and readiness that were closed unheard, because their host has enough of them.
    pub refused_scrapes: Counter,
}

impl Metrics {
    /// All metrics, registered; `cluster` is the mesh's name.
    pub fn new(cluster: &str) -> Arc<Self> {
        let mut registry = Registry::default();
        let requests = RequestMetrics::register(&mut registry);
        let rate_limits = RateLimitMetrics::default();
        registry.register_collector(Box::new(rate_limits.clone()));
        let external_authorization = ExternalAuthorizationMetrics::default();
        registry.register_collector(Box::new(external_authorization.clone()));
        let health = HealthMetrics::register(&mut registry);
        let tokens = TokenMetrics::register(&mut registry);
        let lookups = Lookups::register(&mut registry);
        let metrics = Self {
            registry: Mutex::new(registry),
            requests,
            rate_limits,
            external_authorization,
            tokens,
            health,
            lookups,
            cluster: Mutex::new(cluster.into()),
            opened: Family::default(),
            closed: Family::default(),
            sent_bytes: Family::default(),
            received_bytes: Family::default(),
            failures: Family::default(),
            expiry: ExpiryMetrics::default(),
            dns: Family::default(),
            open_connections: Gauge::default(),
            kept_connections: Gauge::default(),
            tunnels: Gauge::default(),
            inbound_tunnels: Gauge::default(),
            snapshot_version: Gauge::default(),
            snapshot_taken: Gauge::default(),
            registry_connected: Gauge::default(),
            capture_in_place: Gauge::default(),
            restored_rules: Counter::default(),
            rejected_configurations: Counter::default(),
            refused_revocation_lists: Counter::default(),
            issue_failures: Counter::default(),
            dropped_log_lines: Counter::default(),
            policy_notes: Counter::default(),
            dry_run_refused: Counter::default(),
            dry_run_allowed: Counter::default(),
            dropped_mirrors: Counter::default(),
            ejections: Counter::default(),
            endpoints_asked: Counter::default(),
            endpoints_not_told: Counter::default(),
            refused_scrapes: Counter::default(),
        };
        metrics.register();
        Arc::new(metrics)
    }

    /// Shows what a collector reads when it is asked.
    pub fn show(&self, collector: impl Collector) {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner).register_collector(Box::new(collector));
    }

    fn register(&self) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tcp = |name: &str, help: &str, family: &Family<TcpLabels, Counter>| {
            registry.register(name, help, family.clone());
        };
        tcp("istio_tcp_connections_opened", "Connections opened", &self.opened);
        tcp("istio_tcp_connections_closed", "Connections closed", &self.closed);
        tcp("istio_tcp_sent_bytes", "Bytes sent to callers", &self.sent_bytes);
        tcp("istio_tcp_received_bytes", "Bytes received from callers", &self.received_bytes);
        let build = Family::<BuildLabels, Gauge>::default();
        build.get_or_create(&BuildLabels { component: "agent", tag: env!("CARGO_PKG_VERSION") }).set(1);
        registry.register("istio_build", "The component's version", build);
        registry.register(
            "baremesh_connection_failures",
            "Connections not carried, or ended early, by reason",
            self.failures.clone(),
        );
        self.expiry.register(&mut registry);
        registry.register("baremesh_dns_queries", "DNS questions by what became of them", self.dns.clone());
        let mut gauge = |name: &str, help: &str, gauge: &Gauge| registry.register(name, help, gauge.clone());
        gauge("baremesh_open_connections", "Connections open now", &self.open_connections);
        gauge(
            "baremesh_kept_connections",
            "HTTP connections without an agent at the other end, kept for the next request",
            &self.kept_connections,
        );
        gauge("baremesh_tunnels", "Tunnels to other agents that stand now", &self.tunnels);
        gauge("baremesh_inbound_tunnels", "Tunnels from other agents that stand now", &self.inbound_tunnels);
        gauge("baremesh_snapshot_version", "The version of the state in force", &self.snapshot_version);
        gauge(
            "baremesh_snapshot_timestamp_seconds",
            "When the state in force was taken, in seconds since 1970",
            &self.snapshot_taken,
        );
        gauge("baremesh_registry_connected", "1 while the registry is in reach", &self.registry_connected);
        gauge("baremesh_capture_in_place", "1 while the capture rules stand", &self.capture_in_place);
        let mut counter =
            |name: &str, help: &str, counter: &Counter| registry.register(name, help, counter.clone());
        counter(
            "baremesh_capture_restored",
            "Times that the rules were put back after somebody else had changed them",
            &self.restored_rules,
        );
        counter("baremesh_rejected_configurations", "States refused", &self.rejected_configurations);
        counter(
            "baremesh_refused_revocation_lists",
            "Lists of revoked certificates that were older than the one in force",
            &self.refused_revocation_lists,
        );
        counter("baremesh_issue_failures", "Certificate requests that failed", &self.issue_failures);
        counter("baremesh_dropped_log_lines", "Access log lines dropped", &self.dropped_log_lines);
        counter("baremesh_dropped_mirrors", "Copies of requests not sent", &self.dropped_mirrors);
        counter("baremesh_policy_notes", "AUDIT and dry-run policies that matched", &self.policy_notes);
        counter(
            "baremesh_policy_dry_run_refused",
            "Let through, and refused if dry-run policies decided",
            &self.dry_run_refused,
        );
        counter(
            "baremesh_policy_dry_run_allowed",
            "Refused, and let through if dry-run policies decided",
            &self.dry_run_allowed,
        );
        counter("baremesh_ejections", "Endpoints that outlier detection left out", &self.ejections);
        counter(
            "baremesh_endpoints_asked",
            "Services whose endpoints were asked for at their first call",
            &self.endpoints_asked,
        );
        counter(
            "baremesh_endpoints_not_told",
            "Calls that failed because the endpoints of their service did not come in time",
            &self.endpoints_not_told,
        );
        counter("baremesh_refused_scrapes", "Scrapes and probes refused", &self.refused_scrapes);
    }

    /// The mesh's name from now on.
    pub fn of_mesh(&self, name: &str) {
        let mut cluster = self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        if **cluster != *name {
            *cluster = name.into();
        }
    }

    /// Counts a connection that was not carried, or ended early.
    pub fn failed(&self, reporter: Reporter, reason: Reason) {
        let labels = FailureLabels { reporter: reporter.name(), reason: reason.name() };
        self.failures.get_or_create(&labels).inc();
    }

    /// The text that Prometheus scrapes (OpenMetrics 1.0).
    pub fn render(&self, dns: Option<&DnsCounters>) -> String {
        if let Some(dns) = dns {
            self.take_dns(dns);
        }
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if prometheus_client::encoding::text::encode(&mut text, &registry).is_err() {
            // Writing to a string does not fail.
            let _ = writeln!(text, "# EOF");
        }
        text
    }

    fn take_dns(&self, dns: &DnsCounters) {
        for (outcome, total) in [
            ("answered", &dns.answered),
            ("nxdomain", &dns.nxdomain),
            ("nodata", &dns.nodata),
            ("forwarded", &dns.forwarded),
            ("over_limit", &dns.over_limit),
            ("malformed", &dns.refused_malformed),
            ("servfail", &dns.servfail),
            ("upstream_timeout", &dns.upstream_timeouts),
            ("upstream_error", &dns.upstream_errors),
            ("spoofed_ignored", &dns.spoofed_ignored),
            ("in_virtual_range", &dns.dropped_in_virtual_range),
        ] {
            let counter = self.dns.get_or_create(&OutcomeLabels { outcome });
            counter.inc_by(total.load(Ordering::Relaxed).saturating_sub(counter.get()));
        }
    }

    pub(super) fn labels(&self, key: &SeriesKey) -> TcpLabels {
        let cluster = Arc::clone(&self.cluster.lock().unwrap_or_else(PoisonError::into_inner));
        let unknown: Arc<str> = "unknown".into();
        let or_unknown = |text: &Option<Arc<str>>| text.clone().unwrap_or_else(|| Arc::clone(&unknown));
        let account =
            |party: &Party| party.identity.as_ref().map(|id| Arc::from(id.service_account().as_str()));
        let namespace = |party: &Party| party.identity.as_ref().map(|id| Arc::from(id.namespace().as_str()));
        let principal = |party: &Party| party.identity.as_ref().map(|id| Arc::from(id.to_string()));
        let canonical = |party: &Party| party.app.clone().or_else(|| account(party));
        let workload = |party: &Party| party.workload.clone().or_else(|| account(party));
        let (service, space) = match (key.service_host.as_deref(), &key.external_namespace) {
            // A host of a ServiceEntry is its own short name, as in Istio.
            (Some(host), Some(namespace)) => (Some(Arc::from(host)), Some(Arc::clone(namespace))),
            (Some(host), None) => match host.splitn(3, '.').collect::<Vec<_>>()[..] {
                [name, namespace, _] => (Some(Arc::from(name)), Some(Arc::from(namespace))),
                // Istio's names for what is outside of the mesh.
                [name] => (Some(Arc::from(name)), None),
                _ => (None, None),
            },
            (None, _) => (None, None),
        };
        TcpLabels {
            reporter: key.reporter.name(),
            source_workload: or_unknown(&workload(&key.source)),
            source_canonical_service: or_unknown(&canonical(&key.source)),
            source_canonical_revision: key.source.version.clone().unwrap_or_else(|| "latest".into()),
            source_workload_namespace: or_unknown(&namespace(&key.source)),
            source_principal: or_unknown(&principal(&key.source)),
            source_app: or_unknown(&key.source.app),
            source_version: or_unknown(&key.source.version),
            source_cluster: Arc::clone(&cluster),
            destination_workload: or_unknown(&workload(&key.target)),
            destination_workload_namespace: or_unknown(&namespace(&key.target)),
            destination_principal: or_unknown(&principal(&key.target)),
            destination_app: or_unknown(&key.target.app),
            destination_version: or_unknown(&key.target.version),
            destination_service: or_unknown(&key.service_host),
            destination_canonical_service: or_unknown(&canonical(&key.target)),
            destination_canonical_revision: key.target.version.clone().unwrap_or_else(|| "latest".into()),
            destination_service_name: or_unknown(&service),
            destination_service_namespace: or_unknown(&space),
            destination_cluster: cluster,
            connection_security_policy: key.security.name(),
            response_flags: key.flags,
        }
    }
}

impl Key for SeriesKey {
    type Series = Series;

    fn unnamed(self) -> Self {
        Self {
            source: Party::default(),
            target: Party::default(),
            service_host: None,
            external_namespace: None,
            ..self
        }
    }

    fn series(&self, metrics: &Metrics) -> Series {
        let labels = metrics.labels(self);
        Series {
            opened: metrics.opened.get_or_create(&labels).clone(),
            closed: metrics.closed.get_or_create(&labels).clone(),
            sent_bytes: metrics.sent_bytes.get_or_create(&labels).clone(),
            received_bytes: metrics.received_bytes.get_or_create(&labels).clone(),
        }
    }

    fn forget(&self, metrics: &Metrics) {
        let labels = metrics.labels(self);
        for family in [&metrics.opened, &metrics.closed, &metrics.sent_bytes, &metrics.received_bytes] {
            family.remove(&labels);
        }
    }
}
