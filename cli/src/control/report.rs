//! What goes over the control server's administration socket, in JSON; the command line reads the same types.

use serde::{Deserialize, Serialize};
use serde_json::Value;

mod authority;
mod operators;

pub use authority::{AuthorityReport, BundleAnswer, FederatedReport, RootReport};
pub use operators::{
    AuditReport, FlowReport, FlowsReport, OperatorAnswer, OperatorOrder, OperatorReport, RollbackRequest,
    VersionReport,
};

/// `POST /apply`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApplyRequest {
    /// Resources, as a person wrote them.
    pub text: String,
    /// Where the text comes from, as findings are to show it; its ending says the form.
    pub name: String,
    /// The form, where the name's ending does not say it; otherwise the text itself tells.
    #[serde(default)]
    pub form: Option<WrittenForm>,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// A form of written resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum WrittenForm {
    /// TOML.
    Toml,
    /// Istio's YAML.
    Yaml,
}

/// `POST /analyze`: resources that are looked at as if they were in force.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AnalyzeRequest {
    /// Texts with the names that findings are to show; an ending says the form.
    pub texts: Vec<(String, String)>,
}

/// What is said of a set.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Analysis {
    /// How many resources are written in it.
    pub resources: usize,
    /// The findings, errors first.
    pub findings: Vec<Value>,
    /// The same for people.
    pub text: String,
}

/// `POST /delete`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeleteRequest {
    /// The kind.
    pub kind: String,
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// What `apply` and `delete` did, or would do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Changes {
    /// One a resource.
    pub changes: Vec<ChangeReport>,
    /// Findings that keep nothing from being taken.
    pub warnings: Vec<Value>,
    /// The same for people.
    pub warning_text: String,
    /// Whether the control server has put the result in force; false for a dry run, too.
    pub in_force: bool,
    /// The change's number, by which `rollback` takes it back; none where nothing was changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<i64>,
}

/// One resource's change.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangeReport {
    /// The kind.
    pub kind: String,
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// `created`, `changed`, `unchanged` or `deleted`.
    pub effect: String,
    /// Its file.
    pub file: String,
    /// The file's lines with ` `, `-` or `+` before each.
    pub diff: String,
}

/// One resource of `GET /resources`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceReport {
    /// The kind.
    pub kind: String,
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// `file:line` where it is written; none for defaults that are written nowhere.
    pub place: Option<String>,
    /// `apiVersion`, `kind`, `metadata`, `spec`.
    pub document: Value,
}

/// `POST /token`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenOrder {
    /// Which services the host may have, as globs.
    #[serde(default)]
    pub services: Vec<String>,
    /// Which addresses it may announce besides those that it speaks from, single or in blocks.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Which host may redeem it; any, where none is named.
    #[serde(default)]
    pub host: Option<String>,
    /// Whether the host takes the place of one that joined under the name before.
    #[serde(default)]
    pub rejoin: bool,
    /// How long it can be redeemed.
    #[serde(default)]
    pub expires_seconds: Option<u64>,
}

/// The answer to `POST /token`. It holds the secret, hence no `Debug`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenAnswer {
    /// The token.
    pub token: String,
    /// What names it in lists.
    pub id: String,
    /// Seconds since 1970 until which it can be redeemed.
    pub expires_at: u64,
    /// The port of the control server, for the line that a person copies.
    pub port: u16,
}

/// One token of `GET /tokens`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenReport {
    /// Its id.
    pub id: String,
    /// Which host may redeem it, where one is named.
    pub host: Option<String>,
    /// Whether that host takes the place of one before.
    pub rejoin: bool,
    /// Which services the host may have.
    pub services: Vec<String>,
    /// Which addresses it may announce besides those that it speaks from.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Seconds since 1970 until which it can be redeemed.
    pub expires_at: u64,
    /// Who redeemed it.
    pub redeemed_by: Option<String>,
}

