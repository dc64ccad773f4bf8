//! Taking certificates back: which they are stands in the ledger, and the list of them is signed when it changes. It
//! is kept, so that a restart of the control server changes nothing for those who have it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use baremesh_model::identity::Identity;
use baremesh_model::name::Label;

use super::{CaService, Refusal, authorise};
use crate::clock::to_unix;
use crate::ledger::{AuditRecord, Outcome, Revocation, RevokedRecord, Which};
use crate::revocation::Revoked;

/// How often a list is signed anew because another process of a shared ledger kept one meanwhile.
const SIGNINGS: usize = 8;

impl CaService {
    /// Takes certificates back. Those of a host may be none: it is shut out by `Ledger::revoke_host`.
    pub fn revoke(&self, which: &Which, who: &str, now: SystemTime) -> Result<Vec<RevokedRecord>, Refusal> {
        self.revoke_because(which, (who, ""), now)
    }

    fn revoke_because(
        &self,
        which: &Which,
        (who, why): (&str, &str),
        now: SystemTime,
    ) -> Result<Vec<RevokedRecord>, Refusal> {
        let what = match which {
            Which::Host(host) => format!("the certificates of host {host}"),
            Which::Identity(identity) => identity.clone(),
            Which::IdentityOnHost { identity, host } => format!("{identity} of host {host}"),
            Which::Serial(serial) => format!("serial number {serial}"),
        };
        let outcome = match self.ledger.revoke_certificates(which, now)? {
            Revocation::TooMany(count) => Err(Refusal::TooManyRevoked(count)),
            Revocation::Done(none) if none.is_empty() && !matches!(which, Which::Host(_)) => {
                Err(Refusal::NothingToRevoke(what.clone()))
            }
            Revocation::Done(revoked) => Ok(revoked),
        };
        match &outcome {
            Ok(revoked) => self.ledger.audit(&AuditRecord {
                at: now,
                who: who.to_owned(),
                what: format!("revoke {what}: {} certificates{why}", revoked.len()),
                outcome: Outcome::Granted,
                reason: String::new(),
            })?,
            Err(refusal) => self.note_refusal(who, &format!("revoke {what}"), refusal, now),
        }
        outcome
    }

    /// Takes back what members hold of identities that the grants in force do not give them, and says how many
    /// certificates that were; the audit has `why` at each. Each host's own identities, and operators' credentials, need no grant.
    pub fn revoke_ungranted(&self, (who, why): (&str, &str), now: SystemTime) -> Result<usize, Refusal> {
        let domain = self.trust_domain();
        let mut members = BTreeMap::new();
        for record in self.ledger.hosts()?.into_iter().filter(|record| !record.revoked) {
            let grants = Self::grants_of(&record, &self.resource_grants());
            members.insert(record.name, grants);
        }
        let mut count = 0;
        for (host, identity) in self.ledger.held(now)? {
            let (Ok(name), Ok(parsed)) = (Label::new(&host), Identity::parse(&identity)) else { continue };
            let Some(grants) = members.get(&name) else { continue };
            if !matches!(authorise(&name, grants, &domain, &parsed), Err(Refusal::NotGranted { .. })) {
                continue;
            }
            tracing::info!(%host, identity, "certificates are taken back: they are granted no longer");
            let which = Which::IdentityOnHost { identity, host };
            count += self.revoke_because(&which, (who, why), now)?.len();
        }
        Ok(count)
    }

    /// The signed list of what is revoked, for members; `None` where nothing is. Node credentials are not in it: they
    /// are shown to the control server alone, which asks the ledger.
    pub fn revocation_list(&self, now: SystemTime) -> Result<Option<String>, Refusal> {
        for _ in 0..SIGNINGS {
            // Looked at before what is to be listed: a list that is kept from here on is not overwritten with less.
            let before = self.ledger.signed_list()?;
            let entries = self.of_members(now)?;
            if entries.is_empty() {
                return Ok(None);
            }
            if let Some((kept, read)) = self.kept_list()?
                && read.iter().collect::<BTreeSet<_>>()
                    == entries.iter().map(|(serial, _)| &**serial).collect()
            {
                return Ok(Some(kept));
            }
            // Higher than that of each list before, though the clock went back, and of lists from before they were counted,
            // whose numbers are times.
            let highest = before.as_deref().and_then(Revoked::stated_number).unwrap_or(0);
            let number = u64::try_from(to_unix(now)).unwrap_or_default().max(highest.saturating_add(1));
            let signed = self.authority().sign_revocations(&entries, number, now)?;
            if self.ledger.keep_signed_list(&signed, before.as_deref())? {
                return Ok(Some(signed));
            }
        }
        tracing::error!("other control processes sign lists of revoked certificates faster than this one");
        Err(Refusal::Unavailable)
    }

    /// The serial numbers that a list names, each with when it was revoked.
    fn of_members(&self, now: SystemTime) -> Result<Vec<(String, SystemTime)>, Refusal> {
        let mut revoked = self.ledger.revoked(now)?;
        revoked.retain(|record| {
            Identity::parse(&record.identity).is_ok_and(|identity| identity.as_node().is_none())
        });
        Ok(revoked.into_iter().map(|record| (record.serial, record.revoked_at)).collect())
    }

    /// The list that was signed last, if members would take it still: what they are told where none can be signed.
    pub fn kept_revocation_list(&self) -> Result<Option<String>, Refusal> {
        Ok(self.kept_list()?.map(|(kept, _)| kept))
    }

    fn kept_list(&self) -> Result<Option<(String, Revoked)>, Refusal> {
        let kept = self.ledger.signed_list()?;
        Ok(kept.and_then(|kept| Some((kept.clone(), Revoked::read(&kept, &self.roots()).ok()?))))
    }
}
