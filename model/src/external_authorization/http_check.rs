//! Asking over HTTP: the provider is sent the head of the request itself, as far as it is to see it, and 200 lets it go on
//! (Envoy's `ext_authz.v3.HttpService`).

use std::sync::Arc;

use super::changes::{Changes, FieldAction, FieldChange, may_be_set};
use super::{CheckAnswer, Denial, PARTIAL_BODY, ShownBody, names};
use crate::http::{Headers, RequestHead, ResponseHead, Version};
use crate::pattern::Pattern;

/// The field of an answer that lists fields which go from the request (Envoy's name).
const HEADERS_TO_REMOVE: &str = "x-envoy-auth-headers-to-remove";
/// What a provider sees of every request, where it is there (Envoy's).
const AUTHORIZATION: &str = "authorization";
/// Fields of an answer that a refused caller always sees (Istio's).
const TOLD_ALWAYS: [&str; 2] = ["www-authenticate", "location"];

/// What is said over HTTP, and what of the answer counts. Names of fields are in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HttpCheck {
    /// What stands before the path.
    pub path_prefix: Arc<str>,
    /// Fields of the request that the provider sees besides `authorization`.
    pub request_fields: Vec<Pattern>,
    /// Fields that it is sent besides, with their values.
    pub added_fields: Vec<(Arc<str>, Arc<str>)>,
    /// Fields of an allowing answer that go into the request.
    pub to_upstream: Vec<Pattern>,
    /// Fields of an allowing answer that go into the answer to the caller.
    pub to_caller_on_allow: Vec<Pattern>,
    /// Fields of a refusing answer that the caller sees; all of them without any.
    pub to_caller_on_deny: Vec<Pattern>,
}

impl HttpCheck {
    /// Whether the provider sees a field of requests.
    fn shows(&self, name: &str) -> bool {
        name == AUTHORIZATION || names(&self.request_fields, name)
    }

    /// What the provider is asked about a request.
    pub fn head(&self, asked: &RequestHead, body: Option<ShownBody<'_>>) -> RequestHead {
        let target = if asked.target.starts_with('/') { &*asked.target } else { "/" };
        let mut head = RequestHead {
            method: asked.method.clone(),
            scheme: asked.scheme,
            authority: asked.authority.clone(),
            target: format!("{}{target}", self.path_prefix),
            version: Version::Http11,
            headers: Headers::default(),
        };
        // What concerns the message that it came in is not the check's.
        let is_own = |name: &str| name == "x-forwarded-client-cert" || may_be_set(name);
        for (name, value) in asked.headers.iter().filter(|(name, _)| self.shows(name) && is_own(name)) {
            // It was a field there, and is one here.
            let _ = head.headers.append(name, value);
        }
        let is_cut = body.map(|body| if body.is_cut { "true" } else { "false" });
        for (name, value) in self.added_fields.iter().map(|(name, value)| (&**name, &**value)) {
            // Both were checked where they were read.
            let _ = head.headers.set(name, value.as_bytes());
        }
        if let Some(is_cut) = is_cut {
            // A constant that may stand in a field.
            let _ = head.headers.set(PARTIAL_BODY, is_cut.as_bytes());
        }
        head
    }

    /// What an answer comes to. 200 allows, 5xx says nothing, all else refuses.
    pub fn read(&self, answer: &ResponseHead, body: &[u8]) -> CheckAnswer {
        match answer.status {
            200 => CheckAnswer::Allowed(self.changes(&answer.headers)),
            201..=499 => CheckAnswer::Denied(Denial {
                status: answer.status,
                headers: self.told(&answer.headers),
                body: body.into(),
            }),
            status => CheckAnswer::Failed(format!("it answered {status}")),
        }
    }

    /// Takes out of a request what would reach the program as if the provider had set it: fields that it may set and did not
    /// see, whatever they are spelled like. What it saw and let be is the caller's to send.
    pub fn strip(&self, headers: &mut Headers) {
        let is_its = |name: &str| self.to_upstream.iter().any(|pattern| pattern.may_be_read_in(name));
        // It was sent another value than the caller's.
        let is_added = |name: &str| self.added_fields.iter().any(|(added, _)| **added == *name);
        let is_seen = |name: &str| self.shows(name) && !is_added(name) && name != PARTIAL_BODY;
        headers.retain(|name| !is_its(name) || is_seen(name) || !may_be_set(name));
    }

