//! What a running Consul knows of its own mesh, as the JSON that [`crate::convert`] takes: config entries
//! (<https://developer.hashicorp.com/consul/api-docs/config>), intentions, and the instances of the services that these name.

use std::collections::BTreeSet;

use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::client::{Asked, Client, Slash, escape};
use super::error::ConsulError;

/// Every kind of config entry that a Consul may have: those that are converted, and those that are refused by name.
pub const KINDS: [&str; 18] = [
    "proxy-defaults",
    "service-defaults",
    INTENTIONS,
    "service-router",
    "service-splitter",
    "service-resolver",
    "api-gateway",
    "control-plane-request-limit",
    "exported-services",
    "file-system-certificate",
    "http-route",
    "ingress-gateway",
    "inline-certificate",
    "jwt-provider",
    "mesh",
    "sameness-group",
    "tcp-route",
    "terminating-gateway",
];
/// The kind that intentions are since Consul 1.9.
const INTENTIONS: &str = "service-intentions";
/// What a Consul says of a kind that it does not know.
const NO_SUCH_KIND: &str = "invalid config entry kind";
/// What it says of tokens where it has no ACLs.
const NO_ACLS: &str = "ACL support disabled";
/// Said with an answer of which something was left out (since Consul 1.12).
const FILTERED: &str = "x-consul-results-filtered-by-acls";

/// Fields that name a service, or the entry of one.
const NAMING: [&str; 4] = ["Name", "Service", "SourceName", "DestinationName"];
/// Fields about requests: what they name are headers and parameters.
const OF_REQUESTS: [&str; 2] = ["Header", "QueryParam"];

/// Why the configuration is not read.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Consul did not answer.
    #[error(transparent)]
    Consul(#[from] ConsulError),
    /// Consul leaves out what a token may not read, and says nothing of it: what was made would let in others than it does.
    #[error(
        "the token may not read {what}, and Consul leaves out what a token may not read: give one with \
         service_prefix \"\" {{ policy = \"read\" intentions = \"read\" }} and node_prefix \"\" {{ policy = \"read\" }} \
         (--token-file)"
    )]
    Partial {
        /// What it would leave out.
        what: String,
    },
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Texts of JSON, each with the path that it is the answer of.
    pub texts: Vec<(String, String)>,
    /// Consul could be asked whether the token may read all there is.
    pub is_complete: bool,
}

/// Something that a token may do perhaps.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Act<'a> {
    resource: &'a str,
    access: &'a str,
    segment: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct May {
    resource: String,
    allow: bool,
}

impl Client {
    /// Reads all of it, but for the kinds in `without`.
    pub async fn exported(&self, without: &BTreeSet<String>) -> Result<Exported, ExportError> {
        let is_complete = self.may_read_all().await?;
        let mut texts = Vec::new();
        for kind in KINDS.into_iter().filter(|kind| !without.contains(*kind)) {
            let found = self.text(format!("/v1/config/{kind}")).await?;
            // The list of single intentions says the same again where they are config entries.
            let found = match found {
                None if kind == INTENTIONS => self.text("/v1/connect/intentions".to_owned()).await?,
                found => found,
            };
            texts.extend(found);
        }
        let mut named = BTreeSet::new();
        for (path, text) in &texts {
            let read: Value = serde_json::from_str(text).map_err(|error| unreadable(path, &error))?;
            names(&read, &mut named);
        }
        let Some((path, text)) = self.text("/v1/catalog/services".to_owned()).await? else {
            return Ok(Exported { texts, is_complete });
        };
        let known: Value = serde_json::from_str(&text).map_err(|error| unreadable(&path, &error))?;
        let known = known.as_object().into_iter().flatten().map(|(name, _)| name);
        for service in known.filter(|name| named.contains(*name)) {
            let path = format!("/v1/catalog/service/{}", escape(service, Slash::Escaped));
            texts.extend(self.text(path).await?);
        }
        Ok(Exported { texts, is_complete })
    }

    /// An answer as it came, with where it is from; nothing where this Consul has no such thing.
    async fn text(&self, path: String) -> Result<Option<(String, String)>, ExportError> {
        let came = match Box::pin(self.ask(Asked::new(Method::GET, path.clone()))).await {
            Ok(came) if came.status == StatusCode::NOT_FOUND => return Ok(None),
            Ok(came) => came,
            Err(ConsulError::Status { said, .. }) if said.contains(NO_SUCH_KIND) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if came.headers.get(FILTERED).is_some_and(|filtered| filtered == "true") {
            return Err(ExportError::Partial { what: format!("all that stands at {path}") });
        }
        let text = String::from_utf8_lossy(&came.body).into_owned();
        Ok(Some((format!("{}{path}", came.address), text)))
    }

    /// Makes sure that the token may read services, intentions and nodes of any name, and says whether Consul could be asked.
    async fn may_read_all(&self) -> Result<bool, ExportError> {
        // A name that no rule is about but one for all.
        let anybody = format!("baremesh-{:016x}", rand::random::<u64>());
        let acts = ["service", "intention", "node"].map(|resource| Act {
            resource,
            access: "read",
            segment: &anybody,
        });
        let body = serde_json::to_vec(&acts).expect("plain fields");
        let path = "/v1/internal/acl/authorize".to_owned();
        let came = match Box::pin(self.ask(Asked::new(Method::POST, path).body(body))).await {
            Ok(came) if came.status == StatusCode::NOT_FOUND => return Ok(false),
            Ok(came) => came,
            Err(ConsulError::Denied { said, .. }) if said.contains(NO_ACLS) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        let answered: Vec<May> = came.json()?;
        match answered.iter().find(|may| !may.allow) {
            Some(may) => Err(ExportError::Partial { what: format!("every {}", may.resource) }),
            None if answered.len() == acts.len() => Ok(true),
            None => Ok(false),
        }
    }
}

/// Of an answer that is named as `text` names it.
fn unreadable(named: &str, error: &serde_json::Error) -> ConsulError {
    ConsulError::Malformed { address: named.to_owned(), path: String::new(), reason: error.to_string() }
}

/// Names of services in `value`, as the fields have them that name one; others may be among them.
fn names(value: &Value, named: &mut BTreeSet<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| names(item, named)),
        Value::Object(fields) => {
            for (field, value) in fields.iter().filter(|(field, _)| !OF_REQUESTS.contains(&field.as_str())) {
                match value {
                    Value::String(text) if NAMING.contains(&field.as_str()) => _ = named.insert(text.clone()),
                    other => names(other, named),
                }
            }
        }
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn services_are_named_by_entries_intentions_and_destinations_and_by_nothing_else() {
        let all = json!([
            { "Kind": "service-router", "Name": "web", "Routes": [{
                "Match": { "HTTP": { "Header": [{ "Name": "x-a", "Exact": "b" }], "PathPrefix": "c" } },
                "Destination": { "Service": "admin", "ServiceSubset": "v1" } }] },
            { "Kind": "service-intentions", "Name": "db", "Sources": [{ "Name": "app", "Type": "consul", "Action": "allow",
                "Permissions": [{ "Action": "deny", "HTTP": { "Header": [{ "Name": "x-d" }] } }] }] },
            { "SourceName": "old", "DestinationName": "older", "SourceType": "consul", "SourceNS": "default" },
        ]);
        let mut named = BTreeSet::new();
        names(&all, &mut named);
        let named: Vec<_> = named.iter().map(String::as_str).collect();
        assert_eq!(named, ["admin", "app", "db", "old", "older", "web"]);
    }
}
