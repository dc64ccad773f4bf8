//! The wire between agents: HTTP/2 CONNECT inside mutual TLS 1.3 (HBONE). This file has what both ends agree on:
//! the request's form, the windows, and the answers' meaning.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use http::uri::Authority;
use http::{Method, Request, StatusCode};

/// Most streams that a tunnel carries at once. Waypoints and gateways of Istio allow as many.
pub const MAX_STREAMS: u32 = 100;
/// What one stream may have on its way to a program that does not read: the bound of a stalled stream's memory.
pub const STREAM_WINDOW: u32 = 1024 * 1024;
/// As many as all streams together, so that 99 stalled streams leave the hundredth its window.
pub const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MAX_STREAMS;
/// What all tunnels from other agents together may have on its way to programs that do not read. Each tunnel's window is
/// its share, `CONNECTION_WINDOW` at most and that of one stream at least.
pub const WINDOW_BUDGET: u32 = 1024 * 1024 * 1024;
/// Handshakes that a worker has under way with peers whom it does not know yet; more are refused.
pub const MAX_HANDSHAKES: usize = 1024;
/// Of these, those of one host.
pub const MAX_HANDSHAKES_OF_HOST: usize = 256;
/// Tunnels that one identity may have from one address with one worker.
pub const MAX_TUNNELS_OF_PEER: usize = 256;

/// Streams that one identity may have open through this host where it is a gateway between networks, over all workers
/// and addresses: nobody takes what is there for all members.
pub const MAX_STREAMS_OF_MEMBER: usize = 256;
/// The largest frame that we take.
pub const MAX_FRAME: u32 = 256 * 1024;
/// The most bytes of a request's header list.
pub const MAX_HEADER_LIST: u32 = 16 * 1024;
/// How often a quiet tunnel is asked whether it lives.
pub const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long the answer may take before the tunnel is given up.
pub const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Our own resets of streams that a peer may provoke before its connection is closed.
pub const MAX_RESETS: usize = 200;

/// The longest host name (RFC 1035, section 2.3.4).
const MAX_HOST: usize = 255;

/// Where a CONNECT asks to be connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The workload's address and port.
    Address(SocketAddr),
    /// A service's host name and port.
    Host(String, u16),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// Why a request is not an HBONE request; answered with 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadRequest(pub &'static str);

/// Reads the head of a request: a classic CONNECT (RFC 9113, section 8.5) whose authority has a port. Everything
/// else in the head is optional and decides nothing.
pub fn read_request<B>(request: &Request<B>) -> Result<Target, BadRequest> {
    if request.method() != Method::CONNECT {
        return Err(BadRequest("the method is not CONNECT"));
    }
    if request.extensions().get::<h2::ext::Protocol>().is_some() {
        return Err(BadRequest("an extended CONNECT"));
    }
    let uri = request.uri();
    if uri.scheme().is_some() || uri.path_and_query().is_some_and(|path| path.as_str() != "") {
        return Err(BadRequest("a CONNECT with a scheme or path"));
    }
    read_authority(uri.authority().ok_or(BadRequest("no authority"))?)
}

fn read_authority(authority: &Authority) -> Result<Target, BadRequest> {
    let text = authority.as_str();
    if text.contains('@') {
        return Err(BadRequest("an authority with user information"));
    }
    let target = match text.parse::<SocketAddr>() {
        Ok(address) => Target::Address(SocketAddr::new(address.ip().to_canonical(), address.port())),
        Err(_) => {
            let port = authority.port_u16().ok_or(BadRequest("an authority without a port"))?;
            Target::Host(authority.host().to_ascii_lowercase(), port)
        }
    };
    match target {
        Target::Address(address) if address.port() == 0 => Err(BadRequest("port 0")),
        Target::Host(_, 0) => Err(BadRequest("port 0")),
        Target::Host(host, _) if !is_host_name(&host) => Err(BadRequest("no host")),
        target => Ok(target),
    }
}

/// Labels of letters, digits, hyphens and underscores. The parser of URIs lets more through, such as brackets in the
/// middle, and what is no name is nobody's: it is refused here, before it is looked up and logged.
fn is_host_name(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let labels = text.strip_suffix('.').unwrap_or(text).split('.');
    text.len() <= MAX_HOST
        && labels.into_iter().all(|label| !label.is_empty() && label.bytes().all(is_allowed))
}

/// The request that asks the agent of `authority`'s host, or a gateway, for a connection to it.
pub fn connect_request(
    authority: SocketAddr,
    forwarded_for: Option<SocketAddr>,
) -> Result<Request<()>, http::Error> {
    let mut request = Request::builder().method(Method::CONNECT).uri(authority.to_string());
    if let Some(client) = forwarded_for {
        request = request.header(http::header::FORWARDED, format!("for=\"{client}\""));
    }
    request.body(())
}

/// Policy refused. HBONE says 401 where HTTP itself would say 403.
pub const DENIED: StatusCode = StatusCode::UNAUTHORIZED;
/// The authority is not registered, or its program does not answer.
pub const UNAVAILABLE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: &str, uri: &str, expected: Result<&str, &str>) {
        let Ok(request) = Request::builder().method(method).uri(uri).body(()) else {
            assert!(expected.is_err(), "{uri} does not even parse");
            return;
        };
        let read = read_request(&request);
        let read = read.as_ref().map(ToString::to_string);
        assert_eq!(read.as_deref().map_err(|error| error.0), expected, "{method} {uri}");
    }

    #[test]
    fn reads_addresses_and_hosts() {
        check("CONNECT", "10.0.0.1:8080", Ok("10.0.0.1:8080"));
        check("CONNECT", "[fd00::1]:8080", Ok("[fd00::1]:8080"));
        check("CONNECT", "[::ffff:10.0.0.1]:8080", Ok("10.0.0.1:8080"));
        check("CONNECT", "Orders.default.svc.cluster.local:80", Ok("orders.default.svc.cluster.local:80"));
    }

    #[test]
    fn refuses_what_is_no_connect() {
        check("GET", "http://10.0.0.1:8080/", Err("the method is not CONNECT"));
        check("CONNECT", "10.0.0.1", Err("an authority without a port"));
        check("CONNECT", "10.0.0.1:0", Err("port 0"));
        check("CONNECT", "10.0.0.1:99999", Err("an authority without a port"));
        check("CONNECT", "user@10.0.0.1:80", Err("an authority with user information"));
        check("CONNECT", "http://10.0.0.1:80/x", Err("a CONNECT with a scheme or path"));
        check("CONNECT", "[fd00::zz]:80", Err("no host"));
    }

    #[test]
    fn refuses_what_is_no_host() {
        for host in [
            ")[x:ffff:10.0.0.1]",
            "a..b",
            ".",
            ".a",
            "a%20b",
            "a;b",
            "a*",
            "~",
            "$x",
            "a'b",
            &"a".repeat(256),
        ] {
            check("CONNECT", &format!("{host}:80"), Err("no host"));
        }
        for host in ["a", "a_b-c.d", "a.b."] {
            check("CONNECT", &format!("{host}:80"), Ok(&format!("{host}:80")));
        }
    }

    #[test]
    fn writes_what_it_reads() {
        let authority = "[fd00::1]:8080".parse().expect("an address");
        let request = connect_request(authority, "10.0.0.9:1234".parse().ok()).expect("a request");
        assert_eq!(read_request(&request), Ok(Target::Address(authority)));
    }
}
