//! `baremesh reference`: the page that documents every kind and field, from the tables that reading checks
//! against.

use clap::Args;

use super::Global;
use crate::output::say;

/// Print the reference of resources as Markdown
#[derive(Debug, Args)]
pub struct Reference {}

impl Reference {
    pub(super) fn run(self, _: &Global) -> anyhow::Result<()> {
        say(baremesh_registry::format::reference())
    }
}
