//! Where Consul is, and with which credentials it is asked: the table `[consul]` of `agent.toml` and of `control.toml`.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;

/// Addresses that are tried, at most.
const MAX_ADDRESSES: usize = 16;
/// The longest prefix: a key of Consul's may have 512 bytes, and what stands below the prefix takes up to 256.
const MAX_PREFIX: usize = 128;
/// The prefix of the mesh's keys unless stated.
const DEFAULT_PREFIX: &str = "baremesh/";

/// The table as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSettings {
    addresses: Vec<String>,
    agent: Option<String>,
    token_file: Option<PathBuf>,
    ca_certificates: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    server_name: Option<String>,
    datacenter: Option<String>,
    prefix: String,
    allow_plaintext: bool,
}

impl Default for RawSettings {
    fn default() -> Self {
        Self {
            addresses: vec!["http://127.0.0.1:8500".to_owned()],
            agent: None,
            token_file: None,
            ca_certificates: None,
            certificate: None,
            key: None,
            server_name: None,
            datacenter: None,
            prefix: DEFAULT_PREFIX.to_owned(),
            allow_plaintext: false,
        }
    }
}

/// How one of Consul's addresses is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// In plaintext.
    Http,
    /// Over TLS.
    Https,
}

/// One of Consul's addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// How it is spoken to.
    pub scheme: Scheme,
    /// A name or an IP address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Address {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is no address of Consul: write it as http://127.0.0.1:8500 or https://consul.example:8501"
            )
        };
        let (scheme, rest) = match text.split_once("://").ok_or_else(wrong)? {
            ("http", rest) => (Scheme::Http, rest),
            ("https", rest) => (Scheme::Https, rest),
            _ => return Err(wrong()),
        };
        let (host, port) = rest.trim_end_matches('/').rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        let host = match host.strip_prefix('[') {
            Some(v6) => v6.strip_suffix(']').filter(|v6| v6.parse::<IpAddr>().is_ok()).ok_or_else(wrong)?,
            None => host,
        };
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:".contains(&b);
        if host.is_empty() || !host.bytes().all(is_plain) {
            return Err(wrong());
        }
        Ok(Self { scheme, host: host.to_owned(), port })
    }

    /// As it stands in the `host` field of a request.
    pub(super) fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.scheme == Scheme::Https { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

/// Where Consul is, and with which credentials it is asked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawSettings")]
pub struct Settings {
    /// At least one; the one that answered last is asked first.
    pub addresses: Vec<Address>,
    /// The Consul agent of this host, which its services are registered at; the first of `addresses` unless stated.
    pub agent: Address,
    /// The file of the ACL token. Read for each request, so that a new token is used at once.
    pub token_file: Option<PathBuf>,
    /// The authorities that Consul's certificate is verified against, PEM.
    pub ca_certificates: Option<PathBuf>,
    /// The client certificate with its chain, and its key; PEM.
    pub client: Option<(PathBuf, PathBuf)>,
    /// The name that Consul's certificate must have, where it is not the address's.
    pub server_name: Option<String>,
    /// Another datacenter than the asked Consul agent's own.
    pub datacenter: Option<String>,
    /// What the mesh's keys begin with, with a slash at the end.
    pub prefix: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self::try_from(RawSettings::default()).expect("the defaults are what they ask for")
    }
}

impl TryFrom<RawSettings> for Settings {
    type Error = String;

