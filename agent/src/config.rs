//! The agent's configuration file, `/etc/baremesh/agent.toml`. Everything in it has a default: on a host that has
//! joined a mesh the file may be missing.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use baremesh_model::name::Label;
use serde::Deserialize;

use crate::capture::Outbound;
use crate::proxy::{Limits, Ports};

/// The directories that the agent and the control server keep their files in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directories {
    /// Configuration: `agent.toml`, `services/`, `registry/`.
    pub config: PathBuf,
    /// State that lasts: keys, certificates, the last good state, `control.db`.
    pub state: PathBuf,
    /// State of this run: sockets, the rules for a gone agent.
    pub runtime: PathBuf,
}

impl Default for Directories {
    fn default() -> Self {
        Self {
            config: "/etc/baremesh".into(),
            state: "/var/lib/baremesh".into(),
            runtime: "/run/baremesh".into(),
        }
    }
}

impl Directories {
    /// Registrations of this host's services.
    pub fn services(&self) -> PathBuf {
        self.config.join("services")
    }

    /// Resource files.
    pub fn registry(&self) -> PathBuf {
        self.config.join("registry")
    }

    /// The certificate authority's keys, on the control host, or on a host that is its own mesh.
    pub fn authority(&self) -> PathBuf {
        self.state.join("ca")
    }

    /// What joining left: the node credential and what the host trusts.
    pub fn node(&self) -> PathBuf {
        self.state.join("node")
    }

    /// The agent's administration socket.
    pub fn agent_socket(&self) -> PathBuf {
        self.runtime.join("agent.sock")
    }

    /// The control server's administration socket.
    pub fn control_socket(&self) -> PathBuf {
        self.runtime.join("control.sock")
    }
}

/// Where resources and endpoints come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceConfig {
    /// The control server that the host has joined.
    Control,
    /// A directory of resource files on this host.
    Files(PathBuf),
}

/// How names of the mesh are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsMode {
    /// Not at all.
    Off,
    /// To whoever asks 127.0.0.1 or ::1 on the agent's DNS port.
    Nameserver,
    /// To every program of the host: port 53 is captured.
    Capture,
}

/// Where access log lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLogTarget {
    /// Nowhere.
    Off,
    /// The standard output, which the journal takes.
    Stdout,
    /// A file, appended to.
    File(PathBuf),
}

/// What the agent is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentConfig {
    /// The host's name in the mesh; the one that it joined under unless stated.
    pub host: Option<Label>,
    /// Addresses at which other hosts reach this one; the first is preferred. Found out unless stated.
    pub addresses: Vec<IpAddr>,
    /// Where resources come from.
    pub source: SourceConfig,
    /// Directories.
    pub directories: Directories,
    /// Ports of the data path.
    pub ports: Ports,
    /// Where metrics are served.
    pub metrics: SocketAddr,
    /// Where readiness is served.
    pub ready: SocketAddr,
    /// Threads of the data path.
    pub workers: usize,
    /// Limits of the data path.
    pub limits: Limits,
    /// Whether the rules are put in place; without them connections reach the agent by other means, or not.
    pub capture: bool,
    /// How much of what leaves the host is captured.
    pub outbound: Outbound,
    /// Ports of sshd besides 22.
    pub ssh_ports: BTreeSet<u16>,
    /// DNS.
    pub dns: DnsMode,
    /// The port of the DNS server.
    pub dns_port: u16,
    /// Name servers for all other names; `/etc/resolv.conf`'s unless stated.
    pub upstreams: Vec<SocketAddr>,
    /// The access log.
    pub access_log: AccessLogTarget,
    /// How long open connections may go on when the agent stops.
    pub drain: Duration,
}

