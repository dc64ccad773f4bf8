//! WorkloadGroup: the template of registrations. What a host's registration leaves unsaid, the group that it names
//! says. Which processes are the service and where connections are delivered is the host's own to say, and a group has
//! no word for either; nor for a command, because whoever writes groups would run it on every host.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use crate::health::{Schedule, Thresholds};
use crate::name::{Key, Label};
use crate::workload::{Labels, Locality};

/// What registrations that name it have in common: Istio's WorkloadGroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadGroup {
    /// Namespace and name; registrations of the namespace may name it.
    pub key: Key,
    /// Labels of the template, those of `metadata` before them.
    pub labels: Labels,
    /// Port names of the service to the ports that programs listen on: what `baremesh service register` begins with.
    pub ports: BTreeMap<Arc<str>, NonZeroU16>,
    /// Where its workloads stand.
    pub locality: Option<Locality>,
    /// Share of the connections, at least 1.
    pub weight: Option<u32>,
    /// The account that they run as.
    pub service_account: Option<Label>,
    /// How they are looked at.
    pub probe: Option<Probe>,
}

/// How a workload is looked at: Istio's ReadinessProbe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// What is looked at.
    pub look: Look,
    /// When.
    pub schedule: Schedule,
    /// How many results decide.
    pub thresholds: Thresholds,
}

/// What is looked at. A command or a unit is not among it: those are for the host's own registration to name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// An answer of 2xx or 3xx to a GET.
    HttpGet(HttpGet),
    /// That a connection is taken.
    TcpSocket {
        /// Which port; the first of the registration unless stated.
        port: Option<ProbePort>,
    },
    /// What `grpc.health.v1` says.
    Grpc {
        /// Which port; the first of the registration unless stated.
        port: Option<ProbePort>,
        /// The service that is asked about; empty for the server as a whole.
        service: Arc<str>,
    },
    /// That the service says so itself, at least this often.
    Ttl(Duration),
}

/// A GET.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpGet {
    /// The path, with its query.
    pub path: Arc<str>,
    /// Which port; the first of the registration unless stated.
    pub port: Option<ProbePort>,
    /// Whether inside TLS.
    pub https: bool,
    /// Headers besides the usual ones.
    pub headers: Vec<(Arc<str>, Arc<str>)>,
}

/// A port of the registration, and of nothing else: a group's probe reaches no other port of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbePort {
    /// As callers name it, or as the program listens.
    Number(NonZeroU16),
    /// By its name.
    Name(Arc<str>),
}
