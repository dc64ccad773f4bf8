//! Bundles of roots as trust domains hand them to each other: PEM, or the JWK set of SPIFFE (SPIFFE Trust Domain and
//! Bundle, section 4).

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use webpki::anchor_from_trusted_cert;
use x509_parser::public_key::PublicKey;

use crate::clock::from_unix;
use crate::issued::chain_from_pem;
use crate::leaf::{parse, validity};
use crate::tls::MAX_ROOTS;

/// The largest root, in bytes: one with an RSA key of 8192 bits takes half of it. All bundles together go into one message
/// to agents.
pub const MAX_ROOT: usize = 4096;
/// What a bundle says of how often to look again, when we write one.
const REFRESH_HINT: Duration = Duration::from_secs(300);
/// What a key of a bundle is for that is a root of X.509 identities.
const USE: &str = "x509-svid";

/// The roots of a trust domain, as it hands them out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Its roots that have not ended, 1 to `MAX_ROOTS`.
    pub roots: Vec<CertificateDer<'static>>,
    /// How often it asks to be looked at.
    pub refresh_hint: Option<Duration>,
}

/// Why a text is no bundle. Nothing of the text is in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // The messages say what each is.
pub enum BundleFormatError {
    #[error(
        "it is neither PEM with 1 to {MAX_ROOTS} certificates nor a SPIFFE bundle (a JWK set with `keys`)"
    )]
    Form,
    #[error("key {0} of the SPIFFE bundle has no one certificate in `x5c`")]
    Certificate(usize),
    #[error("it holds no root of X.509 identities (`use` of `{USE}`)")]
    NoRoots,
    #[error("it holds {0} roots, and {MAX_ROOTS} at most are taken")]
    TooMany(usize),
    #[error("a root of it is larger than {MAX_ROOT} bytes")]
    TooLarge,
    #[error(
        "a certificate of it is no authority: its basicConstraints do not say CA, or it is not of a form that is verified against"
    )]
    NoAuthority,
    #[error("all roots of it have ended")]
    Ended,
}

impl Bundle {
    /// Reads PEM or a SPIFFE bundle. Roots that have ended are left out.
    pub fn read(text: &str, now: SystemTime) -> Result<Self, BundleFormatError> {
        let (all, refresh_hint) = match text.trim_start().starts_with('{') {
            true => read_spiffe(text)?,
            false => (chain_from_pem(text.as_bytes()).ok_or(BundleFormatError::Form)?, None),
        };
        let mut roots: Vec<CertificateDer<'static>> = Vec::new();
        for root in all {
            if root.len() > MAX_ROOT {
                return Err(BundleFormatError::TooLarge);
            }
            let parsed = parse(&root).map_err(|_| BundleFormatError::NoAuthority)?;
            // What verifies peers is stricter about forms than what shows them: what passes here, agents take.
            if !parsed.is_ca() || anchor_from_trusted_cert(&root).is_err() {
                return Err(BundleFormatError::NoAuthority);
            }
            let has_ended = from_unix(parsed.validity().not_after.timestamp()) <= now;
            if !has_ended && !roots.contains(&root) {
                roots.push(root);
            }
        }
        match roots.len() {
            0 => Err(BundleFormatError::Ended),
            1..=MAX_ROOTS => Ok(Self { roots, refresh_hint }),
            many => Err(BundleFormatError::TooMany(many)),
        }
    }

    /// When the last of its roots ends, and how long that one lasts altogether.
    pub fn ends(&self) -> Option<(SystemTime, Duration)> {
        let lives = self.roots.iter().filter_map(|root| validity(root).ok());
        let last = lives.max_by_key(|(_, end)| *end)?;
        Some((last.1, last.1.duration_since(last.0).unwrap_or_default()))
    }
}

