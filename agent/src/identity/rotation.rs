//! Asking for certificates, renewing them at half of their life, and publishing them. The clock on the wall is
//! looked at twice a minute, so that a jump or a suspended machine is noticed; an expired certificate is never shown.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use baremesh_ca::issued::{Issued, IssuedError};
use baremesh_ca::service::MAX_BATCH;
use baremesh_ca::tls::{NODE_GRACE, TrustBundle};
use baremesh_model::identity::Identity;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use super::expiry::{self, Ends, Kind, Reminder};
use super::issuer::{Issuer, NodeCredential, NotIssued};
use super::renewal::{leads_to_first, renewal, soon};
use super::store::Store;
use crate::credentials::{Credential, Credentials};
use crate::membership::save_node;
use crate::telemetry::metrics::Metrics;
use crate::trust::Trust;

/// How often the wall clock is looked at.
const LOOK: Duration = Duration::from_secs(30);
/// The first wait after a failure; doubled with each, up to the longest.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest wait after a failure.
const MAX_RETRY: Duration = Duration::from_secs(60);
/// What failed while the source was away is tried again within this time of its return, each host at a moment by chance.
const AFTER_RETURN: Duration = Duration::from_secs(5);

/// What rotation has to say about each identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RotationStatus {
    /// Why the last attempt failed, where it did. What is held meanwhile may still be valid.
    pub missing: BTreeMap<Identity, String>,
    /// Those among them that the host was not granted.
    pub not_granted: BTreeSet<Identity>,
    /// What is near its end, in words.
    pub ending: Vec<String>,
}

/// The rotation of this host's certificates.
pub struct Rotation {
    /// Who signs.
    pub issuer: Issuer,
    /// The node credential and where it is kept, where there is a control server.
    pub node: Option<Node>,
    /// What peers are verified against, and what the data path uses.
    pub trust: Arc<Trust>,
    /// Where certificates are kept.
    pub directory: PathBuf,
    /// The identities that the host needs.
    pub wanted: watch::Receiver<Vec<Identity>>,
    /// Whether the source of the mesh is in reach. Who signs is away and back with it, mostly.
    pub connected: watch::Receiver<bool>,
    /// What is wrong at the moment.
    pub status: Arc<Mutex<RotationStatus>>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
}

/// The node credential, which renews itself with the rest.
pub struct Node {
    /// What connections to the control server show.
    pub credential: Arc<NodeCredential>,
    /// The one that stands.
    pub issued: Arc<Issued>,
    /// Where it is kept.
    pub directory: PathBuf,
}

/// A certificate that is held, and when it is to be renewed.
struct Held {
    credential: Arc<Credential>,
    chain: Vec<CertificateDer<'static>>,
    renew_at: SystemTime,
}

impl Rotation {
    /// Takes up what is kept on disk and publishes it, so that the data path starts with it.
    pub fn start(self) -> Rotating {
        let now = SystemTime::now();
        let store = Store(self.directory.clone());
        if let Err(error) = store.prepare() {
            tracing::warn!(directory = %self.directory.display(), %error, "certificates cannot be kept on disk");
        }
        let node_renewal = self.node.as_ref().map(|node| renewal(&node.issued, &self.trust.now()));
        let mut rotating = Rotating {
            held: BTreeMap::new(),
            store,
            reminder: Reminder::default(),
            failures: 0,
            failed: None,
            retry_at: None,
            node_renewal,
            was_connected: false,
            trust: self.trust.follow(),
            rotation: self,
        };
        let wanted = rotating.rotation.wanted.borrow().clone();
        for identity in &wanted {
            if let Some(issued) = rotating.store.load(identity, &rotating.rotation.trust.now(), now) {
                // One that cannot be used is asked for like one that is not there.
                let _ = rotating.hold(&issued);
            }
        }
        rotating.publish();
        rotating
    }
}

/// The rotation under way.
pub struct Rotating {
    rotation: Rotation,
    /// Tells when what is trusted has changed.
    trust: watch::Receiver<Arc<TrustBundle>>,
    held: BTreeMap<Identity, Held>,
    store: Store,
    reminder: Reminder,
    /// Rounds that failed one after the other.
    failures: u32,
    /// What failed last in this round.
    failed: Option<String>,
    retry_at: Option<Instant>,
    node_renewal: Option<SystemTime>,
    /// Whether the source was in reach at the last look.
    was_connected: bool,
}

