//! `baremesh ca`.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use baremesh_ca::authority::{AuthorityError, change_passphrase};
use baremesh_ca::ledger::Ledger;
use baremesh_ca::seal::Passphrase;
use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use serde_json::{Value, json};

use super::server::Remote;
use super::{Global, block_on, passphrase, values};
use crate::control::report::{
    AuthorityReport, BundleAnswer, ChainOrder, DropOrder, FederatedReport, Replaced, RequestAnswer,
    RotateOrder,
};
use crate::control::shared_ledger::{ConsulLog, settings};
use crate::control::{DATABASE, lock};
use crate::output::{Output, relative, remark, say, say_json, table};

/// Show what signs the mesh's certificates, and replace it, on the control host
#[derive(Debug, Args)]
pub struct Ca {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    verb: Option<CaVerb>,
}

#[derive(Debug, Subcommand)]
enum CaVerb {
    /// Show the roots that are trusted, and until when what signs is valid, as without a verb
    Show,
    Rotate(Rotate),
    /// Print a signing request for an intermediate that somebody else signs, a company's root for instance. Its key stays
    /// here
    Csr,
    InstallChain(InstallChain),
    Bundle(Bundle),
    DropRoot(DropRoot),
    Seal(Seal),
    Unseal(Unseal),
    Share(Share),
    /// Make a ledger of its own of the shared one, while the control server is stopped: for the last control process that is left
    Unshare,
}

/// Take the certificate that was signed for the request of `ca csr`, with its issuers
#[derive(Debug, Args)]
struct InstallChain {
    /// A PEM file: the certificate first, its issuers after it, their root last; `-` is the standard input
    file: String,
    /// After how long it signs at the latest, where its root is new to the mesh [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    within: Option<Duration>,
}

const ABOUT_ROTATION: &str = "\
The key that signs intermediates must be in place for --intermediate (`ca/root.key` in the state directory). For --root it
should be: then hosts that are away meanwhile find their way back by the root that they know.

A new root is trusted by all hosts before anything is signed under it. It signs as soon as every host that is there has
said that it knows it, or when the time of --within is over. What is signed under the root of before goes on; each host
renews it within half a minute. Then that root can be dropped.";

/// Replace the intermediate, or the root with it
#[derive(Debug, Args)]
#[command(after_help = ABOUT_ROTATION)]
struct Rotate {
    /// The intermediate, under the same root
    #[arg(long, required_unless_present = "root", conflicts_with = "root")]
    intermediate: bool,
    /// The root
    #[arg(long)]
    root: bool,
    /// After how long the new root signs at the latest [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = values::duration, conflicts_with = "intermediate")]
    within: Option<Duration>,
}

/// Print the roots of this trust domain, for another one that is to take its members
#[derive(Debug, Args)]
struct Bundle {
    /// `pem`, or `spiffe` for a bundle as SPIFFE Federation serves it
    #[arg(long, value_enum, default_value_t = BundleFormat::Pem)]
    format: BundleFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BundleFormat {
    Pem,
    Spiffe,
}

const ABOUT_SHARING: &str = "\
Several control processes sign side by side when they share the ledger of tokens, hosts, certificates, revocations and
operators: its changes are a log in Consul's key-value store, below `ca/` of the prefix. On the first control host, while its
server is stopped:

