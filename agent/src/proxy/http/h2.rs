//! HTTP/2 by the h2 crate, to and from the same heads as HTTP/1. The crate checks frames, pseudo fields and flow control;
//! here stands what RFC 9113 asks of a whole message, and the bounds of what a peer may have us hold.

use baremesh_model::http::syntax::{check_target, is_authority};
use baremesh_model::http::{Headers, RequestHead, ResponseHead, Scheme, Version};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};

use super::h1::HttpLimits;

/// The window of one stream, in bytes: what a peer may send ahead of us on it.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The window of a connection, in bytes.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Streams that a peer may have open on one connection.
pub const MAX_STREAMS: u32 = 100;
/// Streams that are reset before they were served (RFC 9113, section 5.4.2): a peer with more of them is closed.
const MAX_RESETS: usize = 100;

/// What of a head references can stand for: the table of compression (RFC 9113, section 6.5.2) once through, and the
/// fields that every table has (RFC 7541, appendix A).
const REFERENCED: usize = 4096 + 1024;
/// How much longer a text is than its Huffman code at most (RFC 7541, appendix B: five bits for eight), rounded up.
const HUFFMAN: usize = 2;

/// Why a message is malformed (RFC 9113, section 8.1.1).
pub type Malformed = &'static str;

/// Why a request is not carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// What it is answered with.
    pub status: u16,
    /// A stable word for the log.
    pub detail: &'static str,
    /// In words, for who looks closer.
    pub why: Malformed,
}

impl From<Malformed> for Refused {
    fn from(why: Malformed) -> Self {
        Self { status: 400, detail: "http2.invalid.header.field", why }
    }
}

/// What the heads of a connection's requests may come to, of which so many bytes came over the wire. A reference of one
/// byte stands for up to 4 KiB; who means well refers to a field once in a head, and who does not has all that is held
/// of its heads stay within about a hundred times what it sent (CVE-2026-47774).
pub fn most_of_heads(came: u64) -> usize {
    let came = usize::try_from(came).unwrap_or(usize::MAX);
    (MAX_STREAMS as usize * REFERENCED).saturating_add(came.saturating_mul(HUFFMAN))
}

/// What a head takes of it.
pub fn size_of_head(head: &RequestHead) -> usize {
    head.method.len() + head.authority.len() + head.target.len() + head.headers.bytes()
}

/// A server's side of a connection with a program of this host or with another agent.
pub fn server(limits: &HttpLimits) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(header_list(limits))
        .max_concurrent_streams(MAX_STREAMS)
        .max_concurrent_reset_streams(MAX_RESETS)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(Some(MAX_RESETS));
    builder
}

/// A client's side.
pub fn client(limits: &HttpLimits) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(header_list(limits))
        .max_concurrent_reset_streams(MAX_RESETS)
        .enable_push(false);
    builder
}

fn header_list(limits: &HttpLimits) -> u32 {
    u32::try_from(limits.head_bytes).unwrap_or(u32::MAX)
}

/// Reads a request's head. What concerns one connection alone has no place in HTTP/2 (RFC 9113, section 8.2.2); method,
/// target and authority are what they may be in HTTP/1, to which the request may be passed on.
pub fn read_request(
    request: &http::request::Parts,
    head: &mut RequestHead,
    limits: &HttpLimits,
) -> Result<(), Refused> {
    head.clear();
    head.version = Version::Http2;
    head.method.push_str(request.method.as_str());
    let refused = |status, detail, why| Err(Refused { status, detail, why });
    if request.method == Method::CONNECT {
        return refused(405, "http2.connect_not_allowed", "CONNECT is not carried");
    }
    match request.uri.scheme_str() {
        Some("https") => head.scheme = Scheme::Https,
        Some("http") | None => {}
        Some(_) => return refused(400, "http2.invalid_scheme", "a scheme other than http and https"),
    }
    let target = request.uri.path_and_query().ok_or("`:path` is missing")?.as_str();
    let whole_server = request.method == Method::OPTIONS && target == "*";
    if target.len() > limits.target_bytes {
        return refused(414, "http2.url_too_long", "`:path` is too long");
    }
    if !whole_server && check_target(target.as_bytes()).is_err() {
        return refused(400, "http2.invalid_url", "`:path` is no target");
    }
    head.target.push_str(target);
    let host = match request.headers.get_all("host").iter().collect::<Vec<_>>()[..] {
        [] => None,
        [host] => Some(host.to_str().map_err(|_| "`host` is not text")?),
        _ => return Err("more than one `host`".into()),
    };
    let authority = request.uri.authority().map(http::uri::Authority::as_str);
    head.authority.push_str(match (authority, host) {
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => {
            return Err("`host` and `:authority` disagree".into());
        }
        (authority, host) => authority.or(host).ok_or("neither `:authority` nor `host`")?,
    });
    if !is_authority(head.authority.as_bytes()) {
        return refused(400, "http2.invalid_host", "`:authority` is no name or address");
    }
    if request.headers.len() > limits.fields {
        return refused(431, "http2.too_many_headers", "too many fields");
    }
    read_fields(&request.headers, &mut head.headers, limits).map_err(Refused::from)
}

