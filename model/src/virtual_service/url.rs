//! Where a request goes in terms of its URL: rewriting it on the way, or redirecting the caller.

use std::fmt;
use std::num::NonZeroU16;
use std::sync::Arc;

use crate::http::{RequestHead, Scheme};
use crate::re2::Re2;

/// Text that can stand in a request line, an authority or a `Location`: printable ASCII without spaces.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UrlText(Arc<str>);

impl UrlText {
    /// Checks and takes a text; `None` where it is empty or could not stand in a URL.
    pub fn new(text: &str) -> Option<Self> {
        let valid = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        valid.then(|| Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UrlText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The part of the path that a match on the URI took: what a rewriting replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatchedPath {
    /// So many bytes of its start: of a prefix, or the slash where nothing was asked of the URI.
    Prefix(usize),
    /// All of it: of an exact match or a regex.
    Whole,
}

impl MatchedPath {
    /// What of `path` comes after the part that matched.
    fn rest(self, path: &str) -> &str {
        match self {
            Self::Prefix(length) => path.get(length..).unwrap_or(""),
            Self::Whole => "",
        }
    }
}

/// How a request is changed before it is sent. At least one of the two is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rewrite {
    /// What becomes of the path. The query stays.
    pub path: Option<PathRewrite>,
    /// The authority that it is given.
    pub authority: Option<UrlText>,
}

/// What becomes of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathRewrite {
    /// The part that matched is replaced.
    Matched(UrlText),
    /// Every place of the path that the expression matches is replaced; `\0` to `\9` are groups.
    Regex {
        /// The expression.
        pattern: Re2,
        /// What is put in its place. Empty takes it out.
        substitution: Option<UrlText>,
    },
}

impl PathRewrite {
    /// Rewrites the path of a request that a route matched.
    pub fn apply(&self, head: &mut RequestHead, matched: MatchedPath) {
        let path = head.path();
        let mut target = match self {
            Self::Matched(text) => format!("{text}{}", matched.rest(path)),
            Self::Regex { pattern, substitution } => {
                pattern.replace_all(path, substitution.as_ref().map_or("", UrlText::as_str))
            }
        };
        // What is no path would not be understood as one by the service.
        if !target.starts_with('/') && target != "*" {
            target.insert(0, '/');
        }
        if let Some(query) = head.query() {
            target.push('?');
            target.push_str(query);
        }
        head.target = target;
    }
}

/// The caller is told to go elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// What becomes of the path; it stays without.
    pub path: Option<RedirectPath>,
    /// The authority; the request's own without.
    pub authority: Option<UrlText>,
    /// The port behind the authority.
    pub port: Option<RedirectPort>,
    /// The scheme; the request's own without.
    pub scheme: Option<Scheme>,
    /// The status.
    pub status: RedirectStatus,
}

/// What a redirect does to the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedirectPath {
    /// It is replaced as a whole. The request's query stays, unless this has one of its own.
    Whole(UrlText),
    /// The part that matched is replaced. The query stays.
    Matched(UrlText),
}

/// The port of a redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectPort {
    /// This one.
    Number(NonZeroU16),
    /// The one that the caller dialled.
    FromRequest,
    /// None: the scheme's own.
    FromScheme,
}

/// The status of a redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RedirectStatus {
    /// 301
    #[default]
    MovedPermanently,
    /// 302
    Found,
    /// 303
    SeeOther,
    /// 307
    Temporary,
    /// 308
    Permanent,
}

impl RedirectStatus {
    /// The status of a code, if redirects can have it.
    pub fn new(code: u16) -> Option<Self> {
        Some(match code {
            301 => Self::MovedPermanently,
            302 => Self::Found,
            303 => Self::SeeOther,
            307 => Self::Temporary,
            308 => Self::Permanent,
            _ => return None,
        })
    }

    /// The code.
    pub fn code(self) -> u16 {
        match self {
            Self::MovedPermanently => 301,
            Self::Found => 302,
            Self::SeeOther => 303,
            Self::Temporary => 307,
            Self::Permanent => 308,
        }
    }
}

impl Redirect {
    /// The `Location` for a request to `port` that a route matched. A caller that named no authority, and is given none,
    /// gets a path alone.
    pub fn location(&self, head: &RequestHead, port: u16, matched: MatchedPath) -> String {
        let target = self.target(head, matched);
        let scheme = self.scheme.unwrap_or(head.scheme);
        let number = match self.port {
            Some(RedirectPort::Number(number)) => Some(number.get()),
            Some(RedirectPort::FromRequest) => Some(port),
            Some(RedirectPort::FromScheme) | None => None,
        };
        let number = number.filter(|number| *number != default_port(scheme));
        let authority = match &self.authority {
            Some(authority) => authority.as_str(),
            None => own_authority(head, scheme, number.is_some()),
        };
        if authority.is_empty() {
            return target;
        }
        let port = number.map(|number| format!(":{number}")).unwrap_or_default();
        format!("{}://{authority}{port}{target}", scheme.name())
    }

    fn target(&self, head: &RequestHead, matched: MatchedPath) -> String {
        let (mut target, whole) = match &self.path {
            None => (head.target.clone(), true),
            Some(RedirectPath::Whole(text)) => (text.to_string(), text.as_str().contains('?')),
            Some(RedirectPath::Matched(text)) => (format!("{text}{}", matched.rest(head.path())), false),
        };
        // Right behind the authority, anything but a slash would become part of the host's name.
        if !target.starts_with('/') {
            target.insert(0, '/');
        }
        if let (Some(query), false) = (head.query(), whole) {
            target.push('?');
            target.push_str(query);
        }
        target
    }
}

