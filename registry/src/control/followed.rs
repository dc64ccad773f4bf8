//! What an agent holds of the mesh. It grows by differences, each applied whole once its marker came and the
//! digest agrees. The last state that could be put in force is kept in one file, from which an agent starts when
//! no control server is in reach.

/// A difference as it comes.
mod staged;
/// States that are handed over whole.
mod whole;

pub(super) use staged::Staged;
pub use whole::WholeError;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use baremesh_ca::file::{FileError, SECRET, write_atomically};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::watch;

use super::digest::Digest;
use super::message::{Complete, Outcome, Resume};
use super::subscription::Subscription;

/// Most bytes of a state, in memory and in its file.
pub const MAX_STATE: usize = 512 << 20;
/// Most entries of a state: every service and policy of the mesh is one, and every endpoint that a host has asked for.
pub const MAX_ENTRIES: usize = 250_000;
/// The least time between two writes of the state's file,
pub const SAVE_GAP: Duration = Duration::from_secs(2);
/// and for each MiB of a state so much more.
const SAVE_GAP_A_MIB: Duration = Duration::from_secs(1);
/// So many times sooner is a state written that has changed in more than where endpoints are.
const SOONER: u32 = 20;
/// Version of the file where it holds all endpoints,
const FORMAT: u32 = 1;
/// and where it does not: a program that does not know where the others are must not start from it.
const FORMAT_OF_SOME: u32 = 2;

/// Why a difference was not applied or a file not used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages say what each is.
pub enum FollowedError {
    #[error("the control server's difference does not lead to its digest: everything is asked for anew")]
    Digest,
    #[error("the control server sent {key}, which cannot be read: {reason}")]
    Value { key: String, reason: String },
    #[error(
        "the mesh's state is more than {} MiB, and an agent holds no more: split the mesh, or remove what nobody needs",
        MAX_STATE >> 20
    )]
    TooLarge,
    #[error(
        "more than {MAX_ENTRIES} services, policies and endpoints were sent, and an agent holds no more: split the mesh, or \
         remove what nobody needs"
    )]
    TooMany,
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Write(#[from] FileError),
    #[error("{path} is damaged ({reason}) and is not used: the agent needs the control server to start")]
    Damaged { path: PathBuf, reason: String },
}

/// The connection to the control server, for those who watch it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Whether a connection is open and was welcomed.
    pub connected: bool,
    /// The control server's version.
    pub server_version: String,
    /// The version that is in force.
    pub version: u64,
    /// Why a newer version is not in force.
    pub nack: Option<String>,
    /// Why the state in force is not on disk.
    pub unsaved: Option<String>,
    /// What became of the registrations; `None` until the server has answered.
    pub registrations: Option<Vec<Outcome>>,
}

/// One entry of a state: a value as it was sent. Whoever keeps what it comes to sees by the pointer that it is the same still.
#[derive(Debug)]
pub struct Entry {
    text: Box<RawValue>,
    digest: Digest,
}

/// The entries of a state by their keys.
pub type Entries = BTreeMap<String, Arc<Entry>>;

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.text.get() == other.text.get()
    }
}

impl Entry {
    /// The entry of a text. Fails where it nests too deep to be read.
    fn new(key: &str, text: Box<RawValue>) -> Result<Self, serde_json::Error> {
        serde_json::from_str::<Value>(text.get())?;
        Ok(Self { digest: Digest::of(key, text.get()), text })
    }

    /// The entry of a value.
    pub fn of(key: &str, value: &Value) -> Self {
        let text = serde_json::value::to_raw_value(value).expect("a value is JSON");
        Self { digest: Digest::of(key, text.get()), text }
    }

    /// The value, read from its text.
    pub fn value(&self) -> Value {
        serde_json::from_str(self.text.get()).expect("it was read before it became an entry")
    }
}

/// What a difference changed, as it was before: the entries, and `None` for those that were not there.
#[derive(Debug)]
pub(super) struct Former {
    entries: BTreeMap<String, Option<Arc<Entry>>>,
    mark: Mark,
}

/// What a state is of.
#[derive(Debug, Clone, Default)]
struct Mark {
    epoch: u64,
    version: u64,
    subscription: Subscription,
}

/// The file's content after its first line.
#[derive(Deserialize)]
struct Body {
    epoch: u64,
    version: u64,
    subscription: Vec<String>,
    entries: BTreeMap<String, Box<RawValue>>,
}

/// `Body` as it is written.
#[derive(Serialize)]
struct BodyRef<'a> {
    epoch: u64,
    version: u64,
    subscription: Vec<String>,
    entries: BTreeMap<&'a str, &'a RawValue>,
}

/// The file's first line.
#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    sha256: String,
}

