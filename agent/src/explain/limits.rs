//! Limits on requests that count a request, in words. Whether one is used up is known to whoever counts alone.

use baremesh_model::authorization::Enforcement;
use baremesh_model::name::{Key, Label};
use baremesh_model::rate_limit::{Asking, KeyPart, RateLimit};
use baremesh_model::workload::Labels;

use super::Case;
use super::policies::slashed;
use crate::admin::report::explain::EffectReport;

/// Those that the called side counts it by.
pub(super) fn on_arrival(
    case: &Case<'_>,
    (namespace, labels): (&Label, &Labels),
    asking: &Asking<'_>,
) -> Vec<String> {
    let mesh = &case.snapshot.mesh;
    let root = &mesh.config.root_namespace;
    let limits = mesh.rate_limits.iter().filter(|limit| limit.is_for_workload(namespace, labels, root));
    limits.filter(|limit| limit.counts(asking)).map(|limit| words(limit)).collect()
}

/// Those that this host counts it by, before it is sent to a service.
pub(super) fn on_sending(case: &Case<'_>, service: &Key, asking: &Asking<'_>) -> Vec<EffectReport> {
    let config = &case.snapshot.mesh.config;
    let caller = case.caller.identity.namespace();
    let is_for = |limit: &RateLimit| {
        limit.called(&config.domain).as_ref() == Some(service)
            && limit.is_in_scope(caller, &config.root_namespace)
            && limit.counts(asking)
    };
    let limits = case.snapshot.mesh.rate_limits.iter().filter(|limit| is_for(limit));
    limits.map(|limit| super::words::effect("rateLimit", words(limit))).collect()
}

/// `shop/orders: 10 requests in 1 s, 20 at once, by header x-user`.
fn words(limit: &RateLimit) -> String {
    let numbers = &limit.limit;
    let mut text = format!(
        "{}: {} requests in {:?}, {} at once",
        slashed(&limit.key),
        numbers.requests(),
        numbers.per(),
        numbers.burst()
    );
    let parts: Vec<_> = limit.parts.iter().map(part).collect();
    if !parts.is_empty() {
        text.push_str(&format!(", for each {}", parts.join(" and ")));
    }
    if limit.enforcement == Enforcement::DryRun {
        text.push_str(" (dry run)");
    }
    text
}

fn part(part: &KeyPart) -> String {
    match part {
        KeyPart::SourceIdentity => "caller's identity".to_owned(),
        KeyPart::RemoteAddress => "address".to_owned(),
        KeyPart::Path => "path".to_owned(),
        KeyPart::Header(name) => format!("header {name}"),
        KeyPart::Claim(path) => format!("claim {path}"),
    }
}
