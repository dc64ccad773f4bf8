//! The files of an authority. The certificate is renamed into place before its key, and the key waits under
//! another name meanwhile, so that a crash between the two can always be finished at the next start.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use baremesh_model::name::TrustDomain;
use rcgen::{Issuer, KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;

use super::{AuthorityError, Issuing, Place};
use crate::clock::from_unix;
use crate::file::{self, FileError, PUBLIC, SECRET};
use crate::issued::{chain_from_pem, chain_to_pem};
use crate::leaf::parse;
use crate::seal::{self, Passphrase, SealError};

pub(super) const ROOT_CERTIFICATE: &str = "root.crt";
/// The key that signs intermediates, in an authority's directory.
pub const ROOT_KEY: &str = "root.key";
const ISSUING_CERTIFICATE: &str = "intermediate.crt";
const ISSUING_KEY: &str = "intermediate.key";
/// A key whose certificate may or may not have taken its place yet.
const ISSUING_KEY_NEXT: &str = "intermediate.key.next";
const TRUST_DOMAIN: &str = "trust-domain";
/// The directory of what is to sign next.
pub(super) const NEXT: &str = "next";
/// There: when it does at the latest.
pub(super) const UNTIL: &str = "until";
/// The key of an intermediate that was requested and has no certificate yet.
pub(super) const REQUESTED_KEY: &str = "requested.key";
/// Roots of before.
pub(super) const TRUSTED: &str = "trusted.crt";
/// Roots as those before them signed them.
pub(super) const CROSS: &str = "cross.crt";
/// The directory holds keys: nobody but its owner lists it.
const DIRECTORY_MODE: u32 = 0o700;

/// Makes the directory, and refuses one that holds an authority already.
pub(super) fn prepare(directory: &Path) -> Result<(), AuthorityError> {
    if directory.join(ROOT_CERTIFICATE).exists() {
        return Err(AuthorityError::Exists(directory.to_owned()));
    }
    make_directory(directory)
}

pub(super) fn make_directory(directory: &Path) -> Result<(), AuthorityError> {
    let made = DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory);
    Ok(made.map_err(|source| FileError::Write { path: directory.to_owned(), source })?)
}

/// Writes certificates; without any there is no file.
pub(super) fn write_certificates(
    path: &Path,
    certificates: &[CertificateDer<'static>],
) -> Result<(), AuthorityError> {
    if !certificates.is_empty() {
        return Ok(file::write_atomically(path, chain_to_pem(certificates).as_bytes(), PUBLIC)?);
    }
    match fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(FileError::Write { path: path.to_owned(), source }.into())
        }
        _ => Ok(()),
    }
}

/// Reads what `write_certificates` wrote.
pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    match read_chain(path) {
        Err(AuthorityError::File(error)) if error.is_missing() => Ok(Vec::new()),
        other => other,
    }
}

/// Reads a key from where the authority keeps it; where it is not there, as systemd hands it over
/// (`LoadCredentialEncrypted=` in the unit), under the same name.
pub(super) fn read_key(path: &Path) -> Result<Vec<u8>, FileError> {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    read_key_beside(path, credentials.as_deref())
}

fn read_key_beside(path: &Path, credentials: Option<&Path>) -> Result<Vec<u8>, FileError> {
    let missing = match file::read_secret(path) {
        Err(error) if error.is_missing() => error,
        other => return other,
    };
    let handed = credentials.and_then(|directory| Some(directory.join(path.file_name()?)));
    match handed.map(|handed| file::read_secret(&handed)) {
        None => Err(missing),
        Some(Err(error)) if error.is_missing() => Err(missing),
        Some(other) => other,
    }
}

