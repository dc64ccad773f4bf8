//! What the crate's tests share: a directory with an authority, a service on it, and certificates that the
//! authority would never sign.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use baremesh_model::grant::Grant;
use baremesh_model::identity::Identity;
use baremesh_model::name::{Label, TrustDomain};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, IsCa, Issuer, KeyPair, SanType};
use rcgen::{DnType, ExtendedKeyUsagePurpose};
use rustls_pki_types::CertificateDer;
use tempfile::TempDir;

use crate::authority::Authority;
use crate::issued::Issued;
use crate::key::PrivateKey;
use crate::leaf::{LeafFacts, peer_leaf_facts};
use crate::ledger::{Appended, Away, Head, Ledger, Log, TokenHost};
use crate::service::{CaService, JoinRequest, Settings, TOKEN_LIFETIME, TokenRequest};
use crate::tls::TrustBundle;
use crate::token::Token;

pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const DAY: Duration = Duration::from_secs(86_400);

pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

pub(crate) fn domain() -> TrustDomain {
    TrustDomain::new("mesh.test").expect("a domain")
}

pub(crate) fn label(text: &str) -> Label {
    Label::new(text).expect("a label")
}

pub(crate) fn identity(path: &str) -> Identity {
    Identity::parse(&format!("spiffe://mesh.test/{path}")).expect("an identity")
}

pub(crate) fn grants(texts: &[&str]) -> Vec<Grant> {
    texts.iter().map(|text| Grant::parse(text).expect("a grant")).collect()
}

/// A temporary directory, with an authority in `ca` once asked for.
pub(crate) struct Place(pub(crate) TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn authority(&self) -> Authority {
        let directory = self.path("ca");
        match Authority::open(&directory, now()) {
            Ok(authority) => authority,
            Err(_) => Authority::create(&directory, &domain(), now()).expect("an authority"),
        }
    }

    /// The service as it is after a start of the control server.
    pub(crate) fn service(&self) -> CaService {
        let ledger = Ledger::open(&self.path("control.db")).expect("a ledger");
        CaService::new(self.authority(), ledger, Settings::default())
    }
}

/// A certificate as the authority signs it.
pub(crate) fn issue(authority: &Authority, identity: &Identity, at: SystemTime) -> Issued {
    let key = PrivateKey::generate().expect("a key");
    let signed = authority.sign(&key.public(), identity, DAY, at).expect("signed");
    Issued::new(signed.chain, key.to_der()).expect("a leaf")
}

pub(crate) fn bundle(authority: &Authority) -> Arc<TrustBundle> {
    Arc::new(authority.bundle().expect("a bundle"))
}

pub(crate) fn token(service: &CaService, host: TokenHost, services: &[&str], at: SystemTime) -> Token {
    let request = TokenRequest {
        host,
        grants: grants(services),
        addresses: Vec::new(),
        lifetime: TOKEN_LIFETIME,
        who: "test".to_owned(),
    };
    service.create_token(request, at).expect("a token")
}

pub(crate) fn join_request(token: &Token, host: &str, key: &PrivateKey) -> JoinRequest {
    JoinRequest { token: token.reveal(), host: label(host), request: key.request().expect("a request") }
}

/// A host that joined: what the control server sees of its node credential.
pub(crate) fn joined(service: &CaService, host: &str, services: &[&str], at: SystemTime) -> LeafFacts {
    let token = token(service, TokenHost::Any, services, at);
    let key = PrivateKey::generate().expect("a key");
    let answer = service.join(&join_request(&token, host, &key), at).expect("joined");
    peer_leaf_facts(&answer.chain[0]).expect("a leaf")
}

/// A certificate authority that follows no rules.
pub(crate) struct Forger {
    pub(crate) root: CertificateDer<'static>,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

impl Forger {
    pub(crate) fn new(name: &str, constraints: BasicConstraints) -> Self {
        Self::with_key(name, constraints, KeyPair::generate().expect("a key"))
    }

