//! Names that callers ask for below a wildcard, looked up when they do and kept for as long as the answer says. Callers
//! choose these names, so nobody is let to take the places of all: each caller has a share of the look-ups, those who ask
//! for one name at once wait for one look-up, and what has failed is not asked again at once.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use baremesh_model::identity::Identity;
use baremesh_model::virtual_address::VirtualRanges;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use super::{MAX_TTL, MIN_TTL, usable};
use crate::dns::{LookUpError, Resolver};
use crate::share::{Share, Shares};
use crate::telemetry::resolution::Lookups;

/// The most names that are kept; the one that is next to be asked for anew makes room.
pub const MAX_ASKED: usize = 4096;
/// The most names that are known to have failed; the oldest makes room. They take none of the others'.
const MAX_FAILED: usize = 1024;
/// Look-ups under way at one time; callers of further names are refused at once.
const MAX_UNDER_WAY: usize = 256;
/// Those of one caller among them.
const MAX_OF_CALLER: usize = 32;
/// How long the last answer serves when none is to be had any more.
const STALE: Duration = Duration::from_secs(3600);
/// For how long a name that has failed is not asked again.
const FAILED_FOR: Duration = Duration::from_secs(5);

type Outcome = Result<Arc<[IpAddr]>, LookUpError>;

struct Known {
    addresses: Arc<[IpAddr]>,
    until: Instant,
}

#[derive(Default)]
struct Names {
    known: HashMap<Arc<str>, Known>,
    failed: HashMap<Arc<str>, (LookUpError, Instant)>,
    /// Where the outcome of each look-up under way is told.
    under_way: HashMap<Arc<str>, watch::Receiver<Option<Outcome>>>,
}

/// Places of a look-up: one of all, one of its caller's.
type Places = (OwnedSemaphorePermit, Share<Identity>);

/// Names that callers ask for.
pub struct AskedNames {
    resolver: Arc<Resolver>,
    lookups: Arc<Lookups>,
    names: Mutex<Names>,
    places: Arc<Semaphore>,
    callers: Shares<Identity>,
}

impl AskedNames {
    /// None yet.
    pub fn new(resolver: Arc<Resolver>, lookups: Arc<Lookups>) -> Self {
        let places = Arc::new(Semaphore::new(MAX_UNDER_WAY));
        Self { resolver, lookups, names: Mutex::default(), places, callers: Shares::default() }
    }

    /// The addresses of a name, waiting for them for `patience` at most. An answer that has run out serves where no new
    /// one is to be had.
    pub async fn addresses(
        self: &Arc<Self>,
        (caller, name): (&Identity, &str),
        ranges: &VirtualRanges,
        patience: Duration,
    ) -> Outcome {
        let outcome = match self.begin((caller, name), ranges) {
            Ok(mut told) => {
                let told = tokio::time::timeout(patience, told.wait_for(Option::is_some)).await;
                told.ok()
                    .and_then(Result::ok)
                    .and_then(|told| (*told).clone())
                    .unwrap_or(Err(LookUpError::NoAnswer))
            }
            Err(known) => known,
        };
        outcome.or_else(|error| self.names().stale(name, Instant::now()).ok_or(error))
    }

    /// Where the outcome will be told, or what is known already.
    fn begin(
        self: &Arc<Self>,
        (caller, name): (&Identity, &str),
        ranges: &VirtualRanges,
    ) -> Result<watch::Receiver<Option<Outcome>>, Outcome> {
        let mut names = self.names();
        if let Some(outcome) = names.fresh(name, Instant::now()) {
            return Err(outcome);
        }
        // One that panicked tells nothing any more.
        if let Some(told) = names.under_way.get(name).filter(|told| told.has_changed().is_ok()) {
            return Ok(told.clone());
        }
        let places: Places = self.take(caller).ok_or_else(|| {
            self.lookups.failed.inc();
            Err(LookUpError::Busy)
        })?;
        let (tell, told) = watch::channel(None);
        let name: Arc<str> = name.into();
        names.under_way.insert(Arc::clone(&name), told.clone());
        // It goes on when its caller goes: the resolver's own limits end it, and until then it has its places.
        tokio::spawn(Arc::clone(self).look_up(name, *ranges, places, tell));
        Ok(told)
    }

    fn take(&self, caller: &Identity) -> Option<Places> {
        let share = self.callers.take(caller.clone(), MAX_OF_CALLER)?;
        Some((Arc::clone(&self.places).try_acquire_owned().ok()?, share))
    }

