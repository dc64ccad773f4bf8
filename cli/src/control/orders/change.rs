//! Resources: applying, deleting, listing, analysing. Who may write each of them is decided before anything is written,
//! and what was written has a version.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use baremesh_ca::ledger::{AuditRecord, FileChange, Outcome};
use baremesh_model::mesh::ResourceId;
use baremesh_model::name::{Key, Label};
use baremesh_registry::files::{Change, Effect};
use baremesh_registry::format;
use baremesh_registry::resource::{Located, Resource};
use baremesh_registry::set::{Loaded, Refused};
use http::StatusCode;
use serde_json::Value;
use tokio::time::timeout;

use super::{audit, blocking, record, told};
use crate::control::report::{AnalyzeRequest, ApplyRequest, Changes, DeleteRequest};
use crate::control::resources::{self, Beside, Filter, Made, Mode};
use crate::control::socket::Denial;
use crate::control::who::Who;
use crate::control::{Server, difference, permission};
use crate::verbs::values;

/// How long `apply` waits until what it wrote is in force.
const IN_FORCE: Duration = Duration::from_secs(5);
/// Who changed files without an order, as the audit has it.
const BY_HAND: &str = "by hand";
/// Who changed resources in Consul without an order of this server's.
const BY_OTHERS: &str = "by way of Consul";
/// Who changed files while no server looked, or by an order that was cut off before it was written down.
const FOUND_AT_START: &str = "found at start";
/// Resources that the audit's line names; the difference beside it has all of them.
const NAMED: usize = 8;

pub(super) async fn apply(server: Arc<Server>, request: ApplyRequest, who: Who) -> Result<Value, Denial> {
    let (mode, what) = (Mode::of_dry_run(request.dry_run), format!("apply {}", request.name));
    let changing = move |server: &Server| {
        let written = resources::parsed(&request);
        let config = server.in_force.borrow().loaded.mesh.config.clone();
        let judge = |located: &Located<Resource>| permission::refusal(who.role(), &located.value, &config);
        permit(server, &who, &what, &written.resources.iter().filter_map(judge).collect::<Vec<_>>())?;
        let beside = Beside { served: Some(&server.trust_domain), registered: registered(server) };
        changed(server, (&who, &what), mode, |mode| {
            let request = ApplyRequest { dry_run: mode == Mode::DryRun, ..request };
            resources::apply(&server.directory, &request, beside)
        })
    };
    let changed = blocking(server.clone(), changing).await?;
    settled(&server, changed).await
}

pub(super) async fn delete(server: Arc<Server>, request: DeleteRequest, who: Who) -> Result<Value, Denial> {
    let bad = |error: String| Denial::new(StatusCode::BAD_REQUEST, error);
    let label = |text: &str| Label::new(text).map_err(|error| bad(error.to_string()));
    let key = Key::new(label(&request.namespace)?, label(&request.name)?);
    let id = ResourceId { kind: values::kind(&request.kind).map_err(bad)?, key };
    let (mode, what) = (Mode::of_dry_run(request.dry_run), format!("delete {id}"));
    let changing = move |server: &Server| {
        let config = server.in_force.borrow().loaded.mesh.config.clone();
        let refusal = permission::refusal_of_id(who.role(), &id, &config);
        permit(server, &who, &what, refusal.as_slice())?;
        changed(server, (&who, &what), mode, |mode| resources::delete(&server.directory, &id, mode))
    };
    let changed = blocking(server.clone(), changing).await?;
    settled(&server, changed).await
}

pub(super) fn analyze(server: &Server, request: &AnalyzeRequest) -> Result<Value, Denial> {
    let beside = Beside { served: None, registered: registered(server) };
    told(resources::analyze(&server.directory, request, beside)?)
}

/// The services and workloads that are published, those of hosts among them.
pub(super) fn registered(server: &Server) -> Vec<Located<Resource>> {
    let published = server.control.published();
    let resources = published.iter().filter_map(|(_, text)| {
        let document = serde_json::from_str(text).ok()?;
        // What a newer version wrote is nothing that this one can judge.
        match format::decode(&document).ok()? {
            resource @ (Resource::Service(_) | Resource::Workload(_)) => {
                Some(resources::registered(resource))
            }
            _ => None,
        }
    });
    resources.collect()
}

