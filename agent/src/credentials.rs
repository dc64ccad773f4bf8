//! The certificates that this host holds at the moment, and the TLS configurations made from them. A rotation
//! publishes a new set; connections that stand keep theirs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use baremesh_ca::issued::{Issued, IssuedError};
use baremesh_ca::tls::{Expected, TrustBundle, client_config, server_config, single_certificate};
use baremesh_model::identity::Identity;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};

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
    /// Listener configurations by who is reached there. A few at most.
    listeners: Mutex<HashMap<Listening, Arc<ServerConfig>>>,
}

impl Credentials {
    /// A set of certificates under one trust bundle.
    pub fn new(bundle: Arc<TrustBundle>, credentials: impl IntoIterator<Item = Arc<Credential>>) -> Self {
        let by_identity = credentials.into_iter().map(|held| (held.identity.clone(), held)).collect();
        Self { bundle, by_identity, listeners: Mutex::default() }
    }

    /// The same certificates under another trust bundle, without those that it refuses.
    pub fn under(&self, bundle: &Arc<TrustBundle>) -> Self {
        let taken = self.iter().filter(|held| !bundle.revoked().contains(&held.serial));
        Self::new(Arc::clone(bundle), taken.cloned())
    }

    /// The certificate of `identity`, unless it has expired or is not valid yet: such a one is never shown.
    pub fn of(&self, identity: &Identity, now: SystemTime) -> Option<&Arc<Credential>> {
        self.by_identity.get(identity).filter(|credential| credential.is_valid(now))
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
    use std::time::Duration;

    use baremesh_ca::authority::Authority;
    use baremesh_ca::local::LocalIssuer;
    use baremesh_model::grant::Grant;
    use baremesh_model::name::{Label, TrustDomain};

    use super::*;

    #[test]
    fn nothing_is_shown_before_or_after_its_time_whatever_name_is_asked_for() {
        let place = tempfile::tempdir().expect("a directory");
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        let domain = TrustDomain::new("td").expect("a domain");
        let authority = Authority::create(place.path().join("ca"), &domain, now).expect("an authority");
        let bundle = Arc::new(authority.bundle().expect("a bundle"));
        let (host, grants) =
            (Label::new("h1").expect("a label"), vec![Grant::parse("*.*").expect("a grant")]);
        let issuer = LocalIssuer::new(authority, host, grants, hour);
        let web = Identity::parse("spiffe://td/ns/default/sa/web").expect("an identity");
        let issued = issuer.issue(std::slice::from_ref(&web), now).remove(0).expect("issued");
        let held = Arc::new(Credential::new(&issued).expect("a credential"));
        let credentials = Credentials::new(bundle, [held]);
        let name = web.server_name();
        let named = Listening { unnamed: Some(web), gateway: None };
        let (with, without) =
            (ByServerName::new(&credentials, &named), ByServerName::new(&credentials, &Listening::default()));
        for (at, valid) in [(now, true), (now + 2 * hour, false), (now - hour, false)] {
            assert_eq!(with.choose(Some(&name), at).is_some(), valid, "named, {at:?}");
            assert_eq!(with.choose(None, at).is_some(), valid, "unnamed, {at:?}");
            assert!(with.choose(Some("db.default.td"), at).is_none() && without.choose(None, at).is_none());
        }
    }
}