/// Roots as a SPIFFE bundle.
pub fn to_spiffe(roots: &[CertificateDer<'_>]) -> String {
    let key = |root: &CertificateDer<'_>| {
        let mut key = json!({ "use": USE, "x5c": [STANDARD.encode(root)] });
        let parsed = parse(root).ok()?;
        let number = |bytes: &[u8]| {
            let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
            URL_SAFE_NO_PAD.encode(&bytes[first..])
        };
        match parsed.public_key().parsed().ok()? {
            PublicKey::EC(point) => {
                // RFC 5480, section 2.2: a tag and two coordinates of the same length.
                let (x, y) = point.data().get(1..)?.split_at_checked(point.data().len() / 2)?;
                let curve = if x.len() == 32 { "P-256" } else { "P-384" };
                key["kty"] = "EC".into();
                key["crv"] = curve.into();
                key["x"] = URL_SAFE_NO_PAD.encode(x).into();
                key["y"] = URL_SAFE_NO_PAD.encode(y).into();
            }
            PublicKey::RSA(rsa) => {
                key["kty"] = "RSA".into();
                key["n"] = number(rsa.modulus).into();
                key["e"] = number(rsa.exponent).into();
            }
            _ => return None,
        }
        Some(key)
    };
    let keys: Vec<Value> = roots.iter().filter_map(key).collect();
    json!({ "keys": keys, "spiffe_refresh_hint": REFRESH_HINT.as_secs() }).to_string()
}

