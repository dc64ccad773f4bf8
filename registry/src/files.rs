//! A directory of resource files: read as one set, watched, and changed one resource at a time. What cannot be read is
//! never taken for nothing: a directory that is gone, or files that are all gone at once, leave the last good set
//! in force.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::diagnostic::{Code, Diagnostic};
use crate::resource::{Located, Resource};
use crate::set::{Loaded, Refused, assemble};

/// Applying and deleting resources.
mod change;
/// Line by line, what a change does to a file.
mod diff;
/// A directory as keyed documents.
mod documents;
/// The files of a directory, read within bounds.
mod read;
/// Putting files back to what they were.
mod restore;
/// Following a directory.
mod watch;
/// Files written whole or not at all.
mod write;

pub use change::{Applied, Change, Effect};
pub use documents::{Documents, document_after, document_key, set_of};
pub use read::{MAX_FILE_BYTES, MAX_FILES, MAX_TOTAL_BYTES};
pub use restore::{Restoring, Wanted};
pub use watch::{POLL_INTERVAL, Status, Watch};

use read::FileRead;

/// A directory whose `.toml`, `.yaml` and `.yml` files, and those one folder down, make up one set of resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceDirectory {
    path: PathBuf,
}

/// The files of a set with their sizes, by which a later reading knows what has gone.
type Sizes = BTreeMap<PathBuf, usize>;

impl ResourceDirectory {
    /// The directory at `path`. Nothing is read yet.
    pub fn new(path: &Path) -> Self {
        // Events name absolute paths; where the current directory is gone, reading reports it.
        Self { path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the whole set. A directory that is not there, or a file that cannot be read, is an error; a directory
    /// without files is a mesh of nothing.
    pub fn load(&self) -> Result<Loaded, Refused> {
        self.load_with_sizes().map(|(loaded, _)| loaded)
    }

    /// The resources of all files with what is said of reading them, whether or not they hold together.
    pub fn resources(&self) -> Result<(Vec<Located<Resource>>, Vec<Diagnostic>), Refused> {
        let (files, mut findings) = self.read()?;
        let mut resources = Vec::new();
        for file in files {
            resources.extend(file.parsed.resources);
            findings.extend(file.parsed.findings);
        }
        Ok((resources, findings))
    }

    fn load_with_sizes(&self) -> Result<(Loaded, Sizes), Refused> {
        let (files, mut findings) = self.read()?;
        let sizes = files.iter().map(|file| (file.path.clone(), file.text.len())).collect();
        let mut resources = Vec::new();
        for file in files {
            resources.extend(file.parsed.resources);
            findings.extend(file.parsed.findings);
        }
        Ok((assemble(resources, findings)?, sizes))
    }

    /// Reads the set again, and refuses one that lost what nobody takes away on purpose: all files at once, or
    /// the whole content of one.
    fn reload(&self, before: &Sizes, had_resources: bool) -> Result<(Loaded, Sizes), Refused> {
        let (loaded, sizes) = self.load_with_sizes()?;
        let shown = self.path.display().to_string();
        if sizes.is_empty() && (had_resources || !before.is_empty()) {
            let message = "all files are gone at once: the last good set stays in force";
            let help =
                "is a file system not mounted? To have no resources, leave one file with a comment in it";
            return Err(Refused(vec![
                Diagnostic::about_file(&shown, Code::Vanished, message).with_help(help),
            ]));
        }
        let emptied = sizes
            .iter()
            .filter(|(path, size)| **size == 0 && before.get(*path).is_some_and(|size| *size > 0));
        let emptied: Vec<Diagnostic> = emptied
            .map(|(path, _)| {
                let message = "the file is empty, and was not: the last good set stays in force";
                Diagnostic::about_file(&path.display().to_string(), Code::Vanished, message)
                    .with_help("is it being written? To have nothing in it, remove it or leave a comment")
            })
            .collect();
        if emptied.is_empty() { Ok((loaded, sizes)) } else { Err(Refused(emptied)) }
    }

    fn read(&self) -> Result<(Vec<FileRead>, Vec<Diagnostic>), Refused> {
        read::read_all(&self.path)
    }
}

#[cfg(test)]
mod tests;
