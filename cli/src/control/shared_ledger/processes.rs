//! Which control processes share the ledger, and which roots each trusts. Each says so below `ca/processes/` as long as it
//! runs. A root that some have and others lack would cut their hosts off from one another: a new one is made by a process that is
//! alone, and the others begin with a backup of it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use baremesh_ca::file::{PUBLIC, read, write_atomically};
use baremesh_ca::service::CaService;
use baremesh_ca::tls::Fingerprint;
use baremesh_registry::consul::client::plain_dial;
use baremesh_registry::consul::kv::When;
use baremesh_registry::consul::query::{Consistency, Read};
use baremesh_registry::consul::{Client, ConsulError, Settings};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use crate::control::Server;
use crate::output::{in_full, to_unix};

/// How often a process says that it is there.
const SAY: Duration = Duration::from_secs(15);
/// Who has said nothing for so long has ended.
const GONE: Duration = Duration::from_secs(60);
/// Who has said nothing for so long is taken out.
const FORGOTTEN: Duration = Duration::from_secs(24 * 3600);
/// How long the goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);
/// What a process is known by, in the state directory. It is in no backup: a process that begins with one is another.
const FILE: &str = "process";

/// What a process says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::control) struct Announced {
    /// Its host.
    pub(in crate::control) host: String,
    /// The fingerprints of the roots that it trusts.
    roots: Vec<String>,
    /// When it said so, in seconds since 1970.
    at: u64,
}

/// The way to what the others say.
pub(in crate::control) struct Processes {
    client: Client,
    /// Below which each has its key.
    prefix: String,
    own: String,
    host: String,
}

impl Processes {
    /// With what this process is known by, which is made where it has nothing yet.
    pub(in crate::control) fn new(settings: Settings, state: &Path) -> anyhow::Result<Self> {
        let path = state.join(FILE);
        let shown = path.display();
        let known = match read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).trim().to_owned(),
            Err(error) if error.is_missing() => {
                let made = format!("{:032x}", rand::random::<u128>());
                write_atomically(&path, made.as_bytes(), PUBLIC)?;
                made
            }
            Err(error) => return Err(error).context("what this control process is known by"),
        };
        if known.len() != 32 || !known.bytes().all(|b| b.is_ascii_hexdigit()) {
            bail!("{shown} holds no name of a process: delete it, and another one is made");
        }
        let prefix = format!("{}ca/processes/", settings.prefix);
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Ok(Self {
            client: Client::new(settings, plain_dial()),
            own: format!("{prefix}{known}"),
            prefix,
            host,
        })
    }

    /// Begins to share, unless the mesh is under a root that this process does not have.
    pub(in crate::control) async fn join(&self, ca: &Arc<CaService>) -> anyhow::Result<()> {
        // Said first: of two that begin at once, one sees the other.
        self.announce(ca).await?;
        if let Some(lacking) = self.lacking(ca).await? {
            self.leave().await;
            bail!(lacking);
        }
        Ok(())
    }

    /// Says that this process is there, and which roots it trusts.
    pub(in crate::control) async fn announce(&self, ca: &CaService) -> anyhow::Result<()> {
        let (host, at) = (self.host.clone(), to_unix(SystemTime::now()));
        let said = Announced { host, roots: roots_of(ca)?, at };
        let value = serde_json::to_vec(&said).expect("plain fields");
        self.client.put(&self.own, value, When::Always).await?;
        Ok(())
    }

    /// What others say that are there. Who ended long ago is taken out.
    pub(in crate::control) async fn others(&self) -> Result<Vec<Announced>, ConsulError> {
        let now = to_unix(SystemTime::now());
        let mut others = Vec::new();
        let all = self.client.list(&self.prefix, Read::now(Consistency::Consistent)).await?.value;
        for pair in all.into_iter().filter(|pair| pair.key != self.own) {
            // What cannot be read is of somebody who is there all the same.
            let said = serde_json::from_slice(&pair.value).unwrap_or_else(|_| Announced {
                host: pair.key.clone(),
                roots: Vec::new(),
                at: now,
            });
            match now.saturating_sub(said.at) {
                silent if silent < GONE.as_secs() => others.push(said),
                silent if silent < FORGOTTEN.as_secs() => {}
                _ => _ = self.client.delete(&pair.key, When::Unchanged(pair.modified)).await?,
            }
        }
        Ok(others)
    }

    /// Says that it ends.
    pub(in crate::control) async fn leave(&self) {
        // Who cannot say so is taken for gone in a minute.
        match timeout(GOODBYE, self.client.delete(&self.own, When::Always)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "Consul does not hear that this control process ends"),
            Err(_) => tracing::debug!("Consul does not hear in time that this control process ends"),
        }
    }

    /// Why this process does not go with the others, where the mesh has a root that it lacks.
    async fn lacking(&self, ca: &Arc<CaService>) -> anyhow::Result<Option<String>> {
        let asked = ca.clone();
        let latest = tokio::task::spawn_blocking(move || asked.ledger().latest_root()).await??;
        Ok(lacking(&roots_of(ca)?, latest.as_deref(), &self.others().await?))
    }
}

