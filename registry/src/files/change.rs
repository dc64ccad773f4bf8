//! Applying and deleting resources. The whole resulting set is validated before anything is written; each resource
//! has a file of its own, and one that stands among others in a hand-written file is left to the hand that wrote it.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use baremesh_model::mesh::{Kind, ResourceId};
use baremesh_model::name::Label;

use super::read::FileRead;
use super::write::{remove, write_atomically};
use super::{ResourceDirectory, diff};
use crate::diagnostic::{Code, Diagnostic};
use crate::format::Form;
use crate::resource::{Located, Resource};
use crate::set::{Refused, assemble, canonical_id, root_namespace};

/// What a change does to a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It was not there.
    Created,
    /// It was there and says something else now.
    Changed,
    /// It was there and says the same.
    Unchanged,
    /// It is gone.
    Deleted,
}

/// One resource's change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The resource.
    pub id: ResourceId,
    /// What happens to it.
    pub effect: Effect,
    /// Its file.
    pub file: PathBuf,
    /// The file before, where there was one.
    pub before: Option<String>,
    /// The file after, where one remains.
    pub after: Option<String>,
}

impl Change {
    /// The file's lines with ` `, `-` or `+` before each; empty where nothing changes.
    pub fn diff(&self) -> String {
        match self.effect {
            Effect::Unchanged => String::new(),
            _ => diff::lines(
                self.before.as_deref().unwrap_or_default(),
                self.after.as_deref().unwrap_or_default(),
            ),
        }
    }
}

/// What came of applying.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// One for each resource of the text, or the deleted one.
    pub changes: Vec<Change>,
    /// The warnings of what was applied.
    pub warnings: Vec<Diagnostic>,
    /// The set that results.
    pub resulting: Vec<Located<Resource>>,
}

/// What is left in a directory's last file when its last resource is deleted, so that a directory without any file stays
/// what it is: a sign that something is wrong.
pub(super) const NO_RESOURCES: &str = "# No resources.\n";

/// How often, and how long apart, somebody else's change of the directory is waited for: 10 seconds.
const LOCK_TRIES: u32 = 200;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

impl ResourceDirectory {
    /// What applying `text` would do, without doing it. `name` is where the text comes from: its ending says the form,
    /// and findings show it.
    pub fn plan(&self, text: &str, name: &str) -> Result<Applied, Refused> {
        let form = Form::of_file(name).unwrap_or_else(|| Form::of_text(text));
        let parsed = form.parse(text, name);
        if parsed.failed() {
            return Err(Refused(parsed.findings));
        }
        if parsed.resources.is_empty() {
            let finding = Diagnostic::about_file(name, Code::Syntax, "there is no resource in it");
            return Err(Refused(vec![finding]));
        }
        let (files, _) = self.read()?;
        let existing = files.iter().flat_map(|file| &file.parsed.resources);
        let all: Vec<_> = parsed.resources.iter().chain(existing).cloned().collect();
        let root = root_namespace(&all);
        let verbatim = (parsed.resources.len() == 1).then_some(text);
        let mut changes = Vec::new();
        let mut refused = Vec::new();
        for new in &parsed.resources {
            match self.placed(new, &files, &root, (form, verbatim)) {
                Ok(change) => changes.push(change),
                Err(finding) => refused.push(*finding),
            }
        }
        if !refused.is_empty() {
            return Err(Refused(refused));
        }
        // A file that is written anew counts with what it will hold, whatever state it was in.
        let kept =
            files.into_iter().filter(|file| !changes.iter().any(|c| c.file == file.path && rewrites(c)));
        let unchanged = |id: &ResourceId| {
            changes.iter().any(|change| change.id == *id && change.effect == Effect::Unchanged)
        };
        let added = parsed.resources.into_iter();
        let added = added.filter(|new| !unchanged(&canonical_id(new.value.id(), &root)));
        let resulting = check(kept, added.collect())?;
        Ok(Applied { changes, warnings: parsed.findings, resulting })
    }

    /// Where a new resource goes.
    fn placed(
        &self,
        new: &Located<Resource>,
        files: &[FileRead],
        root: &Label,
        (form, verbatim): (Form, Option<&str>),
    ) -> Result<Change, Box<Diagnostic>> {
        let id = canonical_id(new.value.id(), root);
        let written = |target: Form| match verbatim {
            Some(text) if target == form => text.to_owned(),
            _ => target.write(&new.value),
        };
        if let Some((file, old)) = find(files, &id, root) {
            let (before, path) = (Some(file.text.clone()), file.path.clone());
            if old.value == new.value {
                let after = before.clone();
                return Ok(Change { id, effect: Effect::Unchanged, file: path, before, after });
            }
            alone(file, old, &id)?;
            let after = Some(written(file.form));
            return Ok(Change { id, effect: Effect::Changed, file: path, before, after });
        }
        let path = self.path().join(file_name(&id, form));
        let occupant = files.iter().find(|file| file.path == path);
        if let Some(other) = occupant.and_then(|file| file.parsed.resources.first()) {
            let message =
                format!("{} would be its file, and holds {} already", path.display(), other.value.id());
            let help = "rename that file";
            let finding = Diagnostic::at_origin(&new.origin, Code::SharedFile, message).with_help(help);
            return Err(finding.with_resource(Some(id)).into());
        }
        let before = occupant.map(|file| file.text.clone());
        Ok(Change { id, effect: Effect::Created, file: path, before, after: Some(written(form)) })
    }

