//! DestinationRules: what resolvers say of a called service, and what a caller's defaults say of the services that it
//! calls. A caller's own rule hides the service's, so both go into it.

use std::collections::BTreeSet;

use baremesh_model::name::Label;
use serde_json::{Map, Value as Json, json};

use super::entries::Entries;
use super::resolver::Resolver;
use super::{Findings, document};

/// Rules that callers' defaults may come to.
const MAX_RULES: usize = 5_000;

pub(super) fn rules(entries: &Entries, f: &mut Findings) -> Vec<Json> {
    let mut documents = Vec::new();
    for (service, resolver) in &entries.resolvers {
        let spec = spec(service.as_str(), Some(resolver), Map::new());
        if spec.len() > 1 {
            documents.push(document("DestinationRule", service.as_str(), spec));
        }
    }
    for (caller, defaults) in &entries.defaults {
        let Some(calls) = &defaults.calls else { continue };
        let mut hosts: BTreeSet<&Label> = calls.overrides.keys().collect();
        if !calls.defaults.is_empty() {
            hosts.extend(entries.resolvers.keys());
        }
        for service in hosts {
            let own = calls.overrides.get(service).unwrap_or(&calls.defaults).clone();
            if own.is_empty() {
                continue;
            }
            let spec = spec(service.as_str(), entries.resolvers.get(service), own);
            documents.push(for_caller(caller, &format!("{caller}-to-{service}"), spec));
        }
        if !calls.defaults.is_empty() {
            documents.push(for_caller(
                caller,
                &format!("{caller}-calls"),
                spec("*", None, calls.defaults.clone()),
            ));
        }
    }
    if documents.len() > MAX_RULES {
        let reason =
            format!("UpstreamConfigs come to {} rules, and {MAX_RULES} are the most", documents.len());
        f.refuse(
            "service-defaults",
            Some("UpstreamConfig"),
            reason,
            "write what holds for all callers by hand",
        );
    }
    documents
}

fn spec(host: &str, resolver: Option<&Resolver>, calls: Map<String, Json>) -> Map<String, Json> {
    let mut policy = calls;
    let mut spec = Map::from_iter([("host".to_owned(), Json::from(host))]);
    if let Some(resolver) = resolver {
        if let Some(balancer) = &resolver.load_balancer {
            policy.insert("loadBalancer".into(), balancer.clone());
        }
        if let Some(timeout) = &resolver.connect_timeout {
            let pool = policy.entry("connectionPool").or_insert_with(|| json!({}));
            // What the caller says goes before what the called service says.
            if pool["tcp"]["connectTimeout"].is_null() {
                pool["tcp"]["connectTimeout"] = timeout.as_str().into();
            }
        }
        if !resolver.subsets.is_empty() {
            let subsets =
                resolver.subsets.iter().map(|(name, labels)| json!({ "name": name, "labels": labels }));
            spec.insert("subsets".into(), subsets.collect());
        }
    }
    if !policy.is_empty() {
        spec.insert("trafficPolicy".into(), policy.into());
    }
    spec
}

/// A rule for the calls of one service.
fn for_caller(caller: &Label, name: &str, mut spec: Map<String, Json>) -> Json {
    spec.insert("workloadSelector".into(), json!({ "matchLabels": { "app": caller.as_str() } }));
    document("DestinationRule", name, spec)
}