  baremesh ca share /etc/baremesh/ledger.toml         begins the log with this host's ledger
  baremesh control --shared-ledger /etc/baremesh/ledger.toml
  baremesh backup mesh.tar                            for each further host

On each further host: `baremesh restore mesh.tar`, start `baremesh control` in the same way, then `baremesh ca rotate
--intermediate` for an intermediate of its own. The file holds the table [consul]: docs/shared-ledger.md.";

/// Share the ledger with other control processes, by Consul
#[derive(Debug, Args)]
#[command(after_help = ABOUT_SHARING)]
struct Share {
    /// A file with the table `[consul]`
    file: PathBuf,
}

const ABOUT_SEALING: &str = "\
On the control host, while the control server is stopped. From then on it needs the passphrase to start: `baremesh control
--ca-passphrase-file FILE`, or the credential `ca-passphrase` of systemd. Keys that it makes later are sealed by it, too.

The files are PKCS#8 (PBES2, scrypt, AES-256), which `openssl pkcs8 -in root.key` opens. Who loses the passphrase loses the
authority. A change that was cut short is done again in the same way.";

/// Seal the authority's keys by a passphrase, or by another one than before
#[derive(Debug, Args)]
#[command(after_help = ABOUT_SEALING)]
struct Seal {
    /// A file with the passphrase (one line, 12 bytes at least, mode 0600); `-` is the standard input
    #[arg(long, value_name = "FILE")]
    passphrase_file: String,
    /// The one that seals them now, where they are sealed
    #[arg(long, value_name = "FILE")]
    old_passphrase_file: Option<String>,
}

/// Leave the authority's keys unsealed, for their owner alone to read
#[derive(Debug, Args)]
struct Unseal {
    /// A file with the passphrase that seals them now; `-` is the standard input
    #[arg(long, value_name = "FILE")]
    passphrase_file: String,
}

/// Trust a root no more: one of before, or one that is to sign next
#[derive(Debug, Args)]
struct DropRoot {
    /// Its fingerprint, or the first digits of it, as `baremesh ca` shows it
    fingerprint: String,
    /// Although certificates in use lead to it: who shows one is refused until it has another
    #[arg(long)]
    force: bool,
}

impl Ca {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let server = self.remote.server(&global.directories())?;
        match self.verb {
            None | Some(CaVerb::Show) => shown(&block_on(server.ask(Method::GET, "/ca"))?, global.output),
            Some(CaVerb::Rotate(Rotate { root, within, .. })) => {
                let what = if root { Replaced::Root } else { Replaced::Intermediate };
                let within_seconds = within.map(|within| within.as_secs());
                let order = RotateOrder { what, within_seconds };
                shown(&block_on(server.post("/ca/rotate", &order))?, global.output)
            }
            Some(CaVerb::Csr) => {
                let answer: RequestAnswer = block_on(server.post("/ca/csr", &json!({})))?;
                match global.output {
                    Output::Json => say_json(&answer),
                    _ => say(answer.request.trim_end()),
                }
            }
            Some(CaVerb::InstallChain(InstallChain { file, within })) => {
                let chain = read_text(&file)?;
                let order = ChainOrder { chain, within_seconds: within.map(|within| within.as_secs()) };
                shown(&block_on(server.post("/ca/chain", &order))?, global.output)
            }
            Some(CaVerb::Bundle(Bundle { format })) => {
                let answer: BundleAnswer = block_on(server.ask(Method::GET, "/ca/bundle"))?;
                match (global.output, format) {
                    (Output::Json, _) => say_json(&answer),
                    (_, BundleFormat::Pem) => say(answer.pem.trim_end()),
                    (_, BundleFormat::Spiffe) => say(answer.spiffe),
                }
            }
            Some(CaVerb::Seal(Seal { passphrase_file, old_passphrase_file })) => {
                let old = old_passphrase_file.map(|file| passphrase::read(&file)).transpose()?;
                let sealed = change(global, old.as_ref(), Some(&passphrase::read(&passphrase_file)?))?;
                changed(global.output, sealed, "sealed")
            }
            Some(CaVerb::Unseal(Unseal { passphrase_file })) => {
                let unsealed = change(global, Some(&passphrase::read(&passphrase_file)?), None)?;
                changed(global.output, unsealed, "unsealed")
            }
            Some(CaVerb::Share(Share { file })) => {
                let (ledger, _lock) = ledger(global)?;
                ledger.share(&ConsulLog::new(settings(&file)?)?)?;
                told(
                    global.output,
                    "shared",
                    "the ledger is shared: start `baremesh control --shared-ledger`",
                )
            }
            Some(CaVerb::Unshare) => {
                let (ledger, _lock) = ledger(global)?;
                ledger.leave_log()?;
                told(global.output, "unshared", "the ledger is this host's own")
            }
            Some(CaVerb::DropRoot(DropRoot { fingerprint, force })) => {
                let answer: Value =
                    block_on(server.post("/ca/drop-root", &DropOrder { fingerprint, force }))?;
                match global.output {
                    Output::Json => say_json(&answer),
                    _ => say(format_args!(
                        "the root {} is trusted no more",
                        answer["dropped"].as_str().unwrap_or("-")
                    )),
                }
            }
        }
    }
}

/// This host's ledger, which no server uses meanwhile.
fn ledger(global: &Global) -> anyhow::Result<(Ledger, File)> {
    let state = global.directories().state;
    let lock = lock(&state).context("stop the control server first")?;
    let database = state.join(DATABASE);
    if !database.exists() {
        bail!("there is no ledger in {}: this is no control host", state.display());
    }
    Ok((Ledger::open(&database)?, lock))
}

fn told(output: Output, key: &str, text: &str) -> anyhow::Result<()> {
    match output {
        Output::Json => say_json(&json!({ key: true })),
        _ => say(text),
    }
}

/// Changes what seals the keys of this host's authority.
fn change(global: &Global, from: Option<&Passphrase>, to: Option<&Passphrase>) -> anyhow::Result<usize> {
    let directories = global.directories();
    // The server has the passphrase in its memory, and would go on to seal by it.
    let _lock = lock(&directories.state).context("stop the control server first")?;
    match change_passphrase(&directories.authority(), from, to) {
        Err(AuthorityError::Sealed(path)) => {
            bail!(
                "{} is sealed by another passphrase: give that one with `--old-passphrase-file`",
                path.display()
            )
        }
        other => Ok(other?),
    }
}

fn changed(output: Output, count: usize, how: &str) -> anyhow::Result<()> {
    match output {
        Output::Json => say_json(&json!({ how: count })),
        _ if count == 0 => say(format_args!("the authority's keys are {how} already")),
        _ => say(format_args!("{how}: {count} keys of the authority")),
    }
}

/// A file's text, or the standard input's.
fn read_text(file: &str) -> anyhow::Result<String> {
    let text = match file {
        "-" => std::io::read_to_string(std::io::stdin()),
        path => std::fs::read_to_string(path),
    };
    text.with_context(|| format!("{file} cannot be read"))
}

fn shown(report: &AuthorityReport, output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        return say_json(report);
    }
    let now = SystemTime::now();
    let row = |root: &crate::control::report::RootReport| {
        let in_use = root.in_use.map_or_else(|| "-".to_owned(), |count| count.to_string());
        vec![root.standing.clone(), relative(root.not_after, now), in_use, root.fingerprint.clone()]
    };
    say(table(
        &["ROOT", "ENDS", "IN USE", "FINGERPRINT"],
        report.roots.iter().map(row).collect(),
        "no root",
    ))?;
    say(format_args!("\nThe intermediate ends {}.", relative(report.intermediate_not_after, now)))?;
    if !report.federated.is_empty() {
        let row = |one: &FederatedReport| {
            let short: Vec<_> = one.roots.iter().filter_map(|root| root.get(..8)).collect();
            let ends = one.not_after.map_or_else(|| "-".to_owned(), |end| relative(end, now));
            let read = one.read_at.map_or_else(|| "never".to_owned(), |at| relative(at, now));
            vec![
                one.trust_domain.clone(),
                ends,
                read,
                short.join(" "),
                one.failure.clone().unwrap_or_default(),
            ]
        };
        let rows = report.federated.iter().map(row).collect();
        say(format_args!("\n{}", table(&["FEDERATED", "ENDS", "READ", "ROOTS", "FAILURE"], rows, "")))?;
    }
    if let Some(by) = report.switches_by {
        let by = relative(by, now);
        remark(format_args!(
            "the next root signs when every host that is there knows it, {by} at the latest"
        ));
    }
    Ok(())
}
