//! `baremesh agent`.

use std::env;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::Context;
use baremesh_agent::config::AgentConfig;
use baremesh_agent::health::commands::Commands;
use baremesh_agent::privileges;
use clap::Args;

use super::{Global, logging};
use crate::output::usage;

/// Threads beside the data path: names, certificates, the mesh's state, administration.
const THREADS: usize = 2;

/// What glibc is told about memory: freed buffers of a busy tunnel stay with the process, up to this much a thread,
/// instead of going back to the kernel and being asked for again a moment later, page by page. That costs a fifth of
/// the throughput. Other libcs ignore it.
const TUNABLES: &str = "glibc.malloc.trim_threshold=16777216:glibc.malloc.mmap_threshold=8388608";
/// The variable in which glibc is told; it reads it once, before a program begins.
const TUNABLES_VARIABLE: &str = "GLIBC_TUNABLES";

const LONG_ABOUT: &str = "\
Carry the traffic of this host's services. It puts the capture rules in place, holds the services' certificates, and
runs until it is told to stop (SIGTERM); then it lets open connections end, for 30 s unless agent.toml says
otherwise, and takes its rules away. While it is gone, services are refused or let through, as they were registered
(`service register --when-gone`).

`agent.toml` in the configuration directory may be missing: every setting has a default. The host must have joined a
mesh (`baremesh join`), or be one by itself (`baremesh init`, and `[registry] source = \"files\"`).

BAREMESH_LOG sets what is logged: `debug`, `info,baremesh_agent::proxy=debug`.";

/// Carry the traffic of this host's services
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT)]
pub struct Agent {}

impl Agent {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        keep_memory();
        logging::start();
        let config = AgentConfig::load(global.directories()).map_err(|error| usage(error.to_string()))?;
        // One thread, still: what is given up here no later one has.
        privileges::join_administrators();
        let commands = Commands::start(&config).context("the process that runs commands does not start")?;
        privileges::keep(privileges::of_agent(&config)).context("privileges cannot be given up")?;
        // Connections have threads of their own; these are for everything beside them.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
        let runtime = runtime.context("the runtime does not start")?;
        runtime.block_on(async { Box::pin(baremesh_agent::agent::run(config, commands)).await })?;
        // What still blocks on the disk or a resolver must not hold up the end.
        runtime.shutdown_background();
        Ok(())
    }
}

/// Begins anew, under the same process id, with glibc told about memory. Whoever has set the variable is left alone.
fn keep_memory() {
    if env::var_os(TUNABLES_VARIABLE).is_some() {
        return;
    }
    if let Ok(exe) = env::current_exe() {
        let mut same = Command::new(exe);
        same.args(env::args_os().skip(1)).env(TUNABLES_VARIABLE, TUNABLES);
        // It returns only where it failed; the agent then runs as it is.
        let _ = same.exec();
    }
}
