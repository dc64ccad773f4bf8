//! SPIFFE identities: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, byte for byte.

use std::fmt;
use std::sync::Arc;

use crate::name::{Label, TrustDomain};

/// Namespaces that the mesh keeps for itself. No grant matches them and no registration may name them.
pub const RESERVED_NAMESPACES: [&str; 4] = [CONTROL, NODES, HOSTS, OPERATORS];
const CONTROL: &str = "control";
const NODES: &str = "nodes";
const HOSTS: &str = "hosts";
const OPERATORS: &str = "operators";

/// Why a text is not an identity of this mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an identity: expected spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
pub struct IdentityError(pub String);

/// Who a workload is, as its certificate says. Cheap to clone; compared byte for byte.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(Arc<Parts>);

#[derive(PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Parts {
    trust_domain: TrustDomain,
    namespace: Label,
    service_account: Label,
}

impl Identity {
    /// The identity of a service account.
    pub fn new(trust_domain: TrustDomain, namespace: Label, service_account: Label) -> Self {
        Self(Arc::new(Parts { trust_domain, namespace, service_account }))
    }

    /// Reads a URI name of a certificate. Exactly five path parts, lower case, nothing escaped, no query.
    pub fn parse(uri: &str) -> Result<Self, IdentityError> {
        let refused = || IdentityError(uri.to_owned());
        let rest = uri.strip_prefix("spiffe://").ok_or_else(refused)?;
        let [domain, "ns", namespace, "sa", account] = rest.split('/').collect::<Vec<_>>()[..] else {
            return Err(refused());
        };
        let domain = TrustDomain::new(domain).map_err(|_| refused())?;
        let namespace = Label::new(namespace).map_err(|_| refused())?;
        let account = Label::new(account).map_err(|_| refused())?;
        Ok(Self::new(domain, namespace, account))
    }

    /// The identity that the control server shows: `ns/control/sa/control`.
    pub fn control(trust_domain: TrustDomain) -> Self {
        Self::new(trust_domain, Label::new(CONTROL).expect("a label"), Label::new(CONTROL).expect("a label"))
    }

    /// The credential with which the agent of `host` speaks to the control server, and to nobody else.
    pub fn node(trust_domain: TrustDomain, host: Label) -> Self {
        Self::new(trust_domain, Label::new(NODES).expect("a label"), host)
    }

    /// The identity of callers on `host` that match no registered service.
    pub fn host(trust_domain: TrustDomain, host: Label) -> Self {
        Self::new(trust_domain, Label::new(HOSTS).expect("a label"), host)
    }

    /// The credential with which an operator speaks to the control server, and to nobody else.
    pub fn operator(trust_domain: TrustDomain, name: Label) -> Self {
        Self::new(trust_domain, Label::new(OPERATORS).expect("a label"), name)
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.0.trust_domain
    }

    /// The namespace.
    pub fn namespace(&self) -> &Label {
        &self.0.namespace
    }

    /// The service account.
    pub fn service_account(&self) -> &Label {
        &self.0.service_account
    }

    /// Whether the identity is one of those that the mesh keeps for itself.
    pub fn is_reserved(&self) -> bool {
        RESERVED_NAMESPACES.contains(&self.0.namespace.as_str())
    }

    /// The host whose node credential this is.
    pub fn as_node(&self) -> Option<&Label> {
        (self.0.namespace.as_str() == NODES).then_some(&self.0.service_account)
    }

    /// The host whose host identity this is.
    pub fn as_host(&self) -> Option<&Label> {
        (self.0.namespace.as_str() == HOSTS).then_some(&self.0.service_account)
    }

    /// The operator whose credential this is.
    pub fn as_operator(&self) -> Option<&Label> {
        (self.0.namespace.as_str() == OPERATORS).then_some(&self.0.service_account)
    }

    /// The server name that a caller asks for: `<sa>.<ns>.<trust domain>`. It selects a certificate and never
    /// authorises.
    pub fn server_name(&self) -> String {
        format!("{}.{}.{}", self.0.service_account, self.0.namespace, self.0.trust_domain)
    }

    /// Istio's form of a principal in policies, labels and logs: the URI without `spiffe://`.
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.0.trust_domain, self.0.namespace, self.0.service_account)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts { trust_domain, namespace, service_account } = &*self.0;
        write!(f, "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}")
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let text = "spiffe://mesh.example/ns/shop/sa/orders";
        let identity = Identity::parse(text).expect("an identity");
        assert_eq!(identity.to_string(), text);
        assert_eq!(identity.server_name(), "orders.shop.mesh.example");
        assert_eq!(identity.principal(), "mesh.example/ns/shop/sa/orders");
    }

    #[test]
    fn refuses_everything_else() {
        for bad in [
            "",
            "spiffe://",
            "spiffe://td",
            "spiffe://td/ns/a/sa",
            "spiffe://td/ns/a/sa/",
            "spiffe://td/ns/a/sa/b/",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/sa/b/ns/a",
            "spiffe://TD/ns/a/sa/b",
            "SPIFFE://td/ns/a/sa/b",
            "spiffe://td/ns/%61/sa/b",
            "spiffe://td/ns/a/sa/b?x",
            "spiffe://td:1/ns/a/sa/b",
            "https://td/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b\0",
        ] {
            assert!(Identity::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_what_it_keeps_for_itself() {
        let domain = TrustDomain::new("td").expect("a domain");
        let host = Label::new("h1").expect("a label");
        assert!(Identity::control(domain.clone()).is_reserved());
        assert_eq!(Identity::node(domain.clone(), host.clone()).as_node(), Some(&host));
        assert_eq!(Identity::host(domain.clone(), host.clone()).as_host(), Some(&host));
        let operator = Identity::operator(domain, host.clone());
        assert_eq!((operator.as_operator(), operator.as_node()), (Some(&host), None));
        assert!(operator.is_reserved());
    }
}
