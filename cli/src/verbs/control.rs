//! `baremesh control`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use baremesh_agent::privileges;
use baremesh_ca::service::{NODE_LIFETIME, WORKLOAD_LIFETIME};
use clap::Args;
use ipnet::IpNet;

use super::{Global, logging, passphrase, values};
use crate::control::shared_ledger::settings;
use crate::control::{ControlConfig, consul_settings, default_listeners, serve};

const LONG_ABOUT: &str = "\
Serve the mesh: let hosts in, issue certificates, and push resources and endpoints to the agents. `baremesh init` makes
what it needs. Agents go on without it: what stops is change, and the renewal of certificates, which begin to run out
after half of their lifetime.

Resources are the files in the configuration directory's `registry/`; they are watched. `apply`, `delete`, `token`,
`host` and `status` reach it through a Unix socket of this host, which root and the group `baremesh` may use.

BAREMESH_LOG sets what is logged: `debug`, `info,baremesh_registry=debug`.";

/// Serve the mesh: enrolment, certificates, resources, endpoints
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT)]
pub struct Control {
    /// Where hosts reach it; can be given several times [default: 0.0.0.0:15012 and [::]:15012]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Vec<SocketAddr>,
    /// The passphrase that seals the authority's keys, in a file of mode 0600; `-`: the standard input [default: what systemd
    /// hands over as the credential `ca-passphrase`]
    #[arg(long, value_name = "FILE")]
    ca_passphrase_file: Option<String>,
    /// An address or CIDR block of this host or its link at which roots of other trust domains may be fetched all the same;
    /// can be given several times
    #[arg(long = "federation-allow", value_name = "ADDRESS|CIDR", value_parser = values::block, hide_short_help = true)]
    federation_allow: Vec<IpNet>,
    /// A file with the table `[consul]`: the ledger is shared with other control processes there (`baremesh ca share`)
    #[arg(long, value_name = "FILE")]
    shared_ledger: Option<PathBuf>,
    /// How long services' certificates are valid; they are renewed at half of it
    #[arg(long, value_name = "SECONDS", default_value_t = WORKLOAD_LIFETIME.as_secs(), value_parser = clap::value_parser!(u64).range(2..=WORKLOAD_LIFETIME.as_secs()), hide_short_help = true)]
    workload_lifetime: u64,
    /// How long hosts' node credentials are valid; they are renewed at half of it, and for a week after their end
    #[arg(long, value_name = "SECONDS", default_value_t = NODE_LIFETIME.as_secs(), value_parser = clap::value_parser!(u64).range(2..=NODE_LIFETIME.as_secs()), hide_short_help = true)]
    node_lifetime: u64,
    /// How long a silent host's endpoints are kept
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=3600), hide_short_help = true)]
    lease: u64,
}

impl Control {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        logging::start();
        let consul = consul_settings(&global.directories().config)?;
        let config = ControlConfig {
            consul,
            directories: global.directories(),
            listen: if self.listen.is_empty() { default_listeners() } else { self.listen },
            federation_allow: self.federation_allow,
            ca_passphrase: passphrase::find(self.ca_passphrase_file.as_deref())?,
            workload_lifetime: Duration::from_secs(self.workload_lifetime),
            node_lifetime: Duration::from_secs(self.node_lifetime),
            lease: Duration::from_secs(self.lease),
            shared_ledger: self.shared_ledger.as_deref().map(settings).transpose()?,
        };
        // One thread, still: what is given up here no later one has.
        privileges::join_administrators();
        let ports = config.listen.iter().map(SocketAddr::port);
        privileges::keep(privileges::of_ports(ports)).context("privileges cannot be given up")?;
        tracing::info!(privileges = privileges::in_words(), "what is not needed is given up");
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        runtime.context("the runtime does not start")?.block_on(serve(config))
    }
}
