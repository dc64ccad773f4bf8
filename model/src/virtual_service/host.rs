//! Hosts as routes name them: exact, or with a star in front; and the names by which one host is known.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::name::{Domain, Key, Label};

/// Hosts that something is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// One host, in lower case.
    Exact(Arc<str>),
    /// Every host that ends so and is longer: `*.example.com` is `.example.com`, in lower case.
    Suffix(Arc<str>),
    /// Every host.
    Any,
}

/// Why a text names no hosts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a host: write a service's name, a domain name, `*.` and a domain name, or an IP address"
)]
pub struct HostError(pub String);

impl HostPattern {
    /// Reads a host: a name of a service in any of its forms, a domain name, `*.` before one, `*`, or an address.
    pub fn new(text: &str) -> Result<Self, HostError> {
        let refused = || HostError(text.to_owned());
        let folded = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        match folded.strip_prefix('*') {
            Some("") => Ok(Self::Any),
            Some(rest) => {
                let name = rest.strip_prefix(['.', '-']).ok_or_else(refused)?;
                if is_domain(name) { Ok(Self::Suffix(rest.into())) } else { Err(refused()) }
            }
            None if is_domain(&folded) || folded.parse::<IpAddr>().is_ok() => Ok(Self::Exact(folded.into())),
            None => Err(refused()),
        }
    }

    /// Whether a name in lower case, as it stands, is meant.
    pub fn matches_text(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *name,
            Self::Suffix(suffix) => name.len() > suffix.len() && name.ends_with(&**suffix),
            Self::Any => true,
        }
    }

    /// Whether a host is meant, by any of its names.
    pub fn matches(&self, host: &HostName) -> bool {
        host.names().any(|name| self.matches_text(name))
    }

    /// Whether every host that is meant by `other` is meant by this as well.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (_, Self::Any) => false,
            (_, Self::Exact(name)) => self.matches_text(name),
            (Self::Suffix(suffix), Self::Suffix(inner)) => inner.ends_with(&**suffix),
            (Self::Exact(_), Self::Suffix(_)) => false,
        }
    }

    /// The pattern with a service's name in full, as read in a resource of namespace `from`.
    pub fn resolved(&self, from: &Label, domain: &Domain) -> Self {
        match self {
            Self::Exact(name) => Self::Exact(HostName::resolve(name, from, domain).full),
            other => other.clone(),
        }
    }

    /// How long the part is that must be there; the longer one goes first.
    pub fn length(&self) -> usize {
        match self {
            Self::Exact(text) | Self::Suffix(text) => text.len(),
            Self::Any => 0,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Suffix(text) => write!(f, "*{text}"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// Labels of letters, digits, hyphens and underscores, as DNS carries them.
fn is_domain(text: &str) -> bool {
    let label = |label: &str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(allowed)
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// One host with all the names by which it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName {
    full: Arc<str>,
    /// As it was written, where that is another name.
    written: Option<Box<str>>,
    /// What Istio calls a service.
    istio: Option<Box<str>>,
}

impl HostName {
    /// The host that somebody in namespace `from` calls `text`; without a port. Case is folded, and a final dot is taken.
    pub fn resolve(text: &str, from: &Label, domain: &Domain) -> Self {
        let folded = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        match Key::resolve(&folded, from, domain) {
            Ok(key) => {
                let host = Self::of_service(&key, domain);
                let written = Some(folded.into_boxed_str());
                Self { written: written.filter(|written| **written != *host.full), ..host }
            }
            Err(_) => Self { full: folded.into(), written: None, istio: None },
        }
    }

    /// The host of a service.
    pub fn of_service(key: &Key, domain: &Domain) -> Self {
        let istio = || format!("{}.{}.svc.cluster.local", key.name, key.namespace).into();
        let istio = key.as_host().is_none().then(istio);
        Self { full: key.host(domain).into(), written: None, istio }
    }

    /// The full name: of a service with its namespace and domain, of anything else as it stands.
    pub fn full(&self) -> &Arc<str> {
        &self.full
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let others = [self.written.as_deref(), self.istio.as_deref()];
        std::iter::once(&*self.full).chain(others.into_iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> HostPattern {
        HostPattern::new(text).expect("a host")
    }

    #[test]
    fn hosts_are_known_by_all_their_names() {
        let check = |asked: &str, host: &str, expected| {
            let (from, domain) =
                (Label::new("shop").expect("a label"), Domain::new("mesh.internal").expect("one"));
            let host = HostName::resolve(host, &from, &domain);
            let found = pattern(asked).resolved(&from, &domain).matches(&host);
            assert_eq!(found, expected, "{asked} for {host:?}");
        };
        check("reviews", "reviews.shop.mesh.internal", true);
        check("reviews.shop.svc.cluster.local", "reviews", true);
        check("reviews.shop.svc.cluster.local", "REVIEWS.shop.", true);
        check("reviews", "reviews.web", false);
        check("reviews.mesh.internal", "reviews.default", true);
        check("*.cluster.local", "reviews", true);
        check("*.mesh.internal", "reviews.shop.svc.cluster.local", true);
        check("*.shop.mesh.internal", "reviews.web", false);
        check("*.example.com", "wild.example.com", true);
        check("*.example.com", "example.com", false);
        check("*.bar", "foo.bar", true);
        check("example.com", "example.com", true);
        check("10.0.0.1", "10.0.0.1", true);
        check("*", "anything.at.all", true);
    }

    #[test]
    fn one_pattern_covers_another() {
        for (outer, inner, expected) in [
            ("*", "*.a", true),
            ("*.com", "*.example.com", true),
            ("*.com", "example.com", true),
            ("*.example.com", "*.com", false),
            ("a.com", "a.com", true),
            ("a.com", "*.a.com", false),
        ] {
            assert_eq!(pattern(outer).covers(&pattern(inner)), expected, "{outer} {inner}");
        }
    }

    #[test]
    fn refuses_what_is_no_host() {
        for bad in ["", "*a.com", "a.*", "*.*.com", "a b", "a:80", "http://a", "a..b", "é"] {
            assert!(HostPattern::new(bad).is_err(), "{bad}");
        }
        assert_eq!(pattern("*-a.example.COM").to_string(), "*-a.example.com");
    }
}
