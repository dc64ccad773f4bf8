//! Key pairs of mesh members, and signing requests. Mesh keys are ECDSA P-256 throughout: every HBONE peer
//! verifies it, and it is the fastest of the common ones. From a request the public key is taken, after its
//! signature has shown that the sender holds the private half, and nothing else.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use rcgen::SubjectPublicKeyInfo;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

/// The largest signing request that is read. One with a P-256 key takes about 250 bytes.
pub const MAX_REQUEST: usize = 4096;
/// An uncompressed P-256 point, RFC 5480, section 2.2: a tag and two coordinates.
const POINT_LENGTH: usize = 65;

/// Why a key or a signing request was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a PKCS#10 request.
    #[error("the certificate signing request is not PKCS#10 in DER, or has bytes behind its end")]
    NotARequest,
    /// Another kind of key.
    #[error("the certificate signing request has another kind of key: the mesh takes ECDSA P-256 keys only")]
    WrongKind,
    /// The sender did not show that it holds the private key.
    #[error("the certificate signing request is not signed by its own key")]
    NotProven,
    /// A private key that cannot be read.
    #[error("not a private key of the mesh (ECDSA P-256, PKCS#8 in PEM): {0}")]
    NotAKey(String),
    /// The cryptographic library failed.
    #[error("the key could not be used: {0}")]
    Library(String),
}

/// Fills `bytes` with randomness fit for keys.
pub(crate) fn fill_random(bytes: &mut [u8]) {
    // AWS-LC's generator is seeded by the kernel; it aborts the process rather than return an error.
    aws_lc_rs::rand::fill(bytes).expect("the system's random generator works");
}

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

/// A private key of a mesh member.
pub struct PrivateKey(KeyPair);

impl PrivateKey {
    /// A fresh ECDSA P-256 key.
    pub fn generate() -> Result<Self, KeyError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(Self).map_err(|error| library(&error))
    }

    /// Reads what `to_pem` wrote.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let pair = KeyPair::from_pem(pem).map_err(|error| KeyError::NotAKey(error.to_string()))?;
        if pair.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(KeyError::NotAKey("it is of another kind".to_owned()));
        }
        Ok(Self(pair))
    }

    /// PKCS#8 in PEM. The caller keeps it secret.
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// PKCS#8 in DER. The caller keeps it secret.
    pub fn to_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.serialize_der()).into()
    }

    /// A signing request in DER: the public key and the proof, no names.
    pub fn request(&self) -> Result<Vec<u8>, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        Ok(params.serialize_request(&self.0).map_err(|error| library(&error))?.der().to_vec())
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        let info = SubjectPublicKeyInfo::from_der(&self.0.subject_public_key_info());
        PublicKey(info.expect("a P-256 key that the library itself wrote"))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}

/// An ECDSA P-256 public key whose private half its sender holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(SubjectPublicKeyInfo);

impl PublicKey {
    /// Takes the key out of a signing request in DER, when the request is signed by it. Names, extensions and
    /// attributes of the request are not looked at.
    pub fn from_request(der: &[u8]) -> Result<Self, KeyError> {
        if der.len() > MAX_REQUEST {
            return Err(KeyError::NotARequest);
        }
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| KeyError::NotARequest)?;
        if !rest.is_empty() {
            return Err(KeyError::NotARequest);
        }
        let info = SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw)
            .map_err(|_| KeyError::WrongKind)?;
        let point = info.der_bytes();
        if info.algorithm() != &PKCS_ECDSA_P256_SHA256 || point.len() != POINT_LENGTH || point[0] != 4 {
            return Err(KeyError::WrongKind);
        }
        request.verify_signature().map_err(|_| KeyError::NotProven)?;
        Ok(Self(info))
    }

    /// SHA-256 over the SubjectPublicKeyInfo in DER.
    pub fn fingerprint(&self) -> [u8; 32] {
        sha256(&self.0.subject_public_key_info())
    }

    pub(crate) fn info(&self) -> &SubjectPublicKeyInfo {
        &self.0
    }
}

fn library(error: &rcgen::Error) -> KeyError {
    KeyError::Library(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request_of(pair: &KeyPair) -> Vec<u8> {
        CertificateParams::default().serialize_request(pair).expect("a request").der().to_vec()
    }

    #[test]
    fn takes_the_key_of_a_request_that_it_signed() {
        let key = PrivateKey::generate().expect("a key");
        let taken = PublicKey::from_request(&key.request().expect("a request")).expect("taken");
        assert_eq!(taken, key.public());
        let again = PrivateKey::from_pem(&key.to_pem()).expect("the same key");
        assert_eq!(again.public().fingerprint(), taken.fingerprint());
        assert_eq!(format!("{key:?}"), "PrivateKey");
    }

    #[test]
    fn refuses_other_kinds_of_keys() {
        for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519, &rcgen::PKCS_RSA_SHA256] {
            let pair = KeyPair::generate_for(algorithm).expect("a key");
            assert_eq!(PublicKey::from_request(&request_of(&pair)), Err(KeyError::WrongKind));
            assert!(PrivateKey::from_pem(&pair.serialize_pem()).is_err());
        }
    }

    #[test]
    fn refuses_a_request_signed_by_another_key_or_changed_since() {
        let request = PrivateKey::generate().expect("a key").request().expect("a request");
        let other = PrivateKey::generate().expect("a key");
        let (mine, theirs) = (other.public(), PublicKey::from_request(&request).expect("taken"));
        // The same request with another's public key in its place: the signature no longer fits.
        let (mine, theirs) = (mine.0.der_bytes().to_vec(), theirs.0.der_bytes().to_vec());
        let at = request.windows(POINT_LENGTH).position(|w| w == theirs).expect("the key stands in it");
        let mut forged = request;
        forged[at..at + POINT_LENGTH].copy_from_slice(&mine);
        assert_eq!(PublicKey::from_request(&forged), Err(KeyError::NotProven));
    }

    #[test]
    fn refuses_what_is_no_request() {
        let mut trailing = PrivateKey::generate().expect("a key").request().expect("a request");
        trailing.push(0);
        for bad in [&b""[..], b"x", &trailing, &vec![0x30; MAX_REQUEST + 1]] {
            assert_eq!(PublicKey::from_request(bad), Err(KeyError::NotARequest));
        }
    }
}
