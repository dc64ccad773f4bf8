//! The drop-in of a service's unit, and that systemd reads it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use baremesh_agent::attribution::UnitName;
use baremesh_agent::config::Directories;
use baremesh_agent::registration::drop_in::{DropIns, HAS_NFT_SET};
use baremesh_model::name::Key;

use crate::output::{remark, usage};

/// Where systemd is what runs the host.
const RUNS: &str = "/run/systemd/system";

/// A drop-in that was asked for.
pub(super) struct Asked {
    unit: UnitName,
    /// The version of systemd.
    systemd: u32,
}

impl Asked {
    /// Whether it can be laid down: nothing is registered where it cannot.
    pub(super) fn new(directories: &Directories, key: &Key, unit: &str) -> anyhow::Result<Self> {
        if !is_of_system(directories) {
            return Err(usage(format!(
                "--drop-in is for services of the host's own agent, whose configuration is in {}",
                Directories::default().config.display()
            )));
        }
        anyhow::ensure!(
            Path::new(RUNS).is_dir(),
            "systemd does not run this host ({RUNS} is not there), so there is no unit to lay a drop-in beside: leave --drop-in out"
        );
        let unit = UnitName::new(unit)?;
        DropIns::of_system().place(key, &unit)?;
        Ok(Self { unit, systemd: version_in(&systemctl(&["--version"])?)? })
    }
}

/// Lays down what was asked for, removes what was laid down before and was not asked for again, and has systemd read it. Where the
/// drop-in is.
pub(super) fn follow(
    directories: &Directories,
    key: &Key,
    asked: Option<&Asked>,
) -> anyhow::Result<Option<PathBuf>> {
    if !is_of_system(directories) {
        return Ok(None);
    }
    let drop_ins = DropIns::of_system();
    let laid = asked.map(|asked| drop_ins.lay(key, &asked.unit, asked.systemd)).transpose()?;
    let removed = drop_ins.remove(key, laid.as_deref())?;
    if laid.is_some() || !removed.is_empty() {
        systemctl(&["daemon-reload"]).context("drop-ins have changed, and systemd has not read them")?;
    }
    for path in removed {
        remark(format_args!("note: {} is removed", path.display()));
    }
    Ok(laid)
}

/// What a drop-in does, and from when on.
pub(super) fn say_laid(path: &Path, asked: &Asked) {
    let unit = asked.unit.as_str();
    let held = match asked.systemd >= HAS_NFT_SET {
        true => ", and is held from its first packet on where it reaches the registry alone".to_owned(),
        false => format!(
            " (systemd {} has no NFTSet=, which {HAS_NFT_SET} has: where it reaches the registry alone, name its user too)",
            asked.systemd
        ),
    };
    remark(format_args!(
        "note: by {} {unit} starts after the mesh{held}: from its next start on (systemctl restart {unit})",
        path.display()
    ));
}

/// Whether these are the directories of the host's own agent: others' services have the same names, and no units.
fn is_of_system(directories: &Directories) -> bool {
    directories.config == Directories::default().config
}

fn systemctl(arguments: &[&str]) -> anyhow::Result<String> {
    let line = || format!("systemctl {}", arguments.join(" "));
    let output = Command::new("systemctl").args(arguments).output().with_context(line)?;
    anyhow::ensure!(
        output.status.success(),
        "`{}` fails: {}",
        line(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `systemd 257 (257.9-1~deb13u1)` and a line of features.
fn version_in(text: &str) -> anyhow::Result<u32> {
    let mut words = text.split_whitespace();
    let number = words.next().filter(|first| *first == "systemd").and(words.next());
    let digits = number.unwrap_or_default().split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().ok().with_context(|| {
        format!("`systemctl --version` names no version: {}", text.lines().next().unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read() {
        let check = |text: &str, expected: Option<u32>| {
            assert_eq!(version_in(text).ok(), expected, "{text}");
        };
        check("systemd 257 (257.9-1~deb13u1)\n+PAM +AUDIT\n", Some(257));
        check("systemd 252 (252.39-1~deb12u1)\n", Some(252));
        check("systemd 259~rc1 (259~rc1-1)\n", Some(259));
        check("systemd 219\n", Some(219));
        for bad in ["", "systemd", "systemd x", "elogind 255"] {
            check(bad, None);
        }
    }

    #[test]
    fn other_directories_than_the_host_s_take_none_and_lose_none() {
        let other = Directories { config: "/somewhere".into(), ..Directories::default() };
        let key = Key::new("default".parse().expect("a label"), "orders".parse().expect("a label"));
        assert!(Asked::new(&other, &key, "orders.service").is_err());
        assert_eq!(follow(&other, &key, None).expect("nothing is done"), None);
    }
}
