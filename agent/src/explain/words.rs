//! What routes and rules do, in words: the field, and what it comes to for this call.

use std::time::Duration;

use baremesh_model::destination_rule::{
    Algorithm, ConsistentHash, EffectivePolicy, HashKey, HashTable, ProxyProtocol,
};
use baremesh_model::http::RequestHead;
use baremesh_model::virtual_service::{
    AbortStatus, CorsDecision, Destination, HeaderOperations, HeaderRules, HttpRoute, Incoming, RetryPolicy,
    Unmet,
};

use crate::admin::report::explain::EffectReport;
use crate::jwt::claims::field_value;

pub(super) fn effect(field: &str, effect: impl Into<String>) -> EffectReport {
    EffectReport { field: field.to_owned(), effect: effect.into() }
}

/// What a route that sends a request on does besides. `exists` says whether a mirror's destination is there.
pub(super) fn of_route(
    route: &HttpRoute,
    head: &RequestHead,
    exists: impl Fn(&Destination) -> bool,
) -> Vec<EffectReport> {
    let mut effects = Vec::new();
    let options = &route.options;
    if let Some(timeout) = route.timeout(head) {
        effects.push(effect("timeout", format!("{timeout:?}")));
    }
    effects.push(of_retries(options.retries.as_ref()));
    if let Some(fault) = &options.fault {
        if let Some(delay) = &fault.delay {
            let said = format!("{:?} for {} of the requests", delay.fixed, delay.percentage);
            effects.push(effect("fault.delay", said));
        }
        if let Some(abort) = &fault.abort {
            let with = match abort.status {
                AbortStatus::Http(status) => status.to_string(),
                AbortStatus::Grpc(status) => format!("gRPC {status}"),
            };
            effects.push(effect("fault.abort", format!("{with} for {} of the requests", abort.percentage)));
        }
    }
    for mirror in &options.mirrors {
        let subset = mirror.destination.subset.as_ref().map(|subset| format!(" subset {subset}"));
        let fault = if exists(&mirror.destination) { "" } else { ", which there is not" };
        let to = format!("{}{}{fault}", mirror.destination.host, subset.unwrap_or_default());
        effects.push(effect("mirror", format!("a copy of {} of the requests to {to}", mirror.percentage)));
    }
    if let Some(cors) = &options.cors {
        let said = match cors.decide(head) {
            CorsDecision::None if head.headers.contains("origin") => {
                "the origin may not call: the answer is not marked"
            }
            CorsDecision::None => "no `origin`: the policy says nothing of the request",
            CorsDecision::Actual(_) => "the origin may call: the answer is marked for it",
            CorsDecision::Preflight(_) => "a preflight of an origin that may call: answered at once",
            CorsDecision::Ignored => "a preflight of an origin that may not call: answered at once",
        };
        effects.push(effect("corsPolicy", said));
    }
    if let Some(rules) = &options.headers {
        of_headers(rules, &mut effects);
    }
    effects
}

fn of_retries(retries: Option<&RetryPolicy>) -> EffectReport {
    let default = RetryPolicy::default();
    let policy = retries.unwrap_or(&default);
    if policy.attempts == 0 {
        return effect("retries", "none");
    }
    let per_try = policy.per_try_timeout.map(|time| format!(", {time:?} a try")).unwrap_or_default();
    let whose = if retries.is_none() { " (the default)" } else { "" };
    effect("retries", format!("{} on {}{per_try}{whose}", policy.attempts, policy.conditions.text()))
}

/// Operations on fields.
pub(super) fn of_headers(rules: &HeaderRules, effects: &mut Vec<EffectReport>) {
    let mut add = |field: &str, operations: &HeaderOperations| {
        let removed = operations.remove.iter().map(|name| format!("remove {name}"));
        let set = operations.set.iter().map(|field| format!("set {}: {}", field.name(), field.value()));
        let added = operations.add.iter().map(|field| format!("add {}: {}", field.name(), field.value()));
        let all: Vec<_> = removed.chain(set).chain(added).collect();
        if !all.is_empty() {
            effects.push(effect(field, all.join(", ")));
        }
    };
    add("headers.request", &rules.request);
    add("headers.response", &rules.response);
}

