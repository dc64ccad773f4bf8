//! What a registration leaves to the WorkloadGroup that it names. Where it is delivered, which processes it is and what
//! is run to look at it stays the registration's own to say: a group comes from the control server.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU16;
use std::sync::Arc;

use baremesh_model::health::{Schedule, Thresholds};
use baremesh_model::name::{Key, Label};
use baremesh_model::workload::{Labels, Locality};
use baremesh_model::workload_group::{Look, Probe, ProbePort, WorkloadGroup};
use baremesh_registry::format::duration;

use super::check::{
    Check, Fault, Scheme, WrittenCheck, WrittenGrpc, WrittenHeader, WrittenHttpGet, WrittenPortName,
    WrittenTcpSocket,
};
use super::file::WrittenPort;
use super::{LocalPort, LocalService};

/// A registration's group, and what the registration says by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grouping {
    /// The group's name, in the registration's namespace.
    pub name: Label,
    /// What the group said last.
    pub(super) said: Option<Arc<WorkloadGroup>>,
    /// Labels of its own.
    pub(super) labels: Labels,
    /// An account of its own.
    pub(super) service_account: Option<Label>,
    /// A place of its own.
    pub(super) locality: Option<Locality>,
    /// A weight of its own.
    pub(super) weight: Option<u32>,
    /// A check of its own.
    pub(super) check: Option<Arc<Check>>,
    /// How that goes.
    pub standing: Standing,
}

/// How a registration and its group stand to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// No such group has been heard of. What policies select the service by is not known, so nobody is let in.
    Missing,
    /// What the group says holds.
    InForce,
    /// It has been taken away. What it said last holds until the agent starts anew.
    Gone,
    /// Its probe cannot be done here, so that the service is not known to be well.
    Unusable(Arc<str>),
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str(
                "there is no such WorkloadGroup in its namespace, so the service takes no calls: `baremesh apply` one, or \
                 register it without",
            ),
            Self::InForce => f.write_str("in force"),
            Self::Gone => f.write_str(
                "the WorkloadGroup was deleted; what it said holds until the agent restarts, and then the service takes no \
                 calls",
            ),
            Self::Unusable(reason) => write!(f, "its probe cannot be done here: {reason}"),
        }
    }
}

impl Grouping {
    pub(super) fn new(name: Label, local: &LocalService) -> Self {
        Self {
            name,
            said: None,
            labels: local.labels.clone(),
            service_account: None,
            locality: local.locality.clone(),
            weight: None,
            check: local.check.clone(),
            standing: Standing::Missing,
        }
    }
}

impl LocalService {
    /// Whether what it is to policies is not known.
    pub fn misses_its_group(&self) -> bool {
        self.group.as_ref().is_some_and(|group| group.standing == Standing::Missing)
    }

    /// The same registration read again: what its group said last is still known.
    pub fn remembering(self: Arc<Self>, before: Option<&Self>) -> Arc<Self> {
        let (Some(group), Some(before)) = (&self.group, before.and_then(|before| before.group.as_ref()))
        else {
            return self;
        };
        if group.name != before.name || before.said.is_none() {
            return self;
        }
        let group = Grouping { said: before.said.clone(), ..group.clone() };
        Arc::new(Self { group: Some(group), ..Self::clone(&self) })
    }

