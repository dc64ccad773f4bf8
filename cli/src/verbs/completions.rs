//! `baremesh completions`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Global};
use crate::output::say;

const EXAMPLES: &str = "\
Examples:
  baremesh completions bash > /etc/bash_completion.d/baremesh
  baremesh completions zsh > /usr/local/share/zsh/site-functions/_baremesh
  baremesh completions fish > ~/.config/fish/completions/baremesh.fish";

/// Print a shell's completions
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self, _: &Global) -> anyhow::Result<()> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "baremesh", &mut text);
        say(String::from_utf8_lossy(&text))
    }
}
