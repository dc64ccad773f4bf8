//! What peers are verified against, as it changes: the roots of the mesh, those of federated trust domains, and the
//! certificates that are revoked. The control server sends all of it with the mesh's state. What is new holds for every handshake from then on, and then those
//! are told who hold connections open that it does not allow any more.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use baremesh_ca::issued::chain_from_pem;
use baremesh_ca::revocation::Revoked;
use baremesh_ca::tls::TrustBundle;
use baremesh_ca::tls::{FederatedRoots, PeerVerifier, Purpose};
use baremesh_model::name::TrustDomain;
use baremesh_registry::control::{FEDERATED, REVOKED, ROOTS, STATEMENT_PEM};
use rustls::pki_types::CertificateDer;
use serde_json::Value;
use tokio::sync::watch;

use crate::credentials::{Credentials, Keyring};
use crate::membership::save_roots;

/// The trust in force, and the certificates that are shown under it.
#[derive(Debug)]
pub struct Trust {
    in_force: watch::Sender<Arc<TrustBundle>>,
    credentials: Arc<Keyring>,
    /// Where a member keeps the roots.
    node: Option<PathBuf>,
    /// The list of revoked certificates in force, as it was stated.
    list: Mutex<Option<Value>>,
}

/// A list of revoked certificates that is not taken because a newer one is in force: whoever can write where agents read it
/// could otherwise put one back that the authority did sign once, and have what was revoked since taken again.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "the list of revoked certificates is an older one, number {number}, where {in_force} is in force and stays: did somebody put \
     it back, or was the control server restored from a backup?"
)]
pub struct OlderList {
    /// The number of the list that was stated.
    pub number: u64,
    /// The number of the one that stays in force.
    pub in_force: u64,
    /// That one, as it was stated.
    pub kept: Option<Value>,
}

impl Trust {
    /// What a host begins with. A member keeps what comes later in the directory `node`.
    pub fn new(bundle: Arc<TrustBundle>, node: Option<PathBuf>) -> Arc<Self> {
        let credentials = Credentials::new(Arc::clone(&bundle), []);
        Arc::new(Self {
            in_force: watch::Sender::new(bundle),
            credentials: Arc::new(Keyring::new(credentials)),
            node,
            list: Mutex::default(),
        })
    }

    /// What is in force now.
    pub fn now(&self) -> Arc<TrustBundle> {
        Arc::clone(&self.in_force.borrow())
    }

    /// Follows what is in force.
    pub fn follow(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.in_force.subscribe()
    }

    /// The certificates of this host, with what peers are verified against.
    pub fn credentials(&self) -> Arc<Keyring> {
        Arc::clone(&self.credentials)
    }

    /// Puts what a state says in force, at once: `stated` has its values by key. It writes the roots to the disk when they are others.
    /// A list of revoked certificates that is older than the one in force is not taken, and what is instead of it is returned.
    pub fn take(&self, stated: impl Fn(&str) -> Option<Value>) -> Result<Option<OlderList>, String> {
        // One at a time: of two lists the newer one stays, whichever comes first.
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.now();
        let (after, older) = of_state(&stated, &before)?;
        let older = match older {
            Some(number) => {
                Some(OlderList { number, in_force: before.revoked().number(), kept: list.clone() })
            }
            None => {
                *list = stated(REVOKED);
                None
            }
        };
        if after != *before {
            let after = Arc::new(after);
            if after.roots() != before.roots()
                && let Some(node) = &self.node
                && let Err(error) = save_roots(node, &after)
            {
                tracing::error!(%error, "the roots of the mesh cannot be kept: they are in force until the agent stops");
            }
            // Nobody who is cut off below gets in again above.
            self.credentials.update(|credentials| credentials.under(&after));
            tracing::info!(
                roots = after.roots().len(),
                revoked = after.revoked().len(),
                federated = after.federated().len(),
                "what is trusted has changed"
            );
            self.in_force.send_replace(after);
        }
        Ok(older)
    }
}

