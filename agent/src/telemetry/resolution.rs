//! Look-ups of names outside the mesh.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// How look-ups went.
#[derive(Debug)]
pub struct Lookups {
    /// Answers with addresses.
    pub answered: Counter,
    /// Look-ups without.
    pub failed: Counter,
    /// Addresses of answers that nobody is led to.
    pub left_out: Counter,
    /// Names beyond the bound, each time that they were left out.
    pub beyond: Counter,
}

impl Lookups {
    /// All of them, registered.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let lookups = Family::<OutcomeLabels, Counter>::default();
        let of = |outcome| lookups.get_or_create(&OutcomeLabels { outcome }).clone();
        let all = Self {
            answered: of("answered"),
            failed: of("failed"),
            left_out: Counter::default(),
            beyond: Counter::default(),
        };
        registry.register("baremesh_resolutions", "Look-ups of names of ServiceEntries by outcome", lookups);
        registry.register(
            "baremesh_resolutions_addresses_left_out",
            "Addresses in answers for names of ServiceEntries that nobody is led to: this host's, link-local, virtual",
            all.left_out.clone(),
        );
        registry.register(
            "baremesh_resolutions_names_beyond_bound",
            "Names of ServiceEntries that were not looked up because there are too many",
            all.beyond.clone(),
        );
        Arc::new(all)
    }
}
