//! Replacing what signs: the intermediate under the same root, or the root itself. A root that is to sign next is made
//! and trusted first, and waits in a directory of its own; the switch comes when members know it. Where the key of the
//! root before is at hand it signs the new root too, and that certificate goes along with every chain: members that
//! have not heard of the new root verify by the one that they know. The root before stays trusted until it is dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rcgen::{Issuer, KeyPair};
use rustls_pki_types::CertificateDer;

use super::files::{self, NEXT};
use super::{Authority, AuthorityError, Issuing, Place, adopt, profile, switch};
use crate::clock::{from_unix, to_unix};
use crate::file::{self, PUBLIC};
use crate::issued::chain_to_pem;
use crate::leaf::parse;
use crate::tls::Fingerprint;

/// The most roots that are trusted at a time: the one that signs, one of before, and one that is to sign next or was
/// there before that. Chains carry a certificate for each, and have an end.
pub const MAX_TRUSTED: usize = 3;

/// A root that is trusted already and signs from the switch on.
pub struct Next {
    pub(super) root: CertificateDer<'static>,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) cross: Vec<CertificateDer<'static>>,
    until: SystemTime,
}

/// What a root is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It signs the intermediate that signs now.
    Signs,
    /// It is trusted, and signs from the switch on.
    Next,
    /// It signed before, and is trusted until it is dropped.
    Before,
}

/// What is about to take the place of what signs.
pub(super) struct Successor {
    /// The issuing certificate first, without the root.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: KeyPair,
    pub(super) root: CertificateDer<'static>,
    /// The root's key, where it is ours.
    pub(super) root_key: Option<KeyPair>,
}

