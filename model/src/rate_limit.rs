//! RateLimit: how many requests are let through in which time, counted together or by a key. What a resource says stands
//! here; the arithmetic of one count is `Bucket`'s, and the bounded memory of many is `Table`'s. Time is a parameter
//! everywhere: nanoseconds since whenever the caller began to count.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use crate::authorization::Enforcement;
use crate::http::RequestHead;
use crate::identity::Identity;
use crate::name::{Domain, Key, Label};
use crate::token::{ClaimPath, Token};
use crate::virtual_service::{Caller, Gateway, HttpMatch, Incoming};
use crate::workload::{Labels, selects};

/// One count: the generic cell rate algorithm.
mod bucket;
/// Many counts by keys, within a bound.
mod table;

pub use bucket::{Bucket, Limit, LimitError, MAX_RATE, MAX_REFILL, Verdict};
pub use table::Table;

/// The most parts that one key is made of.
pub const MAX_KEY_PARTS: usize = 8;

/// One RateLimit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    /// Namespace and name. One of the root namespace is for the whole mesh.
    pub key: Key,
    /// Which requests it is for, and so at which side it is enforced.
    pub traffic: Traffic,
    /// Any of these blocks; all requests without one.
    pub matches: Vec<HttpMatch>,
    /// How many are let through.
    pub limit: Limit,
    /// What requests are counted by; all together where there is nothing.
    pub parts: Vec<KeyPart>,
    /// Whether it refuses, or only says what it would have refused.
    pub enforcement: Enforcement,
}

/// Which requests a limit is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Traffic {
    /// Those that arrive at these workloads of its namespace, all of them without labels: the called side enforces it.
    ToWorkloads(Option<Labels>),
    /// Those that workloads of its namespace send to this host, as written, in lower case: the calling side enforces it.
    ToHost(Arc<str>),
}

/// What requests are told apart by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeyPart {
    /// The caller's identity. Those without one are one.
    SourceIdentity,
    /// The address that the connection comes from.
    RemoteAddress,
    /// The path, without the query, as it came.
    Path,
    /// All values of a field, by its name in lower case; `host` is the authority. Requests without it are one.
    Header(Arc<str>),
    /// A claim of the verified token. Requests without it are one.
    Claim(ClaimPath),
}

/// A request as limits see it. None of it but the head is taken from what the caller says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    /// The head, as it came.
    pub head: &'a RequestHead,
    /// The workload's port at the called side, the service's port at the calling side.
    pub port: u16,
    /// Who calls; nobody over plaintext.
    pub source: Option<&'a Identity>,
    /// Where the connection comes from.
    pub address: IpAddr,
    /// What the verified token says; none at the calling side, where nobody verifies for the service.
    pub token: Option<&'a Token>,
}

impl RateLimit {
    /// Whether the called side enforces it for a workload of `namespace` with `labels`.
    pub fn is_for_workload(&self, namespace: &Label, labels: &Labels, root_namespace: &Label) -> bool {
        match &self.traffic {
            Traffic::ToWorkloads(selector) => {
                self.is_in_scope(namespace, root_namespace)
                    && selector.as_ref().is_none_or(|selector| selects(selector, labels))
            }
            Traffic::ToHost(_) => false,
        }
    }

    /// The service for requests to which the calling side enforces it.
    pub fn called(&self, domain: &Domain) -> Option<Key> {
        match &self.traffic {
            Traffic::ToHost(written) => Key::resolve(written, &self.key.namespace, domain).ok(),
            Traffic::ToWorkloads(_) => None,
        }
    }

    /// The host of a ServiceEntry that callers send requests to, as it is written; `called` is none of that name.
    pub fn called_host(&self) -> Option<&str> {
        match &self.traffic {
            Traffic::ToHost(written) => Some(written),
            Traffic::ToWorkloads(_) => None,
        }
    }

    /// Whether it is for workloads of `namespace` at all: its own, or every one where it is the root's.
    pub fn is_in_scope(&self, namespace: &Label, root_namespace: &Label) -> bool {
        self.key.namespace == *root_namespace || self.key.namespace == *namespace
    }

    /// Whether a request counts. One whose caller is not known counts where a namespace is asked for: it could be from there.
    pub fn counts(&self, asking: &Asking<'_>) -> bool {
        let (gateway, labels) = (Gateway::Mesh, Labels::new());
        self.matches.is_empty()
            || self.matches.iter().any(|block| {
                let known = asking.source.map(Identity::namespace);
                let namespace =
                    known.or(block.scope.source_namespace.as_ref()).unwrap_or(&self.key.namespace);
                let caller = Caller { gateway: &gateway, namespace, labels: &labels };
                block
                    .matches(Incoming { head: asking.head, port: asking.port, caller, token: asking.token })
                    .is_some()
            })
    }

