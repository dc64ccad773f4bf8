//! What Consul knows of services: their names and tags (<https://developer.hashicorp.com/consul/api-docs/catalog>), and
//! the instances of one with their health (<https://developer.hashicorp.com/consul/api-docs/health>).

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use serde::{Deserialize, Deserializer, Serialize};

use super::client::{Asked, Client, Slash, escape};
use super::error::ConsulError;
use super::query::{Answer, Read};

/// One instance of a service, with the node that it runs on and what is known of its health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Instance {
    /// Where it runs.
    pub node: Node,
    /// What it is.
    pub service: Registered,
    /// Checks of the node and of the instance.
    #[serde(default, deserialize_with = "or_empty")]
    pub checks: Vec<Check>,
}

/// A machine in Consul's catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Node {
    /// Its name, unique in the datacenter.
    pub node: String,
    /// Its address: an IP address as a rule.
    #[serde(default)]
    pub address: String,
    /// Its addresses in its network and from outside: `lan`, `wan`, `lan_ipv6` and the like.
    #[serde(default, deserialize_with = "or_empty")]
    pub tagged_addresses: BTreeMap<String, String>,
    /// The datacenter.
    #[serde(default, deserialize_with = "or_empty")]
    pub datacenter: String,
    /// What its Consul agent says of it.
    #[serde(default, deserialize_with = "or_empty")]
    pub meta: BTreeMap<String, String>,
}

/// A registration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Registered {
    /// Unique on its node.
    #[serde(rename = "ID", default)]
    pub id: String,
    /// The service's name.
    pub service: String,
    /// Tags.
    #[serde(default, deserialize_with = "or_empty")]
    pub tags: Vec<String>,
    /// The address; empty: the node's.
    #[serde(default)]
    pub address: String,
    /// The port; 0: none was given.
    #[serde(default)]
    pub port: i64,
    /// What it says of itself.
    #[serde(default, deserialize_with = "or_empty")]
    pub meta: BTreeMap<String, String>,
    /// Its share of calls.
    #[serde(default, deserialize_with = "or_empty")]
    pub weights: Weights,
    /// `connect-proxy` and the like for Consul's own proxies; empty for a service.
    #[serde(default)]
    pub kind: String,
    /// When it was first registered: lower is older.
    #[serde(default)]
    pub create_index: u64,
}

/// Shares of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Weights {
    /// While all checks pass.
    pub passing: i64,
    /// While one warns.
    pub warning: i64,
}

impl Default for Weights {
    fn default() -> Self {
        Self { passing: 1, warning: 1 }
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Check {
    /// Unique on its node.
    #[serde(rename = "CheckID", default)]
    pub id: String,
    /// Which instance it is of; empty: of the node, and so of all that is there.
    #[serde(rename = "ServiceID", default)]
    pub service_id: String,
    /// `passing`, `warning` or `critical`.
    pub status: String,
    /// What the check found.
    #[serde(default)]
    pub output: String,
}

/// Consul writes empty lists and maps as null now and then.
fn or_empty<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Who leads Consul's servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// The address that says so.
    pub asked: String,
    /// The leader, as servers know each other (`10.0.0.1:8300`); nothing where they have none.
    pub leader: Option<String>,
}

impl Client {
    /// The names of all services with their tags.
    pub async fn services(&self, read: Read) -> Result<Answer<BTreeMap<String, Vec<String>>>, ConsulError> {
        let came = self.read(Asked::new(Method::GET, "/v1/catalog/services".to_owned()), read).await?;
        let answer: Answer<BTreeMap<String, Option<Vec<String>>>> = came.answer()?;
        let value = answer.value.into_iter().map(|(name, tags)| (name, tags.unwrap_or_default())).collect();
        Ok(Answer { value, index: answer.index })
    }

    /// Every instance of a service, whatever its health.
    pub async fn instances(&self, service: &str, read: Read) -> Result<Answer<Vec<Instance>>, ConsulError> {
        let path = format!("/v1/health/service/{}", escape(service, Slash::Escaped));
        let came = self.read(Asked::new(Method::GET, path), read).await?;
        match came.status {
            StatusCode::NOT_FOUND => Ok(Answer { value: Vec::new(), index: came.index() }),
            _ => came.answer(),
        }
    }

    /// Who leads Consul's servers. No token is needed for that.
    pub async fn leader(&self) -> Result<Leader, ConsulError> {
        let came = self.ask(Asked::new(Method::GET, "/v1/status/leader".to_owned())).await?;
        let leader: String = came.json()?;
        Ok(Leader { leader: Some(leader).filter(|leader| !leader.is_empty()), asked: came.address })
    }
}
