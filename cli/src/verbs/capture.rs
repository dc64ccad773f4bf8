//! `baremesh capture`: the rules that bring connections to the agent. What needs the agent's knowledge asks the
//! agent; what an operator needs in an emergency works without it.

/// What is printed for people.
mod show;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use baremesh_agent::admin::client::{Socket, SocketError};
use baremesh_agent::admin::report::capture::{CaptureReport, ChangeReport, PlanReport};
use baremesh_agent::capture::interval::Interval;
use baremesh_agent::capture::{self, Anchor, Capture as Rules, Waiting, confirm, guard};
use baremesh_agent::service_manager::store;
use clap::{Args, Subcommand};
use http::Method;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{Global, block_on, values};
use crate::output::{Exit, Output, Said, in_full, remark, say, say_json};

const LONG_ABOUT: &str = "\
The nftables rules that bring connections to the agent. All of them live in the tables `inet baremesh`,
`inet baremesh_anchor` and `inet baremesh_units`; nothing else is touched, and SSH, DHCP, NTP and the metadata address
are never captured.

An agent places them when it starts, unless agent.toml says `[capture] enabled = false`.";

/// Show, place and remove the rules that bring connections to the agent
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT)]
pub struct Capture {
    #[command(subcommand)]
    verb: CaptureVerb,
}

