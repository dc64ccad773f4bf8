//! Cgroups of demo hosts: what gives a program the place in the hierarchy that a systemd unit would have.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use baremesh_agent::mounts;

use super::INTO_CGROUP;

/// Where the version 2 hierarchy is mounted: `/sys/fs/cgroup` on most machines, a directory below it on hybrid ones.
pub(crate) fn mount_point() -> Option<PathBuf> {
    find(&fs::read_to_string("/proc/self/mountinfo").ok()?)
}

fn find(mountinfo: &str) -> Option<PathBuf> {
    mounts::of(mountinfo).find(|mount| mount.kind == "cgroup2").map(|mount| mount.point)
}

/// The command that joins the cgroup `group`, made if need be, and then becomes `command`. Standard streams are not
/// taken over: they are set on what this returns.
pub(crate) fn wrap(binary: &Path, group: &Path, command: &Command) -> Result<Command> {
    fs::create_dir_all(group).with_context(|| format!("cannot make the cgroup {}", group.display()))?;
    let mut wrapped = Command::new(binary);
    wrapped.arg(INTO_CGROUP).arg(group.join("cgroup.procs"));
    wrapped.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        wrapped.current_dir(directory);
    }
    Ok(wrapped)
}

/// `demo-into-cgroup PROCS-FILE PROGRAM ARGUMENTS…`
pub(crate) fn enter_cgroup(args: &[OsString]) -> Result<()> {
    let [procs, program, arguments @ ..] = args else { bail!("this verb is for the demo's own use") };
    // 0 stands for the writer (cgroups(7)).
    fs::write(procs, "0").with_context(|| format!("cannot join the cgroup of {}", procs.display()))?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}

/// Removes a cgroup and those below it; busy ones are an error.
pub(crate) fn remove(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_version_2_hierarchy() {
        let check = |mountinfo: &str, expected: Option<&str>| {
            assert_eq!(find(mountinfo), expected.map(PathBuf::from), "{mountinfo}");
        };
        let hybrid = "32 25 0:27 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu\n\
                      33 25 0:28 / /sys/fs/cgroup/unified rw,relatime shared:10 - cgroup2 cgroup2 rw\n";
        check(hybrid, Some("/sys/fs/cgroup/unified"));
        check("28 23 0:24 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n", Some("/sys/fs/cgroup"));
        check("32 25 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup2 rw,cpu\n", None);
        check("", None);
    }
}
