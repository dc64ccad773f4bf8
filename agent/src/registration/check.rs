//! How a service of this host is looked at, as its administrator wrote it: the table `check` of a registration. What is
//! looked at is at the registered delivery address, or beside it. Checks stand in registrations of this host and come
//! from nowhere else: no control server can have a host run a command.

use std::net::SocketAddr;
use std::time::Duration;

use baremesh_model::health::{Schedule, Thresholds};
use baremesh_model::service::Protocol;
use baremesh_registry::format::duration;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::LocalPort;
use crate::attribution::UnitName;

/// The form in files.
mod written;

pub use written::{
    Scheme, WrittenCheck, WrittenExec, WrittenGrpc, WrittenHeader, WrittenHttpGet, WrittenPortName,
    WrittenTcpSocket,
};

/// The shortest period.
pub const MIN_PERIOD: Duration = Duration::from_millis(100);
/// The longest period, first delay and time to live.
pub const MAX_PERIOD: Duration = Duration::from_secs(24 * 3600);
/// The shortest time that a look may take.
pub const MIN_TIMEOUT: Duration = Duration::from_millis(10);
/// The longest time that a look may take.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(300);
/// The shortest time to live.
pub const MIN_TTL: Duration = Duration::from_secs(1);
/// The most results in a row that can be asked for.
pub const MAX_THRESHOLD: u32 = 100;
/// The longest path, and the longest name of a gRPC service, in bytes.
pub const MAX_PATH: usize = 2048;
/// The most headers.
pub const MAX_HEADERS: usize = 32;
/// The most words of a command.
pub const MAX_WORDS: usize = 64;
/// The longest word of a command, in bytes.
pub const MAX_WORD: usize = 4096;

/// What is wrong with a registration, and at which of its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key's path, where one key is at fault.
    pub key: Option<&'static [&'static str]>,
    /// What is wrong with it, and what to do.
    pub text: String,
}

impl From<String> for Fault {
    fn from(text: String) -> Self {
        Self { key: None, text }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.key {
            Some(key) => write!(f, "{}: {}", key.join("."), self.text),
            None => f.write_str(&self.text),
        }
    }
}

fn at(key: &'static [&'static str], text: impl Into<String>) -> Fault {
    Fault { key: Some(key), text: text.into() }
}

/// How a service is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What is done.
    pub probe: Probe,
    /// When.
    pub schedule: Schedule,
    /// How many results decide.
    pub thresholds: Thresholds,
}

/// What is done to look at a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A GET that is to be answered with 200 to 399.
    HttpGet(HttpGet),
    /// A connection that is to be taken.
    TcpSocket {
        /// Where to.
        at: SocketAddr,
    },
    /// grpc.health.v1.Health/Check, which is to answer SERVING.
    Grpc {
        /// Where to.
        at: SocketAddr,
        /// About which service; empty is the server as a whole.
        service: String,
    },
    /// A command that is to end with 0.
    Exec(Exec),
    /// The service says for itself that it is well, at least this often.
    Ttl(Duration),
    /// A systemd unit that is to be active.
    Unit(UnitName),
}

/// A GET.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpGet {
    /// Where to.
    pub at: SocketAddr,
    /// Whether inside TLS. Whose certificate is shown does not matter, as in Kubernetes.
    pub scheme: Scheme,
    /// HTTP/2 with prior knowledge, where the port was registered as speaking that; HTTP/1.1 otherwise.
    pub http2: bool,
    /// What is asked for.
    pub path: PathAndQuery,
    /// Headers besides the usual ones.
    pub headers: HeaderMap,
}

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// The program and its arguments. No shell reads them.
    pub command: Vec<String>,
    /// The user that the service is registered with.
    pub user: Option<u32>,
}

impl Probe {
    /// The kind's name in files, and in metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::HttpGet(_) => "httpGet",
            Self::TcpSocket { .. } => "tcpSocket",
            Self::Grpc { .. } => "grpc",
            Self::Exec(_) => "exec",
            Self::Ttl(_) => "ttl",
            Self::Unit(_) => "unit",
        }
    }
}

