//! Limits on requests at work on this host. A limit counts for each service apart: of the requests that arrive at a service
//! of this host, or of those that this host's callers send to one. A decision takes a lock for one look-up at most. What
//! was counted is kept from one snapshot to the next.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use baremesh_model::authorization::Enforcement;
use baremesh_model::http::RequestHead;
use baremesh_model::identity::Identity;
use baremesh_model::mesh::Mesh;
use baremesh_model::name::{Key, Label};
use baremesh_model::rate_limit::{Asking, Bucket, RateLimit, Table, Verdict};
use baremesh_model::service_entry::ServiceEntry;
use baremesh_model::token::Token;

use super::LocalEndpoint;
use super::endpoint::nanoseconds;
use crate::registration::LocalService;
use crate::share::host_of;

/// The most counts that one limit keeps apart for one service, over all keys. What comes beyond is counted with the other
/// keys of the same caller.
pub const MAX_COUNTS: usize = 16_384;
/// The tables that they are spread over, so that workers seldom wait for one another.
const TABLES: usize = 16;
/// The most callers whose keys beyond the bound are counted for each caller apart.
const MAX_CROWDS: usize = 4_096;

/// One limit for one service.
pub struct Limiter {
    /// What the resource says.
    pub policy: Arc<RateLimit>,
    /// The service whose requests are counted.
    pub service: Key,
    /// The namespace of the callers that it is for; all of them without one.
    callers: Option<Label>,
    /// What became of requests.
    pub tally: Arc<Tally>,
    bucket: Bucket,
    counts: Arc<Counts>,
}

/// What a limit did with requests, for the metrics.
#[derive(Debug, Default)]
pub struct Tally {
    /// Let through.
    pub allowed: AtomicU64,
    /// Refused.
    pub refused: AtomicU64,
    /// Let through because the limit is a dry run.
    pub would_refuse: AtomicU64,
    /// Of all of these, counted together with other keys because the bound was reached.
    pub shared: AtomicU64,
}

/// What was counted so far.
enum Counts {
    /// All requests are one count: the moment from which it is full.
    Together(AtomicU64),
    Apart(Box<Apart>),
}

struct Apart {
    /// Seeded by chance: nobody foresees which keys share a table, or a count.
    hash: RandomState,
    tables: [Mutex<Table>; TABLES],
    /// Callers' keys beyond the bound, by caller.
    crowds: Mutex<Table>,
    /// Callers beyond the bound on callers.
    rest: AtomicU64,
}

/// Which count a token was taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Together,
    Own(u64),
    Crowd(u64),
    Rest,
}

/// What one limit said about one request.
#[derive(Debug, Clone)]
pub struct Decision {
    /// The limit.
    pub limiter: Arc<Limiter>,
    /// Whether there was a token.
    pub verdict: Verdict,
    place: Place,
}

/// A request is one too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The requests of one period.
    pub limit: u32,
    /// When one more would be let through.
    pub wait: Duration,
}

/// Decides on a request: every limit that counts it must have a token. Tokens that were taken for a request that another
/// limit refuses are given back: who floods one limit does not use up others.
fn decide(
    limiters: &[Arc<Limiter>],
    asking: &Asking<'_>,
    now: Instant,
    decisions: &mut Vec<Decision>,
) -> Result<(), Refusal> {
    let (first, now) = (decisions.len(), nanoseconds(now));
    for limiter in limiters.iter().filter(|limiter| limiter.is_for(asking)) {
        let (place, verdict) = limiter.take(asking, now);
        decisions.push(Decision { limiter: Arc::clone(limiter), verdict, place });
        if let (Verdict::Refused { wait }, Enforcement::Enforced) = (verdict, limiter.policy.enforcement) {
            let taken = decisions[first..].iter().filter(|decision| decision.verdict.allows());
            taken.for_each(|decision| decision.limiter.give_back(decision.place));
            return Err(Refusal { limit: limiter.policy.limit.requests(), wait });
        }
    }
    Ok(())
}

impl Decision {
    /// Whether the request was refused by it.
    pub fn refuses(&self) -> bool {
        !self.verdict.allows() && self.limiter.policy.enforcement == Enforcement::Enforced
    }