type Read = (Vec<CertificateDer<'static>>, Option<Duration>);

fn read_spiffe(text: &str) -> Result<Read, BundleFormatError> {
    let value: Value = serde_json::from_str(text).map_err(|_| BundleFormatError::Form)?;
    let keys = value["keys"].as_array().ok_or(BundleFormatError::Form)?;
    let mut roots = Vec::new();
    // Keys for other uses, known or not, are not ours to judge.
    for (at, key) in keys.iter().enumerate().filter(|(_, key)| key["use"] == USE) {
        let chain = key["x5c"].as_array().map(Vec::as_slice);
        let Some([Value::String(certificate)]) = chain else {
            return Err(BundleFormatError::Certificate(at));
        };
        let der = STANDARD.decode(certificate).map_err(|_| BundleFormatError::Certificate(at))?;
        roots.push(CertificateDer::from(der));
        if roots.len() > MAX_ROOTS {
            return Err(BundleFormatError::TooMany(keys.len()));
        }
    }
    if roots.is_empty() {
        return Err(BundleFormatError::NoRoots);
    }
    let hint = value["spiffe_refresh_hint"].as_u64().map(Duration::from_secs);
    Ok((roots, hint))
}

#[cfg(test)]
mod tests {
    use rcgen::BasicConstraints::Unconstrained;
    use rcgen::KeyPair;

    use super::*;
    use crate::issued::chain_to_pem;
    use crate::testing::{DAY, Forger, Place, now};

    fn read(text: &str) -> Result<usize, BundleFormatError> {
        Bundle::read(text, now()).map(|bundle| bundle.roots.len())
    }

    #[test]
    fn what_one_mesh_writes_another_reads_in_either_form() {
        let ours = Place::new().authority().roots();
        let rsa =
            KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).expect("a key");
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key");
        let others = [rsa, p384].map(|key| Forger::with_key("other", Unconstrained, key).root);
        let roots: Vec<_> = ours.into_iter().chain(others).collect();
        let spiffe = to_spiffe(&roots);
        let read = Bundle::read(&spiffe, now()).expect("a bundle");
        assert_eq!(read, Bundle { roots: roots.clone(), refresh_hint: Some(REFRESH_HINT) });
        let pem = Bundle::read(&chain_to_pem(&roots), now()).expect("a bundle");
        assert_eq!(pem, Bundle { roots, refresh_hint: None });
        let keys: Value = serde_json::from_str(&spiffe).expect("JSON");
        let kinds: Vec<_> = keys["keys"].as_array().expect("keys").iter().map(|key| &key["kty"]).collect();
        assert_eq!(kinds, ["EC", "RSA", "EC"]);
        assert_eq!(keys["keys"][0]["x"].as_str().map(str::len), Some(43));
        assert_eq!(keys["keys"][1]["e"], "AQAB");
    }

    #[test]
    fn keys_for_other_uses_are_left_out_and_what_is_no_root_is_refused() {
        let root = Place::new().authority().root().clone();
        let (der, pem) = (STANDARD.encode(&root), chain_to_pem(std::slice::from_ref(&root)));
        let set = |keys: Value| json!({ "keys": keys, "spiffe_sequence": 7 }).to_string();
        let x509 = |x5c: Value| json!({ "use": "x509-svid", "kty": "EC", "x5c": x5c });
        let jwt = json!({ "use": "jwt-svid", "kty": "EC", "kid": "a" });
        assert_eq!(read(&set(json!([jwt, x509(json!([der])), { "use": "later" }]))), Ok(1));
        assert_eq!(read(&set(json!([x509(json!([der])), x509(json!([der]))]))), Ok(1), "the same twice");
        assert_eq!(read(&set(json!([jwt]))), Err(BundleFormatError::NoRoots));
        assert_eq!(read(&set(json!([x509(json!([der, der]))]))), Err(BundleFormatError::Certificate(0)));
        assert_eq!(read(&set(json!([x509(json!([7]))]))), Err(BundleFormatError::Certificate(0)));
        assert_eq!(read(&set(json!([x509(json!(["!"]))]))), Err(BundleFormatError::Certificate(0)));
        assert_eq!(read(&set(json!([x509(json!(["AAAA"]))]))), Err(BundleFormatError::NoAuthority));
        let many = set(json!(vec![x509(json!([der])); MAX_ROOTS + 1]));
        assert_eq!(read(&many), Err(BundleFormatError::TooMany(MAX_ROOTS + 1)));
        let large = set(json!([x509(json!([STANDARD.encode(vec![0; MAX_ROOT + 1])]))]));
        assert_eq!(read(&large), Err(BundleFormatError::TooLarge));
        for bad in ["", "{", "{}", "{\"keys\": 1}", "root:x:0:0", "-----BEGIN CERTIFICATE-----\nAA"] {
            assert_eq!(read(bad), Err(BundleFormatError::Form), "{bad}");
        }
        let leaf = Forger::new("a", Unconstrained).leaf(&["spiffe://a/ns/a/sa/a"], |_| ()).chain;
        assert_eq!(read(&chain_to_pem(&leaf)), Err(BundleFormatError::NoAuthority));
        let later = now() + crate::authority::ROOT_LIFETIME + DAY;
        assert_eq!(Bundle::read(&pem, later), Err(BundleFormatError::Ended));
    }

    /// A root that is well formed enough to be shown, and that no peer is verified against.
    #[test]
    fn a_root_that_agents_cannot_verify_against_is_none() {
        let mut params = Forger::params("twice", Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let usage = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![3, 2, 2, 4]);
        params.custom_extensions = vec![usage.clone(), usage];
        let key = KeyPair::generate().expect("a key");
        let root: CertificateDer<'static> = params.self_signed(&key).expect("a root").into();
        assert!(parse(&root).is_ok_and(|parsed| parsed.is_ca()), "it is shown as an authority");
        let good = Place::new().authority().root().clone();
        for roots in [vec![root.clone()], vec![good, root]] {
            assert_eq!(read(&chain_to_pem(&roots)), Err(BundleFormatError::NoAuthority));
            let x5c = |root: &CertificateDer<'_>| json!({ "use": USE, "x5c": [STANDARD.encode(root)] });
            let keys: Vec<_> = roots.iter().map(x5c).collect();
            assert_eq!(read(&json!({ "keys": keys }).to_string()), Err(BundleFormatError::NoAuthority));
        }
    }
}