    fn changes(&self, answer: &Headers) -> Changes {
        let mut changes = Changes::default();
        for (name, value) in answer.iter().filter(|(name, _)| names(&self.to_upstream, name)) {
            // The first takes the place of what the caller sent, further ones of the same name stand beside it.
            let is_first = !changes.request.iter().any(|field| &*field.name == name);
            changes.request.push(field(is_first, name, value));
        }
        for (name, value) in answer.iter().filter(|(name, _)| names(&self.to_caller_on_allow, name)) {
            let is_first = !changes.answer.iter().any(|field| &*field.name == name);
            changes.answer.push(field(is_first, name, value));
        }
        if let Some(list) = answer.text(HEADERS_TO_REMOVE) {
            let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
            changes.removed = names.map(Into::into).collect();
        }
        changes
    }

    /// What of a refusing answer the caller sees.
    fn told(&self, answer: &Headers) -> Headers {
        let is_told = |name: &str| {
            self.to_caller_on_deny.is_empty()
                || TOLD_ALWAYS.contains(&name)
                || names(&self.to_caller_on_deny, name)
                // What the body is: without it a page would be shown as text.
                || name == "content-type"
        };
        let mut told = Headers::default();
        for (name, value) in answer.iter().filter(|(name, _)| is_told(name) && may_be_set(name)) {
            // It was a field there, and is one here.
            let _ = told.append(name, value);
        }
        told
    }
}

