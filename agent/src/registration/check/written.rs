//! A check as written. The names are those of Kubernetes' probes, which WorkloadGroup has too; lengths of time are
//! written as everywhere here.

use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

/// The table `check`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct WrittenCheck {
    /// How long after its registration it is first looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_delay: Option<String>,
    /// How long one look may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// From one look to the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub period: Option<String>,
    /// So many passes in a row make it healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_threshold: Option<u32>,
    /// So many failures in a row make it unhealthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_threshold: Option<u32>,
    /// The service says for itself that it is well, at least this often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    /// A systemd unit that is to be active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// A GET.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_get: Option<WrittenHttpGet>,
    /// A connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_socket: Option<WrittenTcpSocket>,
    /// grpc.health.v1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<WrittenGrpc>,
    /// A command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<WrittenExec>,
}

/// A port by its number or its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a port's number from 1 to 65535, or its name")]
pub enum WrittenPortName {
    /// As callers name it, or as the program listens.
    Number(NonZeroU16),
    /// As `ports` names it.
    Name(String),
}

impl std::str::FromStr for WrittenPortName {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Number))
    }
}

/// `httpGet`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct WrittenHttpGet {
    /// What is asked for; `/` unless stated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The first port unless stated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<WrittenPortName>,
    /// HTTP unless stated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
    /// Headers besides the usual ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub http_headers: Vec<WrittenHeader>,
}

/// `scheme` as Kubernetes writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Scheme {
    /// Plaintext.
    #[default]
    #[serde(rename = "HTTP", alias = "http")]
    Http,
    /// Inside TLS, whoever answers.
    #[serde(rename = "HTTPS", alias = "https")]
    Https,
}

/// One of `httpHeaders`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenHeader {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// `tcpSocket`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenTcpSocket {
    /// The first port unless stated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<WrittenPortName>,
}

/// `grpc`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenGrpc {
    /// The first port unless stated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<WrittenPortName>,
    /// The service that is asked about; the server as a whole unless stated.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
}

/// `exec`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenExec {
    /// The program and its arguments.
    pub command: Vec<String>,
}
