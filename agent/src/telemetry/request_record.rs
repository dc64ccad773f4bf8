//! The final record of one HTTP request: what the access log says of it, and what the metrics count.

use std::sync::Arc;
use std::time::Duration;

use baremesh_model::http::{RequestHead, Version};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::requests::{RequestProtocol, RequestSizes};
use super::{Record, milliseconds};
use crate::snapshot::rate_limit::Decision;

/// What is known of one request. It fills up as the request goes on, and is written once at its end.
#[derive(Debug)]
pub struct RequestRecord {
    /// The peers, as of a connection.
    pub peers: Record,
    /// The method, as it came.
    pub method: String,
    /// Path and query, as they came.
    pub target: String,
    /// The authority, as it came.
    pub authority: String,
    /// The version of the caller's side.
    pub version: Version,
    /// What it was spoken in.
    pub protocol: RequestProtocol,
    /// The status that the caller saw; 0 where it saw none.
    pub status: u16,
    /// The gRPC status, where there was one.
    pub grpc_status: Option<u16>,
    /// Envoy's response flags, or `-`.
    pub flags: &'static str,
    /// Envoy's response code details: `via_upstream`, or why the agent answered itself.
    pub details: &'static str,
    /// What went wrong, in words, where something did.
    pub fault: Option<String>,
    /// The name of the route taken.
    pub route: Option<Arc<str>>,
    /// The number of attempts.
    pub attempts: u32,
    /// From the first byte to the upstream until the first of its answer.
    pub upstream_time: Option<Duration>,
    /// Fields of the request that the log repeats.
    pub fields: LoggedFields,
    /// Bytes and messages.
    pub sizes: RequestSizes,
    /// What limits said of it.
    pub limited: Vec<Decision>,
}

/// The most of one field that is repeated in the log: thousands of lines may wait there.
const MAX_FIELD: usize = 2048;

/// As much of a field as the log repeats.
fn shortened(text: &str) -> &str {
    let end = (0..=MAX_FIELD.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// Fields of a request that the log repeats.
#[derive(Debug, Default)]
pub struct LoggedFields {
    /// `x-request-id`
    pub request_id: Option<String>,
    /// `user-agent`
    pub user_agent: Option<String>,
    /// `x-forwarded-for`
    pub forwarded_for: Option<String>,
    /// `traceparent`
    pub traceparent: Option<String>,
}

impl LoggedFields {
    /// What `head` says.
    pub fn of(head: &RequestHead) -> Self {
        let text = |name: &str| head.headers.text(name).map(|text| shortened(&text).to_owned());
        Self {
            request_id: text("x-request-id"),
            user_agent: text("user-agent"),
            forwarded_for: text("x-forwarded-for"),
            traceparent: text("traceparent"),
        }
    }
}

impl RequestRecord {
    /// A request that has just come in.
    pub fn new(peers: Record, head: &RequestHead) -> Self {
        Self {
            peers,
            method: shortened(&head.method).to_owned(),
            target: shortened(&head.target).to_owned(),
            authority: shortened(&head.authority).to_owned(),
            version: head.version,
            protocol: if head.is_grpc() { RequestProtocol::Grpc } else { RequestProtocol::Http },
            status: 0,
            grpc_status: None,
            flags: "-",
            details: "via_upstream",
            fault: None,
            route: None,
            attempts: 0,
            upstream_time: None,
            fields: LoggedFields::default(),
            sizes: RequestSizes::default(),
            limited: Vec::new(),
        }
    }
}

/// The line, in Envoy's field names where Envoy has one.
#[derive(Serialize)]
struct Line<'a> {
    start_time: String,
    method: &'a str,
    path: &'a str,
    protocol: &'static str,
    reporter: &'static str,
    response_code: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u16>,
    response_flags: &'static str,
    response_code_details: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_transport_failure_reason: Option<&'a str>,
    bytes_received: u64,
    bytes_sent: u64,
    duration: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_service_time: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x_forwarded_for: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    authority: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_cluster: Option<&'a str>,
    upstream_request_attempt_count: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    route_name: Option<&'a str>,
    downstream_remote_address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    downstream_local_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_principal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_principal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_certificate_serial: Option<&'a str>,
    connection_security_policy: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    policy_notes: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    rate_limits: &'a [String],
}

/// The request's line of the access log.
pub fn line(record: &RequestRecord) -> Vec<u8> {
    let RequestRecord { peers, fields, sizes, .. } = record;
    let rate_limits: Vec<String> = record.limited.iter().map(ToString::to_string).collect();
    let line = Line {
        start_time: OffsetDateTime::from(peers.at).format(&Rfc3339).unwrap_or_default(),
        method: &record.method,
        path: &record.target,
        protocol: record.version.name(),
        reporter: peers.reporter.name(),
        response_code: record.status,
        grpc_status: record.grpc_status,
        response_flags: record.flags,
        response_code_details: record.details,
        upstream_transport_failure_reason: record.fault.as_deref(),
        bytes_received: sizes.request_bytes,
        bytes_sent: sizes.response_bytes,
        duration: milliseconds(sizes.duration),
        upstream_service_time: record.upstream_time.map(milliseconds),
        x_forwarded_for: fields.forwarded_for.as_deref(),
        user_agent: fields.user_agent.as_deref(),
        request_id: fields.request_id.as_deref(),
        authority: &record.authority,
        upstream_host: peers.upstream.map(|address| address.to_string()),
        upstream_cluster: peers.service_host.as_deref(),
        upstream_request_attempt_count: record.attempts,
        route_name: record.route.as_deref(),
        downstream_remote_address: peers.client.to_string(),
        downstream_local_address: peers.destination.map(|address| address.to_string()),
        source_principal: peers.source.identity.as_ref().map(ToString::to_string),
        destination_principal: peers.target.identity.as_ref().map(ToString::to_string),
        peer_certificate_serial: peers.peer_serial.as_deref(),
        connection_security_policy: peers.security.name(),
        traceparent: fields.traceparent.as_deref(),
        policy_notes: &peers.notes,
        rate_limits: &rate_limits,
    };
    // A struct of strings and numbers always serialises.
    let mut text = serde_json::to_vec(&line).unwrap_or_default();
    text.push(b'\n');
    text
}
