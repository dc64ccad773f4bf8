//! JWK sets (RFC 7517): public keys that tokens are verified with. A key that is not understood, too weak, secret, or not
//! for signatures is left out, with the reason; the others of its set are in force.

use std::fmt;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaPublicKeyComponents,
    VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::jws::Algorithm;
use super::verified::VerifiedTokens;

/// The largest set that is read, in bytes.
pub const MAX_SET: usize = 512 * 1024;
/// The most keys of one set; further ones are left out.
pub const MAX_KEYS: usize = 64;

/// The keys of an issuer.
#[derive(Debug, Default)]
pub struct KeySet {
    /// Those that are in force.
    pub keys: Vec<Key>,
    /// Why others are not.
    pub left_out: Vec<String>,
    /// Tokens that one of the keys signed.
    pub(super) verified: VerifiedTokens,
}

/// Not a JWK set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// Beyond `MAX_SET`.
    #[error("larger than 512 KiB")]
    TooLarge,
    /// Something else. What it holds instead is not repeated: it may be anything.
    #[error("is no JSON object with a list `keys`")]
    Form,
    /// None of the keys can be used.
    #[error("has no key that can be used: {0}")]
    NoKey(String),
}

/// One public key.
pub struct Key {
    /// Its name in the set.
    pub id: Option<String>,
    /// The one algorithm that it is for, where the set says so.
    algorithm: Option<Algorithm>,
    material: Material,
}

enum Material {
    Rsa(RsaPublicKeyComponents<Vec<u8>>),
    /// One algorithm alone goes with such a key.
    Other(Algorithm, Box<ParsedPublicKey>),
}

#[derive(Deserialize)]
struct RawSet<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

/// A member twice is an error.
#[derive(Deserialize)]
struct RawKey {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    d: Option<serde::de::IgnoredAny>,
}

impl KeySet {
    /// Reads a set of which at least one key can be used.
    pub fn parse(text: &str) -> Result<Self, KeySetError> {
        let set = Self::parse_any(text)?;
        match set.left_out.first() {
            Some(reason) if set.keys.is_empty() => Err(KeySetError::NoKey(reason.clone())),
            _ => Ok(set),
        }
    }

    /// Reads a set of which maybe no key can be used.
    pub fn parse_any(text: &str) -> Result<Self, KeySetError> {
        if text.len() > MAX_SET {
            return Err(KeySetError::TooLarge);
        }
        let raw: RawSet<'_> = serde_json::from_str(text).map_err(|_| KeySetError::Form)?;
        let mut set = Self::default();
        for (index, raw) in raw.keys.iter().take(MAX_KEYS).enumerate() {
            match Key::read(raw.get()) {
                Ok(key) => set.keys.push(key),
                Err(reason) => set.left_out.push(format!("key {index} {reason}")),
            }
        }
        if raw.keys.len() > MAX_KEYS {
            set.left_out.push(format!("keys beyond the first {MAX_KEYS} are not looked at"));
        }
        Ok(set)
    }
}

