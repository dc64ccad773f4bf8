//! Private keys that a passphrase seals: PKCS#8's EncryptedPrivateKeyInfo (RFC 5958, section 3) with PBES2 (RFC 8018),
//! scrypt (RFC 7914) and AES-256-CBC, in PEM, as `openssl pkcs8` reads and writes it.

use std::fmt;
use std::sync::Arc;

use pkcs8::EncryptedPrivateKeyInfoRef;
use pkcs8::der::{Decode, Encode, asn1::OctetStringRef};
use pkcs8::pkcs5::{EncryptionScheme, pbes2, scrypt};

use crate::key::fill_random;

/// The PEM label of a sealed key, RFC 7468, section 11.
pub const LABEL: &str = "ENCRYPTED PRIVATE KEY";
/// The fewest bytes of a passphrase: whoever has the file can try as many as they like.
pub const MIN_PASSPHRASE: usize = 12;
/// The most bytes of a passphrase.
pub const MAX_PASSPHRASE: usize = 1024;
/// scrypt's cost, as a power of two, block size and parallelism: 16 MiB five times over, of the choices that OWASP holds
/// equal the largest that OpenSSL computes without being told to take more than 32 MiB.
const SCRYPT: (u8, u32, u32) = (14, 8, 5);
/// The most memory that a file may ask for, in bytes.
const MAX_MEMORY: u64 = 1 << 30;
const SALT: usize = 16;

/// Why a key cannot be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Not what a passphrase is.
    #[error("a passphrase has {MIN_PASSPHRASE} to {MAX_PASSPHRASE} bytes, in one line; this one has {0}")]
    Length(usize),
    /// More than one line.
    #[error("a passphrase is one line; this file has several")]
    Lines,
    /// The passphrase is another one, or the file is damaged.
    #[error("the passphrase does not open it")]
    Wrong,
    /// Sealed by means that are not read here.
    #[error("how it is sealed is not understood here (PBES2 with scrypt or PBKDF2 of SHA-2, and AES): {0}")]
    Unsupported(String),
}

/// What seals the authority's keys.
#[derive(Clone, PartialEq, Eq)]
pub struct Passphrase(Arc<[u8]>);

impl Passphrase {
    /// Takes the one line of a file or of the standard input; the end of the line does not count.
    pub fn new(text: &[u8]) -> Result<Self, SealError> {
        let line = text.strip_suffix(b"\n").unwrap_or(text);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.contains(&b'\n') {
            return Err(SealError::Lines);
        }
        match line.len() {
            MIN_PASSPHRASE..=MAX_PASSPHRASE => Ok(Self(line.into())),
            length => Err(SealError::Length(length)),
        }
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase")
    }
}

/// Whether a file in PEM holds a key that is sealed.
pub fn is_sealed(pem: &[u8]) -> bool {
    pem::parse(pem).is_ok_and(|pem| pem.tag() == LABEL)
}

/// Seals a key in DER, and returns the file.
pub(crate) fn seal(der: &[u8], passphrase: &Passphrase) -> Result<String, SealError> {
    let (mut salt, mut iv) = ([0; SALT], [0; 16]);
    fill_random(&mut salt);
    fill_random(&mut iv);
    let unsupported = |error: &dyn fmt::Display| SealError::Unsupported(error.to_string());
    let (log_n, r, p) = SCRYPT;
    let cost = scrypt::Params::new(log_n, r, p).map_err(|error| unsupported(&error))?;
    let parameters = pbes2::Parameters::generate_scrypt_aes256cbc(cost, &salt, iv);
    let parameters = parameters.map_err(|error| unsupported(&error))?;
    let sealed = parameters.encrypt(&passphrase.0, der).map_err(|error| unsupported(&error))?;
    let encrypted_data = OctetStringRef::new(&sealed).map_err(|error| unsupported(&error))?;
    let info = EncryptedPrivateKeyInfoRef { encryption_algorithm: parameters.into(), encrypted_data };
    let whole = info.to_der().map_err(|error| unsupported(&error))?;
    Ok(pem::encode_config(
        &pem::Pem::new(LABEL, whole),
        pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
    ))
}