    /// Counts it. Once for each request, where its record is written.
    pub fn count(&self) {
        let Tally { allowed, refused, would_refuse, shared } = &*self.limiter.tally;
        let outcome = match self.verdict {
            Verdict::Allowed { .. } => allowed,
            Verdict::Refused { .. } if self.refuses() => refused,
            Verdict::Refused { .. } => would_refuse,
        };
        outcome.fetch_add(1, Ordering::Relaxed);
        if matches!(self.place, Place::Crowd(_) | Place::Rest) {
            shared.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Display for Decision {
    /// As records have it: `shop/orders: refused`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Key { namespace, name } = &self.limiter.policy.key;
        match self.verdict {
            Verdict::Allowed { left } => write!(f, "{namespace}/{name}: {left} left"),
            Verdict::Refused { .. } if self.refuses() => write!(f, "{namespace}/{name}: refused"),
            Verdict::Refused { .. } => write!(f, "{namespace}/{name}: would refuse"),
        }
    }
}

impl Limiter {
    /// A limit with what its former form counted: as it was where requests are told apart as before, each count with as
    /// many requests used where the numbers changed.
    fn new(
        policy: &Arc<RateLimit>,
        (service, callers): (&Key, Option<&Label>),
        former: Option<&Self>,
        now: Instant,
    ) -> Self {
        let bucket = policy.limit.bucket();
        let kept = former.filter(|former| former.policy.parts == policy.parts).map(|former| {
            if former.bucket == bucket {
                Arc::clone(&former.counts)
            } else {
                Arc::new(former.counts.converted((&former.bucket, &bucket), nanoseconds(now)))
            }
        });
        Self {
            policy: Arc::clone(policy),
            service: service.clone(),
            callers: callers.cloned(),
            tally: former.map(|former| Arc::clone(&former.tally)).unwrap_or_default(),
            bucket,
            counts: kept.unwrap_or_else(|| Arc::new(Counts::new(policy, bucket))),
        }
    }

    fn is_for(&self, asking: &Asking<'_>) -> bool {
        let is_caller = |namespace| asking.source.is_some_and(|source| source.namespace() == namespace);
        self.callers.as_ref().is_none_or(is_caller) && self.policy.counts(asking)
    }

    fn take(&self, asking: &Asking<'_>, now: u64) -> (Place, Verdict) {
        let apart = match &*self.counts {
            Counts::Together(full_at) => return (Place::Together, take_from(full_at, &self.bucket, now)),
            Counts::Apart(apart) => apart,
        };
        let key = self.policy.count_of(asking, apart.hash.build_hasher());
        let party = RateLimit::party_of(asking, apart.hash.build_hasher());
        if let Some(verdict) = lock(apart.table(key)).take(key, party, now) {
            return (Place::Own(key), verdict);
        }
        match lock(&apart.crowds).take(party, party, now) {
            Some(verdict) => (Place::Crowd(party), verdict),
            None => (Place::Rest, take_from(&apart.rest, &self.bucket, now)),
        }
    }

    fn give_back(&self, place: Place) {
        let restore = |full_at: &AtomicU64| {
            let given = |full_at| Some(self.bucket.give_back(full_at));
            // It always has something to write.
            let _ = full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, given);
        };
        match (&*self.counts, place) {
            (Counts::Together(full_at), _) => restore(full_at),
            (Counts::Apart(apart), Place::Own(key)) => lock(apart.table(key)).give_back(key),
            (Counts::Apart(apart), Place::Crowd(party)) => lock(&apart.crowds).give_back(party),
            (Counts::Apart(apart), Place::Together | Place::Rest) => restore(&apart.rest),
        }
    }

    /// How many counts it keeps apart.
    pub fn counts(&self) -> usize {
        match &*self.counts {
            Counts::Together(_) => 1,
            Counts::Apart(apart) => apart.all().map(|table| lock(table).len()).sum(),
        }
    }
}

impl fmt::Debug for Limiter {
    /// Without what was counted.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.policy.key, self.service)
    }
}

impl Counts {
    fn new(policy: &RateLimit, bucket: Bucket) -> Self {
        if policy.parts.is_empty() {
            return Self::Together(AtomicU64::new(0));
        }
        Self::Apart(Box::new(Apart {
            hash: RandomState::new(),
            tables: std::array::from_fn(|_| Mutex::new(Table::new(bucket, MAX_COUNTS / TABLES))),
            crowds: Mutex::new(Table::new(bucket, MAX_CROWDS)),
            rest: AtomicU64::new(0),
        }))
    }

    fn converted(&self, (before, after): (&Bucket, &Bucket), now: u64) -> Self {
        let number = |full_at: &AtomicU64| {
            AtomicU64::new(after.converted(full_at.load(Ordering::Relaxed), now, before))
        };
        let table = |table: &Mutex<Table>| Mutex::new(lock(table).converted(*after, now));
        match self {
            Self::Together(full_at) => Self::Together(number(full_at)),
            Self::Apart(apart) => Self::Apart(Box::new(Apart {
                hash: apart.hash.clone(),
                tables: std::array::from_fn(|index| table(&apart.tables[index])),
                crowds: table(&apart.crowds),
                rest: number(&apart.rest),
            })),
        }
    }
}

impl Apart {
    fn table(&self, key: u64) -> &Mutex<Table> {
        // The tables themselves hash once more: these bits are not theirs.
        &self.tables[(key % TABLES as u64) as usize]
    }

