//! Keeps keys at hand: files are read and servers asked in the background, again and again, and what they say is put where
//! requests are verified. What was fetched is kept on the disk as well, so that a restart needs no server. Keys that cannot
//! be renewed stay in force for a day; then nobody vouches for them any longer, and tokens are refused.

use std::collections::HashMap;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{SHA256, digest};
use baremesh_ca::file::write_atomically;
use baremesh_model::request_authentication::KeySource;
use baremesh_model::virtual_address::VirtualRanges;
use rustix::fs::OFlags;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::key_slot::KeySlot;
use super::keys::{KeySet, KeySetError, MAX_SET};
use crate::fetch::{FetchError, Fetcher};
use crate::snapshot::Snapshot;
use crate::telemetry::metrics::Metrics;

/// How often servers are asked (Envoy asks as often), up to a tenth of it earlier by chance.
pub const REFRESH: Duration = Duration::from_secs(300);
/// How often files are read.
pub const REREAD: Duration = Duration::from_secs(60);
/// How long keys stay in force that cannot be renewed.
pub const KEEP: Duration = Duration::from_secs(24 * 3600);
/// A source that failed is asked again after so long, and twice as long each time, up to `MOST_PATIENT`.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const MOST_PATIENT: Duration = Duration::from_secs(60);
/// The least time between two questions that tokens with unknown keys give rise to: callers can send such at will.
const LEAST_BETWEEN: Duration = Duration::from_secs(10);
/// The most sources that are asked at once.
const MAX_AT_ONCE: usize = 8;

/// Why a source has no new keys.
#[derive(Debug, thiserror::Error)]
enum KeyError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("the file cannot be read: {0}")]
    File(#[from] std::io::Error),
    #[error("what is there {0}")]
    Content(#[from] KeySetError),
}

impl KeyError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Fetch(error) => error.reason(),
            Self::File(_) => "file",
            Self::Content(_) => "no_keys",
        }
    }
}

/// What is known of a source.
#[derive(Debug)]
struct Known {
    /// When keys were had from it last.
    since: Option<SystemTime>,
    /// When it was asked last.
    last: Option<Instant>,
    /// When it is asked next.
    next: Instant,
    failures: u32,
    is_asking: bool,
}

type Outcome = (KeySource, Result<KeySet, KeyError>);

/// The task that keeps keys.
pub struct Keeper {
    snapshot: Arc<ArcSwap<Snapshot>>,
    changed: watch::Receiver<u64>,
    fetcher: Arc<Fetcher>,
    directory: PathBuf,
    metrics: Arc<Metrics>,
    known: HashMap<KeySource, Known>,
    work: JoinSet<Outcome>,
}

impl Keeper {
    /// One that keeps what it fetches in `directory`.
    pub fn new(
        (snapshot, changed): (Arc<ArcSwap<Snapshot>>, watch::Receiver<u64>),
        fetcher: Fetcher,
        directory: PathBuf,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (fetcher, known, work) = (Arc::new(fetcher), HashMap::new(), JoinSet::new());
        Self { snapshot, changed, fetcher, directory, metrics, known, work }
    }

    /// Takes what is on the disk, before any request is: files, and what servers said last.
    pub fn load_stored(&mut self) {
        let snapshot = self.snapshot.load_full();
        for (slot, _) in snapshot.token_keys.all() {
            let read = match slot.source() {
                KeySource::Inline(_) => continue,
                KeySource::File(path) => {
                    read_set(Path::new(&**path)).map(|(set, _)| (set, SystemTime::now()))
                }
                KeySource::Url(url) => read_set(&stored_at(&self.directory, url.as_str())),
            };
            let Ok((set, since)) = read else { continue };
            if age(since) < KEEP {
                slot.put(Some(Arc::new(set)));
                self.known.insert(slot.source().clone(), Known { since: Some(since), ..Known::new() });
            }
        }
    }

