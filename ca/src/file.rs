//! Files that are whole or absent. A file is written aside in its own directory, flushed, renamed over the old
//! one, and the directory is flushed: after a crash there is the old content or the new, never a part.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The mode of files that hold a key or a token.
pub const SECRET: u32 = 0o600;
/// The mode of files that anybody may read.
pub const PUBLIC: u32 = 0o644;
/// The largest secret that is read: far above any key with its chain, far below what would hurt.
pub const MAX_SECRET: u64 = 1 << 20;

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file could not be read.
    #[error("cannot read {path}: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file could not be written; what was there before is untouched.
    #[error("cannot write {path}: {source}", path = .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds a secret, and others than its owner can read or change it.
    #[error("{path} has mode {mode:04o}, so others than its owner can use this secret: run `chmod 600 {path}`", path = .path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is larger than any secret that belongs here.
    #[error("{path} is larger than {MAX_SECRET} bytes: is it the right file?", path = .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
}

impl FileError {
    /// Whether the file is simply not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Puts `bytes` at `path` with exactly the permission bits `mode`, whole or not at all. When this returns, the
/// content survives a power cut.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let failed = |source| FileError::Write { path: path.to_owned(), source };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let aside = directory.join(format!(".{}.{:016x}.new", name.to_string_lossy(), random_suffix()));
    let written = write_aside(&aside, bytes, mode).and_then(|()| fs::rename(&aside, path));
    if written.is_err() {
        // What is left of the attempt would only take room; the error that is reported is the first one.
        let _ = fs::remove_file(&aside);
    }
    written.and_then(|()| File::open(directory)?.sync_all()).map_err(failed)
}

fn write_aside(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // The mode at creation passes through the umask; this one does not.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn random_suffix() -> u64 {
    let mut bytes = [0; 8];
    crate::key::fill_random(&mut bytes);
    u64::from_ne_bytes(bytes)
}

/// Reads a key or token, and refuses it when others than its owner could have read or replaced it.
pub fn read_secret(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |source| FileError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    // Asked of the open file, so that a swap between the check and the read changes nothing.
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(FileError::Exposed { path: path.to_owned(), mode });
    }
    let mut bytes = Vec::new();
    file.take(MAX_SECRET + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_SECRET {
        return Err(FileError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

/// Reads a file that is no secret.
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(path).map_err(|source| FileError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode_of(path: &Path) -> u32 {
        fs::metadata(path).expect("metadata").permissions().mode() & 0o7777
    }

    #[test]
    fn replaces_a_file_whole_and_leaves_nothing_aside() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("key");
        write_atomically(&path, b"old", PUBLIC).expect("written");
        write_atomically(&path, b"new", SECRET).expect("written");
        assert_eq!(read_secret(&path).expect("read"), b"new");
        assert_eq!(mode_of(&path), 0o600);
        assert_eq!(fs::read_dir(directory.path()).expect("entries").count(), 1);
    }

    #[test]
    fn keeps_the_old_file_when_the_new_one_cannot_take_its_place() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("taken");
        fs::create_dir(&path).expect("a directory in the way");
        assert!(matches!(write_atomically(&path, b"x", SECRET), Err(FileError::Write { .. })));
        assert_eq!(fs::read_dir(directory.path()).expect("entries").count(), 1);
    }

    #[test]
    fn refuses_a_secret_that_others_can_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("key");
        for mode in [0o640, 0o604, 0o644, 0o620] {
            write_atomically(&path, b"secret", mode).expect("written");
            let refused = read_secret(&path).expect_err("refused");
            assert!(refused.to_string().contains("chmod 600"), "{refused}");
        }
    }

    #[test]
    fn knows_a_missing_file() {
        assert!(read_secret(Path::new("/nonexistent/key")).expect_err("missing").is_missing());
    }
}
