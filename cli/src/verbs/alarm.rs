//! `baremesh alarm`.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::server::Remote;
use super::{Global, block_on};
use crate::output::{Output, say, say_json};

const LONG_ABOUT: &str = "\
When many hosts fall silent at once, the control server takes that for a fault of the network or its own, keeps their
endpoints, and raises an alarm that `baremesh status` shows. It ends by itself when the hosts are back. When they are
really gone, this says so: their endpoints are removed.";

/// Confirm that the hosts which fell silent together are really gone
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT)]
pub struct Alarm {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    verb: AlarmVerb,
}

#[derive(Debug, Subcommand)]
enum AlarmVerb {
    /// Remove the endpoints of all silent hosts
    Clear,
}

impl Alarm {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let AlarmVerb::Clear = self.verb;
        let _: Value = block_on(self.remote.server(&global.directories())?.post("/alarm/clear", &json!({})))?;
        match global.output {
            Output::Json => say_json(&json!({ "cleared": true })),
            _ => say("the endpoints of silent hosts are removed"),
        }
    }
}
