//! `baremesh containers`: which containers run, told to the agent by a process that follows the engine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context;
use baremesh_agent::admin::client::Socket;
use baremesh_agent::admin::report::{EngineReport, RunningReport};
use baremesh_agent::containers::follow::{Follower, USUAL_ENGINES};
use baremesh_agent::privileges;
use clap::{Args, Subcommand};
use rustix::thread::CapabilitySet;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use super::{Global, block_on, logging};
use crate::output::{Output, printable, say, say_json, table, usage};

/// Containers of this host, by the labels that docker or podman knows them by
#[derive(Debug, Args)]
pub struct Containers {
    #[command(subcommand)]
    verb: ContainersVerb,
}

#[derive(Debug, Subcommand)]
enum ContainersVerb {
    Follow(Follow),
    /// List the containers that the agent was told of, and which services they are
    List,
}

const LONG_ABOUT: &str = "\
Tell the agent of this host which containers run, with which labels, at which addresses of which bridges, and what becomes of
them, for as long as it runs. Services that are registered with --container-label are found by that. `baremesh-containers.service`
runs it.

It speaks Docker's HTTP API over the engine's Unix socket, which podman serves as well (`podman.socket`). Whoever may speak with
an engine is root on the host: that is why this is a process of its own, with no network and no capabilities, and the agent
speaks with no engine. The agent takes what it says from root alone. When it ends no container is certain to be anybody, and
their calls are refused until it is back.

BAREMESH_LOG sets what is logged.";

const EXAMPLES: &str = "\
Examples:
  baremesh containers follow
  baremesh containers follow --engine unix:///run/docker.sock --engine unix:///run/podman/podman.sock";

/// Tell the agent which containers run
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_help = EXAMPLES)]
struct Follow {
    /// The engine's socket; can be given several times [default: docker's and podman's, as far as they are there]
    #[arg(long = "engine", value_name = "unix://PATH", value_parser = socket_path)]
    engines: Vec<PathBuf>,
}

impl Containers {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        match self.verb {
            ContainersVerb::Follow(follow) => follow.run(global),
            ContainersVerb::List => list(global),
        }
    }
}

fn socket_path(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text.strip_prefix("unix://").unwrap_or(text));
    match path.is_absolute() {
        true => Ok(path.to_owned()),
        false => Err("name a Unix socket: unix:///run/docker.sock".to_owned()),
    }
}

/// The socket's path without links in it, as far as it is there.
fn canonical(socket: &Path) -> PathBuf {
    let in_its_directory = || Some(socket.parent()?.canonicalize().ok()?.join(socket.file_name()?));
    socket.canonicalize().ok().or_else(in_its_directory).unwrap_or_else(|| socket.to_owned())
}

impl Follow {
    fn run(self, global: &Global) -> anyhow::Result<()> {
        logging::start();
        privileges::keep(CapabilitySet::empty()).context("privileges cannot be given up")?;
        let engines = match self.engines.is_empty() {
            false => self.engines,
            true => USUAL_ENGINES.iter().map(PathBuf::from).filter(|path| path.exists()).collect(),
        };
        if engines.is_empty() {
            return Err(usage(format!(
                "there is no container engine's socket at {}: name it with --engine, or start `docker.socket` or `podman.socket`",
                USUAL_ENGINES.join(" or ")
            )));
        }
        let agent = global.directories().agent_socket();
        block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            let mut following = JoinSet::new();
            // By whatever path an engine is named, the agent knows it as the same.
            let engines: BTreeSet<_> = engines.iter().map(|engine| canonical(engine)).collect();
            for engine in engines {
                following.spawn(Follower { engine, agent: agent.clone() }.run());
            }
            tokio::select! {
                _ = terminate.recv() => Ok(()),
                _ = interrupt.recv() => Ok(()),
                ended = following.join_next() => match ended {
                    Some(Err(error)) => Err(error).context("following an engine failed"),
                    Some(Ok(never)) => match never {},
                    None => Ok(()),
                },
            }
        })
    }
}

fn list(global: &Global) -> anyhow::Result<()> {
    let path = global.directories().agent_socket();
    let socket = Socket { path: &path, program: "baremesh agent" };
    let engines: Vec<EngineReport> = block_on(async {
        let answer = socket.ask("/containers").await?;
        Ok(serde_json::from_slice(&answer)?)
    })?;
    if global.output == Output::Json {
        return say_json(&engines);
    }
    let rows = |engine: &EngineReport| {
        let row = |running: &RunningReport| {
            let followed = if engine.followed { "" } else { " (not followed)" };
            vec![
                printable(&running.name),
                running.addresses.join("\n"),
                running.service.clone().unwrap_or_else(|| "-".to_owned()),
                format!("{}{followed}", printable(&engine.engine)),
            ]
        };
        engine.containers.iter().map(row).collect::<Vec<_>>()
    };
    let empty = match engines.iter().any(|engine| engine.followed) {
        true => "no container runs on a bridge of this host",
        false => "nobody follows a container engine: `systemctl enable --now baremesh-containers`",
    };
    say(table(
        &["CONTAINER", "ADDRESSES", "SERVICE", "ENGINE"],
        engines.iter().flat_map(rows).collect(),
        empty,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_has_one_name_whichever_way_leads_to_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let real = directory.path().canonicalize().expect("its path").join("run");
        std::fs::create_dir(&real).expect("a directory");
        std::os::unix::fs::symlink(&real, directory.path().join("var-run")).expect("a link");
        let (there, by_link) = (real.join("docker.sock"), directory.path().join("var-run/docker.sock"));
        // The socket may come later than the follower.
        assert_eq!(canonical(&by_link), there);
        std::fs::write(&there, "").expect("a file");
        assert_eq!((canonical(&by_link), canonical(&there)), (there.clone(), there));
        let nowhere = Path::new("/nowhere/at/all.sock");
        assert_eq!(canonical(nowhere), nowhere);
    }
}
