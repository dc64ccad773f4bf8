//! `baremesh rollback` and `baremesh history`.

use clap::Args;
use http::Method;

use super::place::{Done, changes_json, remark_version, say_changes, shown};
use super::server::Remote;
use super::{Global, block_on};
use crate::control::report::{Changes, RollbackRequest, VersionReport};
use crate::output::{Output, printable, remark, say, say_json, when};

const LONG_ABOUT: &str = "\
Take changes of resources back. Every accepted change has a version; `baremesh history` lists them. Without a version the
latest change is taken back, with one that change and all since, with --to all since that version. Files get the texts
that they had; the whole resulting set is checked first, and what is refused changes nothing.

What others have changed since, or by hand, is shown and taken back only with --force. Taking back is a change with a
version of its own, which can be taken back as well. The files of the latest 1,000 versions are kept, 64 MiB of them.";

const EXAMPLES: &str = "\
Examples:
  baremesh history
  baremesh rollback 17 --dry-run     what it would do
  baremesh rollback 17               to before version 17
  baremesh rollback --to 16          the same";

/// Take changes of resources back
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_help = EXAMPLES)]
pub struct Rollback {
    #[command(flatten)]
    remote: Remote,
    /// The first change that is taken back [default: the latest]
    #[arg(conflicts_with = "to", value_parser = clap::value_parser!(i64).range(1..))]
    version: Option<i64>,
    /// The last change that is not taken back
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(i64).range(1..))]
    to: Option<i64>,
    /// Take back what others have changed since, too
    #[arg(long)]
    force: bool,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Rollback {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let server = self.remote.server(&global.directories())?;
        let request =
            RollbackRequest { version: self.version, to: self.to, force: self.force, dry_run: self.dry_run };
        let asked = block_on(server.post("/rollback", &request));
        let changes: Changes = shown(global.output, asked, &Done::Changed(&[]))?;
        if global.output == Output::Json {
            return say_json(&changes_json(&[changes]));
        }
        if self.dry_run {
            for change in changes.changes.iter().filter(|change| change.effect != "unchanged") {
                let (kind, namespace, name) = (&change.kind, &change.namespace, &change.name);
                say(format_args!("{kind} {namespace}/{name} would be {}", change.effect))?;
                say(&change.diff)?;
            }
            return Ok(());
        }
        say(say_changes(&changes))?;
        remark_version(&changes);
        if !changes.in_force {
            remark("written, and not in force yet: `baremesh status` says why");
        }
        Ok(())
    }
}

/// List the changes of resources, each with its version
#[derive(Debug, Args)]
#[command(after_help = "`baremesh rollback VERSION` takes changes back.")]
pub struct History {
    #[command(flatten)]
    remote: Remote,
    /// So many changes at most
    #[arg(long, value_name = "NUMBER", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

impl History {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let server = self.remote.server(&global.directories())?;
        let target = format!("/versions?limit={}", self.limit);
        let versions: Vec<VersionReport> = block_on(server.ask(Method::GET, &target))?;
        if global.output == Output::Json {
            return say_json(&versions);
        }
        if versions.is_empty() {
            return say("no change was made through the control server yet");
        }
        say(versions.iter().map(version).collect::<Vec<_>>().join("\n"))
    }
}

fn version(version: &VersionReport) -> String {
    let kept = if version.kept { "" } else { " (its files are no longer kept)" };
    let head = format!("{}  {}  {}: {}{kept}", version.version, when(version.at), version.who, version.what);
    let lines = version.difference.lines().map(|line| format!("\n    {line}"));
    printable(&(head + &lines.collect::<String>()))
}
