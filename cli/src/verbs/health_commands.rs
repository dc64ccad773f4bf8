//! `baremesh health-commands`: the process that runs commands of health checks for the agent, which starts it.

use baremesh_agent::health::commands;
use clap::Args;

use super::Global;

/// Run commands of health checks for the agent at the other end of the standard input
#[derive(Debug, Args)]
pub struct HealthCommands {}

impl HealthCommands {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        Ok(commands::serve(&global.directories())?)
    }
}
