//! Through an HTTP proxy: what a connection's first bytes ask the endpoint for (RFC 9110, section 9.3.6).

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU16;
use std::sync::Arc;

use super::HostPattern;

/// Where an HTTP proxy, which the endpoint is, is asked to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    host: Arc<str>,
    port: NonZeroU16,
}

/// A text is neither a host name nor an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither a host name nor an address")]
pub struct NotATarget(String);

impl Tunnel {
    /// To a host, by name or address, and port.
    pub fn new(host: &str, port: NonZeroU16) -> Result<Self, NotATarget> {
        let name =
            || HostPattern::new(host).ok().filter(|name| name.suffix().is_none() && name.as_str() != "*");
        let host = match host.parse::<IpAddr>() {
            Ok(address) => address.to_string().into(),
            Err(_) => name().ok_or_else(|| NotATarget(host.to_owned()))?.as_str().into(),
        };
        Ok(Self { host, port })
    }

    /// The host, by name or address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> NonZeroU16 {
        self.port
    }

    /// The request, as HTTP/1.1. The answer, if it is 2xx, is followed by the target's own bytes.
    pub fn request(&self) -> Vec<u8> {
        format!("CONNECT {self} HTTP/1.1\r\nHost: {self}\r\n\r\n").into_bytes()
    }
}

impl fmt::Display for Tunnel {
    /// As an authority: `host:port`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.parse::<Ipv6Addr>() {
            Ok(address) => write!(f, "[{address}]:{}", self.port),
            Err(_) => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_asked_for_a_host_and_a_port_and_for_nothing_else() {
        let port = NonZeroU16::new(443).expect("not zero");
        let check = |host: &str, expected: Option<&str>| {
            let asked = Tunnel::new(host, port).ok().map(|tunnel| tunnel.request());
            let expected =
                expected.map(|to| format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").into_bytes());
            assert_eq!(asked, expected, "{host}");
        };
        check("api.example.com", Some("api.example.com:443"));
        check("API.example.com", Some("api.example.com:443"));
        check("10.0.0.7", Some("10.0.0.7:443"));
        check("2001:DB8::1", Some("[2001:db8::1]:443"));
        for wrong in ["", "*", "*.example.com", "a b", "a\r\nX: y", "[::1]", "a:80", "a/b"] {
            check(wrong, None);
        }
    }
}