/// What an agent holds of the mesh, between and during connections. That is what it received last, which may
/// have been refused when it was to be put in force; the file always holds what was in force last.
pub struct Followed {
    entries: Entries,
    digest: Digest,
    size: usize,
    mark: Mark,
    /// Where the state in force differs, while what was received last is not in force.
    former: Option<Former>,
    resumable: bool,
    pub(super) published: bool,
    pub(super) link: watch::Sender<Link>,
    path: Option<PathBuf>,
    /// The newest save that was begun, and the newest that was written.
    saves: u64,
    written: Arc<Mutex<u64>>,
}

impl Followed {
    /// Nothing yet; what comes is kept in the file, where there is one.
    pub fn new(path: Option<PathBuf>) -> Self {
        Self {
            entries: BTreeMap::new(),
            digest: Digest::default(),
            size: 0,
            mark: Mark::default(),
            former: None,
            resumable: false,
            published: false,
            link: watch::Sender::new(Link::default()),
            path,
            saves: 0,
            written: Arc::default(),
        }
    }

    /// What the file holds, or nothing when there is none. A file that is not whole is refused.
    pub fn load(path: &Path) -> Result<Self, FollowedError> {
        let mut followed = Self::new(Some(path.to_owned()));
        let failed = |source| FollowedError::File { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        match File::open(path) {
            Ok(file) => file.take(MAX_STATE as u64 + 1).read_to_end(&mut bytes).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(followed),
            Err(error) => return Err(failed(error)),
        };
        let damaged = |reason: String| FollowedError::Damaged { path: path.to_owned(), reason };
        let body = decode(&bytes).map_err(damaged)?;
        for (key, text) in body.entries {
            let entry = Entry::new(&key, text).map_err(|error| damaged(format!("{key}: {error}")))?;
            followed.insert(key, entry);
        }
        let subscription = Subscription::read(&body.subscription)
            .ok_or_else(|| damaged("its subscription names what is no service".to_owned()))?;
        followed.mark = Mark { epoch: body.epoch, version: body.version, subscription };
        followed.resumable = true;
        Ok(followed)
    }

    /// The resources by key, as received last; after `load`, those that were in force last. Empty before the
    /// first state.
    pub fn entries(&self) -> &Entries {
        &self.entries
    }

    /// The values of the entries, each read from its text.
    pub fn values(&self) -> BTreeMap<String, Value> {
        self.entries.iter().map(|(key, entry)| (key.clone(), entry.value())).collect()
    }

    /// The version that `entries` are of; 0 before the first state.
    pub fn version(&self) -> u64 {
        self.mark.version
    }

    /// Follows the connection's condition.
    pub fn link(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }

    pub(super) fn resume(&self, wanted: &Subscription) -> Option<Resume> {
        let differs = self.mark.subscription != *wanted;
        self.resumable.then(|| Resume {
            epoch: self.mark.epoch,
            version: self.mark.version,
            digest: self.digest.to_string(),
            subscribe: differs.then(|| self.mark.subscription.written()),
        })
    }

    /// Applies a difference, whole or not at all. Returns what leads back.
    pub(super) fn apply(
        &mut self,
        staged: Staged,
        complete: &Complete,
        epoch: u64,
        subscription: &Subscription,
    ) -> Result<Former, FollowedError> {
        let mut parsed = BTreeMap::new();
        let mut digest = if complete.full { Digest::default() } else { self.digest };
        for (key, change) in staged.changes {
            if !complete.full
                && let Some(before) = self.entries.get(&key)
            {
                digest = digest.minus(before.digest);
            }
            let change = match change {
                Some(text) => {
                    let reason = |error: serde_json::Error| error.to_string();
                    let entry = Entry::new(&key, text)
                        .map_err(|e| FollowedError::Value { key: key.clone(), reason: reason(e) })?;
                    digest = digest.plus(entry.digest);
                    Some(entry)
                }
                None => None,
            };
            parsed.insert(key, change);
        }
        if digest.to_string() != complete.digest {
            self.resumable = false;
            return Err(FollowedError::Digest);
        }
        let before = if complete.full { 0 } else { self.size };
        if before + staged.size > MAX_STATE {
            return Err(FollowedError::TooLarge);
        }
        if self.entries_after(&parsed, complete.full) > MAX_ENTRIES {
            return Err(FollowedError::TooMany);
        }
        let mut former = BTreeMap::new();
        if complete.full {
            let entries = std::mem::take(&mut self.entries).into_iter();
            former.extend(entries.map(|(key, entry)| (key, Some(entry))));
            (self.digest, self.size) = (Digest::default(), 0);
        }
        for (key, change) in parsed {
            let before = self.remove(&key);
            former.entry(key.clone()).or_insert(before);
            if let Some(entry) = change {
                self.insert(key, entry);
            }
        }
        let mark = Mark { epoch, version: complete.version, subscription: subscription.clone() };
        self.resumable = true;
        Ok(Former { entries: former, mark: std::mem::replace(&mut self.mark, mark) })
    }

    /// How many entries there are once these changes are made.
    fn entries_after<T>(&self, changes: &BTreeMap<String, Option<T>>, full: bool) -> usize {
        let came = changes
            .iter()
            .filter(|(key, change)| change.is_some() && (full || !self.entries.contains_key(key.as_str())));
        let went = changes
            .iter()
            .filter(|(key, change)| change.is_none() && !full && self.entries.contains_key(key.as_str()));
        let before = if full { 0 } else { self.entries.len() };
        before + came.count() - went.count()
    }

    /// Notes that what was received is in force.
    pub(super) fn accepted(&mut self) {
        (self.former, self.published) = (None, true);
    }

    /// Notes that what was received is not in force: the state in force is what `former` leads back to.
    pub(super) fn refused(&mut self, former: Former) {
        self.published = false;
        match &mut self.former {
            // What was refused before led back to the state in force already.
            Some(refused) => former.entries.into_iter().for_each(|(key, entry)| {
                refused.entries.entry(key).or_insert(entry);
            }),
            None => self.former = Some(former),
        }
    }

    fn insert(&mut self, key: String, entry: Entry) {
        self.digest = self.digest.plus(entry.digest);
        self.size += key.len() + entry.text.get().len();
        self.entries.insert(key, Arc::new(entry));
    }

    fn remove(&mut self, key: &str) -> Option<Arc<Entry>> {
        let entry = self.entries.remove(key)?;
        self.digest = self.digest.minus(entry.digest);
        self.size -= key.len() + entry.text.get().len();
        Some(entry)
    }

    /// The least time between two writes of the file: longer for a large state, which is written whole, and shorter after a change
    /// of more than endpoints. People make those, and seldom; an agent that is killed is to begin with the policy that was in force.
    pub(super) fn save_gap(&self, is_about_more_than_endpoints: bool) -> Duration {
        let gap = SAVE_GAP + SAVE_GAP_A_MIB * u32::try_from(self.size >> 20).unwrap_or(u32::MAX);
        if is_about_more_than_endpoints { gap / SOONER } else { gap }
    }

    /// What writes the state to its file, on a thread that may block. `None` without a file.
    pub(super) fn save(&mut self) -> Option<impl FnOnce() -> Result<(), FollowedError> + Send + 'static> {
        let path = self.path.clone()?;
        let bytes = self.encode();
        self.saves += 1;
        let (number, written) = (self.saves, self.written.clone());
        Some(move || {
            // One at a time, and an older state never over a newer one.
            let mut newest = written.lock().unwrap_or_else(PoisonError::into_inner);
            if number > *newest {
                write_atomically(&path, &bytes, SECRET)?;
                *newest = number;
            }
            Ok(())
        })
    }

