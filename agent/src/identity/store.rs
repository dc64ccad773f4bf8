//! Certificates on disk, key and chain of each in one file that only the agent can read. They are taken up at a
//! start, so that a host serves with no certificate authority in reach.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use baremesh_ca::file::{FileError, SECRET, read_secret, write_atomically};
use baremesh_ca::issued::Issued;
use baremesh_ca::tls::{PeerVerifier, Purpose, TrustBundle};
use baremesh_model::identity::Identity;

/// The directory of this host's certificates.
#[derive(Debug)]
pub struct Store(pub PathBuf);

impl Store {
    /// Makes the directory, for its owner alone.
    pub fn prepare(&self) -> io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0)
    }

    fn path(&self, identity: &Identity) -> PathBuf {
        self.0.join(format!("{}.{}.pem", identity.namespace(), identity.service_account()))
    }

    /// Keeps a certificate.
    pub fn save(&self, issued: &Issued) -> Result<(), FileError> {
        write_atomically(&self.path(&issued.identity), issued.to_pem().as_bytes(), SECRET)
    }

    /// The kept certificate of `identity`, if there is one that peers would take at `now`.
    pub fn load(&self, identity: &Identity, bundle: &TrustBundle, now: SystemTime) -> Option<Issued> {
        let path = self.path(identity);
        let bytes = match read_secret(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.is_missing() => return None,
            Err(error) => {
                tracing::warn!(%error, "a kept certificate is not used");
                return None;
            }
        };
        let read = std::str::from_utf8(&bytes).map_err(|error| error.to_string());
        let issued = match read.and_then(|pem| Issued::from_pem(pem).map_err(|error| error.to_string())) {
            Ok(issued) => issued,
            Err(reason) => {
                tracing::warn!(path = %path.display(), reason, "a kept certificate is damaged: a new one is asked for");
                return None;
            }
        };
        if issued.identity == *identity && is_good(&issued, bundle, now) {
            return Some(issued);
        }
        tracing::info!(path = %path.display(), "a kept certificate has expired or is not of this mesh");
        None
    }

    /// Removes the certificates of identities that are not in `wanted`: a deregistered service keeps no key here.
    pub fn retain(&self, wanted: &[Identity]) {
        let wanted: Vec<PathBuf> = wanted.iter().map(|identity| self.path(identity)).collect();
        let Ok(entries) = std::fs::read_dir(&self.0) else { return };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let stale = is_certificate(&path) && !wanted.contains(&path);
            if stale && let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "a certificate could not be removed");
            }
        }
    }
}

fn is_certificate(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "pem")
}

fn is_good(issued: &Issued, bundle: &TrustBundle, now: SystemTime) -> bool {
    let verifier = PeerVerifier::new(std::sync::Arc::new(bundle.clone()));
    let Some((leaf, rest)) = issued.chain.split_first() else { return false };
    verifier.verify(leaf, rest, Purpose::Client, now).is_ok()
}
