//! What providers of CUSTOM policies said. The counts are the providers' own; labels are their names in the MeshConfig.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::external_authorization::{MAX_CHECKS, Provider, Providers, Tally};

/// The providers in force on this host.
#[derive(Debug, Clone, Default)]
pub struct ExternalAuthorizationMetrics(Arc<Mutex<Vec<Arc<Provider>>>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProviderLabels {
    provider: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    #[prometheus(flatten)]
    provider: ProviderLabels,
    outcome: &'static str,
}

impl ExternalAuthorizationMetrics {
    /// From now on these are in force.
    pub fn are(&self, providers: &Providers) {
        let mut all: Vec<_> = providers.all().cloned().collect();
        all.sort_by(|a, b| a.definition.name.cmp(&b.definition.name));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = all;
    }
}

fn counter(encoder: MetricEncoder<'_>, count: &AtomicU64) -> fmt::Result {
    ConstCounter::new(count.load(Ordering::Relaxed)).encode(encoder)
}

impl Collector for ExternalAuthorizationMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let providers = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if providers.is_empty() {
            return Ok(());
        }
        let labels = |provider: &Provider| ProviderLabels { provider: provider.definition.name.to_string() };
        let help = "Requests and connections by what a provider of CUSTOM policies said of them";
        let mut calls =
            encoder.encode_descriptor("baremesh_ext_authz_calls", help, None, MetricType::Counter)?;
        for provider in &providers {
            let Tally { allowed, denied, failed, failed_open, .. } = &*provider.tally;
            for (outcome, count) in
                [("allowed", allowed), ("denied", denied), ("failed", failed), ("failed_open", failed_open)]
            {
                let labels = OutcomeLabels { provider: labels(provider), outcome };
                counter(calls.encode_family(&labels)?, count)?;
            }
        }
        let help = "Calls of which the provider's answer was known already";
        let mut cached =
            encoder.encode_descriptor("baremesh_ext_authz_cached", help, None, MetricType::Counter)?;
        for provider in &providers {
            counter(cached.encode_family(&labels(provider))?, &provider.tally.cached)?;
        }
        let mut gauges = |name, help, value: &dyn Fn(&Provider) -> usize| {
            let mut gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for provider in &providers {
                let value = i64::try_from(value(provider)).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(gauge.encode_family(&labels(provider))?)?;
            }
            Ok(())
        };
        gauges("baremesh_ext_authz_pending", "Checks under way now", &|provider| {
            MAX_CHECKS.saturating_sub(provider.places.available_permits())
        })?;
        gauges("baremesh_ext_authz_answers", "Answers that are kept now", &|provider| {
            provider.cache.as_ref().map_or(0, |cache| cache.len())
        })?;
        gauges("baremesh_ext_authz_left_alone", "1 while a provider is left alone", &|provider| {
            usize::from(provider.circuit().is_open())
        })
    }
}
