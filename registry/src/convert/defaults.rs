//! What holds for a service and for its calls: `service-defaults`, `proxy-defaults`.

use std::collections::{BTreeMap, BTreeSet};

use baremesh_model::name::Label;
use serde_json::{Map, Value as Json, json};

use super::chain::Chains;
use super::entries::{Entries, name};
use super::fields::{Fields, written};
use super::resolver::millis;
use super::{Findings, document};

/// What one entry says.
#[derive(Debug, Clone, Default)]
pub(super) struct Defaults {
    /// What the service speaks.
    pub(super) protocol: Option<String>,
    /// How it calls others.
    pub(super) calls: Option<Calls>,
}

/// `UpstreamConfig`: parts of a `trafficPolicy`.
#[derive(Debug, Clone, Default)]
pub(super) struct Calls {
    /// Where nothing else is said.
    pub(super) defaults: Map<String, Json>,
    /// For one called service.
    pub(super) overrides: BTreeMap<Label, Map<String, Json>>,
}

pub(super) fn of_service(fields: Fields<'_>, f: &mut Findings) -> Defaults {
    let protocol = fields.text(f, "Protocol").map(str::to_ascii_lowercase);
    let calls = fields.object(f, "UpstreamConfig").map(|config| {
        let defaults = config.object(f, "Defaults").map(|fields| upstream(fields, f)).unwrap_or_default();
        let mut overrides = BTreeMap::new();
        for fields in config.objects(f, "Overrides") {
            let Some(text) = fields.text(f, "Name") else {
                fields.refuse(f, "Name", "an override without a name", "");
                continue;
            };
            let Some(service) = name(f, &fields.entry, Some(&fields.place("Name")), text) else { continue };
            let read = upstream(fields, f);
            // What an override does not say, the defaults do.
            let merged = defaults.clone().into_iter().chain(read).collect();
            overrides.insert(service, merged);
        }
        config.finish(f);
        Calls { defaults, overrides }
    });
    capture(&fields, f);
    for (key, reason, help) in [
        (
            "MaxInboundConnections",
            "a called side has no limit for one service",
            "limit the callers: `connectionPool` of a DestinationRule",
        ),
        (
            "LocalConnectTimeoutMs",
            "programs of the host are connected to within the agent's own limit",
            "remove it",
        ),
        (
            "LocalRequestTimeoutMs",
            "the called side has no time limit for requests",
            "give the route a RequestTimeout",
        ),
        (
            "BalanceInboundConnections",
            "connections are spread over the agent's workers by the kernel",
            "remove it",
        ),
        ("RateLimits", "is not converted", "write a RateLimit: docs/rate-limits.md"),
        (
            "ExternalSNI",
            "is for services outside of the mesh",
            "write a ServiceEntry, and a DestinationRule with `tls.sni`",
        ),
        ("Destination", "is for services outside of the mesh", "write a ServiceEntry"),
    ] {
        fields.unsaid(f, key, reason, help);
    }
    fields.finish(f);
    Defaults { protocol, calls }
}

/// Fields that both kinds of defaults have.
fn capture(fields: &Fields<'_>, f: &mut Findings) {
    if fields.text(f, "Mode").is_some_and(|mode| !matches!(mode, "transparent" | "direct")) {
        fields.refuse(f, "Mode", "is not a way of capture that is known", "");
    }
    if let Some(transparent) = fields.object(f, "TransparentProxy") {
        // Which port an agent listens on is its own affair; addresses of endpoints are always dialled through it.
        transparent.pass_over(&["OutboundListenerPort", "DialedDirectly"]);
        transparent.finish(f);
    }
    if let Some(gateway) = fields.object(f, "MeshGateway") {
        if gateway.text(f, "Mode").is_some_and(|mode| mode != "none") {
            gateway.refuse(f, "Mode", "agents reach each other without gateways", "set it to none");
        }
        gateway.finish(f);
    }
    fields.unsaid(
        f,
        "EnvoyExtensions",
        "there is no Envoy here",
        "see docs/resources.md for what there is instead",
    );
    let help = "health checks are the agent's own: docs/health.md; let scrapers in by a PERMISSIVE port";
    fields.unsaid(f, "Expose", "paths are not opened in plaintext", help);
}

pub(super) fn of_mesh(fields: Fields<'_>, entries: &mut Entries, f: &mut Findings) {
    capture(&fields, f);
    if let Some(config) = fields.object(f, "Config") {
        entries.protocol = config.text(f, "protocol").map(str::to_ascii_lowercase);
        config.finish(f);
    }
    let mode = match fields.text(f, "MutualTLSMode") {
        None => None,
        Some("strict") => Some("STRICT"),
        Some("permissive") => Some("PERMISSIVE"),
        Some(_) => {
            fields.refuse(f, "MutualTLSMode", "is neither strict nor permissive", "");
            None
        }
    };
    let spec = mode.map(|mode| json!({ "mtls": { "mode": mode } }));
    entries.peer_authentication =
        spec.map(|spec| document("PeerAuthentication", "consul-proxy-defaults", spec));
    if let Some(log) = fields.object(f, "AccessLogs") {
        if !log.flag(f, "Enabled") {
            log.pass_over(&["DisableListenerLogs", "Type", "Path", "JSONFormat", "TextFormat"]);
        }
        log.unsaid(f, "DisableListenerLogs", "there are no listeners that log by themselves", "remove it");
        log.finish(f);
    }
    fields.finish(f);
}