    fn encode(&self) -> Vec<u8> {
        let mut entries: BTreeMap<&str, &RawValue> =
            self.entries.iter().map(|(key, entry)| (key.as_str(), &*entry.text)).collect();
        for (key, entry) in self.former.iter().flat_map(|former| &former.entries) {
            match entry {
                Some(entry) => entries.insert(key, &*entry.text),
                None => entries.remove(key.as_str()),
            };
        }
        let mark = self.former.as_ref().map_or(&self.mark, |former| &former.mark);
        let (epoch, version) = (mark.epoch, mark.version);
        let body = BodyRef { epoch, version, subscription: mark.subscription.written(), entries };
        let body = serde_json::to_vec(&body).expect("text keys and values that were JSON");
        let format = if mark.subscription == Subscription::All { FORMAT } else { FORMAT_OF_SOME };
        let header = Header { format, sha256: Digest::of_bytes(&body).to_string() };
        let mut bytes = serde_json::to_vec(&header).expect("plain fields");
        bytes.push(b'\n');
        bytes.extend(body);
        bytes
    }
}

fn decode(bytes: &[u8]) -> Result<Body, String> {
    if bytes.len() > MAX_STATE {
        return Err(format!("larger than {MAX_STATE} bytes"));
    }
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or("it has no first line")?;
    let header: Header =
        serde_json::from_slice(&bytes[..end]).map_err(|error| format!("its first line: {error}"))?;
    if ![FORMAT, FORMAT_OF_SOME].contains(&header.format) {
        return Err(format!(
            "its format is {}, this program knows {FORMAT} and {FORMAT_OF_SOME}",
            header.format
        ));
    }
    let body = &bytes[end + 1..];
    if Digest::of_bytes(body).to_string() != header.sha256 {
        return Err("its checksum does not agree".to_owned());
    }
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
