//! Cross-origin requests of browsers: which origins may call, and what a preflight is told.

use std::sync::Arc;
use std::time::Duration;

use crate::http::{Headers, RequestHead};
use crate::string_match::StringMatch;

/// A route's CORS policy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CorsPolicy {
    /// Origins that may call: any of these.
    pub allow_origins: Vec<StringMatch>,
    /// Methods that a preflight is told.
    pub allow_methods: Vec<Arc<str>>,
    /// Fields that a preflight is told a request may carry.
    pub allow_headers: Vec<Arc<str>>,
    /// Fields that a script may read of an answer.
    pub expose_headers: Vec<Arc<str>>,
    /// How long a preflight's answer may be kept, in whole seconds.
    pub max_age: Option<Duration>,
    /// Whether requests may carry credentials.
    pub credentials: Credentials,
    /// What becomes of a preflight from an origin that may not call.
    pub unmatched_preflights: UnmatchedPreflights,
}

/// Whether cross-origin requests may carry credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Credentials {
    /// Nothing is said, which means no.
    #[default]
    Refused,
    /// They may.
    Allowed,
}

/// What becomes of a preflight from an origin that may not call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnmatchedPreflights {
    /// The service sees it.
    #[default]
    Forward,
    /// It is answered with 200 and without any of CORS' fields.
    Ignore,
}

/// What a CORS policy says of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CorsDecision<'a> {
    /// Not across origins, or from one that may not call: the request goes on, and its answer is not touched. The browser
    /// refuses the answer.
    None,
    /// The request goes on; [`CorsPolicy::mark_answer`] marks its answer for this origin.
    Actual(&'a [u8]),
    /// A preflight, which is answered at once with 200 and [`CorsPolicy::preflight_fields`] for this origin.
    Preflight(&'a [u8]),
    /// A preflight from an origin that may not call, which is answered at once with 200 and nothing else.
    Ignored,
}

impl CorsPolicy {
    /// What becomes of a request. The method that a preflight asks for is not looked at: the browser compares it.
    pub fn decide<'a>(&self, head: &'a RequestHead) -> CorsDecision<'a> {
        let Some(origin) = head.headers.get("origin").filter(|origin| !origin.is_empty()) else {
            return CorsDecision::None;
        };
        let asks = head.headers.get("access-control-request-method");
        let preflight = head.method == "OPTIONS" && asks.is_some_and(|method| !method.is_empty());
        match (self.allows(origin), preflight, self.unmatched_preflights) {
            (true, true, _) => CorsDecision::Preflight(origin),
            (true, false, _) => CorsDecision::Actual(origin),
            (false, true, UnmatchedPreflights::Ignore) => CorsDecision::Ignored,
            (false, ..) => CorsDecision::None,
        }
    }

    /// Whether an origin may call. A match that takes the text `*` takes every origin.
    fn allows(&self, origin: &[u8]) -> bool {
        let Ok(origin) = std::str::from_utf8(origin) else { return false };
        self.allow_origins.iter().any(|asked| asked.matches("*") || asked.matches(origin))
    }

    /// Puts the fields of a preflight's answer into `headers`.
    pub fn preflight_fields(&self, origin: &[u8], headers: &mut Headers) {
        self.mark_answer(origin, headers);
        put_list(headers, "access-control-allow-methods", &self.allow_methods);
        put_list(headers, "access-control-allow-headers", &self.allow_headers);
        if let Some(age) = self.max_age {
            put(headers, "access-control-max-age", age.as_secs().to_string().as_bytes());
        }
    }

    /// Puts the fields of an answer to a request from `origin` into `headers`, in place of those that the service set.
    pub fn mark_answer(&self, origin: &[u8], headers: &mut Headers) {
        put(headers, "access-control-allow-origin", origin);
        if self.credentials == Credentials::Allowed {
            put(headers, "access-control-allow-credentials", b"true");
        }
        put_list(headers, "access-control-expose-headers", &self.expose_headers);
    }
}

