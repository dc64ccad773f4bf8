//! `outboundTrafficPolicy`, as MeshConfig has it.

use baremesh_model::outbound::OutboundPolicy;
use serde_json::{Value as Json, json};

use super::decode::{At, Decoder, optional};
use crate::diagnostic::quote;

/// Reads it; without a mode it is Istio's default.
pub(super) fn decode(d: &mut Decoder<'_>, at: &At<'_>) -> Option<OutboundPolicy> {
    let fields = d.fields(at)?;
    let mode = optional(fields.take("mode"), |at| {
        let text = d.text(&at)?;
        let mode = OutboundPolicy::of_name(text);
        if mode.is_none() {
            let message = format!("{} is no mode", quote(text));
            d.invalid(&at, message, "write ALLOW_ANY or REGISTRY_ONLY");
        }
        mode
    });
    Some(mode?.unwrap_or_default())
}

pub(super) fn encode(policy: OutboundPolicy) -> Json {
    json!({ "mode": policy.name() })
}
