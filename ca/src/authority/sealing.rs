//! Sealing the keys that there are by a passphrase, changing it, and opening them for good. Every file is replaced whole;
//! a change that was cut short is done again with the same two passphrases, because what is changed already is known by
//! the new one.

use std::fs;
use std::path::{Path, PathBuf};

use super::files::{self, NEXT};
use super::{AuthorityError, Place};
use crate::file::{FileError, read_secret};
use crate::seal::{Passphrase, SealError, is_sealed};

/// Seals every key below `directory` by `to`, or leaves them unsealed without one. Sealed keys are opened by `from`. How
/// many files were written.
pub fn change_passphrase(
    directory: &Path,
    from: Option<&Passphrase>,
    to: Option<&Passphrase>,
) -> Result<usize, AuthorityError> {
    files::read_trust(directory)?;
    let mut opened = Vec::new();
    for path in keys(directory)? {
        let pem = read_secret(&path)?;
        if is_sealed(&pem) == to.is_some() && files::parse_key(&path, &pem, to).is_ok() {
            // As it is to be, or changed by an attempt that was cut short.
            continue;
        }
        let key = match files::parse_key(&path, &pem, from.or(to)) {
            Err(AuthorityError::Seal { source: SealError::Wrong, path }) if from.is_none() => {
                return Err(AuthorityError::Sealed(path));
            }
            other => other?,
        };
        opened.push((path, key));
    }
    // All of them could be opened: only now the first one is written.
    for (path, key) in &opened {
        let (directory, name) = (path.parent().unwrap_or(directory), path.file_name().unwrap_or_default());
        files::write_key(&Place::new(directory, to.cloned()), &name.to_string_lossy(), key)?;
    }
    Ok(opened.len())
}

