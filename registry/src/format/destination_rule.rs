//! `DestinationRule`: how a service is called.

use std::sync::Arc;

use baremesh_model::destination_rule::{DestinationRule, ExportTo, HostPattern, Subset};
use baremesh_model::name::Label;
use serde_json::{Map, Value as Json, json};

use super::decode::{At, Decoder, Fields, optional};
use super::document::Metadata;
use crate::diagnostic::quote;

mod connection_pool;
/// The table of fields.
mod fields;
mod load_balancer;
mod locality;
mod outlier;
mod policy;
mod tls;
/// Values that several parts have.
mod values;

pub(super) use fields::FIELDS;

pub(super) fn decode(
    d: &mut Decoder<'_>,
    metadata: &Metadata<'_>,
    spec: &Fields<'_>,
) -> Option<DestinationRule> {
    let host = d.required(spec, "host").and_then(|at| host(d, &at));
    let policy = optional(spec.take("trafficPolicy"), |at| policy::decode(d, &at));
    let subsets = optional(spec.take("subsets"), |at| subsets(d, &at));
    let workload_selector = optional(spec.take("workloadSelector"), |at| {
        let fields = d.fields(&at)?;
        let labels = optional(fields.take("matchLabels"), |at| d.labels(&at))?;
        Some(labels.unwrap_or_default())
    });
    let export_to = optional(spec.take("exportTo"), |at| export_to(d, &at, &metadata.key.namespace));
    Some(DestinationRule {
        key: metadata.key.clone(),
        host: host?,
        policy: policy?.unwrap_or_default(),
        subsets: subsets?.unwrap_or_default(),
        workload_selector: workload_selector?.filter(|labels| !labels.is_empty()),
        export_to: export_to?.unwrap_or_default(),
    })
}

fn host(d: &mut Decoder<'_>, at: &At<'_>) -> Option<HostPattern> {
    let text = d.text(at)?;
    HostPattern::new(text).map_err(|error| d.invalid(at, error.to_string(), "")).ok()
}

fn subsets(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Vec<Subset>> {
    let subsets = d.each(at, subset)?;
    for (index, subset) in subsets.iter().enumerate() {
        if subsets[..index].iter().any(|other| other.name == subset.name) {
            d.invalid(
                at,
                format!("the subset {} is named twice", quote(&subset.name)),
                "rename one of the two",
            );
            return None;
        }
    }
    Some(subsets)
}

fn subset(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Subset> {
    let fields = d.fields(at)?;
    let name = d.required(&fields, "name").and_then(|at| subset_name(d, &at));
    let labels = optional(fields.take("labels"), |at| d.labels(&at));
    let policy = optional(fields.take("trafficPolicy"), |at| policy::decode(d, &at));
    Some(Subset { name: name?, labels: labels?.unwrap_or_default(), policy: policy? })
}

/// A label in which upper case is taken.
fn subset_name(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Arc<str>> {
    let text = d.text(at)?;
    if Label::new(&text.to_ascii_lowercase()).is_err() {
        let message = format!("subset name is invalid: {}", quote(text));
        d.invalid(at, message, "use 1 to 63 letters, digits and hyphens");
        return None;
    }
    Some(text.into())
}

/// `*` is all namespaces, `.` is the rule's own.
fn export_to(d: &mut Decoder<'_>, at: &At<'_>, own: &Label) -> Option<ExportTo> {
    let mut all = false;
    let namespaces = d.each(at, |d, at| match d.text(at)? {
        "*" => {
            all = true;
            Some(None)
        }
        "." => Some(None),
        _ => d.label(at).map(Some),
    })?;
    if all && namespaces.len() > 1 {
        d.invalid(at, "`*` is all namespaces, and stands alone", "remove the others, or `*`");
        return None;
    }
    if all || namespaces.is_empty() {
        return Some(ExportTo::All);
    }
    Some(ExportTo::Only(namespaces.into_iter().flatten().filter(|namespace| namespace != own).collect()))
}

pub(super) fn encode(rule: &DestinationRule) -> Json {
    let mut spec = Map::new();
    spec.insert("host".into(), rule.host.as_str().into());
    if let Some(policy) = policy::encode(&rule.policy) {
        spec.insert("trafficPolicy".into(), policy);
    }
    if !rule.subsets.is_empty() {
        spec.insert("subsets".into(), rule.subsets.iter().map(encode_subset).collect());
    }
    if let ExportTo::Only(namespaces) = &rule.export_to {
        let all: Vec<&str> = std::iter::once(".").chain(namespaces.iter().map(Label::as_str)).collect();
        spec.insert("exportTo".into(), json!(all));
    }
    if let Some(labels) = &rule.workload_selector {
        spec.insert("workloadSelector".into(), json!({ "matchLabels": super::json::labels(labels) }));
    }
    Json::Object(spec)
}

fn encode_subset(subset: &Subset) -> Json {
    let mut out = Map::new();
    out.insert("name".into(), (&*subset.name).into());
    if !subset.labels.is_empty() {
        out.insert("labels".into(), super::json::labels(&subset.labels));
    }
    if let Some(policy) = subset.policy.as_ref().and_then(policy::encode) {
        out.insert("trafficPolicy".into(), policy);
    }
    Json::Object(out)
}

#[cfg(test)]
mod tests;