    /// The number of the count that a request is for. The hasher is one that callers cannot foresee, so that nobody makes
    /// another's count his own.
    pub fn count_of(&self, asking: &Asking<'_>, mut hasher: impl Hasher) -> u64 {
        for part in &self.parts {
            match part {
                KeyPart::SourceIdentity => asking.source.hash(&mut hasher),
                KeyPart::RemoteAddress => asking.address.to_canonical().hash(&mut hasher),
                KeyPart::Path => asking.head.path().hash(&mut hasher),
                KeyPart::Header(name) if &**name == "host" => {
                    asking.head.authority.to_ascii_lowercase().hash(&mut hasher);
                }
                KeyPart::Header(name) => {
                    // Each value with its length, and their number: no other list of values reads the same.
                    let mut number = 0_usize;
                    for value in asking.head.headers.get_all(name) {
                        value.hash(&mut hasher);
                        number += 1;
                    }
                    number.hash(&mut hasher);
                }
                KeyPart::Claim(path) => {
                    asking.token.and_then(|token| token.claim(path.as_ref())).hash(&mut hasher);
                }
            }
        }
        hasher.finish()
    }

    /// The number of the party whose counts a request's is among: the caller, or what its address belongs to where
    /// nobody knows who calls. One party's counts never push out another's.
    pub fn party_of(asking: &Asking<'_>, mut hasher: impl Hasher) -> u64 {
        match (asking.source, asking.address.to_canonical()) {
            (Some(source), _) => source.hash(&mut hasher),
            // A host may have any address of its network of IPv6.
            (None, IpAddr::V6(address)) => address.segments()[..4].hash(&mut hasher),
            (None, address) => address.hash(&mut hasher),
        }
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::hash_map::DefaultHasher;
    use std::time::Duration;

    use super::*;
    use crate::string_match::StringMatch;
    use crate::token::Claim;
    use crate::virtual_service::Scope;

    fn label(text: &str) -> Label {
        Label::new(text).expect("a label")
    }

    fn limit(namespace: &str, traffic: Traffic, parts: &[KeyPart]) -> RateLimit {
        RateLimit {
            key: Key::new(label(namespace), label("l")),
            traffic,
            matches: Vec::new(),
            limit: Limit::new(1, Duration::from_secs(1), 1).expect("a limit"),
            parts: parts.to_vec(),
            enforcement: Enforcement::Enforced,
        }
    }

    fn head(target: &str, fields: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead { method: "GET".into(), target: target.into(), ..RequestHead::default() };
        for (name, value) in fields {
            head.headers.append(name, value.as_bytes()).expect("a field");
        }
        head
    }

    fn identity(text: &str) -> Identity {
        Identity::parse(&format!("spiffe://td/ns/{text}")).expect("an identity")
    }

    fn asking<'a>(head: &'a RequestHead, source: Option<&'a Identity>, address: &str) -> Asking<'a> {
        Asking { head, port: 80, source, address: address.parse().expect("an address"), token: None }
    }

    #[test]
    fn holds_for_its_namespace_and_the_root_s_for_all() {
        let labels = Labels::from([("app".into(), "orders".into())]);
        let selector = |app: &str| Traffic::ToWorkloads(Some(Labels::from([("app".into(), app.into())])));
        let check = |namespace: &str, traffic: Traffic, expected| {
            let found = limit(namespace, traffic, &[]).is_for_workload(
                &label("shop"),
                &labels,
                &label("mesh-system"),
            );
            assert_eq!(found, expected, "{namespace}");
        };
        check("shop", Traffic::ToWorkloads(None), true);
        check("shop", selector("orders"), true);
        check("shop", selector("web"), false);
        check("web", selector("orders"), false);
        check("mesh-system", selector("orders"), true);
        check("shop", Traffic::ToHost("orders".into()), false);
    }

    #[test]
    fn hosts_are_read_in_its_namespace() {
        let domain = Domain::new("mesh.internal").expect("a domain");
        let check = |namespace: &str, traffic: Traffic, expected: Option<&str>| {
            let called = limit(namespace, traffic, &[]).called(&domain);
            assert_eq!(called.map(|key| key.to_string()).as_deref(), expected, "{namespace}");
        };
        let host = |host: &str| Traffic::ToHost(host.into());
        check("shop", host("orders"), Some("orders.shop"));
        check("web", host("orders"), Some("orders.web"));
        check("web", host("orders.shop"), Some("orders.shop"));
        check("web", host("orders.shop.svc.cluster.local"), Some("orders.shop"));
        check("shop", host("orders.mesh.internal"), Some("orders.default"));
        check("shop", host("10.0.0.1"), None);
        check("shop", Traffic::ToWorkloads(None), None);
    }

    #[test]
    fn counts_what_matches_and_who_could_be_meant() {
        let mut limit = limit("shop", Traffic::ToWorkloads(None), &[]);
        let (api, other) = (head("/api/x?y", &[]), head("/other", &[]));
        let web = identity("web/sa/web");
        assert!(limit.counts(&asking(&other, None, "10.0.0.1")), "all without a block");
        let scope = Scope { source_namespace: Some(label("web")), ..Scope::default() };
        let uri = Some(StringMatch::Prefix("/api".into()));
        limit.matches = vec![HttpMatch { scope, uri, ..HttpMatch::default() }];
        assert!(limit.counts(&asking(&api, Some(&web), "10.0.0.1")));
        assert!(!limit.counts(&asking(&other, Some(&web), "10.0.0.1")));
        assert!(!limit.counts(&asking(&api, Some(&identity("shop/sa/web")), "10.0.0.1")));
        assert!(limit.counts(&asking(&api, None, "10.0.0.1")), "without an identity it could be from there");
    }

    #[test]
    fn keys_tell_apart_what_their_parts_do() {
        let (web, shop) = (identity("web/sa/web"), identity("shop/sa/web"));
        let check = |parts: &[KeyPart], a: Asking<'_>, b: Asking<'_>, same: bool| {
            let limit = limit("shop", Traffic::ToWorkloads(None), parts);
            let of = |asking: &Asking<'_>| limit.count_of(asking, DefaultHasher::new());
            assert_eq!(of(&a) == of(&b), same, "{parts:?}: {a:?} {b:?}");
        };
        let plain = head("/a?b", &[]);
        let from = |source, address| asking(&plain, source, address);
        check(&[], from(Some(&web), "10.0.0.1"), from(None, "10.0.0.2"), true);
        let source = [KeyPart::SourceIdentity];
        check(&source, from(Some(&web), "10.0.0.1"), from(Some(&web), "10.0.0.2"), true);
        check(&source, from(Some(&web), "10.0.0.1"), from(Some(&shop), "10.0.0.1"), false);
        check(&source, from(None, "10.0.0.1"), from(None, "10.0.0.2"), true);
        check(&source, from(None, "10.0.0.1"), from(Some(&web), "10.0.0.1"), false);
        let address = [KeyPart::RemoteAddress];
        check(&address, from(None, "10.0.0.1"), from(None, "::ffff:10.0.0.1"), true);
        check(&address, from(None, "10.0.0.1"), from(None, "10.0.0.2"), false);
        let path = head("/a?c", &[]);
        check(&[KeyPart::Path], from(None, "10.0.0.1"), asking(&path, None, "10.0.0.1"), true);
        let path = head("/b", &[]);
        check(&[KeyPart::Path], from(None, "10.0.0.1"), asking(&path, None, "10.0.0.1"), false);
        let fields = |a: &[(&str, &str)], b: &[(&str, &str)], same| {
            let (a, b) = (head("/", a), head("/", b));
            let parts = [KeyPart::Header("x-a".into()), KeyPart::Header("x-b".into())];
            check(&parts, asking(&a, None, "10.0.0.1"), asking(&b, None, "10.0.0.1"), same);
        };
        fields(&[("x-a", "1")], &[("X-A", "1"), ("x-c", "2")], true);
        fields(&[("x-a", "1")], &[("x-b", "1")], false);
        fields(&[("x-a", "1")], &[], false);
        fields(&[("x-a", "")], &[], false);
        fields(&[("x-a", "1"), ("x-a", "2")], &[("x-a", "1"), ("x-b", "2")], false);
        fields(&[("x-a", "12")], &[("x-a", "1"), ("x-a", "2")], false);
        let token = |tenant: &str| Token {
            issuer: "issuer".to_owned(),
            subject: String::new(),
            audiences: Vec::new(),
            presenter: None,
            claims: [("tenant".to_owned(), Claim::Text(tenant.to_owned()))].into(),
        };
        let (red, blue) = (token("red"), token("blue"));
        let says = |token| Asking { token, ..asking(&plain, None, "10.0.0.1") };
        let claim = [KeyPart::Claim(ClaimPath::of(["tenant"]))];
        check(&claim, says(Some(&red)), says(Some(&red)), true);
        check(&claim, says(Some(&red)), says(Some(&blue)), false);
        check(&claim, says(Some(&red)), says(None), false);
        check(&[KeyPart::Claim(ClaimPath::of(["other"]))], says(Some(&red)), says(None), true);
        let (mut a, mut b) = (head("/", &[]), head("/", &[]));
        (a.authority, b.authority) = ("Web".into(), "web".into());
        let host = [KeyPart::Header("host".into())];
        check(&host, asking(&a, None, "10.0.0.1"), asking(&b, None, "10.0.0.1"), true);
        check(&host, from(None, "10.0.0.1"), asking(&b, None, "10.0.0.1"), false);
    }

    #[test]
    fn parties_are_callers_or_networks() {
        let (web, plain) = (identity("web/sa/web"), head("/", &[]));
        let party =
            |source, address| RateLimit::party_of(&asking(&plain, source, address), DefaultHasher::new());
        assert_eq!(party(Some(&web), "10.0.0.1"), party(Some(&web), "10.0.0.2"));
        assert_ne!(party(None, "10.0.0.1"), party(None, "10.0.0.2"));
        assert_eq!(party(None, "fd00::1"), party(None, "fd00::dead:beef:0:1"));
        assert_ne!(party(None, "fd00::1"), party(None, "fd00:0:0:1::1"));
    }
}