/// Why a configuration file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}: {fault}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line where it stands.
        fault: String,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawConfig {
    host: Option<String>,
    addresses: Vec<IpAddr>,
    registry: RawRegistry,
    ports: RawPorts,
    proxy: RawProxy,
    capture: RawCapture,
    dns: RawDns,
    telemetry: RawTelemetry,
    drain_seconds: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRegistry {
    source: RawSource,
    directory: Option<PathBuf>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawSource {
    #[default]
    Control,
    Files,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawPorts {
    outbound: Option<u16>,
    inbound: Option<u16>,
    hbone: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawProxy {
    workers: Option<usize>,
    connect_timeout_seconds: Option<u64>,
    handshake_timeout_seconds: Option<u64>,
    idle_timeout_seconds: Option<u64>,
    max_connections: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCapture {
    enabled: Option<bool>,
    outbound: RawOutbound,
    ssh_ports: BTreeSet<u16>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawOutbound {
    #[default]
    Registered,
    All,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawDns {
    mode: RawDnsMode,
    port: Option<u16>,
    upstreams: Vec<SocketAddr>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawDnsMode {
    Off,
    Nameserver,
    #[default]
    Capture,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTelemetry {
    metrics: Option<SocketAddr>,
    ready: Option<SocketAddr>,
    access_log: Option<String>,
}

impl AgentConfig {
    /// Reads `agent.toml` of the configuration directory; a missing file means the defaults.
    pub fn load(directories: Directories) -> Result<Self, ConfigError> {
        let path = directories.config.join("agent.toml");
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text, directories, &path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::parse("", directories, &path),
            Err(source) => Err(ConfigError::File { path, source }),
        }
    }

    /// Reads the text of a configuration file; `path` stands in errors.
    pub fn parse(text: &str, directories: Directories, path: &Path) -> Result<Self, ConfigError> {
        let content = |fault: String| ConfigError::Content { path: path.to_owned(), fault };
        let raw: RawConfig = toml::from_str(text).map_err(|error| content(error.to_string()))?;
        let host = raw.host.as_deref().map(Label::new).transpose();
        let (ports, limits) = (Ports::default(), Limits::default());
        let seconds = |given: Option<u64>, default: Duration| given.map_or(default, Duration::from_secs);
        let any = |port: u16| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
        let source = match raw.registry.source {
            RawSource::Control => SourceConfig::Control,
            RawSource::Files => {
                SourceConfig::Files(raw.registry.directory.unwrap_or_else(|| directories.registry()))
            }
        };
        let config = Self {
            host: host.map_err(|error| content(format!("host: {error}")))?,
            addresses: raw.addresses,
            source,
            ports: Ports {
                outbound: raw.ports.outbound.unwrap_or(ports.outbound),
                inbound: raw.ports.inbound.unwrap_or(ports.inbound),
                hbone: raw.ports.hbone.unwrap_or(ports.hbone),
            },
            metrics: raw.telemetry.metrics.unwrap_or(any(15020)),
            ready: raw.telemetry.ready.unwrap_or(any(15021)),
            workers: raw.proxy.workers.unwrap_or_else(default_workers).max(1),
            limits: Limits {
                connect_timeout: seconds(raw.proxy.connect_timeout_seconds, limits.connect_timeout),
                handshake_timeout: seconds(raw.proxy.handshake_timeout_seconds, limits.handshake_timeout),
                idle_timeout: seconds(raw.proxy.idle_timeout_seconds, limits.idle_timeout),
                max_connections: raw.proxy.max_connections.unwrap_or(limits.max_connections),
                ..limits
            },
            capture: raw.capture.enabled.unwrap_or(true),
            outbound: match raw.capture.outbound {
                RawOutbound::Registered => Outbound::Registered,
                RawOutbound::All => Outbound::All,
            },
            ssh_ports: raw.capture.ssh_ports,
            dns: match raw.dns.mode {
                RawDnsMode::Off => DnsMode::Off,
                RawDnsMode::Nameserver => DnsMode::Nameserver,
                RawDnsMode::Capture => DnsMode::Capture,
            },
            dns_port: raw.dns.port.unwrap_or(15053),
            upstreams: raw.dns.upstreams,
            access_log: match raw.telemetry.access_log.as_deref() {
                None | Some("stdout") => AccessLogTarget::Stdout,
                Some("off") => AccessLogTarget::Off,
                Some(file) if file.starts_with('/') => AccessLogTarget::File(file.into()),
                Some(other) => {
                    return Err(content(format!(
                        "telemetry.access_log: `{other}` is not stdout, off or an absolute path"
                    )));
                }
            },
            drain: seconds(raw.drain_seconds, Duration::from_secs(30)),
            directories,
        };
        config.check().map_err(content)
    }

    fn check(self) -> Result<Self, String> {
        if self.limits.idle_timeout.is_zero() || self.limits.connect_timeout.is_zero() {
            return Err(
                "a timeout of 0 would end every connection at once: leave it out for the default".to_owned()
            );
        }
        if let Some(address) =
            self.addresses.iter().find(|a| a.is_loopback() || a.is_unspecified() || a.is_multicast())
        {
            return Err(format!("addresses: no other host reaches this one at {address}"));
        }
        Ok(self)
    }
}

/// One thread for every two processors: the programs that the connections are for need the others.
fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, |processors| processors.get().div_ceil(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<AgentConfig, String> {
        AgentConfig::parse(text, Directories::default(), Path::new("agent.toml"))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        let config = parse("").expect("the defaults");
        assert_eq!(config.source, SourceConfig::Control);
        assert_eq!(config.ports, Ports::default());
        assert_eq!(config.dns, DnsMode::Capture);
        assert!(config.capture);
    }

    #[test]
    fn reads_every_part() {
        let config = parse(
            "host = \"h1\"\naddresses = [\"10.0.0.1\", \"fd00::1\"]\n[registry]\nsource = \"files\"\n\
             [proxy]\nworkers = 3\n[dns]\nmode = \"nameserver\"\nupstreams = [\"10.0.0.2:53\"]\n\
             [telemetry]\naccess_log = \"/var/log/x\"\n[capture]\noutbound = \"all\"\nssh_ports = [2222]\n",
        )
        .expect("a configuration");
        assert_eq!(config.source, SourceConfig::Files("/etc/baremesh/registry".into()));
        assert_eq!((config.workers, config.dns), (3, DnsMode::Nameserver));
        assert_eq!(config.outbound, Outbound::All);
    }

    #[test]
    fn refuses_what_it_does_not_know_and_says_where() {
        for (text, part) in [
            ("[dns]\nmode = \"magic\"", "line 2"),
            ("[capture]\nenbled = true", "enbled"),
            ("host = \"A b\"", "host:"),
            ("addresses = [\"127.0.0.1\"]", "127.0.0.1"),
            ("[proxy]\nidle_timeout_seconds = 0", "timeout of 0"),
            ("[telemetry]\naccess_log = \"yes\"", "access_log"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.starts_with("agent.toml: ") && error.contains(part), "{text}: {error}");
        }
    }
}
