//! What a consistent hash is taken of: a header, a cookie, a query parameter or the caller's address. A request without it
//! has no key, and goes anywhere; or it is given a cookie, and comes back to where it went.

use std::fmt::Write;
use std::net::IpAddr;

use super::hash;
use crate::destination_rule::{Cookie, HashKey};
use crate::http::RequestHead;

impl HashKey {
    /// The hash of a request's key, if it has one.
    pub fn of_request(&self, head: &RequestHead, source: IpAddr) -> Option<u64> {
        match self {
            Self::Header(name) => of_header(head, name),
            Self::Cookie(cookie) => cookie_of(head, &cookie.name).map(hash::of),
            Self::SourceIp => Some(hash::of_address(source)),
            Self::QueryParameter(name) => parameter_of(head, name).map(|value| hash::of(value.as_bytes())),
        }
    }

    /// The hash of a connection's key: there is only the caller's address.
    pub fn of_connection(&self, source: IpAddr) -> Option<u64> {
        matches!(self, Self::SourceIp).then(|| hash::of_address(source))
    }

    /// The cookie that a request without one is to be given.
    pub fn generates(&self) -> Option<&Cookie> {
        match self {
            Self::Cookie(cookie) if cookie.ttl.is_some() => Some(cookie),
            _ => None,
        }
    }
}

impl Cookie {
    /// A new cookie: the hash of its value, and what `set-cookie` says (RFC 6265, section 4.1).
    pub fn generate(&self, random: u64) -> (u64, String) {
        let value = format!("{random:016x}");
        let mut text = format!("{}={value}", self.name);
        // Writing to a text does not fail.
        if let Some(ttl) = self.ttl.filter(|ttl| !ttl.is_zero()) {
            _ = write!(text, "; Max-Age={}", ttl.as_secs().max(1));
        }
        if let Some(path) = &self.path {
            _ = write!(text, "; Path={path}");
        }
        for (name, value) in &self.attributes {
            _ = write!(text, "; {name}");
            if let Some(value) = value {
                _ = write!(text, "={value}");
            }
        }
        text.push_str("; HttpOnly");
        (hash::of(value.as_bytes()), text)
    }
}

fn of_header(head: &RequestHead, name: &str) -> Option<u64> {
    // The authority is not among the headers, and an affinity by it is a common one.
    if matches!(name, ":authority" | "host") {
        return Some(hash::of(head.authority.as_bytes()));
    }
    let mut values = head.headers.get_all(name).peekable();
    values.peek()?;
    Some(hash::mix(values.fold(hash::begin(), hash::more)))
}

fn cookie_of<'a>(head: &'a RequestHead, name: &str) -> Option<&'a [u8]> {
    let pairs = head.headers.get_all("cookie").flat_map(|value| value.split(|byte| *byte == b';'));
    pairs.map(<[u8]>::trim_ascii).find_map(|pair| {
        let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        let quoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        Some(quoted.unwrap_or(value)).filter(|value| !value.is_empty())
    })
}

fn parameter_of<'a>(head: &'a RequestHead, name: &str) -> Option<&'a str> {
    let mut pairs = head.query()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn check(key: &HashKey, target: &str, fields: &[(&str, &str)], expected: Option<&[u8]>) {
        let mut head = RequestHead { target: target.into(), authority: "web".into(), ..Default::default() };
        for (name, value) in fields {
            head.headers.append(name, value.as_bytes()).expect("a field");
        }
        assert_eq!(key.of_request(&head, SOURCE), expected.map(hash::of), "{key:?} {target} {fields:?}");
    }

    fn cookie(ttl: Option<u64>) -> Cookie {
        let attributes = vec![("SameSite".into(), Some("Strict".into())), ("Secure".into(), None)];
        let ttl = ttl.map(Duration::from_secs);
        Cookie { name: "user".into(), path: Some("/a".into()), ttl, attributes }
    }

    #[test]
    fn keys_of_requests() {
        let header = HashKey::Header("end-user".into());
        check(&header, "/", &[("End-User", "jason")], Some(b"jason"));
        check(&header, "/", &[("end-user", "ja"), ("end-user", "son")], Some(b"jason"));
        check(&header, "/", &[], None);
        check(&HashKey::Header("host".into()), "/", &[], Some(b"web"));
        let user = HashKey::Cookie(cookie(None));
        check(&user, "/", &[("cookie", "a=b; user=jason;c=d")], Some(b"jason"));
        check(&user, "/", &[("cookie", "a=b"), ("cookie", "user=\"jason\"")], Some(b"jason"));
        check(&user, "/", &[("cookie", "users=jason; user=")], None);
        let query = HashKey::QueryParameter("id".into());
        check(&query, "/?x=id&id=7&id=8", &[], Some(b"7"));
        check(&query, "/?id", &[], Some(b""));
        check(&query, "/id=7", &[], None);
        check(&HashKey::SourceIp, "/", &[], Some(&[10, 0, 0, 1]));
        assert_eq!(HashKey::SourceIp.of_connection(SOURCE), Some(hash::of(&[10, 0, 0, 1])));
        assert_eq!(query.of_connection(SOURCE), None);
    }

    #[test]
    fn a_generated_cookie_leads_back() {
        let cookie = cookie(Some(60));
        let (made, text) = cookie.generate(7);
        assert_eq!(text, "user=0000000000000007; Max-Age=60; Path=/a; SameSite=Strict; Secure; HttpOnly");
        let sent = text.split(';').next().expect("the pair");
        let mut head = RequestHead::default();
        head.headers.append("cookie", sent.as_bytes()).expect("a field");
        assert_eq!(HashKey::Cookie(cookie.clone()).of_request(&head, SOURCE), Some(made));
        assert!(HashKey::Cookie(cookie).generates().is_some());
        assert!(HashKey::Cookie(self::cookie(None)).generates().is_none());
        let session = Cookie { path: None, attributes: vec![], ..self::cookie(Some(0)) };
        assert_eq!(session.generate(1).1, "user=0000000000000001; HttpOnly");
    }
}
