//! Taking over a certificate authority that exists already. Everything that would later break a handshake is
//! found here: a key that is not the certificate's, a chain that does not hold, a kind of key or a constraint that
//! the mesh's verifiers refuse.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use baremesh_model::identity::Identity;
use baremesh_model::name::TrustDomain;
use rcgen::{Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256};
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;

use super::files::{check_belongs, content, parse_key, read_chain};
use super::{AuthorityError, Issuing, profile};
use crate::clock::{from_unix, in_words};
use crate::file;
use crate::key::PrivateKey;
use crate::leaf::parse;
use crate::seal::Passphrase;
use crate::tls::{PeerVerifier, Purpose, TrustBundle};

/// What the probe certificate is valid for; it is thrown away at once.
const PROBE_LIFETIME: Duration = Duration::from_secs(60);
/// The smallest RSA modulus that webpki verifies.
const MIN_RSA_BITS: usize = 2048;

/// A certificate authority as the operator gave it: checked, not yet tried.
pub(super) struct Given {
    path: PathBuf,
    /// The authority first, its root last.
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
    not_after: SystemTime,
}

impl Given {
    /// Reads and checks both files.
    pub(super) fn read(
        certificates: &Path,
        key: &Path,
        passphrase: Option<&Passphrase>,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let chain = read_chain(certificates)?;
        let pair = parse_key(key, &file::read_secret(key)?, passphrase)?;
        Self::check_named(certificates, key, chain, pair, now)
    }

    /// Checks a chain that came with a request, for the key that was requested.
    pub(super) fn check(
        key: &Path,
        chain: Vec<CertificateDer<'static>>,
        pair: KeyPair,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        Self::check_named(Path::new("the chain"), key, chain, pair, now)
    }

    fn check_named(
        certificates: &Path,
        key: &Path,
        chain: Vec<CertificateDer<'static>>,
        pair: KeyPair,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let not_after = check_belongs(key, &chain[0], &pair)?;
        let parsed = chain.iter().map(parse).collect::<Result<Vec<_>, _>>();
        let parsed = parsed.map_err(|error| content(certificates, &error))?;
        for (depth, certificate) in parsed.iter().enumerate() {
            check_authority(certificate, depth, now).map_err(|reason| content(certificates, &reason))?;
        }
        check_links(&parsed).map_err(|reason| content(certificates, &reason))?;
        check_kind(&pair, &parsed[0]).map_err(|reason| content(key, &reason))?;
        Ok(Self { path: certificates.to_owned(), chain, key: pair, not_after })
    }

    /// When the authority itself ends.
    pub(super) fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The chain, the authority first and its root last, and its key.
    pub(super) fn into_parts(self) -> (Vec<CertificateDer<'static>>, KeyPair) {
        (self.chain, self.key)
    }

    /// The chain, issuing certificate first and root last, and the issuing key: a fresh intermediate where the
    /// authority may sign one, itself where it may not.
    pub(super) fn into_issuing(
        self,
        now: SystemTime,
    ) -> Result<(Vec<CertificateDer<'static>>, KeyPair), AuthorityError> {
        let parsed = self.chain.iter().map(parse).collect::<Result<Vec<_>, _>>();
        let parsed = parsed.map_err(|error| content(&self.path, &error))?;
        let room = parsed.iter().enumerate().all(|(depth, above)| path_length(above) > Some(depth));
        if !room {
            return Ok((self.chain, self.key));
        }
        let issuer = Issuer::from_ca_cert_der(&self.chain[0], self.key)?;
        let made = profile::make_intermediate(&issuer, self.not_after, now)?;
        let mut chain = vec![made.certificate];
        chain.extend(self.chain);
        let key = KeyPair::try_from(made.issuer.key().serialized_der())?;
        Ok((chain, key))
    }
}

/// How many authorities may stand below this one; `usize::MAX` where nothing limits it.
fn path_length(certificate: &X509Certificate<'_>) -> Option<usize> {
    let constraints = certificate.basic_constraints().ok()??.value;
    match constraints.path_len_constraint {
        Some(limit) => usize::try_from(limit).ok(),
        None => Some(usize::MAX),
    }
}