/// What a state says is to be trusted. Roots change one by one: a set that has nothing in common with the one before is
/// of another mesh.
///
/// The number is that of a list of revoked certificates that is older than the one in force, which stays.
fn of_state(
    stated: impl Fn(&str) -> Option<Value>,
    before: &TrustBundle,
) -> Result<(TrustBundle, Option<u64>), String> {
    let roots = match stated(ROOTS) {
        // Of a control server from before there were any.
        None => before.clone(),
        Some(value) => {
            let text = value[STATEMENT_PEM].as_str().unwrap_or_default();
            let read = TrustBundle::from_pem(before.trust_domain().clone(), text.as_bytes());
            let read = read.map_err(|error| format!("the roots of the mesh are not taken: {error}"))?;
            if !read.roots().iter().any(|root| before.roots().contains(root)) {
                return Err("none of the roots of the mesh is trusted here: join it again".to_owned());
            }
            read
        }
    };
    let (revoked, older) = match stated(REVOKED) {
        None => (Revoked::default(), None),
        Some(value) => {
            let text = value[STATEMENT_PEM].as_str().unwrap_or_default();
            let read = Revoked::read(text, roots.roots()).map_err(|error| error.to_string())?;
            match read.number() < before.revoked().number() {
                true => (before.revoked().clone(), Some(read.number())),
                false => (read, None),
            }
        }
    };
    let federated = match stated(FEDERATED) {
        None => FederatedRoots::new(),
        Some(value) => federated(&value)?,
    };
    let trusted = roots.with_federated(federated).map_err(|error| error.to_string())?;
    Ok((trusted.refusing(revoked), older))
}

/// The roots of other trust domains. One whose roots cannot be read is trusted in nothing, and keeps neither what is
/// revoked nor the others from being taken: who is trusted is never guessed.
fn federated(value: &Value) -> Result<FederatedRoots, String> {
    let unreadable =
        |what: &dyn std::fmt::Display| format!("the roots of federated trust domains are not taken: {what}");
    let all = value.as_object().ok_or_else(|| unreadable(&"they are no object"))?;
    let read = |(name, pem): (&String, &Value)| {
        let domain = TrustDomain::new(name).map_err(|error| error.to_string())?;
        let roots = chain_from_pem(pem.as_str().unwrap_or_default().as_bytes());
        let roots = roots.ok_or_else(|| "they are no certificates".to_owned())?;
        // Whether peers can be verified against them.
        TrustBundle::new(domain.clone(), roots.clone()).map_err(|error| error.to_string())?;
        Ok((domain, roots))
    };
    let one = |entry: (&String, &Value)| {
        let taken: Result<_, String> = read(entry);
        let unusable = |error: &String| {
            tracing::error!(trust_domain = ?entry.0, "nobody of a federated trust domain is trusted: its roots cannot be read: {error}");
        };
        taken.inspect_err(unusable).ok()
    };
    Ok(all.iter().filter_map(one).collect())
}

/// Whether an entry of a state is about trust, and no resource.
pub fn is_about_trust(key: &str) -> bool {
    key == REVOKED || key == ROOTS || key == FEDERATED
}

/// What a peer of a federated trust domain showed. What its domain revokes is not known here; but it is judged again when
/// that domain's roots are others, or gone.
#[derive(Debug)]
pub struct Stranger {
    leaf: CertificateDer<'static>,
    issuers: Vec<CertificateDer<'static>>,
    purpose: Purpose,
}

