//! What limits did with requests. The counts are the limits' own, so that they are there for as long as the limit is, and no
//! longer; labels are names of resources and services.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::snapshot::rate_limit::{Limiter, RateLimits, Tally};

/// The limits in force on this host.
#[derive(Debug, Clone, Default)]
pub struct RateLimitMetrics(Arc<Mutex<Vec<Arc<Limiter>>>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabels {
    namespace: String,
    name: String,
    service: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    #[prometheus(flatten)]
    limit: LimitLabels,
    outcome: &'static str,
}

impl RateLimitMetrics {
    /// From now on these are in force.
    pub fn are(&self, limits: &RateLimits) {
        let mut all: Vec<_> = limits.all().cloned().collect();
        let key = |limiter: &Arc<Limiter>| (limiter.policy.key.clone(), limiter.service.clone());
        all.sort_by_key(key);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = all;
    }
}

fn counter(encoder: MetricEncoder<'_>, count: &AtomicU64) -> fmt::Result {
    ConstCounter::new(count.load(Ordering::Relaxed)).encode(encoder)
}

impl Collector for RateLimitMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let limiters = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if limiters.is_empty() {
            return Ok(());
        }
        let labels = |limiter: &Limiter| LimitLabels {
            namespace: limiter.policy.key.namespace.to_string(),
            name: limiter.policy.key.name.to_string(),
            service: limiter.service.to_string(),
        };
        let help = "Requests by what a RateLimit said of them";
        let mut requests =
            encoder.encode_descriptor("baremesh_rate_limit_requests", help, None, MetricType::Counter)?;
        for limiter in &limiters {
            let Tally { allowed, refused, would_refuse, .. } = &*limiter.tally;
            for (outcome, count) in
                [("allowed", allowed), ("refused", refused), ("would_refuse", would_refuse)]
            {
                let labels = OutcomeLabels { limit: labels(limiter), outcome };
                counter(requests.encode_family(&labels)?, count)?;
            }
        }
        let help =
            "Requests counted together with other keys of their caller, because too many keys are in use";
        let mut shared =
            encoder.encode_descriptor("baremesh_rate_limit_shared", help, None, MetricType::Counter)?;
        for limiter in &limiters {
            counter(shared.encode_family(&labels(limiter))?, &limiter.tally.shared)?;
        }
        let help = "Keys of a RateLimit in use";
        let mut keys =
            encoder.encode_descriptor("baremesh_rate_limit_keys", help, None, MetricType::Gauge)?;
        for limiter in &limiters {
            let count = i64::try_from(limiter.counts()).unwrap_or(i64::MAX);
            ConstGauge::new(count).encode(keys.encode_family(&labels(limiter))?)?;
        }
        Ok(())
    }
}