    /// Keeps them for as long as there are states.
    pub async fn run(mut self) {
        let asked = self.snapshot.load().token_keys.asked();
        loop {
            let next = self.begin_due();
            tokio::select! {
                changed = self.changed.changed() => if changed.is_err() { return },
                () = asked.notified() => {}
                Some(done) = self.work.join_next() => match done {
                    Ok(outcome) => self.take(outcome),
                    Err(error) => tracing::error!(%error, "fetching keys failed"),
                },
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// Begins what is due, and says when something is next.
    fn begin_due(&mut self) -> Instant {
        let (snapshot, now) = (self.snapshot.load_full(), Instant::now());
        let slots: HashMap<&KeySource, (&Arc<KeySlot>, Duration)> =
            snapshot.token_keys.all().map(|(slot, timeout)| (slot.source(), (slot, timeout))).collect();
        let gone = self.known.extract_if(|source, known| !slots.contains_key(source) && !known.is_asking);
        for (source, _) in gone {
            if let KeySource::Url(url) = &source {
                // One that never came has no file.
                let _ = std::fs::remove_file(stored_at(&self.directory, url.as_str()));
            }
        }
        let mut next = now + REREAD;
        for (source, (slot, timeout)) in slots {
            if matches!(source, KeySource::Inline(_)) {
                continue;
            }
            let known = self.known.entry(source.clone()).or_insert_with(Known::new);
            if known.is_asking {
                continue;
            }
            let due = known.due(slot.is_asked());
            if due > now {
                next = next.min(due);
                continue;
            }
            if self.work.len() >= MAX_AT_ONCE {
                // The end of one of them wakes this up.
                continue;
            }
            slot.take_asked();
            (known.is_asking, known.last) = (true, Some(now));
            let (source, fetcher) = (source.clone(), Arc::clone(&self.fetcher));
            let ranges = snapshot.mesh.config.virtual_ranges;
            self.work.spawn(ask(source, fetcher, self.directory.clone(), (ranges, timeout)));
        }
        self.count_without_keys(&snapshot);
        next
    }

    fn take(&mut self, (source, read): Outcome) {
        let Some(known) = self.known.get_mut(&source) else { return };
        let snapshot = self.snapshot.load_full();
        let slot = snapshot.token_keys.all().map(|(slot, _)| slot).find(|slot| *slot.source() == source);
        known.is_asking = false;
        let name = name_of(&source);
        match read {
            Ok(set) => {
                let before = slot.and_then(|slot| slot.keys());
                for reason in &set.left_out {
                    if before.as_ref().is_none_or(|before| !before.left_out.contains(reason)) {
                        tracing::warn!(source = name, reason, "a key of a JWK set is left out");
                    }
                }
                if known.failures > 0 || before.is_none() {
                    tracing::info!(
                        source = name,
                        keys = set.keys.len(),
                        "keys that tokens are verified with have come"
                    );
                }
                known.succeeded(&source);
                self.metrics.tokens.fetched("ok");
                if let Some(slot) = slot {
                    slot.put(Some(Arc::new(set)));
                }
            }
            Err(error) => {
                known.failed();
                self.metrics.tokens.fetched(error.reason());
                let is_over = known.since.is_none_or(|since| age(since) >= KEEP);
                if !is_over {
                    tracing::warn!(source = name, %error, "keys cannot be renewed; the last ones stay in force for a day");
                } else {
                    tracing::error!(source = name, %error, "there are no keys: tokens of this issuer are refused");
                    if let Some(slot) = slot {
                        slot.put(None);
                    }
                }
            }
        }
        self.count_without_keys(&snapshot);
    }

    fn count_without_keys(&self, snapshot: &Snapshot) {
        let without = snapshot.token_keys.all().filter(|(slot, _)| slot.keys().is_none()).count();
        self.metrics.tokens.without_keys.set(i64::try_from(without).unwrap_or(i64::MAX));
    }
}

impl Known {
    fn new() -> Self {
        Self { since: None, last: None, next: Instant::now(), failures: 0, is_asking: false }
    }

    /// When it is to be asked: a token with an unknown key brings that forward, not at will.
    fn due(&self, is_asked: bool) -> Instant {
        let at_will = self.last.filter(|_| is_asked).map(|last| last + LEAST_BETWEEN);
        at_will.map_or(self.next, |at| at.min(self.next))
    }

    fn succeeded(&mut self, source: &KeySource) {
        let often = if matches!(source, KeySource::Url(_)) { REFRESH } else { REREAD };
        let earlier = often.mul_f64(rand::random::<f64>() / 10.0);
        self.next = Instant::now() + often - earlier;
        (self.since, self.failures) = (Some(SystemTime::now()), 0);
    }

    fn failed(&mut self) {
        let patience = FIRST_RETRY.saturating_mul(1 << self.failures.min(10)).min(MOST_PATIENT);
        self.next = Instant::now() + patience.mul_f64(0.5 + rand::random::<f64>() / 2.0);
        self.failures = self.failures.saturating_add(1);
    }
}

/// Asks a source.
async fn ask(
    source: KeySource,
    fetcher: Arc<Fetcher>,
    directory: PathBuf,
    (ranges, timeout): (VirtualRanges, Duration),
) -> Outcome {
    let read = match &source {
        KeySource::Url(url) => match fetcher.fetch(url, &ranges, timeout).await {
            Ok(text) => match KeySet::parse(&text) {
                Ok(set) => {
                    store(stored_at(&directory, url.as_str()), text).await;
                    Ok(set)
                }
                Err(error) => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        },
        KeySource::File(path) => read_file(PathBuf::from(&**path)).await,
        KeySource::Inline(text) => KeySet::parse(text).map_err(KeyError::Content),
    };
    (source, read)
}

fn name_of(source: &KeySource) -> &str {
    match source {
        KeySource::Inline(_) => "inline",
        KeySource::File(path) => path,
        KeySource::Url(url) => url.as_str(),
    }
}

/// How long ago; a clock that was set back makes it no time at all.
fn age(since: SystemTime) -> Duration {
    since.elapsed().unwrap_or_default()
}

/// Where what a URL served is kept.
fn stored_at(directory: &Path, url: &str) -> PathBuf {
    let hash = digest(&SHA256, url.as_bytes());
    let name: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    directory.join(format!("{name}.json"))
}

/// Keeps what was fetched. Without a disk the keys are in force all the same.
async fn store(path: PathBuf, text: String) {
    let writing = move || {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        write_atomically(&path, text.as_bytes(), 0o644).map_err(std::io::Error::other)
    };
    match tokio::task::spawn_blocking(writing).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "keys that were fetched are not kept over a restart"),
        Err(error) => tracing::error!(%error, "keys that were fetched are not kept over a restart"),
    }
}

async fn read_file(path: PathBuf) -> Result<KeySet, KeyError> {
    let reading = tokio::task::spawn_blocking(move || read_set(&path).map(|(set, _)| set)).await;
    reading.unwrap_or_else(|error| Err(KeyError::File(std::io::Error::other(error))))
}

/// A set in a file, and when it was written.
fn read_set(path: &Path) -> Result<(KeySet, SystemTime), KeyError> {
    // What a rule names may be a pipe, whose other end never comes.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).map_err(std::io::Error::other)?;
    let file = std::fs::File::options().read(true).custom_flags(flags).open(path)?;
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(KeyError::File(std::io::Error::other("it is no file")));
    }
    let written = about.modified()?;
    let mut text = String::new();
    file.take(MAX_SET as u64 + 1).read_to_string(&mut text)?;
    Ok((KeySet::parse(&text)?, written))
}

#[cfg(test)]
mod tests;
