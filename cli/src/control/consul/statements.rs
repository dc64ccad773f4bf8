//! What is trusted and what is revoked, for agents to read in Consul: the same that others are pushed.

use std::collections::BTreeMap;
use std::sync::Arc;

use baremesh_ca::revocation::Revoked;
use baremesh_registry::consul::ConsulError;
use baremesh_registry::consul::kv::When;
use baremesh_registry::consul::query::{Consistency, Read};
use baremesh_registry::control::client::backoff;
use baremesh_registry::control::{FEDERATED, REVOKED, ROOTS, STATEMENT_PEM};
use serde_json::Value;
use tokio::time::sleep;

use super::{ConsulSide, Part};
use crate::control::Server;

/// What is said where no other trust domain is trusted: an agent forgets nothing for want of an answer.
const NO_FEDERATION: &str = "{}";

/// Why something is not written; it is tried again.
#[derive(Debug, thiserror::Error)]
enum StatementError {
    /// Consul does not take it.
    #[error(transparent)]
    Consul(#[from] ConsulError),
    /// Another process signed one, or was just a moment faster.
    #[error(
        "a newer list of revoked certificates is in Consul, and stays: if this lasts, another control process shares neither the \
         ledger nor the store, or this one was restored from a backup (docs/shared-ledger.md)"
    )]
    Newer,
}

/// Writes what changes, for as long as the server runs.
pub(super) async fn keep(side: Arc<ConsulSide>, server: Arc<Server>) {
    let mut versions = server.control.versions();
    let mut said: BTreeMap<&'static str, String> = BTreeMap::new();
    let mut anew = side.written_anew.subscribe();
    let mut attempt = 0;
    loop {
        versions.mark_unchanged();
        let done = Box::pin(say(&side, &server, &mut said)).await;
        let failed = done.is_err();
        side.note(Part::Statements, done.err().map(|error| error.to_string()));
        attempt = if failed { attempt + 1 } else { 0 };
        tokio::select! {
            changed = versions.changed() => if changed.is_err() { return },
            _ = anew.changed() => said.clear(),
            () = sleep(backoff(attempt, rand::random())), if failed => {}
        }
    }
}

async fn say(
    side: &ConsulSide,
    server: &Server,
    said: &mut BTreeMap<&'static str, String>,
) -> Result<(), StatementError> {
    let published: BTreeMap<_, _> = server.control.published().into_iter().collect();
    for name in [ROOTS, REVOKED, FEDERATED] {
        let text = match published.get(name) {
            Some(text) => text.to_string(),
            None if name == FEDERATED => NO_FEDERATION.to_owned(),
            // No list is another list; roots there are always.
            None => continue,
        };
        if said.get(name) == Some(&text) {
            continue;
        }
        let key = format!("{}trust/{name}", side.client.settings().prefix);
        match name {
            REVOKED => Box::pin(write_list(side, server, (&key, &text))).await?,
            _ => _ = side.client.put(&key, text.clone().into_bytes(), When::Always).await?,
        }
        said.insert(name, text);
    }
    Ok(())
}

/// Writes the list of revoked certificates, unless a newer one of this mesh's authority is there: another control process has
/// signed it, and this one says the same as soon as it has heard of it.
async fn write_list(
    side: &ConsulSide,
    server: &Server,
    (key, text): (&str, &str),
) -> Result<(), StatementError> {
    let number = |said: &[u8]| {
        let said: Value = serde_json::from_slice(said).ok()?;
        let list = said[STATEMENT_PEM].as_str()?;
        Some(Revoked::read(list, server.ca.bundle().ok()?.roots()).ok()?.number())
    };
    let there = side.client.get(key, Read::now(Consistency::Consistent)).await?.value;
    if there.as_ref().and_then(|pair| number(&pair.value)) > number(text.as_bytes()) {
        return Err(StatementError::Newer);
    }
    let when = there.map_or(When::Absent, |pair| When::Unchanged(pair.modified));
    match side.client.put(key, text.as_bytes().to_vec(), when).await? {
        true => Ok(()),
        false => Err(StatementError::Newer),
    }
}
