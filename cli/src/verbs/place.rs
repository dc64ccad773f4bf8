//! Where resources are changed: through the control server where there is one, in the directory itself on a host
//! that reads its resources from files.

use std::path::PathBuf;

use anyhow::Context;
use baremesh_agent::admin::client::{Socket, SocketError};
use baremesh_agent::config::{AgentConfig, Directories, SourceConfig};
use baremesh_model::mesh::ResourceId;
use baremesh_registry::diagnostic::Diagnostic;
use baremesh_registry::files::ResourceDirectory;
use baremesh_registry::set::Refused;
use http::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::control::report::{ApplyRequest, Changes, DeleteRequest, Fault, ResourceReport};
use crate::control::resources::{self, Filter, Mode};
use crate::output::{Exit, Output, Said, remark, say_json, usage};

/// The control server's socket of this host.
pub(super) struct ControlSocket(PathBuf);

impl ControlSocket {
    pub(super) fn of(directories: &Directories) -> Self {
        Self(directories.control_socket())
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
        let socket = Socket { path: &self.0, program: "baremesh control" };
        let answer = match socket.call(method, target, body).await {
            Ok(answer) => answer,
            Err(SocketError::Refused { message, .. }) => return Err(refusal(message)),
            Err(error) => return Err(error.into()),
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

impl From<Refused> for Denied {
    fn from(refused: Refused) -> Self {
        let text: Vec<_> = refused.0.iter().map(ToString::to_string).collect();
        let findings = refused.0.iter().map(Diagnostic::to_json).collect();
        Self(Fault { error: text.join("\n").trim_end().to_owned(), findings })
    }
}

/// Shows findings as they are, without `error:` before them, and as JSON to programs.
pub(super) fn shown<T>(output: Output, result: anyhow::Result<T>) -> anyhow::Result<T> {
    let error = match result {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    match error.downcast_ref::<Denied>() {
        Some(Denied(fault)) if !fault.findings.is_empty() => {
            match output {
                Output::Json => say_json(fault)?,
                _ => {
                    remark(&fault.error);
                    remark("\nerror: nothing was changed");
                }
            }
            Err(Said(Exit::Refused).into())
        }
        _ => Err(error),
    }
}

/// Where resources are changed.
pub(super) enum Place {
    /// Through the control server.
    Control(ControlSocket),
    /// In the directory that this host's agent reads.
    Directory(ResourceDirectory),
}

impl Place {
    pub(super) fn of(directories: &Directories) -> anyhow::Result<Self> {
        if !directories.control_socket().exists() {
            let config = AgentConfig::load(directories.clone()).map_err(|error| usage(error.to_string()))?;
            if let SourceConfig::Files(path) = config.source {
                return Ok(Self::Directory(ResourceDirectory::new(&path)));
            }
        }
        Ok(Self::Control(ControlSocket::of(directories)))
    }

    pub(super) async fn apply(&self, request: &ApplyRequest) -> anyhow::Result<Changes> {
        match self {
            Self::Control(socket) => socket.post("/apply", request).await,
            Self::Directory(directory) => {
                Ok(resources::apply(directory, request, None).map_err(Denied::from)?)
            }
        }
    }

    pub(super) async fn delete(&self, id: &ResourceId, mode: Mode) -> anyhow::Result<Changes> {
        match self {
            Self::Control(socket) => {
                let request = DeleteRequest {
                    kind: id.kind.name().to_owned(),
                    namespace: id.key.namespace.to_string(),
                    name: id.key.name.to_string(),
                    dry_run: mode == Mode::DryRun,
                };
                socket.post("/delete", &request).await
            }
            Self::Directory(directory) => Ok(resources::delete(directory, id, mode).map_err(Denied::from)?),
        }
    }

    pub(super) async fn list(&self, filter: &Filter) -> anyhow::Result<Vec<ResourceReport>> {
        match self {
            Self::Control(socket) => socket.ask(Method::GET, &target_of(filter)).await,
            Self::Directory(directory) => {
                Ok(resources::list(&directory.load().map_err(Denied::from)?, filter))
            }
        }
    }

    /// What a change comes to where it was made.
    pub(super) fn consequence(&self, changes: &Changes) -> Option<&'static str> {
        match self {
            Self::Directory(_) => Some("the agent of this host takes it up within seconds"),
            Self::Control(_) if changes.in_force => None,
            Self::Control(_) => Some("written, and not in force yet: `baremesh status` says why"),
        }
    }
}

/// Every part is letters, digits, hyphens and dots: nothing needs escaping.
fn target_of(filter: &Filter) -> String {
    let kind = filter.kind.map(|kind| format!("kind={kind}"));
    let namespace = filter.namespace.as_ref().map(|namespace| format!("namespace={namespace}"));
    let name = filter.name.as_ref().map(|name| format!("name={name}"));
    let parts: Vec<_> = [kind, namespace, name].into_iter().flatten().collect();
    if parts.is_empty() { "/resources".to_owned() } else { format!("/resources?{}", parts.join("&")) }
}

/// The changes as a table: what was done, or would be.
pub(super) fn say_changes(changes: &Changes) -> String {
    let mut text = String::new();
    for change in &changes.changes {
        let (kind, namespace, name) = (&change.kind, &change.namespace, &change.name);
        text.push_str(&format!("{kind} {namespace}/{name} {} ({})\n", change.effect, change.file));
    }
    text
}

/// One kind of JSON for programs: the changes as they came.
pub(super) fn changes_json(all: &[Changes]) -> Value {
    let changes: Vec<_> = all.iter().flat_map(|one| &one.changes).collect();
    let warnings: Vec<_> = all.iter().flat_map(|one| &one.warnings).collect();
    let in_force = all.iter().all(|one| one.in_force);
    serde_json::json!({ "changes": changes, "warnings": warnings, "inForce": in_force })
}
