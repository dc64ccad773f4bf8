//! The file source: the directory is followed, and each set that holds together comes into force.

use std::path::Path;
use std::sync::Arc;

use baremesh_ca::tls::TrustBundle;
use baremesh_model::mesh::Mesh;
use baremesh_registry::files::{ResourceDirectory, Watch};
use baremesh_registry::set::Refused;

use super::of_trust_domain;
use crate::publish::Publisher;

/// A directory that has been read once.
pub struct Directory(Watch);

/// The same, for a host with these certificates.
pub struct FileSource {
    watch: Watch,
    bundle: Arc<TrustBundle>,
    version: u64,
}

impl FileSource {
    /// Reads the directory, and follows it from here on. A first set that is refused is an error.
    pub fn open(directory: &Path) -> Result<Directory, Refused> {
        ResourceDirectory::new(directory).watch(None).map(Directory)
    }

    /// The set in force, if it is of this mesh.
    pub fn mesh(&self) -> Result<Mesh, String> {
        let mesh = self.watch.current.borrow().mesh.clone();
        if !mesh.config.federation.is_empty() {
            tracing::warn!(
                "`federation` of MeshConfig has no effect with resources from files: a control server tells agents of other roots"
            );
        }
        of_trust_domain(mesh, &self.bundle)
    }

    /// Hands every further set to `publisher`.
    pub async fn follow(mut self, publisher: Arc<Publisher>) {
        self.watch.current.mark_unchanged();
        self.watch.status.mark_unchanged();
        // A set that is taken changes `status` first or last; what the publisher says of it counts in either case.
        while self.watch.status.changed().await.is_ok() {
            let refused = self.watch.status.borrow_and_update().last_error.clone();
            if let Some(refused) = refused {
                publisher.refuse(refused.to_string());
            } else if self.watch.current.has_changed().unwrap_or(false) {
                self.watch.current.mark_unchanged();
                self.version += 1;
                match self.mesh() {
                    // The publisher keeps the reason, logs it and counts it.
                    Ok(mesh) => drop(publisher.take_mesh(mesh, self.version)),
                    Err(reason) => publisher.refuse(reason),
                }
            } else {
                publisher.clear_refusal();
            }
        }
    }
}

impl Directory {
    /// For a host whose certificates are verified against `bundle`.
    pub fn of(self, bundle: &Arc<TrustBundle>) -> FileSource {
        FileSource { watch: self.0, bundle: Arc::clone(bundle), version: 1 }
    }
}
