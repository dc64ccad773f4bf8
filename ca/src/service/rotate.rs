//! Replacing intermediates and roots on an operator's word, each with its line in the audit.

use std::time::{Duration, SystemTime};

use super::CaService;
use crate::authority::{AuthorityError, Installed, Standing};
use crate::clock::{from_unix, in_words};
use crate::leaf::{parse, validity};
use crate::ledger::{AuditRecord, Outcome};
use crate::tls::Fingerprint;

/// With so much left, a root ought to be replaced.
pub const ROOT_NEAR: Duration = Duration::from_secs(180 * 86_400);
/// With so much left, an intermediate is overdue: it is replaced by itself with `INTERMEDIATE_RENEWAL` left.
pub const INTERMEDIATE_NEAR: Duration = Duration::from_secs(30 * 86_400);

/// How the authority stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityReport {
    /// The roots that members trust, the one that signs first.
    pub roots: Vec<RootReport>,
    /// When the certificate that signs leaves ends.
    pub issuing_not_after: SystemTime,
    /// When the next root signs at the latest, where there is one.
    pub switches_by: Option<SystemTime>,
}

/// One root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootReport {
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
    /// What it is for.
    pub standing: Standing,
    /// When it ends.
    pub not_after: SystemTime,
    /// How many certificates in use lead to it; of the root that signs it is not asked.
    pub in_use: Option<usize>,
}

impl CaService {
    /// How the authority stands.
    pub fn authority_report(&self, now: SystemTime) -> Result<AuthorityReport, AuthorityError> {
        let authority = self.authority();
        let report = |(root, standing): (&rustls_pki_types::CertificateDer<'static>, Standing)| {
            let fingerprint = Fingerprint::of(root);
            let not_after =
                parse(root).map_or(now, |parsed| from_unix(parsed.validity().not_after.timestamp()));
            let in_use = match standing {
                Standing::Before => Some(self.ledger.in_use_under(&fingerprint.to_string(), now)?),
                Standing::Signs | Standing::Next => None,
            };
            Ok(RootReport { fingerprint, standing, not_after, in_use })
        };
        Ok(AuthorityReport {
            roots: authority.standing().into_iter().map(report).collect::<Result<_, AuthorityError>>()?,
            issuing_not_after: authority.issuing_not_after(),
            switches_by: authority.switches_by(),
        })
    }

    /// Roots and the intermediate that are near their end, in words: a root with less than `ROOT_NEAR` left, an
    /// intermediate that ought to have been replaced long ago.
    pub fn ending(&self, now: SystemTime) -> Vec<String> {
        let authority = self.authority();
        let left = |end: SystemTime| end.duration_since(now).unwrap_or_default();
        let mut ending = Vec::new();
        for (root, _) in authority.standing() {
            let fingerprint = Fingerprint::of(root).to_string();
            let end = validity(root).map_or(now, |(_, end)| end);
            if left(end) < ROOT_NEAR {
                let (end, short) = (in_words(left(end)), &fingerprint[..8]);
                ending.push(format!(
                    "the root {short} ends in {end}: `baremesh ca rotate --root`, then drop it"
                ));
            }
        }
        if !authority.signs_revocations() {
            ending.push(
                "the intermediate may not sign lists of revoked certificates (keyUsage cRLSign), and none can be revoked: \
                 `baremesh ca csr`, or `baremesh ca rotate --root`"
                    .to_owned(),
            );
        }
        if left(authority.issuing_not_after()) < INTERMEDIATE_NEAR {
            let end = in_words(left(authority.issuing_not_after()));
            ending.push(format!(
                "the intermediate ends in {end}: `baremesh ca rotate --intermediate` with its signer's key in place, or `baremesh ca csr`"
            ));
        }
        ending
    }

    /// When the root that is to sign next does so at the latest, where there is one.
    pub fn switches_by(&self) -> Option<SystemTime> {
        self.authority().switches_by()
    }

    /// Replaces the intermediate now.
    pub fn rotate_intermediate(&self, who: &str, now: SystemTime) -> Result<(), AuthorityError> {
        let done = self.write_authority().rotate_intermediate(now);
        self.note(who, "replace the intermediate", done, now)
    }

    /// A signing request for an intermediate that somebody else is to sign.
    pub fn request_intermediate(&self, who: &str, now: SystemTime) -> Result<String, AuthorityError> {
        let requested = self.write_authority().request();
        self.note(who, "request an intermediate", requested, now)
    }

    /// Takes the chain for that request. Under a root that is new it signs within `patience` at the latest.
    pub fn install_chain(
        &self,
        chain: &[u8],
        patience: Duration,
        who: &str,
        now: SystemTime,
    ) -> Result<Installed, AuthorityError> {
        let installed = self.write_authority().install(chain, now + patience, now);
        self.note(who, "install a chain", installed, now)
    }

    /// Makes the root that is to sign next, within `patience` at the latest. Members are to be told of it first.
    pub fn stage_root(
        &self,
        patience: Duration,
        who: &str,
        now: SystemTime,
    ) -> Result<Fingerprint, AuthorityError> {
        let staged = self.write_authority().stage_root(now + patience, now);
        self.note(who, "make the next root", staged, now)
    }

    /// Has the next root sign from now on. False where there is none.
    pub fn switch_root(&self, why: &str, now: SystemTime) -> Result<bool, AuthorityError> {
        let switched = self.write_authority().switch();
        if matches!(switched, Ok(false)) {
            return switched;
        }
        self.note("control", &format!("sign under the next root: {why}"), switched, now)
    }

    /// Trusts a root no more that a fingerprint, or its beginning, names. Refused while certificates that are in use lead
    /// to it, unless `force` says otherwise.
    pub fn drop_root(
        &self,
        fingerprint: &str,
        force: Force,
        who: &str,
        now: SystemTime,
    ) -> Result<Fingerprint, AuthorityError> {
        let dropped = self.try_drop(fingerprint, force, now);
        self.note(who, &format!("drop the root {fingerprint}"), dropped, now)
    }

    fn try_drop(
        &self,
        fingerprint: &str,
        force: Force,
        now: SystemTime,
    ) -> Result<Fingerprint, AuthorityError> {
        let mut authority = self.write_authority();
        let (root, standing) = authority.find_root(fingerprint)?;
        if standing == Standing::Before && force == Force::No {
            let count = self.ledger.in_use_under(&root.to_string(), now)?;
            if count > 0 {
                return Err(AuthorityError::RootInUse { root, count });
            }
        }
        authority.drop_root(root)?;
        Ok(root)
    }

    fn note<T>(
        &self,
        who: &str,
        what: &str,
        done: Result<T, AuthorityError>,
        now: SystemTime,
    ) -> Result<T, AuthorityError> {
        let refused = done.as_ref().err().map(ToString::to_string);
        tracing::info!(who, what, refused, "the authority");
        let outcome = if refused.is_some() { Outcome::Refused } else { Outcome::Granted };
        let reason = refused.unwrap_or_default();
        let record = AuditRecord { at: now, who: who.to_owned(), what: what.to_owned(), outcome, reason };
        // That the note fails must not undo what was done.
        if let Err(error) = self.ledger.audit(&record) {
            tracing::error!(%error, "what the authority did could not be recorded");
        }
        done
    }
}

/// Whether certificates in use may be cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    /// They may not.
    No,
    /// They may.
    Yes,
}
