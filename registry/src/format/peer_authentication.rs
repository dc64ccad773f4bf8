//! `PeerAuthentication`: whether plaintext is taken.

use std::collections::BTreeMap;

use baremesh_model::peer_authentication::{MtlsMode, PeerAuthentication};
use serde_json::{Map, Value as Json, json};

use super::decode::{At, Decoder, Fields, optional};
use super::document::Metadata;
use super::fields::{Field, enforced};
use crate::diagnostic::quote;

/// The fields of the kind.
pub(super) static FIELDS: &[Field] = &[
    enforced("selector", "the workloads that it is for; all of the namespace without it"),
    enforced("selector.matchLabels", "labels that a workload must carry, all of them"),
    enforced("mtls", "the mode of every port that `portLevelMtls` does not name"),
    enforced("mtls.mode", "UNSET (inherit, default), DISABLE, PERMISSIVE or STRICT"),
    enforced("portLevelMtls", "modes by the workload's port number; only with a selector"),
    enforced("portLevelMtls[].mode", "UNSET, DISABLE, PERMISSIVE or STRICT"),
];

pub(super) fn decode(
    d: &mut Decoder<'_>,
    metadata: &Metadata<'_>,
    spec: &Fields<'_>,
) -> Option<PeerAuthentication> {
    let selector = d.selector(spec);
    let mtls = optional(spec.take("mtls"), |at| mtls(d, &at));
    let ports = optional(spec.take("portLevelMtls"), |at| ports(d, &at));
    let (selector, ports) = (selector?, ports?.unwrap_or_default());
    if let (None, false, Some(at)) = (&selector, ports.is_empty(), spec.take("portLevelMtls")) {
        let help = "add `selector.matchLabels`, or use `mtls.mode` for all ports";
        d.invalid(&at, "portLevelMtls requires selector", help);
        return None;
    }
    Some(PeerAuthentication { key: metadata.key.clone(), selector, mode: mtls?.flatten(), ports })
}

fn mtls(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Option<MtlsMode>> {
    let fields = d.fields(at)?;
    optional(fields.take("mode"), |at| mode(d, &at)).map(Option::flatten)
}

/// A mode; UNSET is none.
fn mode(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Option<MtlsMode>> {
    match d.text(at)? {
        "UNSET" => Some(None),
        text => named_mode(d, at, text).map(Some),
    }
}

/// A mode other than UNSET.
pub(super) fn named_mode(d: &mut Decoder<'_>, at: &At<'_>, text: &str) -> Option<MtlsMode> {
    match text {
        "DISABLE" => Some(MtlsMode::Disable),
        "PERMISSIVE" => Some(MtlsMode::Permissive),
        "STRICT" => Some(MtlsMode::Strict),
        other => {
            let message = format!("Unsupported value: {}", quote(other));
            d.invalid(at, message, "use DISABLE, PERMISSIVE or STRICT");
            None
        }
    }
}

fn ports(d: &mut Decoder<'_>, at: &At<'_>) -> Option<BTreeMap<u16, Option<MtlsMode>>> {
    let mut ports = BTreeMap::new();
    for entry in d.map(at)? {
        let at = at.entry(entry);
        let port = d.port_text(&at, &entry.key)?;
        ports.insert(port, mtls(d, &at)?);
    }
    Some(ports)
}

/// A mode's name.
pub(super) fn mode_name(mode: Option<MtlsMode>) -> &'static str {
    match mode {
        None => "UNSET",
        Some(MtlsMode::Disable) => "DISABLE",
        Some(MtlsMode::Permissive) => "PERMISSIVE",
        Some(MtlsMode::Strict) => "STRICT",
    }
}

pub(super) fn encode(policy: &PeerAuthentication) -> Json {
    let mut spec = Map::new();
    if let Some(selector) = &policy.selector {
        spec.insert("selector".into(), json!({ "matchLabels": super::json::labels(selector) }));
    }
    if policy.mode.is_some() {
        spec.insert("mtls".into(), json!({ "mode": mode_name(policy.mode) }));
    }
    if !policy.ports.is_empty() {
        let mode = |mode: &Option<MtlsMode>| json!({ "mode": mode_name(*mode) });
        let ports = policy.ports.iter().map(|(port, value)| (port.to_string(), mode(value)));
        spec.insert("portLevelMtls".into(), Json::Object(ports.collect()));
    }
    Json::Object(spec)
}
