//! The control server as commands speak with it: over its socket where it runs on this host, or from afar with an
//! operator's credential.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use baremesh_agent::admin::client::{Socket, SocketError};
use baremesh_agent::config::Directories;
use baremesh_agent::machine;
use baremesh_ca::client::OperatorClient;
use clap::Args;
use http::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::credential::Credential;
use crate::control::report::Fault;
use crate::output::usage;

/// From where an order is given, where it is not given on the control host.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Options of commands to the control server")]
pub(super) struct Remote {
    /// An operator's credential, made by `baremesh operator add`: the command goes to the control server over the network
    #[arg(long, global = true, env = "BAREMESH_CREDENTIAL", value_name = "FILE", hide_env_values = true)]
    credential: Option<PathBuf>,
    /// The control server's address, with `:PORT` unless it is 15012 [default: the one in the credential]
    #[arg(long, global = true, value_name = "ADDRESS")]
    control: Option<String>,
}

impl Remote {
    /// Whether the command goes over the network.
    pub(super) fn is_given(&self) -> bool {
        self.credential.is_some()
    }

    /// The control server that is meant.
    pub(super) fn server(&self, directories: &Directories) -> anyhow::Result<ControlServer> {
        let Some(file) = &self.credential else {
            return match &self.control {
                Some(_) => Err(usage(
                    "--control needs --credential: without an operator's credential, a command is for this host's own \
                     control server",
                )),
                None => Ok(ControlServer::Here(directories.control_socket())),
            };
        };
        let credential = Credential::load(file)?;
        let address = self.control.clone().unwrap_or(credential.control);
        let client = OperatorClient::new(address.clone(), Arc::new(credential.bundle), &credential.issued)
            .with_context(|| format!("{} cannot be used", file.display()))?;
        Ok(ControlServer::Afar { address, client: Box::new(client) })
    }
}

/// The control server.
pub(super) enum ControlServer {
    /// Of this host, at its socket.
    Here(PathBuf),
    /// At its port, for an operator.
    Afar {
        /// Where that is, with or without a port.
        address: String,
        /// What speaks with it.
        client: Box<OperatorClient>,
    },
}

impl ControlServer {
    /// Where hosts reach it, as far as is known here: `port` is the one that it listens on.
    pub(super) fn reached_at(&self, port: u16) -> String {
        match self {
            Self::Here(_) => format!("{}:{port}", machine::name()),
            Self::Afar { address, .. } => address.clone(),
        }
    }

    /// Calls without a body.
    pub(super) async fn ask<A: DeserializeOwned>(&self, method: Method, target: &str) -> anyhow::Result<A> {
        self.exchange(method, target, Vec::new()).await
    }

    /// Calls with a body.
    pub(super) async fn post<A: DeserializeOwned>(
        &self,
        target: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<A> {
        let body = serde_json::to_vec(body).context("the request cannot be written as JSON")?;
        self.exchange(Method::POST, target, body).await
    }

    async fn exchange<A: DeserializeOwned>(
        &self,
        method: Method,
        target: &str,
        body: Vec<u8>,
    ) -> anyhow::Result<A> {
        let answer = match self {
            Self::Here(path) => {
                let socket = Socket { path, program: "baremesh control" };
                match socket.call(method, target, body).await {
                    Ok(answer) => answer,
                    Err(SocketError::Refused { message, .. }) => return Err(refusal(message)),
                    Err(error) => return Err(error.into()),
                }
            }
            Self::Afar { client, .. } => match client.order(method, target, body).await? {
                (StatusCode::OK, answer) => answer,
                (_, said) => return Err(refusal(String::from_utf8_lossy(&said).trim_end().to_owned())),
            },
        };
        serde_json::from_slice(&answer)
            .context("the control server's answer cannot be read: is it of another version?")
    }
}

/// A refusal by the control server, or by the directory.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.error)]
pub(super) struct Denied(pub(super) Fault);

fn refusal(message: String) -> anyhow::Error {
    Denied(serde_json::from_str(&message).unwrap_or(Fault { error: message, findings: Vec::new() })).into()
}
