//! `Service`: ours, and Kubernetes' read as one.

use std::collections::HashSet;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use baremesh_model::service::{Protocol, Service, ServicePort};
use serde_json::{Map, Value as Json, json};

use super::decode::{At, Decoder, Fields, optional};
use super::document::{Dialect, Metadata};
use super::federation::alternative_name;
use super::fields::{Field, enforced, no_effect, refused};
use super::labels::is_port_name;
use crate::diagnostic::{Code, quote};

const CLUSTER: &str = "it is about a Kubernetes cluster; virtual addresses are the mesh's own (`addresses`)";

/// The fields of the kind.
pub(super) static FIELDS: &[Field] = &[
    enforced("ports", "the ports that callers name; at least one, no number twice"),
    enforced("ports[].port", "the number that callers name, 1 to 65535"),
    enforced("ports[].targetPort", "the number at the endpoints; the same as `port` unless set"),
    enforced(
        "ports[].protocol",
        "tcp (default), tls, http, http2, grpc, https, mongo, mysql, redis or auto. In a Kubernetes document (TCP), \
         `appProtocol` or the port's name says which, else auto; UDP ports are left out with a warning",
    ),
    enforced("ports[].appProtocol", "the same in Kubernetes' documents; goes before `protocol` and the name"),
    enforced("ports[].name", "letters, digits and hyphens; a WorkloadEntry maps ports by it"),
    enforced(
        "selector",
        "labels that endpoints carry; without one, the workloads registered under the service's name",
    ),
    enforced(
        "serviceAccount",
        "the account that every endpoint runs as and shows; the service's name unless set",
    ),
    enforced(
        "addresses",
        "virtual addresses within the mesh's ranges, at most one of each family; else from the name",
    ),
    enforced(
        "subjectAltNames",
        "the identity that endpoints show which are another mesh's: one, of a trust domain in `federation` of MeshConfig",
    ),
    no_effect("type", CLUSTER),
    no_effect("clusterIP", CLUSTER),
    no_effect("clusterIPs", CLUSTER),
    no_effect("ipFamilies", CLUSTER),
    no_effect("ipFamilyPolicy", CLUSTER),
    no_effect("ports[].nodePort", CLUSTER),
    no_effect("externalIPs", CLUSTER),
    no_effect("loadBalancerIP", CLUSTER),
    no_effect("loadBalancerClass", CLUSTER),
    no_effect("allocateLoadBalancerNodePorts", CLUSTER),
    no_effect("externalTrafficPolicy", CLUSTER),
    no_effect("internalTrafficPolicy", CLUSTER),
    no_effect("trafficDistribution", CLUSTER),
    no_effect("healthCheckNodePort", CLUSTER),
    no_effect("publishNotReadyAddresses", "an endpoint is taken when its host registers it"),
    no_effect("sessionAffinity", "the mesh balances by load"),
    no_effect("sessionAffinityConfig", "the mesh balances by load"),
    refused("loadBalancerSourceRanges", "use AuthorizationPolicy with `ipBlocks`"),
    refused("externalName", "a name elsewhere is a ServiceEntry's host, with `resolution: DNS`"),
];

pub(super) fn decode(d: &mut Decoder<'_>, metadata: &Metadata<'_>, spec: &Fields<'_>) -> Option<Service> {
    let ports = d.required(spec, "ports").and_then(|at| ports(d, &at, metadata.dialect));
    let selector = optional(spec.take("selector"), |at| d.labels(&at));
    let account = optional(spec.take("serviceAccount"), |at| d.label(&at));
    let addresses = optional(spec.take("addresses"), |at| addresses(d, &at));
    let federated = optional(spec.take("subjectAltNames"), |at| alternative_name(d, &at));
    Some(Service {
        key: metadata.key.clone(),
        ports: ports?,
        selector: selector?.filter(|labels| !labels.is_empty()),
        service_account: account?.unwrap_or_else(|| metadata.key.name.clone()),
        addresses: addresses?.unwrap_or_default(),
        federated: federated?,
    })
}

fn ports(d: &mut Decoder<'_>, at: &At<'_>, dialect: Dialect) -> Option<Vec<ServicePort>> {
    let (mut numbers, mut names) = (HashSet::new(), HashSet::new());
    let read = d.each(at, |d, at| {
        let Some(port) = port(d, at, dialect)? else { return Some(None) };
        if !numbers.insert(port.port) {
            d.invalid(at, format!("port {} stands here twice", port.port), "give each port once");
            return None;
        }
        if let Some(name) = port.name.as_ref().filter(|name| !names.insert(Arc::clone(name))) {
            d.invalid(at, format!("the port name {} stands here twice", quote(name)), "");
            return None;
        }
        Some(Some(port))
    })?;
    let ports: Vec<ServicePort> = read.into_iter().flatten().collect();
    if ports.is_empty() {
        d.invalid(at, "a service needs at least one TCP port", "");
        return None;
    }
    Some(ports)
}

