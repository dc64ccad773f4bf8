//! A line of the access log: JSON under Envoy's field names, or text after the format that the mesh sets. Both come from
//! the one record of a connection or a request, and nothing that a client sends can end a line or a quoted value.

/// Lines of text.
mod text;

use std::time::SystemTime;

use baremesh_model::access_log::AccessLogFormat;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::request_record::RequestRecord;
use super::{Record, milliseconds};
use crate::proxy::error::{ProxyError, Reason};
use crate::proxy::relay::Meter;

/// What a line is about.
#[derive(Clone, Copy)]
pub enum Subject<'a> {
    /// A connection, what moved on it, and how it ended.
    Connection(&'a Record, Option<&'a Meter>, &'a Result<(), ProxyError>),
    /// A request.
    Request(&'a RequestRecord),
}

/// The line, with its end.
pub fn line(subject: Subject<'_>, format: &AccessLogFormat) -> Vec<u8> {
    let mut line = match (format, subject) {
        (AccessLogFormat::Text(format), subject) => text::line(subject, format).into_bytes(),
        // A struct of strings and numbers always serialises.
        (AccessLogFormat::Json, Subject::Connection(record, meter, outcome)) => {
            serde_json::to_vec(&ConnectionLine::new(record, meter, outcome)).unwrap_or_default()
        }
        (AccessLogFormat::Json, Subject::Request(record)) => {
            serde_json::to_vec(&RequestLine::new(record)).unwrap_or_default()
        }
    };
    line.push(b'\n');
    line
}

/// What both kinds of lines say of the peers.
#[derive(Serialize)]
struct Peers<'a> {
    downstream_remote_address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    downstream_local_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_cluster: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_principal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_principal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_certificate_serial: Option<&'a str>,
    connection_security_policy: &'static str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    policy_notes: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_dry_run: Option<&'a str>,
}

impl<'a> Peers<'a> {
    fn of(record: &'a Record) -> Self {
        Self {
            downstream_remote_address: record.client.to_string(),
            downstream_local_address: record.destination.map(|address| address.to_string()),
            upstream_host: record.upstream.map(|address| address.to_string()),
            upstream_cluster: record.service_host.as_deref(),
            source_principal: record.source.identity.as_ref().map(ToString::to_string),
            destination_principal: record.target.identity.as_ref().map(ToString::to_string),
            peer_certificate_serial: record.peer_serial.as_deref(),
            connection_security_policy: record.security.name(),
            policy_notes: &record.notes,
            policy_dry_run: record.dry_run.as_deref(),
        }
    }
}

#[derive(Serialize)]
struct ConnectionLine<'a> {
    start_time: String,
    protocol: &'static str,
    reporter: &'static str,
    duration: u64,
    bytes_received: u64,
    bytes_sent: u64,
    response_flags: &'static str,
    response_code_details: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection_termination_details: Option<String>,
    #[serde(flatten)]
    peers: Peers<'a>,
}

impl<'a> ConnectionLine<'a> {
    fn new(record: &'a Record, meter: Option<&Meter>, outcome: &Result<(), ProxyError>) -> Self {
        let reason = outcome.as_ref().err().map(ProxyError::reason);
        Self {
            start_time: start_time(record.at),
            protocol: "TCP",
            reporter: record.reporter.name(),
            duration: milliseconds(record.started.elapsed()),
            bytes_received: meter.map_or(0, Meter::bytes_from_client),
            bytes_sent: meter.map_or(0, Meter::bytes_to_client),
            response_flags: reason.map_or("-", Reason::response_flags),
            response_code_details: reason.map_or("-", Reason::name),
            fault: reason.map(|reason| reason.fault().name()),
            connection_termination_details: outcome.as_ref().err().map(ToString::to_string),
            peers: Peers::of(record),
        }
    }
}

#[derive(Serialize)]
struct RequestLine<'a> {
    start_time: String,
    method: &'a str,
    path: &'a str,
    protocol: &'static str,
    reporter: &'static str,
    response_code: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u16>,
    response_flags: &'static str,
    response_code_details: &'a str,
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
    upstream_request_attempt_count: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    route_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rate_limits: Vec<String>,
    #[serde(flatten)]
    peers: Peers<'a>,
}

impl<'a> RequestLine<'a> {
    fn new(record: &'a RequestRecord) -> Self {
        let RequestRecord { peers, fields, sizes, .. } = record;
        Self {
            start_time: start_time(peers.at),
            method: &record.method,
            path: &record.target,
            protocol: record.version.name(),
            reporter: peers.reporter.name(),
            response_code: record.status,
            grpc_status: record.grpc_status,
            response_flags: record.flags,
            response_code_details: &record.details,
            upstream_transport_failure_reason: record.fault.as_deref(),
            bytes_received: sizes.request_bytes,
            bytes_sent: sizes.response_bytes,
            duration: milliseconds(sizes.duration),
            upstream_service_time: record.upstream_time.map(milliseconds),
            x_forwarded_for: fields.forwarded_for.as_deref(),
            user_agent: fields.user_agent.as_deref(),
            request_id: fields.request_id.as_deref(),
            authority: &record.authority,
            upstream_request_attempt_count: record.attempts,
            route_name: record.route.as_deref(),
            traceparent: fields.traceparent.as_deref(),
            rate_limits: record.limited.iter().map(ToString::to_string).collect(),
            peers: Peers::of(peers),
        }
    }
}

fn start_time(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Reporter;

    #[test]
    fn a_line_says_why_and_whose_fault_it_is() {
        let record = Record::new(Reporter::Source, "10.0.0.1:1".parse().expect("an address"));
        let value = |outcome| -> serde_json::Value {
            let line = line(Subject::Connection(&record, None, &outcome), &AccessLogFormat::Json);
            serde_json::from_slice(&line).expect("JSON")
        };
        let denied = value(Err(ProxyError::Denied("by ns/p".to_owned())));
        assert_eq!(
            (&denied["response_code_details"], &denied["fault"]),
            (&"denied".into(), &"policy".into())
        );
        assert_eq!(denied["downstream_remote_address"], "10.0.0.1:1");
        assert_eq!(value(Ok(())).get("fault"), None);
    }
}
