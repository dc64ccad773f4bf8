//! The agent's configuration file, `/etc/baremesh/agent.toml`. Everything in it has a default: on a host that has
//! joined a mesh the file may be missing.

/// Directories.
mod directories;
/// The table `[dns]`.
mod dns;

pub use directories::Directories;
pub use dns::DnsMode;
use dns::RawDns;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use baremesh_model::name::Label;
use baremesh_registry::consul;
use ipnet::IpNet;
use serde::Deserialize;

use crate::capture::{Interface, Outbound};
use crate::demand::Wanted;
use crate::proxy::{Limits, Ports};
use crate::registration::HostRole;
use crate::registration::file::Terms;
use crate::snapshot::{HostNetwork, NetworkRole, ShortNames};

/// Where resources and endpoints come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceConfig {
    /// The control server that the host has joined.
    Control,
    /// A directory of resource files on this host.
    Files(PathBuf),
    /// Consul.
    Consul(Box<consul::Settings>),
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
    /// What it is to the mesh.
    pub role: HostRole,
    /// The network that the host is in, and what it does for it.
    pub network: Option<HostNetwork>,
    /// Where resources come from.
    pub source: SourceConfig,
    /// Whose endpoints the control server is asked for.
    pub endpoints: Wanted,
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
    /// Bridges whose containers are captured.
    pub interfaces: BTreeSet<Interface>,
    /// Ports of sshd besides 22.
    pub ssh_ports: BTreeSet<u16>,
    /// DNS.
    pub dns: DnsMode,
    /// The port of the DNS server.
    pub dns_port: u16,
    /// Name servers for all other names; `/etc/resolv.conf`'s unless stated.
    pub upstreams: Vec<SocketAddr>,
    /// Whether services answer to short names.
    pub short_names: ShortNames,
    /// The access log.
    pub access_log: AccessLogTarget,
    /// How key sets that tokens are verified with are fetched.
    pub jwks: JwksConfig,
    /// How long open connections may go on when the agent stops.
    pub drain: Duration,
}

/// How key sets are fetched.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JwksConfig {
    /// Blocks of addresses that are connected to although they are this host's own or its link's.
    pub allow: Vec<IpNet>,
    /// A PEM file of authorities; the system's without.
    pub ca_certificates: Option<PathBuf>,
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
    role: RawRole,
    addresses: Vec<IpAddr>,
    network: RawNetwork,
    registry: RawRegistry,
    consul: Option<consul::Settings>,
    ports: RawPorts,
    proxy: RawProxy,
    capture: RawCapture,
    dns: RawDns,
    telemetry: RawTelemetry,
    jwks: JwksConfig,
    drain_seconds: Option<u64>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawRole {
    #[default]
    Member,
    Gateway,
}

