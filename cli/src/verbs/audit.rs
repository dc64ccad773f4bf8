//! `baremesh audit`.

use std::time::{Duration, SystemTime};

use clap::Args;
use http::Method;

use super::server::Remote;
use super::{Global, block_on, values};
use crate::control::report::AuditReport;
use crate::output::{Output, printable, say, say_json, to_unix, when};

const LONG_ABOUT: &str = "\
Show who did what to the mesh, and what was refused: changes of resources with what they changed, tokens, hosts that
joined or were shut out, operators, certificates that were issued. The last one first. Values that could be secrets are
left out.

Operators are named as such; on the control host itself it is the user id of the process. 100,000 lines of what was done
are kept, as many of what was refused, and certificates until 30 days after their end.";

/// Show who did what, and what was refused
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT)]
pub struct Audit {
    #[command(flatten)]
    remote: Remote,
    /// Only what happened within this time: 90s, 15m, 12h, 7d
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    since: Option<Duration>,
    /// So many lines at most
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

impl Audit {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let server = self.remote.server(&global.directories())?;
        let since = self.since.and_then(|since| SystemTime::now().checked_sub(since));
        let since = since.map(|since| format!("&since={}", to_unix(since))).unwrap_or_default();
        let target = format!("/audit?limit={}{since}", self.limit);
        let lines: Vec<AuditReport> = block_on(server.ask(Method::GET, &target))?;
        if global.output == Output::Json {
            return say_json(&lines);
        }
        if lines.is_empty() {
            return say("nothing happened");
        }
        say(lines.iter().map(shown).collect::<Vec<_>>().join("\n"))
    }
}

fn shown(line: &AuditReport) -> String {
    let version = line.version.map(|version| format!(" [version {version}]")).unwrap_or_default();
    let mut text = format!("{}  {}: {}{version}", when(line.at), line.who, line.what);
    if let Some(reason) = &line.refused {
        text.push_str(&format!("\n    REFUSED: {}", reason.replace('\n', "\n    ")));
    }
    for difference in line.difference.lines() {
        text.push_str(&format!("\n    {difference}"));
    }
    printable(&text)
}