    /// With what its group says.
    pub fn in_group(self: &Arc<Self>, groups: &BTreeMap<Key, Arc<WorkloadGroup>>) -> Arc<Self> {
        let Some(own) = &self.group else { return Arc::clone(self) };
        let there = groups.get(&Key::new(self.key.namespace.clone(), own.name.clone()));
        let said = there.or(own.said.as_ref()).cloned();
        let standing = match (there, &said) {
            (Some(_), _) => Standing::InForce,
            (None, Some(_)) => Standing::Gone,
            (None, None) => Standing::Missing,
        };
        let (check, standing) = match (said.as_ref().map(|group| &group.probe), &own.check) {
            // Nothing is looked at before it is known what is to be: what is found then is news.
            (None, _) => (None, standing),
            (Some(_), Some(check)) => (Some(Arc::clone(check)), standing),
            (Some(None), None) => (None, standing),
            (Some(Some(probe)), None) => match check_of(probe, &self.ports) {
                Ok(check) => (Some(Arc::new(check)), standing),
                Err(fault) => (None, Standing::Unusable(fault.to_string().into())),
            },
        };
        let mut labels = said.as_ref().map(|group| group.labels.clone()).unwrap_or_default();
        labels.extend(own.labels.clone());
        let of_group = said.as_ref();
        let account = own.service_account.clone().or_else(|| of_group?.service_account.clone());
        let in_force = Self {
            service_account: account.unwrap_or_else(|| self.key.name.clone()),
            locality: own.locality.clone().or_else(|| of_group?.locality.clone()),
            weight: own.weight.or_else(|| of_group?.weight).unwrap_or(1),
            labels,
            check,
            group: Some(Grouping { said: said.clone(), standing, ..own.clone() }),
            ..Self::clone(self)
        };
        let health = match &in_force.check {
            Some(check) if Some(check) == self.check.as_ref() => self.health,
            _ => in_force.first_health(Some(self)),
        };
        if in_force == **self && health == self.health {
            return Arc::clone(self);
        }
        Arc::new(Self { health, ..in_force })
    }
}

/// A group's probe as a check of the registration. It reaches ports of the registration alone.
fn check_of(probe: &Probe, ports: &[LocalPort]) -> Result<Check, Fault> {
    let named = |port: &Option<ProbePort>| match port {
        None => Ok(None),
        Some(ProbePort::Name(name)) => Ok(Some(WrittenPortName::Name(name.to_string()))),
        Some(ProbePort::Number(number)) => {
            let is_own = |own: &LocalPort| own.port == *number || own.target_port == *number;
            match ports.iter().any(is_own) {
                true => Ok(Some(WrittenPortName::Number(*number))),
                false => Err(Fault::from(format!(
                    "port {number} is none of the registration's: add it with --port, or name another in the group"
                ))),
            }
        }
    };
    let mut written = WrittenCheck::default();
    match &probe.look {
        // Times and thresholds mean nothing with it.
        Look::Ttl(ttl) => written.ttl = Some(duration::text(*ttl)),
        look => {
            let Schedule { initial_delay, timeout, period } = probe.schedule;
            let Thresholds { success, failure } = probe.thresholds;
            written.initial_delay = Some(duration::text(initial_delay));
            written.timeout = Some(duration::text(timeout));
            written.period = Some(duration::text(period));
            (written.success_threshold, written.failure_threshold) = (Some(success), Some(failure));
            match look {
                Look::HttpGet(get) => {
                    let header = |(name, value): &(Arc<str>, Arc<str>)| WrittenHeader {
                        name: name.to_string(),
                        value: value.to_string(),
                    };
                    written.http_get = Some(WrittenHttpGet {
                        path: Some(get.path.to_string()),
                        port: named(&get.port)?,
                        scheme: Some(if get.https { Scheme::Https } else { Scheme::Http }),
                        http_headers: get.headers.iter().map(header).collect(),
                    });
                }
                Look::TcpSocket { port } => {
                    written.tcp_socket = Some(WrittenTcpSocket { port: named(port)? });
                }
                Look::Grpc { port, service } => {
                    let service = service.to_string();
                    written.grpc = Some(WrittenGrpc { port: named(port)?, service });
                }
                Look::Ttl(_) => {}
            }
        }
    }
    Check::of(&written, ports, None)
}

/// The ports that a registration in `group` begins with: those of the group, as the service declares them.
pub fn ports_of(
    group: &WorkloadGroup,
    service: Option<&baremesh_model::service::Service>,
) -> Vec<WrittenPort> {
    let port = |(name, target): (&Arc<str>, &NonZeroU16)| {
        let declared = service
            .and_then(|service| service.ports.iter().find(|port| port.name.as_deref() == Some(&**name)));
        let port = declared.map_or(*target, |declared| declared.port);
        WrittenPort {
            port,
            target_port: (port != *target).then_some(*target),
            protocol: declared.map(|declared| declared.protocol.name().to_owned()),
            name: Some(name.to_string()),
            deliver: None,
        }
    };
    group.ports.iter().map(port).collect()
}

#[cfg(test)]
mod tests;
