//! A directory in which things are made before they are moved into place.

use std::fs;
use std::path::Path;

use anyhow::Context;

/// Where everything is made before it is moved: in the directory that it will be moved to, so that moving is renaming. It
/// is removed in any case.
pub(super) struct Aside(tempfile::TempDir);

impl Aside {
    /// Makes one in `directory`, for what is named by `prefix`.
    pub(super) fn new(directory: &Path, prefix: &str) -> anyhow::Result<Self> {
        let failed = || format!("{} cannot be read", directory.display());
        // What an attempt that was killed has left, which may be keys.
        for entry in fs::read_dir(directory).with_context(failed)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        let made = tempfile::Builder::new().prefix(prefix).tempdir_in(directory);
        Ok(Self(made.with_context(|| format!("{} cannot be written to", directory.display()))?))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }
}