/// Refuses the whole of a change for which there are reasons against.
pub(super) fn permit(server: &Server, who: &Who, what: &str, refusals: &[String]) -> Result<(), Denial> {
    if refusals.is_empty() {
        return Ok(());
    }
    let reason = format!("{who} may not do this, and nothing was changed:\n{}", refusals.join("\n"));
    audit(server, who, what.to_owned(), Some(&refusals.join("; ")));
    Err(Denial::new(StatusCode::FORBIDDEN, reason))
}

/// A change of the directory that was made, and the set that it led to.
pub(super) struct Changed {
    changes: Changes,
    wanted: Option<Loaded>,
}

/// Makes a change, one at a time, and writes down what it did or why it was refused.
pub(super) fn changed<E: From<Refused> + Into<Denial> + ToString>(
    server: &Server,
    (who, what): (&Who, &str),
    mode: Mode,
    make: impl FnOnce(Mode) -> Result<Made, E>,
) -> Result<Changed, Denial> {
    // Versions are in the order of the changes: nobody comes between a change and its version.
    let mut known = server.changing.lock().unwrap_or_else(PoisonError::into_inner);
    if mode == Mode::Change {
        note_unordered(server, &mut known, unordered(server));
    }
    let made = match &server.consul {
        // Planned against the mirror, written there, and then mirrored.
        Some(consul) if mode == Mode::Change => make(Mode::DryRun).and_then(|made| {
            consul.commit(&tokio::runtime::Handle::current(), &made.changes)?;
            Ok(made)
        }),
        _ => make(mode),
    };
    let Made { mut report, changes } = match made {
        Ok(made) => made,
        Err(refused) => {
            if mode == Mode::Change {
                audit(server, who, what.to_owned(), Some(&refused.to_string()));
            }
            return Err(refused.into());
        }
    };
    if mode == Mode::DryRun {
        return Ok(Changed { changes: report, wanted: None });
    }
    // Somebody else's change since may be at fault: then it is not in force, and `status` says why.
    let wanted = server.directory.load().ok();
    let resources = wanted.as_ref().map(Loaded::resources);
    report.version = keep(server, (who, what), &changes, resources.as_deref());
    if let Some(resources) = resources {
        *known = resources;
    }
    Ok(Changed { changes: report, wanted })
}

/// Writes down what the directory holds otherwise than by orders. Who edits its files is not known.
pub(in crate::control) fn note_changes_by_hand(server: &Server) {
    let who = unordered(server);
    note_unordered(server, &mut server.changing.lock().unwrap_or_else(PoisonError::into_inner), who);
}

/// Who it is that changes the directory without an order.
fn unordered(server: &Server) -> &'static str {
    if server.consul.is_some() { BY_OTHERS } else { BY_HAND }
}

/// Writes down in what the directory differs from what the audit knows of, when the server starts: what was changed while
/// none ran, and what an order had changed when the server was killed before it could write that down.
pub(in crate::control) fn note_found_at_start(server: &Server) {
    let mut known = server.changing.lock().unwrap_or_else(PoisonError::into_inner);
    let ledger = server.ca.ledger();
    let recorded = ledger.recorded().map(|text| text.and_then(|text| recorded(&text)));
    let begun = match recorded {
        Ok(Some(recorded)) => {
            *known = recorded;
            note_unordered(server, &mut known, FOUND_AT_START);
            return;
        }
        // The first start, or what an earlier version, or a later one, wrote.
        Ok(None) => ledger.begin_recorded(&document(&known)),
        Err(error) => Err(error),
    };
    if let Err(error) = begun {
        tracing::error!("what is changed while no server runs will not be noticed: {error}");
    }
}

/// Resources as the ledger keeps them.
fn document(resources: &[Resource]) -> String {
    Value::Array(resources.iter().map(format::encode).collect()).to_string()
}

