//! What this process may do: make namespaces itself, or only below a user namespace of its own.

use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Result, bail};

use super::tools;

/// How namespaces can be made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// As root: several uids, and cgroups.
    Root,
    /// As an ordinary user in a user namespace, with further uids from `/etc/subuid`.
    ManyUids,
    /// As an ordinary user in a user namespace where only the own uid exists, as root.
    OneUid,
}

impl Privilege {
    /// What is possible for this process; probed once.
    ///
    /// # Errors
    /// If not even a user namespace can be had, with the settings that usually forbid it.
    pub fn probe() -> Result<Self> {
        static FOUND: OnceLock<std::result::Result<Privilege, String>> = OnceLock::new();
        match FOUND.get_or_init(find) {
            Ok(found) => Ok(*found),
            Err(text) => bail!(text.clone()),
        }
    }

    /// The arguments of `unshare` with which the first keeper gets its user namespace.
    pub(crate) fn user_namespace(self) -> &'static [&'static str] {
        match self {
            Self::Root => &[],
            Self::ManyUids => &["--user", "--map-root-user", "--map-auto"],
            Self::OneUid => &["--user", "--map-root-user"],
        }
    }

    /// Whether programs can run as other uids.
    pub fn has_uids(self) -> bool {
        self != Self::OneUid
    }
}

fn find() -> std::result::Result<Privilege, String> {
    let root = rustix::process::geteuid().is_root();
    let candidates: &[Privilege] = match root {
        true => &[Privilege::Root, Privilege::ManyUids, Privilege::OneUid],
        false => &[Privilege::ManyUids, Privilege::OneUid],
    };
    let mut refusal = String::new();
    for candidate in candidates {
        match try_out(*candidate) {
            Ok(()) => return Ok(*candidate),
            Err(text) => refusal = text,
        }
    }
    Err(format!(
        "this machine lets {} make no network namespace ({refusal}): run as root, or allow user namespaces \
         (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)",
        if root { "this root" } else { "an ordinary user" },
    ))
}

/// Bringing a loopback up tells a namespace with capabilities from one where a security module took them away.
fn try_out(privilege: Privilege) -> std::result::Result<(), String> {
    let mut unshare: Command = tools::tool("unshare");
    unshare
        .args(privilege.user_namespace())
        .args(["--mount", "--net", "--", "ip", "link", "set", "lo", "up"]);
    let output = unshare.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}