impl Check {
    /// What was written, for a service with these ports and this user.
    pub fn of(written: &WrittenCheck, ports: &[LocalPort], user: Option<u32>) -> Result<Self, Fault> {
        let probe = probe(written, ports, user)?;
        if let Probe::Ttl(_) = probe {
            let others = [
                (written.initial_delay.is_some(), "initialDelay"),
                (written.timeout.is_some(), "timeout"),
                (written.period.is_some(), "period"),
                (written.success_threshold.is_some(), "successThreshold"),
                (written.failure_threshold.is_some(), "failureThreshold"),
            ];
            if let Some((_, key)) = others.iter().find(|(is_set, _)| *is_set) {
                let text = format!(
                    "`{key}` means nothing with `ttl`: the service's word holds at once; take it out"
                );
                return Err(at(&["check", "ttl"], text));
            }
        }
        let default = Schedule::default();
        let time = |text: &Option<String>, key, bounds, default| match text {
            Some(text) => time(text, key, bounds),
            None => Ok(default),
        };
        let number = |number: Option<u32>, key, default| match number {
            Some(number) if (1..=MAX_THRESHOLD).contains(&number) => Ok(number),
            Some(number) => {
                Err(at(key, format!("{number} is no number of results: write 1 to {MAX_THRESHOLD}")))
            }
            None => Ok(default),
        };
        let usual = Thresholds::default();
        Ok(Self {
            probe,
            schedule: Schedule {
                initial_delay: time(
                    &written.initial_delay,
                    &["check", "initialDelay"],
                    (Duration::ZERO, MAX_PERIOD),
                    default.initial_delay,
                )?,
                timeout: time(
                    &written.timeout,
                    &["check", "timeout"],
                    (MIN_TIMEOUT, MAX_TIMEOUT),
                    default.timeout,
                )?,
                period: time(
                    &written.period,
                    &["check", "period"],
                    (MIN_PERIOD, MAX_PERIOD),
                    default.period,
                )?,
            },
            thresholds: Thresholds {
                success: number(written.success_threshold, &["check", "successThreshold"], usual.success)?,
                failure: number(written.failure_threshold, &["check", "failureThreshold"], usual.failure)?,
            },
        })
    }
}

fn probe(written: &WrittenCheck, ports: &[LocalPort], user: Option<u32>) -> Result<Probe, Fault> {
    let WrittenCheck { http_get, tcp_socket, grpc, exec, ttl, unit, .. } = written;
    let probes = [
        http_get.as_ref().map(|get| http(get, ports)),
        tcp_socket.as_ref().map(|tcp| {
            let (at, _) = place(tcp.port.as_ref(), ports, &["check", "tcpSocket", "port"])?;
            Ok(Probe::TcpSocket { at })
        }),
        grpc.as_ref().map(|grpc| {
            let (at, _) = place(grpc.port.as_ref(), ports, &["check", "grpc", "port"])?;
            let service = short(&grpc.service, MAX_PATH, &["check", "grpc", "service"])?.to_owned();
            Ok(Probe::Grpc { at, service })
        }),
        exec.as_ref().map(|exec| command(exec, user)),
        ttl.as_ref().map(|ttl| Ok(Probe::Ttl(time(ttl, &["check", "ttl"], (MIN_TTL, MAX_PERIOD))?))),
        unit.as_ref().map(|unit| {
            let name = UnitName::new(unit).map_err(|error| at(&["check", "unit"], error.to_string()))?;
            Ok(Probe::Unit(name))
        }),
    ];
    let mut probes = probes.into_iter().flatten();
    match (probes.next(), probes.next()) {
        (Some(only), None) => only,
        (None, _) => Err(at(
            &["check"],
            "says nothing to look at: write one of httpGet, tcpSocket, grpc, exec, ttl, unit",
        )),
        (Some(_), Some(_)) => Err(at(
            &["check"],
            "says several things to look at: leave one of httpGet, tcpSocket, grpc, exec, ttl, unit, or let one `exec` \
             do all",
        )),
    }
}

fn http(written: &WrittenHttpGet, ports: &[LocalPort]) -> Result<Probe, Fault> {
    let (place, protocol) = place(written.port.as_ref(), ports, &["check", "httpGet", "port"])?;
    let key: &[&str] = &["check", "httpGet", "path"];
    let path = written.path.as_deref().unwrap_or("/");
    if !path.starts_with('/') {
        return Err(at(
            key,
            format!("`{path}` is no path: write one that begins with `/`, such as `/healthz`"),
        ));
    }
    let path = short(path, MAX_PATH, key)?;
    let path = path.parse().map_err(|error| at(key, format!("`{path}` is no path: {error}")))?;
    let key: &[&str] = &["check", "httpGet", "httpHeaders"];
    if written.http_headers.len() > MAX_HEADERS {
        return Err(at(key, format!("more than {MAX_HEADERS} headers: take some out")));
    }
    let mut headers = HeaderMap::new();
    for header in &written.http_headers {
        let name: HeaderName =
            header.name.parse().map_err(|_| at(key, format!("`{}` is no header's name", header.name)))?;
        if HOP_BY_HOP.contains(&name.as_str()) {
            return Err(at(
                key,
                format!("`{name}` is about the connection, which is the agent's: take it out"),
            ));
        }
        let value: HeaderValue = short(&header.value, MAX_PATH, key)?
            .parse()
            .map_err(|_| at(key, format!("the value of `{name}` is none that a header can have")))?;
        headers.append(name, value);
    }
    let http2 = matches!(protocol, Some(Protocol::Http2 | Protocol::Grpc));
    Ok(Probe::HttpGet(HttpGet {
        at: place,
        scheme: written.scheme.unwrap_or_default(),
        http2,
        path,
        headers,
    }))
}

