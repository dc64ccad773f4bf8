//! Capture: the nftables rules that bring connections to the agent, and take themselves away again.
//!
//! A `CapturePlan` says what is to be captured; `render` turns it into one nft transaction; `Capture` puts it in
//! place, reads it back, reports on it and removes it. Everything lives in tables of our own, `inet baremesh`, `inet
//! baremesh_anchor` and `inet baremesh_units`, and in local routes that carry our protocol number: no other table, chain or route
//! is ever listed or touched. `gone` is the rule set for when the agent is not there any more, `guard` the process
//! that applies it, `confirm` the one that takes a change back unless somebody confirms it.
//!
//! All of it blocks on the `nft` and `ip` commands for some milliseconds, so that the command line and the guard
//! need no runtime: the agent calls it through `tokio::task::spawn_blocking`.

/// Putting the rules in place, and taking them away.
mod apply;
/// Transactions in a file, as the guard and a pending change keep them.
mod batch;
/// Running `nft`, `ip` and `resolvectl`.
pub(crate) mod command;
/// Containers on bridges.
mod bridged;
/// A change that takes itself back unless it is confirmed.
pub mod confirm;
/// How full the table of tracked connections is.
pub mod conntrack;
/// Open connections from before the capture.
pub mod flows;
/// The rules for when the agent is gone.
mod gone;
/// The process that outlives the agent by a moment.
pub mod guard;
/// Processes and containers that reach the registry alone.
pub mod held;
/// What stands while the mesh's state is not known.
mod hold;
/// Names of bridges.
pub mod interface;
/// The time from one agent to the next.
pub mod interval;
/// The link by which systemd-resolved is told of names.
pub mod link;
/// Our own table as the kernel has it.
mod listing;
/// The kernel's word that somebody changed our table.
pub mod notices;
/// Whether others than containers are on a bridge.
mod outside;
/// What is to be captured: a pure value, built from the configuration and the mesh's state.
pub mod plan;
/// The local routes that make virtual addresses reachable.
mod route;
/// The rules that a plan comes to.
mod rules;
/// Named sets and their elements: what changes while the rules stay.
mod sets;
/// What stands now, and whether it is what was put there.
mod status;
/// Services that are told by their units, as systemd notes them.
mod units;

#[cfg(test)]
mod apply_tests;
#[cfg(test)]
mod conntrack_tests;
#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod namespace;
#[cfg(test)]
mod process_tests;
#[cfg(test)]
mod traffic_tests;
#[cfg(test)]
mod units_tests;

use std::io;
use std::path::PathBuf;

pub use apply::{Anchor, Applied, Capture, Change};
pub use bridged::Containers;
pub use gone::{Waiting, apply_gone, render_gone};
pub use interface::Interface;
pub use plan::{
    AGENT_MARK, AgentPorts, CapturePlan, DnsCapture, LocalService, Outbound, Strictness, WhenGone,
};
pub use route::ipv6_is_off;
pub use rules::render;
pub use status::{Counter, ROUTES_ALONE, State, Status};
pub use units::{Units, nft_set_setting, set_of};

/// The version of `nft`, as it says itself.
pub fn nft_version() -> Result<String, CaptureError> {
    Ok(command::Tools::find()?.nft(&["--version"], "")?.trim().to_owned())
}

/// Everything that nftables has, as JSON, without the elements of sets. It is for people who look for what is wrong: nothing
/// of capture goes by other tables than its own.
pub fn nft_ruleset() -> Result<String, CaptureError> {
    command::Tools::find()?.nft(&["-j", "-t", "list", "ruleset"], "")
}

/// Why the capture rules could not be put in place, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// A command that capture needs is not installed.
    #[error("`{tool}` was not found in PATH, /usr/sbin, /sbin or /usr/bin: install the package `{package}`")]
    MissingTool {
        /// The command's name.
        tool: &'static str,
        /// The Debian package that brings it.
        package: &'static str,
    },
    /// A command could not be started or talked to.
    #[error("could not run `{command}`: {source}")]
    Run {
        /// The command line.
        command: String,
        /// What the system said.
        source: io::Error,
    },
    /// A command ran and refused.
    #[error("`{command}` failed: {stderr}")]
    Refused {
        /// The command line.
        command: String,
        /// The beginning of what it wrote to its standard error.
        stderr: String,
    },
    /// A command did not end in time and was killed.
    #[error(
        "`{command}` did not end within {seconds} s and was killed: is another program holding nftables?"
    )]
    TimedOut {
        /// The command line.
        command: String,
        /// The limit.
        seconds: u64,
    },
    /// A command's output was not what it is documented to be.
    #[error("could not read the output of `{command}`: {detail}")]
    Unreadable {
        /// The command line.
        command: String,
        /// What was wrong with it.
        detail: String,
    },
    /// The rules that the kernel has after a change are not those that were asked for.
    #[error(
        "the capture rules in place are not those that were asked for ({}): does another program change the table `inet baremesh`?",
        differences.join("; ")
    )]
    NotAsMeant {
        /// Each difference, in words.
        differences: Vec<String>,
    },
    /// A state file could not be read or written.
    #[error("could not {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A state file is not one of ours.
    #[error("{} is not a rule file of capture: {detail}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was wrong with it.
        detail: String,
    },
    /// A change stands that nobody has confirmed yet.
    #[error("a change of the capture rules still awaits its confirmation ({}): confirm it, or wait until it has taken itself back", path.display())]
    Unconfirmed {
        /// The file that marks it.
        path: PathBuf,
    },
    /// Rules cannot be tried out yet.
    #[error(
        "the agent knows no state of the mesh yet, and rules without one would let plaintext go to its endpoints: wait until the control server has been reached (`baremesh status`)"
    )]
    NothingKnown,
    /// There is nothing to confirm.
    #[error(
        "no change of the capture rules awaits confirmation: it was confirmed already, or has taken itself back"
    )]
    NothingToConfirm,
    /// A helper process did not report that it is ready.
    #[error("the process `{process}` did not become ready: {detail}")]
    NotReady {
        /// The process.
        process: &'static str,
        /// What happened instead.
        detail: String,
    },
    /// A helper process was started with arguments that it does not take.
    #[error("usage: baremesh capture {usage}")]
    Arguments {
        /// The expected form.
        usage: &'static str,
    },
}
