//! The access log: one JSON line a connection, under Envoy's field names. Lines are handed to one writer over a
//! bounded queue; when it cannot keep up, lines are dropped and counted, and connections are not held up.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::mpsc;

use super::request_record::{self, RequestRecord};
use super::{Record, milliseconds};
use crate::proxy::error::{ProxyError, Reason};
use crate::proxy::relay::Meter;

/// Lines that may wait for the writer.
const QUEUE: usize = 16_384;
/// The most lines written with one system call.
const BATCH: usize = 256;

/// A worker's end of the log.
#[derive(Clone)]
pub struct AccessLog {
    lines: Option<mpsc::Sender<Vec<u8>>>,
    dropped: Arc<AtomicU64>,
}

/// The writer's end of the log.
pub struct AccessLogWriter(mpsc::Receiver<Vec<u8>>);

/// Both ends of a log.
pub fn channel() -> (AccessLog, AccessLogWriter) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (AccessLog { lines: Some(sender), dropped: Arc::default() }, AccessLogWriter(receiver))
}

impl AccessLogWriter {
    /// Writes lines until every worker's end is gone. Blocks: it has a thread of its own.
    pub fn run(mut self, mut out: impl Write) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut text = Vec::new();
        while let Some(first) = self.0.blocking_recv() {
            batch.push(first);
            while batch.len() < BATCH {
                let Ok(line) = self.0.try_recv() else { break };
                batch.push(line);
            }
            text.clear();
            for line in batch.drain(..) {
                text.extend_from_slice(&line);
            }
            if let Err(error) = out.write_all(&text).and_then(|()| out.flush()) {
                tracing::warn!(%error, "access log lines could not be written");
            }
        }
    }
}

/// The line, in Envoy's field names where Envoy has one.
#[derive(Serialize)]
struct Line<'a> {
    start_time: String,
    protocol: &'static str,
    reporter: &'static str,
    duration: u64,
    bytes_received: u64,
    bytes_sent: u64,
    response_flags: &'static str,
    response_code_details: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection_termination_details: Option<String>,
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
}

impl AccessLog {
    /// A log that writes nothing.
    pub fn off() -> Self {
        Self { lines: None, dropped: Arc::default() }
    }

    /// Lines dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Hands a connection's line to the writer.
    pub fn write(&self, record: &Record, meter: Option<&Meter>, outcome: &Result<(), ProxyError>) {
        self.hand_over(|| line(record, meter, outcome));
    }

    /// Hands a request's line to the writer.
    pub fn write_request(&self, record: &RequestRecord) {
        self.hand_over(|| request_record::line(record));
    }

    /// The line is made only where the writer has room for it.
    fn hand_over(&self, line: impl FnOnce() -> Vec<u8>) {
        let Some(lines) = &self.lines else { return };
        match lines.try_reserve() {
            Ok(place) => place.send(line()),
            Err(_) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn line(record: &Record, meter: Option<&Meter>, outcome: &Result<(), ProxyError>) -> Vec<u8> {
    let reason = outcome.as_ref().err().map(ProxyError::reason);
    let line = Line {
        start_time: OffsetDateTime::from(record.at).format(&Rfc3339).unwrap_or_default(),
        protocol: "TCP",
        reporter: record.reporter.name(),
        duration: milliseconds(record.started.elapsed()),
        bytes_received: meter.map_or(0, Meter::bytes_from_client),
        bytes_sent: meter.map_or(0, Meter::bytes_to_client),
        response_flags: reason.map_or("-", Reason::response_flags),
        response_code_details: reason.map_or("-", Reason::name),
        connection_termination_details: outcome.as_ref().err().map(ToString::to_string),
        downstream_remote_address: record.client.to_string(),
        downstream_local_address: record.destination.map(|address| address.to_string()),
        upstream_host: record.upstream.map(|address| address.to_string()),
        upstream_cluster: record.service_host.as_deref(),
        source_principal: record.source.identity.as_ref().map(ToString::to_string),
        destination_principal: record.target.identity.as_ref().map(ToString::to_string),
        peer_certificate_serial: record.peer_serial.as_deref(),
        connection_security_policy: record.security.name(),
        policy_notes: &record.notes,
    };
    // A struct of strings and numbers always serialises.
    let mut text = serde_json::to_vec(&line).unwrap_or_default();
    text.push(b'\n');
    text
}
