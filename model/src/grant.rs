//! Grants: which service identities a host may be given, and which addresses it may announce besides those that it
//! speaks from. The certificate authority and the control server check them at every request, so a host that is
//! taken over can pose as its own services, at its own addresses, and as nothing else.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::identity::Identity;
use crate::name::{Label, NameError};

/// A glob over service accounts and namespaces, written `<service account>.<namespace>`; without a namespace it
/// means `default`. `*` stands for any run of characters within its part.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Grant {
    service_account: String,
    namespace: String,
}

impl Grant {
    /// Reads `orders`, `orders.shop`, `web-*.shop` or `*.shop`.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let (account, namespace) = text.split_once('.').unwrap_or((text, "default"));
        if is_glob(account) && is_glob(namespace) {
            Ok(Self { service_account: account.to_owned(), namespace: namespace.to_owned() })
        } else {
            Err(NameError::Label(text.to_owned()))
        }
    }

    /// The namespace, where it names one and no glob over several.
    pub fn namespace(&self) -> Option<Label> {
        Label::new(&self.namespace).ok()
    }

    /// Whether a host that holds this grant may be issued `identity`. Never true for the namespaces that the
    /// mesh keeps for itself, whatever the glob.
    pub fn allows(&self, identity: &Identity) -> bool {
        !identity.is_reserved()
            && glob_matches(&self.service_account, identity.service_account().as_str())
            && glob_matches(&self.namespace, identity.namespace().as_str())
    }
}

impl FromStr for Grant {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.service_account, self.namespace)
    }
}

/// Why a text is no grant of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no address and no block of such: write 10.0.0.7, 10.0.0.0/24 or fd00::/64")]
pub struct AddressGrantError(pub String);

/// Addresses that a host may announce although it is not seen to speak from them: one, or a block, written as
/// `10.0.0.7`, `10.0.0.0/24` or `fd00::/64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressGrant(IpNet);

impl AddressGrant {
    /// Reads an address or a block. Bits of a block beyond its prefix are of no meaning.
    pub fn parse(text: &str) -> Result<Self, AddressGrantError> {
        let address = text.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
        let block = address.or_else(|_| text.parse::<IpNet>());
        block.map(|block| Self(block.trunc())).map_err(|_| AddressGrantError(text.to_owned()))
    }

    /// Whether the address is granted.
    pub fn covers(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl FromStr for AddressGrant {
    type Err = AddressGrantError;
    fn from_str(text: &str) -> Result<Self, AddressGrantError> {
        Self::parse(text)
    }
}

impl fmt::Display for AddressGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.prefix_len() == self.0.max_prefix_len() {
            true => write!(f, "{}", self.0.addr()),
            false => write!(f, "{}", self.0),
        }
    }
}

fn is_glob(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'*';
    (1..=63).contains(&text.len()) && text.bytes().all(allowed)
}

/// Greedy glob match with one backtracking point: linear in practice, quadratic at worst over 63 bytes.
fn glob_matches(glob: &str, text: &str) -> bool {
    let (glob, text) = (glob.as_bytes(), text.as_bytes());
    let (mut g, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        if glob.get(g) == Some(&b'*') {
            star = Some((g, t));
            g += 1;
        } else if glob.get(g) == Some(&text[t]) {
            (g, t) = (g + 1, t + 1);
        } else if let Some((star_g, star_t)) = star {
            star = Some((star_g, star_t + 1));
            (g, t) = (star_g + 1, star_t + 1);
        } else {
            return false;
        }
    }
    glob[g..].iter().all(|b| *b == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(grant: &str, identity: &str, expected: bool) {
        let grant = Grant::parse(grant).expect("a grant");
        let identity = Identity::parse(&format!("spiffe://td/{identity}")).expect("an identity");
        assert_eq!(grant.allows(&identity), expected, "{grant} on {identity}");
    }

    #[test]
    fn allows_what_the_glob_covers() {
        check("orders", "ns/default/sa/orders", true);
        check("orders", "ns/shop/sa/orders", false);
        check("*.shop", "ns/shop/sa/orders", true);
        check("*.*", "ns/shop/sa/orders", true);
        check("web-*.shop", "ns/shop/sa/web-1", true);
        check("web-*.shop", "ns/shop/sa/web", false);
        check("a*b*c", "ns/default/sa/axxbyyc", true);
        check("a*b*c", "ns/default/sa/axxbyy", false);
    }

    #[test]
    fn never_allows_what_the_mesh_keeps_for_itself() {
        check("*.*", "ns/control/sa/control", false);
        check("*.*", "ns/nodes/sa/h1", false);
        check("*.hosts", "ns/hosts/sa/h1", false);
    }

    #[test]
    fn refuses_what_no_label_could_match() {
        for bad in ["", ".", "a.", ".a", "A", "a.b.c", "a/b", "a b"] {
            assert!(Grant::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_are_granted_one_by_one_or_in_blocks() {
        for (grant, address, expected) in [
            ("10.0.0.7", "10.0.0.7", true),
            ("10.0.0.7", "10.0.0.8", false),
            ("10.0.0.7", "::ffff:10.0.0.7", true),
            ("10.0.0.7/24", "10.0.0.9", true),
            ("10.0.0.0/24", "10.0.1.0", false),
            ("0.0.0.0/0", "fd00::7", false),
            ("fd00::/64", "fd00::7", true),
            ("fd00::/64", "fd00:0:0:1::7", false),
        ] {
            let granted = AddressGrant::parse(grant).expect(grant);
            assert_eq!(granted.covers(address.parse().expect(address)), expected, "{grant} on {address}");
            assert_eq!(AddressGrant::parse(&granted.to_string()), Ok(granted));
        }
        assert_eq!(AddressGrant::parse("fd00::7/64").map(|grant| grant.to_string()), Ok("fd00::/64".into()));
        for bad in ["", "10.0.0", "10.0.0.0/33", "orders", "10.0.0.1-9", "10.0.0.1 "] {
            assert!(AddressGrant::parse(bad).is_err(), "{bad}");
        }
    }
}
