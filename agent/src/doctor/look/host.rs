//! The kernel, the tools, the limits, the disk and the addresses of this host.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::fs::{StatVfsMountFlags, statvfs};

use crate::addresses;
use crate::admin::report::doctor::{DescriptorsReport, MemoryReport};
use crate::attribution::Tracking;
use crate::attribution::cgroup::Hierarchy;
use crate::capture::conntrack::Tracked;
use crate::capture::{CaptureError, nft_version};
use crate::headroom::{self, Memory, Used};

/// The file that says whether the state directory can be written to. It is removed at once.
const TRIAL: &str = ".doctor";

/// What a host is.
#[derive(Debug)]
pub struct Host {
    /// As `uname -r` says.
    pub kernel: String,
    /// The version of nft, or why there is none.
    pub nft: Result<String, CaptureError>,
    /// Where the cgroup hierarchy of version 2 is, or why it is not found.
    pub cgroups: Result<PathBuf, String>,
    /// Whether connection tracking can be asked.
    pub tracking: Tracking,
    /// How full the table of tracked connections is; none where nothing is tracked.
    pub tracked: Option<Tracked>,
    /// The file system of the state directory.
    pub disk: Result<Disk, String>,
    /// The addresses of its interfaces; none where they cannot be read.
    pub addresses: Option<Vec<IpAddr>>,
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Where.
    pub path: PathBuf,
    /// Bytes that programs may still write.
    pub free: u64,
    /// Files that they may still make; none where the file system has no such bound.
    pub free_files: Option<u64>,
    /// Whether it is mounted for reading alone.
    pub read_only: bool,
}

impl Host {
    /// Looks, with the file system of `state`.
    pub fn look(state: &Path) -> Self {
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            nft: nft_version(),
            cgroups: Hierarchy::find().map(|found| found.directory).map_err(|error| error.to_string()),
            tracking: Tracking::look(),
            tracked: Tracked::read(),
            disk: disk(state).map_err(|error| format!("{}: {error}", state.display())),
            addresses: addresses::own().ok(),
        }
    }
}

fn disk(path: &Path) -> io::Result<Disk> {
    let found = statvfs(path)?;
    Ok(Disk {
        path: path.to_owned(),
        free: found.f_bavail.saturating_mul(found.f_frsize),
        // Some file systems make them as they are needed, and say 0 of 0.
        free_files: (found.f_files > 0).then_some(found.f_favail),
        read_only: found.f_flag.contains(StatVfsMountFlags::RDONLY),
    })
}

/// Why nothing can be written to a directory, where that is so: a file of a page is made and removed.
pub fn unwritable(directory: &Path) -> Option<String> {
    let file = directory.join(TRIAL);
    let written = fs::write(&file, [0; 4096]);
    let removed = fs::remove_file(&file);
    written.and(removed).err().map(|error| format!("{}: {error}", directory.display()))
}

/// Descriptors of this process.
pub fn descriptors(max_connections: usize) -> DescriptorsReport {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    DescriptorsReport {
        open: headroom::open_descriptors().unwrap_or_default(),
        limit: limit.unwrap_or(u64::MAX),
        max_connections: max_connections as u64,
    }
}

/// The memory of this process's cgroup, or of the nearest above it that has a limit.
pub fn memory() -> Option<MemoryReport> {
    Memory::used().map(|Used { bytes: used, limit }| MemoryReport { used, limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_at_this_machine() {
        let directory = tempfile::tempdir().expect("a directory");
        let host = Host::look(directory.path());
        assert!(host.kernel.starts_with(|c: char| c.is_ascii_digit()), "{}", host.kernel);
        let disk = host.disk.expect("a file system");
        assert!(disk.free > 0 && !disk.read_only, "{disk:?}");
        assert_eq!(unwritable(directory.path()), None);
        assert_eq!(fs::read_dir(directory.path()).expect("a directory").count(), 0, "nothing is left");
        assert!(unwritable(&directory.path().join("nosuch")).is_some());
        assert!(descriptors(7).open >= 3);
    }
}
