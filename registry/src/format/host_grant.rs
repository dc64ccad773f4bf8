//! `HostGrant`: which services a host may be issued identities for, and which addresses it may announce.

use baremesh_model::grant::{AddressGrant, Grant};
use serde_json::{Value as Json, json};

use super::decode::{At, Decoder, Fields, optional};
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
         The namespaces control, nodes, hosts and operators are never granted",
    ),
    enforced(
        "addresses",
        "addresses or CIDR blocks that they may announce although they do not speak to the control server from them: \
         behind NAT, for containers, for an address that moves between hosts",
    ),
];

pub(super) fn decode(d: &mut Decoder<'_>, metadata: &Metadata<'_>, spec: &Fields<'_>) -> Option<HostGrant> {
    let host = d.required(spec, "host").and_then(|at| host(d, &at));
    let addresses = optional(spec.take("addresses"), |at| addresses(d, &at));
    // One that names addresses grants something without services, too.
    let services = match (spec.take("services"), spec.take("addresses")) {
        (None, Some(_)) => Some(Vec::new()),
        _ => d.required(spec, "services").and_then(|at| services(d, &at)),
    };
    let addresses = addresses?.unwrap_or_default();
    Some(HostGrant { key: metadata.key.clone(), host: host?, services: services?, addresses })
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

fn addresses(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Vec<AddressGrant>> {
    let addresses = d.each(at, |d, at| {
        let text = d.text(at)?;
        let grant = AddressGrant::parse(text).ok();
        if grant.is_none() {
            let message = format!("{} is not an address, nor a block of such", quote(text));
            d.invalid(at, message, "write `10.0.0.7`, `10.0.0.0/24` or `fd00::/64`");
        }
        grant
    })?;
    if addresses.is_empty() {
        d.invalid(at, "grants nothing", "name an address, or leave the field out");
        return None;
    }
    Some(addresses)
}

pub(super) fn encode(grant: &HostGrant) -> Json {
    let services: Vec<String> = grant.services.iter().map(ToString::to_string).collect();
    let addresses: Vec<String> = grant.addresses.iter().map(ToString::to_string).collect();
    let mut spec = json!({ "host": grant.host.to_string() });
    if !services.is_empty() {
        spec["services"] = services.into();
    }
    if !addresses.is_empty() {
        spec["addresses"] = addresses.into();
    }
    spec
}