fn upstream(fields: Fields<'_>, f: &mut Findings) -> Map<String, Json> {
    let mut policy = Map::new();
    fields.pass_over(&["Name"]);
    fields.at_home(f);
    let (mut tcp, mut http) = (Map::new(), Map::new());
    if let Some(ms) = fields.number(f, "ConnectTimeoutMs") {
        let text = written(std::time::Duration::from_millis(ms)).unwrap_or_default();
        tcp.insert("connectTimeout".into(), text.into());
    }
    if let Some(limits) = fields.object(f, "Limits") {
        for (key, map, to) in [
            ("MaxConnections", &mut tcp, "maxConnections"),
            ("MaxPendingRequests", &mut http, "http1MaxPendingRequests"),
        ] {
            limit(&limits, key, map, to, f);
        }
        limit(&limits, "MaxConcurrentRequests", &mut http, "http2MaxRequests", f);
        limits.finish(f);
    }
    let mut pool = Map::new();
    for (key, map) in [("tcp", tcp), ("http", http)] {
        if !map.is_empty() {
            pool.insert(key.into(), map.into());
        }
    }
    if !pool.is_empty() {
        policy.insert("connectionPool".into(), pool.into());
    }
    if let Some(check) = fields.object(f, "PassiveHealthCheck") {
        let made = outliers(check, f);
        if !made.is_empty() {
            policy.insert("outlierDetection".into(), made.into());
        }
    }
    if let Some(gateway) = fields.object(f, "MeshGateway") {
        if gateway.text(f, "Mode").is_some_and(|mode| mode != "none") {
            gateway.refuse(f, "Mode", "agents reach each other without gateways", "set it to none");
        }
        gateway.finish(f);
    }
    for key in ["EnvoyListenerJSON", "EnvoyClusterJSON"] {
        fields.unsaid(
            f,
            key,
            "there is no Envoy here",
            "see docs/destination-rules.md for what there is instead",
        );
    }
    fields.unsaid(
        f,
        "Protocol",
        "a caller does not say what a service speaks",
        "set Protocol of the called service",
    );
    fields.unsaid(
        f,
        "BalanceOutboundConnections",
        "connections are spread over workers by the kernel",
        "remove it",
    );
    fields.finish(f);
    policy
}

fn limit(limits: &Fields<'_>, key: &str, map: &mut Map<String, Json>, to: &str, f: &mut Findings) {
    if limits.stands(key).and_then(Json::as_u64) == Some(0) {
        let help = "remove it for no limit; to shut a service, write an AuthorizationPolicy";
        limits.refuse(f, key, "0 lets nothing through in Consul, and is no limit here", help);
    } else if let Some(number) = limits.number(f, key) {
        map.insert(to.into(), number.into());
    }
}

fn outliers(check: Fields<'_>, f: &mut Findings) -> Map<String, Json> {
    let mut made = Map::new();
    for (key, to) in [("Interval", "interval"), ("BaseEjectionTime", "baseEjectionTime")] {
        if let Some(text) = millis(&check, key, f) {
            made.insert(to.into(), text.into());
        }
    }
    for (key, to) in [("MaxFailures", "consecutive5xxErrors"), ("MaxEjectionPercent", "maxEjectionPercent")] {
        if let Some(number) = check.number(f, key) {
            made.insert(to.into(), number.into());
        }
    }
    match check.stands("EnforcingConsecutive5xx").and_then(Json::as_u64) {
        None | Some(100) => {}
        Some(0) => _ = made.insert("consecutive5xxErrors".into(), 0.into()),
        Some(_) => {
            let help = "set it to 100, or to 0 for never";
            check.refuse(f, "EnforcingConsecutive5xx", "what fails is left out always or never", help);
        }
    }
    check.finish(f);
    made
}

/// The Services: those that routes and rules are about, and those that speak something else than bytes.
pub(super) fn services(entries: &Entries, chains: &Chains, f: &mut Findings) -> Vec<Json> {
    let mut wanted: BTreeSet<&Label> = chains.services.iter().collect();
    wanted.extend(entries.resolvers.keys());
    let calls = entries.defaults.values().filter_map(|defaults| defaults.calls.as_ref());
    wanted.extend(calls.flat_map(|calls| calls.overrides.keys()));
    let speaks = |service: &&Label| entries.protocol(service).is_some_and(|protocol| protocol != "tcp");
    wanted.extend(entries.defaults.keys().filter(speaks));
    wanted.extend(entries.ports.keys());
    let mut documents = Vec::new();
    for service in wanted {
        let port = match entries.ports.get(service).map(Vec::as_slice) {
            Some([port]) => *port,
            Some([_, _, ..]) => {
                let reason = "its instances have several ports, and a service has one that callers name";
                f.refuse(&format!("service {service}"), None, reason, format!("give --port {service}=PORT"));
                continue;
            }
            _ => {
                let help = format!(
                    "give --port {service}=PORT, or the answer of /v1/catalog/service/{service} as well"
                );
                let reason = "which port callers name is not in config entries";
                f.refuse(&format!("service {service}"), None, reason, help);
                continue;
            }
        };
        let protocol = entries.protocol(service).unwrap_or("tcp");
        if !matches!(protocol, "tcp" | "http" | "http2" | "grpc") {
            let reason = format!("speaks {protocol}, which Consul carries as bytes");
            f.refuse(&format!("service-defaults {service}"), Some("Protocol"), reason, "set it to tcp");
        }
        let spec = json!({ "ports": [{ "port": port, "protocol": protocol }] });
        documents.push(document("Service", service.as_str(), spec));
    }
    documents
}
