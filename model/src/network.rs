//! Networks: parts of the mesh whose hosts reach each other's addresses. Addresses of two networks may be the same, and
//! mean two hosts. From one to another leads a gateway: a host of the other that its own network knows and that is
//! reached from outside.

use std::net::SocketAddr;

use crate::identity::Identity;
use crate::name::{Label, TrustDomain};

/// A network that is reached through gateways.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Network {
    /// Its name, as workloads and agents say it.
    pub name: Label,
    /// Those who stand between it and the others; at least one.
    pub gateways: Vec<Gateway>,
}

/// A host of a network that takes connections from outside to the agents in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Gateway {
    /// The host's name in the mesh: what its agent shows is the host's own identity.
    pub host: Label,
    /// Where it is reached from other networks.
    pub address: SocketAddr,
}

impl Gateway {
    /// The identity that it shows.
    pub fn identity(&self, trust_domain: &TrustDomain) -> Identity {
        Identity::host(trust_domain.clone(), self.host.clone())
    }
}

/// Whether two places can be one: the same address means the same host to somebody who reaches both. What names no
/// network is reached from all.
pub fn may_meet(one: Option<&Label>, other: Option<&Label>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one == other,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_is_two_hosts_only_in_two_named_networks() {
        let label = |text| Label::new(text).expect("a label");
        let (eu, us) = (label("eu"), label("us"));
        for (one, other, expected) in [
            (None, None, true),
            (Some(&eu), None, true),
            (None, Some(&us), true),
            (Some(&eu), Some(&eu), true),
            (Some(&eu), Some(&us), false),
        ] {
            assert_eq!(may_meet(one, other), expected, "{one:?} {other:?}");
        }
    }
}
