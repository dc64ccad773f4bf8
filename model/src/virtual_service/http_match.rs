//! What a route asks of a request.

use std::sync::Arc;

use super::scope::{Caller, Scope};
use super::unmet::Unmet;
use super::url::MatchedPath;
use crate::http::RequestHead;
use crate::string_match::{Case, StringMatch};
use crate::token::{ClaimPath, Token};

/// A request as routing sees it.
#[derive(Debug, Clone, Copy)]
pub struct Incoming<'a> {
    /// The head.
    pub head: &'a RequestHead,
    /// The port that was dialled.
    pub port: u16,
    /// Who asks.
    pub caller: Caller<'a>,
    /// What the token says that was verified here; none where there is none, or nobody verifies.
    pub token: Option<&'a Token>,
}

/// One block of `match`: everything that it asks for must hold. A default one takes every request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HttpMatch {
    /// The block's name, for records.
    pub name: Option<Arc<str>>,
    /// The caller, the gateway and the port.
    pub scope: Scope,
    /// The path, without the query.
    pub uri: Option<StringMatch>,
    /// Whether case counts in `uri`.
    pub uri_case: Case,
    /// The scheme.
    pub scheme: Option<StringMatch>,
    /// The method, whose case counts.
    pub method: Option<StringMatch>,
    /// The authority as it came, with its port if it had one; case counts.
    pub authority: Option<StringMatch>,
    /// Fields that must be there and match, by names in lower case.
    pub headers: Vec<(Arc<str>, StringMatch)>,
    /// Fields that must not match, by names in lower case; one that is not there counts as empty.
    pub without_headers: Vec<(Arc<str>, StringMatch)>,
    /// Parameters of the query that must be there and match, the first of a name; as they came, without decoding.
    pub query_params: Vec<(Arc<str>, StringMatch)>,
    /// Claims of the verified token that must be there and match.
    pub claims: Vec<(ClaimPath, StringMatch)>,
    /// Claims of the verified token that must not match.
    pub without_claims: Vec<(ClaimPath, StringMatch)>,
}

impl HttpMatch {
    /// Whether it asks for claims of a token.
    pub fn asks_for_claims(&self) -> bool {
        !self.claims.is_empty() || !self.without_claims.is_empty()
    }

    /// Whether a request matches, and with which part of its path.
    pub fn matches(&self, request: Incoming<'_>) -> Option<MatchedPath> {
        self.unmet(request).is_none().then(|| self.matched_path())
    }

