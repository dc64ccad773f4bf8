//! What operators are and did, as it goes over the wire: roles and credentials, versions, the audit, flows.

use serde::{Deserialize, Serialize};

/// `POST /rollback`: before the newest change, where neither version is given.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RollbackRequest {
    /// To before this version.
    #[serde(default)]
    pub version: Option<i64>,
    /// To after this version.
    #[serde(default)]
    pub to: Option<i64>,
    /// Whether what others changed since is taken back as well.
    #[serde(default)]
    pub force: bool,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// `GET /mtls` and `POST /simulate`: what other policies would do with the connections of the last hour.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowsReport {
    /// Let through now, and not then.
    pub cut: Vec<FlowReport>,
    /// Refused now, and let through then.
    pub opened: Vec<FlowReport>,
    /// Refused now and then.
    pub refused_already: Vec<FlowReport>,
    /// How many flows were looked at.
    pub judged: usize,
    /// How many hosts told of flows.
    pub hosts: usize,
    /// How many hosts are connected and told of none.
    pub silent: usize,
    /// Connections that are not among them, because a table was full.
    pub missed: u64,
    /// Flows that are not named, because there are too many.
    pub unnamed: usize,
}

/// Who came to what.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowReport {
    /// `name.namespace` of the called service.
    pub service: String,
    /// Address and port of the workload.
    pub destination: String,
    /// The port.
    pub port: u16,
    /// Who called: an identity, or what is known of the address.
    pub peer: String,
    /// From which address.
    pub peer_address: String,
    /// `mutual_tls`, `plaintext` or `within_host`.
    pub way: String,
    /// How many connections.
    pub connections: u64,
    /// Seconds since 1970 at which the last one came.
    pub last: u64,
    /// Why it is refused, or was.
    pub reason: String,
}

/// One version of `GET /versions`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionReport {
    /// Its number.
    pub version: i64,
    /// Seconds since 1970 at which it was made.
    pub at: u64,
    /// Who made it.
    pub who: String,
    /// By which order.
    pub what: String,
    /// What it did, resource by resource.
    pub difference: String,
    /// Whether it can still be taken back.
    pub kept: bool,
}

/// One line of `GET /audit`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditReport {
    /// Seconds since 1970.
    pub at: u64,
    /// Who asked.
    pub who: String,
    /// For what.
    pub what: String,
    /// Why it was refused, where it was.
    pub refused: Option<String>,
    /// The version that it made, where it changed resources.
    pub version: Option<i64>,
    /// What it did to them.
    pub difference: String,
}

/// `POST /operators`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OperatorOrder {
    /// The operator's name.
    pub name: String,
    /// `viewer`, `editor` or `admin`.
    pub role: String,
    /// An editor's namespaces.
    #[serde(default)]
    pub namespaces: Vec<String>,
    /// PKCS#10 in DER, base64.
    pub request: String,
    /// How long the credential is valid.
    #[serde(default)]
    pub lifetime_seconds: Option<u64>,
    /// Whether there may be an operator of that name, whose credential then ends.
    #[serde(default)]
    pub replace: bool,
}

/// The answer to `POST /operators`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperatorAnswer {
    /// PEM, leaf first.
    pub chain: String,
    /// PEM: what the operator's machine takes the control server by.
    pub roots: String,
    /// The mesh's trust domain.
    pub trust_domain: String,
    /// Seconds since 1970 until which the credential is valid.
    pub not_after: u64,
    /// The port of the control server.
    pub port: u16,
}

/// One operator of `GET /operators`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperatorReport {
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: String,
    /// An editor's namespaces.
    pub namespaces: Vec<String>,
    /// Seconds since 1970 at which the credential was issued.
    pub issued_at: u64,
    /// Seconds since 1970 until which it is valid.
    pub not_after: u64,
}
