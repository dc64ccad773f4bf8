//! A directory as keyed JSON documents, and the other way: what stands in a key-value store stands in files as well, one a
//! resource, so that a control server has it all without that store.

use std::collections::BTreeMap;
use std::sync::Arc;

use baremesh_model::mesh::ResourceId;
use serde_json::Value;

use super::ResourceDirectory;
use super::change::{Change, Effect, NO_RESOURCES, commit, file_name};
use crate::format::source::{Origin, Source, Span};
use crate::format::{Form, decode_from_newer, encode};
use crate::resource::{Located, Resource};
use crate::set::{Loaded, Refused, assemble, canonical_id, root_namespace};

/// Resources as JSON by `Kind/namespace/name`.
pub type Documents = BTreeMap<String, Value>;

/// The key of a resource.
pub fn document_key(id: &ResourceId) -> String {
    format!("{}/{}/{}", id.kind, id.key.namespace, id.key.name)
}

/// The set that documents make, or why they make none. What a newer version wrote has no effect here.
pub fn set_of(documents: &Documents) -> Result<Loaded, Refused> {
    let (located, findings) = located(documents);
    assemble(located, findings)
}

fn located(documents: &Documents) -> (Vec<Located<Resource>>, Vec<crate::diagnostic::Diagnostic>) {
    let (mut all, mut findings) = (Vec::new(), Vec::new());
    for (key, value) in documents {
        match decode_from_newer(value) {
            Ok(read) => {
                findings.extend(read.reports);
                let origin = Origin { source: Arc::new(Source::new(key, "")), span: Span::default() };
                all.push(Located { value: read.resource, origin });
            }
            Err(_) => tracing::warn!(key, "a resource is not understood, and is left to newer versions"),
        }
    }
    (all, findings)
}

impl ResourceDirectory {
    /// What the directory holds.
    pub fn documents(&self) -> Result<Documents, Refused> {
        let (resources, findings) = self.resources()?;
        if findings.iter().any(crate::diagnostic::Diagnostic::is_error) {
            return Err(Refused(findings));
        }
        let root = root_namespace(&resources);
        let one = |located: &Located<Resource>| {
            (document_key(&canonical_id(located.value.id(), &root)), encode(&located.value))
        };
        Ok(resources.iter().map(one).collect())
    }

    /// Makes the directory hold these and nothing else. Files whose resource says the same stay as they are.
    pub fn mirror(&self, documents: &Documents) -> Result<(), Refused> {
        let _lock = self.lock()?;
        let (wanted, findings) = located(documents);
        assemble(wanted.clone(), findings)?;
        let root = root_namespace(&wanted);
        let mut missing: BTreeMap<ResourceId, Resource> =
            wanted.into_iter().map(|one| (canonical_id(one.value.id(), &root), one.value)).collect();
        let mut changes = Vec::new();
        let mut kept = 0;
        for file in self.read()?.0 {
            if let [only] = &file.parsed.resources[..] {
                let id = canonical_id(only.value.id(), &root);
                if missing.get(&id) == Some(&only.value) {
                    missing.remove(&id);
                    kept += 1;
                    continue;
                }
            }
            let id = file.parsed.resources.first().map(|one| one.value.id());
            changes.extend(id.map(|id| Change {
                id,
                effect: Effect::Deleted,
                file: file.path,
                before: Some(file.text),
                after: None,
            }));
        }
        for (id, resource) in missing {
            let file = self.path().join(file_name(&id, Form::Toml));
            changes.retain(|change: &Change| change.file != file);
            let after = Some(Form::Toml.write(&resource));
            changes.push(Change { id, effect: Effect::Changed, file, before: None, after });
            kept += 1;
        }
        if let Some(last) = changes.last_mut().filter(|_| kept == 0) {
            last.after = Some(NO_RESOURCES.to_owned());
        }
        commit(&changes)
    }
}

/// The document that a change leads to; nothing where the resource is gone.
pub fn document_after(change: &Change) -> Option<Value> {
    let after = change.after.as_ref().filter(|_| change.effect != Effect::Deleted)?;
    let name = change.file.display().to_string();
    let parsed = Form::of_file(&name).unwrap_or_else(|| Form::of_text(after)).parse(after, &name);
    let is_it = |resource: &Resource| {
        let id = resource.id();
        id.kind == change.id.kind && id.key.name == change.id.key.name
    };
    let found = parsed.resources.iter().find(|located| {
        is_it(&located.value) && (parsed.resources.len() == 1 || located.value.key() == change.id.key)
    });
    found.map(|located| encode(&located.value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDERS: &str = "# by hand\n[[Service]]\nname = \"orders\"\nports = [{ port = 80 }]\n";

    #[test]
    fn a_directory_mirrors_documents_and_leaves_alone_what_says_the_same() {
        let place = tempfile::tempdir().expect("a directory");
        let directory = ResourceDirectory::new(place.path());
        let applied = directory.apply(ORDERS, "o.toml").expect("applied");
        let mut documents = directory.documents().expect("documents");
        assert_eq!(documents.keys().collect::<Vec<_>>(), ["Service/default/orders"]);
        assert_eq!(document_after(&applied.changes[0]), documents.get("Service/default/orders").cloned());
        let web = ORDERS.replace("orders", "web");
        let planned = directory.plan(&web, "w.toml").expect("a plan");
        documents.insert("Service/default/web".to_owned(), document_after(&planned.changes[0]).expect("one"));
        directory.mirror(&documents).expect("mirrored");
        assert_eq!(directory.documents().expect("documents"), documents);
        let file = place.path().join("service.default.orders.toml");
        assert_eq!(std::fs::read_to_string(&file).expect("a file"), ORDERS, "the same stays as it is");
        documents.remove("Service/default/orders");
        directory.mirror(&documents).expect("mirrored");
        assert!(!file.exists());
        directory.mirror(&Documents::new()).expect("mirrored");
        assert!(directory.load().expect("a set").places.is_empty());
        documents.insert("Service/default/bad".to_owned(), documents["Service/default/web"].clone());
        assert!(set_of(&documents).is_err() && directory.mirror(&documents).is_err(), "the same twice");
    }
}