    /// Applies the resources of a text: all of them, or none.
    pub fn apply(&self, text: &str, name: &str) -> Result<Applied, Refused> {
        let _lock = self.lock()?;
        let applied = self.plan(text, name)?;
        commit(&applied.changes)?;
        Ok(applied)
    }

    /// What deleting a resource would do, without doing it.
    pub fn plan_delete(&self, id: &ResourceId) -> Result<Change, Refused> {
        let (files, _) = self.read()?;
        let all: Vec<_> = files.iter().flat_map(|file| &file.parsed.resources).cloned().collect();
        let root = root_namespace(&all);
        let id = canonical_id(id.clone(), &root);
        let Some((file, old)) = find(&files, &id, &root) else {
            let place = self.path().display().to_string();
            let finding = Diagnostic::about_file(&place, Code::MissingReference, format!("there is no {id}"));
            return Err(Refused(vec![finding.with_help("`baremesh get` lists what there is")]));
        };
        alone(file, old, &id).map_err(|finding| Refused(vec![*finding]))?;
        let after = (files.len() == 1).then(|| NO_RESOURCES.to_owned());
        let (path, before) = (file.path.clone(), Some(file.text.clone()));
        check(files.into_iter().filter(|file| file.path != path), Vec::new())?;
        Ok(Change { id, effect: Effect::Deleted, file: path, before, after })
    }

    /// Deletes a resource, if the set holds together without it.
    pub fn delete(&self, id: &ResourceId) -> Result<Change, Refused> {
        let _lock = self.lock()?;
        let change = self.plan_delete(id)?;
        commit(std::slice::from_ref(&change))?;
        Ok(change)
    }

    /// Keeps other processes, and other threads, from changing the directory until it is dropped.
    pub(super) fn lock(&self) -> Result<File, Refused> {
        let path = self.path().join(".lock");
        let refused = |error: &dyn std::fmt::Display| {
            let message = format!("cannot be locked for the change: {error}");
            Refused(vec![Diagnostic::about_file(&path.display().to_string(), Code::Unreadable, message)])
        };
        let file =
            File::options().create(true).truncate(false).write(true).open(&path).map_err(|e| refused(&e))?;
        for _ in 0..LOCK_TRIES {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => sleep(LOCK_PAUSE),
                Err(TryLockError::Error(error)) => return Err(refused(&error)),
            }
        }
        Err(refused(&"another change is under way"))
    }
}

fn rewrites(change: &Change) -> bool {
    change.effect != Effect::Unchanged
}

/// Validates the set that would result, and gives it back.
pub(super) fn check(
    kept: impl Iterator<Item = FileRead>,
    added: Vec<Located<Resource>>,
) -> Result<Vec<Located<Resource>>, Refused> {
    let (mut resources, mut findings) = (Vec::new(), Vec::new());
    for file in kept {
        resources.extend(file.parsed.resources);
        findings.extend(file.parsed.findings);
    }
    resources.extend(added);
    assemble(resources.clone(), findings).map(|_| resources)
}

fn find<'f>(
    files: &'f [FileRead],
    id: &ResourceId,
    root: &Label,
) -> Option<(&'f FileRead, &'f Located<Resource>)> {
    files.iter().find_map(|file| {
        let is_it = |located: &&Located<Resource>| canonical_id(located.value.id(), root) == *id;
        Some((file, file.parsed.resources.iter().find(is_it)?))
    })
}

/// Whether a resource has its file to itself, so that the file may be written or removed.
fn alone(file: &FileRead, old: &Located<Resource>, id: &ResourceId) -> Result<(), Box<Diagnostic>> {
    if file.parsed.resources.len() == 1 && !file.parsed.failed() {
        return Ok(());
    }
    let message = "it stands here among other resources, in a file that a person wrote";
    let finding = Diagnostic::at_origin(&old.origin, Code::SharedFile, message);
    let help = "change it there, or move it to a file of its own";
    Err(finding.with_resource(Some(id.clone())).with_help(help).into())
}

/// The name of a resource's own file. Names and namespaces are labels, so that it needs no escaping.
pub(super) fn file_name(id: &ResourceId, form: Form) -> String {
    let kind = id.kind.name().to_lowercase();
    match id.kind {
        Kind::MeshConfig => format!("{kind}.{}", form.ending()),
        _ => format!("{kind}.{}.{}.{}", id.key.namespace, id.key.name, form.ending()),
    }
}

/// Writes all changes. When one cannot be written, those before it are taken back.
pub(super) fn commit(changes: &[Change]) -> Result<(), Refused> {
    let wanted: Vec<&Change> = changes.iter().filter(|change| rewrites(change)).collect();
    for (done, change) in wanted.iter().enumerate() {
        let Err(error) = put(&change.file, change.after.as_deref()) else { continue };
        let failed = format!("cannot be written: {error}");
        let mut findings = Vec::new();
        for undone in wanted[..done].iter().rev() {
            if let Err(error) = put(&undone.file, undone.before.as_deref()) {
                let message = format!("was changed and cannot be changed back: {error}");
                let file = undone.file.display().to_string();
                findings.push(Diagnostic::about_file(&file, Code::Unreadable, message));
            }
        }
        let message = if findings.is_empty() { format!("{failed}; nothing was changed") } else { failed };
        let file = change.file.display().to_string();
        findings.insert(0, Diagnostic::about_file(&file, Code::Unreadable, message));
        return Err(Refused(findings));
    }
    Ok(())
}

fn put(path: &Path, text: Option<&str>) -> std::io::Result<()> {
    match text {
        Some(text) => write_atomically(path, text),
        None => remove(path),
    }
}
