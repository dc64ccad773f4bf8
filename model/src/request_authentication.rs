//! Which tokens a workload takes: Istio's RequestAuthentication. What a token says is `token`'s; whether its signature is
//! one is found where there is cryptography.

use std::sync::Arc;
use std::time::Duration;

use crate::http::RequestHead;
use crate::name::{Key, Label};
use crate::token::ClaimPath;
use crate::workload::{Labels, selects};

/// Where keys are fetched from.
mod key_url;

pub use key_url::{KeyUrl, KeyUrlError};

/// How long fetching keys may take where a rule does not say (Istio's default).
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Claims that are lists separated by spaces whatever a rule says, as in Istio.
pub const SPACE_DELIMITED: [&str; 2] = ["scope", "permission"];

/// One RequestAuthentication. Every token that is found must be one of a rule's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestAuthentication {
    /// Namespace and name. One of the root namespace is for the whole mesh.
    pub key: Key,
    /// The workloads that it is for; all of the namespace without labels.
    pub selector: Option<Labels>,
    /// Any of these.
    pub rules: Vec<JwtRule>,
    /// What becomes of a request without a token.
    pub missing: Missing,
}

/// What becomes of a request without a token that a rule takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Missing {
    /// It passes, and is nobody's.
    #[default]
    Passes,
    /// It is refused.
    Refused,
}

/// The tokens of one issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtRule {
    /// What `iss` must be, byte for byte.
    pub issuer: Arc<str>,
    /// One of these must be among the token's; any, or none, where this is empty.
    pub audiences: Vec<Arc<str>>,
    /// The issuer's keys.
    pub keys: KeySource,
    /// Where tokens are looked for, in this order.
    pub places: Vec<TokenPlace>,
    /// The field that takes the token's payload, as it stands in the token.
    pub payload_header: Option<Arc<str>>,
    /// Fields that take claims.
    pub claim_headers: Vec<ClaimHeader>,
    /// What becomes of the token after it was verified.
    pub original: Original,
    /// How long fetching keys may take.
    pub timeout: Duration,
    /// Claims that are lists separated by spaces, beside those that always are.
    pub space_delimited: Vec<Arc<str>>,
}

/// Where a rule's keys come from: a JWK set (RFC 7517, section 5).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeySource {
    /// The set itself, as JSON.
    Inline(Arc<str>),
    /// A file of the host that verifies.
    File(Arc<str>),
    /// A server.
    Url(KeyUrl),
}

/// A place in a request where a token may stand. Names of fields are in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TokenPlace {
    /// `Authorization: Bearer …` (RFC 6750, section 2.1), the scheme in whatever case.
    Bearer,
    /// A field whose value starts with a prefix.
    Header(Arc<str>, Arc<str>),
    /// A parameter of the query.
    Param(Arc<str>),
    /// A cookie.
    Cookie(Arc<str>),
}

/// A field that takes a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimHeader {
    /// The field, in lower case.
    pub header: Arc<str>,
    /// The claim: its whole name, else one name for each part between dots.
    pub claim: Arc<str>,
}

/// What becomes of a token that was verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Original {
    /// The program does not see it.
    #[default]
    Removed,
    /// It stays where it was.
    Forwarded,
}

impl TokenPlace {
    /// Where tokens are looked for when a rule does not say (RFC 6750).
    pub fn default_places() -> Vec<Self> {
        vec![Self::Bearer, Self::Param("access_token".into())]
    }
}

impl ClaimHeader {
    /// The claim, as a path in the token.
    pub fn paths(&self) -> [ClaimPath; 2] {
        let whole = ClaimPath::of([&*self.claim]);
        [whole, ClaimPath::of(self.claim.split('.'))]
    }
}

impl RequestAuthentication {
    /// Whether it is for a workload of `namespace` with `labels`.
    pub fn is_for(&self, namespace: &Label, labels: &Labels, root_namespace: &Label) -> bool {
        (self.key.namespace == *root_namespace || self.key.namespace == *namespace)
            && self.selector.as_ref().is_none_or(|selector| selects(selector, labels))
    }
}

/// Whether a browser asks whether it may send a request: it sends no token with the question (the Fetch standard,
/// "CORS-preflight request").
pub fn is_preflight(head: &RequestHead) -> bool {
    let has = |name: &str| head.headers.get(name).is_some_and(|value| !value.is_empty());
    head.method == "OPTIONS" && has("origin") && has("access-control-request-method")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_for_its_namespace_and_the_root_s_for_all() {
        let label = |text: &str| Label::new(text).expect("a label");
        let labels = |app: &str| Labels::from([("app".into(), app.into())]);
        let check = |namespace: &str, selector: Option<&str>, expected| {
            let key = Key::new(label(namespace), label("a"));
            let policy = RequestAuthentication {
                key,
                selector: selector.map(labels),
                rules: Vec::new(),
                missing: Missing::Passes,
            };
            let found = policy.is_for(&label("shop"), &labels("orders"), &label("mesh-system"));
            assert_eq!(found, expected, "{namespace} {selector:?}");
        };
        check("shop", None, true);
        check("shop", Some("orders"), true);
        check("shop", Some("web"), false);
        check("web", None, false);
        check("mesh-system", None, true);
        check("mesh-system", Some("web"), false);
    }

    #[test]
    fn a_preflight_is_a_question_of_a_browser_and_nothing_else() {
        let check = |method: &str, fields: &[(&str, &str)], expected| {
            let mut head = RequestHead { method: method.into(), ..RequestHead::default() };
            for (name, value) in fields {
                head.headers.append(name, value.as_bytes()).expect("a field");
            }
            assert_eq!(is_preflight(&head), expected, "{method} {fields:?}");
        };
        let (origin, asks) = (("origin", "https://shop"), ("access-control-request-method", "PUT"));
        check("OPTIONS", &[origin, asks], true);
        check("OPTIONS", &[origin], false);
        check("OPTIONS", &[asks], false);
        check("OPTIONS", &[origin, ("access-control-request-method", "")], false);
        check("GET", &[origin, asks], false);
        check("options", &[origin, asks], false);
    }
}
