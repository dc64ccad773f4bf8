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
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use baremesh_model::authorization::AuthorizationPolicy;
use baremesh_model::external_authorization::{Circuit, ExtensionProvider};
use baremesh_model::mesh::Mesh;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::share::{Share, Shares, host_of};

pub use cache::{DecisionCache, MAX_CACHED, MAX_CACHED_SIZE};

/// Checks that are under way with one provider at once, at most. What comes beyond is told at once that there is no answer.
pub const MAX_CHECKS: usize = 1024;
/// Bytes of bodies that are held for one provider to be asked about them, at most.
pub const MAX_HELD: usize = 64 * 1024 * 1024;
/// Of those, what is held of one host's.
pub const MAX_HELD_OF_HOST: usize = MAX_HELD / 2;
/// Room is taken in steps of so many bytes.
const HELD_STEP: usize = 16 * 1024;
/// The most of an answer's body that is read.
pub const MAX_ANSWER: usize = 256 * 1024;
/// How long the addresses of a name outside of the mesh are taken to be what they are.
pub const RESOLVED_FOR: Duration = Duration::from_secs(30);
/// How long a name that was not found is not looked for again.
pub const UNRESOLVED_FOR: Duration = Duration::from_secs(1);

/// One provider.
#[derive(Debug)]
pub struct Provider {
    /// Who it is, and how it is asked.
    pub definition: Arc<ExtensionProvider>,
    /// The policies that name it.
    policies: Vec<Arc<AuthorizationPolicy>>,
    /// Places for checks.
    pub places: Semaphore,
    /// Room for bodies.
    pub room: Room,
    circuit: Mutex<Circuit>,
    /// What it said lately, where that holds for a while.
    pub cache: Option<DecisionCache>,
    /// Held while the name is looked up.
    resolved: Arc<tokio::sync::Mutex<Option<Resolved>>>,
    /// What it came to.
    pub tally: Arc<Tally>,
}

/// What was found of a name.
#[derive(Debug)]
struct Resolved {
    at: Instant,
    found: Result<Arc<[SocketAddr]>, Arc<str>>,
}

impl Resolved {
    /// What still counts of it.
    fn at(&self, now: Instant) -> Option<Result<Arc<[SocketAddr]>, Arc<str>>> {
        let counts = if self.found.is_ok() { RESOLVED_FOR } else { UNRESOLVED_FOR };
        (now.saturating_duration_since(self.at) < counts).then(|| self.found.clone())
    }
}

/// Room for bodies that are held while a provider is asked about them, and until their program has them.
#[derive(Debug)]
pub struct Room {
    bytes: Arc<Semaphore>,
    of_hosts: Shares<IpAddr>,
}

/// A part of it that is taken, until this is dropped.
#[derive(Debug)]
pub struct Held {
    _bytes: OwnedSemaphorePermit,
    _share: Share<IpAddr>,
    left: usize,
}

impl Default for Room {
    fn default() -> Self {
        Self { bytes: Arc::new(Semaphore::new(MAX_HELD)), of_hosts: Shares::default() }
    }
}

impl Room {
    /// Takes room for so many bytes of what `host` sends, or a step of it; nothing where there is not so much.
    pub fn take(&self, host: IpAddr, bytes: usize) -> Option<Held> {
        let taken = bytes.max(HELD_STEP);
        let count = u32::try_from(taken).ok()?;
        let share = self.of_hosts.take_many(host_of(host), taken, MAX_HELD_OF_HOST)?;
        let permit = Arc::clone(&self.bytes).try_acquire_many_owned(count).ok()?;
        Some(Held { _bytes: permit, _share: share, left: taken - bytes })
    }
}

impl Held {
    /// Uses up to so many bytes of what is left of the step; how many there were.
    pub fn use_up(&mut self, bytes: usize) -> usize {
        let used = bytes.min(self.left);
        self.left -= used;
        used
    }
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
            room: Room::default(),
            circuit: Mutex::default(),
            cache: definition.cache.map(DecisionCache::new),
            resolved: Arc::default(),
            tally,
        }
    }

    /// How it did so far.
    pub fn circuit(&self) -> MutexGuard<'_, Circuit> {
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The addresses of its name, as they were found lately, or as `look_up` finds them: once for all who wait for that, and to
    /// its end though nobody waits any longer.
    pub async fn resolved<F>(&self, look_up: impl FnOnce() -> F) -> Result<Arc<[SocketAddr]>, Arc<str>>
    where
        F: Future<Output = Result<Arc<[SocketAddr]>, Arc<str>>> + Send + 'static,
    {
        let mut resolved = Arc::clone(&self.resolved).lock_owned().await;
        if let Some(known) = resolved.as_ref().and_then(|resolved| resolved.at(Instant::now())) {
            return known;
        }
        let looking = look_up();
        let looked_up = tokio::spawn(async move {
            let found = looking.await;
            *resolved = Some(Resolved { at: Instant::now(), found: found.clone() });
            found
        });
        looked_up.await.unwrap_or_else(|_| Err("the agent ends".into()))
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
