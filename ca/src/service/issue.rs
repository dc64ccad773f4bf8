//! Issuing: a host's agent asks, with its node credential, for the certificates of its services. Each identity is
//! judged by itself, so that one that was not granted does not keep the others from being renewed.

use std::time::SystemTime;

use baremesh_model::grant::Grant;
use baremesh_model::identity::Identity;
use baremesh_model::name::{Label, TrustDomain};

use super::{CaService, Refusal};
use crate::authority::SignedLeaf;
use crate::key::PublicKey;
use crate::leaf::LeafFacts;
use crate::ledger::{HostRecord, IssueRecord, Recorded};
use crate::tls::NODE_GRACE;

/// How many certificates one request asks for at most.
pub const MAX_BATCH: usize = 64;

/// One certificate that is asked for.
#[derive(Debug, Clone)]
pub struct IssueItem {
    /// Whose certificate.
    pub identity: Identity,
    /// A signing request in DER, of which the key is taken.
    pub request: Vec<u8>,
}

/// The certificates that are asked for, at most `MAX_BATCH`.
#[derive(Debug, Clone)]
pub struct IssueRequest {
    /// One each.
    pub items: Vec<IssueItem>,
}

/// Whether `host`, with these grants, may have a certificate for `identity`: its own node and host identities
/// always, those that the mesh keeps for itself never, the rest as granted.
pub(crate) fn authorise(
    host: &Label,
    grants: &[Grant],
    trust_domain: &TrustDomain,
    identity: &Identity,
) -> Result<(), Refusal> {
    if identity.trust_domain() != trust_domain {
        return Err(Refusal::OtherTrustDomain(identity.clone()));
    }
    if identity.as_node() == Some(host) || identity.as_host() == Some(host) {
        return Ok(());
    }
    if identity.is_reserved() {
        return Err(Refusal::Reserved(identity.clone()));
    }
    if grants.iter().any(|grant| grant.allows(identity)) {
        return Ok(());
    }
    Err(Refusal::NotGranted { host: host.clone(), identity: identity.clone() })
}

impl CaService {
    /// Issues certificates to the host whose verified node credential is `node`: one answer an item, in order.
    /// Fails as a whole when the credential counts for nothing, or when what was issued cannot be recorded.
    pub fn issue(
        &self,
        node: &LeafFacts,
        request: &IssueRequest,
        now: SystemTime,
    ) -> Result<Vec<Result<SignedLeaf, Refusal>>, Refusal> {
        let admitted = self.admit(node, request, now);
        let node = admitted.inspect_err(|refusal| {
            self.note_refusal(&node.identity.principal(), "issue", refusal, now);
        })?;
        // Held until it is recorded: who takes back what is granted no longer finds it there.
        let resources = self.resource_grants();
        let grants = Self::grants_of(&node, &resources);
        let answers: Vec<_> =
            request.items.iter().map(|item| self.issue_one(&node, &grants, item, now)).collect();
        self.record(&node, request, &answers, now)?;
        drop(resources);
        Ok(answers)
    }

    fn admit(
        &self,
        credential: &LeafFacts,
        request: &IssueRequest,
        now: SystemTime,
    ) -> Result<HostRecord, Refusal> {
        let node = self.node(credential)?;
        let wanted = request.items.len();
        if now > credential.not_after {
            let renews_itself = wanted == 1 && request.items[0].identity == credential.identity;
            if !renews_itself || now > credential.not_after + NODE_GRACE {
                return Err(Refusal::CredentialExpired(node.name));
            }
        }
        if (1..=MAX_BATCH).contains(&wanted) { Ok(node) } else { Err(Refusal::BatchSize(wanted)) }
    }

    fn issue_one(
        &self,
        node: &HostRecord,
        grants: &[Grant],
        item: &IssueItem,
        now: SystemTime,
    ) -> Result<SignedLeaf, Refusal> {
        let host = &node.name;
        let signed = authorise(host, grants, &self.trust_domain(), &item.identity)
            .and_then(|()| Ok(PublicKey::from_request(&item.request)?))
            .and_then(|key| {
                if item.identity.as_node().is_none() {
                    return self.sign(&key, &item.identity, now);
                }
                // Of the generation that was checked: should the host join anew at this moment, what is signed here
                // is of the one before.
                let signed = self.sign_node(&key, host, node.generation, now)?;
                self.ledger.renew_node(host, &key.fingerprint(), node.generation)?;
                Ok(signed)
            });
        signed.inspect_err(|refusal| {
            self.note_refusal(host.as_str(), &format!("issue {}", item.identity), refusal, now);
        })
    }

    fn record(
        &self,
        node: &HostRecord,
        request: &IssueRequest,
        answers: &[Result<SignedLeaf, Refusal>],
        now: SystemTime,
    ) -> Result<(), Refusal> {
        let host = &node.name;
        let issued = request.items.iter().zip(answers).filter_map(|(item, answer)| {
            let signed = answer.as_ref().ok()?;
            tracing::info!(%host, identity = %item.identity, serial = signed.serial, "issued");
            Some(IssueRecord {
                serial: signed.serial.clone(),
                identity: item.identity.to_string(),
                host: host.to_string(),
                issued_at: now,
                not_after: signed.not_after,
                root: signed.root.to_string(),
            })
        });
        let issued = issued.collect::<Vec<_>>();
        match self.ledger.record_issued((host, node.generation), &issued, now)? {
            Recorded::All => Ok(()),
            // Shut out while it was signed for.
            Recorded::NoMember => Err(Refusal::HostRevoked(host.clone())),
            Recorded::TooMany => Err(Refusal::TooManyValid(host.clone())),
        }
    }
}
