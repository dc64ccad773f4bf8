//! Files written whole or not at all: written aside, flushed, renamed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Puts `text` at `path`. After a crash there is the old content or the new, never a part. A link is followed, so that
/// the file that it stands for is the one that changes.
pub(super) fn write_atomically(path: &Path, text: &str) -> io::Result<()> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let directory = target.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let aside = directory.join(format!(".{}.{:016x}.new", name.to_string_lossy(), rand::random::<u64>()));
    let written = write_aside(&aside, text).and_then(|()| {
        if let Ok(old) = fs::metadata(&target) {
            fs::set_permissions(&aside, old.permissions())?;
        }
        fs::rename(&aside, &target)
    });
    if written.is_err() {
        // What is left of the attempt would only take room; the error that is reported is the first one.
        let _ = fs::remove_file(&aside);
    }
    written.and_then(|()| File::open(directory)?.sync_all())
}

fn write_aside(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Removes a file for good.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}