fn check_authority(certificate: &X509Certificate<'_>, depth: usize, now: SystemTime) -> Result<(), String> {
    let subject = certificate.subject();
    if !certificate.is_ca() {
        return Err(format!("{subject} is no certificate authority: its basicConstraints do not say CA"));
    }
    if path_length(certificate).is_some_and(|limit| limit < depth) {
        return Err(format!("{subject} does not allow an authority this far below it (pathLenConstraint)"));
    }
    let usage = certificate.key_usage().map_err(|error| format!("{subject}: {error}"))?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(format!("{subject} may not sign certificates (keyUsage)"));
    }
    let validity = certificate.validity();
    if from_unix(validity.not_before.timestamp()) > now {
        return Err(format!("{subject} is not valid before {}", validity.not_before));
    }
    match now.duration_since(from_unix(validity.not_after.timestamp())) {
        Ok(since) => Err(format!("{subject} expired {} ago", in_words(since))),
        Err(_) => Ok(()),
    }
}

/// Each certificate is signed by the next, and the last by itself.
fn check_links(chain: &[X509Certificate<'_>]) -> Result<(), String> {
    for (at, certificate) in chain.iter().enumerate() {
        let above = chain.get(at + 1).unwrap_or(certificate);
        let signed = certificate.issuer().as_raw() == above.subject().as_raw()
            && certificate.verify_signature(Some(above.public_key())).is_ok();
        if !signed && at + 1 == chain.len() {
            return Err(format!(
                "{} is not a root: append its issuers, up to the root",
                certificate.subject()
            ));
        }
        if !signed {
            return Err(format!("{} is not signed by the certificate after it", certificate.subject()));
        }
    }
    Ok(())
}

/// What is said of an issuing certificate that nothing could be revoked under.
pub(crate) const NO_LISTS: &str = "its certificate may not sign lists of revoked certificates: have it signed with the key usages \
    keyCertSign and cRLSign";

/// Whether a certificate may sign lists of revoked certificates, RFC 5280, section 4.2.1.3: where no usages are named, all
/// are allowed.
pub(super) fn signs_lists(certificate: &CertificateDer<'_>) -> bool {
    let usage = |parsed: &X509Certificate<'_>| match parsed.key_usage() {
        Ok(usage) => usage.is_none_or(|usage| usage.value.crl_sign()),
        Err(_) => false,
    };
    parse(certificate).is_ok_and(|parsed| usage(&parsed))
}

fn check_kind(key: &KeyPair, certificate: &X509Certificate<'_>) -> Result<(), String> {
    let algorithm = key.algorithm();
    let bits = certificate.public_key().parsed().map(|key| key.key_size()).unwrap_or(0);
    let rsa = algorithm == &PKCS_RSA_SHA256 && bits >= MIN_RSA_BITS;
    if rsa || algorithm == &PKCS_ECDSA_P256_SHA256 || algorithm == &PKCS_ECDSA_P384_SHA384 {
        Ok(())
    } else {
        Err(format!(
            "the key's kind is not supported: use ECDSA P-256, P-384 or RSA of {MIN_RSA_BITS} bits or more"
        ))
    }
}

/// Signs a throw-away leaf and verifies it exactly as peers will; returns the root. What only shows in use is
/// found by this: name constraints, usages of upper certificates, names that are encoded unusually.
pub(super) fn probe(
    chain: &[CertificateDer<'static>],
    key: &KeyPair,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<CertificateDer<'static>, AuthorityError> {
    let unusable = |error: &dyn std::fmt::Display| AuthorityError::Unusable(error.to_string());
    let root = chain.last().ok_or_else(|| unusable(&"no certificate"))?.clone();
    if !signs_lists(&chain[0]) {
        return Err(unusable(&NO_LISTS));
    }
    let issuing = Issuing {
        chain: chain.iter().filter(|above| **above != root).cloned().collect(),
        issuer: Issuer::from_ca_cert_der(&chain[0], KeyPair::try_from(key.serialized_der())?)?,
        not_before: now,
        not_after: now + PROBE_LIFETIME,
    };
    let authority = super::Authority {
        place: PathBuf::new().into(),
        trust_domain: trust_domain.clone(),
        root,
        issuing,
        before: Vec::new(),
        cross: Vec::new(),
        next: None,
    };
    let public = PrivateKey::generate().map_err(|error| unusable(&error))?.public();
    let identity = Identity::control(trust_domain.clone());
    let leaf = authority.sign(&public, &identity, PROBE_LIFETIME, now)?;
    let bundle = TrustBundle::new(trust_domain.clone(), vec![authority.root.clone()])?;
    for purpose in [Purpose::Server, Purpose::Client] {
        let verifier = PeerVerifier::new(bundle.clone().into());
        verifier
            .verify(&leaf.chain[0], &leaf.chain[1..], purpose, now)
            .map_err(|error| unusable(&crate::tls::describe(&error)))?;
    }
    Ok(authority.root)
}