/// One host of `GET /hosts`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostReport {
    /// Its name.
    pub name: String,
    /// Which services it may have, by its token and by HostGrants.
    pub services: Vec<String>,
    /// Which addresses it may announce besides those that it speaks from, by the same.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Seconds since 1970 at which it joined last.
    pub joined_at: u64,
    /// Whether an operator shut it out.
    pub revoked: bool,
}

/// `POST /certificates/revoke`: one of both.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RevokeOrder {
    /// All certificates of this identity, as its URI.
    #[serde(default)]
    pub identity: Option<String>,
    /// The certificate with this serial number, in hexadecimal as logs show it.
    #[serde(default)]
    pub serial: Option<String>,
}

/// One certificate of `GET /certificates/revoked`, and of the answers to orders that revoke.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevokedReport {
    /// Its serial number in hexadecimal.
    pub serial: String,
    /// Whose it is, as a URI.
    pub identity: String,
    /// The host that it was issued to.
    pub host: String,
    /// Seconds since 1970 at which it was revoked.
    pub revoked_at: u64,
    /// Seconds since 1970 until which it would be valid; it is on the list until then.
    pub not_after: u64,
}

/// What signs and can be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Replaced {
    /// The intermediate, under the same root.
    Intermediate,
    /// The root, with its intermediate.
    Root,
}

/// `POST /ca/rotate`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RotateOrder {
    /// What.
    pub what: Replaced,
    /// After how long a new root signs at the latest.
    #[serde(default)]
    pub within_seconds: Option<u64>,
}

/// The answer to `POST /ca/csr`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestAnswer {
    /// A signing request (PKCS#10) in PEM.
    pub request: String,
}

/// `POST /ca/chain`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChainOrder {
    /// What was requested, its issuers and their root, in PEM.
    pub chain: String,
    /// After how long a root that is new signs at the latest.
    #[serde(default)]
    pub within_seconds: Option<u64>,
}

/// `POST /ca/drop-root`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DropOrder {
    /// The root's fingerprint, or its beginning.
    pub fingerprint: String,
    /// Whether certificates in use may be cut off.
    #[serde(default)]
    pub force: bool,
}

/// `GET /status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusReport {
    /// The control server's version.
    pub version: String,
    /// The mesh's trust domain.
    pub trust_domain: String,
    /// Where hosts reach it.
    pub listen: Vec<String>,
    /// Seconds since 1970 until which its own certificate is valid.
    pub certificate_not_after: u64,
    /// How many resources are in force.
    pub resources: usize,
    /// Why the resource files as they are now are not in force.
    pub resources_refused: Option<String>,
    /// Certificates of the authority that are near their end, in words.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Why too many hosts are thought to be silent, where they are.
    pub alarm: Option<String>,
    /// The newest version of the state.
    pub state_version: u64,
    /// Every host that joined or has registered something.
    pub hosts: Vec<HostStatus>,
}

/// How a host stands.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostStatus {
    /// Its name.
    pub host: String,
    /// Whether its agent is connected.
    pub connected: bool,
    /// Whether an operator shut it out.
    pub revoked: bool,
    /// Its agent's version.
    pub agent_version: Option<String>,
    /// The newest version of the state that it has put in force.
    pub acked: Option<u64>,
    /// Why it could not put a later one in force.
    pub nack: Option<String>,
    /// Seconds that its lease still runs; none where it has none.
    pub lease_seconds: Option<u64>,
    /// What it registered.
    pub registrations: Vec<RegistrationStatus>,
}

/// One registration of a host.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistrationStatus {
    /// `name.namespace`.
    pub service: String,
    /// Why it is not published, where it was refused or resources contradict it.
    pub held: Option<String>,
    /// Why it is published without some of its addresses, where it is.
    #[serde(default)]
    pub without: Option<String>,
    /// `healthy` or `unhealthy`, as its host's checks have it.
    #[serde(default)]
    pub health: String,
}

/// Every answer but 200.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Fault {
    /// Why, for people.
    pub error: String,
    /// The findings, where it is about resources.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Value>,
}