    /// The first of its conditions that a request does not fulfil; none where it matches.
    pub fn unmet(&self, request: Incoming<'_>) -> Option<Unmet<'_>> {
        let Incoming { head, port, caller, token } = request;
        let differs = |asked: &&StringMatch, text: &str| !asked.matches(text);
        let in_scope = self.scope.unmet_by_request(caller, port);
        let uri = || self.uri.as_ref().filter(|uri| !uri.matches_in(head.path(), self.uri_case));
        let scheme = || self.scheme.as_ref().filter(|asked| differs(asked, head.scheme.name()));
        let method = || self.method.as_ref().filter(|asked| differs(asked, &head.method));
        let authority = || self.authority.as_ref().filter(|asked| differs(asked, &head.authority));
        let header = || self.headers.iter().find(|(name, asked)| !has_header(head, name, asked));
        let unwanted =
            || self.without_headers.iter().find(|(name, asked)| has_unwanted_header(head, name, asked));
        let claim = || self.claims.iter().find(|(path, asked)| !has_claim(token, path, asked));
        let unwanted_claim =
            || self.without_claims.iter().find(|(path, asked)| has_claim(token, path, asked));
        let parameter = || self.query_params.iter().find(|(name, asked)| !has_parameter(head, name, asked));
        in_scope
            .or_else(|| uri().map(Unmet::Uri))
            .or_else(|| scheme().map(Unmet::Scheme))
            .or_else(|| method().map(Unmet::Method))
            .or_else(|| authority().map(Unmet::Authority))
            .or_else(|| header().map(|(name, asked)| Unmet::Header(name, asked)))
            .or_else(|| unwanted().map(|(name, asked)| Unmet::WithoutHeader(name, asked)))
            .or_else(|| parameter().map(|(name, asked)| Unmet::QueryParam(name, asked)))
            .or_else(|| claim().map(|(path, asked)| Unmet::Claim(path, asked)))
            .or_else(|| unwanted_claim().map(|(path, asked)| Unmet::WithoutClaim(path, asked)))
    }

    fn matched_path(&self) -> MatchedPath {
        match &self.uri {
            Some(StringMatch::Prefix(prefix)) => MatchedPath::Prefix(prefix.len()),
            Some(StringMatch::Exact(_) | StringMatch::Regex(_)) => MatchedPath::Whole,
            Some(StringMatch::Present) | None => MatchedPath::Prefix(1),
        }
    }
}

/// Texts are compared, and lists with such a text; presence asks for a claim of any kind.
fn has_claim(token: Option<&Token>, path: &ClaimPath, asked: &StringMatch) -> bool {
    let claim = token.and_then(|token| token.claim(path.as_ref()));
    claim.is_some_and(|claim| *asked == StringMatch::Present || claim.any_text(|text| asked.matches(text)))
}

fn has_header(head: &RequestHead, name: &str, asked: &StringMatch) -> bool {
    head.headers.text(name).is_some_and(|value| asked.matches(&value))
}

fn has_unwanted_header(head: &RequestHead, name: &str, asked: &StringMatch) -> bool {
    match (head.headers.text(name), asked) {
        (None, StringMatch::Present) => false,
        (value, asked) => asked.matches(value.as_deref().unwrap_or("")),
    }
}

fn has_parameter(head: &RequestHead, name: &str, asked: &StringMatch) -> bool {
    let parameters = head.query().into_iter().flat_map(|query| query.split('&'));
    let mut parameters = parameters.map(|part| part.split_once('=').unwrap_or((part, "")));
    parameters.find(|(key, _)| *key == name).is_some_and(|(_, value)| asked.matches(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Label;
    use crate::re2::Re2;
    use crate::token::Claim;
    use crate::virtual_service::Gateway;
    use crate::workload::Labels;

    fn exact(text: &str) -> StringMatch {
        StringMatch::Exact(text.into())
    }

    fn prefix(text: &str) -> StringMatch {
        StringMatch::Prefix(text.into())
    }

    fn regex(text: &str) -> StringMatch {
        StringMatch::Regex(Re2::new(text).expect("an expression"))
    }

    fn get(target: &str, fields: &[(&str, &str)]) -> RequestHead {
        let (method, authority, target) = ("GET".into(), "b:80".into(), target.into());
        let mut head = RequestHead { method, authority, target, ..RequestHead::default() };
        for (name, value) in fields {
            head.headers.append(name, value.as_bytes()).expect("a field");
        }
        head
    }

    fn check(asked: &HttpMatch, head: &RequestHead, expected: bool) {
        let (namespace, labels) = (Label::new("shop").expect("a label"), Labels::new());
        let caller = Caller { gateway: &Gateway::Mesh, namespace: &namespace, labels: &labels };
        let found = asked.matches(Incoming { head, port: 80, caller, token: None });
        assert_eq!(found.is_some(), expected, "{asked:?} on {} {head:?}", head.target);
    }

    #[test]
    fn parts_of_the_url_and_the_method() {
        let with = |change: fn(&mut HttpMatch)| {
            let mut asked = HttpMatch::default();
            change(&mut asked);
            asked
        };
        check(&HttpMatch::default(), &get("/", &[]), true);
        check(&with(|m| m.uri = Some(exact("/one"))), &get("/one?x=/y", &[]), true);
        check(&with(|m| m.uri = Some(exact("/one"))), &get("/one/", &[]), false);
        check(&with(|m| m.uri = Some(prefix("/v2"))), &get("/v2example", &[]), true);
        check(&with(|m| m.uri = Some(prefix("/v2/"))), &get("/v2", &[]), false);
        check(&with(|m| m.uri = Some(regex("/v[0-9]"))), &get("/v2?a", &[]), true);
        check(&with(|m| m.uri = Some(regex("/v[0-9]"))), &get("/v22", &[]), false);
        let ignoring = with(|m| (m.uri, m.uri_case) = (Some(exact("/TWO")), Case::Ignored));
        check(&ignoring, &get("/two", &[]), true);
        check(&with(|m| m.scheme = Some(exact("http"))), &get("/", &[]), true);
        check(&with(|m| m.scheme = Some(exact("https"))), &get("/", &[]), false);
        check(&with(|m| m.method = Some(exact("GET"))), &get("/", &[]), true);
        check(&with(|m| m.method = Some(exact("get"))), &get("/", &[]), false);
        check(&with(|m| m.authority = Some(exact("b:80"))), &get("/", &[]), true);
        check(&with(|m| m.authority = Some(exact("b"))), &get("/", &[]), false);
        check(&with(|m| m.scope.port = 81.try_into().ok()), &get("/", &[]), false);
    }

    #[test]
    fn headers_must_be_there() {
        let asked = |asked| HttpMatch { headers: vec![("x".into(), asked)], ..HttpMatch::default() };
        check(&asked(exact("a")), &get("/", &[("X", "a")]), true);
        check(&asked(exact("a")), &get("/", &[("x", "A")]), false);
        check(&asked(exact("a,b")), &get("/", &[("x", "a"), ("x", "b")]), true);
        check(&asked(exact("")), &get("/", &[]), false);
        check(&asked(regex(".*")), &get("/", &[]), false);
        check(&asked(StringMatch::Present), &get("/", &[("x", "")]), true);
        check(&asked(StringMatch::Present), &get("/", &[]), false);
    }

    #[test]
    fn unwanted_headers_count_as_empty_where_they_are_missing() {
        let asked = |asked| HttpMatch { without_headers: vec![("x".into(), asked)], ..HttpMatch::default() };
        check(&asked(exact("jason")), &get("/", &[("x", "jason")]), false);
        check(&asked(exact("jason")), &get("/", &[("x", "other")]), true);
        check(&asked(exact("jason")), &get("/", &[]), true);
        check(&asked(regex(".*")), &get("/", &[("x", "jason")]), false);
        check(&asked(regex(".*")), &get("/", &[]), false);
        check(&asked(StringMatch::Present), &get("/", &[("x", "")]), false);
        check(&asked(StringMatch::Present), &get("/", &[]), true);
    }

    #[test]
    fn the_first_parameter_of_a_name_counts() {
        let asked = |asked| HttpMatch { query_params: vec![("t".into(), asked)], ..HttpMatch::default() };
        check(&asked(exact("a")), &get("/?x=1&t=a&t=b", &[]), true);
        check(&asked(exact("b")), &get("/?t=a&t=b", &[]), false);
        check(&asked(exact("a b")), &get("/?t=a%20b", &[]), false);
        check(&asked(StringMatch::Present), &get("/?t=", &[]), true);
        check(&asked(StringMatch::Present), &get("/?t", &[]), true);
        check(&asked(StringMatch::Present), &get("/?tt=1", &[]), false);
        check(&asked(StringMatch::Present), &get("/", &[]), false);
    }

    #[test]
    fn the_first_condition_that_does_not_hold_is_named() {
        let asked = HttpMatch {
            uri: Some(prefix("/v2")),
            method: Some(exact("GET")),
            headers: vec![("a".into(), exact("1"))],
            without_headers: vec![("b".into(), StringMatch::Present)],
            query_params: vec![("c".into(), regex("[0-9]+"))],
            ..HttpMatch::default()
        };
        let (namespace, labels) = (Label::new("shop").expect("a label"), Labels::new());
        let caller = Caller { gateway: &Gateway::Mesh, namespace: &namespace, labels: &labels };
        let check = |head: &RequestHead, expected: Option<&str>| {
            let request = Incoming { head, port: 80, caller, token: None };
            let found = asked.unmet(request).map(|unmet| unmet.to_string());
            assert_eq!(found.as_deref(), expected);
            assert_eq!(asked.matches(request).is_some(), expected.is_none());
        };
        let whole = get("/v2?c=7", &[("a", "1")]);
        check(&whole, None);
        check(&get("/v1", &[]), Some("uri /v2*"));
        check(&RequestHead { method: "PUT".into(), ..whole }, Some("method GET"));
        check(&get("/v2", &[("a", "2")]), Some("headers a = 1"));
        check(&get("/v2?c=7", &[("a", "1"), ("b", "")]), Some("withoutHeaders b = *"));
        check(&get("/v2?c=x", &[("a", "1")]), Some("queryParams c = ~[0-9]+"));
    }

    #[test]
    fn everything_asked_for_must_hold() {
        let asked = HttpMatch {
            uri: Some(prefix("/v2")),
            headers: vec![("a".into(), exact("1")), ("b".into(), exact("2"))],
            ..HttpMatch::default()
        };
        check(&asked, &get("/v2", &[("a", "1"), ("b", "2")]), true);
        check(&asked, &get("/v2", &[("a", "1")]), false);
        check(&asked, &get("/v1", &[("a", "1"), ("b", "2")]), false);
    }

    #[test]
    fn claims_of_a_verified_token_and_nothing_else() {
        let list = Claim::List(vec![Claim::Text("admin".into()), Claim::Text("dev".into())]);
        let token = Token {
            issuer: "issuer".into(),
            subject: "jason".into(),
            audiences: Vec::new(),
            presenter: None,
            claims: [("groups".into(), list), ("level".into(), Claim::Number("7".into()))].into(),
        };
        let check = |block: &HttpMatch, token: Option<&Token>, expected| {
            let head = get("/", &[("groups", "admin"), ("claims", "admin")]);
            let (namespace, labels) = (Label::new("shop").expect("a label"), Labels::new());
            let caller = Caller { gateway: &Gateway::Mesh, namespace: &namespace, labels: &labels };
            let request = Incoming { head: &head, port: 80, caller, token };
            assert_eq!(block.matches(request).is_some(), expected, "{block:?} {token:?}");
        };
        let (groups, level) = (ClaimPath::of(["groups"]), ClaimPath::of(["level"]));
        let with = |path: &ClaimPath, asked| HttpMatch {
            claims: vec![(path.clone(), asked)],
            ..HttpMatch::default()
        };
        let without = |path: &ClaimPath, asked| HttpMatch {
            without_claims: vec![(path.clone(), asked)],
            ..HttpMatch::default()
        };
        check(&with(&groups, exact("dev")), Some(&token), true);
        check(&with(&groups, prefix("adm")), Some(&token), true);
        check(&with(&groups, exact("admin,dev")), Some(&token), false);
        check(&with(&groups, exact("admin")), None, false);
        check(&with(&level, StringMatch::Present), Some(&token), true);
        check(&with(&level, exact("7")), Some(&token), false);
        check(&without(&groups, exact("admin")), Some(&token), false);
        check(&without(&groups, exact("other")), Some(&token), true);
        check(&without(&groups, exact("admin")), None, true);
    }
}
