//! The agent's account of itself, in JSON on the socket.

/// What becomes of a call.
pub mod explain;
/// About the capture rules.
pub mod capture;
/// How the agent is doing.
pub mod doctor;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// `GET /status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The agent's version.
    pub version: String,
    /// The host's name in the mesh.
    pub host: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Why it is these, in words.
    #[serde(default)]
    pub addresses_why: String,
    /// The network that it is in, where it says so.
    #[serde(default)]
    pub network: Option<String>,
    /// Whether it takes connections from outside to the agents of that network.
    #[serde(default)]
    pub network_gateway: bool,
    /// The trust domain.
    pub trust_domain: String,
    /// Whether everything that serving needs is in place.
    pub ready: bool,
    /// What is not in place, in words.
    pub not_ready: Vec<String>,
    /// Where resources come from, and how that stands.
    pub source: SourceReport,
    /// What of this host itself was refused, and why: registrations that cannot be read, say. What was in force before is so
    /// still.
    #[serde(default)]
    pub refused: Vec<String>,
    /// Of how many services the endpoints are held; none where all of them always are.
    #[serde(default)]
    pub endpoints: Option<EndpointsReport>,
    /// Whether the capture rules stand, in words.
    pub capture: String,
    /// What the process may do beyond others, in words.
    #[serde(default)]
    pub privileges: String,
    /// Services of this host.
    pub services: Vec<LocalServiceReport>,
    /// Things to look at, in words.
    pub warnings: Vec<String>,
    /// Connections open now.
    pub open_connections: i64,
    /// Tunnels to other hosts that stand now.
    pub tunnels: i64,
}

/// Where resources come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceReport {
    /// `control ADDRESS` or `files DIRECTORY`.
    pub name: String,
    /// Whether it is in reach.
    pub connected: bool,
    /// The version of the state in force.
    pub version: u64,
    /// Seconds since 1970 at which the state in force was taken.
    pub taken: u64,
    /// Why the last state was refused, where it was.
    pub last_error: Option<String>,
    /// How Consul stands, where it is the source.
    #[serde(default)]
    pub consul: Option<ConsulReport>,
}

/// How Consul stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConsulReport {
    /// The address that answered when it was asked last who leads; none where nobody did.
    pub address: Option<String>,
    /// The leader of its servers, as they know each other; none where they have none.
    pub leader: Option<String>,
    /// What is asked of it.
    pub parts: Vec<ConsulPartReport>,
}

/// How one part of what Consul is asked for stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConsulPartReport {
    /// Which, in words.
    pub part: String,
    /// Whether it was answered when it was asked last.
    pub connected: bool,
    /// The index of the last answer; none where it has none.
    pub index: Option<u64>,
    /// How long ago that was. A question waits for a minute when there is nothing new.
    pub answered_seconds_ago: Option<u64>,
    /// What went wrong last, whether or not it goes well now.
    pub last_error: Option<String>,
    /// How long ago that was.
    pub failed_seconds_ago: Option<u64>,
}

/// Of how many services the endpoints are held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointsReport {
    /// Whether those of all are asked for.
    pub all: bool,
    /// Services of the mesh.
    pub services: usize,
    /// Those of them whose endpoints are all known; of the others it is known where they are.
    pub held: usize,
    /// Services that are remembered as called from here.
    pub called: usize,
    /// Services that are asked for whoever calls: this host's own, and those that Sidecars name.
    pub declared: usize,
}

/// One service of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalServiceReport {
    /// `name.namespace`.
    pub service: String,
    /// The identity.
    pub identity: String,
    /// Where it is advertised.
    pub advertised: Vec<SocketAddr>,
    /// Whether that is at addresses of its registration's own, and not the host's.
    #[serde(default)]
    pub own_addresses: bool,
    /// Where it is delivered.
    pub deliver: Vec<SocketAddr>,
    /// STRICT, PERMISSIVE or DISABLE.
    pub mtls: String,
    /// Whether it has a certificate.
    pub certificate: bool,
    /// What its check has found; none where it has no check.
    #[serde(default)]
    pub health: Option<HealthReport>,
    /// The WorkloadGroup that it names.
    #[serde(default)]
    pub group: Option<GroupReport>,
    /// The container that it is.
    #[serde(default)]
    pub container: Option<ContainerReport>,
}