impl Authority {
    /// The roots that members trust: the one that signs first, then the one that is to sign next, then those of before.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.standing().into_iter().map(|(root, _)| root.clone()).collect()
    }

    /// The roots that members trust, and what each is for.
    pub fn standing(&self) -> Vec<(&CertificateDer<'static>, Standing)> {
        let next = self.next.iter().map(|next| (&next.root, Standing::Next));
        let before = self.before.iter().map(|root| (root, Standing::Before));
        std::iter::once((&self.root, Standing::Signs)).chain(next).chain(before).collect()
    }

    /// When the root that is to sign next does so at the latest; none is to where there is no such root.
    pub fn switches_by(&self) -> Option<SystemTime> {
        self.next.as_ref().map(|next| next.until)
    }

    /// Replaces the intermediate now. The key of the certificate that signed it must be at hand.
    pub fn rotate_intermediate(&mut self, now: SystemTime) -> Result<(), AuthorityError> {
        let path = self.place.directory.join(files::ROOT_KEY);
        let pem = files::read_key(&path).map_err(|error| match error.is_missing() {
            true => AuthorityError::NoRootKey(path.clone()),
            false => error.into(),
        })?;
        self.replace_intermediate(&path, &pem, now).map(drop)
    }

    /// Makes a root and an intermediate that are to sign from `until` on at the latest.
    pub fn stage_root(&mut self, until: SystemTime, now: SystemTime) -> Result<Fingerprint, AuthorityError> {
        self.may_stage()?;
        let root = profile::make_root(now)?;
        let made = profile::make_intermediate(&root.issuer, root.not_after, now)?;
        let key = KeyPair::try_from(made.issuer.key().serialized_der())?;
        let root_key = KeyPair::try_from(root.issuer.key().serialized_der())?;
        let chain = vec![made.certificate];
        self.stage(Successor { chain, key, root: root.certificate, root_key: Some(root_key) }, until, now)
    }

    /// Whether a root that is to sign next has a place.
    pub(super) fn may_stage(&self) -> Result<(), AuthorityError> {
        match (&self.next, self.roots().len()) {
            (Some(next), _) => Err(AuthorityError::Rotating(Fingerprint::of(&next.root))),
            (None, trusted) if trusted >= MAX_TRUSTED => Err(AuthorityError::TooManyRoots),
            (None, _) => Ok(()),
        }
    }

    /// Writes down what is to sign next. From here on its root is trusted.
    pub(super) fn stage(
        &mut self,
        successor: Successor,
        until: SystemTime,
        now: SystemTime,
    ) -> Result<Fingerprint, AuthorityError> {
        let Successor { chain, key, root, root_key } = successor;
        let mut whole = chain.clone();
        whole.push(root.clone());
        adopt::probe(&whole, &key, &self.trust_domain, now)?;
        let cross = self.cross_signed(&chain, &key, &root, now).into_iter().collect::<Vec<_>>();
        let aside = self.place.below(NEXT);
        let directory = &aside.directory;
        remove_directory(directory)?;
        files::make_directory(directory)?;
        if let Some(root_key) = &root_key {
            files::write_key(&aside, files::ROOT_KEY, root_key)?;
        }
        files::write_certificates(&directory.join(files::CROSS), &cross)?;
        files::write_issuing(&aside, &chain, &key)?;
        let text = format!("{}\n", to_unix(until));
        file::write_atomically(&directory.join(files::UNTIL), text.as_bytes(), PUBLIC)?;
        // Last: where it stands, the rest does.
        let pem = chain_to_pem(std::slice::from_ref(&root));
        file::write_atomically(&directory.join(files::ROOT_CERTIFICATE), pem.as_bytes(), PUBLIC)?;
        let fingerprint = Fingerprint::of(&root);
        self.next = Some(Next { root, chain, cross, until });
        Ok(fingerprint)
    }

    /// The new root as the root of now signs it, where its key is at hand and members would take what comes of it.
    fn cross_signed(
        &self,
        chain: &[CertificateDer<'static>],
        key: &KeyPair,
        root: &CertificateDer<'static>,
        now: SystemTime,
    ) -> Option<CertificateDer<'static>> {
        let path = self.place.directory.join(files::ROOT_KEY);
        let made = || -> Result<CertificateDer<'static>, AuthorityError> {
            let signer_key =
                files::parse_key(&path, &files::read_key(&path)?, self.place.passphrase.as_ref())?;
            let not_after = files::check_belongs(&path, &self.root, &signer_key)?;
            let signer = Issuer::from_ca_cert_der(&self.root, signer_key)?;
            let cross = profile::make_cross(root, &signer, not_after, now)?;
            let mut whole = chain.to_vec();
            whole.extend([cross.clone(), self.root.clone()]);
            adopt::probe(&whole, key, &self.trust_domain, now)?;
            Ok(cross)
        };
        made()
            .inspect_err(|error| {
                tracing::warn!(%error, "the root of now does not vouch for the next one: hosts that do not hear of it before the switch have to join anew");
            })
            .ok()
    }

    /// Whether members that know the root of now alone verify by it what the next one signs.
    pub fn next_is_vouched_for(&self) -> bool {
        self.next.as_ref().is_some_and(|next| !next.cross.is_empty())
    }

    /// The root that a fingerprint in hexadecimal, or its beginning, names.
    pub fn find_root(&self, fingerprint: &str) -> Result<(Fingerprint, Standing), AuthorityError> {
        let wanted = fingerprint.to_ascii_lowercase();
        let named = self.standing().into_iter().map(|(root, standing)| (Fingerprint::of(root), standing));
        let found: Vec<_> = named.filter(|(found, _)| found.to_string().starts_with(&wanted)).collect();
        match found[..] {
            [one] if wanted.len() >= MIN_FINGERPRINT => Ok(one),
            _ => Err(AuthorityError::NoSuchRoot(fingerprint.to_owned())),
        }
    }

    /// Trusts a root no more. One that is to sign next does not, then; the one that signs cannot be dropped.
    pub fn drop_root(&mut self, fingerprint: Fingerprint) -> Result<(), AuthorityError> {
        if self.next.as_ref().is_some_and(|next| Fingerprint::of(&next.root) == fingerprint) {
            remove_directory(&self.place.directory.join(NEXT))?;
            self.next = None;
            return Ok(());
        }
        if Fingerprint::of(&self.root) == fingerprint {
            return Err(AuthorityError::RootSigns(fingerprint));
        }
        let is_meant = |root: &CertificateDer<'static>| Fingerprint::of(root) == fingerprint;
        let dropped = self.before.iter().find(|root| is_meant(root)).cloned();
        let dropped = dropped.ok_or_else(|| AuthorityError::NoSuchRoot(fingerprint.to_string()))?;
        let cross: Vec<_> =
            self.cross.iter().filter(|cross| !is_signed_by(cross, &dropped)).cloned().collect();
        let before: Vec<_> = self.before.iter().filter(|root| !is_meant(root)).cloned().collect();
        files::write_certificates(&self.place.directory.join(files::CROSS), &cross)?;
        files::write_certificates(&self.place.directory.join(files::TRUSTED), &before)?;
        let key = retired_key(&self.place.directory, &dropped);
        match fs::remove_file(&key) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(file::FileError::Write { path: key, source }.into());
            }
            _ => {}
        }
        (self.before, self.cross) = (before, cross);
        Ok(())
    }
}

