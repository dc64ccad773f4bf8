//! Enrolment and issuing. Each function here is a decision that ends in a signature or in a refusal with a reason,
//! and each leaves a record. The calls read and write the disk: async code makes them through `spawn_blocking`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime};

use baremesh_model::grant::{AddressGrant, Grant};
use baremesh_model::identity::Identity;
use baremesh_model::name::{Domain, Label, TrustDomain};
use rustls_pki_types::CertificateDer;

use crate::authority::{Authority, AuthorityError, Maintenance, SignedLeaf, Standing};
use crate::issued::{Issued, MAX_CHAIN};
use crate::key::{PrivateKey, PublicKey};
use crate::leaf::LeafFacts;
use crate::ledger::{AuditRecord, HostRecord, Invitation, Ledger, Outcome, TokenHost};
use crate::tls::{Fingerprint, TrustBundle};
use crate::token::Token;

/// Certificates for services of joined hosts.
mod issue;
/// Enrolment of hosts.
mod join;
/// Operators' credentials.
mod operator;
/// Refusals, as the caller and the log see them.
mod refusal;
/// Taking certificates back.
mod revoke;
/// Replacing intermediates and roots.
mod rotate;

pub(crate) use issue::authorise;
pub use issue::{IssueItem, IssueRequest, MAX_BATCH};
pub use join::{JoinAnswer, JoinRequest};
pub use operator::{MAX_OPERATOR_LIFETIME, OPERATOR_LIFETIME, OperatorRequest};
pub use refusal::Refusal;
pub use rotate::{AuthorityReport, Force, INTERMEDIATE_NEAR, ROOT_NEAR, RootReport};

/// How long a workload's certificate is valid, unless the mesh says otherwise.
pub const WORKLOAD_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How long a node credential is valid. It opens nothing but the control server, which asks the ledger at every
/// use, so it can outlast a weekend without power; a host that was off for longer joins again.
pub const NODE_LIFETIME: Duration = Duration::from_secs(30 * 86_400);
/// How long a join token can be redeemed, unless its maker says otherwise.
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);
/// The longest that a token can be made to last.
pub const MAX_TOKEN_LIFETIME: Duration = Duration::from_secs(30 * 86_400);
/// How often, at most, serving looks whether the intermediate ought to be replaced.
pub const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(3600);

/// What the mesh decides about its certificates.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long workloads' certificates are valid.
    pub workload_lifetime: Duration,
    /// How long node credentials are valid; `NODE_LIFETIME` is the usual choice.
    pub node_lifetime: Duration,
    /// The domain of service names, told to hosts that join.
    pub domain: Option<Domain>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { workload_lifetime: WORKLOAD_LIFETIME, node_lifetime: NODE_LIFETIME, domain: None }
    }
}

/// What a token is to be made for.
#[derive(Debug, Clone)]
pub struct TokenRequest {
    /// Who may redeem it.
    pub host: TokenHost,
    /// Which services that host may have.
    pub grants: Vec<Grant>,
    /// Which addresses it may announce besides those that it speaks from.
    pub addresses: Vec<AddressGrant>,
    /// How long it can be redeemed; `TOKEN_LIFETIME` is the usual choice, `MAX_TOKEN_LIFETIME` the most.
    pub lifetime: Duration,
    /// Who makes it, for the audit.
    pub who: String,
}

/// The certificate authority in service: authority, ledger, and the checks between them.
#[derive(Debug)]
pub struct CaService {
    authority: RwLock<Authority>,
    ledger: Ledger,
    settings: Settings,
    /// From `HostGrant` resources; they add to what tokens granted.
    resource_grants: RwLock<BTreeMap<Label, Vec<Grant>>>,
    next_maintenance: Mutex<SystemTime>,
}

impl CaService {
    /// Puts an authority in service.
    pub fn new(authority: Authority, ledger: Ledger, settings: Settings) -> Self {
        Self {
            authority: RwLock::new(authority),
            ledger,
            settings,
            resource_grants: RwLock::default(),
            next_maintenance: Mutex::new(SystemTime::UNIX_EPOCH),
        }
    }

    /// The trust domain that is served.
    pub fn trust_domain(&self) -> TrustDomain {
        self.authority().trust_domain().clone()
    }

    /// What members trust.
    pub fn bundle(&self) -> Result<TrustBundle, AuthorityError> {
        self.authority().bundle()
    }

    /// Tokens, hosts, issued certificates and audit, for lists and for revoking.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Makes a join token. Its secret leaves this process with the answer and is not kept.
    pub fn create_token(&self, request: TokenRequest, now: SystemTime) -> Result<Token, Refusal> {
        let TokenRequest { host, grants, addresses, lifetime, who } = request;
        if lifetime.is_zero() || lifetime > MAX_TOKEN_LIFETIME {
            return Err(Refusal::TokenLifetime);
        }
        let token = Token::mint(Fingerprint::of(self.authority().root()));
        let invitation = Invitation { host, grants, addresses, expires_at: now + lifetime };
        self.ledger.create_token(token.id(), &token.secret_hash(), &invitation, now)?;
        self.ledger.audit(&AuditRecord {
            at: now,
            who,
            what: format!("create token {}", token.id()),
            outcome: Outcome::Granted,
            reason: String::new(),
        })?;
        Ok(token)
    }

    /// Puts the grants of `HostGrant` resources in force, all at once. They count from the next request on; what was asked for
    /// before is recorded when this returns.
    pub fn set_grants(&self, grants: BTreeMap<Label, Vec<Grant>>) {
        *self.resource_grants.write().unwrap_or_else(PoisonError::into_inner) = grants;
    }

