//! What is trusted and what is revoked, for agents to read in Consul: the same that others are pushed.

use std::collections::BTreeMap;
use std::sync::Arc;

use baremesh_registry::consul::ConsulError;
use baremesh_registry::consul::kv::When;
use baremesh_registry::control::client::backoff;
use baremesh_registry::control::{FEDERATED, REVOKED, ROOTS};
use tokio::time::sleep;

use super::{ConsulSide, Part};
use crate::control::Server;

/// What is said where no other trust domain is trusted: an agent forgets nothing for want of an answer.
const NO_FEDERATION: &str = "{}";

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
) -> Result<(), ConsulError> {
    let published: BTreeMap<_, _> = server.control.published().into_iter().collect();
    for name in [ROOTS, REVOKED, FEDERATED] {
        let text = match published.get(name) {
            Some(text) => text.to_string(),
            None if name == FEDERATED => NO_FEDERATION.to_owned(),
            // No list is another list; roots there are always.
            None => continue,
        };
        if said.get(name) != Some(&text) {
            let key = format!("{}trust/{name}", side.client.settings().prefix);
            side.client.put(&key, text.clone().into_bytes(), When::Always).await?;
            said.insert(name, text);
        }
    }
    Ok(())
}