impl From<RawRole> for HostRole {
    fn from(raw: RawRole) -> Self {
        match raw {
            RawRole::Member => Self::Member,
            RawRole::Gateway => Self::Gateway,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawNetwork {
    name: Option<String>,
    gateway: bool,
}

impl RawNetwork {
    fn network(&self) -> Result<Option<HostNetwork>, String> {
        let role = if self.gateway { NetworkRole::Gateway } else { NetworkRole::Member };
        match &self.name {
            Some(name) => {
                let name = Label::new(name).map_err(|error| format!("network.name: {error}"))?;
                Ok(Some(HostNetwork { name, role }))
            }
            None if self.gateway => {
                Err("network.gateway: a gateway of which network? Set network.name too".to_owned())
            }
            None => Ok(None),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRegistry {
    source: RawSource,
    directory: Option<PathBuf>,
    endpoints: RawEndpoints,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawEndpoints {
    All,
    #[default]
    Called,
}

impl From<RawEndpoints> for Wanted {
    fn from(raw: RawEndpoints) -> Self {
        match raw {
            RawEndpoints::All => Self::All,
            RawEndpoints::Called => Self::Called,
        }
    }
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawSource {
    #[default]
    Control,
    Files,
    Consul,
}

impl RawRegistry {
    fn source(
        self,
        consul: Option<consul::Settings>,
        directories: &Directories,
    ) -> Result<SourceConfig, String> {
        if consul.is_some() && !matches!(self.source, RawSource::Consul) {
            return Err("[consul] is there, and [registry] does not say source = \"consul\"".to_owned());
        }
        Ok(match self.source {
            RawSource::Control => SourceConfig::Control,
            RawSource::Files => SourceConfig::Files(self.directory.unwrap_or_else(|| directories.registry())),
            RawSource::Consul => SourceConfig::Consul(Box::new(consul.unwrap_or_default())),
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawPorts {
    outbound: Option<u16>,
    inbound: Option<u16>,
    hbone: Option<u16>,
}

impl RawPorts {
    fn ports(&self) -> Ports {
        let default = Ports::default();
        Ports {
            outbound: self.outbound.unwrap_or(default.outbound),
            inbound: self.inbound.unwrap_or(default.inbound),
            hbone: self.hbone.unwrap_or(default.hbone),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawProxy {
    workers: Option<usize>,
    connect_timeout_seconds: Option<u64>,
    handshake_timeout_seconds: Option<u64>,
    idle_timeout_seconds: Option<u64>,
    body_timeout_seconds: Option<u64>,
    max_connections: Option<usize>,
}

impl RawProxy {
    fn limits(&self) -> Limits {
        let default = Limits::default();
        Limits {
            connect_timeout: seconds(self.connect_timeout_seconds, default.connect_timeout),
            handshake_timeout: seconds(self.handshake_timeout_seconds, default.handshake_timeout),
            idle_timeout: seconds(self.idle_timeout_seconds, default.idle_timeout),
            body_timeout: seconds(self.body_timeout_seconds, default.body_timeout),
            max_connections: self.max_connections.unwrap_or(default.max_connections),
            ..default
        }
    }
}

/// So many bridges are captured at most.
const MAX_INTERFACES: usize = 64;

fn interfaces(names: &[String]) -> Result<BTreeSet<Interface>, String> {
    if names.len() > MAX_INTERFACES {
        return Err(format!("capture.interfaces: more than {MAX_INTERFACES}"));
    }
    let parsed =
        names.iter().map(|name| name.parse().map_err(|error| format!("capture.interfaces: {error}")));
    parsed.collect()
}

/// What is given in seconds, else the default.
fn seconds(given: Option<u64>, default: Duration) -> Duration {
    given.map_or(default, Duration::from_secs)
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCapture {
    enabled: Option<bool>,
    outbound: RawOutbound,
    interfaces: Vec<String>,
    ssh_ports: BTreeSet<u16>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawOutbound {
    #[default]
    Registered,
    All,
}

impl From<RawOutbound> for Outbound {
    fn from(raw: RawOutbound) -> Self {
        match raw {
            RawOutbound::Registered => Self::Registered,
            RawOutbound::All => Self::All,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTelemetry {
    metrics: Option<SocketAddr>,
    ready: Option<SocketAddr>,
    access_log: Option<String>,
}

impl RawTelemetry {
    fn access_log(&self) -> Result<AccessLogTarget, String> {
        match self.access_log.as_deref() {
            None | Some("stdout") => Ok(AccessLogTarget::Stdout),
            Some("off") => Ok(AccessLogTarget::Off),
            Some(file) if file.starts_with('/') => Ok(AccessLogTarget::File(file.into())),
            Some(other) => {
                Err(format!("telemetry.access_log: `{other}` is not stdout, off or an absolute path"))
            }
        }
    }
}

impl RawConfig {
    fn config(self, directories: Directories) -> Result<AgentConfig, String> {
        let host = self.host.as_deref().map(Label::new).transpose();
        let any = |port: u16| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
        Ok(AgentConfig {
            host: host.map_err(|error| format!("host: {error}"))?,
            role: self.role.into(),
            addresses: self.addresses,
            network: self.network.network()?,
            endpoints: self.registry.endpoints.into(),
            source: self.registry.source(self.consul, &directories)?,
            ports: self.ports.ports(),
            metrics: self.telemetry.metrics.unwrap_or(any(15020)),
            ready: self.telemetry.ready.unwrap_or(any(15021)),
            workers: self.proxy.workers.unwrap_or_else(default_workers).max(1),
            limits: self.proxy.limits(),
            capture: self.capture.enabled.unwrap_or(true),
            outbound: self.capture.outbound.into(),
            interfaces: interfaces(&self.capture.interfaces)?,
            ssh_ports: self.capture.ssh_ports,
            dns: self.dns.mode.into(),
            dns_port: self.dns.port.unwrap_or(15053),
            short_names: self.dns.short_names(),
            upstreams: self.dns.upstreams,
            access_log: self.telemetry.access_log()?,
            jwks: self.jwks,
            drain: seconds(self.drain_seconds, Duration::from_secs(30)),
            directories,
        })
    }
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
        raw.config(directories).and_then(Self::check).map_err(content)
    }

    /// What may be registered on the host.
    pub fn terms(&self) -> Terms {
        Terms { ssh_ports: self.ssh_ports.clone(), role: self.role }
    }

    fn check(self) -> Result<Self, String> {
        let limits = &self.limits;
        if [limits.idle_timeout, limits.body_timeout, limits.connect_timeout].contains(&Duration::ZERO) {
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
mod tests;
