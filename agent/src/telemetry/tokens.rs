//! What became of tokens, and of the keys that they are verified with. Labels are reasons that the agent has, nothing of a
//! token.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::metrics::Counter;

/// Counts of tokens.
#[derive(Debug, Default)]
pub struct TokenMetrics {
    requests: Family<OutcomeLabels, Counter>,
    fetches: Family<OutcomeLabels, Counter>,
    /// Sources that rules of this host name and of which there are no keys.
    pub without_keys: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

impl TokenMetrics {
    /// All of them, registered.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "baremesh_token_requests",
            "Requests to services with a RequestAuthentication, by what became of their tokens",
            metrics.requests.clone(),
        );
        registry.register(
            "baremesh_token_key_fetches",
            "Key sets asked for, by what came of it",
            metrics.fetches.clone(),
        );
        registry.register(
            "baremesh_token_key_sources_without_keys",
            "Sources of keys without keys",
            metrics.without_keys.clone(),
        );
        metrics
    }

    /// Counts a request by what became of its tokens.
    pub fn judged(&self, outcome: &'static str) {
        self.requests.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// Counts a source that was asked for keys.
    pub fn fetched(&self, outcome: &'static str) {
        self.fetches.get_or_create(&OutcomeLabels { outcome }).inc();
    }
}
