//! The directories that the agent and the control server keep their files in.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// The directories that the agent and the control server keep their files in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directories {
    /// Configuration: `agent.toml`, `registrations.d/`, `registry/`.
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
    pub fn registrations(&self) -> PathBuf {
        self.config.join("registrations.d")
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

    /// Whether an agent of these directories is heard. What a dead one left is nobody.
    pub fn agent_runs(&self) -> bool {
        UnixStream::connect(self.agent_socket()).is_ok()
    }

    /// Where the agent waits for one that takes over.
    pub fn handover_socket(&self) -> PathBuf {
        self.runtime.join("handover.sock")
    }

    /// The control server's administration socket.
    pub fn control_socket(&self) -> PathBuf {
        self.runtime.join("control.sock")
    }
}
