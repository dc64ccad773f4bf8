//! Who is asked by CUSTOM policies, as this agent knows them: how each did so far, how many checks are under way, and what
//! it said lately. Asking is `proxy::http::external`'s.

/// Answers that hold for a while.
mod cache;
/// Asking over gRPC.
pub mod grpc;
/// Envoy's messages.
mod messages;
/// What is asked.
pub mod question;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use baremesh_model::authorization::AuthorizationPolicy;
use baremesh_model::external_authorization::{Circuit, ExtensionProvider};
use baremesh_model::mesh::Mesh;
use tokio::sync::Semaphore;

pub use cache::{DecisionCache, MAX_CACHED, MAX_CACHED_SIZE};

/// Checks that are under way with one provider at once, at most. What comes beyond is told at once that there is no answer.
pub const MAX_CHECKS: usize = 1024;
/// Bytes of bodies that are held for one provider to be asked about them, at most.
pub const MAX_HELD: usize = 64 * 1024 * 1024;
/// The most of an answer's body that is read.
pub const MAX_ANSWER: usize = 256 * 1024;
/// How long the addresses of a name outside of the mesh are taken to be what they are.
pub const RESOLVED_FOR: Duration = Duration::from_secs(30);

/// One provider.
#[derive(Debug)]
pub struct Provider {
    /// Who it is, and how it is asked.
    pub definition: Arc<ExtensionProvider>,
    /// The policies that name it.
    policies: Vec<Arc<AuthorizationPolicy>>,
    /// Places for checks.
    pub places: Semaphore,
    /// Room for bodies, in bytes.
    pub bodies: Semaphore,
    circuit: Mutex<Circuit>,
    /// What it said lately, where that holds for a while.
    pub cache: Option<DecisionCache>,
    resolved: Mutex<Option<(Instant, Arc<[SocketAddr]>)>>,
    /// What it came to.
    pub tally: Arc<Tally>,
}

/// What became of calls that a provider was asked about.
#[derive(Debug, Default)]
pub struct Tally {
    /// It let them go on.
    pub allowed: AtomicU64,
    /// It refused them.
    pub denied: AtomicU64,
    /// It said nothing that counts, and they were refused.
    pub failed: AtomicU64,
    /// It said nothing that counts, and they went on.
    pub failed_open: AtomicU64,
    /// Of those before, the answers that were known already.
    pub cached: AtomicU64,
}

impl Tally {
    /// Counts one.
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Provider {
    fn new(
        definition: &Arc<ExtensionProvider>,
        policies: Vec<Arc<AuthorizationPolicy>>,
        tally: Arc<Tally>,
    ) -> Self {
        Self {
            definition: Arc::clone(definition),
            policies,
            places: Semaphore::new(MAX_CHECKS),
            bodies: Semaphore::new(MAX_HELD),
            circuit: Mutex::default(),
            cache: definition.cache.map(DecisionCache::new),
            resolved: Mutex::default(),
            tally,
        }
    }

    /// How it did so far.
    pub fn circuit(&self) -> MutexGuard<'_, Circuit> {
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The addresses of its name, as they were found lately.
    pub fn resolved(&self, now: Instant) -> Option<Arc<[SocketAddr]>> {
        let resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, addresses) = resolved.as_ref()?;
        (now.saturating_duration_since(*at) < RESOLVED_FOR).then(|| Arc::clone(addresses))
    }

    /// Its addresses were found to be these.
    pub fn resolves_to(&self, addresses: Arc<[SocketAddr]>, now: Instant) {
        *self.resolved.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, addresses));
    }
}

/// Everybody who may be asked, by name.
#[derive(Debug, Default)]
pub struct Providers(HashMap<Arc<str>, Arc<Provider>>);

impl Providers {
    /// Those of a mesh. One that is as it was, and is named by the same policies, is the one that `previous` has, with what it
    /// said lately; of any other the counts alone are kept.
    pub fn new(mesh: &Mesh, previous: Option<&Self>) -> Self {
        let all = mesh.config.extension_providers.iter().map(|definition| {
            let is_its =
                |policy: &&Arc<AuthorizationPolicy>| policy.provider.as_ref() == Some(&definition.name);
            let policies: Vec<_> = mesh.authorization_policies.iter().filter(is_its).cloned().collect();
            let former = previous.and_then(|previous| previous.0.get(&definition.name));
            let provider = match former {
                Some(former) if former.definition == *definition && former.policies == policies => {
                    Arc::clone(former)
                }
                former => {
                    let tally = former.map(|former| Arc::clone(&former.tally)).unwrap_or_default();
                    Arc::new(Provider::new(definition, policies, tally))
                }
            };
            (Arc::clone(&definition.name), provider)
        });
        Self(all.collect())
    }

    /// The provider of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Provider>> {
        self.0.get(name)
    }

    /// All of them, in no order.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Provider>> {
        self.0.values()
    }
}

#[cfg(test)]
mod tests;