/// The fewest digits by which a root is named.
const MIN_FINGERPRINT: usize = 8;

/// What is trusted besides the root that signs.
pub(super) struct Overlap {
    /// What is to sign next.
    pub(super) next: Option<Next>,
    /// Roots of before.
    pub(super) before: Vec<CertificateDer<'static>>,
    /// Roots as those before them signed them.
    pub(super) cross: Vec<CertificateDer<'static>>,
}

/// Reads what is trusted besides, and finishes a switch that was cut short.
pub(super) fn read(
    place: &Place,
    root: &mut CertificateDer<'static>,
    issuing: &Issuing,
) -> Result<Overlap, AuthorityError> {
    let (directory, aside) = (&place.directory, place.below(NEXT));
    let mut next = read_next(&aside)?;
    if let Some(begun) = next.take_if(|next| next.chain == issuing.chain) {
        switch::finish(directory, &begun.root)?;
        *root = files::read_trust(directory)?.1;
    } else if next.is_none() {
        // Begun and never complete, or left when a switch was all but done.
        remove_directory(&aside.directory)?;
    }
    let mut before = files::read_certificates(&directory.join(files::TRUSTED))?;
    before.retain(|trusted| trusted != root);
    let mut cross = files::read_certificates(&directory.join(files::CROSS))?;
    if let Some(next) = &next {
        // A switch that was cut short wrote it down already; it goes along with chains of the next root alone.
        cross.retain(|certificate| !next.cross.contains(certificate));
    }
    Ok(Overlap { next, before, cross })
}

fn read_next(aside: &Place) -> Result<Option<Next>, AuthorityError> {
    let directory = &aside.directory;
    let root = match files::read_chain(&directory.join(files::ROOT_CERTIFICATE)) {
        Err(AuthorityError::File(error)) if error.is_missing() => return Ok(None),
        other => other?.swap_remove(0),
    };
    let cross = files::read_certificates(&directory.join(files::CROSS))?;
    let chain = files::read_issuing(aside)?.chain;
    let path = directory.join(files::UNTIL);
    let text = String::from_utf8_lossy(&file::read(&path)?).into_owned();
    let until = text.trim().parse().map_err(|error| files::content(&path, &error))?;
    Ok(Some(Next { root, chain, cross, until: from_unix(until) }))
}

/// Where the key of a root is kept that signs no more. It vouches for nothing new, and goes when the root is dropped.
pub(super) fn retired_key(directory: &Path, root: &CertificateDer<'_>) -> PathBuf {
    directory.join(format!("root-{}.key", &Fingerprint::of(root).to_string()[..16]))
}

/// Removes what was staged, the certificate by which it counts first.
pub(super) fn remove_directory(directory: &Path) -> Result<(), AuthorityError> {
    let gone = |removed: std::io::Result<()>| match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    let removed = gone(fs::remove_file(directory.join(files::ROOT_CERTIFICATE)))
        .and_then(|()| gone(fs::remove_dir_all(directory)));
    Ok(removed.map_err(|source| file::FileError::Write { path: directory.to_owned(), source })?)
}

fn is_signed_by(certificate: &CertificateDer<'_>, root: &CertificateDer<'_>) -> bool {
    let (Ok(below), Ok(above)) = (parse(certificate), parse(root)) else { return false };
    below.issuer().as_raw() == above.subject().as_raw()
        && below.verify_signature(Some(above.public_key())).is_ok()
}