fn roots_of(ca: &CaService) -> anyhow::Result<Vec<String>> {
    Ok(ca.bundle()?.roots().iter().map(|root| Fingerprint::of(root).to_string()).collect())
}

/// What is to be said to a process with the roots `own`, where the latest certificate of the ledger leads to `latest`.
fn lacking(own: &[String], latest: Option<&str>, others: &[Announced]) -> Option<String> {
    let way_out = "start it from a `baremesh backup` of one that has it (docs/shared-ledger.md)";
    if let Some(root) = latest.filter(|root| !own.iter().any(|has| has == root)) {
        return Some(format!(
            "the mesh is signed under the root {root}, which this process lacks: {way_out}"
        ));
    }
    let lacks = |other: &Announced| other.roots.iter().find(|root| !own.contains(*root)).cloned();
    let (host, root) = others.iter().find_map(|other| Some((other.host.clone(), lacks(other)?)))?;
    Some(format!("the control process on {host} trusts the root {root}, which this one lacks: {way_out}"))
}

/// Says that this process is there, for as long as it serves, and looks whether it goes with the others still.
pub(in crate::control) async fn keep(processes: Arc<Processes>, server: Arc<Server>) {
    let mut said = None;
    loop {
        sleep(SAY).await;
        let looked = match processes.announce(&server.ca).await {
            Ok(()) => processes.lacking(&server.ca).await,
            Err(error) => Err(error),
        };
        let found = looked.unwrap_or_else(|error| Some(in_full(&error)));
        if let Some(found) = found.as_ref().filter(|found| said.as_ref() != Some(*found)) {
            tracing::error!(found, "what other control processes say of the roots");
        }
        said = found;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_lacks_a_root_of_the_mesh_does_not_share_its_ledger() {
        let other = |roots: &[&str]| Announced {
            host: "b".to_owned(),
            roots: roots.iter().map(ToString::to_string).collect(),
            at: 0,
        };
        let check = |own: &[&str], latest: Option<&str>, others: &[Announced], expected: Option<&str>| {
            let own: Vec<_> = own.iter().map(ToString::to_string).collect();
            let said = lacking(&own, latest, others);
            assert_eq!(said.is_some(), expected.is_some(), "{own:?} {latest:?} {others:?}: {said:?}");
            if let (Some(said), Some(part)) = (said, expected) {
                assert!(said.contains(part) && said.contains("backup"), "{said}");
            }
        };
        check(&["x"], None, &[], None);
        check(&["x"], Some("x"), &[other(&["x"])], None);
        check(&["x", "y"], Some("x"), &[other(&["x"])], None);
        check(&["x"], Some("y"), &[], Some("signed under the root y"));
        check(&["x"], Some("x"), &[other(&["x"]), other(&["x", "y"])], Some("on b trusts the root y"));
    }
}