#[derive(Debug, Subcommand)]
enum CaptureVerb {
    /// Show the rules that the agent would place, as `nft -f` takes them, and after them, as comments, the open connections
    /// from before the capture with what becomes of each
    Plan,
    /// Have the agent place its rules now
    #[command(
        after_help = "Over SSH to a distant host: `baremesh capture apply --confirm 60s`, and when the connection still \
                            works, `baremesh capture confirm`."
    )]
    Apply {
        /// Take them back after this time, an hour at most, unless `baremesh capture confirm` comes before: 60s, 5m
        #[arg(long, value_name = "DURATION", value_parser = values::duration)]
        confirm: Option<Duration>,
    },
    /// Make rules that were placed with `--confirm` stay
    Confirm,
    /// Remove every rule, whether or not the agent runs; it leaves them off until `capture apply`, or its next start
    Remove {
        /// Without an agent: leave the anchor table, so that connections through the agent can end in peace
        #[arg(long)]
        keep_anchor: bool,
    },
    /// Show whether the rules stand, with their counters, whether or not the agent runs; exits with 1 unless they do
    Status,
    /// Apply the rules for when the agent is gone, as the unit does after it has stopped
    Gone {
        /// The file that the agent wrote them to [default: gone.nft of the run directory]
        #[arg(long)]
        file: Option<PathBuf>,
        /// Only where an agent stopped to be started anew, and none has come in time
        #[arg(long)]
        unless_followed: bool,
    },
    /// The process that watches over the agent
    #[command(hide = true)]
    Guard {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// The process that takes an unconfirmed change back
    #[command(hide = true)]
    Revert {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

impl Capture {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let directories = global.directories();
        match self.verb {
            CaptureVerb::Plan => plan(global),
            CaptureVerb::Apply { confirm } => apply(global, confirm),
            CaptureVerb::Confirm => {
                // An agent has to know that what stands is to stay; without one the change itself is confirmed.
                if ask(global, Method::POST, "/capture/confirm")?.is_none() {
                    Rules::new(&directories.runtime)?.confirm()?;
                }
                done(global.output, "the rules stay")
            }
            CaptureVerb::Remove { keep_anchor } => {
                remove(global, if keep_anchor { Anchor::Keep } else { Anchor::Remove })
            }
            CaptureVerb::Status => status(global),
            CaptureVerb::Gone { file, unless_followed } => {
                let file = file.map_or_else(
                    || Ok(Rules::new(&directories.runtime)?.gone_file()),
                    Ok::<_, anyhow::Error>,
                )?;
                // Another unit's end is none of this host's agent.
                if directories.agent_runs() {
                    return done(global.output, "an agent runs on this host: its rules stay");
                }
                let interval = Interval::before(&file);
                if unless_followed {
                    let said = match interval.settle()? {
                        true => {
                            "no other agent has followed the one that stopped: the rules for a gone agent stand"
                        }
                        false => "another agent has followed: the rules stay",
                    };
                    return done(global.output, said);
                }
                if interval.lasts() {
                    return done(global.output, "another agent follows at once: the rules stay");
                }
                // What systemd tells the commands of a unit (systemd.exec(5)): one that failed is started anew.
                let has_failed = std::env::var("SERVICE_RESULT").is_ok_and(|result| result != "success");
                let is_kept = has_failed && store::is_there();
                Ok(capture::apply_gone(&file, if is_kept { Waiting::Kept } else { Waiting::Reset })?)
            }
            CaptureVerb::Guard { arguments } => Ok(guard::run(&arguments).map(drop)?),
            CaptureVerb::Revert { arguments } => Ok(confirm::run(&arguments).map(drop)?),
        }
    }
}

fn done(output: Output, text: &str) -> anyhow::Result<()> {
    match output {
        Output::Json => say_json(&json!({ "done": text })),
        _ => say(text),
    }
}

fn plan(global: &Global) -> anyhow::Result<()> {
    let plan: PlanReport = read(&asked(global, Method::GET, "/capture/plan")?)?;
    match global.output {
        Output::Json => say_json(&plan),
        _ => say(format_args!("{}{}", plan.rules, show::flows(&plan))),
    }
}

fn apply(global: &Global, limit: Option<Duration>) -> anyhow::Result<()> {
    let target = match limit {
        None => "/capture/apply".to_owned(),
        Some(limit) => format!("/capture/apply?confirm={}", limit.as_secs()),
    };
    let change: ChangeReport = read(&asked(global, Method::POST, &target)?)?;
    match global.output {
        Output::Json => say_json(&change)?,
        _ => say(show::change(&change))?,
    }
    if limit.is_some() {
        remark("to make them stay: baremesh capture confirm");
    }
    Ok(())
}

fn read<T: DeserializeOwned>(answer: &str) -> anyhow::Result<T> {
    serde_json::from_str(answer).context("the agent's answer cannot be read: is it of another version?")
}

/// Through the agent where there is one, so that it does not place them again; by force where it does not answer.
fn remove(global: &Global, anchor: Anchor) -> anyhow::Result<()> {
    match ask(global, Method::POST, "/capture/remove") {
        Ok(Some(_)) => {}
        Ok(None) => Rules::new(&global.directories().runtime)?.remove(anchor)?,
        Err(error) => {
            remark(format_args!(
                "note: the agent could not: {}; the rules are removed past it",
                in_full(&error)
            ));
            Rules::new(&global.directories().runtime)?.remove(anchor)?;
        }
    }
    done(global.output, "the rules are removed")
}

/// What the agent answers; `None` where there is no agent.
fn ask(global: &Global, method: Method, target: &str) -> anyhow::Result<Option<String>> {
    match asked(global, method, target) {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.downcast_ref().is_some_and(SocketError::is_nobody_there) => Ok(None),
        Err(error) => Err(error),
    }
}

fn asked(global: &Global, method: Method, target: &str) -> anyhow::Result<String> {
    let path = global.directories().agent_socket();
    let socket = Socket { path: &path, program: "baremesh agent" };
    let answer = block_on(async { Ok(socket.call(method, target, Vec::new()).await?) })?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// As the agent sees it where there is one, by one's own look where there is none.
fn status(global: &Global) -> anyhow::Result<()> {
    let report = match ask(global, Method::GET, "/capture/status")? {
        Some(answer) => read(&answer)?,
        None => {
            let rules = Rules::new(&global.directories().runtime)?;
            CaptureReport::of(&rules.status()?, None, rules.is_unconfirmed())
        }
    };
    match global.output {
        Output::Json => say_json(&report)?,
        _ => say(show::status(&report))?,
    }
    if report.state == "in-place" { Ok(()) } else { Err(Said(Exit::Refused).into()) }
}
