//! Grants: which service identities a host may be given. The certificate authority checks them at every
//! request, so a host that is taken over can pose as its own services and as nothing else.

use std::fmt;
use std::str::FromStr;

use crate::identity::Identity;
use crate::name::NameError;

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
}
