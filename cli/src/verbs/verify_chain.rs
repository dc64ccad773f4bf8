//! `baremesh verify-chain`: whether the verifier of peers takes a chain of certificates, apart from the identity that a
//! member of a mesh must have. For running public suites of chains against it.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use baremesh_ca::tls::{Purpose, describe, verify_anonymous_chain};
use clap::{Args, ValueEnum};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::output::{say, usage};

/// The most certificates in a file: beyond what any handshake carries.
const MAX_CERTIFICATES: usize = 1000;

/// Say whether a chain would be taken, whoever it names
#[derive(Debug, Args)]
pub struct VerifyChain {
    /// PEM file of trusted roots
    #[arg(long, value_name = "FILE")]
    roots: PathBuf,
    /// PEM file of the chain as a peer would show it: its own certificate first
    #[arg(long, value_name = "FILE")]
    chain: PathBuf,
    /// Which side of TLS the peer is
    #[arg(long, value_enum)]
    purpose: Side,
    /// The time at which it is shown, in seconds since 1970 [default: now]
    #[arg(long, value_name = "SECONDS")]
    time: Option<u32>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Side {
    Server,
    Client,
}

impl VerifyChain {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let roots = certificates(&self.roots)?;
        let shown = certificates(&self.chain)?;
        let Some((leaf, intermediates)) = shown.split_first() else {
            return Err(usage(format!("{} holds no certificate", self.chain.display())));
        };
        let purpose = match self.purpose {
            Side::Server => Purpose::Server,
            Side::Client => Purpose::Client,
        };
        let now = match self.time {
            Some(seconds) => UNIX_EPOCH + Duration::from_secs(seconds.into()),
            None => SystemTime::now(),
        };
        match verify_anonymous_chain(leaf, intermediates, &roots, purpose, now) {
            Ok(()) => say("taken"),
            Err(error) => Err(anyhow::anyhow!("refused: {}", describe(&error))),
        }
    }
}

/// The certificates of a PEM file, unread: whether they are X.509 is the verifier's to say.
fn certificates(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let failed = |error: &dyn std::fmt::Display| usage(format!("{} cannot be read: {error}", file.display()));
    let pem = std::fs::read(file).map_err(|error| failed(&error))?;
    let read = CertificateDer::pem_slice_iter(&pem).take(MAX_CERTIFICATES);
    read.collect::<Result<_, _>>().map_err(|error| failed(&error))
}
