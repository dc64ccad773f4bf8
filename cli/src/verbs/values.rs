//! How values on the command line are read. A message says what was expected; clap adds which option it was for.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use baremesh_model::mesh::Kind;
use baremesh_registry::resource::KINDS;
use ipnet::IpNet;

/// The longest duration that can be written: a century is a mistake, and sums with it must not overflow.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Reads `90`, `90s`, `15m`, `12h`, `7d`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let fault = || format!("`{text}` is no duration: write `90s`, `15m`, `12h` or `7d`");
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = match unit {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(fault()),
    };
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    seconds.map(Duration::from_secs).filter(|duration| *duration <= LONGEST).ok_or_else(fault)
}

/// An address, or a block of them.
pub fn block(text: &str) -> Result<IpNet, String> {
    let single = |_| text.parse::<IpAddr>().map(IpNet::from);
    text.parse().or_else(single).map_err(|_| format!("`{text}` is neither an address nor a CIDR block"))
}

/// A port as callers name it, and the one that the program listens on where it is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortPair {
    /// The port that callers name.
    pub port: NonZeroU16,
    /// The port that the program listens on.
    pub target: Option<NonZeroU16>,
}

/// Reads `80` or `80:8080`.
pub fn port_pair(text: &str) -> Result<PortPair, String> {
    let read = |text: &str| {
        text.parse()
            .map_err(|_| format!("`{text}` is no port: write 1 to 65535, or PORT:TARGET such as 80:8080"))
    };
    match text.split_once(':') {
        Some((port, target)) => Ok(PortPair { port: read(port)?, target: Some(read(target)?) }),
        None => Ok(PortPair { port: read(text)?, target: None }),
    }
}

/// Reads `key=value`; the value may be empty and may hold `=`.
pub fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is no label: write KEY=VALUE, such as version=v2")),
    }
}

/// Reads `name: value`, as a header stands in a request.
pub fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err(format!("`{text}` is no header: write 'NAME: VALUE', such as 'end-user: jason'")),
    }
}

/// Reads a kind's name in any case, in the plural too.
pub fn kind(text: &str) -> Result<Kind, String> {
    let lower = text.to_lowercase();
    let found = KINDS.into_iter().find(|kind| {
        let name = kind.name().to_lowercase();
        let plural = match name.strip_suffix('y') {
            Some(stem) => format!("{stem}ies"),
            None => format!("{name}s"),
        };
        lower == name || lower == plural
    });
    found.ok_or_else(|| {
        let names: Vec<_> = KINDS.iter().map(|kind| kind.name()).collect();
        format!("`{text}` is no kind of resource: there are {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_durations() {
        for (text, seconds) in
            [("90", 90), ("90s", 90), ("15m", 900), ("2min", 120), ("12h", 43_200), ("7d", 604_800)]
        {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "s", "1w", "-1s", "1.5h", "1 h", "18446744073709551615d", "99999999999d", "٣s"] {
            let error = duration(text).expect_err(text);
            assert!(error.contains("15m"), "{error}");
        }
    }

    #[test]
    fn reads_ports() {
        let check = |text: &str, expected: Option<(u16, Option<u16>)>| {
            let found = port_pair(text).ok().map(|pair| (pair.port.get(), pair.target.map(NonZeroU16::get)));
            assert_eq!(found, expected, "{text}");
        };
        check("80", Some((80, None)));
        check("80:8080", Some((80, Some(8080))));
        for bad in ["", "0", "80:", ":80", "80:0", "65536", "80:8080:1", "http", "-1"] {
            check(bad, None);
        }
    }

    #[test]
    fn reads_labels() {
        let pair = |key: &str, value: &str| Ok((key.to_owned(), value.to_owned()));
        assert_eq!(label("version=v2"), pair("version", "v2"));
        assert_eq!(label("a="), pair("a", ""));
        assert_eq!(label("a=b=c"), pair("a", "b=c"));
        assert!(label("a").is_err() && label("=b").is_err());
    }

    #[test]
    fn reads_headers() {
        let pair = |name: &str, value: &str| Ok((name.to_owned(), value.to_owned()));
        assert_eq!(header("end-user: jason"), pair("end-user", "jason"));
        assert_eq!(header("Host:a:80"), pair("Host", "a:80"));
        assert_eq!(header("x:"), pair("x", ""));
        assert!(header("end-user=jason").is_err() && header(": a").is_err() && header("").is_err());
    }

    #[test]
    fn reads_kinds_as_people_write_them() {
        for (text, expected) in [
            ("Service", Kind::Service),
            ("services", Kind::Service),
            ("authorizationpolicies", Kind::AuthorizationPolicy),
            ("WorkloadEntries", Kind::WorkloadEntry),
            ("peerauthentication", Kind::PeerAuthentication),
            ("virtualservices", Kind::VirtualService),
        ] {
            assert_eq!(kind(text), Ok(expected), "{text}");
        }
        assert!(kind("Pod").expect_err("no kind").contains("HostGrant"));
    }
}