impl Rotating {
    /// Keeps every wanted identity in certificates for as long as it is polled.
    pub async fn run(mut self) {
        loop {
            self.drop_unwanted();
            self.look_at_source();
            let now = SystemTime::now();
            if self.may_ask() {
                self.round(now).await;
            }
            self.look_ahead(SystemTime::now());
            let wait = self.until_next(SystemTime::now());
            tokio::select! {
                changed = self.rotation.wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // Whichever of these came first, the next turn sees to it.
                    self.rotation.wanted.mark_changed();
                }
                changed = self.trust.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.drop_revoked();
                    self.hurry_from_other_roots(SystemTime::now());
                }
                () = changed(&mut self.rotation.connected) => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Asks for all that is due. However much of it fails, it is one failure to wait after.
    async fn round(&mut self, now: SystemTime) {
        self.renew_node(now).await;
        let due = self.due(now);
        for batch in due.chunks(MAX_BATCH) {
            self.ask(batch).await;
        }
        self.retry_at = self.failed.take().map(|reason| self.back_off(&reason));
        if self.retry_at.is_none() {
            self.failures = 0;
        }
    }

    /// When the source is in reach again, does not wait as long as was meant while nobody could sign.
    fn look_at_source(&mut self) {
        let is_connected = *self.rotation.connected.borrow_and_update();
        let was_connected = std::mem::replace(&mut self.was_connected, is_connected);
        if is_connected && !was_connected {
            let soon = Instant::now() + AFTER_RETURN.mul_f64(rand::random());
            self.retry_at = self.retry_at.map(|at| at.min(soon));
        }
    }

    fn may_ask(&self) -> bool {
        self.retry_at.is_none_or(|at| Instant::now() >= at)
    }

    /// The identities without a certificate, and those whose certificate is due for renewal.
    fn due(&self, now: SystemTime) -> Vec<Identity> {
        let wanted = self.rotation.wanted.borrow();
        let due = |identity: &&Identity| {
            self.held.get(*identity).is_none_or(|held| now >= held.renew_at || !held.credential.is_valid(now))
        };
        wanted.iter().filter(due).cloned().collect()
    }

    async fn ask(&mut self, identities: &[Identity]) {
        match self.rotation.issuer.issue(identities).await {
            Ok(answers) => {
                for (identity, answer) in identities.iter().zip(answers) {
                    self.take(identity, answer);
                }
            }
            Err(error) => {
                for identity in identities {
                    self.missing(identity, error.to_string());
                }
                self.failed(&error.to_string());
            }
        }
        // Of what failed, too, so that nobody waits for it.
        self.publish();
    }

    fn take(&mut self, identity: &Identity, answer: Result<Issued, NotIssued>) {
        match answer {
            Ok(issued) => {
                if let Err(error) = self.store.save(&issued) {
                    tracing::warn!(%identity, %error, "a certificate could not be kept on disk; it is used all the same");
                }
                tracing::info!(%identity, serial = issued.serial, "certificate issued");
                if let Err(error) = self.hold(&issued) {
                    self.missing(identity, error.to_string());
                    self.failed(&error.to_string());
                }
            }
            Err(NotIssued { reason, is_temporary, is_not_granted }) => {
                // A refusal for good is asked about again too, seldom: a grant may come.
                tracing::warn!(%identity, reason, is_temporary, "certificate refused");
                self.missing(identity, reason.clone());
                if is_not_granted {
                    self.status().not_granted.insert(identity.clone());
                }
                self.failed(&reason);
            }
        }
    }

    fn hold(&mut self, issued: &Issued) -> Result<(), IssuedError> {
        let credential = Credential::new(issued).inspect_err(|error| {
            tracing::error!(identity = %issued.identity, %error, "a certificate cannot be used");
        })?;
        let renew_at = renewal(issued, &self.rotation.trust.now());
        let held = Held { credential: Arc::new(credential), chain: issued.chain.clone(), renew_at };
        self.status().missing.remove(&issued.identity);
        self.status().not_granted.remove(&issued.identity);
        self.held.insert(issued.identity.clone(), held);
        Ok(())
    }

    async fn renew_node(&mut self, now: SystemTime) {
        let Some(node) =
            self.rotation.node.as_mut().filter(|_| self.node_renewal.is_some_and(|at| now >= at))
        else {
            return;
        };
        if now > node.issued.not_after + NODE_GRACE {
            let reason = format!(
                "the node credential has ended, and renews itself for {} days after its end: `baremesh token create --rejoin {}` on the \
                 control host, and `baremesh join … --force` here",
                NODE_GRACE.as_secs() / 86_400,
                node.issued.identity.service_account()
            );
            tracing::error!("{reason}");
            return self.failed(&reason);
        }
        let identity = node.issued.identity.clone();
        let renewed = match self.rotation.issuer.issue(std::slice::from_ref(&identity)).await {
            Ok(mut answers) => answers.pop().unwrap_or_else(|| {
                Err(NotIssued {
                    reason: "an empty answer".to_owned(),
                    is_temporary: true,
                    is_not_granted: false,
                })
            }),
            Err(error) => {
                Err(NotIssued { reason: error.to_string(), is_temporary: true, is_not_granted: false })
            }
        };
        match renewed {
            Ok(issued) => {
                let kept = save_node(&node.directory, &issued).map_err(|error| error.to_string());
                let taken = node.credential.replace(&issued).map_err(|error| error.to_string());
                if let Err(error) = kept.and(taken) {
                    tracing::error!(error, "the renewed node credential cannot be kept");
                }
                self.node_renewal = Some(renewal(&issued, &self.rotation.trust.now()));
                node.issued = Arc::new(issued);
            }
            Err(refused) => {
                tracing::warn!(reason = refused.reason, "the node credential was not renewed");
                self.failed(&refused.reason);
            }
        }
    }

    fn failed(&mut self, reason: &str) {
        self.rotation.metrics.issue_failures.inc();
        self.failed = Some(reason.to_owned());
    }

    /// When the next round may be, after one that failed.
    fn back_off(&mut self, reason: &str) -> Instant {
        let doubled =
            FIRST_RETRY.saturating_mul(1_u32.checked_shl(self.failures.min(16)).unwrap_or(u32::MAX));
        let wait = doubled.min(MAX_RETRY).mul_f64(0.5 + rand::random::<f64>() / 2.0);
        self.failures = self.failures.saturating_add(1);
        tracing::debug!(reason, ?wait, "certificates are asked for again");
        Instant::now() + wait
    }

    fn missing(&self, identity: &Identity, reason: String) {
        self.status().missing.insert(identity.clone(), reason);
    }

    fn status(&self) -> std::sync::MutexGuard<'_, RotationStatus> {
        self.rotation.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_unwanted(&mut self) {
        if self.rotation.wanted.has_changed().is_ok_and(|changed| changed) {
            // Somebody may be waiting for a new service: it is asked for at once.
            self.retry_at = None;
        }
        let wanted = self.rotation.wanted.borrow_and_update().clone();
        let count = |rotating: &Self| (rotating.held.len(), rotating.status().missing.len());
        let before = count(self);
        self.held.retain(|identity, _| wanted.contains(identity));
        self.status().missing.retain(|identity, _| wanted.contains(identity));
        self.status().not_granted.retain(|identity| wanted.contains(identity));
        let after = count(self);
        if after.0 != before.0 {
            self.store.retain(&wanted);
        }
        if after != before {
            self.publish();
        }
    }

    /// Lets go of what peers refuse, so that others are asked for.
    fn drop_revoked(&mut self) {
        let bundle = Arc::clone(&self.trust.borrow_and_update());
        let before = self.held.len();
        self.held.retain(|identity, held| {
            let revoked = bundle.revoked().contains(&held.credential.serial);
            if revoked {
                tracing::warn!(%identity, serial = held.credential.serial, "a certificate of this host was revoked; another one is asked for");
            }
            !revoked
        });
        if self.held.len() != before {
            self.retry_at = None;
            self.publish();
        }
    }

    /// Renews soon what leads to a root that signs no more: it may be dropped when nothing leads to it.
    fn hurry_from_other_roots(&mut self, now: SystemTime) {
        let bundle = self.rotation.trust.now();
        for held in self.held.values_mut().filter(|held| !leads_to_first(&held.chain, &bundle, now)) {
            held.renew_at = held.renew_at.min(soon(now));
        }
        let node = self.rotation.node.as_ref().map(|node| &node.issued.chain);
        if node.is_some_and(|chain| !leads_to_first(chain, &bundle, now)) {
            self.node_renewal = self.node_renewal.map(|at| at.min(soon(now)));
        }
    }

    /// Says what is near its end.
    fn look_ahead(&mut self, now: SystemTime) {
        let node = self.rotation.node.as_ref().map(|node| &node.issued);
        let chains = self.held.values().map(|held| &held.chain[..]).chain(node.map(|node| &node.chain[..]));
        let mut all = expiry::authorities(&self.rotation.trust.now(), chains);
        self.rotation.metrics.expiry.authorities(&all, node.map(|node| node.not_after));
        let ends = |kind, of: String, from, until| Ends { kind, of, from, until };
        all.extend(node.map(|node| ends(Kind::Node, String::new(), node.not_before, node.not_after)));
        all.extend(self.held.values().map(|held| {
            let held = &held.credential;
            ends(Kind::Leaf, held.identity.to_string(), held.not_before, held.not_after)
        }));
        let ending = self.reminder.remind(&all, now);
        self.status().ending = ending;
    }

    fn publish(&self) {
        let held = || self.held.values().map(|held| Arc::clone(&held.credential));
        let expiries = self.held.values().map(|held| (&held.credential.identity, held.credential.not_after));
        self.rotation.metrics.expiry.certificates(expiries);
        let missing: HashSet<_> = self.status().missing.keys().cloned().collect();
        // What is trusted may change at this very moment, and must not be put back.
        self.rotation.trust.credentials().update(|current| {
            let bundle = current.bundle();
            Credentials::new(Arc::clone(bundle), held()).without(missing.clone()).under(bundle)
        });
    }

    /// How long nothing is to be done.
    fn until_next(&self, now: SystemTime) -> Duration {
        let renewals = self.held.values().map(|held| held.renew_at).chain(self.node_renewal);
        let until = |at: SystemTime| at.duration_since(now).unwrap_or_default();
        let next = renewals.map(until).min().unwrap_or(LOOK);
        let missing = !self.due(now).is_empty();
        let wait = match self.retry_at {
            Some(at) if missing || next.is_zero() => at.saturating_duration_since(Instant::now()),
            _ => next,
        };
        // Never in a tight loop, whatever the clock does.
        wait.clamp(Duration::from_millis(50), LOOK)
    }
}

/// Ends when it may have changed whether the source is in reach.
async fn changed(connected: &mut watch::Receiver<bool>) {
    if connected.changed().await.is_err() {
        // It is followed no more.
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use baremesh_ca::authority::Authority;
    use baremesh_ca::local::LocalIssuer;
    use baremesh_model::grant::Grant;
    use baremesh_model::name::{Label, TrustDomain};

    use super::*;

    /// The rotation of a host that was granted the namespace `shop`, in `directory`.
    fn rotating(directory: &std::path::Path, wanted: watch::Receiver<Vec<Identity>>) -> Rotating {
        let domain = TrustDomain::new("td").expect("a domain");
        let authority = Authority::create(directory.join("ca"), &domain, SystemTime::now());
        let authority = authority.expect("an authority");
        let bundle = Arc::new(authority.bundle().expect("a bundle"));
        let grants = vec![Grant::parse("*.shop").expect("a grant")];
        let host = Label::new("h1").expect("a label");
        let issuer = LocalIssuer::new(authority, host, grants, Duration::from_secs(3600));
        let rotation = Rotation {
            issuer: Issuer::Local(Arc::new(Mutex::new(issuer))),
            node: None,
            trust: Trust::new(bundle, None),
            directory: directory.join("certificates"),
            wanted,
            connected: watch::channel(false).1,
            status: Arc::default(),
            metrics: Metrics::new("test"),
        };
        rotation.start()
    }

    fn identities(namespace: &str, count: usize) -> Vec<Identity> {
        let identity = |number| Identity::parse(&format!("spiffe://td/ns/{namespace}/sa/s{number}"));
        (0..count).map(|number| identity(number).expect("an identity")).collect()
    }

    #[tokio::test]
    async fn a_round_is_one_failure_however_much_of_it_fails() {
        let directory = tempfile::tempdir().expect("a directory");
        let refused = identities("elsewhere", MAX_BATCH + 3);
        let wanted = watch::Sender::new([refused.clone(), identities("shop", 1)].concat());
        let mut rotating = rotating(directory.path(), wanted.subscribe());
        for round in 1..=10 {
            let before = Instant::now();
            rotating.round(SystemTime::now()).await;
            let after = Instant::now();
            assert_eq!(rotating.failures, round);
            let at = rotating.retry_at.expect("it is tried again");
            let most = FIRST_RETRY.saturating_mul(1 << (round - 1)).min(MAX_RETRY);
            assert!(at >= before + most / 2 && at <= after + most, "round {round}: {:?}", at - before);
            assert_eq!(
                rotating.rotation.metrics.issue_failures.get(),
                u64::from(round) * refused.len() as u64
            );
        }
        assert!(
            rotating.rotation.trust.credentials().load().iter().count() == 1,
            "what was granted is there"
        );
        assert_eq!(rotating.status().missing.len(), refused.len());
        let published = rotating.rotation.trust.credentials();
        assert!(!refused.iter().any(|one| published.load().is_awaited(one)), "nobody waits for them");

        wanted.send_replace(identities("shop", 2));
        rotating.drop_unwanted();
        assert!(rotating.may_ask(), "who is new is asked for at once, whatever failed before");
        rotating.round(SystemTime::now()).await;
        assert_eq!((rotating.failures, rotating.retry_at), (0, None), "all is well again");
        assert!(rotating.status().missing.is_empty());
    }

    #[tokio::test]
    async fn what_failed_is_tried_again_soon_when_the_source_is_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let wanted = watch::Sender::new(identities("elsewhere", 1));
        let mut rotating = rotating(directory.path(), wanted.subscribe());
        let connected = watch::Sender::new(true);
        rotating.rotation.connected = connected.subscribe();
        rotating.look_at_source();
        assert_eq!(rotating.retry_at, None, "nothing failed");
        rotating.failures = 10;
        rotating.round(SystemTime::now()).await;
        let soon = |rotating: &Rotating| rotating.retry_at <= Some(Instant::now() + AFTER_RETURN);
        for (is_connected, expected) in [(true, false), (false, false), (true, true)] {
            connected.send_replace(is_connected);
            rotating.look_at_source();
            assert_eq!(soon(&rotating), expected, "{is_connected}");
        }
    }

    const LIFE: Duration = Duration::from_secs(4 * 3600);

    /// The clock on the wall may stand anywhere when it is looked at next: after a jump, or a suspend.
    #[tokio::test]
    async fn a_clock_that_jumps_is_followed_and_what_it_leaves_is_neither_shown_nor_kept() {
        let place = tempfile::tempdir().expect("a directory");
        let domain = TrustDomain::new("td").expect("a domain");
        let directory = place.path().join("ca");
        let authority = Authority::create(directory, &domain, SystemTime::now()).expect("an authority");
        let bundle = Arc::new(authority.bundle().expect("a bundle"));
        let (host, grants) =
            (Label::new("h1").expect("a label"), vec![Grant::parse("*.*").expect("a grant")]);
        let issuer = LocalIssuer::new(authority, host, grants, LIFE);
        let web = Identity::parse("spiffe://td/ns/default/sa/web").expect("an identity");
        let trust = Trust::new(bundle, None);
        let published = trust.credentials();
        let rotation = Rotation {
            issuer: Issuer::Local(Arc::new(Mutex::new(issuer))),
            node: None,
            trust,
            directory: place.path().join("certificates"),
            wanted: watch::channel(vec![web.clone()]).1,
            connected: watch::channel(false).1,
            status: Arc::default(),
            metrics: Metrics::new("mesh"),
        };
        let mut rotating = rotation.start();
        rotating.ask(std::slice::from_ref(&web)).await;
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        for (at, due, shown) in [
            (now, false, true),
            (now + hour, false, true),
            (now + 3 * hour, true, true),
            (now + 5 * hour, true, false),
            (now - hour, true, false),
        ] {
            assert_eq!(!rotating.due(at).is_empty(), due, "{at:?}");
            assert_eq!(published.load().of(&web, at).is_some(), shown, "{at:?}");
            // However far away the renewal seems, the clock is looked at soon.
            assert!(rotating.until_next(at) <= LOOK, "{at:?}");
        }
    }
}
