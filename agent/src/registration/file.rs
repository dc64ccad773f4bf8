//! Registration files: one TOML file a service in the host's directory of registrations. What callers are matched by and
//! where connections are delivered stands here and nowhere else; the control server cannot change it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use baremesh_ca::file::FileError;
use baremesh_model::gateway::Carries;
use baremesh_model::health::Health;
use baremesh_model::identity::RESERVED_NAMESPACES;
use baremesh_model::name::{Key, Label, default_namespace};
use baremesh_model::workload::Locality;
use serde::{Deserialize, Serialize};

use super::check::{Check, Fault, WrittenCheck, line_of};
use super::container::{self, Named, WrittenDeliver};
use super::group::Grouping;
use super::{Certain, ContainerPort, DefaultForAddress, HostRole, LocalPort, LocalService, Serves, WhenGone};
use crate::attribution::{CgroupPath, Matcher, Uid, UnitName};
use crate::capture::plan::{EXEMPT_PORTS, SSH_PORT};

/// Registering and deregistering.
mod change;

pub use change::{deregister, register};

/// What the host's own configuration says of what may be registered on it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Terms {
    /// Ports of its sshd besides 22.
    pub ssh_ports: BTreeSet<u16>,
    /// What it is to the mesh.
    pub role: HostRole,
}

/// The most services that one host registers.
pub const MAX_SERVICES: usize = 1000;
/// The largest registration file, in bytes.
const MAX_FILE: u64 = 64 * 1024;
/// Ports of the agent: nothing is delivered to them.
pub(super) const AGENT_PORTS: [u16; 8] = [15001, 15006, 15008, 15012, 15014, 15020, 15021, 15053];

/// Why a registration was refused.
#[derive(Debug, thiserror::Error)]
pub enum RegistrationError {
    /// The file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file could not be replaced.
    #[error(transparent)]
    Write(#[from] FileError),
    /// The file is not what a registration is.
    #[error("{path}: {fault}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line where it stands.
        fault: String,
    },
    /// Two registrations exclude each other, or one and what the host is told otherwise.
    #[error("{path}: {fault}")]
    Conflict {
        /// The later of the two files.
        path: PathBuf,
        /// What both want.
        fault: String,
    },
    /// There is no such registration.
    #[error("{0} is not registered on this host: `baremesh service list` shows what is")]
    Unknown(Key),
}

/// A registration as written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Written {
    /// The service's name.
    pub name: String,
    /// Its namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The WorkloadGroup of the namespace that says what is not said here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The account it runs as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// Whether the agent itself is behind its ports, as a gateway.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gateway: bool,
    /// Its ports.
    pub ports: Vec<WrittenPort>,
    /// Addresses to advertise instead of the host's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// The systemd unit that it runs as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The cgroup that it runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// The uid that it runs as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
    /// The container's addresses on the bridge.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<IpAddr>,
    /// The bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Labels of the container, `KEY=VALUE` or `KEY`, all of which it has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub container_labels: Vec<String>,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// `region/zone/subzone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locality: Option<String>,
    /// Share of the connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// What happens while the agent is gone.
    #[serde(default)]
    pub when_gone: WrittenWhenGone,
    /// Whether peers that send no server name reach it.
    #[serde(default)]
    pub default_for_address: bool,
    /// How it is looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<WrittenCheck>,
}

/// A port as written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct WrittenPort {
    /// The port that callers name.
    pub port: NonZeroU16,
    /// The port that the program listens on, unless it is the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<NonZeroU16>,
    /// What it speaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The port's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where the program listens; 127.0.0.1 with the target port unless stated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliver: Option<WrittenDeliver>,
}

/// `whenGone` as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WrittenWhenGone {
    /// Rejected.
    #[default]
    Closed,
    /// Released.
    Open,
}

impl TryFrom<&Written> for LocalService {
    type Error = Fault;