impl Key {
    fn read(text: &str) -> Result<Self, &'static str> {
        let raw: RawKey = serde_json::from_str(text).map_err(|_| "is no key")?;
        if raw.kty == "oct" {
            return Err("is a secret, which everybody who verifies could sign with");
        }
        if raw.d.is_some() {
            return Err("is a private key");
        }
        if raw.usage.as_ref().is_some_and(|usage| usage != "sig") {
            return Err("is not for signatures");
        }
        if raw.key_ops.as_ref().is_some_and(|all| !all.iter().any(|operation| operation == "verify")) {
            return Err("is not for verifying");
        }
        let algorithm = match &raw.alg {
            Some(name) => Some(Algorithm::named(name).ok_or("is for an algorithm that is not taken")?),
            None => None,
        };
        let material = match &*raw.kty {
            "RSA" => rsa(&raw)?,
            "EC" => elliptic(&raw)?,
            "OKP" => edwards(&raw)?,
            _ => return Err("is of a kind that is not known"),
        };
        let key = Self { id: raw.kid, algorithm: None, material };
        if algorithm.is_some_and(|algorithm| !key.fits(algorithm)) {
            return Err("is for an algorithm of another kind of key");
        }
        Ok(Self { algorithm, ..key })
    }

    /// Whether a token that is signed so may be signed by this key.
    pub fn fits(&self, algorithm: Algorithm) -> bool {
        use Algorithm::{EdDsa, Es256, Es384, Es512};
        self.algorithm.is_none_or(|own| own == algorithm)
            && match &self.material {
                Material::Rsa(_) => !matches!(algorithm, Es256 | Es384 | Es512 | EdDsa),
                Material::Other(own, _) => *own == algorithm,
            }
    }

    /// Whether it is this key's signature of `message`.
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Rsa(key) => {
                let parameters = match algorithm {
                    Algorithm::Rs256 => &RSA_PKCS1_2048_8192_SHA256,
                    Algorithm::Rs384 => &RSA_PKCS1_2048_8192_SHA384,
                    Algorithm::Rs512 => &RSA_PKCS1_2048_8192_SHA512,
                    Algorithm::Ps256 => &RSA_PSS_2048_8192_SHA256,
                    Algorithm::Ps384 => &RSA_PSS_2048_8192_SHA384,
                    Algorithm::Ps512 => &RSA_PSS_2048_8192_SHA512,
                    _ => return false,
                };
                key.verify(parameters, message, signature).is_ok()
            }
            Material::Other(own, key) => *own == algorithm && key.verify_sig(message, signature).is_ok(),
        }
    }
}

fn bytes(member: Option<&String>, what: &'static str) -> Result<Vec<u8>, &'static str> {
    URL_SAFE_NO_PAD.decode(member.ok_or(what)?).map_err(|_| what)
}

fn rsa(raw: &RawKey) -> Result<Material, &'static str> {
    let mut n = bytes(raw.n.as_ref(), "has no modulus")?;
    let e = bytes(raw.e.as_ref(), "has no exponent")?;
    // Some issuers write the sign's octet (RFC 7518, section 6.3.1.1, says that it must not be there).
    if n.first() == Some(&0) {
        n.remove(0);
    }
    let bits = n.len() * 8 - n.first().map_or(0, |first| first.leading_zeros() as usize);
    if !(2048..=8192).contains(&bits) {
        return Err("has a modulus of fewer than 2048 or more than 8192 bits");
    }
    let exponent = e.iter().try_fold(0_u64, |all, byte| all.checked_mul(256)?.checked_add(u64::from(*byte)));
    // What is smaller, or even, is no exponent that anybody uses; what is larger costs whoever verifies.
    if !exponent.is_some_and(|e| e % 2 == 1 && (3..1 << 33).contains(&e)) {
        return Err("has an exponent that is not taken");
    }
    Ok(Material::Rsa(RsaPublicKeyComponents { n, e }))
}

fn elliptic(raw: &RawKey) -> Result<Material, &'static str> {
    let (algorithm, parameters, length): (_, &'static dyn VerificationAlgorithm, _) = match raw.crv.as_deref()
    {
        Some("P-256") => (Algorithm::Es256, &ECDSA_P256_SHA256_FIXED, 32),
        Some("P-384") => (Algorithm::Es384, &ECDSA_P384_SHA384_FIXED, 48),
        Some("P-521") => (Algorithm::Es512, &ECDSA_P521_SHA512_FIXED, 66),
        _ => return Err("is on a curve that is not taken"),
    };
    let x = bytes(raw.x.as_ref(), "has no point")?;
    let y = bytes(raw.y.as_ref(), "has no point")?;
    if x.len() != length || y.len() != length {
        return Err("has a point of another length than its curve's");
    }
    let point = [&[4_u8][..], &x, &y].concat();
    let key = ParsedPublicKey::new(parameters, &point).map_err(|_| "has a point that is not on its curve")?;
    Ok(Material::Other(algorithm, Box::new(key)))
}