    fn all(&self) -> impl Iterator<Item = &Mutex<Table>> {
        self.tables.iter().chain(std::iter::once(&self.crowds))
    }
}

fn take_from(full_at: &AtomicU64, bucket: &Bucket, now: u64) -> Verdict {
    let mut before = full_at.load(Ordering::Relaxed);
    loop {
        let (after, verdict) = bucket.take(before, now);
        if after == before {
            // Refused: nothing is written, however many ask.
            return verdict;
        }
        match full_at.compare_exchange_weak(before, after, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return verdict,
            Err(now_there) => before = now_there,
        }
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Limiters by the service whose requests they count.
type BySubject = HashMap<Key, Vec<Arc<Limiter>>>;

/// Every limit that this host enforces.
#[derive(Debug, Default)]
pub struct RateLimits {
    /// On what arrives at services of this host.
    to_workloads: BySubject,
    /// On what callers of this host send.
    to_hosts: BySubject,
}

impl RateLimits {
    /// Those of a whole mesh, with what `previous` counted.
    pub(super) fn new(mesh: &Mesh, registrations: &[Arc<LocalService>], previous: Option<&Self>) -> Self {
        let (mut limits, now) = (Self::default(), Instant::now());
        let root = &mesh.config.root_namespace;
        for policy in &mesh.rate_limits {
            let limiter = |service: &Key, callers: Option<&Label>, known: Option<&BySubject>| {
                let mut known = known.and_then(|known| known.get(service)).into_iter().flatten();
                let former = known.find(|limiter| limiter.policy.key == policy.key);
                Arc::new(Limiter::new(policy, (service, callers), former.map(|former| &**former), now))
            };
            for local in registrations {
                if policy.is_for_workload(&local.key.namespace, &local.labels(), root) {
                    let known = previous.map(|previous| &previous.to_workloads);
                    let at = limits.to_workloads.entry(local.key.clone()).or_default();
                    at.push(limiter(&local.key, None, known));
                }
            }
            let is_roots = policy.key.namespace == *root;
            let has_callers =
                is_roots || registrations.iter().any(|local| local.key.namespace == policy.key.namespace);
            let called = policy.called(&mesh.config.domain).filter(|_| has_callers);
            let called = called.filter(|service| mesh.services.contains_key(service));
            let external = policy.called_host().filter(|_| has_callers && called.is_none());
            let external = external.into_iter().flat_map(|host| {
                let host = host.to_ascii_lowercase();
                let seen =
                    |entry: &&Arc<ServiceEntry>| is_roots || entry.export_to.includes(&policy.key.namespace);
                let entries = mesh.service_entries.values().filter(seen);
                let keys = entries.filter(|entry| entry.host_names().any(|name| *name == *host));
                keys.map(|entry| entry.key_of(&host)).collect::<BTreeSet<_>>()
            });
            for service in called.into_iter().chain(external) {
                let callers = (!is_roots).then_some(&policy.key.namespace);
                let limiter = limiter(&service, callers, previous.map(|previous| &previous.to_hosts));
                limits.to_hosts.entry(service).or_default().push(limiter);
            }
        }
        limits
    }

    /// Decides on a request that arrives at a service of this host; `decisions` takes what each limit said.
    pub fn on_arrival(
        &self,
        local: &LocalEndpoint,
        (head, token): (&RequestHead, Option<&Token>),
        (source, address): (Option<&Identity>, IpAddr),
        decisions: &mut Vec<Decision>,
    ) -> Result<(), Refusal> {
        let Some(limiters) = self.to_workloads.get(&local.service) else { return Ok(()) };
        let asking = Asking { head, port: local.advertised.port(), source, address: host_of(address), token };
        decide(limiters, &asking, Instant::now(), decisions)
    }

    /// Decides on a request that `source` sends to a port of a service; `decisions` takes what each limit said.
    pub fn on_sending(
        &self,
        (service, port): (&Key, u16),
        head: &RequestHead,
        (source, address): (&Identity, IpAddr),
        decisions: &mut Vec<Decision>,
    ) -> Result<(), Refusal> {
        let Some(limiters) = self.to_hosts.get(service) else { return Ok(()) };
        let asking = Asking { head, port, source: Some(source), address: host_of(address), token: None };
        decide(limiters, &asking, Instant::now(), decisions)
    }

    /// All of them, in no order.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Limiter>> {
        self.to_workloads.values().chain(self.to_hosts.values()).flatten()
    }

    /// Forgets counts that are full again.
    pub fn sweep(&self, now: Instant) {
        let now = nanoseconds(now);
        for limiter in self.all() {
            if let Counts::Apart(apart) = &*limiter.counts {
                apart.all().for_each(|table| lock(table).sweep(now));
            }
        }
    }
}

#[cfg(test)]
mod tests;
