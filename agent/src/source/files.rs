//! The file source: the directory is followed, and each set that holds together comes into force.

use std::path::Path;
use std::sync::Arc;

use baremesh_model::mesh::Mesh;
use baremesh_registry::files::{ResourceDirectory, Watch};
use baremesh_registry::set::Refused;

use crate::publish::Publisher;

/// A directory that has been read once.
pub struct FileSource {
    watch: Watch,
    version: u64,
}

impl FileSource {
    /// Reads the directory, and follows it from here on. A first set that is refused is an error.
    pub fn open(directory: &Path) -> Result<Self, Refused> {
        Ok(Self { watch: ResourceDirectory::new(directory).watch(None)?, version: 1 })
    }

    /// The set in force.
    pub fn mesh(&self) -> Mesh {
        self.watch.current.borrow().mesh.clone()
    }

    /// Hands every further set to `publisher`.
    pub async fn follow(mut self, publisher: Arc<Publisher>) {
        self.watch.current.mark_unchanged();
        self.watch.status.mark_unchanged();
        loop {
            tokio::select! {
                changed = self.watch.current.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.version += 1;
                    let mesh = self.watch.current.borrow_and_update().mesh.clone();
                    // The publisher keeps the reason, logs it and counts it.
                    let _ = publisher.take_mesh(mesh, self.version);
                }
                changed = self.watch.status.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let refused = self.watch.status.borrow_and_update().last_error.clone();
                    match refused {
                        Some(refused) => publisher.refuse(refused.to_string()),
                        None => publisher.clear_refusal(),
                    }
                }
            }
        }
    }
}