    fn try_from(written: &Written) -> Result<Self, Fault> {
        let label = |text: &str| Label::new(text).map_err(|error| error.to_string());
        let namespace = written.namespace.as_deref().map_or(Ok(default_namespace()), label)?;
        if RESERVED_NAMESPACES.contains(&namespace.as_str()) {
            return Err(format!("the namespace `{namespace}` is the mesh's own: choose another").into());
        }
        let name = label(&written.name)?;
        let service_account = written.service_account.as_deref().map_or(Ok(name.clone()), label)?;
        if written.ports.is_empty() {
            return Err("at least one port is needed".to_owned().into());
        }
        let serves = if written.gateway { Serves::Gateway } else { Serves::Program };
        if serves == Serves::Gateway {
            no_program(written)?;
        }
        let ports =
            written.ports.iter().map(|port| local_port(port, serves)).collect::<Result<Vec<_>, _>>()?;
        for (index, port) in ports.iter().enumerate() {
            if ports[..index]
                .iter()
                .any(|other| other.port == port.port || other.target_port == port.target_port)
            {
                return Err(format!("the port {} is named twice", port.port).into());
            }
        }
        let check = |check: &WrittenCheck| Check::of(check, &ports, written.user).map(Arc::new);
        let check = written.check.as_ref().map(check).transpose()?;
        let text = |(key, value): (&String, &String)| (Arc::from(key.as_str()), Arc::from(value.as_str()));
        let mut local = Self {
            key: Key::new(namespace, name),
            service_account,
            serves,
            ports,
            addresses: (!written.addresses.is_empty()).then(|| written.addresses.clone()),
            matcher: matcher(written)?,
            container: container::read(written)?,
            labels: written.labels.iter().map(text).collect(),
            locality: written.locality.as_deref().map(Locality::parse),
            weight: written.weight.unwrap_or(1).max(1),
            when_gone: match written.when_gone {
                WrittenWhenGone::Closed => WhenGone::Closed,
                WrittenWhenGone::Open => WhenGone::Open,
            },
            default_for_address: match written.default_for_address {
                true => DefaultForAddress::Yes,
                false => DefaultForAddress::IfAlone,
            },
            check,
            health: Health::Healthy,
            group: None,
        };
        if let Some(name) = &written.group {
            let own = Grouping::new(label(name)?, &local);
            let service_account = written.service_account.as_deref().map(label).transpose()?;
            let weight = written.weight.map(|weight| weight.max(1));
            local.group = Some(Grouping { service_account, weight, ..own });
        }
        local.health = local.first_health(None);
        Ok(local)
    }
}

/// A gateway is no program: what describes one says nothing of it.
fn no_program(written: &Written) -> Result<(), String> {
    let said = [
        ("unit", written.unit.is_some()),
        ("cgroup", written.cgroup.is_some()),
        ("user", written.user.is_some()),
        ("sources", !written.sources.is_empty()),
        ("interface", written.interface.is_some()),
        ("containerLabels", !written.container_labels.is_empty()),
        ("group", written.group.is_some()),
        ("check", written.check.is_some()),
        ("deliver", written.ports.iter().any(|port| port.deliver.is_some())),
    ];
    match said.iter().find(|(_, is_said)| *is_said) {
        Some((key, _)) => Err(format!("a gateway has no program behind it: remove `{key}`")),
        None => Ok(()),
    }
}

/// Where nothing is delivered: at a gateway, where the agent itself carries on what comes, and at a port of a container
/// that is not known.
pub(super) fn nowhere(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
}

/// What a gateway's port carries is said and not found out: whoever calls would choose what is looked at.
fn says_what_it_carries(written: &WrittenPort) -> Result<(), String> {
    let carries = written.protocol.as_deref().and_then(|name| Carries::of_port(name.parse().ok()?));
    match carries {
        Some(_) => Ok(()),
        None => Err(format!(
            "port {} of a gateway says what it carries: http, tls (the caller's own, by its server name) or tcp",
            written.port
        )),
    }
}