fn field(is_first: bool, name: &str, value: &[u8]) -> FieldChange {
    let action = if is_first { FieldAction::Overwrite } else { FieldAction::Append };
    FieldChange { action, name: name.into(), value: value.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::default();
        for (name, value) in fields {
            headers.append(name, value.as_bytes()).expect("a field");
        }
        headers
    }

    fn asked(target: &str, fields: &[(&str, &str)]) -> RequestHead {
        RequestHead {
            method: "PUT".into(),
            authority: "orders:8080".into(),
            target: target.into(),
            headers: headers(fields),
            ..RequestHead::default()
        }
    }

    fn patterns(texts: &[&str]) -> Vec<Pattern> {
        texts.iter().map(|text| Pattern::new(text)).collect()
    }

    fn answer(status: u16, fields: &[(&str, &str)]) -> ResponseHead {
        ResponseHead { status, headers: headers(fields), ..ResponseHead::default() }
    }

    #[test]
    fn the_provider_sees_what_it_is_to_see_and_nothing_else() {
        let check = HttpCheck {
            path_prefix: "/check".into(),
            request_fields: patterns(&[
                "x-user-*",
                "*-id",
                "cookie",
                "content-length",
                "x-forwarded-client-cert",
            ]),
            added_fields: vec![("x-source".into(), "mesh".into()), ("x-user-b".into(), "set".into())],
            ..HttpCheck::default()
        };
        let fields = [
            ("authorization", "Bearer a"),
            ("cookie", "c"),
            ("x-user-a", "1"),
            ("x-user-b", "forged"),
            ("request-id", "2"),
            ("x-other", "3"),
            ("content-length", "3"),
            ("x-forwarded-client-cert", "By=o;URI=w"),
        ];
        let head = check.head(&asked("/a?b=c", &fields), None);
        assert_eq!((&*head.method, &*head.authority, &*head.target), ("PUT", "orders:8080", "/check/a?b=c"));
        let expected = [
            ("authorization", "Bearer a"),
            ("cookie", "c"),
            ("x-user-a", "1"),
            ("request-id", "2"),
            ("x-forwarded-client-cert", "By=o;URI=w"),
            ("x-source", "mesh"),
            ("x-user-b", "set"),
        ];
        assert_eq!(head.headers, headers(&expected));
        let body = |is_cut| Some(ShownBody { bytes: b"abc", is_cut });
        let field = |head: RequestHead| head.headers.text(PARTIAL_BODY).map(std::borrow::Cow::into_owned);
        assert_eq!(field(check.head(&asked("/", &[]), body(true))).as_deref(), Some("true"));
        assert_eq!(field(check.head(&asked("/", &[]), body(false))).as_deref(), Some("false"));
        assert_eq!(&*check.head(&asked("*", &[]), None).target, "/check/");
    }

    #[test]
    fn only_200_allows_and_5xx_says_nothing() {
        let check = HttpCheck::default();
        for (status, expected) in [
            (200, "allowed"),
            (201, "denied"),
            (204, "denied"),
            (302, "denied"),
            (401, "denied"),
            (499, "denied"),
            (500, "failed"),
            (503, "failed"),
            (599, "failed"),
            (0, "failed"),
            (600, "failed"),
        ] {
            let found = match check.read(&answer(status, &[]), b"no") {
                CheckAnswer::Allowed(_) => "allowed",
                CheckAnswer::Denied(denial) => {
                    assert_eq!((denial.status, &*denial.body), (status, &b"no"[..]));
                    "denied"
                }
                CheckAnswer::Failed(_) => "failed",
            };
            assert_eq!(found, expected, "{status}");
        }
    }

    #[test]
    fn fields_of_an_answer_take_the_place_of_what_the_caller_sent() {
        let check = HttpCheck {
            request_fields: patterns(&["x-seen", "x-added"]),
            added_fields: vec![("x-added".into(), "the mesh's".into())],
            to_upstream: patterns(&["x-user", "x-role-*", "x-seen", "x-added", "authorization"]),
            to_caller_on_allow: patterns(&["set-cookie"]),
            ..HttpCheck::default()
        };
        let mut request = asked(
            "/",
            &[
                ("x-user", "admin"),
                ("x-role-a", "root"),
                ("x-role-b", "root"),
                ("x_user", "admin"),
                ("x.role.b", "root"),
                ("x_seen", "2"),
                ("x-added", "mine"),
                ("x-seen", "1"),
                ("authorization", "Bearer a"),
                ("x-other", "2"),
            ],
        );
        let said = [
            ("x-user", "web"),
            ("x-role-a", "reader"),
            ("x-role-a", "writer"),
            ("x-other", "never"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("x-envoy-auth-headers-to-remove", "x-other, ,host"),
        ];
        let CheckAnswer::Allowed(changes) = check.read(&answer(200, &said), b"") else {
            panic!("it is allowed");
        };
        check.strip(&mut request.headers);
        assert_eq!(changes.apply(&mut request), ["host"]);
        let expected = [
            ("x-seen", "1"),
            ("authorization", "Bearer a"),
            ("x-user", "web"),
            ("x-role-a", "reader"),
            ("x-role-a", "writer"),
        ];
        assert_eq!(request.headers, headers(&expected), "x-role-b, which nobody vouches for, is gone, too");
        let mut told = headers(&[("set-cookie", "old"), ("x-user", "kept")]);
        changes.mark_answer(&mut told);
        assert_eq!(told, headers(&[("x-user", "kept"), ("set-cookie", "a=1"), ("set-cookie", "b=2")]));
    }

    #[test]
    fn a_refused_caller_sees_what_it_may() {
        let check = |listed: &[&str], expected: &[(&str, &str)]| {
            let check = HttpCheck { to_caller_on_deny: patterns(listed), ..HttpCheck::default() };
            let said = [
                ("location", "/login"),
                ("www-authenticate", "Bearer"),
                ("content-type", "text/html"),
                ("x-why", "1"),
                ("x-secret", "2"),
                ("content-length", "5"),
            ];
            let read = check.read(&answer(302, &said), b"hello");
            let CheckAnswer::Denied(denial) = read else { panic!("it is refused") };
            assert_eq!(denial.headers, headers(expected));
        };
        let always = [("location", "/login"), ("www-authenticate", "Bearer"), ("content-type", "text/html")];
        check(&[], &[&always[..], &[("x-why", "1"), ("x-secret", "2")]].concat());
        check(&["x-why"], &[&always[..], &[("x-why", "1")]].concat());
    }
}
