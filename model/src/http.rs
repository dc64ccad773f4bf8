//! HTTP messages as routing, policy and telemetry see them: heads without a wire. A codec fills a head and writes one
//! out; in between it is matched, judged and changed. Heads are kept from message to message, so that a connection
//! that is kept open allocates for its largest message once.

/// Header fields.
pub mod headers;
/// One form for paths that are written in several ways.
pub mod normalization;
/// What may stand in the parts of a request.
pub mod syntax;

pub use headers::{FieldError, Headers};
pub use normalization::PathNormalization;

/// What a request is sent over, as `:scheme` and matches on `scheme` see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Scheme {
    /// Without TLS of the application's own: everything that the mesh carries as HTTP.
    #[default]
    Http,
    /// Through a gateway that ended TLS.
    Https,
}

impl Scheme {
    /// The scheme's name as in a URL.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// The version of HTTP in which a message came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
    /// HTTP/2.
    Http2,
}

impl Version {
    /// The name as access logs and metrics write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

/// A request without its body.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestHead {
    /// The method, in the case in which it came (RFC 9110, section 9.1: case matters).
    pub method: String,
    /// The scheme.
    pub scheme: Scheme,
    /// The authority: of an absolute target, else of `Host` or `:authority`. Empty for HTTP/1.0 without `Host`.
    pub authority: String,
    /// Path and query as they came, `*` for OPTIONS of the whole server; empty for CONNECT.
    pub target: String,
    /// The version in which it came.
    pub version: Version,
    /// Fields without `host`, and without those that concern one connection alone (RFC 9110, section 7.6.1).
    pub headers: Headers,
}

impl RequestHead {
    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.method.clear();
        self.authority.clear();
        self.target.clear();
        self.headers.clear();
        self.scheme = Scheme::Http;
        self.version = Version::Http11;
    }

    /// The path without the query.
    pub fn path(&self) -> &str {
        self.target.split_once('?').map_or(&*self.target, |(path, _)| path)
    }

    /// The query without the question mark.
    pub fn query(&self) -> Option<&str> {
        self.target.split_once('?').map(|(_, query)| query)
    }

    /// The authority without its port.
    pub fn host(&self) -> &str {
        match self.authority.rsplit_once(':') {
            // The colons of a bracketed IPv6 address are its own.
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => &self.authority,
        }
    }

    /// Whether the request may be sent again after it may have been seen (RFC 9110, section 9.2.2).
    pub fn is_idempotent(&self) -> bool {
        matches!(&*self.method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
    }

    /// Whether it is a gRPC call, by its content type (`application/grpc`, also with `+proto` and the like).
    pub fn is_grpc(&self) -> bool {
        let kind = self.headers.get("content-type").and_then(|value| value.strip_prefix(b"application/grpc"));
        kind.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    }
}

/// A response without its body.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResponseHead {
    /// The status code, 100 to 999.
    pub status: u16,
    /// The version in which it came.
    pub version: Version,
    /// Fields without those that concern one connection alone.
    pub headers: Headers,
}

impl ResponseHead {
    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.status = 0;
        self.version = Version::Http11;
        self.headers.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_authorities_come_apart() {
        let check = |target: &str, authority: &str, path: &str, query: Option<&str>, host: &str| {
            let head =
                RequestHead { target: target.into(), authority: authority.into(), ..Default::default() };
            assert_eq!((head.path(), head.query(), head.host()), (path, query, host));
        };
        check("/a/b?c=d?e", "web:80", "/a/b", Some("c=d?e"), "web");
        check("/", "[::1]:8080", "/", None, "[::1]");
        check("*", "[::1]", "*", None, "[::1]");
        check("/?", "", "/", Some(""), "");
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        let check = |value: &str, expected| {
            let mut head = RequestHead::default();
            head.headers.append("content-type", value.as_bytes()).expect("a field");
            assert_eq!(head.is_grpc(), expected, "{value}");
        };
        check("application/grpc", true);
        check("application/grpc+proto", true);
        check("application/grpc; charset=x", true);
        check("application/grpc-web", false);
        check("text/plain", false);
    }
}
