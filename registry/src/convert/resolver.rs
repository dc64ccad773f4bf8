//! `service-resolver`: subsets, redirects, time limits and balancing.

use std::collections::BTreeMap;
use std::time::Duration;

use baremesh_model::name::Label;
use serde_json::{Map, Value as Json, json};

use super::entries::name;
use super::fields::{Fields, written};
use super::{Findings, filter};

/// What one entry says.
#[derive(Debug, Clone, Default)]
pub(super) struct Resolver {
    /// Where requests go that name no subset.
    pub(super) default_subset: Option<String>,
    /// The subsets, by the labels of their endpoints.
    pub(super) subsets: BTreeMap<String, BTreeMap<String, String>>,
    /// All that is for the service goes there.
    pub(super) redirect: Option<(Label, Option<String>)>,
    /// For connecting.
    pub(super) connect_timeout: Option<String>,
    /// For a request.
    pub(super) request_timeout: Option<Duration>,
    /// `loadBalancer` of a DestinationRule.
    pub(super) load_balancer: Option<Json>,
}

pub(super) fn read(fields: Fields<'_>, own: &Label, f: &mut Findings) -> Resolver {
    let default_subset = fields.text(f, "DefaultSubset").map(str::to_owned);
    let subsets =
        fields.named(f, "Subsets").into_iter().map(|(name, fields)| (name.to_owned(), subset(fields, f)));
    let subsets: BTreeMap<_, _> = subsets.collect();
    let redirect = fields.object(f, "Redirect").and_then(|inner| redirect(inner, own, f));
    let redirect = redirect.filter(|_| fields.value("Redirect").is_some());
    let help = "put both under one service and use `localityLbSetting.failoverPriority` of a DestinationRule with \
                `outlierDetection`: docs/destination-rules.md";
    fields.unsaid(
        f,
        "Failover",
        "calls do not go to another service or datacenter when endpoints fail",
        help,
    );
    fields.unsaid(
        f,
        "PrioritizeByLocality",
        "near endpoints come first where `outlierDetection` is set",
        help,
    );
    let connect_timeout = millis(&fields, "ConnectTimeout", f);
    let request_timeout = fields.duration(f, "RequestTimeout");
    let load_balancer = fields.object(f, "LoadBalancer").and_then(|fields| load_balancer(fields, f));
    fields.finish(f);
    Resolver { default_subset, subsets, redirect, connect_timeout, request_timeout, load_balancer }
}

/// A length of time as resources have it.
pub(super) fn millis(fields: &Fields<'_>, key: &str, f: &mut Findings) -> Option<String> {
    let duration = fields.duration(f, key)?;
    let text = written(duration);
    if text.is_none() {
        fields.refuse(f, key, "is finer than a millisecond", "round it");
    }
    text
}

fn subset(fields: Fields<'_>, f: &mut Findings) -> BTreeMap<String, String> {
    // A check here is passing or not: there are no endpoints with warnings to leave out.
    fields.pass_over(&["OnlyPassing"]);
    let labels = match fields.text(f, "Filter").map(filter::labels) {
        None => BTreeMap::new(),
        Some(Ok(labels)) => labels,
        Some(Err(part)) => {
            let reason = format!("{part:?} does not say which labels an endpoint has");
            let help =
                "subsets know `Service.Meta.KEY == VALUE`, joined by `and`: give the instances such a meta";
            fields.refuse(f, "Filter", reason, help);
            BTreeMap::new()
        }
    };
    fields.finish(f);
    labels
}

fn redirect(fields: Fields<'_>, own: &Label, f: &mut Findings) -> Option<(Label, Option<String>)> {
    fields.at_home(f);
    let help = "a service elsewhere is a Service of its own: docs/federation.md";
    fields.unsaid(f, "Datacenter", "a mesh does not span datacenters by their names", help);
    let service = match fields.text(f, "Service") {
        Some(text) => name(f, &fields.entry, Some(&fields.place("Service")), text),
        None => Some(own.clone()),
    };
    let subset = fields.text(f, "ServiceSubset").map(str::to_owned);
    fields.finish(f);
    Some((service?, subset))
}

fn load_balancer(fields: Fields<'_>, f: &mut Findings) -> Option<Json> {
    let policy = fields.text(f, "Policy");
    let ring = fields.object(f, "RingHashConfig");
    let least = fields.object(f, "LeastRequestConfig");
    let hash = fields.objects(f, "HashPolicies");
    let mut minimum = None;
    if let Some(ring) = ring {
        minimum = ring.number(f, "MinimumRingSize");
        ring.unsaid(f, "MaximumRingSize", "a ring has no upper bound of its own", "remove it");
        ring.finish(f);
    }
    if let Some(least) = least {
        if least.number(f, "ChoiceCount").is_some_and(|count| count != 2) {
            least.refuse(f, "ChoiceCount", "two endpoints are compared, always", "remove it");
        }
        least.finish(f);
    }
    let consistent = |f: &mut Findings| {
        if hash.len() != 1 {
            let help = "keep one: the same endpoint for the same key";
            fields.refuse(f, "HashPolicies", "a key is one thing of a request, and exactly one", help);
        }
        let key = hash.first().and_then(|fields| hash_key(fields, f));
        key.unwrap_or_default()
    };
    let made = match policy {
        None => None,
        Some("random") => Some(json!({ "simple": "RANDOM" })),
        Some("round_robin") => Some(json!({ "simple": "ROUND_ROBIN" })),
        Some("least_request") => Some(json!({ "simple": "LEAST_REQUEST" })),
        Some("ring_hash") => {
            let mut key = consistent(f);
            let ring = minimum.map(|size| json!({ "minimumRingSize": size })).unwrap_or_else(|| json!({}));
            key.insert("ringHash".into(), ring);
            Some(json!({ "consistentHash": key }))
        }
        Some("maglev") => {
            let mut key = consistent(f);
            key.insert("maglev".into(), json!({}));
            Some(json!({ "consistentHash": key }))
        }
        Some(_) => {
            fields.refuse(f, "Policy", "is not a balancer that is known", "");
            None
        }
    };
    hash.into_iter().for_each(|fields| fields.finish(f));
    fields.finish(f);
    made
}

fn hash_key(fields: &Fields<'_>, f: &mut Findings) -> Option<Map<String, Json>> {
    // With one key alone, the last one is the first.
    fields.pass_over(&["Terminal"]);
    let value = fields.text(f, "FieldValue").unwrap_or_default();
    let cookie = fields.object(f, "CookieConfig");
    let mut key = Map::new();
    if fields.flag(f, "SourceIP") {
        key.insert("useSourceIp".into(), true.into());
        return Some(key);
    }
    match fields.text(f, "Field") {
        Some("header") => _ = key.insert("httpHeaderName".into(), value.into()),
        Some("query_parameter") => _ = key.insert("httpQueryParameterName".into(), value.into()),
        Some("cookie") => {
            let mut made = json!({ "name": value });
            if let Some(cookie) = cookie {
                if cookie.flag(f, "Session") {
                    made["ttl"] = "0s".into();
                }
                if let Some(ttl) = millis(&cookie, "TTL", f) {
                    made["ttl"] = ttl.into();
                }
                if let Some(path) = cookie.text(f, "Path") {
                    made["path"] = path.into();
                }
                cookie.finish(f);
            }
            key.insert("httpCookie".into(), made);
        }
        _ => {
            fields.refuse(f, "Field", "is neither header, cookie nor query_parameter", "");
            return None;
        }
    }
    Some(key)
}
