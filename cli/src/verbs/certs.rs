//! `baremesh certs`.

use std::time::SystemTime;

use anyhow::bail;

use baremesh_agent::admin::client::Socket;
use baremesh_agent::admin::report::CertificateReport;
use baremesh_model::identity::Identity;
use baremesh_model::name::Label;
use clap::{Args, Subcommand};
use http::Method;
use serde_json::json;

use super::server::{ControlServer, Remote};
use super::{Global, block_on};
use crate::control::report::{RevokeOrder, RevokedReport};
use crate::output::{Output, relative, say, say_json, table, to_unix};

/// Show the certificates that this host's agent holds, and until when they are valid; on the control host, revoke some
#[derive(Debug, Args)]
pub struct Certs {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    verb: Option<CertsVerb>,
}

#[derive(Debug, Subcommand)]
enum CertsVerb {
    /// Show the certificates that this host's agent holds, as without a verb
    List,
    Revoke(Revoke),
    /// Show the certificates that are revoked and have not ended, on the control host
    Revoked,
}

const EXAMPLES: &str = "\
Examples:
  baremesh certs revoke web1                                            all of a host, which is shut out with it
  baremesh certs revoke --identity spiffe://mesh.internal/ns/shop/sa/orders    its hosts get others at once
  baremesh certs revoke --serial 3f0c…                                  one, as `certs` and access logs name it

Agents refuse what is revoked as soon as they hear of it, and close what is open under it. A host that was shut out comes
back with a token from `baremesh token create --rejoin HOST`.";

/// Take certificates back before they end, on the control host
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[group(id = "which", required = true, multiple = false)]
struct Revoke {
    /// A host, whose every certificate is revoked and which is shut out
    #[arg(value_parser = Label::new, group = "which")]
    host: Option<Label>,
    /// An identity, of which all certificates are revoked
    #[arg(long, value_name = "SPIFFE-ID", value_parser = Identity::parse, group = "which")]
    identity: Option<Identity>,
    /// The serial number of one certificate
    #[arg(long, value_name = "HEX", value_parser = serial, group = "which")]
    serial: Option<String>,
}

/// Reads a serial number as logs show it, and as other tools do.
fn serial(text: &str) -> Result<String, String> {
    let digits: String = text.chars().filter(|c| *c != ':').collect::<String>().to_ascii_lowercase();
    match digits.is_empty() || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
        true => {
            Err(format!("`{text}` is no serial number: write it in hexadecimal, as `baremesh certs` does"))
        }
        false => Ok(digits.trim_start_matches('0').to_owned()),
    }
}

impl Certs {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let server = || self.remote.server(&global.directories());
        match self.verb {
            None | Some(CertsVerb::List) => held(global),
            Some(CertsVerb::Revoke(wanted)) => revoke(&server()?, wanted, global.output),
            Some(CertsVerb::Revoked) => {
                let revoked: Vec<RevokedReport> =
                    block_on(server()?.ask(Method::GET, "/certificates/revoked"))?;
                match global.output {
                    Output::Json => say_json(&revoked),
                    _ => say(revoked_table(&revoked, "no certificate is revoked")),
                }
            }
        }
    }
}

fn held(global: &Global) -> anyhow::Result<()> {
    let path = global.directories().agent_socket();
    let socket = Socket { path: &path, program: "baremesh agent" };
    let certificates: Vec<CertificateReport> = block_on(async {
        let answer = socket.ask("/certificates").await?;
        Ok(serde_json::from_slice(&answer)?)
    })?;
    match global.output {
        Output::Json => say_json(&certificates),
        _ => say(as_table(&certificates, SystemTime::now())),
    }
}

fn revoke(server: &ControlServer, wanted: Revoke, output: Output) -> anyhow::Result<()> {
    let revoked: Vec<RevokedReport> = match wanted {
        Revoke { host: Some(host), .. } => {
            block_on(server.post(&format!("/hosts/{host}/revoke"), &json!({})))?
        }
        Revoke { identity: None, serial: None, .. } => {
            bail!("a host, an identity or a serial number is needed")
        }
        Revoke { identity, serial, .. } => {
            let identity = identity.map(|identity| identity.to_string());
            block_on(server.post("/certificates/revoke", &RevokeOrder { identity, serial }))?
        }
    };
    match output {
        Output::Json => say_json(&revoked),
        _ => say(revoked_table(&revoked, "the host is shut out, and no certificate of it was valid")),
    }
}

fn revoked_table(revoked: &[RevokedReport], empty: &str) -> String {
    let now = SystemTime::now();
    let row = |one: &RevokedReport| {
        let (since, ends) = (relative(one.revoked_at, now), relative(one.not_after, now));
        vec![one.identity.clone(), one.host.clone(), since, ends, one.serial.clone()]
    };
    table(&["IDENTITY", "HOST", "REVOKED", "ENDS", "SERIAL"], revoked.iter().map(row).collect(), empty)
}

fn as_table(certificates: &[CertificateReport], now: SystemTime) -> String {
    let row = |certificate: &CertificateReport| {
        let state = match to_unix(now) {
            now if now < certificate.not_before => "not valid yet: compare the clocks",
            now if now > certificate.not_after => "expired",
            _ => "valid",
        };
        vec![
            certificate.identity.clone(),
            state.to_owned(),
            relative(certificate.not_after, now),
            certificate.serial.clone(),
        ]
    };
    table(&["IDENTITY", "STATE", "ENDS", "SERIAL"], certificates.iter().map(row).collect(), "no certificates")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn serial_numbers_are_read_in_the_forms_of_other_tools() {
        for (written, read) in [("1f", "1f"), ("00:AB:0c", "ab0c"), ("0AF", "af")] {
            assert_eq!(serial(written), Ok(read.to_owned()));
        }
        assert!(serial("").is_err() && serial("xyz").is_err());
    }

    #[test]
    fn says_whether_each_is_valid() {
        let of = |not_before, not_after| CertificateReport {
            identity: "spiffe://mesh.test/ns/a/sa/b".to_owned(),
            serial: "1f".to_owned(),
            not_before,
            not_after,
        };
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let text = as_table(&[of(0, 1060), of(0, 999), of(1001, 2000)], now);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].contains(" valid ") && lines[1].contains("in 1 min 0 s"), "{text}");
        assert!(lines[2].contains("expired") && lines[3].contains("not valid yet"), "{text}");
    }
}
