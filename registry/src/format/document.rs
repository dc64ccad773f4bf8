//! What makes up one resource whatever its form, `apiVersion`, kind, metadata and spec; and which kinds there are: those
//! that are taken, those that a later version takes, and those with another kind in their place.

use std::sync::Arc;

use baremesh_model::mesh::{Kind, ResourceId};
use baremesh_model::name::{Key, Label, default_namespace};

use super::decode::{At, Decoder, Fields};
use super::fields::{Field, nearest};
use super::findings::Findings;
use super::source::Span;
use super::tree::{Entry, Node, Value};
use super::{
    authorization_policy, destination_rule, gateway, host_grant, kinds, mesh_config, peer_authentication,
    rate_limit, request_authentication, service, service_entry, sidecar, virtual_service, workload_entry,
    workload_group,
};
use crate::diagnostic::{Code, quote};
use crate::resource::{KINDS, Resource, mesh_config_key};

/// One resource as written.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) kind: Arc<str>,
    pub(crate) kind_span: Span,
    pub(crate) dialect: Dialect,
    pub(crate) metadata: Node,
    pub(crate) spec: Option<Node>,
    pub(crate) span: Span,
}

/// Whose meaning a kind's name has: `Service` is Kubernetes' in a document of its core API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Native,
    Kubernetes,
}

/// API versions that are one and the same.
pub(super) const VERSIONS: [&str; 4] = ["v1", "v1beta1", "v1alpha3", "v1alpha1"];

/// Our own API group.
pub(super) const OWN_GROUP: &str = "baremesh.io";

/// The API group that a kind is written under.
pub(super) fn group_of(kind: Kind) -> &'static str {
    match kind {
        Kind::WorkloadEntry
        | Kind::VirtualService
        | Kind::DestinationRule
        | Kind::ServiceEntry
        | Kind::WorkloadGroup
        | Kind::Sidecar
        | Kind::Gateway => "networking.istio.io",
        Kind::PeerAuthentication | Kind::AuthorizationPolicy | Kind::RequestAuthentication => {
            "security.istio.io"
        }
        Kind::MeshConfig | Kind::Service | Kind::HostGrant | Kind::RateLimit => OWN_GROUP,
    }
}

/// The table of a kind's fields.
pub(super) fn table_of(kind: Kind) -> &'static [Field] {
    match kind {
        Kind::MeshConfig => mesh_config::FIELDS,
        Kind::Service => service::FIELDS,
        Kind::WorkloadEntry => workload_entry::FIELDS,
        Kind::VirtualService => virtual_service::FIELDS,
        Kind::PeerAuthentication => peer_authentication::FIELDS,
        Kind::AuthorizationPolicy => authorization_policy::FIELDS,
        Kind::HostGrant => host_grant::FIELDS,
        Kind::DestinationRule => destination_rule::FIELDS,
        Kind::RateLimit => rate_limit::FIELDS,
        Kind::RequestAuthentication => request_authentication::FIELDS,
        Kind::ServiceEntry => service_entry::FIELDS,
        Kind::WorkloadGroup => workload_group::FIELDS,
        Kind::Sidecar => sidecar::FIELDS,
        Kind::Gateway => gateway::FIELDS,
    }
}

/// Takes a YAML or JSON root apart, `kind: List` included.
pub(super) fn from_manifest(root: Node, findings: &mut Findings, out: &mut Vec<Document>) {
    if root.entry("kind").is_some_and(|entry| is_list(&entry.node)) {
        let span = root.span;
        match root.entry("items").map(|entry| &entry.node.value) {
            Some(Value::List(items)) => {
                for item in items {
                    out.extend(manifest(item.clone(), findings));
                }
            }
            _ => findings.error(span, Code::Syntax, "a List has its resources in `items`, as a list", ""),
        }
    } else {
        out.extend(manifest(root, findings));
    }
}