/// Opens a sealed key, and returns it in DER.
pub(crate) fn open(pem: &[u8], passphrase: &Passphrase) -> Result<Vec<u8>, SealError> {
    let unsupported = |error: &dyn fmt::Display| SealError::Unsupported(error.to_string());
    let pem = pem::parse(pem).map_err(|error| unsupported(&error))?;
    let info = EncryptedPrivateKeyInfoRef::from_der(pem.contents()).map_err(|error| unsupported(&error))?;
    if let EncryptionScheme::Pbes2(parameters) = &info.encryption_algorithm
        && let Some(scrypt) = parameters.kdf.scrypt()
        && scrypt.cost_parameter.saturating_mul(128 * u64::from(scrypt.block_size)) > MAX_MEMORY
    {
        return Err(SealError::Unsupported("scrypt would take more than 1 GiB".to_owned()));
    }
    match info.decrypt(&passphrase.0) {
        Ok(opened) => Ok(opened.as_bytes().to_vec()),
        Err(pkcs8::Error::EncryptedPrivateKey(pkcs8::pkcs5::Error::UnsupportedAlgorithm { oid })) => {
            Err(unsupported(&oid))
        }
        // Padding that does not come out, or a plaintext that is no DER.
        Err(_) => Err(SealError::Wrong),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::PrivateKey;

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(text.as_bytes()).expect("a passphrase")
    }

    #[test]
    fn what_is_sealed_opens_with_its_passphrase_and_no_other() {
        let key = PrivateKey::generate().expect("a key").to_der();
        let mine = passphrase("correct horse battery");
        let sealed = seal(key.secret_der(), &mine).expect("sealed");
        assert!(
            is_sealed(sealed.as_bytes()) && sealed.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
        );
        assert_eq!(open(sealed.as_bytes(), &mine).expect("opened"), key.secret_der());
        assert_eq!(open(sealed.as_bytes(), &passphrase("correct horse batterz")), Err(SealError::Wrong));
        let again = seal(key.secret_der(), &mine).expect("sealed");
        assert_ne!(sealed, again, "the salt is another one each time");
        for at in (0..sealed.len()).step_by(37) {
            let mut damaged = sealed.clone().into_bytes();
            damaged[at] ^= 1;
            // A changed salt, vector or block gives another key or none; never this one with a changed byte unnoticed.
            if let Ok(opened) = open(&damaged, &mine) {
                let text = pem::encode(&pem::Pem::new("PRIVATE KEY", opened.clone()));
                assert!(PrivateKey::from_pem(&text).is_err() || opened == key.secret_der(), "at {at}");
            }
        }
        assert_eq!(format!("{mine:?}"), "Passphrase");
    }

    #[test]
    fn a_passphrase_is_one_line_of_a_sensible_length() {
        let check = |text: &str, expected: Result<&str, SealError>| {
            assert_eq!(Passphrase::new(text.as_bytes()), expected.map(passphrase), "{text:?}");
        };
        check("twelve bytes\n", Ok("twelve bytes"));
        check("twelve bytes\r\n", Ok("twelve bytes"));
        check("twelve bytes ", Ok("twelve bytes "));
        check("short\n", Err(SealError::Length(5)));
        check("", Err(SealError::Length(0)));
        check("twelve bytes\nand more", Err(SealError::Lines));
        check(&"x".repeat(MAX_PASSPHRASE + 1), Err(SealError::Length(MAX_PASSPHRASE + 1)));
    }

    #[test]
    fn a_file_does_not_choose_how_much_memory_is_taken() {
        let cost = scrypt::Params::new(24, 8, 1).expect("parameters");
        let parameters = pbes2::Parameters::generate_scrypt_aes256cbc(cost, &[0; SALT], [0; 16]);
        let encrypted_data = OctetStringRef::new(&[0; 32]).expect("bytes");
        let encryption_algorithm = parameters.expect("parameters").into();
        let info = EncryptedPrivateKeyInfoRef { encryption_algorithm, encrypted_data };
        let text = pem::encode(&pem::Pem::new(LABEL, info.to_der().expect("DER")));
        let refused = open(text.as_bytes(), &passphrase("twelve bytes"));
        assert!(
            matches!(&refused, Err(SealError::Unsupported(reason)) if reason.contains("1 GiB")),
            "{refused:?}"
        );
    }
}
