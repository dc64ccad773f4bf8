//! What only the agent knows of how it is doing: `GET /doctor`, asked by `baremesh doctor`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::CertificateReport;

/// `GET /doctor`. Fields are only ever added.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DoctorReport {
    /// The agent's process.
    pub pid: u32,
    /// The domain of service names.
    pub domain: String,
    /// The control server, tried just now; none where resources come from files.
    pub reach: Option<ReachReport>,
    /// The version of the state in force.
    pub version: u64,
    /// The node credential.
    pub node: Option<CertificateReport>,
    /// Identities whose certificate was refused or not to be had at the last attempt, with the reason.
    pub missing: BTreeMap<String, String>,
    /// Those among them that the host was not granted.
    pub not_granted: Vec<String>,
    /// Descriptors.
    pub descriptors: DescriptorsReport,
    /// The memory of the agent's cgroup, where it has a limit.
    pub memory: Option<MemoryReport>,
    /// Why nothing can be written to the state directory, where that is so.
    pub state_unwritable: Option<String>,
    /// Rules that somebody else took away or changed, and that were put back.
    pub restored: Option<RestoredReport>,
    /// Plaintext that came to STRICT services within the last hour.
    pub plaintext: Vec<PlaintextReport>,
    /// Agents of endpoints, tried just now where that was asked for.
    pub peers: Vec<PeerReport>,
    /// So many more were not tried.
    pub peers_left_out: usize,
}

/// How far a connection to the control server came.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReachReport {
    /// As the host joined with it.
    pub control: String,
    /// The address that was tried last.
    pub address: Option<SocketAddr>,
    /// Where it ended.
    pub step: Step,
    /// What was said there.
    pub detail: Option<String>,
    /// How far the server's clock is ahead of this host's, in milliseconds; negative where it is behind.
    pub skew_milliseconds: Option<i64>,
    /// The version of the newest state.
    pub version: Option<u64>,
}

impl ReachReport {
    /// Notes where it ended.
    pub fn failed(&mut self, step: Step, detail: String) {
        (self.step, self.detail) = (step, Some(detail));
    }
}

/// A step of a connection. What failed there says what to look at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The name has no address.
    #[default]
    Name,
    /// There is no way to the address.
    Route,
    /// Nobody listens there.
    Port,
    /// Nothing comes back.
    Silence,
    /// TLS came to nothing.
    Handshake,
    /// A certificate is not valid at this time.
    Clocks,
    /// Somebody else answers.
    Identity,
    /// It did not answer the question.
    Answer,
    /// It refused this host.
    Refused,
    /// Small packets pass, and large ones do not.
    LargePackets,
    /// All went well.
    Done,
}

/// Descriptors of the agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorsReport {
    /// Open now.
    pub open: u64,
    /// How many may be.
    pub limit: u64,
    /// How many connections may be open at once, by the configuration.
    pub max_connections: u64,
}

/// Memory of a cgroup, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// In use.
    pub used: u64,
    /// The limit.
    pub limit: u64,
}

/// Rules that were put back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredReport {
    /// How often since the agent began.
    pub times: u64,
    /// How many seconds ago last.
    pub seconds: u64,
    /// What was wrong with them.
    pub found: String,
    /// Who changed nftables then, where the kernel said so.
    pub by: Option<String>,
}

/// Plaintext that came to a STRICT service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaintextReport {
    /// `name.namespace`.
    pub service: String,
    /// Who came.
    pub from: IpAddr,
    /// How often.
    pub connections: u64,
    /// How many seconds ago last.
    pub seconds: u64,
}

/// Another host's agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerReport {
    /// Where it listens.
    pub agent: SocketAddr,
    /// A service that it has an endpoint of.
    pub service: String,
    /// Where a connection ended; none where it was taken.
    pub step: Option<Step>,
    /// What was said there.
    pub detail: Option<String>,
}