impl Stranger {
    /// What a verified peer showed, if it is of another trust domain than the mesh's.
    pub fn of(
        (leaf, issuers): (&CertificateDer<'static>, &[CertificateDer<'static>]),
        domain: &TrustDomain,
        purpose: Purpose,
        bundle: &TrustBundle,
    ) -> Option<Self> {
        let is_one = domain != bundle.trust_domain();
        is_one.then(|| Self { leaf: leaf.clone(), issuers: issuers.to_vec(), purpose })
    }

    fn is_taken_by(&self, bundle: &Arc<TrustBundle>) -> bool {
        let verifier = PeerVerifier::new(Arc::clone(bundle));
        verifier.verify(&self.leaf, &self.issuers, self.purpose, SystemTime::now()).is_ok()
    }
}

/// Who is at the other end of a tunnel, and who at this one, as far as it may end their tunnel.
#[derive(Debug)]
pub struct Ends<'a> {
    /// The serial numbers of both certificates.
    pub serials: [&'a str; 2],
    /// The peer, where it is of another trust domain.
    pub stranger: Option<&'a Stranger>,
}

impl Ends<'_> {
    /// Whether they are taken still.
    pub fn are_taken_by(&self, bundle: &Arc<TrustBundle>) -> bool {
        let [peer, own] = self.serials;
        let revoked = bundle.revoked();
        let is_revoked = |serial: &str| !revoked.is_empty() && revoked.contains(serial);
        match self.stranger {
            // The list is about serial numbers of this mesh's authority.
            Some(stranger) => !is_revoked(own) && stranger.is_taken_by(bundle),
            None => !is_revoked(own) && !is_revoked(peer),
        }
    }
}

