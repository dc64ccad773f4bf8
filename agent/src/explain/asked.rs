//! The call that is asked about, read from what somebody wrote.

use std::net::IpAddr;

use baremesh_model::http::headers::is_token;
use baremesh_model::http::{RequestHead, Scheme};
use baremesh_model::token::Token;

use super::ExplainError;
use crate::admin::report::explain::Question;
use crate::jwt::claims;

/// How the call is carried, as far as the caller decides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carried {
    /// As HTTP.
    Requests,
    /// As bytes.
    Bytes,
}

/// A call.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) carried: Carried,
    /// The host of the URL, without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// The request; of bytes an empty one.
    pub(super) head: RequestHead,
    /// The TLS server name.
    pub(super) sni: Option<String>,
    /// Whether it speaks TLS of its own.
    pub(super) tls: bool,
    pub(super) source_ip: Option<IpAddr>,
    /// The request's token, as if it had been verified.
    pub(super) token: Option<Token>,
}

impl Asked {
    /// Reads a question.
    pub(super) fn read(question: &Question) -> Result<Self, ExplainError> {
        let refused = || ExplainError::Url(question.url.clone());
        let (scheme, rest) = question.url.split_once("://").ok_or_else(refused)?;
        let (carried, tls, usual_port) = match scheme {
            "http" => (Carried::Requests, false, Some(80)),
            "https" => (Carried::Bytes, true, Some(443)),
            "tls" => (Carried::Bytes, true, None),
            "tcp" => (Carried::Bytes, false, None),
            _ => return Err(refused()),
        };
        let (authority, target) = match rest.find(['/', '?']) {
            Some(at) if rest[at..].starts_with('/') => (&rest[..at], rest[at..].to_owned()),
            Some(at) => (&rest[..at], format!("/{}", &rest[at..])),
            None => (rest, "/".to_owned()),
        };
        // What stands behind a `#` is the browser's alone.
        let target = target.split_once('#').map_or(target.as_str(), |(target, _)| target).to_owned();
        let (host, port) = host_and_port(authority).ok_or_else(refused)?;
        if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(refused());
        }
        let port = port.or(usual_port).ok_or_else(|| ExplainError::NoPort(question.url.clone()))?;
        let mut head = RequestHead {
            method: question.method.clone(),
            scheme: Scheme::Http,
            authority: authority.to_owned(),
            target,
            ..RequestHead::default()
        };
        if head.method.is_empty() || !head.method.bytes().all(is_token) {
            return Err(ExplainError::Method(head.method));
        }
        for (name, value) in &question.headers {
            if name.eq_ignore_ascii_case("host") {
                head.authority.clone_from(value);
                continue;
            }
            let failed = |source| ExplainError::Header { name: name.clone(), source };
            head.headers.append(name, value.as_bytes()).map_err(failed)?;
        }
        let of_url = || tls.then(|| host.clone()).filter(|host| host.parse::<IpAddr>().is_err());
        let sni = question.sni.clone().or_else(of_url);
        let tls = tls || sni.is_some();
        let token = question.claims.as_ref().map(|payload| claims::token(payload.as_bytes())).transpose();
        let token = token.map_err(|refusal| ExplainError::Claims(refusal.text()))?;
        Ok(Self { carried, host, port, head, sni, tls, source_ip: question.source_ip, token })
    }
}

/// A host and its port; none where it is neither a name nor an address.
fn host_and_port(authority: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
    if host.is_empty() || !host.bytes().all(is_name) {
        return None;
    }
    let port = match port {
        Some(text) => Some(text.parse().ok().filter(|port| *port > 0)?),
        None => None,
    };
    Some((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(url: &str) -> Question {
        let (method, headers) = ("GET".to_owned(), Vec::new());
        Question {
            url: url.to_owned(),
            method,
            headers,
            from: None,
            source_ip: None,
            sni: None,
            claims: None,
        }
    }

    #[test]
    fn reads_urls() {
        let check = |url: &str, carried, (host, port): (&str, u16), target: &str, sni: Option<&str>| {
            let asked = Asked::read(&question(url)).expect(url);
            assert_eq!((asked.carried, &*asked.host, asked.port), (carried, host, port), "{url}");
            assert_eq!((&*asked.head.target, asked.sni.as_deref()), (target, sni), "{url}");
        };
        check("http://reviews", Carried::Requests, ("reviews", 80), "/", None);
        check("http://reviews:9080/api?a=b#c", Carried::Requests, ("reviews", 9080), "/api?a=b", None);
        check("http://[fd00::1]:9080?x", Carried::Requests, ("fd00::1", 9080), "/?x", None);
        check("tcp://orders:7000", Carried::Bytes, ("orders", 7000), "/", None);
        check("https://login.shop", Carried::Bytes, ("login.shop", 443), "/", Some("login.shop"));
        check("tls://10.0.0.1:443", Carried::Bytes, ("10.0.0.1", 443), "/", None);
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        for url in [
            "",
            "reviews",
            "reviews:9080",
            "ftp://a",
            "http://",
            "http://:80",
            "http://a:b",
            "http://a:0",
            "http://a:65536",
            "http://a b/",
            "http://a/b c",
            "http://u@a/",
            "http://[::1",
            "http://[x]/",
            "http://[::1]80",
            "http://a/ü",
        ] {
            assert_eq!(Asked::read(&question(url)).err(), Some(ExplainError::Url(url.to_owned())), "{url}");
        }
        let no_port = Asked::read(&question("tcp://orders")).err();
        assert_eq!(no_port, Some(ExplainError::NoPort("tcp://orders".to_owned())));
        let method = Question { method: "GE T".to_owned(), ..question("http://a") };
        assert_eq!(Asked::read(&method).err(), Some(ExplainError::Method("GE T".to_owned())));
        let headers = vec![("a b".to_owned(), "c".to_owned())];
        assert!(matches!(
            Asked::read(&Question { headers, ..question("http://a") }),
            Err(ExplainError::Header { .. })
        ));
    }
}
