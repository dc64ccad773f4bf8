//! The JSON form: a document of `apiVersion`, `kind`, `metadata` and `spec`, as the control protocol carries it and as
//! programs are given it. Every value of the model goes to it and comes back the same.

use std::sync::Arc;

use baremesh_model::authorization::{Action, AuthorizationPolicy, Enforcement, Rule};
use baremesh_model::mesh::Kind;
use baremesh_model::peer_authentication::{MtlsMode, PeerAuthentication};
use baremesh_model::workload::Labels;
use serde_json::{Map, Value as Json, json};

use super::decode::{At, Decoder};
use super::document::{self, DRY_RUN, Document, from_manifest, group_of};
use super::findings::{Findings, Unknown};
use super::source::{Source, Span};
use super::tree::{Entry, MAX_DEPTH, MAX_VALUES, Node, Value};
use super::{
    authorization_policy, destination_rule, gateway, host_grant, mesh_config, peer_authentication,
    rate_limit, request_authentication, service, service_entry, sidecar, virtual_service, workload_entry,
    workload_group,
};
use crate::diagnostic::{Code, Diagnostic};
use crate::resource::Resource;

/// The name that findings of this form show in a file's place.
const WIRE: &str = "message";

/// A resource as a document.
pub fn encode(resource: &Resource) -> Json {
    let kind = resource.kind();
    let mut metadata = Map::new();
    match resource {
        Resource::MeshConfig(config) => {
            metadata.insert("name".into(), config.name.as_str().into());
        }
        _ => {
            let key = resource.key();
            metadata.insert("name".into(), key.name.as_str().into());
            metadata.insert("namespace".into(), key.namespace.as_str().into());
        }
    }
    if let Resource::AuthorizationPolicy(policy) = resource
        && policy.enforcement == Enforcement::DryRun
    {
        metadata.insert("annotations".into(), json!({ DRY_RUN: "true" }));
    }
    json!({
        "apiVersion": format!("{}/v1", group_of(kind)),
        "kind": kind.name(),
        "metadata": metadata,
        "spec": encode_spec(resource),
    })
}

fn encode_spec(resource: &Resource) -> Json {
    match resource {
        Resource::MeshConfig(config) => mesh_config::encode(config),
        Resource::Service(service) => service::encode(service),
        Resource::Workload(workload) => workload_entry::encode(workload),
        Resource::VirtualService(service) => virtual_service::encode(service),
        Resource::PeerAuthentication(policy) => peer_authentication::encode(policy),
        Resource::AuthorizationPolicy(policy) => authorization_policy::encode(policy),
        Resource::HostGrant(grant) => host_grant::encode(grant),
        Resource::DestinationRule(rule) => destination_rule::encode(rule),
        Resource::RateLimit(limit) => rate_limit::encode(limit),
        Resource::RequestAuthentication(policy) => request_authentication::encode(policy),
        Resource::ServiceEntry(entry) => service_entry::encode(entry),
        Resource::WorkloadGroup(group) => workload_group::encode(group),
        Resource::Sidecar(sidecar) => sidecar::encode(sidecar),
        Resource::Gateway(gateway) => gateway::encode(gateway),
    }
}

/// Labels as a JSON object.
pub(super) fn labels(labels: &Labels) -> Json {
    Json::Object(labels.iter().map(|(key, value)| (key.to_string(), (&**value).into())).collect())
}

/// A document as a resource. Everything that a file may not hold, a document may not hold either.
pub fn decode(value: &Json) -> Result<Resource, Vec<Diagnostic>> {
    let (resource, findings) = read(value, Unknown::Refused);
    resource.ok_or(findings)
}

/// What was understood of a document that a newer version wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FromNewer {
    /// The resource that is in force in its place.
    pub resource: Resource,
    /// What was not understood, and what was made of it; empty where everything was.
    pub reports: Vec<Diagnostic>,
}

/// A document of a newer version as a resource. What is not known is left out and reported; but a security policy that
/// is not understood in full is replaced by one that shuts the workloads that it selects, because nobody can say
/// what the part that is not known would have shut.
pub fn decode_from_newer(value: &Json) -> Result<FromNewer, Vec<Diagnostic>> {
    let (resource, findings) = read(value, Unknown::Refused);
    if let Some(resource) = resource {
        return Ok(FromNewer { resource, reports: findings });
    }
    if let Some(closed) = closed(value) {
        let reports = findings.into_iter().map(|finding| {
            let help = "the policy is replaced by one that shuts its workloads: upgrade this host's agent";
            finding.with_code(Code::FromNewer).with_help(help).into_warning()
        });
        return Ok(FromNewer { resource: closed, reports: reports.collect() });
    }
    let (resource, findings) = read(value, Unknown::Ignored);
    match resource {
        Some(resource) => Ok(FromNewer { resource, reports: findings }),
        None => Err(findings),
    }
}