    pub(crate) fn with_key(name: &str, constraints: BasicConstraints, key: KeyPair) -> Self {
        let params = Self::params(name, constraints);
        let root = params.self_signed(&key).expect("a root").into();
        Self { root, issuer: Issuer::new(params, key) }
    }

    /// An authority below this one.
    pub(crate) fn below(&self, name: &str, constraints: BasicConstraints) -> Self {
        let (params, key) = (Self::params(name, constraints), KeyPair::generate().expect("a key"));
        let root = params.signed_by(&key, &self.issuer).expect("an intermediate").into();
        Self { root, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn params(name: &str, constraints: BasicConstraints) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(constraints);
        params
    }

    pub(crate) fn bundle(&self) -> Arc<TrustBundle> {
        Arc::new(TrustBundle::new(domain(), vec![self.root.clone()]).expect("a bundle"))
    }

    /// Signs a leaf whose parameters `change` may spoil; without the checks of `Issued::new`.
    pub(crate) fn leaf(&self, uris: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names =
            uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("ascii"))).collect();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let leaf = params.signed_by(&key, &self.issuer).expect("a leaf");
        Issued {
            identity: identity("ns/any/sa/any"),
            chain: vec![leaf.into()],
            key: rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            not_before: now(),
            not_after: now(),
            serial: String::new(),
        }
    }
}

/// A log in memory, which can be made to fail.
#[derive(Debug, Default)]
pub(crate) struct MemoryLog {
    pub(crate) entries: Mutex<BTreeMap<u64, Vec<u8>>>,
    /// The head, and how many changes it has seen.
    pub(crate) head: Mutex<(Option<Head>, u64)>,
    pub(crate) fault: AtomicU8,
}

/// All is well.
pub(crate) const WELL: u8 = 0;
/// Nothing answers.
pub(crate) const AWAY: u8 = 1;
/// What is appended stands there, and the answer is lost.
pub(crate) const ANSWER_LOST: u8 = 2;
/// The same, and nothing answers from then on.
pub(crate) const ANSWER_LOST_THEN_AWAY: u8 = 3;

impl MemoryLog {
    /// Whoever can write to the store writes the head.
    pub(crate) fn write_head(&self, bytes: &[u8]) {
        let mut held = self.head.lock().expect("no panic before");
        let modified = held.1 + 1;
        *held = (Some(Head { bytes: bytes.to_vec(), modified }), modified);
    }
}

impl Log for MemoryLog {
    fn read(&self, position: u64) -> Result<Option<Vec<u8>>, Away> {
        if self.fault.load(Ordering::SeqCst) == AWAY {
            return Err(Away("nothing answers".to_owned()));
        }
        Ok(self.entries.lock().expect("no panic before").get(&position).cloned())
    }

    fn head(&self) -> Result<Option<Head>, Away> {
        if self.fault.load(Ordering::SeqCst) == AWAY {
            return Err(Away("nothing answers".to_owned()));
        }
        Ok(self.head.lock().expect("no panic before").0.clone())
    }

    fn append(&self, position: u64, entry: &[u8], head: &[u8], unchanged: u64) -> Result<Appended, Away> {
        let fault = self.fault.load(Ordering::SeqCst);
        if fault == AWAY {
            return Err(Away("nothing answers".to_owned()));
        }
        let mut entries = self.entries.lock().expect("no panic before");
        let mut held = self.head.lock().expect("no panic before");
        let at = held.0.as_ref().map_or(0, |head| head.modified);
        if entries.contains_key(&position) || at != unchanged {
            return Ok(Appended::Taken);
        }
        entries.insert(position, entry.to_vec());
        let modified = held.1 + 1;
        *held = (Some(Head { bytes: head.to_vec(), modified }), modified);
        match fault {
            WELL => Ok(Appended::Done { modified }),
            ANSWER_LOST => Err(Away("the answer is lost".to_owned())),
            _ => {
                self.fault.store(AWAY, Ordering::SeqCst);
                Err(Away("the answer is lost".to_owned()))
            }
        }
    }

    fn forget(&self, positions: std::ops::Range<u64>) {
        self.entries.lock().expect("no panic before").retain(|position, _| !positions.contains(position));
    }
}
