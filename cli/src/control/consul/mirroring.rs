//! The mirror kept in step with what is in Consul.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use baremesh_registry::consul::resources::{Following, Next, Set};
use baremesh_registry::control::client::backoff;
use tokio::time::sleep;

use super::{ConsulSide, Part, WAIT};

/// The pause between two answers.
const PACE: Duration = Duration::from_millis(100);

/// Follows the resources for as long as the server runs.
pub(super) async fn keep(side: Arc<ConsulSide>) {
    let mut following = Following::new(side.store.clone());
    let mut attempt = 0;
    loop {
        let failure = match Box::pin(following.next(WAIT)).await {
            Ok(Next::Set(set)) => take(&side, set).await.err(),
            Ok(Next::Same) => {
                sleep(PACE).await;
                // Whether what could not be taken can be is not known before there is another.
                continue;
            }
            Ok(Next::Nothing) => write_anew(&side).await.err(),
            Err(error) => Some(error.to_string()),
        };
        match &failure {
            None => attempt = 0,
            Some(_) => attempt += 1,
        }
        let pause = if failure.is_some() { backoff(attempt, rand::random()) } else { PACE };
        side.note(Part::Resources, failure);
        sleep(pause).await;
    }
}

/// Consul has lost the resources: those that were in force are written there again, and what else this server says.
async fn write_anew(side: &ConsulSide) -> Result<(), String> {
    tracing::error!("there are no resources in Consul any more: those that were in force are written again");
    let documents = side.directory.documents().map_err(|refused| refused.to_string())?;
    Box::pin(side.write_all(documents)).await.map_err(|error| format!("{error:#}"))?;
    side.written_anew.send_modify(|count| *count += 1);
    Ok(())
}

async fn take(side: &Arc<ConsulSide>, set: Set) -> Result<(), String> {
    let side = Arc::clone(side);
    let mirror = move || {
        let _turn = side.mirroring.lock().unwrap_or_else(PoisonError::into_inner);
        side.directory.mirror(&set.values).map_err(|refused| refused.to_string())
    };
    tokio::task::spawn_blocking(mirror).await.map_err(|error| error.to_string())?
}
