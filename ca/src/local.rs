//! Issuing in process, for a mesh of one host that runs no control server. The checks are the service's own: the
//! host gets its grants and nothing else.

use std::time::{Duration, SystemTime};

use baremesh_model::grant::Grant;
use baremesh_model::identity::Identity;
use baremesh_model::name::Label;

use crate::authority::{Authority, AuthorityError, Maintenance};
use crate::issued::Issued;
use crate::key::PrivateKey;
use crate::service::{Refusal, authorise};
use crate::tls::TrustBundle;

/// The authority of a mesh of one host.
#[derive(Debug)]
pub struct LocalIssuer {
    authority: Authority,
    host: Label,
    grants: Vec<Grant>,
    lifetime: Duration,
}

impl LocalIssuer {
    /// Issues what `grants` allow to `host`, for `lifetime` each.
    pub fn new(authority: Authority, host: Label, grants: Vec<Grant>, lifetime: Duration) -> Self {
        Self { authority, host, grants, lifetime }
    }

    /// What the mesh trusts.
    pub fn bundle(&self) -> Result<TrustBundle, AuthorityError> {
        self.authority.bundle()
    }

    /// Replaces the intermediate when due. To be called once a day at least.
    pub fn maintain(&mut self, now: SystemTime) -> Result<Maintenance, AuthorityError> {
        self.authority.maintain(now)
    }

    /// One certificate with a fresh key for each identity, or the reason why not.
    pub fn issue(&self, identities: &[Identity], now: SystemTime) -> Vec<Result<Issued, Refusal>> {
        identities.iter().map(|identity| self.issue_one(identity, now)).collect()
    }

    fn issue_one(&self, identity: &Identity, now: SystemTime) -> Result<Issued, Refusal> {
        authorise(&self.host, &self.grants, self.authority.trust_domain(), identity).inspect_err(
            |refusal| tracing::warn!(host = %self.host, %identity, code = refusal.code(), "refused: {refusal}"),
        )?;
        let key = PrivateKey::generate()?;
        let signed = self.authority.sign(&key.public(), identity, self.lifetime, now)?;
        Issued::new(signed.chain, key.to_der()).map_err(|error| Refusal::unavailable(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Place};

    #[test]
    fn issues_what_is_granted_and_nothing_else() {
        let place = Place::new();
        let host = testing::label("h1");
        let grants = vec![Grant::parse("*.shop").expect("a grant")];
        let issuer = LocalIssuer::new(place.authority(), host, grants, testing::DAY);
        let wanted = ["ns/shop/sa/orders", "ns/hosts/sa/h1", "ns/web/sa/orders", "ns/control/sa/control"];
        let wanted = wanted.map(testing::identity);
        let answers = issuer.issue(&wanted, testing::now());
        let codes: Vec<_> =
            answers.iter().map(|answer| answer.as_ref().map_or_else(Refusal::code, |_| "")).collect();
        assert_eq!(codes, ["", "", "not_granted", "reserved"]);
        let issued = answers[0].as_ref().expect("issued");
        assert_eq!(issued.identity, wanted[0]);
        issued.certified_key().expect("usable");
    }
}
