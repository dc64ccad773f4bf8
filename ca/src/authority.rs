//! The authority: a root that can be kept offline, an intermediate that signs, and the one function that signs a
//! leaf. A leaf's fields all come from here; a caller brings an identity that somebody else has authorised and a
//! public key that somebody else has proven.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use baremesh_model::identity::Identity;
use baremesh_model::name::TrustDomain;
use rcgen::{Issuer, KeyPair};
use rustls_pki_types::CertificateDer;

use crate::clock::{in_words, whole_seconds};
use crate::key::PublicKey;
use crate::leaf::{Serial, serial_text, write_generation};
use crate::seal::Passphrase;
use crate::tls::{Fingerprint, TrustBundle};

/// Taking over a certificate authority that exists already.
mod adopt;
/// An intermediate that somebody else signs.
mod external;
/// Why the authority cannot do it.
mod error;
/// The files of an authority.
mod files;
/// Sealing the keys that there are, and opening them for good.
mod sealing;
/// The list of revoked certificates.
mod revocations;
/// Replacing intermediates and roots.
mod rotation;
/// What the certificates contain.
mod profile;
/// The next root takes its place.
mod switch;

pub use error::AuthorityError;
pub use external::{Installed, MIN_INSTALLED};
pub use files::ROOT_KEY;
pub use profile::{BACKDATE, INTERMEDIATE_LIFETIME, ROOT_LIFETIME};
pub use rotation::{MAX_TRUSTED, Standing};
pub use sealing::{
    PASSPHRASE_CREDENTIAL, change_passphrase, handed_passphrase, has_unsealed, read_passphrase,
};

/// With less than this left, the intermediate is replaced, if the key that signed it is at hand.
pub const INTERMEDIATE_RENEWAL: Duration = Duration::from_secs(90 * 86_400);

/// What looking after the authority came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Maintenance {
    /// Nothing is due.
    Current,
    /// The intermediate has been replaced.
    Replaced,
    /// The intermediate ought to be replaced, but the key that signed it is not at hand.
    Expiring {
        /// How long it still lasts.
        left: Duration,
        /// What the operator has to do.
        advice: String,
    },
}

/// A signed leaf with the chain up to, and without, the root.
#[derive(Debug, Clone)]
pub struct SignedLeaf {
    /// The leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The serial number in hexadecimal.
    pub serial: String,
    /// From when on it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
    /// The root that the chain leads to.
    pub root: Fingerprint,
}

/// Where an authority is kept, and what seals its keys.
#[derive(Debug, Clone)]
pub struct Place {
    /// The directory.
    pub directory: PathBuf,
    /// Opens keys that are sealed, and seals every key that is written; without it they are written as they are.
    pub passphrase: Option<Passphrase>,
}

impl Place {
    /// A directory, with what seals its keys.
    pub fn new(directory: &Path, passphrase: Option<Passphrase>) -> Self {
        Self { directory: directory.to_owned(), passphrase }
    }

    fn below(&self, name: &str) -> Self {
        Self::new(&self.directory.join(name), self.passphrase.clone())
    }
}

impl<P: AsRef<Path>> From<P> for Place {
    fn from(directory: P) -> Self {
        Self::new(directory.as_ref(), None)
    }
}

/// Signs the certificates of one trust domain.
pub struct Authority {
    place: Place,
    trust_domain: TrustDomain,
    root: CertificateDer<'static>,
    issuing: Issuing,
    /// Roots of before, which are trusted still.
    before: Vec<CertificateDer<'static>>,
    /// The root, and those of before, as each was signed by the one before it.
    cross: Vec<CertificateDer<'static>>,
    /// What is to sign next, trusted already.
    next: Option<rotation::Next>,
}

