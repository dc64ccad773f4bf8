//! What the programs that stay say about themselves: entries of the journal where they are its services, else lines on the
//! standard error.

/// The journal's protocol.
mod journal;

use std::io::IsTerminal;

use journal::Journal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// What is logged unless the environment says otherwise. The HTTP/2 codec warns of each frame that a peer should not have
/// sent; what comes of such peers is in the log of connections, once.
const DEFAULT: &str = "info,h2=error";
/// The variable that says otherwise: `debug`, or `info,baremesh_agent::proxy=debug`.
const VARIABLE: &str = "BAREMESH_LOG";

/// Starts logging. A filter that cannot be read must not keep a host's traffic down: the default stands in.
pub(super) fn start() {
    let wanted = std::env::var(VARIABLE).ok();
    let (filter, fault) = match wanted.as_deref().map(EnvFilter::try_new) {
        None => (EnvFilter::new(DEFAULT), None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(DEFAULT), Some(error)),
    };
    let started = match Journal::behind_stderr() {
        Some(journal) => tracing_subscriber::registry().with(filter).with(journal).try_init().is_ok(),
        None => tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .try_init()
            .is_ok(),
    };
    if let (true, Some(error)) = (started, fault) {
        tracing::warn!("{VARIABLE} cannot be read, `{DEFAULT}` stands in: {error}");
    }
}
