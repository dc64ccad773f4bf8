//! Where the requests for a service end, as Consul's discovery chain says: its router, then splitters, then resolvers with
//! their redirects and default subsets.

use std::collections::BTreeSet;
use std::time::Duration;

use baremesh_model::name::Label;
use serde_json::{Map, Value as Json, json};

use super::entries::{Entries, is_http};
use super::fields::written;
use super::{Findings, document, splitter};

/// Splitters that follow one another; Consul refuses circles, and so does this.
const MAX_DEPTH: usize = 8;
/// Destinations of one route.
const MAX_DESTINATIONS: usize = 256;

/// The VirtualServices, and all services that are named by them.
#[derive(Debug, Default)]
pub(super) struct Chains {
    pub(super) documents: Vec<Json>,
    pub(super) services: BTreeSet<Label>,
}

/// The end of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Leaf {
    service: Label,
    subset: Option<String>,
    timeout: Option<Duration>,
}

/// A share of a route's requests.
struct Share {
    /// Out of the product of all wholes on the way.
    weight: u128,
    leaf: Leaf,
    headers: Option<Json>,
}

pub(super) fn chains(entries: &Entries, f: &mut Findings) -> Chains {
    let mut chains = Chains::default();
    let mut services: BTreeSet<&Label> = entries.routers.keys().collect();
    services.extend(entries.splitters.keys());
    services.extend(entries.resolvers.keys());
    for service in services {
        if let Some(spec) = chain(entries, service, &mut chains.services, f) {
            chains.documents.push(document("VirtualService", service.as_str(), spec));
            chains.services.insert(service.clone());
        }
    }
    chains
}

fn chain(entries: &Entries, service: &Label, named: &mut BTreeSet<Label>, f: &mut Findings) -> Option<Json> {
    let entry = |kind: &str| format!("service-{kind} {service}");
    let protocol = entries.protocol(service).unwrap_or("tcp");
    let splits = entries.routers.contains_key(service) || entries.splitters.contains_key(service);
    if splits && !is_http(protocol) {
        let kind = if entries.routers.contains_key(service) { "router" } else { "splitter" };
        let reason = format!("is about requests, and {service} speaks {protocol}");
        let help = "give its service-defaults with its Protocol, or the proxy-defaults, as well";
        f.refuse(&entry(kind), None, reason, help);
        return None;
    }
    if !splits {
        let leaf = resolve(entries, service, None, f)?;
        let as_it_is = leaf.service == *service && leaf.subset.is_none() && leaf.timeout.is_none();
        if as_it_is {
            return None;
        }
        named.insert(leaf.service.clone());
        let http = is_http(protocol);
        if leaf.timeout.is_some() && !http {
            f.refuse(
                &entry("resolver"),
                Some("RequestTimeout"),
                "is about requests, and it carries bytes",
                "remove it",
            );
        }
        let mut route =
            Map::from_iter([("route".to_owned(), json!([{ "destination": destination(&leaf) }]))]);
        timeout(&mut route, leaf.timeout, &entry("resolver"), f);
        return Some(json!({ "hosts": [service.as_str()], if http { "http" } else { "tcp" }: [route] }));
    }
    let mut routes = Vec::new();
    for route in entries.routers.get(service).into_iter().flatten() {
        let shares = match &route.subset {
            Some(subset) => {
                resolve(entries, &route.service, Some(subset), f).map(whole).into_iter().collect()
            }
            None => shares(entries, &route.service, MAX_DEPTH, f),
        };
        let mut made = route.options.clone();
        if !route.matches.is_empty() {
            made.insert("match".into(), route.matches.clone().into());
        }
        if let Some(headers) = &route.headers {
            made.insert("headers".into(), headers.clone());
        }
        finish(&mut made, &shares, named, &entry("router"), f);
        routes.push(Json::from(made));
    }
    // Consul puts a route for all else behind the router's own; behind one that takes everything it would take nothing.
    let takes_all = entries
        .routers
        .get(service)
        .is_some_and(|routes| routes.last().is_some_and(|last| last.matches.is_empty()));
    if !takes_all {
        let mut made = Map::new();
        finish(&mut made, &shares(entries, service, MAX_DEPTH, f), named, &entry("splitter"), f);
        routes.push(made.into());
    }
    Some(json!({ "hosts": [service.as_str()], "http": routes }))
}

fn whole(leaf: Leaf) -> Share {
    Share { weight: 1, leaf, headers: None }
}