fn recorded(text: &str) -> Option<Vec<Resource>> {
    let documents: Vec<Value> = serde_json::from_str(text).ok()?;
    documents.iter().map(|document| format::decode(document).ok()).collect()
}

fn note_unordered(server: &Server, known: &mut Vec<Resource>, who: &str) {
    // A set that does not hold together changes nothing.
    let Ok(loaded) = server.directory.load() else { return };
    let resources = loaded.resources();
    let (effects, difference) = difference::between(known, &resources);
    *known = resources;
    if effects.is_empty() {
        return;
    }
    let record = AuditRecord {
        at: SystemTime::now(),
        who: who.to_owned(),
        what: format!(
            "{}: {}",
            if server.consul.is_some() { "resources in Consul" } else { "files of the control host" },
            named(effects.iter().map(|(id, effect)| (id, *effect)))
        ),
        outcome: Outcome::Granted,
        reason: String::new(),
    };
    tracing::info!(who = record.who, what = record.what, "a change");
    if let Err(error) = server.ca.ledger().audit_with(&record, &difference, &document(known)) {
        tracing::error!("the change could not be recorded: {error}");
    }
}

/// Resources with what befell them, as many as a line names.
fn named<'a>(effects: impl ExactSizeIterator<Item = (&'a ResourceId, Effect)>) -> String {
    let more = effects.len().saturating_sub(NAMED);
    let named: Vec<_> =
        effects.take(NAMED).map(|(id, effect)| format!("{id} {}", difference::word(effect))).collect();
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    named.join(", ") + &more
}

/// Writes a change down, and returns its version. That it cannot be must not undo what was done.
fn keep(
    server: &Server,
    (who, what): (&Who, &str),
    changes: &[Change],
    resources: Option<&[Resource]>,
) -> Option<i64> {
    let made: Vec<_> = changes.iter().filter(|change| change.effect != Effect::Unchanged).collect();
    if made.is_empty() {
        return None;
    }
    let mut files: Vec<FileChange> = Vec::new();
    for change in &made {
        let below = change.file.strip_prefix(server.directory.path()).unwrap_or(&change.file);
        let file = below.display().to_string();
        if files.iter().all(|known| known.file != file) {
            let (before, after) = (change.before.clone(), change.after.clone());
            files.push(FileChange { file, before, after });
        }
    }
    let record = record(
        who,
        format!("{what}: {}", named(made.iter().map(|change| (&change.id, change.effect)))),
        None,
    );
    let resources = resources.map(document);
    let kept =
        server.ca.ledger().record_change(&record, &difference::of(changes), &files, resources.as_deref());
    kept.inspect_err(|error| tracing::error!("the change could not be recorded: {error}")).ok()
}

/// Waits until what was written is in force, so that whoever applies a policy can count on it.
pub(super) async fn settled(server: &Server, changed: Changed) -> Result<Value, Denial> {
    let Changed { mut changes, wanted } = changed;
    if let Some(wanted) = wanted {
        let mut in_force = server.in_force.clone();
        let reached = timeout(IN_FORCE, in_force.wait_for(|in_force| *in_force.loaded == wanted)).await;
        changes.in_force = matches!(reached, Ok(Ok(_)));
    }
    told(changes)
}

pub(super) fn list(server: &Server, query: &str) -> Result<Value, Denial> {
    let bad = |error: String| Denial::new(StatusCode::BAD_REQUEST, error);
    let mut filter = Filter::default();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        match part.split_once('=') {
            Some(("kind", kind)) => filter.kind = Some(values::kind(kind).map_err(bad)?),
            Some(("namespace", namespace)) => filter.namespace = Some(namespace.to_owned()),
            Some(("name", name)) => filter.name = Some(name.to_owned()),
            _ => return Err(bad(format!("`{part}` is no filter: there are kind, namespace and name"))),
        }
    }
    let loaded = server.in_force.borrow().loaded.clone();
    told(resources::list(&loaded, &filter))
}