fn is_list(kind: &Node) -> bool {
    matches!(&kind.value, Value::Text(kind) if &**kind == "List")
}

/// One document of `apiVersion`, `kind`, `metadata` and `spec`.
fn manifest(root: Node, findings: &mut Findings) -> Option<Document> {
    let Value::Map(entries) = root.value else {
        let message = format!(
            "a resource is a map of apiVersion, kind, metadata and spec; here is {}",
            root.type_name()
        );
        findings.error(root.span, Code::Syntax, message, "");
        return None;
    };
    let (mut kind, mut version, mut metadata, mut spec, mut others) = (None, None, None, None, Vec::new());
    for entry in entries {
        match &*entry.key {
            "kind" => kind = Some(entry.node),
            "apiVersion" => version = Some(entry.node),
            "metadata" => metadata = Some(entry.node),
            "spec" => spec = Some(entry.node).filter(|node| node.value != Value::Null),
            _ => others.push(entry),
        }
    }
    let (kind, kind_span) = text_of(kind, "kind", root.span, findings)?;
    let (version, version_span) = text_of(version, "apiVersion", root.span, findings)?;
    let dialect = dialect(&kind, &version, version_span, findings)?;
    if &*kind == Kind::ServiceEntry.name() {
        // Istio keeps there what it assigned.
        others.retain(|entry| !service_entry::take_status(entry, &mut spec));
    }
    if KINDS.iter().any(|known| known.name() == &*kind) {
        others.iter().for_each(|entry| unknown_root(findings, entry));
    }
    let metadata = metadata.unwrap_or_else(|| Node::map(root.span, Vec::new()));
    Some(Document { kind, kind_span, dialect, metadata, spec, span: root.span })
}

fn unknown_root(findings: &mut Findings, entry: &Entry) {
    if &*entry.key == "status" {
        return no_effect(findings, entry, "the mesh reports its status itself");
    }
    let near = nearest(&entry.key, ["apiVersion", "kind", "metadata", "spec"].into_iter());
    let help = match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => "the resource's fields stand below `spec`".to_owned(),
    };
    let message = format!("there is no {} at the top of a resource", quote(&entry.key));
    findings.unknown_key(entry.key_span, Code::UnknownField, message, &help);
}

fn no_effect(findings: &mut Findings, entry: &Entry, why: &str) {
    if entry.node.value != Value::Null {
        let message = format!("{} is accepted and has no effect", quote(&entry.key));
        findings.warning(entry.key_span, Code::NoEffect, message, why);
    }
}

fn text_of(node: Option<Node>, key: &str, at: Span, findings: &mut Findings) -> Option<(Arc<str>, Span)> {
    match node {
        Some(Node { span, value: Value::Text(text) }) => Some((text, span)),
        Some(node) => {
            let message = format!("`{key}`: expected a text, found {}", node.type_name());
            findings.error(node.span, Code::InvalidValue, message, "");
            None
        }
        None => {
            findings.error(at, Code::InvalidValue, format!("`{key}` is required"), "");
            None
        }
    }
}

/// Whose kind it is, if group and version are ones that are taken. Kinds that are refused anyway are let through,
/// so that they are refused by name.
fn dialect(kind: &str, version: &str, span: Span, findings: &mut Findings) -> Option<Dialect> {
    let Some(known) = KINDS.into_iter().find(|known| known.name() == kind) else {
        return Some(Dialect::Native);
    };
    // Two groups have a Gateway.
    if known == Kind::Gateway && version.starts_with("gateway.networking.k8s.io/") {
        let help = "use Gateway of networking.istio.io";
        findings.error(span, Code::RefusedKind, "Kubernetes' Gateway is not taken", help);
        return None;
    }
    if known == Kind::Service && version == "v1" {
        return Some(Dialect::Kubernetes);
    }
    let (group, number) = version.split_once('/').unwrap_or(("", version));
    if group == group_of(known) && VERSIONS.contains(&number) {
        return Some(Dialect::Native);
    }
    let message = format!("{} is not an apiVersion of {kind}", quote(version));
    let help = format!("write `apiVersion: {}/v1`", group_of(known));
    findings.error(span, Code::RefusedKind, message, &help);
    None
}

