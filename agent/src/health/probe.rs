//! Looking at a service once. Every kind ends within the time that it is given, keeps no more than a few kilobytes of
//! what it is told, and says in a line why it failed.

/// Commands, systemd's among them.
pub(super) mod exec;
/// grpc.health.v1.
mod grpc;
/// GET.
mod http;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use baremesh_model::name::Key;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

pub use exec::RunAs;

use super::commands::{self, Commands, Speaking};
use crate::proxy::socket::{self, Mark};
use crate::registration::check::{Exec, Probe};

/// The most commands that run at once: beyond it they wait, and their time has not begun. Looks over the network have no
/// bound but that of registrations, one each.
pub(super) const MAX_COMMANDS: usize = 64;
/// How much longer than a command may take its end may take to be told of by another process.
const ANSWER: Duration = Duration::from_secs(5);
/// Most bytes of an answer's head.
const MAX_HEAD: usize = 16 * 1024;
/// What looks call themselves.
const USER_AGENT: &str = concat!("baremesh-health/", env!("CARGO_PKG_VERSION"));
/// Where systemd's tool is.
const SYSTEMCTL: &str = "/usr/bin/systemctl";

/// Looks at services.
pub struct Prober {
    mark: Mark,
    http: http::Client,
    commands: Semaphore,
    runner: Runner,
    systemctl: String,
}

/// Who runs commands.
enum Runner {
    Here(RunAs),
    Apart(Speaking),
}

impl Prober {
    /// Over sockets with this mark, and with commands run there.
    pub fn new(mark: Mark, commands: Commands) -> io::Result<Self> {
        Ok(Self {
            mark,
            http: http::Client::new(),
            commands: Semaphore::new(MAX_COMMANDS),
            runner: match commands {
                Commands::Here(run_as) => Runner::Here(run_as),
                Commands::Apart(apart) => Runner::Apart(apart.speak()?),
            },
            systemctl: SYSTEMCTL.to_owned(),
        })
    }

    /// Looks at a service once, for `limit` at most. The error is why it failed, for people.
    pub async fn look(&self, service: &Key, probe: &Probe, limit: Duration) -> Result<(), String> {
        let looking = async {
            match probe {
                Probe::HttpGet(get) => {
                    let socket = self.connect(get.at, limit).await?;
                    Box::pin(self.http.get(get, socket)).await
                }
                Probe::TcpSocket { at } => self.connect(*at, limit).await.map(drop),
                Probe::Grpc { at, service } => {
                    let socket = self.connect(*at, limit).await?;
                    Box::pin(grpc::check(socket, *at, service, limit)).await
                }
                Probe::Exec(exec) => return self.run(service, exec, limit).await,
                // There is no cheaper way that says the same: whether a unit is active is systemd's own to say, which
                // takes D-Bus with its authentication, or its own tool that speaks it. Processes in its cgroup say
                // something else, of units that are starting, stopping, or active without any.
                Probe::Unit(unit) => {
                    let words = [&self.systemctl, "is-active", "--", unit.as_str()];
                    let command = words.map(str::to_owned).to_vec();
                    return self.run_as_agent(&Exec { command, user: None }, limit).await;
                }
                // It speaks for itself.
                Probe::Ttl(_) => Ok(()),
            }
        };
        match probe {
            Probe::Exec(_) | Probe::Unit(_) => Box::pin(looking).await,
            _ => timeout(limit, Box::pin(looking)).await.unwrap_or_else(|_| Err(too_late(limit))),
        }
    }

    async fn run(&self, service: &Key, exec: &Exec, limit: Duration) -> Result<(), String> {
        let _place = self.commands.acquire().await.map_err(|error| error.to_string())?;
        match &self.runner {
            Runner::Here(run_as) => commands::run(*run_as, exec, limit).await,
            // It ends the command itself, after the time that the registration gives it.
            Runner::Apart(apart) => {
                timeout(limit + ANSWER, apart.run(service)).await.unwrap_or_else(|_| Err(too_late(limit)))
            }
        }
    }

    async fn run_as_agent(&self, exec: &Exec, limit: Duration) -> Result<(), String> {
        let _place = self.commands.acquire().await.map_err(|error| error.to_string())?;
        exec::run(&exec.command, None, limit).await
    }

    async fn connect(&self, at: SocketAddr, limit: Duration) -> Result<TcpStream, String> {
        // To the kernel an unspecified address is this host's own.
        if at.ip().is_unspecified() {
            return Err("no container is certain to be the service".to_owned());
        }
        let connected = socket::connect(at, self.mark, limit).await;
        connected.map_err(|error| format!("connecting to {at}: {error}"))
    }
}

fn too_late(limit: Duration) -> String {
    format!("no answer within {limit:?}")
}

#[cfg(test)]
mod tests;