    fn try_from(raw: RawSettings) -> Result<Self, String> {
        let addresses =
            raw.addresses.iter().map(|text| Address::parse(text)).collect::<Result<Vec<_>, _>>()?;
        if addresses.is_empty() || addresses.len() > MAX_ADDRESSES {
            return Err(format!("addresses: between one and {MAX_ADDRESSES} of Consul's are needed"));
        }
        let agent = raw.agent.as_deref().map(Address::parse).transpose()?;
        let agent = agent.unwrap_or_else(|| addresses[0].clone());
        let all = || addresses.iter().chain([&agent]);
        let is_https = all().any(|address| address.scheme == Scheme::Https);
        if is_https && raw.ca_certificates.is_none() {
            return Err(
                "ca_certificates: name the PEM file of the authority of Consul's certificates, which is \
                 nearly always Consul's own"
                    .to_owned(),
            );
        }
        let in_plaintext = |a: &&Address| a.scheme == Scheme::Http && !a.is_loopback();
        if !raw.allow_plaintext
            && let Some(address) = all().find(in_plaintext)
        {
            return Err(format!(
                "{address}: who is on the way could read the token and write policy: use https, or a Consul agent on \
                 127.0.0.1, or say allow_plaintext = true where the network itself is trusted"
            ));
        }
        let client = match (raw.certificate, raw.key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err("certificate and key go together".to_owned()),
        };
        if let Some(datacenter) = &raw.datacenter
            && !is_datacenter(datacenter)
        {
            return Err(format!("datacenter: `{datacenter}` is no name of a datacenter"));
        }
        Ok(Self {
            addresses,
            agent,
            token_file: raw.token_file,
            ca_certificates: raw.ca_certificates,
            client,
            server_name: raw.server_name,
            datacenter: raw.datacenter,
            prefix: prefix(&raw.prefix)?,
        })
    }
}

impl Settings {
    /// To ask this host's Consul agent alone, of what is its own.
    pub fn of_agent(&self) -> Self {
        Self { addresses: vec![self.agent.clone()], datacenter: None, ..self.clone() }
    }
}

/// Consul: letters, digits, hyphens and underscores.
fn is_datacenter(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

fn prefix(text: &str) -> Result<String, String> {
    let bare = text.trim_matches('/');
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-._/".contains(&b);
    if bare.is_empty() || bare.len() > MAX_PREFIX || !bare.bytes().all(is_plain) || bare.contains("//") {
        return Err(format!(
            "prefix: `{text}` is none: use up to {MAX_PREFIX} letters, digits, `-`, `.`, `_` and `/`"
        ));
    }
    Ok(format!("{bare}/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_an_operator_writes_and_refuses_what_would_be_unsafe() {
        let check = |text: &str, expected: Result<&str, &str>| {
            let read = toml::from_str::<Settings>(text);
            match (read, expected) {
                (Ok(settings), Ok(shown)) => {
                    let all: Vec<_> = settings.addresses.iter().map(ToString::to_string).collect();
                    assert_eq!(format!("{} {}", all.join(","), settings.prefix), shown, "{text}");
                }
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{text}: {error}"),
                (read, _) => panic!("{text}: {read:?}"),
            }
        };
        check("", Ok("http://127.0.0.1:8500 baremesh/"));
        check("prefix = \"/a/b\"", Ok("http://127.0.0.1:8500 a/b/"));
        check(
            "addresses = [\"https://[fd00::1]:8501/\", \"http://[::1]:8500\"]\nca_certificates = \"ca.pem\"",
            Ok("https://[fd00::1]:8501,http://[::1]:8500 baremesh/"),
        );
        check(
            "addresses = [\"http://10.0.0.1:8500\"]\nallow_plaintext = true",
            Ok("http://10.0.0.1:8500 baremesh/"),
        );
        check("addresses = [\"http://10.0.0.1:8500\"]", Err("allow_plaintext"));
        check("addresses = [\"https://c:8501\"]", Err("ca_certificates"));
        check("addresses = []", Err("between one and"));
        check("addresses = [\"127.0.0.1:8500\"]", Err("write it as"));
        check("addresses = [\"http://[x]:1\"]", Err("write it as"));
        check("addresses = [\"http://127.0.0.1:0\"]", Err("write it as"));
        check("certificate = \"c.pem\"", Err("go together"));
        check("datacenter = \"dc 1\"", Err("datacenter"));
        check("prefix = \"a b\"", Err("prefix"));
        check("prefix = \"/\"", Err("prefix"));
        check("adresses = []", Err("adresses"));
    }
}
