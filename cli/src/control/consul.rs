//! The control server with Consul: its resources are in the key-value store, written by compare-and-set. A directory
//! mirrors them, from which everything else goes on as with files: a control server that starts while Consul is away
//! serves what was in force. It says there what is trusted, and assigns virtual addresses.

/// The mirror kept in step.
mod mirroring;
/// What is trusted, for agents to read.
mod statements;
/// Virtual addresses.
mod addresses;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use baremesh_agent::config::Directories;
use baremesh_registry::consul::client::plain_dial;
use baremesh_registry::consul::resources::{ChangeError, Changes, ResourceStore, Set};
use baremesh_registry::consul::{Client, Settings};
use baremesh_registry::diagnostic::{Code, Diagnostic};
use baremesh_registry::files::{
    Change, Documents, Effect, ResourceDirectory, Restoring, document_after, document_key, set_of,
};
use baremesh_registry::set::Refused;
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Server;

/// The configuration file of the control server.
pub const FILE: &str = "control.toml";
/// The mirror, in the state directory.
const MIRROR: &str = "consul-registry";
/// The longest wait for something new in Consul.
const WAIT: Duration = Duration::from_secs(60);
/// Where findings about Consul are said to stand.
const IN_CONSUL: &str = "Consul";

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawConfig {
    registry: RawRegistry,
    consul: Option<Settings>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawRegistry {
    source: RawSource,
}

#[derive(Deserialize, Default, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum RawSource {
    #[default]
    Files,
    Consul,
}

/// What `control.toml` says of Consul; nothing where the registry is a directory of files.
pub fn settings(config: &Path) -> anyhow::Result<Option<Settings>> {
    let path = config.join(FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
    };
    settings_of(&text).with_context(|| path.display().to_string())
}

/// The same of a file's text.
pub fn settings_of(text: &str) -> anyhow::Result<Option<Settings>> {
    let raw: RawConfig = toml::from_str(text)?;
    match (raw.registry.source, raw.consul) {
        (RawSource::Files, None) => Ok(None),
        (RawSource::Files, Some(_)) => {
            bail!("[consul] is there, and [registry] does not say source = \"consul\"")
        }
        (RawSource::Consul, settings) => {
            let settings = settings.unwrap_or_default();
            if !settings.plain.is_empty() {
                bail!("`plain` is for agents: write it into their agent.toml");
            }
            Ok(Some(settings))
        }
    }
}

/// Parts of the work, of each of which the last failure is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Resources,
    Statements,
    Addresses,
}

/// The way to Consul, and the mirror.
pub(super) struct ConsulSide {
    client: Client,
    store: ResourceStore,
    directory: ResourceDirectory,
    /// Held while the mirror is made to hold what is in Consul.
    mirroring: Mutex<()>,
    failures: Mutex<BTreeMap<Part, String>>,
    /// Goes up when Consul had lost what this server writes there, so that all of it is written again.
    written_anew: watch::Sender<u64>,
}

impl ConsulSide {
    /// Makes the mirror hold what is in Consul. Where there is nothing yet, what the mirror had, or else the directory of
    /// files that `init` made, is written there. Where Consul is away, the mirror stands for it.
    pub(super) async fn begin(settings: Settings, directories: &Directories) -> anyhow::Result<Arc<Self>> {
        let path = directories.state.join(MIRROR);
        super::make_directory(&path, 0o755)?;
        let directory = ResourceDirectory::new(&path);
        let client = Client::new(settings, plain_dial());
        let store = ResourceStore::new(client.clone());
        let side = Self {
            client,
            store,
            directory,
            mirroring: Mutex::default(),
            failures: Mutex::default(),
            written_anew: watch::Sender::new(0),
        };
        match Box::pin(side.store.read(&Set::default())).await {
            Ok(Some(set)) => {
                side.directory.mirror(&set.values).map_err(|refused| super::findings(&refused))?;
            }
            Ok(None) => Box::pin(side.seed(&directories.registry())).await?,
            Err(error) => {
                let mirrored = side.directory.documents().map_err(|refused| super::findings(&refused))?;
                if mirrored.is_empty() {
                    return Err(error).context("there are no resources to serve yet");
                }
                tracing::error!(%error, "Consul is not in reach; what was in force before is served");
                side.note(Part::Resources, Some(error.to_string()));
            }
        }
        Ok(Arc::new(side))
    }

    async fn seed(&self, files: &Path) -> anyhow::Result<()> {
        let refused = |refused: Refused| super::findings(&refused);
        let mut documents = self.directory.documents().map_err(refused)?;
        if documents.is_empty() {
            documents = ResourceDirectory::new(files).documents().map_err(refused)?;
        }
        Box::pin(self.write_all(documents)).await
    }

