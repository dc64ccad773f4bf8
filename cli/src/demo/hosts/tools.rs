//! The programs of the machine that hosts are made with: found, or named with the package that has them.

use std::env;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail};

/// Each tool that every host needs, and the Debian package that has it.
const NEEDED: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
];

/// Where an ordinary user's `PATH` does not look, and these tools are.
const SYSTEM_DIRS: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// The caller's `PATH` with the system's directories after it.
pub(crate) fn search_path() -> &'static OsString {
    static PATH: OnceLock<OsString> = OnceLock::new();
    PATH.get_or_init(|| match env::var_os("PATH") {
        Some(mut path) if !path.is_empty() => {
            path.push(":");
            path.push(SYSTEM_DIRS);
            path
        }
        _ => SYSTEM_DIRS.into(),
    })
}

/// Checks that every tool is there.
///
/// # Errors
/// Names all the missing ones and the packages to install.
pub(crate) fn check() -> Result<()> {
    let missing =
        missing_among(NEEDED, |tool| env::split_paths(search_path()).any(|dir| dir.join(tool).is_file()));
    match missing {
        None => Ok(()),
        Some(text) => bail!(text),
    }
}

fn missing_among(needed: &[(&str, &str)], found: impl Fn(&str) -> bool) -> Option<String> {
    let missing: Vec<_> = needed.iter().filter(|(tool, _)| !found(tool)).collect();
    if missing.is_empty() {
        return None;
    }
    let tools: Vec<_> =
        missing.iter().map(|(tool, package)| format!("{tool} (Debian package {package})")).collect();
    let mut packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    Some(format!("missing: {}; try: apt install {}", tools.join(", "), packages.join(" ")))
}

/// A command that finds its program in the system's directories too.
pub(crate) fn tool(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", search_path());
    command
}

/// Runs `command` to its end with `input` on its standard input.
///
/// # Errors
/// If it cannot be started or does not succeed; the message is what it wrote to standard error.
pub(crate) fn run(mut command: Command, input: &str) -> Result<()> {
    let what = describe(&command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {what}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that fails before it has read everything says why on standard error.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {what}"))?;
    if output.status.success() {
        return Ok(());
    }
    bail!("{what} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
}

/// The program and its arguments, without the environment that `Debug` adds.
pub(crate) fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// This very program, which holds the hidden subcommands.
pub(crate) fn own_binary() -> Result<PathBuf> {
    env::current_exe().context("cannot find the path of the running binary: is /proc mounted?")
}

/// Refuses a binary that namespaces could not start.
pub(crate) fn check_binary(binary: &Path) -> Result<()> {
    if binary.is_file() {
        return Ok(());
    }
    bail!("{} is not a file: build it with `cargo build -p baremesh`", binary.display());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_tools_are_named_with_their_packages() {
        let check = |present: &[&str]| missing_among(NEEDED, |tool| present.contains(&tool));
        assert_eq!(check(&["ip", "nft", "unshare", "nsenter", "setpriv"]), None);
        assert_eq!(
            check(&["unshare", "ip", "nsenter", "setpriv"]).as_deref(),
            Some("missing: nft (Debian package nftables); try: apt install nftables")
        );
        assert_eq!(
            check(&["ip", "nft", "setpriv"]).as_deref(),
            Some(
                "missing: unshare (Debian package util-linux), nsenter (Debian package util-linux); \
                 try: apt install util-linux"
            )
        );
    }
}
