//! The certificates that this host holds at the moment, and the TLS configurations made from them. A rotation
//! publishes a new set; connections that stand keep theirs, and those that need a certificate which is on its way wait for it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, Guard};
use baremesh_ca::issued::{Issued, IssuedError};
use baremesh_ca::tls::{Expected, TrustBundle, client_config, server_config, single_certificate};
use baremesh_model::identity::Identity;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::watch;

/// One identity's certificate, ready for use.
#[derive(Debug)]
pub struct Credential {
    /// Whose it is.
    pub identity: Identity,
    /// From when on it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
    /// The leaf's serial number in hexadecimal.
    pub serial: String,
    key: Arc<CertifiedKey>,
}

impl Credential {
    /// Makes a certificate and its key ready for TLS.
    pub fn new(issued: &Issued) -> Result<Self, IssuedError> {
        Ok(Self {
            identity: issued.identity.clone(),
            not_before: issued.not_before,
            not_after: issued.not_after,
            serial: issued.serial.clone(),
            key: issued.certified_key()?,
        })
    }

    /// Whether the certificate may be shown at `now`.
    pub fn is_valid(&self, now: SystemTime) -> bool {
        self.not_before <= now && now < self.not_after
    }
}

/// All certificates of this host's services and of the host itself. The node credential, which speaks to the
/// control server alone, is not among them.
#[derive(Debug)]
pub struct Credentials {
    bundle: Arc<TrustBundle>,
    by_identity: HashMap<Identity, Arc<Credential>>,
    /// Those whom the last attempt to get them a certificate left without.
    missing: HashSet<Identity>,
    /// Listener configurations by who is reached there. A few at most.
    listeners: Mutex<HashMap<Listening, Arc<ServerConfig>>>,
}

impl Credentials {
    /// A set of certificates under one trust bundle.
    pub fn new(bundle: Arc<TrustBundle>, credentials: impl IntoIterator<Item = Arc<Credential>>) -> Self {
        let by_identity = credentials.into_iter().map(|held| (held.identity.clone(), held)).collect();
        Self { bundle, by_identity, missing: HashSet::new(), listeners: Mutex::default() }
    }

    /// The same set, with those for whom a certificate was asked in vain.
    pub fn without(self, missing: HashSet<Identity>) -> Self {
        Self { missing, ..self }
    }

    /// The same certificates under another trust bundle, without those that it refuses.
    pub fn under(&self, bundle: &Arc<TrustBundle>) -> Self {
        let taken = self.iter().filter(|held| !bundle.revoked().contains(&held.serial));
        Self::new(Arc::clone(bundle), taken.cloned()).without(self.missing.clone())
    }

    /// The certificate of `identity`, unless it has expired or is not valid yet: such a one is never shown.
    pub fn of(&self, identity: &Identity, now: SystemTime) -> Option<&Arc<Credential>> {
        self.by_identity.get(identity).filter(|credential| credential.is_valid(now))
    }

    /// Whether the certificate of an identity is on its way, where this host needs it: there is none yet, and it was not asked
    /// for in vain.
    pub fn is_awaited(&self, identity: &Identity) -> bool {
        !self.by_identity.contains_key(identity) && !self.missing.contains(identity)
    }