/// Writes a key, sealed where there is a passphrase.
pub(super) fn write_key(place: &Place, name: &str, key: &KeyPair) -> Result<(), AuthorityError> {
    let path = place.directory.join(name);
    let text = match &place.passphrase {
        None => key_to_pem(key),
        Some(passphrase) => {
            let sealed = seal::seal(&pkcs8(&path, key)?, passphrase);
            sealed.map_err(|source| AuthorityError::Seal { path: path.clone(), source })?
        }
    };
    Ok(file::write_atomically(&path, text.as_bytes(), SECRET)?)
}

/// What is sealed is PKCS#8. An adopted key in an older container stays readable as it is.
fn pkcs8(path: &Path, key: &KeyPair) -> Result<Vec<u8>, AuthorityError> {
    let der = key.serialized_der();
    match rustls_pki_types::PrivateKeyDer::try_from(der) {
        Ok(rustls_pki_types::PrivateKeyDer::Pkcs8(_)) => Ok(der.to_vec()),
        _ => Err(content(
            path,
            &"only a key in PKCS#8 can be sealed: `openssl pkcs8 -topk8 -nocrypt -in KEY -out NEW` writes one",
        )),
    }
}

/// An adopted key may be in another container than PKCS#8; its label says which.
fn key_to_pem(key: &KeyPair) -> String {
    let der = key.serialized_der();
    let label = match rustls_pki_types::PrivateKeyDer::try_from(der) {
        Ok(rustls_pki_types::PrivateKeyDer::Sec1(_)) => "EC PRIVATE KEY",
        Ok(rustls_pki_types::PrivateKeyDer::Pkcs1(_)) => "RSA PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    pem::encode(&pem::Pem::new(label, der))
}

pub(super) fn write_issuing(
    place: &Place,
    chain: &[CertificateDer<'static>],
    key: &KeyPair,
) -> Result<(), AuthorityError> {
    write_key(place, ISSUING_KEY_NEXT, key)?;
    let certificates = place.directory.join(ISSUING_CERTIFICATE);
    file::write_atomically(&certificates, chain_to_pem(chain).as_bytes(), PUBLIC)?;
    take_next_key(&place.directory)
}

fn take_next_key(directory: &Path) -> Result<(), AuthorityError> {
    let path = directory.join(ISSUING_KEY);
    let moved = fs::rename(directory.join(ISSUING_KEY_NEXT), &path);
    let flushed = moved.and_then(|()| fs::File::open(directory)?.sync_all());
    Ok(flushed.map_err(|source| FileError::Write { path, source })?)
}

/// Writes the trust domain, then the root, which marks the authority as complete.
pub(super) fn write_trust(
    directory: &Path,
    trust_domain: &TrustDomain,
    root: &CertificateDer<'static>,
) -> Result<(), AuthorityError> {
    file::write_atomically(&directory.join(TRUST_DOMAIN), format!("{trust_domain}\n").as_bytes(), PUBLIC)?;
    let root = chain_to_pem(std::slice::from_ref(root));
    Ok(file::write_atomically(&directory.join(ROOT_CERTIFICATE), root.as_bytes(), PUBLIC)?)
}

pub(super) fn read_trust(directory: &Path) -> Result<(TrustDomain, CertificateDer<'static>), AuthorityError> {
    let path = directory.join(ROOT_CERTIFICATE);
    let root = match read_chain(&path) {
        Err(AuthorityError::File(error)) if error.is_missing() => {
            return Err(AuthorityError::Missing(directory.to_owned()));
        }
        other => other?.swap_remove(0),
    };
    let path = directory.join(TRUST_DOMAIN);
    let text = String::from_utf8_lossy(&file::read(&path)?).into_owned();
    let trust_domain = TrustDomain::new(text.trim()).map_err(|error| content(&path, &error))?;
    Ok((trust_domain, root))
}

pub(super) fn read_issuing(place: &Place) -> Result<Issuing, AuthorityError> {
    let directory = &place.directory;
    let chain = read_chain(&directory.join(ISSUING_CERTIFICATE))?;
    let path = directory.join(ISSUING_KEY);
    let (key, not_after) = match read_matching_key(place, &path, &chain[0]) {
        Ok(found) => found,
        Err(error) => {
            // A crash may have come between the certificate and its key; otherwise the first error stands.
            let Ok(found) = read_matching_key(place, &directory.join(ISSUING_KEY_NEXT), &chain[0]) else {
                return Err(error);
            };
            take_next_key(directory)?;
            found
        }
    };
    let issuer = Issuer::from_ca_cert_der(&chain[0], key)?;
    let parsed = parse(&chain[0]).map_err(|error| content(&path, &error))?;
    let not_before = from_unix(parsed.validity().not_before.timestamp());
    Ok(Issuing { chain, issuer, not_before, not_after })
}

fn read_matching_key(
    place: &Place,
    path: &Path,
    certificate: &CertificateDer<'static>,
) -> Result<(KeyPair, SystemTime), AuthorityError> {
    let key = parse_key(path, &read_key(path)?, place.passphrase.as_ref())?;
    let not_after = check_belongs(path, certificate, &key)?;
    Ok((key, not_after))
}

pub(super) fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    let bytes = file::read(path)?;
    chain_from_pem(&bytes)
        .ok_or_else(|| content(path, &"it holds no certificate in PEM, a broken one, or more than eight"))
}

/// Reads a key; one that is sealed with the passphrase.
pub(super) fn parse_key(
    path: &Path,
    pem: &[u8],
    passphrase: Option<&Passphrase>,
) -> Result<KeyPair, AuthorityError> {
    if seal::is_sealed(pem) {
        let passphrase = passphrase.ok_or_else(|| AuthorityError::Sealed(path.to_owned()))?;
        let failed = |source| AuthorityError::Seal { path: path.to_owned(), source };
        let der = seal::open(pem, passphrase).map_err(failed)?;
        // What is no key although its padding came out was opened by another passphrase.
        return KeyPair::try_from(der).map_err(|_| failed(SealError::Wrong));
    }
    let text = std::str::from_utf8(pem).map_err(|error| content(path, &error))?;
    KeyPair::from_pem(text)
        .map_err(|_| content(path, &"it holds no private key (ECDSA P-256, P-384 or RSA) in PEM"))
}

/// Checks that `key` is the key of `certificate`, and reads until when that is valid.
pub(super) fn check_belongs(
    path: &Path,
    certificate: &CertificateDer<'_>,
    key: &KeyPair,
) -> Result<SystemTime, AuthorityError> {
    let parsed = parse(certificate).map_err(|error| content(path, &error))?;
    if parsed.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
        return Err(content(path, &format_args!("the key does not belong to {}", parsed.subject())));
    }
    Ok(from_unix(parsed.validity().not_after.timestamp()))
}

pub(super) fn content(path: &Path, reason: &dyn std::fmt::Display) -> AuthorityError {
    AuthorityError::Content { path: path.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_where_the_authority_keeps_it_or_handed_over_by_systemd() {
        let place = tempfile::tempdir().expect("a directory");
        let (own, handed) = (place.path().join("ca"), place.path().join("credentials"));
        for directory in [&own, &handed] {
            fs::create_dir(directory).expect("a directory");
        }
        let key = own.join(ROOT_KEY);
        let read = || read_key_beside(&key, Some(&handed));
        assert!(read().expect_err("neither").is_missing());
        assert!(read_key_beside(&key, None).expect_err("no systemd").is_missing());
        file::write_atomically(&handed.join(ROOT_KEY), b"handed", 0o400).expect("written");
        assert_eq!(read().expect("read"), b"handed");
        file::write_atomically(&key, b"own", SECRET).expect("written");
        assert_eq!(read().expect("read"), b"own");
        fs::remove_file(&key).expect("removed");
        file::write_atomically(&handed.join(ROOT_KEY), b"handed", PUBLIC).expect("written");
        assert!(matches!(read(), Err(FileError::Exposed { .. })), "what others can read is no secret");
    }
}
