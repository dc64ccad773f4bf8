//! Files written whole or not at all, and removed for good.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use baremesh_ca::file::{self, FileError, PUBLIC};

/// Puts `text` at `path`. After a crash there is the old content or the new, never a part. A link is followed, so that
/// the file that it stands for is the one that changes; who may read a file stays as it was.
pub(super) fn write_atomically(path: &Path, text: &str) -> io::Result<()> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mode = fs::metadata(&target).map_or(PUBLIC, |old| old.permissions().mode() & 0o7777);
    file::write_atomically(&target, text.as_bytes(), mode).map_err(|error| match error {
        // The path stands in the finding already.
        FileError::Write { source, .. } => source,
        other => io::Error::other(other),
    })
}

/// Removes a file for good.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}
