//! `trafficPolicy`, at the top, of a subset and of a port.

use std::collections::BTreeMap;

use baremesh_model::destination_rule::{PortPolicy, ProxyProtocol, TrafficPolicy, Tunnel};
use baremesh_model::retry_budget::RetryBudget;
use serde_json::{Value as Json, json};

use super::values::{Out, choice, count, number, percent};
use super::{connection_pool, load_balancer, outlier, tls};
use crate::diagnostic::quote;
use crate::format::decode::{At, Decoder, Fields, optional};

pub(super) fn decode(d: &mut Decoder<'_>, at: &At<'_>) -> Option<TrafficPolicy> {
    let fields = d.fields(at)?;
    let common = common(d, &fields);
    let ports = optional(fields.take("portLevelSettings"), |at| ports(d, &at));
    let retry_budget = optional(fields.take("retryBudget"), |at| retry_budget(d, &at));
    let proxy_protocol = optional(fields.take("proxyProtocol"), |at| proxy_protocol(d, &at));
    let tunnel = optional(fields.take("tunnel"), |at| tunnel(d, &at));
    let PortPolicy { load_balancer, connection_pool, outlier_detection, tls } = common?;
    let policy = TrafficPolicy {
        load_balancer,
        connection_pool,
        outlier_detection,
        tls,
        ports: ports?.unwrap_or_default(),
        retry_budget: retry_budget?,
        proxy_protocol: proxy_protocol?,
        tunnel: tunnel?,
    };
    if policy == TrafficPolicy::default() {
        d.invalid(at, "traffic policy must have at least one field", "say something, or remove it");
        return None;
    }
    Some(policy)
}

/// What ports can replace.
fn common(d: &mut Decoder<'_>, fields: &Fields<'_>) -> Option<PortPolicy> {
    let load_balancer = optional(fields.take("loadBalancer"), |at| load_balancer::decode(d, &at));
    let connection_pool = optional(fields.take("connectionPool"), |at| connection_pool::decode(d, &at));
    let outlier_detection = optional(fields.take("outlierDetection"), |at| outlier::decode(d, &at));
    let tls = optional(fields.take("tls"), |at| tls::decode(d, &at));
    Some(PortPolicy {
        load_balancer: load_balancer?,
        connection_pool: connection_pool?,
        outlier_detection: outlier_detection?,
        tls: tls?,
    })
}

fn ports(d: &mut Decoder<'_>, at: &At<'_>) -> Option<BTreeMap<u16, PortPolicy>> {
    let mut ports = BTreeMap::new();
    d.each(at, |d, at| {
        let fields = d.fields(at)?;
        let number = d.required(&fields, "port").and_then(|at| {
            let fields = d.fields(&at)?;
            d.required(&fields, "number").and_then(|at| d.port(&at))
        });
        let policy = common(d, &fields);
        let (number, policy) = (number?.get(), policy?);
        if ports.insert(number, policy).is_some() {
            d.invalid(at, format!("the port {number} is set twice"), "put both together");
            return None;
        }
        Some(())
    })?;
    Some(ports)
}

fn retry_budget(d: &mut Decoder<'_>, at: &At<'_>) -> Option<RetryBudget> {
    let fields = d.fields(at)?;
    let share = optional(fields.take("percent"), |at| percent(d, &at));
    let least = optional(fields.take("minRetryConcurrency"), |at| count(d, &at));
    let default = RetryBudget::default();
    Some(RetryBudget {
        percent: share?.unwrap_or(default.percent),
        min_concurrency: least?.unwrap_or(default.min_concurrency),
    })
}

fn proxy_protocol(d: &mut Decoder<'_>, at: &At<'_>) -> Option<ProxyProtocol> {
    let fields = d.fields(at)?;
    let versions = [("V1", ProxyProtocol::V1), ("V2", ProxyProtocol::V2)];
    let version = optional(fields.take("version"), |at| choice(d, &at, &versions))?;
    Some(version.unwrap_or(ProxyProtocol::V1))
}

fn tunnel(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Tunnel> {
    let fields = d.fields(at)?;
    let protocol = optional(fields.take("protocol"), |at| match d.text(&at)? {
        "CONNECT" => Some(()),
        other => {
            d.invalid(&at, format!("a tunnel by {} is not to be had", quote(other)), "use CONNECT");
            None
        }
    });
    let port = d.required(&fields, "targetPort").and_then(|at| d.port(&at));
    let tunnel = d.required(&fields, "targetHost").and_then(|at| {
        let made = Tunnel::new(d.text(&at)?, port?);
        made.map_err(|error| d.invalid(&at, error.to_string(), "name what the proxy is to connect to")).ok()
    });
    protocol?;
    tunnel
}

/// Nothing for a policy that says nothing.
pub(super) fn encode(policy: &TrafficPolicy) -> Option<Json> {
    let mut out = Out::default();
    out.put_some("loadBalancer", policy.load_balancer.as_ref().map(load_balancer::encode));
    out.put_some("connectionPool", policy.connection_pool.as_ref().map(connection_pool::encode));
    out.put_some("outlierDetection", policy.outlier_detection.as_ref().map(outlier::encode));
    out.put_some("tls", policy.tls.as_ref().map(tls::encode));
    if !policy.ports.is_empty() {
        out.put("portLevelSettings", policy.ports.iter().map(encode_port).collect::<Vec<_>>());
    }
    let budget = |budget: RetryBudget| json!({ "percent": number(budget.percent), "minRetryConcurrency": budget.min_concurrency });
    out.put_some("retryBudget", policy.retry_budget.map(budget));
    let version = |version| match version {
        ProxyProtocol::V1 => json!({ "version": "V1" }),
        ProxyProtocol::V2 => json!({ "version": "V2" }),
    };
    out.put_some("proxyProtocol", policy.proxy_protocol.map(version));
    let tunnel = |tunnel: &Tunnel| json!({ "targetHost": tunnel.host(), "targetPort": tunnel.port() });
    out.put_some("tunnel", policy.tunnel.as_ref().map(tunnel));
    out.some()
}

fn encode_port((number, policy): (&u16, &PortPolicy)) -> Json {
    let mut out = Out::default();
    out.put("port", json!({ "number": number }));
    out.put_some("loadBalancer", policy.load_balancer.as_ref().map(load_balancer::encode));
    out.put_some("connectionPool", policy.connection_pool.as_ref().map(connection_pool::encode));
    out.put_some("outlierDetection", policy.outlier_detection.as_ref().map(outlier::encode));
    out.put_some("tls", policy.tls.as_ref().map(tls::encode));
    out.object()
}
