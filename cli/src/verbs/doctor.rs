//! `baremesh doctor`.

use baremesh_agent::doctor::{Check, Severity};
use clap::Args;

use super::{Global, block_on};
use crate::output::{Exit, Output, Said, say, say_json};

/// What the control server of this host says of the mesh.
mod control;
/// Everything is looked at and judged.
mod examine;
/// The answer, for people and for programs.
mod show;

const LONG_ABOUT: &str = "\
Say what is wrong with this host, why it matters and what to do: kernel and tools, ports, the capture rules and rules of
others, the control server and the clocks, certificates, names, this host's services, limits, disk. On the control host also
what the control server says of the others. Nothing is changed.

It asks the agent of this host, and looks for itself. Without an agent it says so and looks at what it can; without being root
it names what only root may look at. What was not looked at is never taken to be well.

Exits with 0 where nothing is wrong or there are warnings alone, 1 where there is an error, 2 where the command line cannot be
understood. docs/troubleshooting.md lists all codes.";

const EXAMPLES: &str = "\
Examples:
  baremesh doctor
  baremesh doctor --peers                       every other agent is tried as well
  baremesh doctor -o json | jq '.findings[].code'";

/// Say what is wrong with this host, and what to do
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_help = EXAMPLES)]
pub struct Doctor {
    /// Try the agent of every host that has an endpoint, too
    #[arg(long)]
    peers: bool,
}

/// Whether other hosts' agents are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Peers {
    Tried,
    LeftAlone,
}

/// What was found.
struct Diagnosis {
    /// `running`, `gone` or `not_allowed`.
    agent: &'static str,
    checks: Vec<Check>,
}

impl Diagnosis {
    fn count(&self, severity: Severity) -> usize {
        let findings = self.checks.iter().flat_map(|check| &check.findings);
        findings.filter(|finding| finding.code.severity() == severity).count()
    }
}

impl Doctor {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let peers = if self.peers { Peers::Tried } else { Peers::LeftAlone };
        let diagnosis =
            block_on(async { Ok(Box::pin(examine::examine(&global.directories(), peers)).await) })?;
        match global.output {
            Output::Json => say_json(&show::json(&diagnosis))?,
            _ => say(show::text(&diagnosis))?,
        }
        if diagnosis.count(Severity::Error) == 0 { Ok(()) } else { Err(Said(Exit::Refused).into()) }
    }
}