/// Ends when one of the two is not to be taken any more; never when there is nobody who could say so.
pub async fn until_untrusted(trust: &mut watch::Receiver<Arc<TrustBundle>>, ends: &Ends<'_>) {
    if trust.wait_for(|bundle| !ends.are_taken_by(bundle)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::SystemTime;

    use baremesh_ca::authority::Authority;
    use baremesh_model::name::TrustDomain;
    use serde_json::json;

    use super::*;

    fn authority(directory: &std::path::Path) -> Authority {
        let domain = TrustDomain::new("td").expect("a domain");
        Authority::create(directory, &domain, SystemTime::now()).expect("an authority")
    }

    fn of(state: &BTreeMap<String, Value>) -> impl Fn(&str) -> Option<Value> {
        |key| state.get(key).cloned()
    }

    fn state(authority: &Authority, revoked: &[&str]) -> BTreeMap<String, Value> {
        numbered(authority, revoked, 5)
    }

    fn numbered(authority: &Authority, revoked: &[&str], number: u64) -> BTreeMap<String, Value> {
        let roots = authority.bundle().expect("a bundle").to_pem();
        let mut state = BTreeMap::from([(ROOTS.to_owned(), json!({ STATEMENT_PEM: roots }))]);
        if !revoked.is_empty() {
            let now = SystemTime::now();
            let revoked: Vec<_> = revoked.iter().map(|serial| ((*serial).to_owned(), now)).collect();
            let list = authority.sign_revocations(&revoked, number, now).expect("a list");
            state.insert(REVOKED.to_owned(), json!({ STATEMENT_PEM: list }));
        }
        state
    }

    #[test]
    fn a_federated_domain_that_cannot_be_read_keeps_nothing_else_from_being_taken() {
        let place = tempfile::tempdir().expect("a directory");
        let (ours, theirs) = (authority(&place.path().join("ours")), authority(&place.path().join("theirs")));
        let trust = Trust::new(Arc::new(ours.bundle().expect("a bundle")), None);
        let good = theirs.bundle().expect("a bundle").to_pem();
        let junk = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        let mut pushed = state(&ours, &["ab"]);
        let federated = json!({ "good": good, "junk": junk, "none": "", "Not A Domain": good, "odd": 7 });
        pushed.insert(FEDERATED.to_owned(), federated);
        trust.take(of(&pushed)).expect("taken");
        assert!(trust.now().revoked().contains("ab"));
        let taken: Vec<_> = trust.now().federated().map(ToString::to_string).collect();
        assert_eq!(taken, ["good"]);
        pushed.insert(FEDERATED.to_owned(), json!("no object"));
        assert!(trust.take(of(&pushed)).is_err());
    }

    #[test]
    fn a_list_that_is_older_than_the_one_in_force_is_not_taken_and_all_else_is() {
        let place = tempfile::tempdir().expect("a directory");
        let mut ours = authority(place.path());
        let trust = Trust::new(Arc::new(ours.bundle().expect("a bundle")), None);
        let (old, new) = (numbered(&ours, &["ab"], 7), numbered(&ours, &["ab", "cd"], 8));
        assert_eq!(trust.take(of(&old)).expect("taken"), None);
        assert_eq!(trust.take(of(&new)).expect("taken"), None);
        let now = SystemTime::now();
        ours.stage_root(now, now).expect("made");
        let mut back = state(&ours, &[]);
        back.insert(REVOKED.to_owned(), old[REVOKED].clone());
        let older = trust.take(of(&back)).expect("taken").expect("an older list");
        assert_eq!((older.number, older.in_force, older.kept.as_ref()), (7, 8, Some(&new[REVOKED])));
        assert!(older.to_string().contains("put it back"), "{older}");
        assert!(trust.now().revoked().contains("cd"), "what was in force stays");
        assert_eq!(trust.now().roots().len(), 2, "and the rest is taken");
        // Signed again, with the same number or a higher one.
        for number in [8, 9] {
            assert_eq!(trust.take(of(&numbered(&ours, &["cd"], number))).expect("taken"), None);
            assert!(!trust.now().revoked().contains("ab"));
        }
        // A control server that says that nothing is revoked any more is another matter: it says so itself.
        assert_eq!(trust.take(of(&state(&ours, &[]))).expect("taken"), None);
        assert!(trust.now().revoked().is_empty());
    }

    #[test]
    fn roots_and_revocations_come_with_the_state_and_are_of_this_mesh() {
        let place = tempfile::tempdir().expect("a directory");
        let (mut ours, theirs) =
            (authority(&place.path().join("ours")), authority(&place.path().join("theirs")));
        let bundle = Arc::new(ours.bundle().expect("a bundle"));
        let trust = Trust::new(Arc::clone(&bundle), Some(place.path().to_owned()));
        trust.take(of(&state(&ours, &["ab"]))).expect("taken");
        assert!(trust.now().revoked().contains("ab"));
        assert!(!place.path().join("roots.pem").exists(), "the roots are the same");
        assert_eq!(trust.credentials().load().bundle(), &trust.now(), "handshakes go by it");
        for (bad, reason) in [
            (state(&theirs, &[]), "none of the roots"),
            (BTreeMap::from([(REVOKED.to_owned(), json!({ STATEMENT_PEM: "" }))]), "cannot be read"),
            (BTreeMap::from([(ROOTS.to_owned(), json!({}))]), "not taken"),
            (
                BTreeMap::from([(REVOKED.to_owned(), state(&theirs, &["cd"])[REVOKED].clone())]),
                "not signed by this mesh's authority",
            ),
        ] {
            let refused = trust.take(of(&bad)).expect_err("refused");
            assert!(refused.contains(reason), "{refused}");
            assert!(trust.now().revoked().contains("ab"), "what was in force stays");
        }
        let now = SystemTime::now();
        ours.stage_root(now, now).expect("made");
        trust.take(of(&state(&ours, &[]))).expect("taken");
        assert_eq!((trust.now().roots().len(), trust.now().revoked().len()), (2, 0));
        let kept = std::fs::read(place.path().join("roots.pem")).expect("kept");
        let kept = TrustBundle::from_pem(bundle.trust_domain().clone(), &kept).expect("roots");
        assert_eq!(kept.roots(), trust.now().roots());
        trust.take(|_| None).expect("taken");
        assert_eq!(trust.now().roots().len(), 2, "who says nothing of roots takes none back");
    }
}
