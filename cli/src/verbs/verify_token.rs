//! `baremesh verify-token`: whether the verifier of requests' tokens takes the signature of one, whatever it says. For
//! running public suites of signed tokens against it, and for finding out why a token is refused.

use std::path::{Path, PathBuf};

use baremesh_agent::jwt::jws::Compact;
use baremesh_agent::jwt::keys::KeySet;
use clap::Args;

use crate::output::{say, usage};

/// Say whether a token is signed by one of the keys of a set, whatever it says
#[derive(Debug, Args)]
pub struct VerifyToken {
    /// File with a JWK set
    #[arg(long, value_name = "FILE")]
    jwks: PathBuf,
    /// File with the token in its compact form, and nothing else
    #[arg(long, value_name = "FILE")]
    token: PathBuf,
}

impl VerifyToken {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let text = read(&self.jwks)?;
        let keys =
            KeySet::parse_any(&text).map_err(|error| usage(format!("{} {error}", self.jwks.display())))?;
        let token = read(&self.token)?;
        let verified = Compact::parse(&token).and_then(|compact| compact.verify(&keys));
        match verified {
            Ok(()) => say("taken"),
            Err(refusal) => {
                let left_out: String = keys.left_out.iter().map(|reason| format!("; {reason}")).collect();
                Err(anyhow::anyhow!("refused: {}{left_out}", refusal.text()))
            }
        }
    }
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file)
        .map_err(|error| usage(format!("{} cannot be read: {error}", file.display())))
}
