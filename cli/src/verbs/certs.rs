//! `baremesh certs`.

use std::time::SystemTime;

use baremesh_agent::admin::client::Socket;
use baremesh_agent::admin::report::CertificateReport;
use clap::Args;
use http::Method;

use super::{Global, block_on};
use crate::output::{Output, relative, say, say_json, table, to_unix};

/// Show the certificates that this host's agent holds, and until when they are valid
#[derive(Debug, Args)]
pub struct Certs {}

impl Certs {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let path = global.directories().agent_socket();
        let socket = Socket { path: &path, program: "baremesh agent" };
        let certificates: Vec<CertificateReport> = block_on(async {
            let answer = socket.call(Method::GET, "/certificates", Vec::new()).await?;
            Ok(serde_json::from_slice(&answer)?)
        })?;
        match global.output {
            Output::Json => say_json(&certificates),
            _ => say(as_table(&certificates, SystemTime::now())),
        }
    }
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