fn put_list(headers: &mut Headers, name: &str, values: &[Arc<str>]) {
    if !values.is_empty() {
        put(headers, name, values.join(",").as_bytes());
    }
}

fn put(headers: &mut Headers, name: &str, value: &[u8]) {
    // The origin came in a head, and the rest was checked when it was read: all of them can stand in one.
    _ = headers.set(name, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> CorsPolicy {
        CorsPolicy {
            allow_origins: vec![StringMatch::Exact("cors.com".into())],
            allow_methods: vec!["POST".into(), "GET".into()],
            allow_headers: vec!["X-Foo-Bar".into(), "X-Foo-Baz".into()],
            max_age: Some(Duration::from_secs(86_400)),
            ..CorsPolicy::default()
        }
    }

    fn request(method: &str, fields: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead { method: method.into(), ..RequestHead::default() };
        for (name, value) in fields {
            head.headers.append(name, value.as_bytes()).expect("a field");
        }
        head
    }

    const ASKS: (&str, &str) = ("access-control-request-method", "DELETE");

    #[test]
    fn decides_by_origin_and_preflight() {
        let check = |policy: &CorsPolicy, head: &RequestHead, expected: CorsDecision<'_>| {
            assert_eq!(policy.decide(head), expected, "{head:?}");
        };
        let mut policy = policy();
        let good = ("origin", "cors.com");
        let bad = ("origin", "evil.com");
        check(&policy, &request("GET", &[]), CorsDecision::None);
        check(&policy, &request("GET", &[("origin", "")]), CorsDecision::None);
        check(&policy, &request("GET", &[good]), CorsDecision::Actual(b"cors.com"));
        check(&policy, &request("OPTIONS", &[good]), CorsDecision::Actual(b"cors.com"));
        check(&policy, &request("OPTIONS", &[good, ASKS]), CorsDecision::Preflight(b"cors.com"));
        check(&policy, &request("GET", &[bad]), CorsDecision::None);
        check(&policy, &request("OPTIONS", &[bad, ASKS]), CorsDecision::None);
        policy.unmatched_preflights = UnmatchedPreflights::Ignore;
        check(&policy, &request("OPTIONS", &[bad, ASKS]), CorsDecision::Ignored);
        check(&policy, &request("GET", &[bad]), CorsDecision::None);
        policy.allow_origins = vec![StringMatch::Exact("*".into())];
        check(&policy, &request("GET", &[bad]), CorsDecision::Actual(b"evil.com"));
    }

    #[test]
    fn answers_carry_what_the_policy_says() {
        let mut headers = Headers::default();
        policy().preflight_fields(b"cors.com", &mut headers);
        let fields: Vec<_> =
            headers.iter().map(|(name, value)| (name, String::from_utf8_lossy(value))).collect();
        let expected = [
            ("access-control-allow-origin", "cors.com"),
            ("access-control-allow-methods", "POST,GET"),
            ("access-control-allow-headers", "X-Foo-Bar,X-Foo-Baz"),
            ("access-control-max-age", "86400"),
        ];
        assert_eq!(fields.len(), expected.len());
        assert!(fields.iter().zip(expected).all(|(a, b)| (a.0, &*a.1) == b), "{fields:?}");

        let exposing =
            CorsPolicy { expose_headers: vec!["x-a".into()], credentials: Credentials::Allowed, ..policy() };
        let mut headers = Headers::default();
        headers.append("access-control-allow-origin", b"of the service").expect("a field");
        exposing.mark_answer(b"cors.com", &mut headers);
        let check = |name: &str, expected: &str| assert_eq!(headers.text(name).as_deref(), Some(expected));
        check("access-control-allow-origin", "cors.com");
        check("access-control-allow-credentials", "true");
        check("access-control-expose-headers", "x-a");
        assert!(!headers.contains("access-control-max-age"));
    }
}