/// The certificate that signs leaves, with its key.
struct Issuing {
    /// The issuing certificate first; without the root.
    chain: Vec<CertificateDer<'static>>,
    issuer: Issuer<'static, KeyPair>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Authority {
    /// Makes a root and an intermediate in `directory`, which must not hold an authority yet. `root.key` may be
    /// moved to a safe place afterwards.
    pub fn create(
        place: impl Into<Place>,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let place = place.into();
        files::prepare(&place.directory)?;
        let root = profile::make_root(now)?;
        let intermediate = profile::make_intermediate(&root.issuer, root.not_after, now)?;
        // The root's certificate goes last: where it stands, the authority is complete.
        files::write_key(&place, ROOT_KEY, root.issuer.key())?;
        files::write_issuing(
            &place,
            std::slice::from_ref(&intermediate.certificate),
            intermediate.issuer.key(),
        )?;
        files::write_trust(&place.directory, trust_domain, &root.certificate)?;
        Self::open(place, now)
    }

    /// Takes over an existing certificate authority: `certificates` is a PEM file with its certificate first and
    /// its root last, `key` its private key in PEM. Where it may sign authorities, it signs an intermediate here
    /// and its key is not kept; otherwise it becomes the issuing certificate itself.
    pub fn adopt(
        place: impl Into<Place>,
        certificates: &Path,
        key: &Path,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let place = place.into();
        let given = adopt::Given::read(certificates, key, place.passphrase.as_ref(), now)?;
        files::prepare(&place.directory)?;
        let (chain, issuing_key) = given.into_issuing(now)?;
        let root = adopt::probe(&chain, &issuing_key, trust_domain, now)?;
        files::write_issuing(&place, &chain[..chain.len().saturating_sub(1).max(1)], &issuing_key)?;
        files::write_trust(&place.directory, trust_domain, &root)?;
        Self::open(place, now)
    }

    /// Opens what `create` or `adopt` left in `directory`, and replaces the intermediate when that is due and
    /// possible. Works without `root.key`.
    pub fn open(place: impl Into<Place>, now: SystemTime) -> Result<Self, AuthorityError> {
        let place = place.into();
        let (trust_domain, mut root) = files::read_trust(&place.directory)?;
        let issuing = files::read_issuing(&place)?;
        let rotation::Overlap { next, before, cross } = rotation::read(&place, &mut root, &issuing)?;
        let mut authority = Self { place, trust_domain, root, issuing, before, cross, next };
        authority.maintain(now)?;
        Ok(authority)
    }

    /// Replaces the intermediate when less than `INTERMEDIATE_RENEWAL` is left of it, or when it is not valid yet. Without the key that signed
    /// it, says so, and fails once it has expired.
    pub fn maintain(&mut self, now: SystemTime) -> Result<Maintenance, AuthorityError> {
        let left = self.issuing.not_after.duration_since(now).unwrap_or_default();
        // Made while the clock was ahead, and the clock is right again.
        let premature = now < self.issuing.not_before;
        if left > INTERMEDIATE_RENEWAL && !premature {
            return Ok(Maintenance::Current);
        }
        let path = self.place.directory.join(ROOT_KEY);
        match files::read_key(&path) {
            Ok(pem) => self.replace_intermediate(&path, &pem, now),
            Err(error) if !error.is_missing() => Err(error.into()),
            Err(_) if left.is_zero() => Err(AuthorityError::Expired(path)),
            Err(_) => {
                let advice = if premature { premature_advice(&path) } else { advice(&path, left) };
                Ok(Maintenance::Expiring { left, advice })
            }
        }
    }