/// The destinations of a route, and its time limit where it has none of its own.
fn finish(
    made: &mut Map<String, Json>,
    shares: &[Share],
    named: &mut BTreeSet<Label>,
    entry: &str,
    f: &mut Findings,
) {
    let divisor = shares.iter().map(|share| share.weight).fold(0, gcd).max(1);
    let mut destinations = Vec::new();
    for share in shares {
        named.insert(share.leaf.service.clone());
        let mut one = json!({ "destination": destination(&share.leaf) });
        if shares.len() > 1 {
            match u32::try_from(share.weight / divisor) {
                Ok(weight) => one["weight"] = weight.into(),
                Err(_) => f.refuse(
                    entry,
                    Some("Splits"),
                    "shares of shares that are too small",
                    "write one splitter",
                ),
            }
        }
        if let Some(headers) = &share.headers {
            one["headers"] = headers.clone();
        }
        destinations.push(one);
    }
    if destinations.len() > MAX_DESTINATIONS {
        let reason = format!("comes to more than {MAX_DESTINATIONS} destinations");
        f.refuse(entry, Some("Splits"), reason, "write one splitter with fewer");
    }
    made.insert("route".into(), destinations.into());
    if !made.contains_key("timeout") {
        let mut limits = shares.iter().map(|share| share.leaf.timeout);
        let first = limits.next().flatten();
        if limits.any(|other| other != first) {
            let help = "give all of them the same, or the route its own in a service-router";
            f.refuse(entry, None, "goes to resolvers with different RequestTimeouts", help);
        }
        timeout(made, first, entry, f);
    }
}

fn timeout(route: &mut Map<String, Json>, limit: Option<Duration>, entry: &str, f: &mut Findings) {
    match limit.map(written) {
        None => {}
        Some(Some(text)) => _ = route.insert("timeout".into(), text.into()),
        Some(None) => f.refuse(entry, Some("RequestTimeout"), "is finer than a millisecond", "round it"),
    }
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn destination(leaf: &Leaf) -> Json {
    let mut to = json!({ "host": leaf.service.as_str() });
    if let Some(subset) = &leaf.subset {
        to["subset"] = subset.as_str().into();
    }
    to
}

/// The shares of a service's requests: by its splitter and those behind it, else all to one place. All weights are out of
/// the same whole.
fn shares(entries: &Entries, service: &Label, depth: usize, f: &mut Findings) -> Vec<Share> {
    let Some(splits) = entries.splitters.get(service) else {
        return resolve(entries, service, None, f).map(whole).into_iter().collect();
    };
    let entry = format!("service-splitter {service}");
    if depth == 0 {
        f.refuse(
            &entry,
            None,
            format!("splitters follow one another in a circle, or more than {MAX_DEPTH} deep"),
            "",
        );
        return Vec::new();
    }
    let mut all: Vec<(u128, Vec<Share>)> = Vec::new();
    for split in splits {
        let further = split.subset.is_none() && split.service != *service;
        let mut inner = match (&split.subset, further && entries.splitters.contains_key(&split.service)) {
            (None, true) => shares(entries, &split.service, depth - 1, f),
            (subset, _) => {
                resolve(entries, &split.service, subset.as_ref(), f).map(whole).into_iter().collect()
            }
        };
        for share in &mut inner {
            if share.headers.is_some() && split.headers.is_some() {
                let reason = format!("changes fields, and so does the splitter of {}", split.service);
                f.refuse(&entry, Some("Splits"), reason, "change them in one of the two");
            }
            share.headers = share.headers.take().or_else(|| split.headers.clone());
        }
        all.push((u128::from(split.weight), inner));
    }
    // Brought to one whole: the sums differ by how deep the splitters go.
    let sum = |shares: &[Share]| shares.iter().map(|share| share.weight).sum::<u128>().max(1);
    let common = all.iter().map(|(_, inner)| sum(inner)).fold(1, |a, b| a / gcd(a, b) * b);
    let bounded = common <= u128::from(splitter::WHOLE).pow(6);
    if !bounded {
        f.refuse(&entry, None, "shares of shares that are too small", "write one splitter");
        return Vec::new();
    }
    let flat = all.into_iter().flat_map(|(weight, inner)| {
        let factor = weight * (common / sum(&inner));
        inner.into_iter().map(move |share| Share { weight: share.weight * factor, ..share })
    });
    flat.filter(|share| share.weight > 0).collect()
}

/// Follows redirects and default subsets.
fn resolve(entries: &Entries, service: &Label, subset: Option<&String>, f: &mut Findings) -> Option<Leaf> {
    let (mut service, mut subset) = (service.clone(), subset.cloned());
    let mut seen = BTreeSet::new();
    loop {
        let Some(resolver) = entries.resolvers.get(&service) else {
            if let Some(subset) = subset {
                let reason = format!("has no subset {subset}");
                f.refuse(&format!("service {service}"), None, reason, "give its service-resolver as well");
                return None;
            }
            return Some(Leaf { service, subset, timeout: None });
        };
        if !seen.insert((service.clone(), subset.clone())) {
            f.refuse(&format!("service-resolver {service}"), Some("Redirect"), "goes round in a circle", "");
            return None;
        }
        if let Some((to, of)) = &resolver.redirect {
            (service, subset) = (to.clone(), of.clone());
            continue;
        }
        subset = subset.or_else(|| resolver.default_subset.clone());
        if let Some(named) = subset.as_ref().filter(|named| !resolver.subsets.contains_key(*named)) {
            let reason = format!("has no subset {named}");
            f.refuse(
                &format!("service-resolver {service}"),
                Some("Subsets"),
                reason,
                "Consul takes no such entry",
            );
            return None;
        }
        return Some(Leaf { service, subset, timeout: resolver.request_timeout });
    }
}
