//! Metrics of checks. A look is no call: it appears here and in none of Istio's metrics.

use std::sync::Arc;

use baremesh_model::health::{Health, Outcome};
use baremesh_model::name::Key;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::metrics::Counter;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    service: Arc<str>,
    check: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabels {
    service: Arc<str>,
}

/// What checks have found. Series go with the registration.
#[derive(Debug, Default)]
pub struct HealthMetrics {
    results: Family<ResultLabels, Counter>,
    up: Family<ServiceLabels, Gauge>,
}

impl HealthMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let results = metrics.results.clone();
        registry.register("baremesh_health_check_results", "Results of health checks", results);
        let help = "1 while the service's check finds it healthy, 0 while it does not";
        registry.register("baremesh_health_check_up", help, metrics.up.clone());
        metrics
    }

    /// Counts one result.
    pub fn result(&self, service: &Key, check: &'static str, outcome: Outcome) {
        self.results.get_or_create(&labels(service, check, outcome)).inc();
    }

    /// Says how a service is.
    pub fn up(&self, service: &Key, health: Health) {
        let labels = ServiceLabels { service: service.to_string().into() };
        self.up.get_or_create(&labels).set(i64::from(health.is_healthy()));
    }

    /// Forgets a service's check.
    pub fn forget(&self, service: &Key, check: &'static str) {
        for outcome in [Outcome::Passed, Outcome::Failed] {
            self.results.remove(&labels(service, check, outcome));
        }
        self.up.remove(&ServiceLabels { service: service.to_string().into() });
    }
}

fn labels(service: &Key, check: &'static str, outcome: Outcome) -> ResultLabels {
    let result = match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed => "failed",
    };
    ResultLabels { service: service.to_string().into(), check, result }
}