fn read(value: &Json, unknown: Unknown) -> (Option<Resource>, Vec<Diagnostic>) {
    let mut findings = Findings::new(Arc::new(Source::new(WIRE, "")), unknown);
    let resource = one_document(value, &mut findings).and_then(|document| {
        let before = findings.errors;
        document::decode(&document, &mut findings).filter(|_| findings.errors == before)
    });
    let failed = findings.errors > 0;
    (resource.filter(|_| !failed), findings.into_list())
}

fn one_document(value: &Json, findings: &mut Findings) -> Option<Document> {
    let mut budget = MAX_VALUES;
    let Some(root) = node(value, &mut budget, 1) else {
        findings.error(Span::default(), Code::TooLarge, "too large or nested too deep", "");
        return None;
    };
    let mut documents = Vec::new();
    from_manifest(root, findings, &mut documents);
    if documents.len() > 1 {
        findings.error(Span::default(), Code::Syntax, "more than one resource in one message", "");
        return None;
    }
    let document = documents.pop();
    if document.is_none() && findings.errors == 0 {
        findings.error(Span::default(), Code::Syntax, "no resource in the message", "");
    }
    document
}

fn node(value: &Json, budget: &mut usize, depth: usize) -> Option<Node> {
    *budget = budget.checked_sub(1)?;
    if depth > MAX_DEPTH {
        return None;
    }
    let value = match value {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Value::Integer(number),
            None => Value::Other(number.to_string().into()),
        },
        Json::String(text) => Value::Text(text.as_str().into()),
        Json::Array(items) => {
            Value::List(items.iter().map(|item| node(item, budget, depth + 1)).collect::<Option<_>>()?)
        }
        Json::Object(entries) => {
            let mut map = Vec::with_capacity(entries.len());
            for (key, value) in entries {
                let node = node(value, budget, depth + 1)?;
                map.push(Entry { key: key.as_str().into(), key_span: Span::default(), node });
            }
            Value::Map(map)
        }
    };
    Some(Node { span: Span::default(), value })
}

/// The policy that shuts what a security policy selects. A selector that is not understood selects more, not less.
fn closed(value: &Json) -> Option<Resource> {
    let mut ignored = Findings::new(Arc::new(Source::new(WIRE, "")), Unknown::Ignored);
    let document = one_document(value, &mut ignored)?;
    let kind = [Kind::AuthorizationPolicy, Kind::PeerAuthentication, Kind::RequestAuthentication]
        .into_iter()
        .find(|kind| kind.name() == &*document.kind)?;
    let table = document::table_of(kind);
    let mut decoder = Decoder { findings: &mut ignored, kind, table };
    let metadata = document::metadata(&mut decoder, &document)?;
    let empty = Node::map(Span::default(), Vec::new());
    let spec = At { path: String::new(), node: document.spec.as_ref().unwrap_or(&empty) };
    let selector = decoder.fields(&spec).and_then(|spec| decoder.selector(&spec)).flatten();
    // A dry run decides nothing, whatever it says.
    let enforcement = match metadata.dry_run.map(|at| &at.node.value) {
        Some(Value::Text(text)) if &**text == "true" => Enforcement::DryRun,
        _ => Enforcement::Enforced,
    };
    let key = metadata.key;
    if kind == Kind::RequestAuthentication {
        let closed = request_authentication::closed(key, selector);
        return Some(Resource::RequestAuthentication(closed.into()));
    }
    Some(if kind == Kind::PeerAuthentication {
        let (mode, ports) = (Some(MtlsMode::Strict), Default::default());
        Resource::PeerAuthentication(PeerAuthentication { key, selector, mode, ports }.into())
    } else {
        let (action, rules) = (Action::Deny, vec![Rule::default()]);
        Resource::AuthorizationPolicy(
            AuthorizationPolicy { key, selector, action, enforcement, rules, response: None, provider: None }
                .into(),
        )
    })
}