    /// The certificates, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Credential>> {
        self.by_identity.values()
    }

    /// The roots and the trust domain that peers are verified against.
    pub fn bundle(&self) -> &Arc<TrustBundle> {
        &self.bundle
    }

    /// The listener's configuration.
    pub fn listener(self: &Arc<Self>, listening: &Listening) -> Arc<ServerConfig> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let resolver = ByServerName::new(self, listening);
            Arc::new(server_config(Arc::new(resolver), Arc::clone(&self.bundle)))
        };
        Arc::clone(listeners.entry(listening.clone()).or_insert_with(make))
    }

    /// The certificate that the listener showed to a peer which sent `server_name`.
    pub fn shown(&self, server_name: Option<&str>, listening: &Listening) -> Option<&Arc<Credential>> {
        match server_name {
            Some(name) => self.listening(listening).find(|held| held.identity.server_name() == name),
            None => self.by_identity.get(listening.unnamed.as_ref()?),
        }
    }

    /// The configuration with which `source` calls `destination`, and nobody else.
    pub fn caller(&self, source: &Credential, destination: &Identity) -> ClientConfig {
        let resolver = single_certificate(Arc::clone(&source.key));
        client_config(resolver, Arc::clone(&self.bundle), Expected::exactly(destination.clone()))
    }

    /// What listens: services, and a gateway's own identity. That of any other host only calls.
    fn listening<'a, 'l>(
        &'a self,
        listening: &'l Listening,
    ) -> impl Iterator<Item = &'a Arc<Credential>> + use<'a, 'l> {
        let listens = |identity: &Identity| {
            !identity.is_reserved() || listening.gateway.as_ref().is_some_and(|gateway| gateway == identity)
        };
        self.by_identity.values().filter(move |held| listens(&held.identity))
    }
}

/// The certificates in force, as one set follows another.
#[derive(Debug)]
pub struct Keyring {
    in_force: ArcSwap<Credentials>,
    changed: watch::Sender<()>,
}

impl Keyring {
    /// A keyring that begins with this set.
    pub fn new(first: Credentials) -> Self {
        Self { in_force: ArcSwap::from_pointee(first), changed: watch::Sender::new(()) }
    }

    /// The set in force, for a look.
    pub fn load(&self) -> Guard<Arc<Credentials>> {
        self.in_force.load()
    }

    /// The set in force.
    pub fn load_full(&self) -> Arc<Credentials> {
        self.in_force.load_full()
    }

    /// Puts the set in force that follows from the one before, which may be asked for again when two do it at once.
    pub fn update(&self, next: impl FnMut(&Arc<Credentials>) -> Credentials) {
        self.in_force.rcu(next);
        self.changed.send_replace(());
    }

    /// The set in force as soon as it holds a certificate of `identity`, or it was asked for in vain; as it is when `longest` is
    /// over. Only for an identity that this host needs: nobody asks for that of another.
    pub async fn answered(&self, identity: &Identity, longest: Duration) -> Arc<Credentials> {
        let mut changed = self.changed.subscribe();
        let answered =
            async { while self.in_force.load().is_awaited(identity) && changed.changed().await.is_ok() {} };
        // What comes of it is looked at by those who asked.
        let _ = tokio::time::timeout(longest, answered).await;
        self.load_full()
    }
}

/// Who is reached at a listener besides the services of the host, which are by their names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Listening {
    /// Whom peers reach that send no server name.
    pub unnamed: Option<Identity>,
    /// The host itself, where it is a gateway of its network.
    pub gateway: Option<Identity>,
}

/// Chooses the certificate by the name that the peer asks for. The name selects and never authorises: what may
/// be reached is checked against the certificate that was shown.
#[derive(Debug)]
struct ByServerName {
    named: HashMap<String, Arc<Credential>>,
    unnamed: Option<Arc<Credential>>,
}

impl ByServerName {
    fn new(credentials: &Credentials, listening: &Listening) -> Self {
        let named = |held: &Arc<Credential>| (held.identity.server_name(), Arc::clone(held));
        let unnamed = listening.unnamed.as_ref().and_then(|identity| credentials.by_identity.get(identity));
        Self { named: credentials.listening(listening).map(named).collect(), unnamed: unnamed.cloned() }
    }

    /// What a peer is shown that asks for `name`, or for nobody in particular: never what has ended, or has not begun.
    fn choose(&self, name: Option<&str>, now: SystemTime) -> Option<Arc<CertifiedKey>> {
        let chosen = match name {
            Some(name) => self.named.get(name),
            None => self.unnamed.as_ref(),
        };
        chosen.filter(|credential| credential.is_valid(now)).map(|credential| Arc::clone(&credential.key))
    }
}