/// One port; none of it where the mesh does not carry its protocol.
fn port(d: &mut Decoder<'_>, at: &At<'_>, dialect: Dialect) -> Option<Option<ServicePort>> {
    let fields = d.fields(at)?;
    let number = d.required(&fields, "port").and_then(|at| d.port(&at));
    let target = optional(fields.take("targetPort"), |at| target(d, &at));
    let name = optional(fields.take("name"), |at| port_name(d, &at));
    let protocol = protocol(d, &fields, dialect);
    let (number, name) = (number?, name?);
    let Some(protocol) = protocol? else { return Some(None) };
    Some(Some(ServicePort { port: number, target_port: target?.unwrap_or(number), protocol, name }))
}

fn target(d: &mut Decoder<'_>, at: &At<'_>) -> Option<NonZeroU16> {
    if let super::tree::Value::Text(name) = &at.node.value {
        let message = format!("{} names a container's port, and there are no containers here", quote(name));
        d.invalid(at, message, "write the number");
        return None;
    }
    d.port(at)
}

/// A port's name.
pub(super) fn port_name(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Arc<str>> {
    let text = d.text(at)?;
    if is_port_name(text) {
        return Some(text.into());
    }
    d.invalid(at, format!("{} is not a port name", quote(text)), "use letters, digits and hyphens");
    None
}

fn protocol(d: &mut Decoder<'_>, fields: &Fields<'_>, dialect: Dialect) -> Option<Option<Protocol>> {
    let named = fields.take("name").and_then(|at| match &at.node.value {
        super::tree::Value::Text(name) => name.split('-').next().and_then(|prefix| prefix.parse().ok()),
        _ => None,
    });
    let unnamed =
        if dialect == Dialect::Kubernetes { named.unwrap_or(Protocol::Auto) } else { Protocol::Tcp };
    if let Some(at) = fields.take("appProtocol") {
        let text = d.text(&at)?;
        // Kubernetes' own names for two of them (KEP-3726).
        let text = match text {
            "kubernetes.io/h2c" => "http2",
            "kubernetes.io/ws" | "kubernetes.io/wss" => "http",
            other => other,
        };
        return parse(d, &at, text).map(Some);
    }
    let Some(at) = fields.take("protocol") else { return Some(Some(unnamed)) };
    match d.text(&at)? {
        text @ ("UDP" | "SCTP" | "udp" | "sctp") => {
            let message =
                format!("`{}`: the mesh carries TCP alone; this {text} port is left as it is", at.path);
            d.findings.warning(at.node.span, Code::NoEffect, message, "callers reach it without the mesh");
            Some(None)
        }
        "TCP" if dialect == Dialect::Kubernetes => Some(Some(unnamed)),
        text => parse(d, &at, text).map(Some),
    }
}

fn parse(d: &mut Decoder<'_>, at: &At<'_>, text: &str) -> Option<Protocol> {
    text.parse::<Protocol>().map_err(|error| d.invalid(at, error.to_string(), "")).ok()
}

fn addresses(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Vec<IpAddr>> {
    let addresses = d.each(at, |d, at| d.address(at))?;
    let of = |v4: bool| addresses.iter().filter(|address| address.is_ipv4() == v4).count();
    if of(true) > 1 || of(false) > 1 {
        d.invalid(at, "a service has at most one virtual address of each family", "");
        return None;
    }
    Some(addresses)
}

pub(super) fn encode(service: &Service) -> Json {
    let ports: Vec<Json> = service.ports.iter().map(encode_port).collect();
    let mut spec = Map::new();
    spec.insert("ports".into(), ports.into());
    spec.insert("serviceAccount".into(), service.service_account.as_str().into());
    if let Some(selector) = &service.selector {
        spec.insert("selector".into(), super::json::labels(selector));
    }
    if !service.addresses.is_empty() {
        let addresses: Vec<Json> = service.addresses.iter().map(|a| a.to_string().into()).collect();
        spec.insert("addresses".into(), addresses.into());
    }
    if let Some(identity) = &service.federated {
        spec.insert("subjectAltNames".into(), json!([identity.to_string()]));
    }
    Json::Object(spec)
}

fn encode_port(port: &ServicePort) -> Json {
    let mut out = json!({
        "port": port.port.get(),
        "targetPort": port.target_port.get(),
        "protocol": port.protocol.name(),
    });
    if let Some(name) = &port.name {
        out["name"] = (&**name).into();
    }
    out
}
