//! What a person can try while the demo's mesh stands, from another terminal: a small script that runs a command on a
//! host of it, and the lines to type.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use super::examples::CANARY;
use super::hosts::Host;
use super::stage::Stage;

/// The script's name, in the directory that holds all the hosts' files.
const SCRIPT: &str = "on";

/// A policy that lets nobody but the checkout call `support`, to be tried out.
const POLICY: &str = "\
[[AuthorizationPolicy]]
name = \"support\"
selector = { matchLabels = { app = \"support\" } }
rules = [{ from = [{ source = { serviceAccounts = [\"default/checkout\"] } }] }]
";

/// Half of the requests for the canary, to be tried out.
const HALF: &str = "\
[[VirtualService]]
name = \"reviews\"
hosts = [\"reviews\"]

[[VirtualService.http]]
route = [
  { destination = { host = \"reviews\", subset = \"v1\" }, weight = 50 },
  { destination = { host = \"reviews\", subset = \"v2\" }, weight = 50 },
]
";

/// Writes the script, and returns the lines to type, each after what it is for.
pub(crate) fn lines(stage: &Stage<'_>) -> Result<Vec<(&'static str, String)>> {
    let hosts = [&stage.control].into_iter().chain(stage.members().map(|member| &member.host));
    let path = stage.net.directory().join(SCRIPT);
    fs::write(&path, script(hosts)).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
        .context("cannot make the script executable")?;
    for (file, text) in [("only-checkout.toml", POLICY), ("half.toml", HALF)] {
        let file = stage.control.path(Path::new("/etc/baremesh").join(file));
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    // The last step may have left other routes, and may have failed.
    stage.enforce(&CANARY)?;
    let on = if is_executable(&path) { quoted(&path) } else { format!("sh {}", quoted(&path)) };
    let log = |host: &Host| quoted(&host.directory().join("log").join("agent.out"));
    Ok(vec![
        ("buy something", format!("{on} web baremesh demo-shop call checkout.mesh.internal 80 \"buy tea\"")),
        (
            "call, and be denied",
            format!("{on} guest baremesh demo-shop call orders.mesh.internal 80 \"order tea\""),
        ),
        ("watch the log", format!("tail -f {} {}", log(&stage.one.host), log(&stage.guest.host))),
        ("the whole mesh", format!("{on} control baremesh status")),
        ("one host's agent", format!("{on} one baremesh status")),
        ("its certificates", format!("{on} one baremesh certs")),
        ("its capture rules", format!("{on} one baremesh capture plan")),
        (
            "support for all",
            format!("{on} guest baremesh demo-shop half-close support.mesh.internal 80 hello"),
        ),
        ("then not for guest", format!("{on} control baremesh apply -f /etc/baremesh/only-checkout.toml")),
        (
            "a canary gets a tenth",
            format!(
                "{on} web baremesh demo-shop get --brief --keep --count 1000 http://reviews.mesh.internal/ \
                 | grep -o '\"instance\":\"v.\"' | sort | uniq -c"
            ),
        ),
        ("then half", format!("{on} control baremesh apply -f /etc/baremesh/half.toml")),
        ("a shell on a host", format!("{on} web sh")),
    ])
}

/// Some machines let nothing be executed from temporary directories.
fn is_executable(script: &Path) -> bool {
    let mut command = Command::new(script);
    command.args(["control", "true"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// `on HOST COMMAND…`, in the shell that every machine has.
fn script<'h>(hosts: impl Iterator<Item = &'h Host>) -> String {
    let mut cases = String::new();
    let mut names = Vec::new();
    for host in hosts {
        let command = host.command("true");
        let into = command.get_args().take_while(|arg| *arg != "--").map(|arg| quoted(Path::new(arg)));
        let into: Vec<_> = into.collect();
        let path = command.get_envs().find(|(name, _)| *name == "PATH").and_then(|(_, value)| value);
        let path = quoted(Path::new(path.unwrap_or_default()));
        // Writing to a string does not fail.
        let _ = writeln!(cases, "{}) PATH={path} exec nsenter {} -- \"$@\" ;;", host.name(), into.join(" "));
        names.push(host.name());
    }
    format!(
        "#!/bin/sh\n# Runs a command on a host of the demo: on HOST COMMAND...\n\
         host=$1\n[ $# -gt 1 ] && shift || host=\n\
         case $host in\n{cases}*) echo \"usage: $0 {} COMMAND...\" >&2; exit 2 ;;\nesac\n",
        names.join("|")
    )
}

/// As a shell takes it as one word.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/.-_=:,+".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.into_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_shell() {
        for text in ["/tmp/a-b_1.2/on", "with space", "it's", "", "$HOME;`x`"] {
            let echoed =
                Command::new("sh").args(["-c", &format!("printf %s {}", quoted(Path::new(text)))]).output();
            assert_eq!(String::from_utf8_lossy(&echoed.expect("a shell").stdout), text);
        }
    }
}