/// Whether a key of the authority lies there that no passphrase seals.
pub fn has_unsealed(directory: &Path) -> Result<bool, AuthorityError> {
    for path in keys(directory)? {
        if !is_sealed(&read_secret(&path)?) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The files of keys, what is to sign next and what signed before included.
fn keys(directory: &Path) -> Result<Vec<PathBuf>, AuthorityError> {
    let mut found = Vec::new();
    for place in [directory.to_owned(), directory.join(NEXT)] {
        let failed = |source| FileError::Read { path: place.clone(), source };
        let entries = match fs::read_dir(&place) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.map_err(failed)?,
        };
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // Not those that an attempt to write left aside.
            if !name.starts_with('.') && (name.ends_with(".key") || name.ends_with(".key.next")) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The name under which systemd hands over the passphrase (`LoadCredentialEncrypted=` in the unit).
pub const PASSPHRASE_CREDENTIAL: &str = "ca-passphrase";

/// Reads a passphrase from a file that nobody but its owner can read.
pub fn read_passphrase(path: &Path) -> Result<Passphrase, AuthorityError> {
    let failed = |source| AuthorityError::Passphrase { path: path.to_owned(), source };
    Passphrase::new(&read_secret(path)?).map_err(failed)
}

/// The passphrase that systemd hands over, where it does.
pub fn handed_passphrase() -> Result<Option<Passphrase>, AuthorityError> {
    let Some(directory) = std::env::var_os("CREDENTIALS_DIRECTORY") else { return Ok(None) };
    match read_passphrase(&Path::new(&directory).join(PASSPHRASE_CREDENTIAL)) {
        Err(AuthorityError::File(error)) if error.is_missing() => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, SystemTime};

    use baremesh_model::name::TrustDomain;

    use super::*;
    use crate::authority::Authority;
    use crate::file::{SECRET, write_atomically};

    const ONE: &str = "correct horse battery";
    const TWO: &str = "staple battery horse";

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(text.as_bytes()).expect("a passphrase")
    }

    /// Which keys there are, and whether each is sealed.
    fn sealed(directory: &Path) -> Vec<bool> {
        let keys = keys(directory).expect("keys");
        keys.iter().map(|path| is_sealed(&read_secret(path).expect("a key"))).collect()
    }

    #[test]
    fn a_sealed_authority_opens_with_its_passphrase_and_stays_sealed_whatever_is_replaced() {
        let place = tempfile::tempdir().expect("a directory");
        let (directory, now) = (place.path().join("ca"), SystemTime::now());
        let domain = TrustDomain::new("td").expect("a domain");
        let with = |text: &str| Place::new(&directory, Some(passphrase(text)));
        let mut authority = Authority::create(with(ONE), &domain, now).expect("an authority");
        assert_eq!(sealed(&directory), [true, true]);
        authority.rotate_intermediate(now).expect("replaced");
        authority.stage_root(now + Duration::from_secs(60), now).expect("staged");
        authority.request().expect("requested");
        assert_eq!(sealed(&directory), [true; 5]);
        assert!(authority.switch().expect("switched"));
        assert_eq!(sealed(&directory), [true; 4], "the root's of before among them");
        Authority::open(with(ONE), now).expect("opened");
        let refused = Authority::open(&directory, now).expect_err("no passphrase").to_string();
        assert!(refused.contains("--ca-passphrase-file") && refused.contains("ca-passphrase"), "{refused}");
        let refused = Authority::open(with(TWO), now).expect_err("another one").to_string();
        assert!(refused.contains("does not open it") && refused.contains("intermediate.key"), "{refused}");
    }

    #[test]
    fn a_passphrase_is_changed_in_all_keys_and_a_change_that_was_cut_short_goes_on() {
        let place = tempfile::tempdir().expect("a directory");
        let (directory, now) = (place.path().join("ca"), SystemTime::now());
        let domain = TrustDomain::new("td").expect("a domain");
        Authority::create(&directory, &domain, now).expect("an authority");
        let (one, two) = (passphrase(ONE), passphrase(TWO));
        let change = |from, to| change_passphrase(&directory, from, to);
        let first = read_secret(&directory.join(files::ROOT_KEY)).expect("a key");
        assert!(has_unsealed(&directory).expect("looked"));
        assert_eq!(change(None, Some(&one)).expect("sealed"), 2);
        assert!(!has_unsealed(&directory).expect("looked"));
        assert_eq!(change(None, Some(&one)).expect("nothing to do"), 0);
        assert!(matches!(change(None, Some(&two)), Err(AuthorityError::Sealed(_))), "by whom is not said");
        assert!(matches!(change(Some(&two), None), Err(AuthorityError::Seal { .. })));
        assert!(matches!(change(None, None), Err(AuthorityError::Sealed(_))));
        // Cut short: one is changed, the other is not.
        let root = read_secret(&directory.join(files::ROOT_KEY)).expect("a key");
        assert_eq!(change(Some(&one), Some(&two)).expect("changed"), 2);
        write_atomically(&directory.join(files::ROOT_KEY), &root, SECRET).expect("written");
        assert_eq!(change(Some(&one), Some(&two)).expect("gone on"), 1);
        Authority::open(Place::new(&directory, Some(two.clone())), now).expect("opened");
        assert_eq!(change(Some(&two), None).expect("opened for good"), 2);
        assert_eq!(read_secret(&directory.join(files::ROOT_KEY)).expect("a key"), first);
        Authority::open(&directory, now).expect("opened without");
    }

    /// What others read and write is what is read and written here.
    #[test]
    fn openssl_opens_what_is_sealed_here_and_seals_what_is_opened_here() {
        let place = tempfile::tempdir().expect("a directory");
        let (directory, now) = (place.path().join("ca"), SystemTime::now());
        let domain = TrustDomain::new("td").expect("a domain");
        let with = |text: &str| Place::new(&directory, Some(passphrase(text)));
        Authority::create(with(ONE), &domain, now).expect("an authority");
        let key = directory.join(files::ROOT_KEY);
        let openssl = |arguments: &[&str]| {
            let done = Command::new("openssl").args(arguments).output().expect("openssl runs");
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            done.stdout
        };
        let path = key.display().to_string();
        let opened = openssl(&["pkcs8", "-in", &path, "-passin", &format!("pass:{ONE}")]);
        let ours = files::parse_key(&key, &read_secret(&key).expect("a key"), Some(&passphrase(ONE)));
        let theirs = files::parse_key(&key, &opened, None).expect("a key");
        assert_eq!(theirs.serialized_der(), ours.expect("a key").serialized_der());
        write_atomically(&key, &opened, SECRET).expect("written");
        for means in
            [&["-scrypt"][..], &["-v2", "aes-256-cbc", "-v2prf", "hmacWithSHA256"], &["-v2", "aes-128-cbc"]]
        {
            let out = format!("pass:{TWO}");
            let arguments = ["pkcs8", "-topk8", "-in", &path, "-passout", &out];
            let resealed = openssl(&[&arguments[..], means].concat());
            let read = files::parse_key(&key, &resealed, Some(&passphrase(TWO))).expect("a key");
            assert_eq!(read.serialized_der(), theirs.serialized_der(), "{means:?}");
        }
    }
}
