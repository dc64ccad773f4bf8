//! An intermediate that somebody else signs, a company's root for instance: the request goes out, the chain comes in. The
//! key is made here and never leaves.

use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};

use super::adopt::Given;
use super::rotation::Successor;
use super::{Authority, AuthorityError, files};
use crate::clock::in_words;
use crate::file::{self, FileError};
use crate::issued::chain_from_pem;
use crate::tls::Fingerprint;

/// The least that a chain must last when it is installed: with less, hosts would hardly have renewed before its end.
pub const MIN_INSTALLED: Duration = Duration::from_secs(2 * 86_400);

/// What became of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installed {
    /// It signs from now on, under a root that is trusted already.
    Signs,
    /// Its root is new, and signs when members know it.
    Staged(Fingerprint),
}

impl Authority {
    /// A signing request for an intermediate, in PEM. The same key stands in it until a chain for it was installed.
    pub fn request(&self) -> Result<String, AuthorityError> {
        let path = self.place.directory.join(files::REQUESTED_KEY);
        let key = match file::read_secret(&path) {
            Ok(pem) => files::parse_key(&path, &pem, self.place.passphrase.as_ref())?,
            Err(error) if error.is_missing() => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
                files::write_key(&self.place, files::REQUESTED_KEY, &key)?;
                key
            }
            Err(error) => return Err(error.into()),
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // Of the key, so that two requests of one mesh are never taken for each other while a chain is built.
        let name = Fingerprint::from_bytes(crate::key::sha256(key.der_bytes())).to_string();
        let name = format!("baremesh intermediate {}", &name[..8]);
        params.distinguished_name.push(DnType::CommonName, name);
        Ok(params.serialize_request(&key)?.pem()?)
    }

    /// Takes the chain for the request: its own certificate first, its root last. Everything that would later break a
    /// handshake is found here. Under a root that is trusted it signs at once; under another one from the switch on, by
    /// `until` at the latest.
    pub fn install(
        &mut self,
        chain: &[u8],
        until: SystemTime,
        now: SystemTime,
    ) -> Result<Installed, AuthorityError> {
        let path = self.place.directory.join(files::REQUESTED_KEY);
        let key = match file::read_secret(&path) {
            Ok(pem) => files::parse_key(&path, &pem, self.place.passphrase.as_ref())?,
            Err(error) if error.is_missing() => return Err(AuthorityError::NotRequested),
            Err(error) => return Err(error.into()),
        };
        let unusable = |reason: String| AuthorityError::Unusable(reason);
        let chain = chain_from_pem(chain).ok_or_else(|| {
            unusable("it holds no certificate in PEM, a broken one, or more than seven".to_owned())
        })?;
        let given = Given::check(&path, chain, key, now)?;
        let left = given.not_after().duration_since(now).unwrap_or_default();
        if left < MIN_INSTALLED {
            let (left, least) = (in_words(left), in_words(MIN_INSTALLED));
            return Err(unusable(format!("it ends in {left}, and is to last {least} at least")));
        }
        let (mut chain, key) = given.into_parts();
        let root = match chain.len() {
            // A root that is itself to sign leaves has nothing above it.
            0 | 1 => {
                return Err(unusable("its root is not in it: append its issuers, up to the root".to_owned()));
            }
            length => chain.remove(length - 1),
        };
        let installed = if self.root == root {
            let mut whole = chain.clone();
            whole.push(root);
            super::adopt::probe(&whole, &key, &self.trust_domain, now)?;
            files::write_issuing(&self.place, &chain, &key)?;
            self.issuing = files::read_issuing(&self.place)?;
            Installed::Signs
        } else {
            self.may_stage()?;
            if self.roots().contains(&root) {
                return Err(unusable(
                    "its root signed before and was replaced: drop that root first".to_owned(),
                ));
            }
            Installed::Staged(self.stage(Successor { chain, key, root, root_key: None }, until, now)?)
        };
        std::fs::remove_file(&path).map_err(|source| FileError::Write { path, source })?;
        Ok(installed)
    }
}
