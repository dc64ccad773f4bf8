//! Where keys are fetched from: an `http` or `https` URL with a host, without user information and without a fragment.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU16;
use std::sync::Arc;

/// The longest URL that is taken, in bytes.
const MAX_LENGTH: usize = 2048;

/// An absolute URL of a key server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyUrl {
    text: Arc<str>,
    is_https: bool,
    /// A name in lower case, or an address without brackets.
    host: Arc<str>,
    port: u16,
    /// Where path and query begin in `text`.
    target: usize,
}

/// Why a text is no such URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeyUrlError(&'static str);

impl KeyUrl {
    /// Reads one.
    pub fn new(text: &str) -> Result<Self, KeyUrlError> {
        if text.len() > MAX_LENGTH {
            return Err(KeyUrlError("longer than 2048 bytes"));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'\\' | b'"' | b'<' | b'>')) {
            return Err(KeyUrlError("a URL has neither spaces nor characters beyond ASCII"));
        }
        let lower = text.get(..8.min(text.len())).unwrap_or_default().to_ascii_lowercase();
        let (is_https, start) = if lower.starts_with("https://") {
            (true, 8)
        } else if lower.starts_with("http://") {
            (false, 7)
        } else {
            return Err(KeyUrlError("starts with neither `https://` nor `http://`"));
        };
        let rest = &text[start..];
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, target) = (&rest[..end], &rest[end..]);
        if authority.contains('@') {
            return Err(KeyUrlError("names a user: keys are public"));
        }
        if target.contains('#') {
            return Err(KeyUrlError("has a fragment: servers do not see it"));
        }
        let (host, port) = host_and_port(authority)?;
        let port = port.map_or(if is_https { 443 } else { 80 }, NonZeroU16::get);
        Ok(Self { text: text.into(), is_https, host, port, target: start + end })
    }

    /// The URL that a redirection of this one leads to: another whole one, or a path of the same server.
    pub fn redirected(&self, location: &str) -> Result<Self, KeyUrlError> {
        if location.starts_with('/') && !location.starts_with("//") {
            return Self::new(&format!("{}{location}", self.text.get(..self.target).unwrap_or_default()));
        }
        Self::new(location)
    }

    /// The whole URL.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it is asked over TLS.
    pub fn is_https(&self) -> bool {
        self.is_https
    }

    /// The name, in lower case, or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Host and port as `Host` has them: the port where it is not the scheme's own.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.to_string() };
        let default = if self.is_https { 443 } else { 80 };
        if self.port == default { host } else { format!("{host}:{}", self.port) }
    }

    /// Path and query.
    pub fn target(&self) -> String {
        let target = self.text.get(self.target..).unwrap_or_default();
        if target.starts_with('/') { target.to_owned() } else { format!("/{target}") }
    }
}

fn host_and_port(authority: &str) -> Result<(Arc<str>, Option<NonZeroU16>), KeyUrlError> {
    let no_host = KeyUrlError("names no host");
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or(no_host)?;
            let _: Ipv6Addr = host.parse().map_err(|_| no_host)?;
            (host, port)
        }
        None => {
            let end = authority.find(':').unwrap_or(authority.len());
            let host = &authority[..end];
            let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
            // What reads as a number to some resolvers and as a name to others (`0x7f.1`, `2130706433`) is neither.
            let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
            let is_number = last.starts_with(|c: char| c.is_ascii_digit()) && host.parse::<IpAddr>().is_err();
            if host.is_empty() || !host.bytes().all(is_name) || is_number {
                return Err(no_host);
            }
            (host, &authority[end..])
        }
    };
    let port = match port.strip_prefix(':') {
        Some(number) if !number.starts_with(['+', '0']) => {
            Some(number.parse().map_err(|_| KeyUrlError("the port is none"))?)
        }
        None if port.is_empty() => None,
        _ => return Err(KeyUrlError("the port is none")),
    };
    Ok((host.to_ascii_lowercase().into(), port))
}

impl fmt::Display for KeyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_have_one_reading() {
        let check = |text: &str, expected: Option<(&str, u16, &str, &str)>| {
            let read = KeyUrl::new(text).ok();
            let parts = read.as_ref().map(|url| (url.host(), url.port(), url.authority(), url.target()));
            let parts =
                parts.as_ref().map(|(host, port, authority, target)| (*host, *port, &**authority, &**target));
            assert_eq!(parts, expected, "{text}");
        };
        check(
            "https://Issuer.example/keys?a=b",
            Some(("issuer.example", 443, "issuer.example", "/keys?a=b")),
        );
        check("HTTP://issuer", Some(("issuer", 80, "issuer", "/")));
        check("http://10.0.0.1:8080?x", Some(("10.0.0.1", 8080, "10.0.0.1:8080", "/?x")));
        check("https://[fd00::1]:444/a", Some(("fd00::1", 444, "[fd00::1]:444", "/a")));
        for bad in [
            "",
            "https://",
            "https:///keys",
            "ftp://issuer/keys",
            "//issuer/keys",
            "https://user@issuer/keys",
            "https://issuer@evil/keys",
            "https://issuer\\@evil/keys",
            "https://issuer/keys#x",
            "https://issuer:0/",
            "https://issuer:65536/",
            "https://issuer:080/",
            "https://issuer:80:80/",
            "https://[fd00::1/",
            "https://[10.0.0.1]/",
            "https://0x7f.1/",
            "https://127.1/",
            "https://2130706433/",
            "https://issuer /",
            "https://issuer/\u{e4}",
            "https://is%73uer/",
        ] {
            check(bad, None);
        }
        check(&format!("https://issuer/{}", "a".repeat(MAX_LENGTH)), None);
    }

    #[test]
    fn redirections_lead_to_whole_urls_or_paths_of_the_same_server() {
        let from = KeyUrl::new("https://issuer:444/keys?a").expect("a URL");
        let check = |location: &str, expected: Option<&str>| {
            let to = from.redirected(location).ok();
            assert_eq!(to.as_ref().map(KeyUrl::as_str), expected, "{location}");
        };
        check("/other?b", Some("https://issuer:444/other?b"));
        check("http://evil/", Some("http://evil/"));
        check("//evil/", None);
        check("other", None);
        check("", None);
        check("file:///etc/passwd", None);
    }
}