fn local_port(written: &WrittenPort, serves: Serves) -> Result<LocalPort, String> {
    let target_port = written.target_port.unwrap_or(written.port);
    let here = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), target_port.get());
    let (deliver, of_container) = match (serves, written.deliver) {
        (Serves::Gateway, _) => {
            says_what_it_carries(written)?;
            (nowhere(0), None)
        }
        (Serves::Program, None) => (here, None),
        (Serves::Program, Some(WrittenDeliver::At(address))) => (address, None),
        (Serves::Program, Some(WrittenDeliver::Container(port))) => {
            (nowhere(port.get()), Some(ContainerPort { port, certain: Certain::No }))
        }
    };
    for port in [written.port.get(), target_port.get(), deliver.port()] {
        if AGENT_PORTS.contains(&port) {
            return Err(format!("port {port} is the agent's own: nothing is delivered to it"));
        }
    }
    for port in [target_port.get(), deliver.port()] {
        if port == SSH_PORT {
            return Err("port 22 is SSH's and never meshed".to_owned());
        }
        if EXEMPT_PORTS.contains(&port) {
            return Err(format!(
                "port {port} (DHCP, NTP) is never captured, so nothing would protect the service"
            ));
        }
    }
    let is_nowhere = || deliver.ip().is_unspecified() || deliver.port() == 0;
    if serves == Serves::Program && of_container.is_none() && is_nowhere() {
        return Err(format!(
            "`{deliver}` is no address to deliver to: name the one that the program listens on"
        ));
    }
    let protocol = written.protocol.as_deref().unwrap_or("tcp").parse();
    Ok(LocalPort {
        port: written.port,
        target_port,
        protocol: protocol.map_err(|error: baremesh_model::service::UnknownProtocol| error.to_string())?,
        name: written.name.as_deref().map(Arc::from),
        deliver,
        of_container,
    })
}

fn matcher(written: &Written) -> Result<Option<Matcher>, String> {
    if written.unit.is_none() && written.cgroup.is_none() && written.user.is_none() {
        return Ok(None);
    }
    let unit = written.unit.as_deref().map(UnitName::new).transpose().map_err(|error| error.to_string())?;
    let cgroup =
        written.cgroup.as_deref().map(CgroupPath::new).transpose().map_err(|error| error.to_string())?;
    Matcher::new(unit, cgroup, written.user.map(Uid)).map(Some).map_err(|error| error.to_string())
}

/// Where a service's registration stands in the directory of registrations, where `register` wrote it.
pub fn path_of(directory: &Path, key: &Key) -> PathBuf {
    directory.join(format!("{}.{}.toml", key.namespace, key.name))
}

