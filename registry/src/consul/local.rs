//! The local Consul agent (<https://developer.hashicorp.com/consul/api-docs/agent>): what this host registers there, and
//! the checks that it feeds.

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::catalog::Registered;
use super::client::{Asked, Client, Slash, escape};
use super::error::ConsulError;

/// A service of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Registration {
    /// Unique on the node.
    #[serde(rename = "ID")]
    pub id: String,
    /// The service's name.
    pub name: String,
    /// Tags.
    pub tags: Vec<String>,
    /// Where it is reached.
    pub address: String,
    /// Its port.
    pub port: u16,
    /// What it says of itself: at most 64 keys, values of 512 bytes.
    pub meta: BTreeMap<String, String>,
    /// Its share of calls.
    pub weights: Share,
    /// The check that says whether it is well.
    pub check: Ttl,
}

/// Shares of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Share {
    /// While all checks pass.
    pub passing: u32,
    /// While one warns.
    pub warning: u32,
}

/// A check that turns critical by itself unless it is told in time that all is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Ttl {
    /// Unique on the node.
    #[serde(rename = "CheckID")]
    pub id: String,
    /// For people.
    pub name: String,
    /// How long what was told last holds, as Go writes durations.
    #[serde(rename = "TTL")]
    pub ttl: String,
    /// What it is at first.
    pub status: Status,
    /// After so long without a change for the better the service is taken out of the catalog.
    pub deregister_critical_service_after: String,
}

/// What a check finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// All is well.
    Passing,
    /// Something is amiss, and it takes calls still.
    Warning,
    /// It takes no calls.
    Critical,
}

/// Whether the local Consul agent knew what was spoken of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It did.
    Known,
    /// It has lost it, or never had it: it is to be registered anew.
    Lost,
}

/// What a Consul agent says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Myself {
    /// Its configuration, as far as it matters here.
    pub config: MyConfig,
}

/// A Consul agent's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MyConfig {
    /// Its datacenter.
    pub datacenter: String,
    /// Its node's name.
    pub node_name: String,
    /// Its version.
    pub version: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Update<'a> {
    status: Status,
    output: &'a str,
}

impl Client {
    /// Registers a service at the local Consul agent, or replaces what it had under that ID.
    pub async fn register(&self, registration: &Registration) -> Result<(), ConsulError> {
        let body = serde_json::to_vec(registration).expect("plain fields");
        let asked = Asked::new(Method::PUT, "/v1/agent/service/register".to_owned()).body(body);
        self.ask(asked.with("replace-existing-checks", "true")).await.map(|_| ())
    }

    /// Takes a service out.
    pub async fn deregister(&self, id: &str) -> Result<Known, ConsulError> {
        let path = format!("/v1/agent/service/deregister/{}", escape(id, Slash::Escaped));
        known(self.ask(Asked::new(Method::PUT, path)).await.map(|came| came.status))
    }

    /// Says what a check found.
    pub async fn update(&self, check: &str, status: Status, output: &str) -> Result<Known, ConsulError> {
        let path = format!("/v1/agent/check/update/{}", escape(check, Slash::Escaped));
        let body = serde_json::to_vec(&Update { status, output }).expect("plain fields");
        known(self.ask(Asked::new(Method::PUT, path).body(body)).await.map(|came| came.status))
    }

    /// The services of the local Consul agent by their IDs.
    pub async fn own_services(&self) -> Result<BTreeMap<String, Registered>, ConsulError> {
        self.ask(Asked::new(Method::GET, "/v1/agent/services".to_owned())).await?.json()
    }

    /// What the local Consul agent is.
    pub async fn myself(&self) -> Result<Myself, ConsulError> {
        self.ask(Asked::new(Method::GET, "/v1/agent/self".to_owned())).await?.json()
    }
}

/// Consul 1.8 answers 500 with words for what later versions answer 404 to.
fn known(answered: Result<StatusCode, ConsulError>) -> Result<Known, ConsulError> {
    const WORDS: [&str; 4] =
        ["Unknown check", "Unknown service", "Unknown Check", "does not have associated TTL"];
    match answered {
        Ok(StatusCode::NOT_FOUND) => Ok(Known::Lost),
        Err(ConsulError::Status { said, .. }) if WORDS.iter().any(|words| said.contains(words)) => {
            Ok(Known::Lost)
        }
        other => other.map(|_| Known::Known),
    }
}