impl ResolvesServerCert for ByServerName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name(), SystemTime::now())
    }
}

#[cfg(test)]
mod tests {
    use baremesh_ca::authority::Authority;
    use baremesh_ca::local::LocalIssuer;
    use baremesh_model::grant::Grant;
    use baremesh_model::name::{Label, TrustDomain};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// An issuer that signs anything for an hour, and what it is verified against.
    fn issuer(place: &std::path::Path) -> (LocalIssuer, Arc<TrustBundle>) {
        let domain = TrustDomain::new("td").expect("a domain");
        let authority =
            Authority::create(place.join("ca"), &domain, SystemTime::now()).expect("an authority");
        let bundle = Arc::new(authority.bundle().expect("a bundle"));
        let grants = vec![Grant::parse("*.*").expect("a grant")];
        (LocalIssuer::new(authority, Label::new("h1").expect("a label"), grants, HOUR), bundle)
    }

    fn issued(issuer: &LocalIssuer, identity: &Identity) -> Arc<Credential> {
        let issued = issuer.issue(std::slice::from_ref(identity), SystemTime::now()).remove(0);
        Arc::new(Credential::new(&issued.expect("issued")).expect("a credential"))
    }

    #[tokio::test]
    async fn a_certificate_that_is_on_its_way_is_waited_for_and_no_other() {
        let place = tempfile::tempdir().expect("a directory");
        let identity =
            |name: &str| Identity::parse(&format!("spiffe://td/ns/default/sa/{name}")).expect("an identity");
        let (issuer, bundle) = issuer(place.path());
        let (web, refused) = (identity("web"), identity("refused"));
        let keyring = Keyring::new(Credentials::new(Arc::clone(&bundle), []));
        let long = Duration::from_secs(600);
        let held = issued(&issuer, &web);
        let answering = async {
            // Both wait by now.
            tokio::task::yield_now().await;
            assert!(keyring.load().is_awaited(&web) && keyring.load().is_awaited(&refused));
            let missing = HashSet::from([refused.clone()]);
            keyring.update(|before| {
                Credentials::new(Arc::clone(before.bundle()), [Arc::clone(&held)]).without(missing.clone())
            });
        };
        let both =
            async { tokio::join!(keyring.answered(&web, long), keyring.answered(&refused, long), answering) };
        // Long before they would give up.
        let answered = tokio::time::timeout(long / 10, both).await;
        let (of_web, of_refused, ()) = answered.expect("whoever waits is told");
        assert!(of_web.of(&web, SystemTime::now()).is_some());
        assert!(of_refused.of(&refused, SystemTime::now()).is_none());
        // What was asked for in vain stays so under other roots.
        keyring.update(|before| before.under(&bundle));
        assert!(!keyring.answered(&refused, long).await.is_awaited(&refused));
        // Nobody waits for ever.
        let never = identity("never");
        assert!(keyring.answered(&never, Duration::from_millis(1)).await.is_awaited(&never));
    }

    #[test]
    fn nothing_is_shown_before_or_after_its_time_whatever_name_is_asked_for() {
        let place = tempfile::tempdir().expect("a directory");
        let (issuer, bundle) = issuer(place.path());
        let web = Identity::parse("spiffe://td/ns/default/sa/web").expect("an identity");
        let credentials = Credentials::new(bundle, [issued(&issuer, &web)]);
        let now = SystemTime::now();
        let name = web.server_name();
        let named = Listening { unnamed: Some(web), gateway: None };
        let (with, without) =
            (ByServerName::new(&credentials, &named), ByServerName::new(&credentials, &Listening::default()));
        for (at, valid) in [(now, true), (now + 2 * HOUR, false), (now - HOUR, false)] {
            assert_eq!(with.choose(Some(&name), at).is_some(), valid, "named, {at:?}");
            assert_eq!(with.choose(None, at).is_some(), valid, "unnamed, {at:?}");
            assert!(with.choose(Some("db.default.td"), at).is_none() && without.choose(None, at).is_none());
        }
    }
}
