//! Putting files back to what they were. As for any other change the whole resulting set is validated before anything is
//! written; whoever asks for it judges what it would do to each resource while nobody else can change the directory.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use baremesh_model::mesh::ResourceId;

use super::ResourceDirectory;
use super::change::{Change, Effect, NO_RESOURCES, check, commit};
use super::read::FileRead;
use crate::diagnostic::{Code, Diagnostic};
use crate::format::{Form, Parsed};
use crate::resource::Resource;
use crate::set::{Refused, canonical_id, root_namespace};

/// Files by their paths below the directory, each with the text that it is to have; none takes the file away.
pub type Wanted = BTreeMap<PathBuf, Option<String>>;

/// Whether files are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restoring {
    /// They are.
    Write,
    /// It is only said what would be done.
    Plan,
}

impl ResourceDirectory {
    /// Gives files the texts that are wanted: all of them, or none. `judge` sees a change for each resource of them, those
    /// included that stay as they are, and may refuse it; the directory is locked meanwhile.
    pub fn restore<E: From<Refused>>(
        &self,
        wanted: &Wanted,
        restoring: Restoring,
        judge: impl FnOnce(&[Change]) -> Result<(), E>,
    ) -> Result<Vec<Change>, E> {
        let _lock = self.lock()?;
        let changes = self.plan_restore(wanted)?;
        judge(&changes)?;
        if restoring == Restoring::Write {
            commit(&changes)?;
        }
        Ok(changes)
    }

    fn plan_restore(&self, wanted: &Wanted) -> Result<Vec<Change>, Refused> {
        let (files, _) = self.read()?;
        let mut targets = Vec::new();
        for (file, text) in wanted {
            targets.push(self.target(file, text.clone(), &files)?);
        }
        let named = |file: &FileRead| targets.iter().any(|target| target.path == file.path);
        // The last file of a directory is not taken away: that would look as if something were wrong.
        let none_remains = files.iter().all(named) && targets.iter().all(|target| target.after.is_none());
        if let Some(last) = targets.last_mut().filter(|_| none_remains) {
            last.after = Some((NO_RESOURCES.to_owned(), Form::Toml.parse(NO_RESOURCES, "")));
        }
        let mut all: Vec<_> = targets.iter().filter_map(|target| target.after.as_ref()).collect();
        if let Some((_, failed)) = all.iter().find(|(_, parsed)| parsed.failed()) {
            return Err(Refused(failed.findings.clone()));
        }
        let added: Vec<_> = all.drain(..).flat_map(|(_, parsed)| parsed.resources.clone()).collect();
        let existing = files.iter().flat_map(|file| &file.parsed.resources);
        let root = root_namespace(&added.iter().chain(existing).cloned().collect::<Vec<_>>());
        let changes = targets.iter().flat_map(|target| target.changes(&root)).collect();
        let gone: Vec<PathBuf> = targets.into_iter().map(|target| target.path).collect();
        check(files.into_iter().filter(|file| !gone.contains(&file.path)), added)?;
        Ok(changes)
    }

    fn target(&self, file: &Path, after: Option<String>, files: &[FileRead]) -> Result<Target, Refused> {
        let shown = file.display().to_string();
        let below = file.components().all(|part| matches!(part, Component::Normal(_)));
        let form = Form::of_file(&shown).filter(|_| below && file.components().count() <= 2);
        let Some(form) = form else {
            let finding = Diagnostic::about_file(&shown, Code::Unreadable, "is no file of this directory");
            return Err(Refused(vec![finding]));
        };
        let path = self.path().join(file);
        let before = files.iter().find(|read| read.path == path);
        let name = path.display().to_string();
        let after = after.map(|text| {
            let parsed = form.parse(&text, &name);
            (text, parsed)
        });
        let (held, before) = match before {
            Some(read) => {
                let held = read.parsed.resources.iter().map(|located| located.value.clone()).collect();
                (held, Some(read.text.clone()))
            }
            None => (Vec::new(), None),
        };
        Ok(Target { path, held, before, after })
    }
}

/// One file, as it is and as it is to be.
struct Target {
    path: PathBuf,
    /// The resources that it holds now.
    held: Vec<Resource>,
    before: Option<String>,
    after: Option<(String, Parsed)>,
}

