//! Taking changes back: the files that later changes wrote get the texts that they had. What somebody else changed in
//! between is shown, and taken back as well only where that is asked for.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use baremesh_ca::ledger::{ChangeRecord, FileChange, VERSIONS_KEPT};
use baremesh_model::mesh_config::MeshConfig;
use baremesh_registry::files::{Change, Effect, Restoring, Wanted};
use baremesh_registry::format::Form;
use baremesh_registry::set::Refused;
use http::StatusCode;
use serde_json::Value;

use super::change::{changed, settled};
use super::{blocking, told};
use crate::control::report::{RollbackRequest, VersionReport};
use crate::control::resources::{Made, Mode, report_of};
use crate::control::socket::Denial;
use crate::control::who::Who;
use crate::control::{Server, permission};
use crate::output::{in_words, to_unix};

pub(super) fn versions(server: &Server, limit: usize) -> Result<Value, Denial> {
    let report = |change: ChangeRecord| VersionReport {
        version: change.version,
        at: to_unix(change.at),
        who: change.who,
        what: change.what,
        difference: change.difference,
        kept: change.files.is_some(),
    };
    told(server.ca.ledger().changes(limit)?.into_iter().map(report).collect::<Vec<_>>())
}

/// Why a change is not taken back.
enum Against {
    /// The set would not hold together, or cannot be written.
    Set(Refused),
    /// The role is not enough, or somebody else has changed something.
    Order(Denial),
}

impl From<Refused> for Against {
    fn from(refused: Refused) -> Self {
        Self::Set(refused)
    }
}

impl From<Against> for Denial {
    fn from(against: Against) -> Self {
        match against {
            Against::Set(refused) => refused.into(),
            Against::Order(denial) => denial,
        }
    }
}

impl std::fmt::Display for Against {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Set(refused) => refused.fmt(f),
            Self::Order(denial) => f.write_str(&denial.fault.error),
        }
    }
}

pub(super) async fn roll_back(
    server: Arc<Server>,
    request: RollbackRequest,
    who: Who,
) -> Result<Value, Denial> {
    let mode = Mode::of_dry_run(request.dry_run);
    let changing = move |server: &Server| {
        let target = Target::of(&request)?;
        let what = match target {
            Target::Newest => "rollback".to_owned(),
            Target::Before(version) => format!("rollback {version}"),
            Target::To(version) => format!("rollback --to {version}"),
        };
        changed(server, (&who, &what), mode, |mode| restore(server, target, (&request, mode), &who))
    };
    let changed = blocking(server.clone(), changing).await?;
    settled(&server, changed).await
}

/// To where it goes back.
#[derive(Clone, Copy)]
enum Target {
    /// Before the newest change, whichever that is.
    Newest,
    /// Before that change.
    Before(i64),
    /// After that change.
    To(i64),
}

impl Target {
    fn of(request: &RollbackRequest) -> Result<Self, Denial> {
        match (request.version, request.to) {
            (None, None) => Ok(Self::Newest),
            (Some(version), None) => Ok(Self::Before(version)),
            (None, Some(version)) => Ok(Self::To(version)),
            (Some(_), Some(_)) => {
                Err(Denial::new(StatusCode::BAD_REQUEST, "`version` and `to` do not go together"))
            }
        }
    }

    /// Whether it was this change that was named to be taken back.
    fn names(self, change: &ChangeRecord) -> bool {
        matches!(self, Self::Before(version) if version == change.version)
    }
}

fn restore(
    server: &Server,
    target: Target,
    (request, mode): (&RollbackRequest, Mode),
    who: &Who,
) -> Result<Made, Against> {
    let undone = undone(server, target).map_err(Against::Order)?;
    let Undone { wanted, expected } = texts(&undone).map_err(Against::Order)?;
    let config = server.in_force.borrow().loaded.mesh.config.clone();
    let restoring = if mode == Mode::DryRun { Restoring::Plan } else { Restoring::Write };
    let changes = server.directory.restore(&wanted, restoring, |changes| {
        let altered = changes.iter().filter(|change| change.effect != Effect::Unchanged);
        let refusals: Vec<_> = altered.filter_map(|change| refusal(who, change, &config)).collect();
        if !refusals.is_empty() {
            let reason = format!("{who} may not do this, and nothing was changed:\n{}", refusals.join("\n"));
            return Err(Against::Order(Denial::new(StatusCode::FORBIDDEN, reason)));
        }
        let conflicts = conflicts(server, target, who, &undone, (&expected, changes));
        if conflicts.is_empty() || request.force {
            return Ok(());
        }
        let reason = format!(
            "this would also take back what others have done since:\n{}\nnothing was changed; `--force` takes all of it back",
            conflicts.join("\n")
        );
        Err(Against::Order(Denial::new(StatusCode::CONFLICT, reason)))
    })?;
    Ok(Made { report: report_of(&changes, &[]), changes })
}

