//! `baremesh agent`.

use anyhow::Context;
use baremesh_agent::config::AgentConfig;
use clap::Args;

use super::{Global, logging};
use crate::output::usage;

/// Threads beside the data path: names, certificates, the mesh's state, administration.
const THREADS: usize = 2;

const LONG_ABOUT: &str = "\
Carry the traffic of this host's services. It puts the capture rules in place, holds the services' certificates, and
runs until it is told to stop (SIGTERM); then it lets open connections end, for 30 s unless agent.toml says
otherwise, and takes its rules away.

`agent.toml` in the configuration directory may be missing: every setting has a default. The host must have joined a
mesh (`baremesh join`), or read its resources from files (`[registry] source = \"files\"`).

BAREMESH_LOG sets what is logged: `debug`, `info,baremesh_agent::proxy=debug`.";

/// Carry the traffic of this host's services
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT)]
pub struct Agent {}

impl Agent {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        logging::start();
        let config = AgentConfig::load(global.directories()).map_err(|error| usage(error.to_string()))?;
        // Connections have threads of their own; these are for everything beside them.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
        let runtime = runtime.context("the runtime does not start")?;
        runtime.block_on(async { Box::pin(baremesh_agent::agent::run(config)).await })?;
        // What still blocks on the disk or a resolver must not hold up the end.
        runtime.shutdown_background();
        Ok(())
    }
}
