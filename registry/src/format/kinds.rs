//! Kinds that are not taken: those of later versions, and those with another kind in their place. Each is refused by its
//! name, because a resource that is passed over in silence is one that somebody counts on.

use baremesh_model::mesh::Kind;

use super::document::Document;
use super::fields::nearest;
use super::findings::Findings;
use super::tree::Value;
use crate::diagnostic::{Code, quote};
use crate::resource::KINDS;

/// Kinds that a later version takes.
pub(super) const LATER_KINDS: [&str; 1] = ["Telemetry"];

/// Kinds that are not taken, with what to use in their place.
pub(super) const OTHER_KINDS: &[(&str, &str)] = &[
    (
        "EnvoyFilter",
        "there is no Envoy here: use RateLimit to limit requests; what else it is mostly used for are fields of the \
         mesh's own kinds",
    ),
    (
        "WasmPlugin",
        "the mesh runs no foreign code: use AuthorizationPolicy, or a proxy of your own before the service",
    ),
    (
        "TrafficExtension",
        "the mesh runs no foreign code: use AuthorizationPolicy, or a proxy of your own before the service",
    ),
    (
        "ProxyConfig",
        "an agent is set up by its own file, /etc/baremesh/agent.toml, and the mesh by MeshConfig",
    ),
    (
        "IstioOperator",
        "there is nothing to install in a cluster: use MeshConfig for what holds for the whole mesh",
    ),
    (
        "Deployment",
        "nothing is started by the mesh: run the service as a systemd unit and use `baremesh service register`",
    ),
    (
        "StatefulSet",
        "nothing is started by the mesh: run the service as a systemd unit and use `baremesh service register`",
    ),
    (
        "DaemonSet",
        "nothing is started by the mesh: run the service as a systemd unit and use `baremesh service register`",
    ),
    (
        "ReplicaSet",
        "nothing is started by the mesh: run the service as a systemd unit and use `baremesh service register`",
    ),
    ("Job", "nothing is started by the mesh: run it as a systemd unit and use `baremesh service register`"),
    ("CronJob", "nothing is started by the mesh: run it as a systemd timer"),
    ("Pod", "use WorkloadEntry, or `baremesh service register` on the host"),
    ("Node", "a host becomes one of the mesh by `baremesh join`"),
    ("Endpoints", "use WorkloadEntry, one for each address"),
    ("EndpointSlice", "use WorkloadEntry, one for each address"),
    ("ServiceAccount", "accounts need no resource: set `serviceAccount` of the Service"),
    ("Namespace", "namespaces need no resource: name one and it is there"),
    ("NetworkPolicy", "use AuthorizationPolicy"),
    ("Ingress", "gateways into the mesh are not there yet: have a proxy of your own call the service"),
    ("GatewayClass", "use Gateway of networking.istio.io, for what leaves the mesh"),
    ("HTTPRoute", "use VirtualService"),
    ("GRPCRoute", "use VirtualService"),
    ("TCPRoute", "use VirtualService"),
    ("TLSRoute", "use VirtualService"),
    ("ReferenceGrant", "use AuthorizationPolicy"),
    ("ConfigMap", "mesh-wide settings stand in MeshConfig"),
    ("Secret", "certificates are files of the host, in /etc/baremesh/credentials"),
    ("CustomResourceDefinition", "kinds are built in: remove it"),
    ("Role", "`baremesh` has roles of its own for operators: remove it"),
    ("RoleBinding", "`baremesh` has roles of its own for operators: remove it"),
    ("ClusterRole", "`baremesh` has roles of its own for operators: remove it"),
    ("ClusterRoleBinding", "`baremesh` has roles of its own for operators: remove it"),
];

/// Refuses a kind by its name, with what to do.
pub(super) fn refuse(document: &Document, findings: &mut Findings) {
    let kind = &*document.kind;
    let name = match document.metadata.entry("name").map(|entry| &entry.node.value) {
        Some(Value::Text(name)) => format!(" {}", quote(name)),
        _ => String::new(),
    };
    let (message, help) = if LATER_KINDS.contains(&kind) {
        let help = "take it out of this directory until a version that takes it";
        (format!("{kind}{name}: this kind is not supported yet"), help.to_owned())
    } else if let Some((_, instead)) = OTHER_KINDS.iter().find(|(other, _)| *other == kind) {
        (format!("{kind}{name}: the mesh does not take this kind"), (*instead).to_owned())
    } else if kind == "List" {
        ("a List stands within a List".to_owned(), "put all of its items into the outer one".to_owned())
    } else {
        let near = nearest(kind, KINDS.into_iter().map(Kind::name));
        let help = near.map_or_else(
            || format!("the kinds are {}", KINDS.map(Kind::name).join(", ")),
            |near| format!("did you mean `{near}`?"),
        );
        (format!("there is no kind {}", quote(kind)), help)
    };
    findings.error(document.kind_span, Code::RefusedKind, message, &help);
}