/// Why a resource may not be put back: as it is now, or as it would be again.
fn refusal(who: &Who, change: &Change, config: &MeshConfig) -> Option<String> {
    let refused = permission::refusal_of_id(who.role(), &change.id, config);
    refused.or_else(|| {
        let (name, text) = (change.file.display().to_string(), change.after.as_ref()?);
        let coming = Form::of_file(&name)?.parse(text, &name).resources;
        coming.iter().find_map(|located| permission::refusal(who.role(), &located.value, config))
    })
}

/// The changes that are taken back, the latest first.
fn undone(server: &Server, target: Target) -> Result<Vec<ChangeRecord>, Denial> {
    let ledger = server.ca.ledger();
    let missing = |version: i64| {
        let error = format!("there is no version {version}: `baremesh history` shows those that there are");
        Denial::new(StatusCode::NOT_FOUND, error)
    };
    let undone = match target {
        Target::Newest => ledger.changes(1)?,
        Target::Before(version) | Target::To(version) => {
            let since = ledger.changes_since(version)?;
            if since.last().is_none_or(|oldest| oldest.version != version) {
                return Err(missing(version));
            }
            let keep =
                |change: &ChangeRecord| matches!(target, Target::Before(_)) || change.version > version;
            since.into_iter().filter(keep).collect()
        }
    };
    match undone.is_empty() {
        true => Err(Denial::new(StatusCode::CONFLICT, "there is no change to take back")),
        false => Ok(undone),
    }
}

struct Undone {
    /// What each file is to be: what it was before the earliest of the changes.
    wanted: Wanted,
    /// What each file ought to be now: what the latest of the changes left.
    expected: BTreeMap<PathBuf, Option<String>>,
}

fn texts(undone: &[ChangeRecord]) -> Result<Undone, Denial> {
    let (mut wanted, mut expected) = (Wanted::new(), BTreeMap::new());
    for change in undone {
        let files = change.files.as_ref().ok_or_else(|| {
            let error = format!(
                "the files before version {} are no longer kept: those of the latest {VERSIONS_KEPT} versions are, as long as \
                 they are not too large together",
                change.version
            );
            Denial::new(StatusCode::GONE, error)
        })?;
        for FileChange { file, before, after } in files {
            let file = PathBuf::from(file);
            expected.entry(file.clone()).or_insert_with(|| after.clone());
            wanted.insert(file, before.clone());
        }
    }
    Ok(Undone { wanted, expected })
}

/// What would be taken back with the rest although somebody else did it.
fn conflicts(
    server: &Server,
    target: Target,
    who: &Who,
    undone: &[ChangeRecord],
    (expected, changes): (&BTreeMap<PathBuf, Option<String>>, &[Change]),
) -> Vec<String> {
    let own = who.to_string();
    let others = undone.iter().filter(|change| change.who != own && !target.names(change)).map(|change| {
        let ago = SystemTime::now().duration_since(change.at).unwrap_or(Duration::ZERO);
        format!("  version {} of {}, {} ago: {}", change.version, change.who, in_words(ago), change.what)
    });
    let mut conflicts: Vec<String> = others.collect();
    for (file, text) in expected {
        let path = server.directory.path().join(file);
        // A file that is not there, and was not to be, has no change.
        let now = changes.iter().find(|change| change.file == path).and_then(|change| change.before.as_ref());
        if now != text.as_ref() {
            conflicts.push(format!("  {} was changed by hand", path.display()));
        }
    }
    conflicts
}
