//! `HostGrant`: which services a host may be issued identities for.

use baremesh_model::grant::Grant;
use serde_json::{Value as Json, json};

use super::decode::{At, Decoder, Fields};
use super::document::Metadata;
use super::fields::{Field, enforced};
use crate::diagnostic::quote;
use crate::resource::{HostGrant, HostPattern};

/// The fields of the kind.
pub(super) static FIELDS: &[Field] = &[
    enforced("host", "the hosts that it is for: a name, `web-*`, `*-eu` or `*`"),
    enforced(
        "services",
        "what they may be: `orders.shop`, `web-*.shop`, `*.shop`; without a namespace it means `default`. \
         The namespaces control, nodes and hosts are never granted",
    ),
];

pub(super) fn decode(d: &mut Decoder<'_>, metadata: &Metadata<'_>, spec: &Fields<'_>) -> Option<HostGrant> {
    let host = d.required(spec, "host").and_then(|at| host(d, &at));
    let services = d.required(spec, "services").and_then(|at| services(d, &at));
    Some(HostGrant { key: metadata.key.clone(), host: host?, services: services? })
}

fn host(d: &mut Decoder<'_>, at: &At<'_>) -> Option<HostPattern> {
    let text = d.text(at)?;
    let pattern = HostPattern::new(text);
    if pattern.is_none() {
        let message = format!("{} is not a host's name, nor a pattern of such", quote(text));
        d.invalid(at, message, "use lower-case letters, digits and hyphens, and `*` at the start or the end");
    }
    pattern
}

fn services(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Vec<Grant>> {
    let services = d.each(at, |d, at| {
        let text = d.text(at)?;
        let grant = Grant::parse(text).ok();
        if grant.is_none() {
            let message = format!("{} is not a grant", quote(text));
            d.invalid(at, message, "write `name`, `name.namespace`, `web-*.namespace` or `*.namespace`");
        }
        grant
    })?;
    if services.is_empty() {
        d.invalid(at, "grants nothing", "name a service, or remove the HostGrant");
        return None;
    }
    Some(services)
}

pub(super) fn encode(grant: &HostGrant) -> Json {
    let services: Vec<String> = grant.services.iter().map(ToString::to_string).collect();
    json!({ "host": grant.host.to_string(), "services": services })
}
