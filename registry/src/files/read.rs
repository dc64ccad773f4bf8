//! The files of a directory, in the order of their names, each within bounds.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::diagnostic::{Code, Diagnostic};
use crate::format::{Form, Parsed};
use crate::set::Refused;

/// Bytes that one file may have.
pub const MAX_FILE_BYTES: u64 = 4 << 20;

/// Files that one directory may have.
pub const MAX_FILES: usize = 10_000;

/// Bytes that all files of a directory may have together.
pub const MAX_TOTAL_BYTES: u64 = 64 << 20;

/// One file as read.
#[derive(Debug)]
pub(super) struct FileRead {
    pub(super) path: PathBuf,
    pub(super) form: Form,
    pub(super) text: String,
    pub(super) parsed: Parsed,
}

/// Reads every resource file; the findings beside them are warnings about the directory itself.
pub(super) fn read_all(directory: &Path) -> Result<(Vec<FileRead>, Vec<Diagnostic>), Refused> {
    let mut listing = Listing::default();
    listing.add(directory, Level::Top);
    let Listing { mut files, mut findings, .. } = listing;
    if files.len() > MAX_FILES {
        let message = format!("more than {MAX_FILES} resource files");
        findings.push(about(directory, Code::TooLarge, message));
    }
    if findings.iter().any(Diagnostic::is_error) {
        return Err(Refused(findings));
    }
    files.sort_by(|a, b| a.0.cmp(&b.0));
    let (mut read, mut rest) = (Vec::with_capacity(files.len()), MAX_TOTAL_BYTES);
    for (path, form) in files {
        match read_text(&path, rest) {
            Ok(text) => {
                rest = rest.saturating_sub(text.len() as u64);
                let parsed = form.parse(&text, &path.display().to_string());
                read.push(FileRead { path, form, text, parsed });
            }
            Err(finding) => findings.push(*finding),
        }
    }
    if findings.iter().any(Diagnostic::is_error) { Err(Refused(findings)) } else { Ok((read, findings)) }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Top,
    Folder,
}

#[derive(Default)]
struct Listing {
    files: Vec<(PathBuf, Form)>,
    folders: Vec<PathBuf>,
    findings: Vec<Diagnostic>,
}

impl Listing {
    fn add(&mut self, directory: &Path, level: Level) {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) => return self.unreadable(directory, &error),
        };
        for entry in entries {
            if self.files.len() > MAX_FILES {
                return;
            }
            match entry {
                Ok(entry) => self.entry(&entry.path(), level),
                Err(error) => self.unreadable(directory, &error),
            }
        }
    }

    fn entry(&mut self, path: &Path, level: Level) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Hidden files, and what editors leave beside the file that they write.
        if name.starts_with(['.', '#']) || name.ends_with(['~', '#']) {
            return;
        }
        let form = Form::of_file(&name);
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            // A link to nowhere that no reader would look at is nobody's concern.
            Err(_) if form.is_none() => return,
            Err(error) => return self.unreadable(path, &error),
        };
        if metadata.is_dir() {
            return self.folder(path, level);
        }
        let Some(form) = form else { return };
        if metadata.is_file() {
            self.files.push((path.to_owned(), form));
        } else {
            self.findings.push(about(path, Code::Unreadable, "is not a regular file"));
        }
    }

    fn folder(&mut self, path: &Path, level: Level) {
        if level == Level::Top {
            self.folders.push(path.to_owned());
            return self.add(path, Level::Folder);
        }
        let message = "is not read: folders are read one level deep";
        self.findings.push(about(path, Code::NoEffect, message).into_warning());
    }

    fn unreadable(&mut self, path: &Path, error: &io::Error) {
        let message = format!("cannot be read: {error}");
        let help = "nothing is taken from the directory until all of it can be read";
        self.findings.push(about(path, Code::Unreadable, message).with_help(help));
    }
}

fn about(path: &Path, code: Code, message: impl Into<String>) -> Diagnostic {
    Diagnostic::about_file(&path.display().to_string(), code, message)
}

fn read_text(path: &Path, rest: u64) -> Result<String, Box<Diagnostic>> {
    let mut bytes = Vec::new();
    let limit = MAX_FILE_BYTES.min(rest);
    let read = File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes));
    match read {
        Err(error) => Err(about(path, Code::Unreadable, format!("cannot be read: {error}")).into()),
        Ok(length) if length as u64 > limit => {
            let message = if limit == MAX_FILE_BYTES {
                format!("larger than {MAX_FILE_BYTES} bytes")
            } else {
                format!("all files together are larger than {MAX_TOTAL_BYTES} bytes")
            };
            Err(about(path, Code::TooLarge, message).with_help("is it a resource file?").into())
        }
        Ok(_) => String::from_utf8(bytes).map_err(|error| {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
            about(path, Code::Syntax, format!("not UTF-8 text (line {line})")).into()
        }),
    }
}

/// What a directory looks like from outside, to see by polling that something has changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fingerprint {
    entries: Vec<(PathBuf, Option<Look>)>,
    unreadable: bool,
}

/// Inode, size and time of the last change.
type Look = (u64, u64, Option<SystemTime>);

impl Fingerprint {
    pub(super) fn of(directory: &Path) -> Self {
        let mut listing = Listing::default();
        listing.add(directory, Level::Top);
        let unreadable = listing.findings.iter().any(Diagnostic::is_error);
        let look = |path: PathBuf| {
            let seen = fs::metadata(&path).ok().map(|m| (inode(&m), m.len(), m.modified().ok()));
            (path, seen)
        };
        let mut entries: Vec<_> = listing.files.into_iter().map(|(path, _)| look(path)).collect();
        entries.sort();
        Self { entries, unreadable }
    }
}

/// The folders that are part of a directory, itself included, with their inodes.
pub(super) fn folders(directory: &Path) -> Vec<(PathBuf, u64)> {
    let mut listing = Listing::default();
    listing.add(directory, Level::Top);
    let all = std::iter::once(directory.to_owned()).chain(listing.folders);
    all.filter_map(|path| Some((inode(&fs::metadata(&path).ok()?), path)))
        .map(|(i, path)| (path, i))
        .collect()
}

fn inode(metadata: &Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}
