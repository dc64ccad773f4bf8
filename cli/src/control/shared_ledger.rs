//! The ledger's log in Consul's key-value store, where several control processes share it, and what one of them does when another
//! has changed something.

use std::future::Future;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use anyhow::Context;
use baremesh_ca::ledger::{Appended, Away, Head, Log};
use baremesh_registry::consul::client::plain_dial;
use baremesh_registry::consul::kv::{MAX_OPERATIONS, Operation, When};
use baremesh_registry::consul::query::{Consistency, Read};
use baremesh_registry::consul::{Client, ConsulError, Settings};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// Who shares it, and which roots each trusts.
pub(super) mod processes;

use super::{Server, trust};
use crate::output::in_full;

/// How long the store may take for one thing. A transaction is open for two of them at most, which is less than others wait for
/// the file (`BUSY_TIMEOUT`).
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of a value: Consul's bound, 512 KiB, less some.
const PART: usize = 480 << 10;
/// Bytes of an entry that is written in one transaction with the head: Consul's bound of one, where values are in base64.
const MAX_WHOLE: usize = 360 << 10;
/// What Consul says of a key that was changed, or is there already.
const STALE: &str = "index is stale";
/// What a value begins with that is an entry, or names the parts of one that is larger than a value.
const WHOLE: u8 = b'E';
const PARTS: u8 = b'P';
/// How often it is looked whether another process has changed something.
const LOOK: Duration = Duration::from_millis(500);

/// The part of a configuration file that is read.
#[derive(Deserialize)]
struct Configuration {
    consul: Settings,
}

/// Where Consul is, from a file with the table `[consul]`.
pub fn settings(file: &Path) -> anyhow::Result<Settings> {
    let shown = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("{shown} cannot be read"))?;
    let read: Configuration =
        toml::from_str(&text).with_context(|| format!("{shown} cannot be understood"))?;
    Ok(read.consul)
}

type Work = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// The log below `ca/` of Consul's key-value store. Calls block; a thread of its own speaks to Consul, so that they may come from
/// anywhere.
pub struct ConsulLog {
    client: Client,
    prefix: String,
    working: mpsc::UnboundedSender<Work>,
}

impl ConsulLog {
    /// Starts the thread, which ends with this.
    pub fn new(settings: Settings) -> anyhow::Result<Self> {
        let prefix = format!("{}ca/", settings.prefix);
        let client = Client::new(settings, plain_dial());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("the runtime does not start")?;
        // One call for each thread that waits for one.
        let (working, mut asked) = mpsc::unbounded_channel::<Work>();
        let run = move || {
            runtime.block_on(async {
                while let Some(work) = asked.recv().await {
                    work.await;
                }
            });
        };
        let name = "ledger".to_owned();
        std::thread::Builder::new().name(name).spawn(run).context("no thread for the shared ledger")?;
        Ok(Self { client, prefix, working })
    }

    fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, ConsulError>> + Send + 'static,
    ) -> Result<T, Away> {
        let (answer, answered) = sync_channel(1);
        let work = async move {
            // Who does not wait any more needs no answer.
            let _ = answer.send(timeout(PATIENCE, work).await);
        };
        let gone = || Away("the thread that asks Consul has ended".to_owned());
        self.working.send(Box::pin(work)).map_err(|_| gone())?;
        match answered.recv() {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(error))) => Err(Away(error.to_string())),
            Ok(Err(_)) => Err(Away(format!("Consul took more than {} s", PATIENCE.as_secs()))),
            Err(_) => Err(gone()),
        }
    }

    fn entry(&self, position: u64) -> String {
        format!("{}log/{position:020}", self.prefix)
    }

    fn head_key(&self) -> String {
        format!("{}head", self.prefix)
    }

    /// Parts of the entry that somebody wanted to append there.
    fn parts(&self, position: u64) -> String {
        format!("{}parts/{position:020}", self.prefix)
    }
}

impl Log for ConsulLog {
    fn read(&self, position: u64) -> Result<Option<Vec<u8>>, Away> {
        let (client, key) = (self.client.clone(), self.entry(position));
        self.wait(async move {
            let now = Read::now(Consistency::Consistent);
            let Some(pair) = client.get(&key, now).await?.value else { return Ok(None) };
            match pair.value.split_first() {
                Some((&WHOLE, entry)) => Ok(Some(entry.to_vec())),
                Some((&PARTS, keys)) => {
                    let mut entry = Vec::new();
                    for key in String::from_utf8_lossy(keys).lines() {
                        // What is missing is no entry, as what somebody else wrote is none.
                        let part = client.get(key, now).await?.value;
                        entry.extend(part.map(|part| part.value).unwrap_or_default());
                    }
                    Ok(Some(entry))
                }
                _ => Ok(Some(pair.value)),
            }
        })
    }

