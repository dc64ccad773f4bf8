//! Operators' credentials: a key that the operator's command made, an identity that no host can be granted, and a record
//! in the ledger that is asked at every use. A removed operator, and a credential before the latest, count for nothing
//! from then on, whatever their certificates say.

use std::time::{Duration, SystemTime};

use baremesh_model::identity::Identity;
use baremesh_model::name::Label;
use baremesh_model::operator::Role;

use super::{CaService, Refusal};
use crate::authority::SignedLeaf;
use crate::key::PublicKey;
use crate::leaf::LeafFacts;
use crate::ledger::{AuditRecord, IssueRecord, OperatorRecord, Outcome};

/// How long an operator's credential is valid, unless who adds it says otherwise.
pub const OPERATOR_LIFETIME: Duration = Duration::from_secs(30 * 86_400);
/// The longest that one can be made to last.
pub const MAX_OPERATOR_LIFETIME: Duration = Duration::from_secs(366 * 86_400);

/// An operator that is to be added.
#[derive(Debug, Clone)]
pub struct OperatorRequest {
    /// Its name.
    pub name: Label,
    /// What it may do.
    pub role: Role,
    /// A signing request in DER, of which the key is taken.
    pub request: Vec<u8>,
    /// How long the credential is valid.
    pub lifetime: Duration,
    /// Whether an operator of that name may be there, whose credential then ends.
    pub replace: bool,
    /// Who adds it, for the audit.
    pub who: String,
}

impl CaService {
    /// Adds an operator: its certificate is on record before anybody has it.
    pub fn add_operator(&self, wanted: &OperatorRequest, now: SystemTime) -> Result<SignedLeaf, Refusal> {
        let added = self.try_add_operator(wanted, now);
        added.inspect_err(|refusal| {
            self.note_refusal(&wanted.who, &format!("add operator {}", wanted.name), refusal, now);
        })
    }

    fn try_add_operator(&self, wanted: &OperatorRequest, now: SystemTime) -> Result<SignedLeaf, Refusal> {
        let OperatorRequest { name, role, request, lifetime, replace, who } = wanted;
        if lifetime.is_zero() || *lifetime > MAX_OPERATOR_LIFETIME {
            return Err(Refusal::OperatorLifetime);
        }
        if !replace && self.ledger.operator(name)?.is_some() {
            return Err(Refusal::OperatorExists(name.clone()));
        }
        let key = PublicKey::from_request(request)?;
        self.maintain_if_due(now);
        let identity = Identity::operator(self.trust_domain(), name.clone());
        let signed = self.authority().sign(&key, &identity, *lifetime, now)?;
        let operator = OperatorRecord {
            name: name.clone(),
            role: role.clone(),
            serial: signed.serial.clone(),
            issued_at: now,
            not_after: signed.not_after,
        };
        let issued = IssueRecord {
            serial: signed.serial.clone(),
            identity: identity.to_string(),
            host: who.clone(),
            issued_at: now,
            not_after: signed.not_after,
            root: signed.root.to_string(),
        };
        let audit = AuditRecord {
            at: now,
            who: who.clone(),
            what: format!("add operator {name}: {role}"),
            outcome: Outcome::Granted,
            reason: String::new(),
        };
        self.ledger.put_operator(&operator, &issued, &audit)?;
        tracing::info!(operator = %name, %role, who, serial = signed.serial, "an operator was added");
        Ok(signed)
    }

    /// Removes an operator, whose credential counts for nothing from here on. False when there is none.
    pub fn remove_operator(&self, name: &Label, who: &str, now: SystemTime) -> Result<bool, Refusal> {
        let audit = AuditRecord {
            at: now,
            who: who.to_owned(),
            what: format!("remove operator {name}"),
            outcome: Outcome::Granted,
            reason: String::new(),
        };
        Ok(self.ledger.remove_operator(name, &audit)?)
    }

