//! The network between hosts: a bridge in a namespace of its own, and the directory where its hosts keep their files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};

use super::held::{Enter, Held};
use super::{Capture, Host, KEEPER, Privilege, cgroup, tools, view};

/// A switch to which hosts are plugged. Any number of them can stand side by side; when a `Net` and its hosts are
/// dropped, or the process that made them ends, nothing of them is left.
pub struct Net {
    switch: Arc<Switch>,
}

/// What hosts share, and what therefore ends last.
pub(crate) struct Switch {
    pub(crate) binary: PathBuf,
    pub(crate) privilege: Privilege,
    pub(crate) held: Held,
    /// Where hosts keep their files, as they see it.
    pub(crate) inside: PathBuf,
    /// The same directory, as this process sees it.
    pub(crate) outside: PathBuf,
    /// Below which hosts make their cgroups; `None` for ordinary users.
    pub(crate) cgroup: Option<PathBuf>,
}

impl Net {
    /// A network whose hosts run this very program where they need `baremesh`.
    ///
    /// # Errors
    /// If tools are missing or the machine allows no namespaces; the message says what to do.
    pub fn new(name: &str) -> Result<Self> {
        Self::with_binary(name, &tools::own_binary()?)
    }

    /// A network whose hosts run `binary`, a `baremesh`.
    ///
    /// # Errors
    /// As [`Net::new`], and if there is no such file.
    pub fn with_binary(name: &str, binary: &Path) -> Result<Self> {
        tools::check()?;
        tools::check_binary(binary)?;
        let privilege = Privilege::probe()?;
        let unique = unique_name(name);
        let cgroup = match privilege {
            Privilege::Root => cgroup::mount_point().map(|mount| mount.join(&unique)),
            _ => None,
        };
        let writable = writable_directory(&unique);

        let mut keeper = tools::tool("unshare");
        keeper.args(privilege.user_namespace()).args(["--mount", "--net", "--uts", "--"]);
        keeper.arg(binary).args([KEEPER, "switch"]);
        keeper.arg(writable.as_deref().unwrap_or(Path::new("-")));
        keeper.arg(cgroup.as_deref().unwrap_or(Path::new("-")));
        let held = match Held::start(keeper) {
            Ok(held) => held,
            Err(error) => {
                if let Some(directory) = &writable {
                    let _ = fs::remove_dir_all(directory);
                }
                return Err(error.context("the switch between the hosts could not be made"));
            }
        };
        let (inside, outside) = match writable {
            Some(directory) => (directory.clone(), directory),
            None => {
                let inside = PathBuf::from(held.said());
                let below_root = inside.strip_prefix("/").unwrap_or(&inside);
                let outside = Path::new("/proc").join(held.pid().to_string()).join("root").join(below_root);
                (inside, outside)
            }
        };
        let binary = binary.to_owned();
        Ok(Self { switch: Arc::new(Switch { binary, privilege, held, inside, outside, cgroup }) })
    }

    /// Plugs in a host: `eth0` is 10.77.0.`index`/24 and fd77::`index`/64 (the index in hexadecimal). A host that was
    /// dropped comes back with the files that it had, as after a reboot.
    ///
    /// # Errors
    /// If the name is no host name, the index is 0, 255 or taken, or the kernel refuses.
    pub fn host(&self, name: &str, index: u8) -> Result<Host> {
        Host::plug_into(&self.switch, name, index).with_context(|| format!("host {name} could not be made"))
    }

    /// Starts to record what passes the switch: all ports, all families. What a host sends to itself is not in it.
    ///
    /// # Errors
    /// If the recorder cannot be started.
    pub fn capture(&self) -> Result<Capture> {
        let switch = &self.switch;
        Capture::start(switch.held.enter(switch.user(), Enter::All, &switch.binary), &switch.outside)
    }

    /// How the namespaces were made, and so what hosts can do.
    pub fn privilege(&self) -> Privilege {
        self.switch.privilege
    }

    /// Where hosts keep their files: a directory for each.
    pub fn directory(&self) -> &Path {
        &self.switch.outside
    }
}

impl Switch {
    /// The keeper of the user namespace that every command joins, if there is one.
    pub(crate) fn user(&self) -> Option<u32> {
        (self.privilege != Privilege::Root).then(|| self.held.pid())
    }

    /// Runs a batch of `ip` commands in the switch's network.
    pub(crate) fn ip(&self, batch: &str) -> Result<()> {
        let mut ip = self.held.enter(self.user(), Enter::All, "ip");
        ip.args(["-batch", "-"]);
        tools::run(ip, batch)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.held.end();
        // The keeper has removed it, unless it was killed.
        let _ = fs::remove_dir_all(&self.outside);
    }
}

/// Distinct over the threads of a process and over processes.
fn unique_name(name: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let readable: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(32).collect();
    format!("baremesh-{readable}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A new directory where one can be made; `None` if nothing is writable, and a tmpfs is needed.
fn writable_directory(unique: &str) -> Option<PathBuf> {
    let temporary = std::env::temp_dir();
    let bases = [temporary.as_path(), Path::new("/tmp"), Path::new("/dev/shm"), Path::new("/var/tmp")];
    bases.iter().find_map(|base| {
        let base = fs::canonicalize(base).ok()?;
        // Hosts have directories of their own over some of the machine's, and would not find their files below them.
        if view::own_path(&base).is_some() {
            return None;
        }
        let made = tempfile::Builder::new().prefix(&format!("{unique}-")).tempdir_in(base).ok()?;
        // Programs of other uids on the hosts reach their files through it.
        fs::set_permissions(made.path(), fs::Permissions::from_mode(0o755)).ok()?;
        Some(made.keep())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_never_repeat() {
        assert_ne!(unique_name("shop"), unique_name("shop"));
        assert!(unique_name("../a b").starts_with("baremesh-ab-"));
    }
}
