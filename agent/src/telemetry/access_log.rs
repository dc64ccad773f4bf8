//! The access log: one line a connection or request. Lines are handed to one writer over a
//! bounded queue; when it cannot keep up, or cannot write, lines are dropped and counted, and connections are not held
//! up.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};

use super::Record;
use super::line::{Subject, line};
use super::request_record::RequestRecord;
use crate::proxy::error::ProxyError;
use crate::proxy::relay::Meter;
use crate::snapshot::Snapshot;

/// Lines that may wait for the writer.
const QUEUE: usize = 16_384;
/// The most lines written with one system call.
const BATCH: usize = 256;

/// The state in force.
type InForce = Arc<ArcSwap<Snapshot>>;

/// A worker's end of the log.
#[derive(Clone)]
pub struct AccessLog {
    /// Where lines go, and the state that says what they look like.
    lines: Option<(mpsc::Sender<Vec<u8>>, InForce)>,
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

/// A log that is written to `out`, in the format that the state in force says.
pub fn start(
    out: impl Write + Send + 'static,
    snapshot: Arc<ArcSwap<Snapshot>>,
) -> io::Result<(AccessLog, Writing)> {
    let (lines, receiver) = mpsc::channel(QUEUE);
    let tally = Arc::<Tally>::default();
    let writer = Writer { lines: receiver, tally: Arc::clone(&tally), torn: false };
    let (end, ended) = oneshot::channel();
    let thread = std::thread::Builder::new().name("access-log".to_owned()).spawn(move || {
        writer.run(out);
        // Nobody waits where the agent ended otherwise than in good order.
        let _ = end.send(());
    })?;
    let log = AccessLog { lines: Some((lines, snapshot)), tally: Arc::clone(&tally) };
    Ok((log, Writing { thread, ended, tally }))
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
        self.hand_over(Subject::Connection(record, meter, outcome));
    }

    /// Hands a request's line to the writer.
    pub fn write_request(&self, record: &RequestRecord) {
        self.hand_over(Subject::Request(record));
    }

    /// The line is made only where the writer has room for it.
    fn hand_over(&self, subject: Subject<'_>) {
        let Some((lines, snapshot)) = &self.lines else { return };
        match lines.try_reserve() {
            Ok(place) => {
                self.tally.waiting.fetch_add(1, Ordering::Relaxed);
                place.send(line(subject, &snapshot.load().mesh.config.access_log));
            }
            Err(_) => {
                self.tally.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
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

    fn snapshot() -> InForce {
        let mesh = crate::snapshot::tests::mesh("");
        let snapshot = Snapshot::build(&mesh, &[], &crate::snapshot::tests::host(), 15008, None);
        Arc::new(ArcSwap::from_pointee(snapshot.expect("a snapshot")))
    }

    fn record() -> Record {
        Record::new(Reporter::Source, "10.0.0.1:1".parse().expect("an address"))
    }

    #[tokio::test]
    async fn lines_of_the_last_moment_are_written() {
        let disk = Disk::default();
        let (log, writing) = start(disk.clone(), snapshot()).expect("a thread");
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
        let (log, writing) = start(Stuck(stuck), snapshot()).expect("a thread");
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
