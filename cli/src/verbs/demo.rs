//! `baremesh demo`.

use std::path::PathBuf;

use clap::Args;

use super::Global;
use crate::demo::{Afterwards, Examples, Form, run};
use crate::output::{Output, usage};

const LONG_ABOUT: &str = "\
Show a whole mesh on this machine: a control host and four hosts in network namespaces, each with a real agent, capture
rules and mutual TLS, and a small shop of services whose programs know nothing of the mesh. Each claim is shown with its
evidence from the wire and the logs. Then the mesh stays up, with commands to try, until Ctrl-C.

It needs no root where the kernel lets users make namespaces, touches nothing of the machine, and leaves nothing behind.
Needed are `ip` and `nft` (Debian's packages iproute2 and nftables), and `unshare`, `nsenter` and `setpriv` (util-linux).";

const EXAMPLES: &str = "\
Examples:
  baremesh demo
  baremesh demo --once                     check everything and leave: exits with 0, or with 1 and says what failed
  baremesh demo --once --output json";

/// Show a whole mesh on this machine, in network namespaces
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_help = EXAMPLES)]
pub struct Demo {
    /// Check everything once, and leave: 0 if all of it holds, 1 if not
    #[arg(long)]
    once: bool,

    /// Take resources of this directory, where it has them, instead of `examples/demo`
    #[arg(long, value_name = "DIR", hide = true)]
    resources: Option<PathBuf>,
}

impl Demo {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let examples = Examples::preferring(self.resources);
        match (self.once, global.output) {
            (true, Output::Json) => run(Afterwards::Leave, Form::Json, examples),
            (true, _) => run(Afterwards::Leave, Form::Text, examples),
            (false, Output::Json) => {
                Err(usage("`--output json` goes with `--once`: it is printed at the end"))
            }
            (false, _) => run(Afterwards::Stay, Form::Text, examples),
        }
    }
}
