//! `baremesh version`.

use clap::Args;
use serde_json::json;

use super::Global;
use crate::output::{Output, say, say_json};

/// Print the version
#[derive(Debug, Args)]
pub struct Version {}

impl Version {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let version = env!("CARGO_PKG_VERSION");
        match global.output {
            Output::Json => {
                let protocol = baremesh_registry::control::PROTOCOL;
                say_json(&json!({ "version": version, "controlProtocol": protocol }))
            }
            _ => say(format_args!("baremesh {version}")),
        }
    }
}
