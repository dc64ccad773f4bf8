//! The agent's life: everything is prepared and checked, the rules are put in place, the data path starts, and only
//! then is the agent ready. It ends the other way round, and leaves the rules for a gone agent behind it.

/// What is read and checked before anything starts.
mod prepare;
/// Starting everything, in this order.
mod start;
/// Names of the mesh answered.
mod names;
/// This host's addresses followed.
mod own_addresses;
/// The guard's post, which is never left empty.
mod guard_post;
/// One agent taking over from another.
mod handover;
/// Who has a port that the agent wants.
pub mod holder;
/// The routes of the administration socket, the metrics and the readiness.
mod routes;
/// What runs, and stopping it.
mod running;

use std::io;
use std::os::fd::OwnedFd;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::capture::CaptureError;
use crate::config::{AgentConfig, Directories};
use crate::health::commands::Commands;
use crate::membership::MembershipError;
use crate::proxy::Phase;
use crate::registration::file::RegistrationError;
use crate::service_manager::{self, store};

pub use prepare::empty_mesh;
pub use start::TAKEN;

/// Why the agent did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The membership in the mesh.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// A registration of this host.
    #[error(transparent)]
    Registration(#[from] RegistrationError),
    /// The capture rules.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// A port of the agent is somebody else's.
    #[error(
        "{holders}: end what has it, or give the agent another port in agent.toml; closed services of this host stay refused until the agent runs"
    )]
    PortTaken {
        /// Which port, and who has it.
        holders: String,
    },
    /// Another agent has the ports.
    #[error(
        "an agent runs on this host already ({holders}): `systemctl reload baremesh` has a new one take its place, and `baremesh status` asks the one that runs"
    )]
    AnotherRuns {
        /// Which port, and who has it.
        holders: String,
    },
    /// A file, a socket, a thread.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// Something in the host's state or the mesh's resources.
    #[error("{0}")]
    State(String),
}

impl AgentError {
    /// Says of a port that is taken whether another agent has it, which is heard.
    fn unless_another_runs(self, directories: &Directories) -> Self {
        match self {
            Self::PortTaken { holders } if directories.agent_runs() => Self::AnotherRuns { holders },
            other => other,
        }
    }
}

/// Puts what was being done before what the system said.
pub(crate) fn doing(what: impl Into<String>) -> impl FnOnce(io::Error) -> AgentError {
    let what = what.into();
    move |source| AgentError::System { what, source }
}

/// How an agent begins.
#[derive(Debug)]
pub enum Begin {
    /// As the only one.
    Alone,
    /// In place of the one that runs. Who is told has a byte when that has come to pass.
    TakingOver(Option<OwnedFd>),
}

/// Runs the agent until SIGTERM or SIGINT, or until another one has taken over and what was open has ended. Commands of
/// health checks run in `commands`.
pub async fn run(config: AgentConfig, commands: Commands, begin: Begin) -> Result<(), AgentError> {
    let directories = config.directories.clone();
    let started = Box::pin(start::start(config, commands, begin)).await;
    let running = started.map_err(|error| error.unless_another_runs(&directories))?;
    let successor = tokio::select! {
        told = until_told_to_stop(&running.agent) => {
            told?;
            None
        }
        successor = running.taken() => Some(successor),
    };
    match successor {
        None if store::is_there()
            && running.may_leave_its_rules()
            && service_manager::is_starting_anew().await =>
        {
            running.stop_to_start_anew().await;
        }
        None => running.stop().await,
        Some(successor) => running.hand_over(successor).await,
    }
    Ok(())
}

/// Waits for SIGTERM or SIGINT; SIGHUP reads the registrations anew.
async fn until_told_to_stop(agent: &routes::Agent) -> Result<(), AgentError> {
    let catch = |kind| signal(kind).map_err(doing("catching signals"));
    let mut terminate = catch(SignalKind::terminate())?;
    let mut interrupt = catch(SignalKind::interrupt())?;
    let mut hangup = catch(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => {
                if let Err(error) = agent.reload().await {
                    tracing::error!(%error, "the registrations were not taken");
                }
            }
        }
    }
}

/// Ends when the agent has come as far as `phase`.
async fn until(mut receiver: watch::Receiver<Phase>, phase: Phase) {
    // An error means that the agent is gone altogether.
    let _ = receiver.wait_for(|current| *current >= phase).await;
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn who_finds_its_ports_taken_is_told_whether_an_agent_has_them() {
        let directory = tempfile::tempdir().expect("a directory");
        let directories = Directories { runtime: directory.path().to_owned(), ..Directories::default() };
        let taken = || AgentError::PortTaken { holders: "port 15001 is taken by process 7 (x)".to_owned() };
        let told = || taken().unless_another_runs(&directories).to_string();
        assert!(told().contains("end what has it"));
        let agent = UnixListener::bind(directories.agent_socket()).expect("a socket");
        let said = told();
        assert!(said.starts_with("an agent runs on this host already (port 15001 is taken"), "{said}");
        drop(agent);
        assert!(told().contains("end what has it"), "what a dead one left is nobody");
    }
}