    /// What a joined host may be: its token's grants and those of resources.
    fn grants_of(host: &HostRecord, resources: &BTreeMap<Label, Vec<Grant>>) -> Vec<Grant> {
        let mut grants = host.grants.clone();
        grants.extend(resources.get(&host.name).into_iter().flatten().cloned());
        grants.sort();
        grants.dedup();
        grants
    }

    /// Other grants are put in force when nobody holds this.
    fn resource_grants(&self) -> RwLockReadGuard<'_, BTreeMap<Label, Vec<Grant>>> {
        self.resource_grants.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which host a verified node credential stands for, if it still does: the host must have joined, not be
    /// revoked, and its name not have been taken over since the credential was issued.
    pub fn check_node(&self, peer: &LeafFacts) -> Result<Label, Refusal> {
        match SystemTime::now() > peer.not_after {
            true => Err(Refusal::CredentialExpired(self.node(peer)?.name)),
            false => Ok(self.node(peer)?.name),
        }
    }

    /// As `check_node`, of a credential that may have ended: `issue` says what such a one is good for.
    pub fn known_node(&self, peer: &LeafFacts) -> Result<Label, Refusal> {
        Ok(self.node(peer)?.name)
    }

    /// As `known_node`, with what is known of the host.
    fn node(&self, peer: &LeafFacts) -> Result<HostRecord, Refusal> {
        let not_a_node = || Refusal::NotANode(peer.identity.clone());
        let host = peer.identity.as_node().ok_or_else(not_a_node)?;
        if peer.identity.trust_domain() != self.authority().trust_domain() {
            return Err(not_a_node());
        }
        let record = self.ledger.host(host)?.ok_or_else(|| Refusal::HostUnknown(host.clone()))?;
        if record.revoked {
            return Err(Refusal::HostRevoked(host.clone()));
        }
        // Told by a count and not by the time: a thief may renew in the very second in which the host joins anew, and
        // clocks are set back. A later generation than the ledger's is one that a restored backup has forgotten.
        if peer.generation() < record.generation {
            return Err(Refusal::Superseded(host.clone()));
        }
        if self.ledger.is_revoked(&peer.serial)? {
            return Err(Refusal::CredentialRevoked(host.clone()));
        }
        Ok(record)
    }

    /// The control server's own certificate with a fresh key. Its chain ends with the root, so that a host that
    /// joins finds what its token names.
    pub fn control_certificate(&self, now: SystemTime) -> Result<Issued, Refusal> {
        let key = PrivateKey::generate().map_err(|error| Refusal::unavailable(&error))?;
        let identity = Identity::control(self.trust_domain());
        let signed = self.sign(&key.public(), &identity, now)?;
        let mut chain = signed.chain;
        // Tokens that were made before a root was replaced name the one of then.
        let authority = self.authority();
        let known = authority.standing().into_iter().filter(|(_, standing)| *standing != Standing::Next);
        let room = MAX_CHAIN.saturating_sub(chain.len());
        chain.extend(known.map(|(root, _)| root.clone()).take(room));
        Issued::new(chain, key.to_der()).map_err(|error| Refusal::unavailable(&error))
    }

    /// Replaces the intermediate when that is due and possible; otherwise warns well before it ends. Serving calls
    /// this by itself, at most once an hour.
    pub fn maintain(&self, now: SystemTime) -> Result<Maintenance, AuthorityError> {
        *self.next_maintenance.lock().unwrap_or_else(PoisonError::into_inner) = now + MAINTENANCE_INTERVAL;
        let done = self.write_authority().maintain(now);
        match &done {
            Ok(Maintenance::Current) => {}
            Ok(Maintenance::Replaced) => tracing::info!("the intermediate certificate was replaced"),
            Ok(Maintenance::Expiring { advice, .. }) => tracing::warn!("{advice}"),
            Err(error) => tracing::error!(%error, "the intermediate certificate cannot be replaced"),
        }
        done
    }

    fn maintain_if_due(&self, now: SystemTime) {
        let next = *self.next_maintenance.lock().unwrap_or_else(PoisonError::into_inner);
        // Further away than it was ever put: the clock has been set back since.
        if now >= next || next > now + MAINTENANCE_INTERVAL {
            // An error is logged there, and shows again in the signature that it prevents.
            let _ = self.maintain(now);
        }
    }

    fn authority(&self) -> RwLockReadGuard<'_, Authority> {
        self.authority.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_authority(&self) -> RwLockWriteGuard<'_, Authority> {
        self.authority.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.authority().roots()
    }

    fn sign(&self, key: &PublicKey, identity: &Identity, now: SystemTime) -> Result<SignedLeaf, Refusal> {
        self.maintain_if_due(now);
        Ok(self.authority().sign(key, identity, self.settings.workload_lifetime, now)?)
    }

    /// Signs the node credential of a host of that generation.
    fn sign_node(
        &self,
        key: &PublicKey,
        host: &Label,
        generation: u32,
        now: SystemTime,
    ) -> Result<SignedLeaf, Refusal> {
        self.maintain_if_due(now);
        let identity = Identity::node(self.trust_domain(), host.clone());
        Ok(self.authority().sign_node(key, &identity, generation, (self.settings.node_lifetime, now))?)
    }

    /// Logs and records a refusal. That the record fails must not turn the refusal into something else.
    fn note_refusal(&self, who: &str, what: &str, refusal: &Refusal, now: SystemTime) {
        tracing::warn!(who, what, code = refusal.code(), "refused: {refusal}");
        let record = AuditRecord {
            at: now,
            who: who.to_owned(),
            what: what.to_owned(),
            outcome: Outcome::Refused,
            reason: refusal.to_string(),
        };
        if let Err(error) = self.ledger.audit(&record) {
            tracing::error!(%error, "the refusal could not be recorded");
        }
    }
}

#[cfg(test)]
mod tests;