/// What the agent alone says of its own connection.
const HOP_BY_HOP: [&str; 6] =
    ["connection", "content-length", "expect", "te", "transfer-encoding", "upgrade"];

/// Where a port is looked at: a registered one where it is delivered; another one beside the first.
fn place(
    named: Option<&WrittenPortName>,
    ports: &[LocalPort],
    key: &'static [&'static str],
) -> Result<(SocketAddr, Option<Protocol>), Fault> {
    let of = |port: &LocalPort| (port.looked_at(), Some(port.protocol));
    let Some(first) = ports.first() else { return Err(at(key, "the service has no port")) };
    match named {
        None => Ok(of(first)),
        Some(WrittenPortName::Name(name)) => {
            let found = ports.iter().find(|port| port.name.as_deref() == Some(name));
            found.map(of).ok_or_else(|| {
                at(
                    key,
                    format!(
                        "the service has no port named `{name}`: write its number, or name it in `ports`"
                    ),
                )
            })
        }
        Some(WrittenPortName::Number(number)) => {
            let by_port = ports.iter().find(|port| port.port == *number);
            let registered = by_port.or_else(|| ports.iter().find(|port| port.target_port == *number));
            if let Some(port) = registered {
                return Ok(of(port));
            }
            if super::file::AGENT_PORTS.contains(&number.get()) {
                return Err(at(key, format!("port {number} is the agent's own: write one of the service's")));
            }
            Ok((SocketAddr::new(first.looked_at().ip(), number.get()), None))
        }
    }
}

fn command(written: &WrittenExec, user: Option<u32>) -> Result<Probe, Fault> {
    let key: &[&str] = &["check", "exec", "command"];
    let words = &written.command;
    let program = words.first().map(String::as_str).unwrap_or_default();
    if !program.starts_with('/') {
        let text =
            "its first word is the program, with its whole path: write [\"/usr/bin/pg_isready\", \"-q\"]";
        return Err(at(key, text));
    }
    if words.len() > MAX_WORDS {
        return Err(at(key, format!("more than {MAX_WORDS} words: put them into a script")));
    }
    for word in words {
        if word.contains('\0') {
            return Err(at(key, "a word has a zero byte in it, which no program can be given"));
        }
        short(word, MAX_WORD, key)?;
    }
    Ok(Probe::Exec(Exec { command: words.clone(), user }))
}

fn short<'a>(text: &'a str, limit: usize, key: &'static [&'static str]) -> Result<&'a str, Fault> {
    let long = || at(key, format!("{} bytes, and the limit is {limit}", text.len()));
    if text.len() > limit { Err(long()) } else { Ok(text) }
}

fn time(
    text: &str,
    key: &'static [&'static str],
    (least, most): (Duration, Duration),
) -> Result<Duration, Fault> {
    let read = duration::parse(text).ok_or_else(|| {
        at(key, format!("`{text}` is no length of time: write such as `10s`, `0.5s` or `1m30s`"))
    })?;
    if read < least || read > most {
        let (least, most) = (duration::text(least), duration::text(most));
        return Err(at(key, format!("`{text}` is not within {least} and {most}: write one that is")));
    }
    Ok(read)
}

/// The line of `text` where a key stands, or the deepest of its tables that is there.
pub(super) fn line_of(text: &str, key: &[&str]) -> Option<usize> {
    let document = toml::de::DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let mut start = None;
    for part in key {
        let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref() == part) else { break };
        start = Some(name.span().start);
        match value.get_ref() {
            toml::de::DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    let before = text.get(..start?)?;
    Some(before.matches('\n').count() + 1)
}

#[cfg(test)]
mod tests;
