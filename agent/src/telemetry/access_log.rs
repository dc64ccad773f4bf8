//! The access log: one JSON line a connection, under Envoy's field names. Lines are handed to one writer over a
//! bounded queue; when it cannot keep up, or cannot write, lines are dropped and counted, and connections are not held
//! up.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{mpsc, oneshot};

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
    tally: Arc<Tally>,
}

/// What became of lines.
#[derive(Debug, Default)]
pub struct Tally {
    waiting: AtomicU64,
    lost: AtomicU64,
}

impl Tally {
    /// Lines that were dropped, or could not be written.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// The writer's end of the log.
struct Writer {
    lines: mpsc::Receiver<Vec<u8>>,
    tally: Arc<Tally>,
    /// Whether the last thing that was written is a part of a line.
    torn: bool,
}

/// A writer at work, in a thread of its own.
pub struct Writing {
    thread: JoinHandle<()>,
    ended: oneshot::Receiver<()>,
    tally: Arc<Tally>,
}

/// A log that is written to `out`.
pub fn start(out: impl Write + Send + 'static) -> io::Result<(AccessLog, Writing)> {
    let (lines, receiver) = mpsc::channel(QUEUE);
    let tally = Arc::<Tally>::default();
    let writer = Writer { lines: receiver, tally: Arc::clone(&tally), torn: false };
    let (end, ended) = oneshot::channel();
    let thread = std::thread::Builder::new().name("access-log".to_owned()).spawn(move || {
        writer.run(out);
        // Nobody waits where the agent ended otherwise than in good order.
        let _ = end.send(());
    })?;
    Ok((AccessLog { lines: Some(lines), tally: Arc::clone(&tally) }, Writing { thread, ended, tally }))
}

impl Writing {
    /// Waits until every line is written, the workers' ends being gone; for `patience` at most.
    pub async fn finish(self, patience: Duration) {
        if tokio::time::timeout(patience, self.ended).await.is_ok() {
            // It has nothing left to do. A panic has been reported already.
            let _ = self.thread.join();
        }
        let waiting = self.tally.waiting.load(Ordering::Relaxed);
        self.tally.lost.fetch_add(waiting, Ordering::Relaxed);
        let lost = self.tally.lost();
        if lost > 0 {
            tracing::warn!(lost, "the access log lacks lines that were dropped or could not be written");
        }
    }
}

impl Writer {
    /// Writes lines until every worker's end is gone. Blocks.
    fn run(mut self, mut out: impl Write) {
        let mut batch = Vec::with_capacity(BATCH);
        while self.lines.blocking_recv_many(&mut batch, BATCH) > 0 {
            self.write(&mut out, &batch);
            self.tally.waiting.fetch_sub(batch.len() as u64, Ordering::Relaxed);
            batch.clear();
        }
    }

