//! Names as the mesh writes them. A `Label` is one RFC 1123 label, so that every name can stand in a SPIFFE
//! path, in an SNI and in DNS without escaping.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// Why a name was refused. Each variant carries the name as it was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a label of RFC 1123, section 2.1, in lower case.
    #[error(
        "`{0}` is not a valid name: use 1 to 63 lower-case letters, digits and hyphens, starting and ending with a letter or digit"
    )]
    Label(String),
    /// Not a dotted sequence of labels of at most 253 bytes.
    #[error(
        "`{0}` is not a valid domain name: use labels of lower-case letters, digits and hyphens joined by dots"
    )]
    Domain(String),
    /// Not `name`, `name.namespace` or a full name in the mesh's domain.
    #[error("`{0}` is not a service name: write `name`, `name.namespace` or `name.namespace.<mesh domain>`")]
    Service(String),
}

/// One RFC 1123 label in lower case, 1 to 63 bytes. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(Arc<str>);

impl Label {
    /// Checks and takes a label as written; upper case is refused, not folded, so that two spellings never
    /// mean one identity.
    pub fn new(text: &str) -> Result<Self, NameError> {
        if is_label(text) { Ok(Self(text.into())) } else { Err(NameError::Label(text.to_owned())) }
    }

    /// The label's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A dotted DNS name in lower case of at most 253 bytes: a trust domain or the mesh's domain.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain(Arc<str>);

/// The trust domain of SPIFFE identities, section 2.1 of the SPIFFE ID specification.
pub type TrustDomain = Domain;

impl Domain {
    /// Checks and takes a domain as written. A single label is a domain.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let valid = !text.is_empty() && text.len() <= 253 && text.split('.').all(is_label);
        if valid { Ok(Self(text.into())) } else { Err(NameError::Domain(text.to_owned())) }
    }

    /// The domain's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A label as DNS carries it: underscores too.
fn is_dns_label(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    (1..=63).contains(&text.len()) && text.bytes().all(allowed)
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let alnum = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| alnum(b) || *b == b'-')
        && bytes.first().is_some_and(alnum)
        && bytes.last().is_some_and(alnum)
}

/// A service's or workload's name within its namespace, written `name.namespace`; or a host that a ServiceEntry of the
/// namespace has, written `namespace/host`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The namespace.
    pub namespace: Label,
    /// The name, unique in its namespace and kind.
    pub name: Label,
}

impl Key {
    /// The key of `name` in `namespace`.
    pub fn new(namespace: Label, name: Label) -> Self {
        Self { namespace, name }
    }

    /// The key of a host that a ServiceEntry has, as it is written there: a domain name of several labels in lower case,
    /// which may begin with `*.`. No service has such a name, because a label has no dot.
    pub fn of_host(namespace: Label, host: &str) -> Self {
        debug_assert!(host.contains('.'), "a host of one label is a service's name");
        Self { namespace, name: Label(host.into()) }
    }

    /// The host, where it is one of a ServiceEntry.
    pub fn as_host(&self) -> Option<&str> {
        Some(self.name.as_str()).filter(|name| name.contains('.'))
    }

    /// Reads what `Display` writes.
    pub fn read(text: &str) -> Option<Self> {
        if let Some((namespace, host)) = text.split_once('/') {
            let name = host.strip_prefix("*.").unwrap_or(host);
            let is_host = host.len() <= 253 && name.contains('.') && name.split('.').all(is_dns_label);
            return is_host.then(|| Some(Self::of_host(Label::new(namespace).ok()?, host)))?;
        }
        let (name, namespace) = text.split_once('.')?;
        Some(Self::new(Label::new(namespace).ok()?, Label::new(name).ok()?))
    }

    /// Resolves a host as written in a resource, a DNS question or a `Host` header: `name` (in `from`),
    /// `name.namespace`, `name.<domain>` (namespace `default`), `name.namespace.<domain>` and Istio's
    /// `name.namespace.svc.cluster.local`. Case is folded, and a final dot is taken.
    pub fn resolve(host: &str, from: &Label, domain: &Domain) -> Result<Self, NameError> {
        let refused = || NameError::Service(host.to_owned());
        let folded = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let own = folded.strip_suffix(domain.as_str()).and_then(|rest| rest.strip_suffix('.'));
        let istio = folded.strip_suffix(".svc.cluster.local");
        let label = |text: &str| Label::new(text).map_err(|_| refused());
        let (text, full) = match own.or(istio) {
            Some(rest) => (rest, true),
            None => (folded.as_str(), false),
        };
        match text.split('.').collect::<Vec<_>>()[..] {
            [name] if full && own.is_some() => Ok(Self::new(default_namespace(), label(name)?)),
            [name] if !full => Ok(Self::new(from.clone(), label(name)?)),
            [name, namespace] => Ok(Self::new(label(namespace)?, label(name)?)),
            _ => Err(refused()),
        }
    }

    /// The full host name, `name.namespace.<domain>`; that of a ServiceEntry's host is the host itself.
    pub fn host(&self, domain: &Domain) -> String {
        match self.as_host() {
            Some(host) => host.to_owned(),
            None => format!("{}.{}.{}", self.name, self.namespace, domain),
        }
    }
}

/// The namespace of what names none: `default`.
pub fn default_namespace() -> Label {
    Label("default".into())
}

macro_rules! text_type {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl std::str::FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }
    };
}
text_type!(Label);
text_type!(Domain);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_host() {
            Some(host) => write!(f, "{}/{host}", self.namespace),
            None => write!(f, "{}.{}", self.name, self.namespace),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(host: &str, expected: Option<&str>) {
        let from = Label::new("shop").expect("a label");
        let domain = Domain::new("mesh.internal").expect("a domain");
        let found = Key::resolve(host, &from, &domain).ok().map(|key| key.to_string());
        assert_eq!(found.as_deref(), expected, "{host}");
    }

    #[test]
    fn resolves_every_written_form() {
        check("orders", Some("orders.shop"));
        check("orders.web", Some("orders.web"));
        check("orders.mesh.internal", Some("orders.default"));
        check("orders.web.mesh.internal", Some("orders.web"));
        check("ORDERS.Web.Mesh.Internal.", Some("orders.web"));
        check("orders.web.svc.cluster.local", Some("orders.web"));
        check("orders.svc.cluster.local", None);
        check("mesh.internal", Some("mesh.internal"));
        check("a.b.c", None);
        check("", None);
        check("-a", None);
        check("a_b", None);
    }

    #[test]
    fn keys_of_services_and_of_hosts_are_read_as_they_are_written() {
        let domain = Domain::new("mesh.internal").expect("a domain");
        for (text, host) in [
            ("orders.shop", "orders.shop.mesh.internal"),
            ("shop/api.example.com", "api.example.com"),
            ("shop/*.example.com", "*.example.com"),
        ] {
            let key = Key::read(text).expect("a key");
            assert_eq!((key.to_string().as_str(), key.host(&domain).as_str()), (text, host));
        }
        for bad in ["", "a", "a.b.c", "shop/api", "shop/a..b", "Shop/a.b", "shop/*.*.b", "shop/a.b/c", "/a.b"]
        {
            assert_eq!(Key::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn labels_refuse_what_dns_or_spiffe_would_not_carry() {
        for bad in ["", "A", "a.b", "-a", "a-", "a/b", "a b", "é", &"a".repeat(64)] {
            assert_eq!(Label::new(bad), Err(NameError::Label(bad.to_owned())));
        }
        assert!(Label::new(&"a".repeat(63)).is_ok());
    }
}
