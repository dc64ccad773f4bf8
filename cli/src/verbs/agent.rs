//! `baremesh agent`.

use std::env;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context, bail};
use baremesh_agent::agent::{Begin, TAKEN};
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

With --take-over another agent, such as that of a new version, takes the place of the one that runs, and no connection is
lost: this is what `systemctl reload baremesh` does.

`agent.toml` in the configuration directory may be missing: every setting has a default. The host must have joined a
mesh (`baremesh join`), or be one by itself (`baremesh init`, and `[registry] source = \"files\"`).

BAREMESH_LOG sets what is logged: `debug`, `info,baremesh_agent::proxy=debug`.";

/// Carry the traffic of this host's services
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT)]
pub struct Agent {
    /// Take over from the agent that runs: its listening sockets, and everything that is new from then on. That one
    /// carries what is open to its end, for `drain_seconds` at most. It stays in charge where this one cannot serve
    #[arg(long)]
    take_over: bool,
    /// With --take-over: return when the agent has taken over, and leave it running
    #[arg(long, requires = "take_over")]
    detach: bool,
    /// What --detach starts.
    #[arg(long, hide = true, requires = "take_over", conflicts_with = "detach")]
    detached: bool,
}

impl Agent {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        if self.detach {
            return detach();
        }
        keep_memory();
        let begin = match (self.take_over, self.detached) {
            (false, _) => Begin::Alone,
            (true, false) => Begin::TakingOver(None),
            (true, true) => {
                // Refused only where the process leads a group already.
                let _ = rustix::process::setsid();
                let tell = io::stdin().as_fd().try_clone_to_owned();
                Begin::TakingOver(Some(tell.context("the standard input is closed")?))
            }
        };
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
        runtime.block_on(async { Box::pin(baremesh_agent::agent::run(config, commands, begin)).await })?;
        // What still blocks on the disk or a resolver must not hold up the end.
        runtime.shutdown_background();
        Ok(())
    }
}

/// Starts an agent that takes over, and waits until it has.
fn detach() -> anyhow::Result<()> {
    let (mut ours, theirs) = UnixStream::pair().context("a pair of sockets")?;
    let arguments = env::args_os().skip(1).map(|argument| match argument {
        detach if detach == "--detach" => "--detached".into(),
        other => other,
    });
    let exe = env::current_exe().context("finding this program's own binary")?;
    let mut command = Command::new(exe);
    let mut started =
        command.args(arguments).stdin(OwnedFd::from(theirs)).spawn().context("starting the agent")?;
    // The agent alone has its end.
    drop(command);
    let mut byte = [0];
    match ours.read(&mut byte).context("waiting for the agent")? {
        1 if byte == [TAKEN] => Ok(()),
        _ => {
            let status = started.wait().context("waiting for the agent's end")?;
            bail!(
                "the agent did not take over ({status}; its own messages say why): the one that runs stays in charge"
            )
        }
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