/// What stands beside the spec.
#[derive(Debug)]
pub(super) struct Metadata<'n> {
    pub(super) key: Key,
    pub(super) dialect: Dialect,
    /// The resource's name as written, for the kind whose name is a setting.
    pub(super) name: Option<At<'n>>,
    pub(super) labels: Option<At<'n>>,
    /// `istio.io/dry-run`
    pub(super) dry_run: Option<At<'n>>,
}

/// The annotation of a policy that decides nothing.
pub(super) const DRY_RUN: &str = "istio.io/dry-run";

/// Reads one resource; reports what is wrong with it.
pub(super) fn decode(document: &Document, findings: &mut Findings) -> Option<Resource> {
    findings.about = None;
    let Some(kind) = KINDS.into_iter().find(|kind| kind.name() == &*document.kind) else {
        kinds::refuse(document, findings);
        return None;
    };
    let before = findings.errors;
    let mut decoder = Decoder { findings, kind, table: table_of(kind) };
    let metadata = metadata(&mut decoder, document)?;
    decoder.findings.about = Some(ResourceId { kind, key: metadata.key.clone() });
    let empty = Node::map(document.span, Vec::new());
    let needs_spec = matches!(
        kind,
        Kind::Service
            | Kind::WorkloadEntry
            | Kind::HostGrant
            | Kind::DestinationRule
            | Kind::RateLimit
            | Kind::ServiceEntry
            | Kind::WorkloadGroup
            | Kind::Gateway
    );
    if document.spec.is_none() && needs_spec {
        let message = "`spec` is required: it is missing or empty".to_owned();
        decoder.findings.error(document.span, Code::InvalidValue, message, "");
        return None;
    }
    let spec = At { path: String::new(), node: document.spec.as_ref().unwrap_or(&empty) };
    let spec = decoder.fields(&spec)?;
    let resource = decode_kind(&mut decoder, &metadata, &spec)?;
    (findings.errors == before).then_some(resource)
}

fn decode_kind(decoder: &mut Decoder<'_>, metadata: &Metadata<'_>, spec: &Fields<'_>) -> Option<Resource> {
    Some(match decoder.kind {
        Kind::MeshConfig => Resource::MeshConfig(mesh_config::decode(decoder, metadata, spec)?.into()),
        Kind::Service => Resource::Service(service::decode(decoder, metadata, spec)?.into()),
        Kind::WorkloadEntry => Resource::Workload(workload_entry::decode(decoder, metadata, spec)?.into()),
        Kind::VirtualService => {
            Resource::VirtualService(virtual_service::decode(decoder, metadata, spec)?.into())
        }
        Kind::PeerAuthentication => {
            Resource::PeerAuthentication(peer_authentication::decode(decoder, metadata, spec)?.into())
        }
        Kind::AuthorizationPolicy => {
            Resource::AuthorizationPolicy(authorization_policy::decode(decoder, metadata, spec)?.into())
        }
        Kind::HostGrant => Resource::HostGrant(host_grant::decode(decoder, metadata, spec)?.into()),
        Kind::DestinationRule => {
            Resource::DestinationRule(destination_rule::decode(decoder, metadata, spec)?.into())
        }
        Kind::RateLimit => Resource::RateLimit(rate_limit::decode(decoder, metadata, spec)?.into()),
        Kind::RequestAuthentication => {
            Resource::RequestAuthentication(request_authentication::decode(decoder, metadata, spec)?.into())
        }
        Kind::ServiceEntry => Resource::ServiceEntry(service_entry::decode(decoder, metadata, spec)?.into()),
        Kind::WorkloadGroup => {
            Resource::WorkloadGroup(workload_group::decode(decoder, metadata, spec)?.into())
        }
        Kind::Sidecar => Resource::Sidecar(sidecar::decode(decoder, metadata, spec)?.into()),
        Kind::Gateway => Resource::Gateway(gateway::decode(decoder, metadata, spec)?.into()),
    })
}

