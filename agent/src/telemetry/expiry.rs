//! When certificates expire: this host's, and those above them.

use std::collections::BTreeSet;
use std::time::SystemTime;

use baremesh_model::identity::Identity;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::identity::expiry::{Ends, Kind};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IdentityLabels {
    identity: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: String,
}

/// When certificates expire, in seconds since 1970.
#[derive(Debug, Default)]
pub struct ExpiryMetrics {
    certificates: Family<IdentityLabels, Gauge>,
    authorities: Family<KindLabels, Gauge>,
}

impl ExpiryMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "baremesh_certificate_expiry_timestamp_seconds",
            "When each certificate expires, in seconds since 1970",
            self.certificates.clone(),
        );
        registry.register(
            "baremesh_authority_expiry_timestamp_seconds",
            "When the first root and intermediate, and the node credential, expire, in seconds since 1970",
            self.authorities.clone(),
        );
    }

    /// Sets when the certificate of each identity expires; those of other identities are dropped.
    pub fn certificates<'a>(&self, held: impl Iterator<Item = (&'a Identity, SystemTime)>) {
        self.certificates.clear();
        for (identity, not_after) in held {
            let labels = IdentityLabels { identity: identity.to_string() };
            self.certificates.get_or_create(&labels).set(seconds(not_after));
        }
    }

    /// Sets when the first of each kind of what stands above this host's certificates expires, and the node credential.
    pub fn authorities(&self, all: &BTreeSet<Ends>, node: Option<SystemTime>) {
        let first = |kind: Kind| all.iter().filter(|one| one.kind == kind).map(|one| one.until).min();
        let (root, intermediate) = (first(Kind::Root), first(Kind::Intermediate));
        for (kind, until) in [(Kind::Root, root), (Kind::Intermediate, intermediate), (Kind::Node, node)] {
            let Some(until) = until else { continue };
            let labels = KindLabels { kind: kind.name().to_owned() };
            self.authorities.get_or_create(&labels).set(seconds(until));
        }
    }
}

fn seconds(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(since).unwrap_or(i64::MAX)
}
