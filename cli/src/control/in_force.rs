//! Resources coming into force: what the directory holds goes to the registry, which pushes it, and its grants to the
//! authority. A set is taken whole or not at all; what was in force before stays.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use baremesh_model::name::TrustDomain;
use baremesh_registry::files::Watch;
use baremesh_registry::format;
use baremesh_registry::resource::{HostGrant, Resource};
use baremesh_registry::set::Loaded;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::sleep;

use super::resources::unservable;
use super::{Server, orders, trust};

/// How long after a failure (a full disk, say) the set is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// How long after a failure to revoke what is granted no longer that is tried again.
const REVOKE_AGAIN: Duration = Duration::from_secs(60);

/// What is in force, and why it is not what the files say, where it is not.
#[derive(Debug, Clone)]
pub(super) struct InForce {
    pub(super) loaded: Arc<Loaded>,
    pub(super) refused: Option<String>,
}

impl InForce {
    pub(super) fn nothing() -> Self {
        Self { loaded: Arc::default(), refused: None }
    }
}

/// Whether a set can be served under the authority's trust domain.
pub(super) fn check(loaded: &Loaded, trust_domain: &TrustDomain) -> Result<(), String> {
    let resources = loaded.resources();
    let fault =
        resources.iter().find_map(|resource| Some((resource.id(), unservable(resource, trust_domain)?)));
    match fault {
        Some((id, fault)) => Err(format!("{id}: {}", fault.message)),
        None => Ok(()),
    }
}

/// Follows the directory.
pub(super) struct Following {
    server: Arc<Server>,
    files: Watch,
    out: watch::Sender<InForce>,
    state: PathBuf,
}

impl Following {
    pub(super) fn new(
        server: Arc<Server>,
        files: Watch,
        out: watch::Sender<InForce>,
        state: PathBuf,
    ) -> Self {
        Self { server, files, out, state }
    }

    /// Puts the first set in force: before that, nothing is to be pushed.
    pub(super) async fn begin(mut self) -> anyhow::Result<Self> {
        let first = self.files.current.borrow_and_update().clone();
        self.take(first, ": found at start")
            .await
            .map_err(|reason| anyhow::anyhow!("the resources cannot be put in force: {reason}"))?;
        Ok(self)
    }

    /// Follows the directory for as long as the server runs.
    pub(super) async fn run(mut self) {
        loop {
            let failed = self.out.borrow().refused.is_some();
            tokio::select! {
                changed = self.files.current.changed() => if changed.is_err() { return },
                () = sleep(AGAIN), if failed => {}
                () = sleep(REVOKE_AGAIN), if !failed && self.server.grants.is_owing() => {
                    self.take_back("").await;
                    continue;
                }
            }
            let wanted = self.files.current.borrow_and_update().clone();
            if let Err(reason) = self.take(wanted, "").await {
                tracing::error!("the resources stay as they were: {reason}");
                self.out.send_modify(|in_force| in_force.refused = Some(reason));
            }
        }
    }

    async fn take(&self, wanted: Arc<Loaded>, found: &'static str) -> Result<(), String> {
        check(&wanted, &self.server.trust_domain)?;
        let before = self.set_grants(wanted.grants.clone()).await?;
        let config = wanted.mesh.config.clone();
        if let Err(error) = self.server.control.set_resources(config, pushed(&wanted)).await {
            // The former set stays in force whole, its grants included.
            if let Err(second) = self.set_grants(before).await {
                tracing::error!("the former grants cannot be put back: {second}");
            }
            return Err(error.to_string());
        }
        if self.server.grants.is_owing() {
            self.take_back(found).await;
        }
        let (state, saved) = (self.state.clone(), wanted.clone());
        let saving = tokio::task::spawn_blocking(move || super::last_good::save(&state, &saved)).await;
        if let Ok(Err(error)) = saving {
            tracing::warn!("the set in force is not kept for a restart: {error}");
        }
        self.out.send_replace(InForce { loaded: wanted, refused: None });
        let server = self.server.clone();
        // A panic there is nothing that keeps a set from being in force.
        let _ = tokio::task::spawn_blocking(move || orders::note_changes_by_hand(&server)).await;
        Ok(())
    }

    /// Revokes what is granted no longer, and tells every agent. What fails is tried again.
    async fn take_back(&self, found: &'static str) {
        let grants = self.server.grants.clone();
        let revoked = match tokio::task::spawn_blocking(move || grants.take_back(found)).await {
            Ok(Ok(0)) | Err(_) => return,
            Ok(revoked) => revoked,
        };
        if let Err(error) = revoked {
            tracing::error!("certificates of what is granted no longer are not all revoked: {error}");
        }
        if let Err(error) = trust::publish(&self.server).await {
            tracing::error!("agents are not told what is revoked: {error:#}");
        }
    }

    async fn set_grants(&self, wanted: Vec<HostGrant>) -> Result<Vec<HostGrant>, String> {
        let grants = self.server.grants.clone();
        let set = tokio::task::spawn_blocking(move || grants.set_resources(wanted)).await;
        set.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }
}

/// What agents are told. Grants are between this server and the authority.
fn pushed(loaded: &Loaded) -> Vec<(String, Value)> {
    let resources = loaded.resources();
    let told = resources.iter().filter(|resource| !matches!(resource, Resource::HostGrant(_)));
    told.map(|resource| {
        let id = resource.id();
        (format!("{}/{}/{}", id.kind, id.key.namespace, id.key.name), format::encode(resource))
    })
    .collect()
}