/// Reads one file.
pub fn read(path: &Path) -> Result<(Written, LocalService), RegistrationError> {
    let file = |source| RegistrationError::File { path: path.to_owned(), source };
    let content = |fault: String| RegistrationError::Content { path: path.to_owned(), fault };
    if std::fs::metadata(path).map_err(file)?.len() > MAX_FILE {
        return Err(content(format!("larger than {MAX_FILE} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(file)?;
    let written: Written = toml::from_str(&text).map_err(|error| content(error.to_string()))?;
    let local = LocalService::try_from(&written).map_err(|fault| {
        let line = fault.key.and_then(|key| line_of(&text, key));
        content(line.map_or_else(|| fault.to_string(), |line| format!("line {line}: {fault}")))
    })?;
    Ok((written, local))
}

/// Reads all registrations of a host, in the order of their files, beside what its configuration says. One that is wrong makes
/// the whole set wrong: a service that quietly lost its protection would be worse. A directory that does not exist has
/// none.
pub fn read_all(directory: &Path, terms: &Terms) -> Result<Vec<Arc<LocalService>>, RegistrationError> {
    Ok(read_each(directory, terms)?.into_iter().map(|one| one.local).collect())
}

/// A registration and the file that it stands in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The file.
    pub path: PathBuf,
    /// What it says.
    pub written: Written,
    /// What that means.
    pub local: Arc<LocalService>,
}

/// The same, each with its file.
pub fn read_each(directory: &Path, terms: &Terms) -> Result<Vec<Registration>, RegistrationError> {
    let mut all: Vec<Registration> = Vec::new();
    for path in paths_in(directory)? {
        let (written, local) = read(&path)?;
        if let Some(fault) = against_terms(&local, terms) {
            return Err(RegistrationError::Conflict { path, fault });
        }
        let twice = all.iter().find(|other| other.local.key == local.key).map(|other| {
            let (key, other) = (&local.key, other.path.display());
            format!("{key} is registered in {other} already: remove one of the two files")
        });
        if let Some(fault) = twice.or_else(|| all.iter().find_map(|other| conflict(&other.local, &local))) {
            return Err(RegistrationError::Conflict { path, fault });
        }
        all.push(Registration { path, written, local: Arc::new(local) });
    }
    Ok(all)
}

/// The files of registrations, in the order of their names.
pub fn paths_in(directory: &Path) -> Result<Vec<PathBuf>, RegistrationError> {
    let file = |source| RegistrationError::File { path: directory.to_owned(), source };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(file(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(file)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    if paths.len() > MAX_SERVICES {
        let fault = format!("more than {MAX_SERVICES} registrations");
        return Err(RegistrationError::Content { path: directory.to_owned(), fault });
    }
    Ok(paths)
}

/// Why a registration cannot stand on a host whose configuration says this.
fn against_terms(local: &LocalService, terms: &Terms) -> Option<String> {
    if local.serves == Serves::Gateway && terms.role != HostRole::Gateway {
        return Some(format!(
            "{} is a gateway, and this host is none: set `role = \"gateway\"` in agent.toml, or deregister it",
            local.key
        ));
    }
    at_ssh(local, &terms.ssh_ports)
}

/// Why a registration cannot stand on a host whose sshd has these ports besides 22: they are never captured, so nothing
/// would protect the service, and who administers the host would be locked out if they were.
fn at_ssh(local: &LocalService, ssh_ports: &BTreeSet<u16>) -> Option<String> {
    let mut ports = local.ports.iter().flat_map(|port| [port.target_port.get(), port.deliver.port()]);
    let taken = ports.find(|port| ssh_ports.contains(port))?;
    Some(format!(
        "{} has port {taken}, which is SSH's (`ssh_ports` in agent.toml) and never meshed: give it another, or take the \
         port out of `ssh_ports`",
        local.key
    ))
}

/// Why registrations of two services cannot stand side by side.
fn conflict(other: &LocalService, new: &LocalService) -> Option<String> {
    if new.matcher.is_some() && other.matcher == new.matcher {
        return Some(format!(
            "{} and {} name the same processes: nobody could tell them apart",
            other.key, new.key
        ));
    }
    match [&new.container, &other.container].map(|own| own.as_ref().map(|own| &own.named)) {
        [Some(Named::At(own)), Some(Named::At(others))] => {
            if let Some(address) = own.addresses.iter().find(|address| others.addresses.contains(address)) {
                return Some(format!(
                    "{} and {} have one container, at {address}: nobody could tell them apart",
                    other.key, new.key
                ));
            }
        }
        [Some(Named::Labelled(own)), Some(Named::Labelled(others))] if own == others => {
            return Some(format!(
                "{} and {} have the containers with {own}: nobody could tell them apart",
                other.key, new.key
            ));
        }
        _ => {}
    }
    for port in &new.ports {
        for taken in &other.ports {
            let shared_address = match (&other.addresses, &new.addresses) {
                (Some(a), Some(b)) => a.iter().any(|address| b.contains(address)),
                _ => true,
            };
            if taken.target_port == port.target_port && shared_address {
                return Some(format!(
                    "{} has port {} at the same address already: give one another `targetPort`",
                    other.key, port.target_port
                ));
            }
            let fixed = new.serves == Serves::Program && port.of_container.is_none();
            if taken.deliver == port.deliver && fixed {
                return Some(format!("{} is delivered to {} already", other.key, port.deliver));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests;
