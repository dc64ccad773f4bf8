//! Where resources are changed: through the control server where there is one, in the directory itself on a host
//! that reads its resources from files.

use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::Context;
use baremesh_agent::config::{AgentConfig, Directories, SourceConfig};
use baremesh_agent::registration::{LocalService, file};
use baremesh_agent::snapshot::Host;
use baremesh_model::mesh::ResourceId;
use baremesh_model::name::Label;
use baremesh_registry::diagnostic::{Code, Diagnostic};
use baremesh_registry::files::ResourceDirectory;
use baremesh_registry::resource::Resource;
use baremesh_registry::set::Refused;
use http::Method;
use serde_json::Value;

use super::server::{ControlServer, Denied, Remote};
use crate::control::report::{
    Analysis, AnalyzeRequest, ApplyRequest, Changes, DeleteRequest, Fault, FlowsReport, ResourceReport,
};
use crate::control::resources::{self, Beside, Filter, Mode};
use crate::output::{Exit, Output, Said, remark, say_json, usage};

impl From<Refused> for Denied {
    fn from(refused: Refused) -> Self {
        let text: Vec<_> = refused.0.iter().map(ToString::to_string).collect();
        let findings = refused.0.iter().map(Diagnostic::to_json).collect();
        Self(Fault { error: text.join("\n").trim_end().to_owned(), findings })
    }
}

/// What the command has done when a refusal ends it.
pub(super) enum Done<'a> {
    /// It only asks.
    Asking,
    /// These changes, and no others.
    Changed(&'a [Changes]),
}

impl Done<'_> {
    /// How it stands now, for people.
    fn sentence(&self) -> Option<&'static str> {
        match self {
            Self::Asking => None,
            Self::Changed([]) => Some("nothing was changed"),
            Self::Changed(_) => Some("nothing more was changed: what is listed above is done"),
        }
    }

    /// The same for programs: the changes beside the refusal.
    fn beside(&self, fault: &Fault) -> anyhow::Result<Value> {
        let mut answer = serde_json::to_value(fault).context("the refusal cannot be written as JSON")?;
        if let (Self::Changed(changes), Some(answer)) = (self, answer.as_object_mut()) {
            answer.insert("changes".to_owned(), changes_json(changes)["changes"].take());
        }
        Ok(answer)
    }
}

/// Whether a change of the directory failed on the way: the findings then say themselves how it stands.
fn is_half_done(fault: &Fault) -> bool {
    fault.findings.iter().any(|finding| finding["code"] == Code::Unreadable.as_str())
}