    /// Writes a whole set where there is none, and mirrors what is there then.
    async fn write_all(&self, documents: Documents) -> anyhow::Result<()> {
        let refused = |refused: Refused| super::findings(&refused);
        set_of(&documents).map_err(refused)?;
        tracing::info!(resources = documents.len(), "there are no resources in Consul: these are written");
        let all: Changes = documents.into_iter().map(|(key, value)| (key, Some(value))).collect();
        let written = self.store.change(|set| {
            // Another control server may have been faster: then its resources are the ones.
            let changes = if set.version == 0 { all.clone() } else { Changes::new() };
            Ok::<_, std::convert::Infallible>((changes, ()))
        });
        let written = Box::pin(written).await?;
        let _turn = self.mirroring.lock().unwrap_or_else(PoisonError::into_inner);
        self.directory.mirror(&written.set.values).map_err(refused)
    }

    /// The mirror.
    pub(super) fn directory(&self) -> ResourceDirectory {
        self.directory.clone()
    }

    /// Puts changes that were planned into Consul, and then into the mirror. What others wrote meanwhile stays, if the
    /// whole holds together. Blocks.
    pub(super) fn commit(&self, runtime: &Handle, changes: &[Change]) -> Result<(), Refused> {
        let made = || changes.iter().filter(|change| change.effect != Effect::Unchanged);
        let wanted: Changes =
            made().map(|change| (document_key(&change.id), document_after(change))).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let _turn = self.mirroring.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = |set: &Set| {
            let mut resulting: Documents = set.values.clone();
            for (key, value) in &wanted {
                match value {
                    Some(value) => _ = resulting.insert(key.clone(), value.clone()),
                    None => _ = resulting.remove(key),
                }
            }
            set_of(&resulting).map(|_| (wanted.clone(), ()))
        };
        runtime.block_on(Box::pin(self.store.change(plan))).map_err(|error| match error {
            ChangeError::Refused(refused) => refused,
            other => {
                let message = format!("nothing was changed: {other}");
                Refused(vec![Diagnostic::about_file(IN_CONSUL, Code::Unreadable, message)])
            }
        })?;
        // The texts as they were written, comments and all; that they are not on this disk is mended by whoever mirrors.
        let below = |change: &Change| {
            let file = change.file.strip_prefix(self.directory.path()).unwrap_or(&change.file);
            (file.to_owned(), change.after.clone())
        };
        let texts = made().map(below).collect();
        if let Err(refused) = self.directory.restore::<Refused>(&texts, Restoring::Write, |_| Ok(())) {
            tracing::error!(%refused, "a change is in Consul, and not yet in the mirror");
        }
        Ok(())
    }

    /// Starts what keeps everything in step.
    pub(super) fn keep(self: &Arc<Self>, server: &Arc<Server>, tasks: &mut JoinSet<()>) {
        tasks.spawn(mirroring::keep(self.clone()));
        tasks.spawn(statements::keep(self.clone(), server.clone()));
        tasks.spawn(addresses::keep(self.clone(), server.clone()));
    }

    /// What an operator ought to look at.
    pub(super) fn warnings(&self) -> Vec<String> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let words = |part: &Part| match part {
            Part::Resources => "the resources in Consul are not followed",
            Part::Statements => "what is trusted and revoked does not reach agents by way of Consul",
            Part::Addresses => "virtual addresses are not assigned in Consul",
        };
        failures.iter().map(|(part, reason)| format!("{}: {reason}", words(part))).collect()
    }

    fn note(&self, part: Part, failure: Option<String>) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match failure {
            None => _ = failures.remove(&part),
            Some(reason) => {
                if failures.get(&part) != Some(&reason) {
                    tracing::warn!(?part, reason, "Consul");
                }
                failures.insert(part, reason);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_says_something_is_not_passed_over() {
        let place = tempfile::tempdir().expect("a directory");
        let check = |text: &str, expected: Result<bool, &str>| {
            std::fs::write(place.path().join(FILE), text).expect("written");
            match (settings(place.path()), expected) {
                (Ok(read), Ok(consul)) => assert_eq!(read.is_some(), consul, "{text}"),
                (Err(error), Err(part)) => assert!(format!("{error:#}").contains(part), "{text}: {error:#}"),
                (read, _) => panic!("{text}: {read:?}"),
            }
        };
        assert!(settings(place.path()).expect("nothing").is_none());
        check("", Ok(false));
        check("[registry]\nsource = \"consul\"\n", Ok(true));
        check("[registry]\nsource = \"consul\"\n[consul]\nprefix = \"x\"\n", Ok(true));
        check("[consul]\nprefix = \"x\"\n", Err("source"));
        check("[registry]\nsource = \"etcd\"\n", Err("etcd"));
        check("[registry]\nsource = \"consul\"\n[consul]\nplain = [\"a\"]\n", Err("agent.toml"));
        check("[consul]\naddresses = [\"x\"]\n", Err("write it as"));
    }
}