    async fn look_up(
        self: Arc<Self>,
        name: Arc<str>,
        ranges: VirtualRanges,
        _places: Places,
        tell: watch::Sender<Option<Outcome>>,
    ) {
        let answer = self.resolver.look_up(&name).await.and_then(|answer| {
            let (addresses, left_out) = usable(answer.addresses, &ranges);
            self.lookups.left_out.inc_by(left_out as u64);
            if addresses.is_empty() { Err(LookUpError::NoAddress) } else { Ok((addresses, answer.ttl)) }
        });
        let (mut names, now) = (self.names(), Instant::now());
        names.under_way.remove(&name);
        let outcome = match answer {
            Ok((addresses, ttl)) => {
                self.lookups.answered.inc();
                let addresses: Arc<[IpAddr]> = addresses.into();
                names.keep(name, Arc::clone(&addresses), now + ttl.clamp(MIN_TTL, MAX_TTL));
                Ok(addresses)
            }
            Err(error) => {
                self.lookups.failed.inc();
                names.keep_failed(name, error, now + FAILED_FOR);
                Err(error)
            }
        };
        tell.send_replace(Some(outcome));
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Names {
    fn fresh(&self, name: &str, now: Instant) -> Option<Outcome> {
        let known = self.known.get(name).filter(|known| known.until > now);
        let failed = || self.failed.get(name).filter(|(_, until)| *until > now);
        known.map(|known| Ok(Arc::clone(&known.addresses))).or_else(|| failed().map(|(error, _)| Err(*error)))
    }

    fn stale(&self, name: &str, now: Instant) -> Option<Arc<[IpAddr]>> {
        let known = self.known.get(name).filter(|known| known.until + STALE > now);
        known.map(|known| Arc::clone(&known.addresses))
    }

    fn keep(&mut self, name: Arc<str>, addresses: Arc<[IpAddr]>, until: Instant) {
        self.failed.remove(&name);
        make_room(&mut self.known, &name, MAX_ASKED, |known| known.until);
        self.known.insert(name, Known { addresses, until });
    }

    fn keep_failed(&mut self, name: Arc<str>, error: LookUpError, until: Instant) {
        make_room(&mut self.failed, &name, MAX_FAILED, |(_, until)| *until);
        self.failed.insert(name, (error, until));
    }
}

/// Removes what runs out first where another name would be one too many.
fn make_room<T>(names: &mut HashMap<Arc<str>, T>, name: &str, most: usize, until: impl Fn(&T) -> Instant) {
    if names.len() < most || names.contains_key(name) {
        return;
    }
    let oldest = names.iter().min_by_key(|(_, kept)| until(kept)).map(|(name, _)| Arc::clone(name));
    if let Some(oldest) = oldest {
        names.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use baremesh_model::name::Domain;
    use prometheus_client::registry::Registry;
    use tokio::net::UdpSocket;

    use super::*;
    use crate::dns::{DnsConfig, Upstreams};

    fn asked_of(upstream: SocketAddr) -> Arc<AskedNames> {
        let mut config = DnsConfig::new(Domain::new("mesh.internal").expect("a domain"), Vec::new());
        config.upstreams = Upstreams::Fixed(vec![upstream]);
        config.limits.upstream_timeout = Duration::from_secs(600);
        let resolver = Arc::new(Resolver::new(&config, Vec::new()));
        Arc::new(AskedNames::new(resolver, Lookups::register(&mut Registry::default())))
    }

    async fn ask(names: &Arc<AskedNames>, caller: &str, name: &str, patience: Duration) -> Outcome {
        let caller = Identity::parse(&format!("spiffe://mesh.internal/ns/default/sa/{caller}")).expect("one");
        names.addresses((&caller, name), &VirtualRanges::default(), patience).await
    }

    const SHORT: Duration = Duration::from_millis(1);
    const LONG: Duration = Duration::from_secs(300);

    #[tokio::test]
    async fn one_caller_of_many_names_takes_nobody_else_s_place() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
        let names = asked_of(silent.local_addr().expect("an address"));
        for number in 0..MAX_OF_CALLER {
            let outcome = ask(&names, "greedy", &format!("{number}.example.com"), SHORT).await;
            assert_eq!(outcome, Err(LookUpError::NoAnswer));
        }
        assert_eq!(ask(&names, "greedy", "more.example.com", SHORT).await, Err(LookUpError::Busy));
        // What is asked already takes no place, and others have theirs.
        assert_eq!(ask(&names, "greedy", "0.example.com", SHORT).await, Err(LookUpError::NoAnswer));
        assert_eq!(ask(&names, "other", "more.example.com", SHORT).await, Err(LookUpError::NoAnswer));
        assert_eq!(names.names().under_way.len(), MAX_OF_CALLER + 1);
    }

    #[tokio::test]
    async fn who_asks_for_one_name_waits_for_one_look_up_and_a_failure_is_kept() {
        let upstream = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
        let names = asked_of(upstream.local_addr().expect("an address"));
        let questions = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&questions);
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = upstream.recv_from(&mut buffer).await {
                counted.fetch_add(1, Ordering::SeqCst);
                // A response, and no such name.
                buffer[2] |= 0x80;
                buffer[3] = (buffer[3] & 0xf0) | 3;
                upstream.send_to(&buffer[..length], from).await.expect("sent");
            }
        });
        let ask = |caller: &'static str| ask(&names, caller, "no.example.com", LONG);
        let all = tokio::join!(ask("a"), ask("b"), ask("a"));
        assert_eq!(
            all,
            (Err(LookUpError::NoSuchName), Err(LookUpError::NoSuchName), Err(LookUpError::NoSuchName))
        );
        assert_eq!(questions.load(Ordering::SeqCst), 2, "A and AAAA");
        let known = names.names().fresh("no.example.com", Instant::now() - FAILED_FOR);
        assert_eq!(known, Some(Err(LookUpError::NoSuchName)));
        assert!(names.names().fresh("no.example.com", Instant::now() + FAILED_FOR).is_none());
        assert!(names.names().under_way.is_empty());
    }

    #[tokio::test]
    async fn failures_are_bounded_and_take_no_answer_s_place() {
        let (mut names, now) = (Names::default(), Instant::now());
        names.keep("good".into(), Arc::from([IpAddr::from([192, 0, 2, 1])]), now);
        for number in 0..=MAX_FAILED {
            let until = now + Duration::from_millis(number as u64);
            names.keep_failed(format!("bad-{number}").into(), LookUpError::NoSuchName, until);
        }
        assert_eq!((names.failed.len(), names.known.len()), (MAX_FAILED, 1));
        assert!(!names.failed.contains_key("bad-0"), "the oldest made room");
        // An answer that has run out serves while the name fails.
        names.keep_failed("good".into(), LookUpError::NoAnswer, now + FAILED_FOR);
        assert_eq!(names.fresh("good", now), Some(Err(LookUpError::NoAnswer)));
        assert!(names.stale("good", now).is_some());
    }
}
