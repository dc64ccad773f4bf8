//! HTTP and gRPC requests under Istio's names: counts, durations and sizes, with the labels of connections and three
//! more. A request costs one look-up by its peers and its outcome; labels are rendered once a series.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::cache::Key;
use super::metrics::{Counter, Metrics, SeriesKey, TcpLabels};

/// What a request was spoken in, as the label `request_protocol` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestProtocol {
    /// HTTP of any version.
    Http,
    /// gRPC.
    Grpc,
}

impl RequestProtocol {
    /// As the label's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }
}

/// What tells one series of requests from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestKey {
    /// The peers, how the request travelled, and its response flags.
    pub peers: SeriesKey,
    /// What it was spoken in.
    pub protocol: RequestProtocol,
    /// The status that the caller saw; 0 where it saw none.
    pub code: u16,
    /// The gRPC status, where there was one.
    pub grpc_status: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    #[prometheus(flatten)]
    peers: TcpLabels,
    request_protocol: &'static str,
    response_code: u16,
    grpc_response_status: String,
}

/// Envoy's bounds of durations, in milliseconds.
const DURATION_BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

#[derive(Debug, Clone, Copy)]
struct Bounds;

impl MetricConstructor<Histogram> for Bounds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(DURATION_BOUNDS)
    }
}

type Histograms = Family<RequestLabels, Histogram, Bounds>;

/// Every request metric of the process.
#[derive(Debug, Clone)]
pub struct RequestMetrics {
    requests: Family<RequestLabels, Counter>,
    duration: Histograms,
    request_bytes: Histograms,
    response_bytes: Histograms,
    request_messages: Family<RequestLabels, Counter>,
    response_messages: Family<RequestLabels, Counter>,
}

/// The metrics of one series.
#[derive(Debug)]
pub struct RequestSeries {
    requests: Counter,
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
    messages: Option<(Counter, Counter)>,
}

/// What one request came to, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestSizes {
    /// From the first byte of the request to the last of the response.
    pub duration: Duration,
    /// Bytes of the request's body.
    pub request_bytes: u64,
    /// Bytes of the response's body.
    pub response_bytes: u64,
    /// gRPC messages of the request.
    pub request_messages: u64,
    /// gRPC messages of the response.
    pub response_messages: u64,
}

impl RequestSeries {
    /// Counts a request.
    pub fn count(&self, sizes: &RequestSizes) {
        self.requests.inc();
        self.duration.observe(sizes.duration.as_secs_f64() * 1000.0);
        self.request_bytes.observe(sizes.request_bytes as f64);
        self.response_bytes.observe(sizes.response_bytes as f64);
        if let Some((sent, received)) = &self.messages {
            sent.inc_by(sizes.request_messages);
            received.inc_by(sizes.response_messages);
        }
    }
}

impl RequestMetrics {
    /// All of them, registered.
    pub fn register(registry: &mut Registry) -> Self {
        let histograms = || Histograms::new_with_constructor(Bounds);
        let metrics = Self {
            requests: Family::default(),
            duration: histograms(),
            request_bytes: histograms(),
            response_bytes: histograms(),
            request_messages: Family::default(),
            response_messages: Family::default(),
        };
        let mut counter = |name: &str, help: &str, family: &Family<RequestLabels, Counter>| {
            registry.register(name, help, family.clone());
        };
        counter("istio_requests", "Requests", &metrics.requests);
        counter("istio_request_messages", "gRPC messages from callers", &metrics.request_messages);
        counter("istio_response_messages", "gRPC messages to callers", &metrics.response_messages);
        let mut histogram = |name: &str, help: &str, family: &Histograms| {
            registry.register(name, help, family.clone());
        };
        histogram("istio_request_duration_milliseconds", "From first to last byte", &metrics.duration);
        histogram("istio_request_bytes", "Sizes of request bodies", &metrics.request_bytes);
        histogram("istio_response_bytes", "Sizes of response bodies", &metrics.response_bytes);
        metrics
    }

    fn series(&self, labels: &RequestLabels, protocol: RequestProtocol) -> RequestSeries {
        let messages = (protocol == RequestProtocol::Grpc).then(|| {
            let of = |family: &Family<RequestLabels, Counter>| family.get_or_create(labels).clone();
            (of(&self.request_messages), of(&self.response_messages))
        });
        RequestSeries {
            requests: self.requests.get_or_create(labels).clone(),
            duration: self.duration.get_or_create(labels).clone(),
            request_bytes: self.request_bytes.get_or_create(labels).clone(),
            response_bytes: self.response_bytes.get_or_create(labels).clone(),
            messages,
        }
    }

    fn drop_series(&self, labels: &RequestLabels) {
        for family in [&self.requests, &self.request_messages, &self.response_messages] {
            family.remove(labels);
        }
        for family in [&self.duration, &self.request_bytes, &self.response_bytes] {
            family.remove(labels);
        }
    }
}

fn labels(metrics: &Metrics, key: &RequestKey) -> RequestLabels {
    RequestLabels {
        peers: metrics.labels(&key.peers),
        request_protocol: key.protocol.name(),
        response_code: key.code,
        grpc_response_status: key.grpc_status.map(|status| status.to_string()).unwrap_or_default(),
    }
}

impl Key for RequestKey {
    type Series = RequestSeries;

    fn unnamed(self) -> Self {
        Self { peers: self.peers.unnamed(), ..self }
    }

    fn series(&self, metrics: &Metrics) -> RequestSeries {
        metrics.requests.series(&labels(metrics, self), self.protocol)
    }

    fn forget(&self, metrics: &Metrics) {
        metrics.requests.drop_series(&labels(metrics, self));
    }
}
