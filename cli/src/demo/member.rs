//! A host that joined the mesh, and its agent as the show sees it: its account of itself on the administration socket
//! and its access log.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use baremesh_agent::admin::client::Socket;
use baremesh_agent::admin::report::{CertificateReport, ServiceReport, StatusReport};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::hosts::{Host, Process};

/// Settings that the caller of the demo has made for an agent of this machine, not for those of the demo's hosts.
const FOREIGN: [&str; 4] = ["BAREMESH_CONFIG_DIR", "BAREMESH_STATE_DIR", "BAREMESH_RUN_DIR", "BAREMESH_LOG"];

/// What the demo's agents are told. On one machine, one second is long for a connection; a host that is switched off
/// is then noticed sooner than with the usual ten.
const AGENT: &str = "[proxy]\nconnect_timeout_seconds = 1\n";

/// A host with an agent.
pub(crate) struct Member {
    pub(crate) host: Host,
    /// All that were started; the last one may run.
    agents: Mutex<Vec<Process>>,
}

/// `baremesh` with `args` on `host`.
pub(crate) fn baremesh<'a>(host: &Host, args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = host.baremesh(args);
    for variable in FOREIGN {
        command.env_remove(variable);
    }
    command
}

/// What the socket `name` of a host answers to a GET; nothing while nobody answers.
pub(crate) fn ask<T: DeserializeOwned>(host: &Host, name: &str, target: &str) -> Option<T> {
    // Through the directory's descriptor: the path of a socket can have 108 bytes only (unix(7)), and the temporary
    // directory of some machines takes more.
    let directory = File::open(host.path("/run/baremesh")).ok()?;
    let path = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
    let socket = Socket { path: Path::new(&path), program: "baremesh" };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let answer = runtime.block_on(socket.ask(target)).ok()?;
    serde_json::from_slice(&answer).ok()
}

impl Member {
    /// A host that has joined, without its agent yet.
    pub(crate) fn new(host: Host) -> Result<Self> {
        let path = host.path("/etc/baremesh/agent.toml");
        std::fs::write(&path, AGENT).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { host, agents: Mutex::default() })
    }

    pub(crate) fn name(&self) -> &str {
        self.host.name()
    }

    /// Starts the agent.
    pub(crate) fn start(&self) -> Result<()> {
        let agent = self.host.spawn("agent", baremesh(&self.host, ["agent"]))?;
        self.lock().push(agent);
        Ok(())
    }

    /// Kills the agent, as a crash would.
    pub(crate) fn kill(&self) -> Result<()> {
        let agent = self.lock().last().cloned().context("no agent was started")?;
        agent.kill();
        agent.wait().map(drop)
    }

    /// Whether certificates, state and capture are in place.
    pub(crate) fn is_ready(&self) -> bool {
        self.status().is_some_and(|status| status.ready)
    }

    /// The agent's account of itself; nothing while it does not answer.
    pub(crate) fn status(&self) -> Option<StatusReport> {
        ask(&self.host, "agent.sock", "/status")
    }

    /// Every service that the agent knows.
    pub(crate) fn services(&self) -> Vec<ServiceReport> {
        ask(&self.host, "agent.sock", "/services").unwrap_or_default()
    }

    /// One of them, by its name in the namespace `default`.
    pub(crate) fn service(&self, name: &str) -> Option<ServiceReport> {
        self.services().into_iter().find(|service| service.service == format!("{name}.default"))
    }

    /// How many endpoints of a service the agent knows.
    pub(crate) fn endpoints(&self, name: &str) -> usize {
        self.service(name).map_or(0, |service| service.endpoints.len())
    }

    /// The certificates that the agent holds.
    pub(crate) fn certificates(&self) -> Vec<CertificateReport> {
        ask(&self.host, "agent.sock", "/certificates").unwrap_or_default()
    }

    /// The lines of the access log, of all starts of the agent.
    pub(crate) fn log(&self) -> Vec<Line> {
        let text: String = self.lock().iter().map(Process::stdout).collect();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).map(Line).collect()
    }

    /// What the agent remarks besides, of all its starts.
    pub(crate) fn remarks(&self) -> String {
        self.lock().iter().map(Process::stderr).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Process>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A line of the access log.
#[derive(Clone, Debug)]
pub(crate) struct Line(Value);

impl Line {
    /// A field's text; empty where there is none.
    pub(crate) fn text(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap_or_default()
    }

    /// A field's number.
    pub(crate) fn number(&self, field: &str) -> Option<u64> {
        self.0[field].as_u64()
    }

    /// Whether the called side's agent wrote it about these two, with this reason.
    pub(crate) fn is(&self, caller: &str, callee: &str, reason: &str) -> bool {
        self.text("reporter") == "destination"
            && self.text("source_principal") == caller
            && self.text("destination_principal") == callee
            && self.text("response_code_details") == reason
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart() {
        let line = Line(serde_json::json!({
            "reporter": "destination", "source_principal": "a", "destination_principal": "b",
            "response_code_details": "-", "duration": 7,
        }));
        assert!(line.is("a", "b", "-"));
        for (caller, callee, reason) in [("b", "a", "-"), ("a", "b", "denied"), ("a", "", "-")] {
            assert!(!line.is(caller, callee, reason), "{caller} {callee} {reason}");
        }
        assert_eq!((line.number("duration"), line.number("none"), line.text("none")), (Some(7), None, ""));
    }
}