    /// Which operator a verified certificate stands for, if it still does.
    pub fn check_operator(&self, peer: &LeafFacts, now: SystemTime) -> Result<OperatorRecord, Refusal> {
        let not_one = || Refusal::NotAnOperator(peer.identity.clone());
        let name = peer.identity.as_operator().ok_or_else(not_one)?;
        if peer.identity.trust_domain() != self.authority().trust_domain() {
            return Err(not_one());
        }
        let record = self.ledger.operator(name)?.ok_or_else(|| Refusal::OperatorUnknown(name.clone()))?;
        if record.serial != peer.serial || now > peer.not_after {
            return Err(Refusal::OperatorSuperseded(name.clone()));
        }
        if self.ledger.is_revoked(&peer.serial)? {
            return Err(Refusal::OperatorRevoked(name.clone()));
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::key::PrivateKey;
    use crate::leaf::peer_leaf_facts;
    use crate::ledger::Which;
    use crate::service::{IssueItem, IssueRequest};
    use crate::testing::{DAY, Place, identity, joined, label, now};

    fn wanted(name: &str, replace: bool) -> OperatorRequest {
        OperatorRequest {
            name: label(name),
            role: Role::Editor(BTreeSet::from([label("shop")])),
            request: PrivateKey::generate().expect("a key").request().expect("a request"),
            lifetime: DAY,
            replace,
            who: "uid 0".to_owned(),
        }
    }

    fn add(service: &CaService, name: &str, replace: bool) -> LeafFacts {
        let signed = service.add_operator(&wanted(name, replace), now()).expect("added");
        peer_leaf_facts(&signed.chain[0]).expect("a leaf")
    }

    #[test]
    fn only_the_latest_credential_of_an_operator_counts() {
        let place = Place::new();
        let service = place.service();
        let first = add(&service, "alice", false);
        assert_eq!(first.identity, identity("ns/operators/sa/alice"));
        assert!(first.not_after <= now() + DAY);
        let record = service.check_operator(&first, now()).expect("an operator");
        assert_eq!(record.role.to_string(), "editor of shop");
        let again = service.add_operator(&wanted("alice", false), now());
        assert_eq!(again.err(), Some(Refusal::OperatorExists(label("alice"))));
        let second = add(&service, "alice", true);
        assert_eq!(service.check_operator(&first, now()), Err(Refusal::OperatorSuperseded(label("alice"))));
        // What is written down outlives the process.
        let service = place.service();
        assert!(service.check_operator(&second, now()).is_ok());
        let late = service.check_operator(&second, now() + 2 * DAY);
        assert_eq!(late, Err(Refusal::OperatorSuperseded(label("alice"))));
        let taken_back = Which::Serial(second.serial.clone());
        service.revoke(&taken_back, "uid 0", now()).expect("revoked");
        assert_eq!(service.check_operator(&second, now()), Err(Refusal::OperatorRevoked(label("alice"))));
        assert!(service.remove_operator(&label("alice"), "uid 0", now()).expect("removed"));
        assert!(!service.remove_operator(&label("alice"), "uid 0", now()).expect("asked"));
        assert_eq!(service.check_operator(&second, now()), Err(Refusal::OperatorUnknown(label("alice"))));
        // A later operator of that name is another.
        add(&service, "alice", false);
        assert!(service.check_operator(&second, now()).is_err());
        let audit = service.ledger().audit_records(10).expect("an audit");
        let what: Vec<_> = audit.iter().map(|line| (line.who.as_str(), line.what.as_str())).collect();
        assert!(what.contains(&("uid 0", "add operator alice: editor of shop")), "{what:?}");
        assert!(what.contains(&("uid 0", "remove operator alice")), "{what:?}");
    }

    #[test]
    fn an_operator_is_no_host_and_no_host_an_operator() {
        let place = Place::new();
        let service = place.service();
        let operator = add(&service, "h1", false);
        assert!(matches!(service.check_node(&operator), Err(Refusal::NotANode(_))));
        let node = joined(&service, "h1", &["*.*"], now());
        assert!(matches!(service.check_operator(&node, now()), Err(Refusal::NotAnOperator(_))));
        let request = PrivateKey::generate().expect("a key").request().expect("a request");
        let items = vec![IssueItem { identity: operator.identity.clone(), request }];
        let issued = service.issue(&node, &IssueRequest { items }, now()).expect("answers");
        assert_eq!(issued[0].as_ref().err(), Some(&Refusal::Reserved(operator.identity)));
    }

    #[test]
    fn a_lifetime_has_bounds() {
        let place = Place::new();
        let service = place.service();
        for lifetime in [Duration::ZERO, MAX_OPERATOR_LIFETIME + Duration::from_secs(1)] {
            let refused = service.add_operator(&OperatorRequest { lifetime, ..wanted("a", false) }, now());
            assert_eq!(refused.err(), Some(Refusal::OperatorLifetime));
        }
    }
}
