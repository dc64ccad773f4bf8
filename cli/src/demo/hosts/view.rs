//! What a host sees of the file system: the machine's, but with `/etc`, `/run` and `/var/lib` of its own. They are
//! directories of links to the machine's entries, with private files in place of those that make hosts differ, so
//! nothing has to be created in the machine's own directories, which an ordinary user could not do.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::mount::{MountFlags, mount, mount_bind, mount_bind_recursive};

/// A directory of the machine that a host has for itself.
struct Shadow {
    target: &'static str,
    /// Its place below the host's directory.
    name: &'static str,
    /// Entries that the host does not get: its own take their place, or name services that answer for the machine.
    hidden: &'static [&'static str],
}

const SHADOWS: &[Shadow] = &[
    Shadow {
        target: "/etc",
        name: "etc",
        hidden: &["resolv.conf", "hosts", "hostname", "nsswitch.conf", "baremesh"],
    },
    Shadow {
        target: "/run",
        name: "run",
        hidden: &[
            "nscd",
            "systemd",
            "avahi-daemon",
            "dbus",
            "netns",
            "resolvconf",
            "NetworkManager",
            "baremesh",
        ],
    },
    Shadow { target: "/var/lib", name: "var-lib", hidden: &["baremesh"] },
];

/// Where a tmpfs is mounted when nothing is writable. The first that exists and hides neither this program nor the
/// working directory is taken.
const SCRATCH: &[&str] = &["/mnt", "/media", "/srv", "/opt", "/tmp"];

/// Puts the host's own directories, kept below `directory`, over the machine's.
pub(crate) fn dress(directory: &Path, name: &str) -> Result<()> {
    make(directory)?;
    make(&directory.join("log"))?;
    make(&directory.join("machine"))?;
    show_binary(directory)?;
    // What was in /run does not outlive a reboot.
    match fs::remove_dir_all(directory.join("run")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).context("cannot empty the host's /run");
        }
        _ => {}
    }
    for shadow in SHADOWS {
        let own = directory.join(shadow.name);
        cast(shadow, &own, &directory.join("machine").join(shadow.name))?;
        make(&own.join("baremesh"))?;
        if shadow.target == "/etc" {
            write_names(&own, name)?;
        }
    }
    // Only now, because the host's directory may itself be below one of them.
    for shadow in SHADOWS {
        mount_bind(directory.join(shadow.name), shadow.target)
            .with_context(|| format!("cannot mount a private {}", shadow.target))?;
    }
    Ok(())
}

/// Where a host sees this program, below its directory.
pub(crate) const BIN: &str = "bin";

/// Mounts this program where every uid of the host reaches it, wherever it was built.
fn show_binary(directory: &Path) -> Result<()> {
    let own = std::env::current_exe().context("cannot find the path of the running binary")?;
    make(&directory.join(BIN))?;
    let place = directory.join(BIN).join("baremesh");
    fs::write(&place, "").with_context(|| format!("cannot write {}", place.display()))?;
    mount_bind(&own, &place).with_context(|| format!("cannot mount {} on the host", own.display()))
}

/// A tmpfs for the hosts' files, where nothing else is writable.
pub(crate) fn mount_scratch() -> Result<PathBuf> {
    let binary = std::env::current_exe().context("cannot find the path of the running binary")?;
    let here = std::env::current_dir().unwrap_or_default();
    let usable = |path: &Path| path.is_dir() && !binary.starts_with(path) && !here.starts_with(path);
    let Some(place) = SCRATCH.iter().map(Path::new).find(|path| usable(path)) else {
        bail!("no directory is writable and none of {} can take a tmpfs: set TMPDIR", SCRATCH.join(", "));
    };
    mount("tmpfs", place, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=0755").with_context(
        || format!("no directory is writable, and no tmpfs can be mounted on {}", place.display()),
    )?;
    Ok(place.to_owned())
}

/// Keeps the machine's directory in sight at `machine`, and fills `own` with links to its entries.
fn cast(shadow: &Shadow, own: &Path, machine: &Path) -> Result<()> {
    make(own)?;
    make(machine)?;
    // Recursive: a user namespace may not separate a mount from those below it.
    mount_bind_recursive(shadow.target, machine).with_context(|| format!("cannot bind {}", shadow.target))?;
    for entry in fs::read_dir(shadow.target).with_context(|| format!("cannot read {}", shadow.target))? {
        let entry = entry?;
        let name = entry.file_name();
        if shadow.hidden.iter().any(|hidden| name == OsStr::new(hidden)) {
            continue;
        }
        // A link is copied as it is: a relative one leads on from the same place.
        let target = match entry.file_type()?.is_symlink() {
            true => fs::read_link(entry.path())?,
            false => machine.join(&name),
        };
        match symlink(&target, own.join(&name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("cannot link {}", entry.path().display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The files that name resolution reads: files and DNS, never a resolver daemon of the machine.
fn write_names(etc: &Path, name: &str) -> Result<()> {
    let hosts = format!("127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 {name}\n");
    let files = [
        ("hosts", hosts),
        ("hostname", format!("{name}\n")),
        ("resolv.conf", "# No resolver: the host knows only the names in /etc/hosts.\n".to_owned()),
        ("nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n".to_owned()),
    ];
    for (file, text) in files {
        let path = etc.join(file);
        // A host that comes back keeps what was written to them.
        if !path.exists() {
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        }
    }
    Ok(())
}

/// A directory that other uids may pass through, whatever the umask says.
fn make(directory: &Path) -> Result<()> {
    match fs::create_dir(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot make {}", directory.display())),
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot set the mode of {}", directory.display()))
}

/// Where a path of the host lies in its directory; `None` for what it shares with the machine.
pub(crate) fn own_path(path: &Path) -> Option<PathBuf> {
    SHADOWS.iter().find_map(|shadow| {
        let rest = path.strip_prefix(shadow.target).ok()?;
        Some(Path::new(shadow.name).join(rest))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_paths_lie_below_the_hosts_directory() {
        let check = |path: &str, expected: Option<&str>| {
            assert_eq!(own_path(Path::new(path)), expected.map(PathBuf::from), "{path}");
        };
        check("/etc/baremesh/agent.toml", Some("etc/baremesh/agent.toml"));
        check("/run/baremesh", Some("run/baremesh"));
        check("/var/lib/baremesh/control.db", Some("var-lib/baremesh/control.db"));
        check("/var/log/syslog", None);
        check("/etcetera", None);
    }
}