fn edwards(raw: &RawKey) -> Result<Material, &'static str> {
    if raw.crv.as_deref() != Some("Ed25519") {
        return Err("is on a curve that is not taken");
    }
    let x = bytes(raw.x.as_ref(), "has no point")?;
    let key = ParsedPublicKey::new(&ED25519, &x).map_err(|_| "has a point that is none")?;
    Ok(Material::Other(Algorithm::EdDsa, Box::new(key)))
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwt::testing::Signer;

    #[test]
    fn keys_that_are_no_public_keys_for_signatures_are_left_out_with_the_reason() {
        let point = |crv: &str, x: &str, y: &str, more: &str| {
            format!(r#"{{"kty":"EC","crv":"{crv}","x":"{x}","y":"{y}"{more}}}"#)
        };
        let signer = Signer::es256("a");
        let (x, y) = signer.point();
        let good = |more: &str| point("P-256", &x, &y, more);
        let short = URL_SAFE_NO_PAD.encode([0xff; 128]);
        let long = URL_SAFE_NO_PAD.encode([0xff; 256]);
        let rsa = |n: &str, e: &str| format!(r#"{{"kty":"RSA","n":"{n}","e":"{e}"}}"#);
        for (key, expected) in [
            (good(""), None),
            (good(r#","use":"sig","alg":"ES256","key_ops":["sign","verify"],"x5c":["a"]"#), None),
            (good(r#","use":"enc""#), Some("not for signatures")),
            (good(r#","key_ops":["encrypt"]"#), Some("not for verifying")),
            (good(r#","alg":"RS256""#), Some("another kind of key")),
            (good(r#","alg":"HS256""#), Some("not taken")),
            (good(r#","d":"AA""#), Some("private")),
            (good(r#","kty":"oct""#), Some("is no key")),
            (point("P-384", &x, &y, ""), Some("another length")),
            (point("secp256k1", &x, &y, ""), Some("curve")),
            (point("P-256", &x, &x, ""), Some("not on its curve")),
            (r#"{"kty":"oct","k":"c2VjcmV0"}"#.to_owned(), Some("secret")),
            (r#"{"kty":"OKP","crv":"X25519","x":"AA"}"#.to_owned(), Some("curve")),
            (r#"{"kty":"OKP","crv":"Ed25519","x":"AA"}"#.to_owned(), Some("point")),
            (rsa(&long, "AQAB"), None),
            (rsa(&short, "AQAB"), Some("2048")),
            (rsa(&long, "AQ"), Some("exponent")),
            (rsa(&long, "Ag"), Some("exponent")),
            (rsa(&long, &long), Some("exponent")),
            (rsa("", "AQAB"), Some("2048")),
            (r#"{"kty":"RSA","e":"AQAB"}"#.to_owned(), Some("modulus")),
            ("7".to_owned(), Some("is no key")),
        ] {
            let set = KeySet::parse_any(&format!(r#"{{"keys":[{key}]}}"#)).expect("a set");
            match expected {
                None => assert_eq!((set.keys.len(), set.left_out.len()), (1, 0), "{key} {:?}", set.left_out),
                Some(reason) => {
                    assert!(
                        set.keys.is_empty() && set.left_out[0].contains(reason),
                        "{key} {:?}",
                        set.left_out
                    );
                }
            }
        }
    }

    #[test]
    fn a_set_is_bounded_and_one_bad_key_does_not_spoil_it() {
        let signer = Signer::es256("a");
        let one = signer.jwk();
        let many = vec![one.clone(); MAX_KEYS + 1].join(",");
        let set = KeySet::parse(&format!(r#"{{"keys":[{many}]}}"#)).expect("a set");
        assert_eq!((set.keys.len(), set.left_out.len()), (MAX_KEYS, 1));
        let mixed = KeySet::parse(&format!(r#"{{"keys":[7,{one}],"more":true}}"#)).expect("a set");
        assert_eq!((mixed.keys.len(), mixed.left_out.len()), (1, 1));
        for (text, expected) in [
            ("", KeySetError::Form),
            ("[]", KeySetError::Form),
            (r#"{"keys":{}}"#, KeySetError::Form),
            (r#"{"keys":[7]}"#, KeySetError::NoKey("key 0 is no key".to_owned())),
            (&"[".repeat(MAX_SET + 1), KeySetError::TooLarge),
        ] {
            assert_eq!(KeySet::parse(text).map(|_| ()), Err(expected), "{text:.40}");
        }
        assert!(KeySet::parse(r#"{"keys":[]}"#).expect("a set").keys.is_empty());
    }
}