/// What a DestinationRule sets besides the balancer.
pub(super) fn of_policy(policy: &EffectivePolicy) -> Vec<EffectReport> {
    let mut effects = Vec::new();
    let limits = &policy.limits;
    for (field, limit) in [
        ("maxConnections", limits.max_connections),
        ("http2MaxRequests", limits.http2_max_requests),
        ("http1MaxPendingRequests", limits.http1_max_pending_requests),
        ("maxRequestsPerConnection", limits.max_requests_per_connection),
        ("maxRetries", limits.max_retries),
        ("maxConcurrentStreams", limits.max_concurrent_streams),
    ] {
        if limit != u32::MAX {
            effects.push(effect(field, limit.to_string()));
        }
    }
    let mut time = |field, time: Option<Duration>| {
        effects.extend(time.map(|time| effect(field, format!("{time:?}"))));
    };
    time("connectTimeout", limits.connect_timeout);
    time("maxConnectionDuration", limits.max_connection_duration);
    if let Some(outlier) = &policy.outlier {
        let said = format!(
            "left out after {} failures in a row, {:?} the first time, at most {} % of the endpoints",
            outlier.consecutive_5xx, outlier.base_ejection_time, outlier.max_ejection_percent
        );
        effects.push(effect("outlierDetection", said));
    }
    if let Some(tls) = &policy.tls {
        effects.push(effect("tls", format!("{} towards endpoints without an agent", tls.mode())));
    }
    if let Some(budget) = &policy.retry_budget {
        let said = format!("{} % of what is in flight, at least {}", budget.percent, budget.min_concurrency);
        effects.push(effect("retryBudget", said));
    }
    if let Some(version) = policy.proxy_protocol {
        effects.push(effect("proxyProtocol", if version == ProxyProtocol::V1 { "V1" } else { "V2" }));
    }
    if let Some(warmup) = &policy.load_balancer.warmup {
        effects.push(effect("warmup", format!("{:?}: new endpoints get less at first", warmup.duration)));
    }
    effects
}

/// How an endpoint is chosen.
pub(super) fn of_balancer(algorithm: &Algorithm) -> String {
    let ConsistentHash { key, table } = match algorithm {
        Algorithm::LeastRequest => return "least request".to_owned(),
        Algorithm::Passthrough => return "passthrough, behind a virtual address as least request".to_owned(),
        Algorithm::RoundRobin => return "round robin".to_owned(),
        Algorithm::Random => return "random".to_owned(),
        Algorithm::ConsistentHash(hash) => hash,
    };
    let table = match table {
        HashTable::Ring { .. } => "ring hash",
        HashTable::Maglev { .. } => "Maglev",
    };
    match key {
        HashKey::Header(name) => format!("{table} by the header {name}"),
        HashKey::Cookie(cookie) => format!("{table} by the cookie {}", cookie.name),
        HashKey::SourceIp => format!("{table} by the caller's address"),
        HashKey::QueryParameter(name) => format!("{table} by the query parameter {name}"),
    }
}

/// What a request has where a match asks for something else.
pub(super) fn found(unmet: Unmet<'_>, request: Incoming<'_>) -> String {
    let Incoming { head, port, caller, token } = request;
    let field = |name: &str| head.headers.text(name).map_or_else(none, |value| value.into_owned());
    match unmet {
        Unmet::Uri(_) => head.path().to_owned(),
        Unmet::Scheme(_) => head.scheme.name().to_owned(),
        Unmet::Method(_) => head.method.clone(),
        Unmet::Authority(_) => head.authority.clone(),
        Unmet::Header(name, _) | Unmet::WithoutHeader(name, _) => field(name),
        Unmet::QueryParam(name, _) => {
            let pairs = head.query().into_iter().flat_map(|query| query.split('&'));
            let mut pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
            pairs.find(|(key, _)| *key == name).map_or_else(none, |(_, value)| value.to_owned())
        }
        Unmet::Claim(path, _) | Unmet::WithoutClaim(path, _) => match token {
            None => "no verified token".to_owned(),
            // Lists and maps have no text of their own.
            Some(token) => token
                .claim(path.as_ref())
                .map_or_else(none, |claim| field_value(claim).unwrap_or_else(|| "something else".to_owned())),
        },
        of_caller => found_of_caller(of_caller, (caller, port)),
    }
}

/// What the caller and the port are where a match asks for something else.
pub(super) fn found_of_caller(
    unmet: Unmet<'_>,
    (caller, port): (baremesh_model::virtual_service::Caller<'_>, u16),
) -> String {
    match unmet {
        Unmet::Gateways(_) => caller.gateway.to_string(),
        Unmet::SourceLabels(_) if caller.labels.is_empty() => none(),
        Unmet::SourceLabels(_) => {
            let labels = caller.labels.iter().map(|(key, value)| format!("{key}={value}"));
            labels.collect::<Vec<_>>().join(", ")
        }
        Unmet::SourceNamespace(_) => caller.namespace.to_string(),
        _ => port.to_string(),
    }
}

fn none() -> String {
    "none".to_owned()
}

/// A share in per cent, to a tenth.
pub(super) fn percent(share: f64) -> String {
    let tenths = (share * 10.0).round() / 10.0;
    format!("{tenths} %")
}