    /// Writes what can be written of some lines, and counts the others.
    fn write(&mut self, out: &mut impl Write, batch: &[Vec<u8>]) {
        // What is left of a torn line stays a line of its own.
        let end_of_torn: &[u8] = if self.torn { b"\n" } else { b"" };
        let text =
            std::iter::once(end_of_torn).chain(batch.iter().map(Vec::as_slice)).collect::<Vec<_>>().concat();
        let mut written = 0;
        let failed = loop {
            if written == text.len() {
                break out.flush().err();
            }
            match out.write(&text[written..]) {
                Ok(0) => break Some(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => written += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Some(error),
            }
        };
        if let Some(error) = failed {
            let lines = &text[written.max(end_of_torn.len())..];
            let lost = lines.iter().filter(|byte| **byte == b'\n').count() as u64;
            self.tally.lost.fetch_add(lost, Ordering::Relaxed);
            tracing::warn!(%error, lost, "access log lines could not be written");
        }
        self.torn = match text[..written].last() {
            Some(last) => *last != b'\n',
            None => self.torn,
        };
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
    fault: Option<&'static str>,
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
        Self { lines: None, tally: Arc::default() }
    }

    /// What became of lines so far.
    pub fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.tally)
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
            Ok(place) => {
                self.tally.waiting.fetch_add(1, Ordering::Relaxed);
                place.send(line());
            }
            Err(_) => {
                self.tally.lost.fetch_add(1, Ordering::Relaxed);
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
        fault: reason.map(|reason| reason.fault().name()),
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::telemetry::Reporter;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// What was written, and how many bytes each further write may take before it fails.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<(Vec<u8>, Vec<usize>)>>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock().expect("not poisoned");
            let room = disk.1.pop().unwrap_or(usize::MAX).min(bytes.len());
            if room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.0.extend_from_slice(&bytes[..room]);
            Ok(room)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn record() -> Record {
        Record::new(Reporter::Source, "10.0.0.1:1".parse().expect("an address"))
    }

    #[test]
    fn a_line_says_why_and_whose_fault_it_is() {
        let value = |outcome| -> serde_json::Value {
            serde_json::from_slice(&line(&record(), None, &outcome)).expect("JSON")
        };
        let denied = value(Err(ProxyError::Denied("by ns/p".to_owned())));
        assert_eq!(
            (&denied["response_code_details"], &denied["fault"]),
            (&"denied".into(), &"policy".into())
        );
        assert_eq!(value(Ok(())).get("fault"), None);
    }

    #[tokio::test]
    async fn lines_of_the_last_moment_are_written() {
        let disk = Disk::default();
        let (log, writing) = start(disk.clone()).expect("a thread");
        let tally = log.tally();
        for _ in 0..QUEUE / 2 {
            log.write(&record(), None, &Ok(()));
        }
        drop(log);
        writing.finish(PATIENCE).await;
        let text = String::from_utf8(disk.0.lock().expect("not poisoned").0.clone()).expect("text");
        assert_eq!((text.lines().count(), tally.lost()), (QUEUE / 2, 0));
    }

    #[test]
    fn what_cannot_be_written_is_counted_line_by_line() {
        let check = |room: &[usize], expected: &str, lost| {
            let mut disk = Disk::default();
            disk.0.lock().expect("not poisoned").1 = room.iter().rev().copied().collect();
            let (_, lines) = mpsc::channel(1);
            let mut writer = Writer { lines, tally: Arc::default(), torn: false };
            for batch in [["one\n", "two\n"], ["three\n", "four\n"]] {
                writer.write(&mut disk, &batch.map(|line| line.as_bytes().to_vec()));
            }
            let written = String::from_utf8(disk.0.lock().expect("not poisoned").0.clone()).expect("text");
            assert_eq!((written.as_str(), writer.tally.lost()), (expected, lost), "{room:?}");
        };
        check(&[], "one\ntwo\nthree\nfour\n", 0);
        check(&[1, 2, 3], "one\ntwo\nthree\nfour\n", 0);
        check(&[0], "three\nfour\n", 2);
        check(&[4, 0], "one\nthree\nfour\n", 1);
        check(&[5, 0], "one\nt\nthree\nfour\n", 1);
        check(&[7, 0], "one\ntwo\nthree\nfour\n", 1);
        check(&[5, 0, 0], "one\nt", 3);
        check(&[5, 0, 1, 0], "one\nt\n", 3);
        check(&[8, 6, 0], "one\ntwo\nthree\n", 1);
    }

    #[tokio::test]
    async fn a_log_that_takes_nothing_holds_up_nobody() {
        struct Stuck(std::sync::mpsc::Receiver<()>);
        impl Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _ = self.0.recv();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (release, stuck) = std::sync::mpsc::channel();
        let (log, writing) = start(Stuck(stuck)).expect("a thread");
        let tally = log.tally();
        for _ in 0..3 {
            log.write(&record(), None, &Ok(()));
        }
        drop(log);
        writing.finish(Duration::ZERO).await;
        assert_eq!(tally.lost(), 3);
        drop(release);
    }
}
