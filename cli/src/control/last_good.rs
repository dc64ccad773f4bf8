//! The last set of resources that was in force, on the disk: a control server that restarts while a file is broken
//! serves that set, as it did before.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use baremesh_ca::file::{PUBLIC, write_atomically};
use baremesh_model::name::TrustDomain;
use baremesh_registry::format;
use baremesh_registry::format::source::{Origin, Source, Span};
use baremesh_registry::resource::Located;
use baremesh_registry::set::{Loaded, assemble};
use serde_json::{Value, json};

/// The file, in the state directory.
pub const FILE: &str = "resources-last-good.json";

fn path(state: &Path) -> PathBuf {
    state.join(FILE)
}

/// Writes a set. It blocks.
pub(super) fn save(state: &Path, loaded: &Loaded) -> Result<(), baremesh_ca::file::FileError> {
    let documents: Vec<_> = loaded.resources().iter().map(format::encode).collect();
    let text = json!({ "resources": documents }).to_string();
    write_atomically(&path(state), text.as_bytes(), PUBLIC)
}

/// Reads the set, if there is one that still holds together for this trust domain. A file that is damaged is no
/// reason not to start: it only stands in.
pub(super) fn load(state: &Path, trust_domain: &TrustDomain) -> Option<Arc<Loaded>> {
    let bytes = std::fs::read(path(state)).ok()?;
    match read(&bytes).filter(|loaded| loaded.mesh.config.trust_domain == *trust_domain) {
        Some(loaded) => Some(Arc::new(loaded)),
        None => {
            tracing::warn!(
                "{} cannot be used, and is not needed as long as the resource files hold together",
                path(state).display()
            );
            None
        }
    }
}

fn read(bytes: &[u8]) -> Option<Loaded> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    let source = Arc::new(Source::new(FILE, ""));
    let located = value["resources"].as_array()?.iter().map(|document| {
        let origin = Origin { source: source.clone(), span: Span::default() };
        Some(Located { value: format::decode(document).ok()?, origin })
    });
    assemble(located.collect::<Option<_>>()?, Vec::new()).ok()
}

#[cfg(test)]
mod tests {
    use baremesh_registry::files::ResourceDirectory;

    use super::*;

    #[test]
    fn reads_what_it_wrote() {
        let place = tempfile::tempdir().expect("a directory");
        let registry = place.path().join("registry");
        std::fs::create_dir(&registry).expect("a directory");
        let text = "[[MeshConfig]]\ntrustDomain = \"mesh.test\"\n[[Service]]\nname = \"a\"\nports = [{ port = 80 }]\n\
                    [[HostGrant]]\nname = \"g\"\nhost = \"h1\"\nservices = [\"a\"]\n";
        std::fs::write(registry.join("a.toml"), text).expect("written");
        let loaded = ResourceDirectory::new(&registry).load().expect("a set");
        save(place.path(), &loaded).expect("saved");
        let domain = |name| TrustDomain::new(name).expect("a domain");
        let again = load(place.path(), &domain("mesh.test")).expect("a set");
        assert_eq!((&again.mesh, &again.grants), (&loaded.mesh, &loaded.grants));
        assert!(load(place.path(), &domain("other.test")).is_none());
        std::fs::write(place.path().join(FILE), "{").expect("written");
        assert!(load(place.path(), &domain("mesh.test")).is_none());
    }
}