/// Shows findings as they are, without `error:` before them, and as JSON to programs.
pub(super) fn shown<T>(output: Output, result: anyhow::Result<T>, done: &Done<'_>) -> anyhow::Result<T> {
    let error = match result {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    match error.downcast_ref::<Denied>() {
        Some(Denied(fault)) if !fault.findings.is_empty() => {
            match output {
                Output::Json => say_json(&done.beside(fault)?)?,
                _ => {
                    remark(&fault.error);
                    if let Some(sentence) = done.sentence().filter(|_| !is_half_done(fault)) {
                        remark(format_args!("\nerror: {sentence}"));
                    }
                }
            }
            Err(Said(Exit::Refused).into())
        }
        _ => {
            // Programs learn what was done before even where nothing can be said of the rest.
            if let (Done::Changed(before @ [_, ..]), Output::Json) = (done, output) {
                say_json(&changes_json(before))?;
            }
            Err(error)
        }
    }
}

/// Where resources are changed.
pub(super) enum Place {
    /// Through the control server.
    Control(ControlServer),
    /// In the directory that this host's agent reads, beside its registrations.
    Directory(ResourceDirectory, Vec<Arc<LocalService>>),
}

impl Place {
    pub(super) fn of(directories: &Directories, remote: &Remote) -> anyhow::Result<Self> {
        if !remote.is_given() && !directories.control_socket().exists() {
            let config = AgentConfig::load(directories.clone()).map_err(|error| usage(error.to_string()))?;
            if let SourceConfig::Files(ref path) = config.source {
                let local = file::read_all(&directories.registrations(), &config.terms());
                let local = local.map_err(|error| usage(error.to_string()))?;
                return Ok(Self::Directory(ResourceDirectory::new(path), local));
            }
        }
        Ok(Self::Control(remote.server(directories)?))
    }

    pub(super) async fn apply(&self, request: &ApplyRequest) -> anyhow::Result<Changes> {
        match self {
            Self::Control(server) => server.post("/apply", request).await,
            Self::Directory(directory, local) => {
                Ok(resources::apply(directory, request, beside(local)).map_err(Denied::from)?.report)
            }
        }
    }

    pub(super) async fn analyze(&self, request: &AnalyzeRequest) -> anyhow::Result<Analysis> {
        match self {
            Self::Control(server) => server.post("/analyze", request).await,
            Self::Directory(directory, local) => {
                Ok(resources::analyze(directory, request, beside(local)).map_err(Denied::from)?)
            }
        }
    }

    /// What a text's policies would do with the connections of the last hour.
    pub(super) async fn simulate(&self, request: &ApplyRequest) -> anyhow::Result<FlowsReport> {
        match self {
            Self::Control(server) => server.post("/simulate", request).await,
            Self::Directory(..) => Err(usage(
                "--simulate needs a control server, which hosts tell of their connections: here there are files alone",
            )),
        }
    }

    pub(super) async fn delete(&self, id: &ResourceId, mode: Mode) -> anyhow::Result<Changes> {
        match self {
            Self::Control(server) => {
                let request = DeleteRequest {
                    kind: id.kind.name().to_owned(),
                    namespace: id.key.namespace.to_string(),
                    name: id.key.name.to_string(),
                    dry_run: mode == Mode::DryRun,
                };
                server.post("/delete", &request).await
            }
            Self::Directory(directory, _) => {
                Ok(resources::delete(directory, id, mode).map_err(Denied::from)?.report)
            }
        }
    }

    pub(super) async fn list(&self, filter: &Filter) -> anyhow::Result<Vec<ResourceReport>> {
        match self {
            Self::Control(server) => server.ask(Method::GET, &target_of(filter)).await,
            Self::Directory(directory, _) => {
                Ok(resources::list(&directory.load().map_err(Denied::from)?, filter))
            }
        }
    }

    /// What a change comes to where it was made.
    pub(super) fn consequence(&self, changes: &Changes) -> Option<&'static str> {
        match self {
            Self::Directory(..) => Some("the agent of this host takes it up within seconds"),
            Self::Control(_) if changes.in_force => None,
            Self::Control(_) => Some("written, and not in force yet: `baremesh status` says why"),
        }
    }
}

/// What this host registered, as it is in the mesh that it is by itself. Where its workloads are is nobody's question here.
fn beside(local: &[Arc<LocalService>]) -> Beside<'static> {
    let host = Host {
        name: Label::new("localhost").expect("a label"),
        addresses: vec![Ipv4Addr::LOCALHOST.into()],
        why: "".into(),
        network: None,
    };
    let resources = local.iter().flat_map(|local| {
        let workload = local.workload(&host);
        let workload = workload.map(|workload| Resource::Workload(workload.into()));
        workload.into_iter().chain([Resource::Service(local.implied_service().into())])
    });
    Beside { served: None, registered: resources.map(resources::registered).collect() }
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

/// Says by which number a change can be taken back.
pub(super) fn remark_version(changes: &Changes) {
    if let Some(version) = changes.version {
        remark(format_args!("version {version}: `baremesh rollback {version}` takes it back"));
    }
}

/// One kind of JSON for programs: the changes as they came.
pub(super) fn changes_json(all: &[Changes]) -> Value {
    let changes: Vec<_> = all.iter().flat_map(|one| &one.changes).collect();
    let warnings: Vec<_> = all.iter().flat_map(|one| &one.warnings).collect();
    let in_force = all.iter().all(|one| one.in_force);
    let versions: Vec<_> = all.iter().filter_map(|one| one.version).collect();
    serde_json::json!({ "changes": changes, "warnings": warnings, "inForce": in_force, "versions": versions })
}