/// What is known of the container that a service is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerReport {
    /// The labels that it is told by; none where it is told by its address.
    pub labels: Option<String>,
    /// Where what comes is the service: `ADDRESS on BRIDGE`.
    pub addresses: Vec<String>,
    /// Whether a container is certain to be it.
    pub in_force: bool,
    /// Why none is.
    #[serde(default)]
    pub problem: ContainerProblem,
    /// How it stands, in words.
    pub standing: String,
}

/// Why no container is certain to be a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerProblem {
    /// One is.
    #[default]
    None,
    /// None runs that has the labels.
    Absent,
    /// Nobody follows the engine.
    Unfollowed,
    /// It is another service's as well.
    Contested,
}

impl ContainerProblem {
    /// In a word or a few.
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "found",
            Self::Absent => "no container has the labels",
            Self::Unfollowed => "the engine is not followed",
            Self::Contested => "another service's too",
        }
    }
}

/// `GET /containers`: one engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineReport {
    /// Its socket.
    pub engine: String,
    /// Whether somebody follows it, so that what is said of it is certain.
    pub followed: bool,
    /// What runs on bridges of this host.
    pub containers: Vec<RunningReport>,
}

/// A container that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningReport {
    /// The engine's ID for it.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// `ADDRESS on BRIDGE`.
    pub addresses: Vec<String>,
    /// The service that it is; none where it is nobody.
    pub service: Option<String>,
}

/// How a registration and its WorkloadGroup stand to each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupReport {
    /// The group's name, in the service's namespace.
    pub name: String,
    /// Whether what it says holds.
    pub in_force: bool,
    /// How it stands, in words.
    pub standing: String,
}

/// What a service's check has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthReport {
    /// The check's kind: `httpGet`, `tcpSocket`, `grpc`, `exec`, `ttl` or `unit`.
    pub check: String,
    /// `healthy` or `unhealthy`.
    pub health: String,
    /// For how many seconds it has been that.
    pub seconds: u64,
    /// The last result, `passed` or `failed`; none before the first.
    pub last: Option<String>,
    /// How many seconds ago that was.
    pub last_seconds: Option<u64>,
    /// Why it failed, where it did.
    pub reason: Option<String>,
}

/// `POST /heartbeat`: a service's word on itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeartbeatOrder {
    /// `name.namespace`.
    pub service: String,
    /// What it says.
    pub status: HeartbeatStatus,
    /// Why, for people.
    #[serde(default)]
    pub note: Option<String>,
}

/// What a service says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeartbeatStatus {
    /// It is well.
    #[default]
    Passing,
    /// It is not.
    Failing,
}

/// The answer to `POST /heartbeat`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatAnswer {
    /// `name.namespace`.
    pub service: String,
    /// `healthy` or `unhealthy`.
    pub health: String,
}

/// `GET /certificates`: one entry a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateReport {
    /// Whose it is.
    pub identity: String,
    /// Its serial number.
    pub serial: String,
    /// Seconds since 1970 from which it is valid.
    pub not_before: u64,
    /// Seconds since 1970 until which it is valid.
    pub not_after: u64,
}

/// `GET /services`: every service that the agent knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceReport {
    /// `name.namespace`.
    pub service: String,
    /// The full host name.
    pub host: String,
    /// The identity of every endpoint.
    pub identity: String,
    /// Virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// Ports as `port/protocol`.
    pub ports: Vec<String>,
    /// Endpoints.
    pub endpoints: Vec<EndpointReport>,
}

/// One endpoint of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointReport {
    /// The workload's name; nothing where the endpoint was not asked for.
    pub workload: String,
    /// Its address.
    pub address: SocketAddr,
    /// `hbone`, `plain` or `local`.
    pub transport: String,
    /// `healthy`, `unhealthy` where its own host's check says so, `ejected` where this host leaves it out, or `not-asked` where
    /// nobody on this host calls the service.
    pub health: String,
    /// Connections in flight from this host.
    pub active: u32,
}
