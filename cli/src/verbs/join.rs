//! `baremesh join`: this host becomes a member of a mesh. Its key is made here, is on the disk before it is used, and
//! never leaves the host.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use baremesh_agent::config::Directories;
use baremesh_agent::machine;
use baremesh_agent::membership::{Membership, MembershipError};
use baremesh_ca::client;
use baremesh_ca::file::{SECRET, read_secret, write_atomically};
use baremesh_ca::key::PrivateKey;
use baremesh_ca::token::Token;
use baremesh_model::name::Label;
use clap::Args;
use serde_json::json;

use super::apply::read;
use super::{Global, block_on};
use crate::control::make_directory;
use crate::output::{Output, remark, say, say_json, usage};

/// The key of a joining that has not come to its end, beside the membership.
const KEY: &str = "join.key";

const LONG_ABOUT: &str = "\
Make this host a member of a mesh. ADDRESS is the control server's (port 15012 unless given); the token was made there
with `baremesh token create`. The token names the mesh's root certificate, so that a wrong server is found out before
anything is sent to it. A join that broke off can be repeated with the same token for ten minutes.";

const EXAMPLES: &str = "\
Examples:
  baremesh join control.example.com --token bm1.…
  echo \"$TOKEN\" | baremesh join 10.0.0.5:15012 --token-file - --host web1
  baremesh join control --token bm1.… --force           anew, with a token made by `token create --rejoin`";

/// Make this host a member of a mesh
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_help = EXAMPLES)]
pub struct Join {
    /// The control server: a name or an address, with `:PORT` unless it is 15012
    address: String,
    #[command(flatten)]
    token: GivenToken,
    /// The host's name in the mesh [default: the machine's own name]
    #[arg(long, value_parser = Label::new)]
    host: Option<Label>,
    /// Join although this host is a member already; its old credential is replaced
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct GivenToken {
    /// The token; other users of this host can see it while the command runs
    #[arg(long, env = "BAREMESH_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// A file with the token, `-` for the standard input
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl std::fmt::Debug for GivenToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GivenToken")
    }
}

impl GivenToken {
    fn parse(&self) -> anyhow::Result<Token> {
        let text = match (&self.token, &self.token_file) {
            (Some(token), _) => token.clone(),
            (None, Some(file)) => read(file)?.1,
            (None, None) => return Err(usage("a token is needed: --token or --token-file")),
        };
        Token::parse(&text).map_err(|error| usage(error.to_string()))
    }
}

impl Join {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let token = self.token.parse()?;
        let host = self.host.clone().map_or_else(own_label, Ok)?;
        let directories = global.directories();
        self.refuse_twice(&directories)?;
        let directory = directories.node();
        make_directory(&directory, 0o700)?;
        let key = key(&directory.join(KEY))?;
        let joined = block_on(async { Ok(client::join(&self.address, &token, &host, &key).await?) })?;
        let membership = Membership::new(joined, &self.address);
        membership
            .save(&directory)
            .context("this host has joined, and that could not be written down: repeat the command")?;
        // From here on the key stands with the credential; a copy would only be one more to lose.
        std::fs::remove_file(directory.join(KEY)).context("the key's copy cannot be removed")?;
        let trust_domain = membership.bundle.trust_domain();
        if global.output == Output::Json {
            return say_json(&json!({
                "host": membership.host.as_str(),
                "trustDomain": trust_domain.as_str(),
                "control": self.address,
            }));
        }
        say(format_args!("host {} has joined the mesh {trust_domain}", membership.host))?;
        remark("\nNext: start the agent, and say what runs here:");
        remark("  systemctl enable --now baremesh                    (or: baremesh agent)");
        remark("  baremesh service register NAME --port PORT --unit NAME.service");
        Ok(())
    }

    fn refuse_twice(&self, directories: &Directories) -> anyhow::Result<()> {
        match Membership::load(&directories.node()) {
            Err(MembershipError::NotJoined(_)) => Ok(()),
            _ if self.force => Ok(()),
            Ok(membership) => bail!(
                "this host is a member already, as {} at {}: to join anew, use --force and a token from `baremesh token create \
                 --rejoin {}`",
                membership.host,
                membership.control,
                membership.host
            ),
            Err(error) => {
                Err(anyhow::Error::new(error).context("this host was a member; --force joins it anew"))
            }
        }
    }
}

/// The key that this host joins with: the one of an attempt before, so that the same answer comes again, or a new one.
fn key(path: &Path) -> anyhow::Result<PrivateKey> {
    match read_secret(path) {
        Ok(pem) => {
            let key = String::from_utf8(pem).ok().and_then(|pem| PrivateKey::from_pem(&pem).ok());
            key.with_context(|| format!("{} is damaged: remove it", path.display()))
        }
        Err(error) if error.is_missing() => {
            let key = PrivateKey::generate()?;
            write_atomically(path, key.to_pem().as_bytes(), SECRET)?;
            Ok(key)
        }
        Err(error) => Err(error.into()),
    }
}

/// The machine's own name as one of the mesh.
fn own_label() -> anyhow::Result<Label> {
    machine::label().ok_or_else(|| {
        let name = machine::name();
        usage(format!("the machine's name `{name}` cannot be one of the mesh: give one with --host"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_an_attempt_is_used_again() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join(KEY);
        let first = key(&path).expect("a key").public().fingerprint();
        assert_eq!(key(&path).expect("the same key").public().fingerprint(), first);
        write_atomically(&path, b"x", SECRET).expect("written");
        assert!(key(&path).is_err());
    }
}
