//! `outlierDetection`.

use baremesh_model::outlier::OutlierDetection;
use serde_json::Value as Json;

use super::values::{Out, small_count, time, whole_percent};
use crate::format::decode::{At, Decoder, optional};

pub(super) fn decode(d: &mut Decoder<'_>, at: &At<'_>) -> Option<OutlierDetection> {
    let fields = d.fields(at)?;
    let five_xx = optional(fields.take("consecutive5xxErrors"), |at| small_count(d, &at));
    let gateway = optional(fields.take("consecutiveGatewayErrors"), |at| small_count(d, &at));
    let split = optional(fields.take("splitExternalLocalOriginErrors"), |at| d.boolean(&at));
    let local = optional(fields.take("consecutiveLocalOriginFailures"), |at| small_count(d, &at));
    let interval = optional(fields.take("interval"), |at| time(d, &at));
    let base = optional(fields.take("baseEjectionTime"), |at| time(d, &at));
    let most = optional(fields.take("maxEjectionPercent"), |at| whole_percent(d, &at));
    let least = optional(fields.take("minHealthPercent"), |at| whole_percent(d, &at));
    let (split, local) = (split?.unwrap_or(false), local?);
    if let (Some(1..), false, Some(at)) = (local, split, fields.take("consecutiveLocalOriginFailures")) {
        let message = "is specified, but split external local origin errors is set to false";
        d.invalid(&at, message, "set `splitExternalLocalOriginErrors: true`");
        return None;
    }
    let default = OutlierDetection::default();
    Some(OutlierDetection {
        consecutive_5xx: five_xx?.unwrap_or(default.consecutive_5xx),
        consecutive_gateway: gateway?.unwrap_or(default.consecutive_gateway),
        split_local: split,
        consecutive_local: local.filter(|_| split).unwrap_or(default.consecutive_local),
        interval: interval?.unwrap_or(default.interval),
        base_ejection_time: base?.unwrap_or(default.base_ejection_time),
        // In Istio's proto 0 and nothing are the same.
        max_ejection_percent: most?.filter(|most| *most > 0).unwrap_or(default.max_ejection_percent),
        min_health_percent: least?.unwrap_or(default.min_health_percent),
    })
}

/// All that differs from the defaults; an empty map is still outlier detection.
pub(super) fn encode(outlier: &OutlierDetection) -> Json {
    let default = OutlierDetection::default();
    let mut out = Out::default();
    let differs = |value: u16, default: u16| (value != default).then_some(value);
    out.put_some("consecutive5xxErrors", differs(outlier.consecutive_5xx, default.consecutive_5xx));
    out.put_some("consecutiveGatewayErrors", differs(outlier.consecutive_gateway, 0));
    if outlier.split_local {
        out.put("splitExternalLocalOriginErrors", true);
        out.put("consecutiveLocalOriginFailures", outlier.consecutive_local);
    }
    out.put_time("interval", Some(outlier.interval).filter(|time| *time != default.interval));
    let base = Some(outlier.base_ejection_time).filter(|time| *time != default.base_ejection_time);
    out.put_time("baseEjectionTime", base);
    let differs = |value: u8, default: u8| (value != default).then_some(value);
    out.put_some("maxEjectionPercent", differs(outlier.max_ejection_percent, default.max_ejection_percent));
    out.put_some("minHealthPercent", differs(outlier.min_health_percent, default.min_health_percent));
    out.object()
}
