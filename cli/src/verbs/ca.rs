//! `baremesh ca`.

use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::server::Remote;
use super::{Global, block_on, values};
use crate::control::report::{AuthorityReport, ChainOrder, DropOrder, Replaced, RequestAnswer, RotateOrder};
use crate::output::{Output, relative, remark, say, say_json, table};

/// Show what signs the mesh's certificates, and replace it, on the control host
#[derive(Debug, Args)]
pub struct Ca {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    verb: Option<CaVerb>,
}

#[derive(Debug, Subcommand)]
enum CaVerb {
    /// Show the roots that are trusted, and until when what signs is valid, as without a verb
    Show,
    Rotate(Rotate),
    /// Print a signing request for an intermediate that somebody else signs, a company's root for instance. Its key stays
    /// here
    Csr,
    InstallChain(InstallChain),
    DropRoot(DropRoot),
}

/// Take the certificate that was signed for the request of `ca csr`, with its issuers
#[derive(Debug, Args)]
struct InstallChain {
    /// A PEM file: the certificate first, its issuers after it, their root last; `-` is the standard input
    file: String,
    /// After how long it signs at the latest, where its root is new to the mesh [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    within: Option<Duration>,
}

const ABOUT_ROTATION: &str = "\
The key that signs intermediates must be in place for --intermediate (`ca/root.key` in the state directory). For --root it
should be: then hosts that are away meanwhile find their way back by the root that they know.

A new root is trusted by all hosts before anything is signed under it. It signs as soon as every host that is there has
said that it knows it, or when the time of --within is over. What is signed under the root of before goes on; each host
renews it within half a minute. Then that root can be dropped.";

/// Replace the intermediate, or the root with it
#[derive(Debug, Args)]
#[command(after_help = ABOUT_ROTATION)]
struct Rotate {
    /// The intermediate, under the same root
    #[arg(long, required_unless_present = "root", conflicts_with = "root")]
    intermediate: bool,
    /// The root
    #[arg(long)]
    root: bool,
    /// After how long the new root signs at the latest [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = values::duration, conflicts_with = "intermediate")]
    within: Option<Duration>,
}

/// Trust a root no more: one of before, or one that is to sign next
#[derive(Debug, Args)]
struct DropRoot {
    /// Its fingerprint, or the first digits of it, as `baremesh ca` shows it
    fingerprint: String,
    /// Although certificates in use lead to it: who shows one is refused until it has another
    #[arg(long)]
    force: bool,
}

impl Ca {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let server = self.remote.server(&global.directories())?;
        match self.verb {
            None | Some(CaVerb::Show) => shown(&block_on(server.ask(Method::GET, "/ca"))?, global.output),
            Some(CaVerb::Rotate(Rotate { root, within, .. })) => {
                let what = if root { Replaced::Root } else { Replaced::Intermediate };
                let within_seconds = within.map(|within| within.as_secs());
                let order = RotateOrder { what, within_seconds };
                shown(&block_on(server.post("/ca/rotate", &order))?, global.output)
            }
            Some(CaVerb::Csr) => {
                let answer: RequestAnswer = block_on(server.post("/ca/csr", &json!({})))?;
                match global.output {
                    Output::Json => say_json(&answer),
                    _ => say(answer.request.trim_end()),
                }
            }
            Some(CaVerb::InstallChain(InstallChain { file, within })) => {
                let chain = read_text(&file)?;
                let order = ChainOrder { chain, within_seconds: within.map(|within| within.as_secs()) };
                shown(&block_on(server.post("/ca/chain", &order))?, global.output)
            }
            Some(CaVerb::DropRoot(DropRoot { fingerprint, force })) => {
                let answer: Value =
                    block_on(server.post("/ca/drop-root", &DropOrder { fingerprint, force }))?;
                match global.output {
                    Output::Json => say_json(&answer),
                    _ => say(format_args!(
                        "the root {} is trusted no more",
                        answer["dropped"].as_str().unwrap_or("-")
                    )),
                }
            }
        }
    }
}

/// A file's text, or the standard input's.
fn read_text(file: &str) -> anyhow::Result<String> {
    let text = match file {
        "-" => std::io::read_to_string(std::io::stdin()),
        path => std::fs::read_to_string(path),
    };
    text.with_context(|| format!("{file} cannot be read"))
}

fn shown(report: &AuthorityReport, output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        return say_json(report);
    }
    let now = SystemTime::now();
    let row = |root: &crate::control::report::RootReport| {
        let in_use = root.in_use.map_or_else(|| "-".to_owned(), |count| count.to_string());
        vec![root.standing.clone(), relative(root.not_after, now), in_use, root.fingerprint.clone()]
    };
    say(table(
        &["ROOT", "ENDS", "IN USE", "FINGERPRINT"],
        report.roots.iter().map(row).collect(),
        "no root",
    ))?;
    say(format_args!("\nThe intermediate ends {}.", relative(report.intermediate_not_after, now)))?;
    if let Some(by) = report.switches_by {
        let by = relative(by, now);
        remark(format_args!(
            "the next root signs when every host that is there knows it, {by} at the latest"
        ));
    }
    Ok(())
}
