//! `baremesh host`.

use std::time::SystemTime;

use baremesh_model::name::Label;
use clap::{Args, Subcommand};
use http::Method;
use serde_json::json;

use super::server::{ControlServer, Remote};
use super::token::granted;
use super::{Global, block_on};
use crate::control::report::{HostReport, RevokedReport};
use crate::output::{Output, relative, remark, say, say_json, table};

/// List the hosts that joined, and shut one out, on the control host
#[derive(Debug, Args)]
pub struct Host {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    verb: HostVerb,
}

#[derive(Debug, Subcommand)]
enum HostVerb {
    /// List the hosts that joined, with the services that each may run
    List,
    /// Shut a host out: its credential is refused, its endpoints go, nothing is issued to it any more
    #[command(
        after_help = "The certificates that it holds are revoked: agents refuse them as soon as they hear of it, and close \
                            what is open.\nTo let it in again: baremesh token create --rejoin HOST"
    )]
    Revoke {
        /// The host's name
        #[arg(value_parser = Label::new)]
        host: Label,
    },
}

impl Host {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let server = self.remote.server(&global.directories())?;
        match self.verb {
            HostVerb::List => list(&server, global.output),
            HostVerb::Revoke { host } => {
                let _: Vec<RevokedReport> =
                    block_on(server.post(&format!("/hosts/{host}/revoke"), &json!({})))?;
                match global.output {
                    Output::Json => say_json(&json!({ "revoked": host.as_str() })),
                    _ => {
                        say(format_args!("host {host} is shut out"))?;
                        remark(format_args!("to let it in again: baremesh token create --rejoin {host}"));
                        Ok(())
                    }
                }
            }
        }
    }
}

fn list(server: &ControlServer, output: Output) -> anyhow::Result<()> {
    let hosts: Vec<HostReport> = block_on(server.ask(Method::GET, "/hosts"))?;
    if output == Output::Json {
        return say_json(&hosts);
    }
    let now = SystemTime::now();
    let row = |host: &HostReport| {
        let services = granted(&host.services, &host.addresses);
        let state = if host.revoked { "shut out" } else { "member" };
        vec![host.name.clone(), state.to_owned(), relative(host.joined_at, now), services]
    };
    let rows = hosts.iter().map(row).collect();
    let empty = "no host has joined: `baremesh token create` makes a token with which one can";
    say(table(&["HOST", "STATE", "JOINED", "GRANTS"], rows, empty))
}
