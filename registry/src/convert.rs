//! Configuration of Consul's own mesh made into resources. It is exact or refused: whatever a resource could not say in
//! the same way is named with its reason and the way out, and nothing is left out in silence. Pure: texts in, resources
//! out.

use std::collections::BTreeMap;

use baremesh_model::name::Label;
use serde_json::Value as Json;

use crate::format;
use crate::resource::Resource;

/// One object of Consul's, read field by field.
mod fields;
/// What was given, taken apart into entries.
mod entries;
/// Filters of subsets.
mod filter;
/// What a permission of an intention asks of a request, and what a list of them comes to.
mod permission;
/// Who may call whom.
mod intentions;
/// Intentions as policies.
mod policies;
/// What holds for a service and for its callers.
mod defaults;
/// Subsets, redirects, balancing.
mod resolver;
/// Routes by what a request is.
mod router;
/// Fields of requests and answers that are changed.
mod headers;
/// Shares of a service's requests.
mod splitter;
/// Where the requests for a service end.
mod chain;
/// DestinationRules, put together.
mod rules;

pub use entries::MAX_ENTRIES;
pub use permission::MAX_TERMS;

/// What the entries do not say.
#[derive(Debug, Clone)]
pub struct Options {
    /// The namespace of everything that is made.
    pub namespace: Label,
    /// What becomes of a call that no intention is about.
    pub default_policy: Option<DefaultPolicy>,
    /// The ports that callers name, by service.
    pub ports: BTreeMap<String, u16>,
}

/// What Consul does with a call that no intention is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultPolicy {
    /// It is let through.
    Allow,
    /// It is refused.
    Deny,
}

/// What was made.
#[derive(Debug, Clone, Default)]
pub struct Converted {
    /// The resources, each of which its own reader takes, ordered by kind and name.
    pub resources: Vec<Resource>,
}

/// Something that cannot be said in resources.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{entry}: {}{reason}", .field.as_deref().map(|field| format!("`{field}`: ")).unwrap_or_default())]
pub struct Refusal {
    /// The entry, such as `service-router web`.
    pub entry: String,
    /// The field within it.
    pub field: Option<String>,
    /// Why not.
    pub reason: String,
    /// What to do instead; may be empty.
    pub help: String,
}

/// Refusals as they are found.
#[derive(Debug, Default)]
struct Findings {
    refusals: Vec<Refusal>,
}

impl Findings {
    fn refuse(
        &mut self,
        entry: &str,
        field: Option<&str>,
        reason: impl Into<String>,
        help: impl Into<String>,
    ) {
        let (field, reason, help) = (field.map(str::to_owned), reason.into(), help.into());
        self.refusals.push(Refusal { entry: entry.to_owned(), field, reason, help });
    }
}

/// Makes resources of Consul's config entries, intentions and catalog: `texts` are JSON, each with the name that it is
/// known by.
pub fn consul(texts: &[(String, String)], options: &Options) -> Result<Converted, Vec<Refusal>> {
    let mut findings = Findings::default();
    let entries = entries::read(texts, options, &mut findings);
    let mut documents = Vec::new();
    documents.extend(policies::policies(&entries, options, &mut findings));
    let chains = chain::chains(&entries, &mut findings);
    documents.extend(rules::rules(&entries, &mut findings));
    documents.extend(entries.peer_authentication.clone());
    documents.extend(defaults::services(&entries, &chains, &mut findings));
    documents.extend(chains.documents);
    let mut resources: Vec<Resource> = Vec::new();
    for document in &documents {
        match format::decode(&within(document, &options.namespace)) {
            Ok(resource) => resources.push(resource),
            Err(found) => {
                let entry = format!("{} {}", text_of(&document["kind"]), text_of(&document["name"]));
                for diagnostic in found.iter().filter(|diagnostic| diagnostic.is_error()) {
                    let help = diagnostic.help.clone().unwrap_or_default();
                    findings.refuse(&entry, None, format!("cannot be made: {}", diagnostic.message), help);
                }
            }
        }
    }
    if !findings.refusals.is_empty() {
        return Err(findings.refusals);
    }
    resources.sort_by_key(Resource::id);
    Ok(Converted { resources })
}

fn text_of(value: &Json) -> &str {
    value.as_str().unwrap_or_default()
}

/// A resource before it is read: `kind`, `name` and `spec`.
fn document(kind: &str, name: &str, spec: impl Into<Json>) -> Json {
    let spec: Json = spec.into();
    serde_json::json!({ "kind": kind, "name": name, "spec": spec })
}

/// The document in the form of the wire.
fn within(document: &Json, namespace: &Label) -> Json {
    let kind = text_of(&document["kind"]);
    let group = match kind {
        "AuthorizationPolicy" | "PeerAuthentication" => "security.istio.io",
        "VirtualService" | "DestinationRule" => "networking.istio.io",
        _ => "baremesh.io",
    };
    serde_json::json!({
        "apiVersion": format!("{group}/v1"),
        "kind": kind,
        "metadata": { "name": document["name"], "namespace": namespace.as_str() },
        "spec": document["spec"],
    })
}

#[cfg(test)]
mod tests;
