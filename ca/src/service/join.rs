//! Enrolment: a token and a signing request in, the host's node credential out. The redemption is on the disk
//! before anything is signed. After a crash between the two, or when the answer was lost, the same key gets the
//! same answer for `REDEEM_AGAIN`; another key gets nothing.

use std::time::SystemTime;

use baremesh_model::identity::Identity;
use baremesh_model::name::{Domain, Label, TrustDomain};
use rustls_pki_types::CertificateDer;

use super::{CaService, Refusal};
use crate::issued::{chain_from_pem, chain_to_pem};
use crate::key::PublicKey;
use crate::ledger::{IssueRecord, Recorded, RedeemError, Redeemed, Redemption, TokenRefusal};
use crate::token::Token;

/// A host that asks to be let in.
#[derive(Debug, Clone)]
pub struct JoinRequest {
    /// The token's text.
    pub token: String,
    /// The host's name.
    pub host: Label,
    /// A signing request in DER, of which the key is taken.
    pub request: Vec<u8>,
}

/// What a host needs to be a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinAnswer {
    /// The name under which it joined.
    pub host: Label,
    /// Its node credential, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// What it trusts from now on.
    pub roots: Vec<CertificateDer<'static>>,
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// The domain of service names, where the mesh has set one.
    pub domain: Option<Domain>,
}

impl CaService {
    /// Lets a host in.
    pub fn join(&self, request: &JoinRequest, now: SystemTime) -> Result<JoinAnswer, Refusal> {
        let outcome = self.try_join(request, now);
        match &outcome {
            Ok(_) => tracing::info!(host = %request.host, "joined"),
            // Anybody can send these. They are logged, but strangers do not get to write to the disk.
            Err(
                refusal @ (Refusal::NotAToken(_) | Refusal::Key(_) | Refusal::Token(TokenRefusal::Unknown)),
            ) => tracing::warn!(host = %request.host, code = refusal.code(), "join refused: {refusal}"),
            Err(refusal) => self.note_refusal(request.host.as_str(), "join", refusal, now),
        }
        outcome
    }

    fn try_join(&self, request: &JoinRequest, now: SystemTime) -> Result<JoinAnswer, Refusal> {
        let token = Token::parse(&request.token)?;
        let key = PublicKey::from_request(&request.request)?;
        let attempt = Redemption {
            token: token.id().to_owned(),
            secret_hash: token.secret_hash(),
            host: request.host.clone(),
            key: key.fingerprint(),
        };
        let redeemed = self.ledger.redeem(&attempt, now).map_err(|error| match error {
            RedeemError::Refused(refusal) => Refusal::Token(refusal),
            RedeemError::Ledger(error) => error.into(),
        })?;
        let chain = match redeemed {
            Redeemed::Answered(pem) => chain_from_pem(&pem).ok_or(Refusal::Unavailable)?,
            Redeemed::ToIssue(generation) => self.issue_node(&attempt, &key, generation, now)?,
        };
        Ok(JoinAnswer {
            host: request.host.clone(),
            chain,
            roots: self.roots(),
            trust_domain: self.trust_domain(),
            domain: self.settings.domain.clone(),
        })
    }

    fn issue_node(
        &self,
        attempt: &Redemption,
        key: &PublicKey,
        generation: u32,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, Refusal> {
        let identity = Identity::node(self.trust_domain(), attempt.host.clone());
        let signed = self.sign_node(key, &attempt.host, generation, now)?;
        let record = IssueRecord {
            serial: signed.serial,
            identity: identity.to_string(),
            host: attempt.host.to_string(),
            issued_at: now,
            not_after: signed.not_after,
            root: signed.root.to_string(),
        };
        match self.ledger.record_issued((&attempt.host, generation), &[record], now)? {
            Recorded::All => {}
            Recorded::NoMember => return Err(Refusal::HostRevoked(attempt.host.clone())),
            Recorded::TooMany => return Err(Refusal::TooManyValid(attempt.host.clone())),
        }
        self.ledger.keep_answer(&attempt.token, chain_to_pem(&signed.chain).as_bytes())?;
        Ok(signed.chain)
    }
}