impl Target {
    /// A change for each resource that the file holds or will hold.
    fn changes(&self, root: &baremesh_model::name::Label) -> Vec<Change> {
        let id = |resource: &Resource| canonical_id(resource.id(), root);
        let now: BTreeMap<ResourceId, &Resource> =
            self.held.iter().map(|resource| (id(resource), resource)).collect();
        let coming = self.after.iter().flat_map(|(_, parsed)| &parsed.resources);
        let then: BTreeMap<ResourceId, &Resource> =
            coming.map(|located| (id(&located.value), &located.value)).collect();
        let mut ids: Vec<_> = now.keys().chain(then.keys()).cloned().collect();
        ids.sort();
        ids.dedup();
        let after = self.after.as_ref().map(|(text, _)| text.clone());
        let change = |id: ResourceId| {
            let effect = match (now.get(&id), then.get(&id)) {
                // A text that says the same in other words is put back, too: it is what stood there.
                (Some(_), Some(_)) if self.before == after => Effect::Unchanged,
                (Some(_), Some(_)) => Effect::Changed,
                (Some(_), None) => Effect::Deleted,
                (None, _) => Effect::Created,
            };
            Change { id, effect, file: self.path.clone(), before: self.before.clone(), after: after.clone() }
        };
        ids.into_iter().map(change).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDERS: &str = "[[Service]]\nname = \"orders\"\nports = [{ port = 80 }]\n";

    fn wanted(files: &[(&str, Option<&str>)]) -> Wanted {
        files.iter().map(|(file, text)| (PathBuf::from(file), text.map(str::to_owned))).collect()
    }

    fn restore(
        directory: &ResourceDirectory,
        files: &[(&str, Option<&str>)],
    ) -> Result<Vec<String>, Refused> {
        let done = directory.restore::<Refused>(&wanted(files), Restoring::Write, |_| Ok(()))?;
        Ok(done.iter().map(|change| format!("{} {:?}", change.id, change.effect)).collect())
    }

    #[test]
    fn files_are_put_back_all_of_them_or_none() {
        let place = tempfile::tempdir().expect("a directory");
        let directory = ResourceDirectory::new(place.path());
        directory.apply(ORDERS, "o.toml").expect("applied");
        let file = "service.default.orders.toml";
        let read = || std::fs::read_to_string(place.path().join(file)).ok();
        let at_81 = ORDERS.replace("80", "81");
        let web = ORDERS.replace("orders", "web");
        let done = restore(&directory, &[(file, Some(&at_81)), ("web.toml", Some(&web))]).expect("restored");
        assert_eq!(done, ["Service default/orders Changed", "Service default/web Created"]);
        assert_eq!(read(), Some(at_81.clone()));
        // One that cannot be keeps the other from it.
        for bad in ["[[Service]]\nname = 7\n", &web] {
            assert!(restore(&directory, &[(file, Some(ORDERS)), ("x.toml", Some(bad))]).is_err());
            assert_eq!(read(), Some(at_81.clone()));
        }
        // Who judges may refuse it.
        let refused = directory.restore(&wanted(&[(file, None)]), Restoring::Write, |changes| {
            assert_eq!(changes.len(), 1);
            Err(Refused(Vec::new()))
        });
        assert!(refused.is_err() && read().is_some());
        let planned = directory.restore::<Refused>(&wanted(&[(file, None)]), Restoring::Plan, |_| Ok(()));
        assert!(planned.expect("a plan")[0].effect == Effect::Deleted && read().is_some());
        let done = restore(&directory, &[(file, None), ("web.toml", Some(&web))]).expect("restored");
        assert_eq!(done, ["Service default/orders Deleted", "Service default/web Unchanged"]);
        assert_eq!(read(), None);
        // The last file stays, without resources.
        restore(&directory, &[("web.toml", None)]).expect("restored");
        assert!(directory.load().expect("a set").places.is_empty());
        assert!(place.path().join("web.toml").exists());
    }

    #[test]
    fn no_file_beside_the_directory_is_touched() {
        let place = tempfile::tempdir().expect("a directory");
        let directory = ResourceDirectory::new(&place.path().join("registry"));
        std::fs::create_dir(directory.path()).expect("a directory");
        for bad in ["../x.toml", "/etc/x.toml", "a/b/c.toml", "x.txt", "", "./x.toml/.."] {
            assert!(restore(&directory, &[(bad, Some(ORDERS))]).is_err(), "{bad}");
        }
        assert!(!place.path().join("x.toml").exists());
    }
}