    fn replace_intermediate(
        &mut self,
        path: &Path,
        pem: &[u8],
        now: SystemTime,
    ) -> Result<Maintenance, AuthorityError> {
        let signer = self.issuing.chain.get(1).unwrap_or(&self.root);
        let key = files::parse_key(path, pem, self.place.passphrase.as_ref())?;
        let not_after = files::check_belongs(path, signer, &key)?;
        if not_after <= now {
            return Err(AuthorityError::Content {
                path: self.place.directory.join(files::ROOT_CERTIFICATE),
                reason: "the certificate that signs intermediates has expired: make a new authority"
                    .to_owned(),
            });
        }
        let issuer = Issuer::from_ca_cert_der(signer, key)?;
        let made = profile::make_intermediate(&issuer, not_after, now)?;
        let mut chain = vec![made.certificate];
        chain.extend(self.issuing.chain.iter().skip(1).cloned());
        let mut whole = chain.clone();
        whole.push(self.root.clone());
        adopt::probe(&whole, made.issuer.key(), &self.trust_domain, now)?;
        files::write_issuing(&self.place, &chain, made.issuer.key())?;
        let (not_before, not_after) = (made.not_before, made.not_after);
        self.issuing = Issuing { chain, issuer: made.issuer, not_before, not_after };
        Ok(Maintenance::Replaced)
    }

    /// Signs a leaf for `identity` that is valid from `BACKDATE` before `now` for `lifetime` after it, and never
    /// longer than its issuer. Whether the identity may be issued is the caller's decision, made before.
    pub fn sign(
        &self,
        key: &PublicKey,
        identity: &Identity,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<SignedLeaf, AuthorityError> {
        self.sign_with(profile::random_serial(), key, identity, (lifetime, now))
    }

    /// As `sign`, for a node credential: its serial number tells which of the hosts that joined under the name, one
    /// after another, it is of.
    pub(crate) fn sign_node(
        &self,
        key: &PublicKey,
        identity: &Identity,
        generation: u32,
        times: (Duration, SystemTime),
    ) -> Result<SignedLeaf, AuthorityError> {
        let mut serial = profile::random_serial();
        write_generation(&mut serial, generation);
        self.sign_with(serial, key, identity, times)
    }

    fn sign_with(
        &self,
        serial: Serial,
        key: &PublicKey,
        identity: &Identity,
        (lifetime, now): (Duration, SystemTime),
    ) -> Result<SignedLeaf, AuthorityError> {
        if identity.trust_domain() != &self.trust_domain {
            let (identity, trust_domain) = (identity.clone(), self.trust_domain.clone());
            return Err(AuthorityError::OtherTrustDomain { identity, trust_domain });
        }
        let not_after = whole_seconds(now + lifetime).min(self.issuing.not_after);
        if not_after <= now {
            return Err(AuthorityError::Expired(self.place.directory.join(ROOT_KEY)));
        }
        let not_before = profile::backdated(now);
        let params = profile::leaf(identity, &serial, (not_before, not_after))?;
        let leaf = params.signed_by(key.info(), &self.issuing.issuer)?;
        let mut chain = vec![leaf.into()];
        chain.extend(self.issuing.chain.iter().filter(|above| **above != self.root).cloned());
        chain.extend(self.cross.iter().cloned());
        let root = Fingerprint::of(&self.root);
        Ok(SignedLeaf { chain, serial: serial_text(&serial), not_before, not_after, root })
    }

    /// The trust domain whose identities are signed here.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The root certificate under which leaves are signed.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The roots and the trust domain, as verifiers take them.
    pub fn bundle(&self) -> Result<TrustBundle, AuthorityError> {
        Ok(TrustBundle::new(self.trust_domain.clone(), self.roots())?)
    }

    /// When the issuing certificate ends. No leaf lasts longer.
    pub fn issuing_not_after(&self) -> SystemTime {
        self.issuing.not_after
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

fn advice(path: &Path, left: Duration) -> String {
    format!(
        "the intermediate certificate expires in {}: put the key of the certificate that signed it at {} (mode 0600) and it \
         is replaced within the hour; take the key away again afterwards. Where somebody else signs it: `baremesh ca csr`",
        in_words(left),
        path.display()
    )
}

fn premature_advice(path: &Path) -> String {
    format!(
        "the intermediate certificate is not valid yet: it was made while this machine's clock was ahead, or the clock is \
         behind now. If the clock is right, put the key of the certificate that signed it at {} (mode 0600) and it is \
         replaced within the hour",
        path.display()
    )
}

#[cfg(test)]
mod tests;