/// The request's own authority: without its port where another follows, or where it is the one that the other scheme
/// would have had.
fn own_authority(head: &RequestHead, scheme: Scheme, port_follows: bool) -> &str {
    let host = head.host();
    let port = head.authority.get(host.len() + 1..).and_then(|port| port.parse().ok());
    let other_default = scheme != head.scheme && port == Some(default_port(head.scheme));
    if port_follows || other_default { host } else { &head.authority }
}

fn default_port(scheme: Scheme) -> u16 {
    match scheme {
        Scheme::Http => 80,
        Scheme::Https => 443,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> UrlText {
        UrlText::new(text).expect("text of a URL")
    }

    fn request(authority: &str, target: &str) -> RequestHead {
        RequestHead { authority: authority.into(), target: target.into(), ..RequestHead::default() }
    }

    #[test]
    fn rewriting_replaces_what_matched_and_keeps_the_query() {
        let check = |to: &str, matched, target: &str, expected: &str| {
            let mut head = request("b", target);
            PathRewrite::Matched(text(to)).apply(&mut head, matched);
            assert_eq!(head.target, expected, "{target} with {matched:?} to {to}");
        };
        let prefix = |text: &str| MatchedPath::Prefix(text.len());
        check("/one/", prefix("/prefix/one/"), "/prefix/one/two", "/one/two");
        check("/", prefix("/strip-prefix/"), "/strip-prefix/three?a=/b", "/three?a=/b");
        check("/", MatchedPath::Whole, "/strip-prefix", "/");
        check("/v2", MatchedPath::Whole, "/a/b/c?q", "/v2?q");
        check("/x", prefix("/"), "/a?", "/xa?");
        check("x", MatchedPath::Whole, "/a", "/x");
        check("/x", prefix("/"), "*", "/x");
    }

    #[test]
    fn rewriting_by_regex_replaces_every_place_of_the_path() {
        let check = |pattern: &str, to: &str, target: &str, expected: &str| {
            let mut head = request("b", target);
            let pattern = Re2::new(pattern).expect("an expression");
            let rewrite = PathRewrite::Regex { pattern, substitution: UrlText::new(to) };
            rewrite.apply(&mut head, MatchedPath::Prefix(1));
            assert_eq!(head.target, expected, "{target}");
        };
        check("/.*", "/test", "/full/a/b?x=/y", "/test?x=/y");
        check("^/(v[0-9])/(.*)$", r"/\2/\1", "/v1/a/b", "/a/b/v1");
        check("^/a", "", "/a/b", "/b");
        check("^/a", "", "/a", "/");
    }

    #[test]
    fn locations_are_those_of_envoy() {
        let plain =
            Redirect { path: None, authority: None, port: None, scheme: None, status: Default::default() };
        let whole = MatchedPath::Whole;
        let check = |redirect: &Redirect, authority: &str, port, target: &str, expected: &str| {
            assert_eq!(redirect.location(&request(authority, target), port, whole), expected);
        };
        let derived = Redirect { port: Some(RedirectPort::FromRequest), ..plain.clone() };
        check(&derived, "b", 80, "/foo", "http://b/foo");
        check(&derived, "b:80", 80, "/foo", "http://b:80/foo");
        check(&derived, "b", 85, "/foo", "http://b:85/foo");
        check(&derived, "b:85", 85, "/foo?q=1", "http://b:85/foo?q=1");
        check(&derived, "[::1]:9", 85, "/", "http://[::1]:85/");
        let to = |scheme, port: Option<u16>| Redirect {
            authority: Some(text("example.org")),
            scheme,
            port: port.and_then(NonZeroU16::new).map(RedirectPort::Number),
            ..plain.clone()
        };
        check(&to(None, None), "b:80", 80, "/a", "http://example.org/a");
        check(&to(None, Some(8080)), "b", 80, "/a", "http://example.org:8080/a");
        check(&to(Some(Scheme::Https), Some(443)), "b", 80, "/a", "https://example.org/a");
        check(&to(Some(Scheme::Https), Some(8443)), "b", 80, "/a", "https://example.org:8443/a");
        let https = Redirect { scheme: Some(Scheme::Https), ..plain.clone() };
        check(&https, "b:80", 80, "/a", "https://b/a");
        check(&https, "b:81", 80, "/a", "https://b:81/a");
        let path = |path| Redirect { path: Some(path), ..plain.clone() };
        check(&path(RedirectPath::Whole(text("/new"))), "b", 80, "/a?q", "http://b/new?q");
        check(&path(RedirectPath::Whole(text("/new?z"))), "b", 80, "/a?q", "http://b/new?z");
        check(&path(RedirectPath::Whole(text("evil.org"))), "b", 80, "/a", "http://b/evil.org");
        check(&plain, "", 80, "/a", "/a");
        let replacing = path(RedirectPath::Matched(text("/v2")));
        let location = replacing.location(&request("b", "/v1/x?q"), 80, MatchedPath::Prefix(3));
        assert_eq!(location, "http://b/v2/x?q");
    }

    #[test]
    fn only_what_can_stand_in_a_url_is_taken() {
        for bad in ["", "/a b", "/a\r\nx: y", "/ä", "/\0"] {
            assert_eq!(UrlText::new(bad), None, "{bad:?}");
        }
        assert_eq!(RedirectStatus::new(308).map(RedirectStatus::code), Some(308));
        assert_eq!(RedirectStatus::new(304), None);
    }
}