    fn head(&self) -> Result<Option<Head>, Away> {
        let (client, key) = (self.client.clone(), self.head_key());
        self.wait(async move {
            let pair = client.get(&key, Read::now(Consistency::Consistent)).await?.value;
            Ok(pair.map(|pair| Head { bytes: pair.value, modified: pair.modified }))
        })
    }

    fn append(&self, position: u64, entry: &[u8], head: &[u8], unchanged: u64) -> Result<Appended, Away> {
        let (client, key) = (self.client.clone(), self.entry(position));
        let when = if unchanged == 0 { When::Absent } else { When::Unchanged(unchanged) };
        let head = Operation::Put { key: self.head_key(), value: head.to_vec(), when };
        let parts = format!("{}-{:032x}/", self.parts(position), rand::random::<u128>());
        let entry = entry.to_vec();
        let done = self.wait(async move {
            let value = if entry.len() < MAX_WHOLE {
                [&[WHOLE], &entry[..]].concat()
            } else {
                let mut keys = vec![PARTS];
                for (index, part) in entry.chunks(PART).enumerate() {
                    let key = format!("{parts}{index:04}");
                    client.put(&key, part.to_vec(), When::Always).await?;
                    keys.extend(format!("{key}\n").into_bytes());
                }
                keys
            };
            client.transact_at(&[Operation::Put { key, value, when: When::Absent }, head]).await
        })?;
        match done {
            Ok(modified) => Ok(Appended::Done { modified }),
            Err(faults) if faults.iter().all(|(_, what)| what.contains(STALE)) => Ok(Appended::Taken),
            Err(faults) => Err(Away(faults.into_iter().map(|(_, what)| what).collect::<Vec<_>>().join("; "))),
        }
    }

    fn forget(&self, positions: Range<u64>) {
        let (client, end) = (self.client.clone(), self.parts(positions.end));
        let (all_parts, entries): (String, Vec<_>) =
            (format!("{}parts/", self.prefix), positions.map(|position| self.entry(position)).collect());
        let forgetting = self.wait(async move {
            let parts = client.keys(&all_parts, Read::now(Consistency::Leader)).await?.value;
            let gone: Vec<String> =
                entries.into_iter().chain(parts.into_iter().filter(|key| *key < end)).collect();
            for some in gone.chunks(MAX_OPERATIONS) {
                let delete = |key: &String| Operation::Delete { key: key.clone(), when: When::Always };
                client.transact(&some.iter().map(delete).collect::<Vec<_>>()).await?;
            }
            Ok(())
        });
        if let Err(away) = forgetting {
            tracing::warn!(%away, "old entries of the shared ledger are not deleted; they do no harm");
        }
    }
}

/// Takes up what other control processes changed: who has joined, who was shut out, what is revoked; for as long as the server
/// runs.
pub(super) async fn follow(server: Arc<Server>) {
    let (mut seen, mut said) = (None, None);
    loop {
        sleep(LOOK).await;
        let ca = server.ca.clone();
        let position = tokio::task::spawn_blocking(move || ca.ledger().position()).await;
        let taken_up = match position {
            Ok(Ok(position)) if seen == Some(position) => Ok(()),
            Ok(Ok(position)) => take_up(&server).await.map(|()| seen = Some(position)),
            Ok(Err(error)) => Err(error.into()),
            Err(error) => Err(error.into()),
        };
        match (taken_up.map_err(|error| in_full(&error)), &said) {
            (Err(error), Some(before)) if error == *before => {}
            (Err(error), _) => {
                tracing::error!(
                    error,
                    "what other control processes change is not taken up, and nothing is signed"
                );
                said = Some(error);
            }
            (Ok(()), Some(_)) => {
                tracing::info!("the shared ledger is in reach again");
                said = None;
            }
            (Ok(()), None) => {}
        }
    }
}

async fn take_up(server: &Arc<Server>) -> anyhow::Result<()> {
    let refreshing = server.clone();
    tokio::task::spawn_blocking(move || refreshing.grants.refresh()).await??;
    // Whoever is connected is looked at again: it may have been shut out elsewhere.
    server.membership.send_modify(|generation| *generation += 1);
    trust::publish(server).await
}