/// Reads a response's head.
pub fn read_response(
    response: &http::response::Parts,
    head: &mut ResponseHead,
    limits: &HttpLimits,
) -> Result<(), Malformed> {
    head.clear();
    head.version = Version::Http2;
    head.status = response.status.as_u16();
    read_fields(&response.headers, &mut head.headers, limits)
}

/// Reads fields; `host` stands in the authority.
pub fn read_fields(fields: &HeaderMap, headers: &mut Headers, limits: &HttpLimits) -> Result<(), Malformed> {
    if fields.len() > limits.fields {
        return Err("too many fields");
    }
    let mut cookie = Vec::new();
    for (name, value) in fields {
        match name.as_str() {
            "host" => continue,
            "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade" => {
                return Err("a field that concerns one connection of HTTP/1");
            }
            "te" if !value.as_bytes().eq_ignore_ascii_case(b"trailers") => {
                return Err("`te` holds more than `trailers`");
            }
            // Split for compression; HTTP/1 has one (RFC 9113, section 8.2.3).
            "cookie" => {
                cookie.extend_from_slice(if cookie.is_empty() { b"" } else { b"; " });
                cookie.extend_from_slice(value.as_bytes());
                continue;
            }
            _ => {}
        }
        headers.append(name.as_str(), value.as_bytes()).map_err(|_| "a control character in a field")?;
    }
    if !cookie.is_empty() {
        headers.append("cookie", &cookie).map_err(|_| "a control character in a cookie")?;
    }
    Ok(())
}

/// A request as the crate sends it.
pub fn request(head: &RequestHead) -> Result<Request<()>, Malformed> {
    let authority = if head.authority.is_empty() { "localhost" } else { &head.authority };
    let uri = Uri::builder()
        .scheme(head.scheme.name())
        .authority(authority)
        .path_and_query(&*head.target)
        .build()
        .map_err(|_| "the target makes no URI")?;
    let mut request = Request::new(());
    *request.method_mut() =
        Method::from_bytes(head.method.as_bytes()).map_err(|_| "the method is no token")?;
    *request.uri_mut() = uri;
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = fields(&head.headers);
    Ok(request)
}

/// A response as the crate sends it.
pub fn response(head: &ResponseHead) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(head.status).unwrap_or(StatusCode::BAD_GATEWAY);
    *response.version_mut() = http::Version::HTTP_2;
    *response.headers_mut() = fields(&head.headers);
    response
}

/// Fields as the crate sends them. A codec let in only what is one; `upgrade` is HTTP/1's.
pub fn fields(headers: &Headers) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers.iter().filter(|(name, _)| *name != "upgrade") {
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value))
        {
            map.append(name, value);
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(uri: &str, fields: &[(&str, &str)]) -> http::request::Parts {
        let mut builder = Request::builder().uri(uri);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(()).expect("a request").into_parts().0
    }

    fn read(uri: &str, fields: &[(&str, &str)]) -> Result<RequestHead, Refused> {
        let mut head = RequestHead::default();
        read_request(&parts(uri, fields), &mut head, &HttpLimits::default())?;
        Ok(head)
    }

    #[test]
    fn heads_go_both_ways() {
        let head =
            read("http://web:80/a?b", &[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")]).expect("fine");
        assert_eq!((&*head.authority, &*head.target), ("web:80", "/a?b"));
        assert_eq!(head.headers.text("cookie").as_deref(), Some("a=1; b=2"));
        let request = request(&head).expect("a request");
        assert_eq!(request.uri(), "http://web:80/a?b");
        assert_eq!(request.headers()["x"], "y");
        assert_eq!(read("/a", &[("host", "web")]).expect("fine").authority, "web");
    }

    #[test]
    fn what_rfc_9113_calls_malformed_is_refused() {
        let check = |uri: &str, fields: &[(&str, &str)], part: &str| {
            let error = read(uri, fields).expect_err("malformed");
            assert!(error.why.contains(part), "{error:?} should say {part}");
        };
        check("http://web/", &[("host", "other")], "disagree");
        check("/", &[], "neither");
        check("/", &[("host", "a"), ("host", "a")], "more than one");
        check("http://web/", &[("connection", "close")], "one connection");
        check("http://web/", &[("transfer-encoding", "chunked")], "one connection");
        check("http://web/", &[("te", "gzip")], "`te`");
        check("http://a@web/", &[], "no name");
        check("http://web/a%00b", &[], "no target");
        check("http://web/\u{e4}", &[], "no target");
        check("ftp://web/", &[], "scheme");
        let many: Vec<_> = (0..101).map(|_| ("cookie", "a=1")).collect();
        check("http://web/", &many, "too many");
    }
}
