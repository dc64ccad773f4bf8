//! `baremesh mtls`.

use std::time::SystemTime;

use clap::{Args, Subcommand};
use http::Method;

use super::server::Remote;
use super::{Global, block_on};
use crate::control::report::{FlowReport, FlowsReport};
use crate::output::{Output, relative, remark, say, say_json, table};

const LONG_ABOUT: &str = "\
Say who came in plaintext within the last hour, by service, peer and port: who would be cut off if PeerAuthentication
were STRICT everywhere, and who is refused already. It goes by what every host's agent saw; who did not come within the
hour is not in it.

Exits with 0 where nobody would be cut off, 1 otherwise.";

/// Say who would be cut off by mutual TLS alone
#[derive(Debug, Args)]
pub struct Mtls {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    verb: MtlsVerb,
}

#[derive(Debug, Subcommand)]
enum MtlsVerb {
    /// Say who came in plaintext within the last hour
    #[command(long_about = LONG_ABOUT)]
    Report,
}

impl Mtls {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let MtlsVerb::Report = self.verb;
        let server = self.remote.server(&global.directories())?;
        let report: FlowsReport = block_on(server.ask(Method::GET, "/mtls"))?;
        say_flows(&report, global.output, "STRICT")
    }
}

/// Shows what would come of other policies, and ends as scripts go by it.
pub(super) fn say_flows(report: &FlowsReport, output: Output, what: &str) -> anyhow::Result<()> {
    if output == Output::Json {
        say_json(report)?;
    } else {
        let parts = [
            (format!("would be cut off by {what}"), &report.cut),
            (format!("would be let through by {what}, and are refused now"), &report.opened),
            ("are refused already".to_owned(), &report.refused_already),
        ];
        for (title, flows) in parts.iter().filter(|(_, flows)| !flows.is_empty()) {
            say(format_args!("{} {title}:\n{}\n", flows.len(), flows_table(flows)))?;
        }
        if report.cut.is_empty() {
            say(format_args!("nobody who came within the last hour would be cut off by {what}"))?;
        }
        let mut known = format!("{} flows of the last hour, told by {} hosts", report.judged, report.hosts);
        if report.silent > 0 {
            known.push_str(&format!("; {} connected hosts told nothing yet", report.silent));
        }
        if report.missed > 0 {
            known.push_str(&format!("; {} connections are not among them, for want of room", report.missed));
        }
        if report.unnamed > 0 {
            known.push_str(&format!("; {} lines are left out", report.unnamed));
        }
        remark(known);
    }
    if report.cut.is_empty() { Ok(()) } else { Err(crate::output::Said(crate::output::Exit::Refused).into()) }
}

fn flows_table(flows: &[FlowReport]) -> String {
    let now = SystemTime::now();
    let row = |flow: &FlowReport| {
        vec![
            flow.service.clone(),
            flow.port.to_string(),
            flow.peer.clone(),
            flow.peer_address.clone(),
            flow.connections.to_string(),
            relative(flow.last, now),
            flow.reason.clone(),
        ]
    };
    let header = ["SERVICE", "PORT", "PEER", "FROM", "CONNECTIONS", "LAST", "BECAUSE"];
    table(&header, flows.iter().map(row).collect(), "none")
}