/// Name, namespace, labels and annotations. The rest of Kubernetes' metadata is what its API server writes.
pub(super) fn metadata<'n>(decoder: &mut Decoder<'_>, document: &'n Document) -> Option<Metadata<'n>> {
    let at = At { path: "metadata".to_owned(), node: &document.metadata };
    let entries = decoder.map(&at)?;
    let take = |key: &str| {
        let entry = entries.iter().find(|entry| &*entry.key == key)?;
        Some(At { path: key.to_owned(), node: &entry.node }).filter(|at| at.node.value != Value::Null)
    };
    for entry in entries {
        match &*entry.key {
            "name" | "namespace" | "labels" | "annotations" => {}
            "creationTimestamp" | "generation" | "resourceVersion" | "uid" | "managedFields" | "selfLink"
            | "ownerReferences" | "finalizers" | "generateName" => {
                no_effect(decoder.findings, entry, "it is what a Kubernetes API server keeps for itself");
            }
            _ => {
                let known = ["name", "namespace", "labels", "annotations"].into_iter();
                let help = nearest(&entry.key, known).map(|near| format!("did you mean `{near}`?"));
                let message = format!("there is no `metadata` field {}", quote(&entry.key));
                let help = help.unwrap_or_default();
                decoder.findings.unknown_key(entry.key_span, Code::UnknownField, message, &help);
            }
        }
    }
    let key = key(decoder, take("name"), take("namespace"), document.span)?;
    decoder.findings.about = Some(ResourceId { kind: decoder.kind, key: key.clone() });
    let labels = take("labels");
    if let (Some(at), false) = (&labels, decoder.kind == Kind::WorkloadEntry) {
        let message = format!("labels of a {} are accepted and have no effect", decoder.kind);
        decoder.findings.warning(at.node.span, Code::NoEffect, message, "nothing selects by them");
    }
    let dry_run = take("annotations").and_then(|at| annotations(decoder, &at));
    Some(Metadata { key, dialect: document.dialect, name: take("name"), labels, dry_run })
}

fn key(
    decoder: &mut Decoder<'_>,
    name: Option<At<'_>>,
    namespace: Option<At<'_>>,
    span: Span,
) -> Option<Key> {
    if decoder.kind == Kind::MeshConfig {
        if let Some(at) = namespace {
            decoder.invalid(&at, "MeshConfig is for the whole mesh", "remove the namespace");
        }
        return Some(mesh_config_key());
    }
    let Some(name) = name else {
        decoder.findings.error(span, Code::InvalidValue, "`name` is required".to_owned(), "");
        return None;
    };
    let name = decoder.label(&name);
    let namespace: Option<Label> = match namespace {
        Some(at) => decoder.label(&at),
        None => Some(default_namespace()),
    };
    Some(Key::new(namespace?, name?))
}

/// The annotation that is in force; the others have no effect.
fn annotations<'n>(decoder: &mut Decoder<'_>, at: &At<'n>) -> Option<At<'n>> {
    let mut dry_run = None;
    for entry in decoder.map(at)? {
        if &*entry.key == DRY_RUN && decoder.kind == Kind::AuthorizationPolicy {
            dry_run = Some(At { path: format!("annotations[`{DRY_RUN}`]"), node: &entry.node });
        } else {
            let message = format!("the annotation {} is accepted and has no effect", quote(&entry.key));
            decoder.findings.warning(
                entry.key_span,
                Code::NoEffect,
                message,
                "the mesh reads no annotation of that name here",
            );
        }
    }
    dry_run
}
