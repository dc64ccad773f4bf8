//! The verbs of the command line: what can be said, and who does it. Each verb has a file; what they share is how
//! values are read (`values`) and how answers are printed (`output`).

/// How values on the command line are read.
pub mod values;
/// Where resources are changed: the control server, or a directory.
mod place;
/// Directories in which things are made before they are moved.
mod aside;
/// What the programs that stay say about themselves.
mod logging;

mod agent;
mod alarm;
mod analyze;
mod apply;
mod ca;
mod audit;
mod backup;
mod capture;
mod certs;
mod completions;
mod containers;
mod control;
mod convert;
/// An operator's credential in its file.
mod credential;
mod delete;
mod demo;
mod doctor;
mod explain;
mod get;
mod health_commands;
mod host;
mod init;
mod join;
mod mtls;
mod operator;
mod passphrase;
mod reference;
mod registry;
mod rollback;
mod schema;
/// The control server, here or afar.
mod server;
mod service;
mod status;
mod token;
mod verify_chain;
mod verify_token;
mod version;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use baremesh_agent::config::Directories;
use baremesh_agent::health::commands;
use clap::{Args, Parser, Subcommand};

use crate::output::{Output, fail};

const LONG_ABOUT: &str = "\
A service mesh for virtual machines and bare metal. An agent on each host carries the traffic of its services over
mutual TLS, each service with an identity of its own, under policy; programs need no change.

On one host, once:              baremesh init && systemctl enable --now baremesh-control
On every host, once:            baremesh join CONTROL-HOST --token TOKEN && systemctl enable --now baremesh
Where a service runs:           baremesh service register orders --port 8080 --unit orders.service
Who may call it:                baremesh apply -f policy.toml
What is going on:               baremesh status
What becomes of a call:         baremesh explain http://orders:8080/ --from web
What is wrong with a host:      baremesh doctor

Each host needs a token of its own: `init` prints the first, `baremesh token create` on the control host makes more. A
token says which services its host may run.";

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  refused, or failed; the message says why
  2  the command line, or a file that it names, cannot be understood or read
  3  nothing answers: the agent or the control server is not running, or not in reach

Answers go to the standard output, everything else to the standard error.";

/// A service mesh for virtual machines and bare metal.
#[derive(Debug, Parser)]
#[command(name = "baremesh", version, long_about = LONG_ABOUT, after_help = EXIT_CODES, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// What every verb takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Configuration: agent.toml, registrations.d/, registry/
    #[arg(long, global = true, env = "BAREMESH_CONFIG_DIR", value_name = "DIR", default_value_os_t = Directories::default().config, hide_env_values = true)]
    config_dir: PathBuf,
    /// What lasts: keys, certificates, control.db
    #[arg(long, global = true, env = "BAREMESH_STATE_DIR", value_name = "DIR", default_value_os_t = Directories::default().state, hide_env_values = true)]
    state_dir: PathBuf,
    /// What does not outlive a reboot: sockets, the rules for when the agent is gone
    #[arg(long, global = true, env = "BAREMESH_RUN_DIR", value_name = "DIR", default_value_os_t = Directories::default().runtime, hide_env_values = true)]
    run_dir: PathBuf,
    /// How answers are printed
    #[arg(short, long, global = true, value_enum, value_name = "FORM", default_value_t)]
    output: Output,
}

impl Global {
    fn directories(&self) -> Directories {
        Directories {
            config: self.config_dir.clone(),
            state: self.state_dir.clone(),
            runtime: self.run_dir.clone(),
        }
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    Init(init::Init),
    Control(control::Control),
    Join(join::Join),
    Agent(agent::Agent),
    Service(service::Service),
    Containers(containers::Containers),
    Apply(apply::Apply),
    Delete(delete::Delete),
    Get(get::Get),
    Analyze(analyze::Analyze),
    Explain(explain::Explain),
    Doctor(doctor::Doctor),
    Token(token::Token),
    Host(host::Host),
    Operator(operator::Operator),
    History(rollback::History),
    Rollback(rollback::Rollback),
    Audit(audit::Audit),
    Backup(backup::Backup),
    Restore(backup::Restore),
    Status(status::Status),
    Certs(certs::Certs),
    Ca(ca::Ca),
    Mtls(mtls::Mtls),
    Capture(capture::Capture),
    Alarm(alarm::Alarm),
    Demo(demo::Demo),
    Version(version::Version),
    Completions(completions::Completions),
    Reference(reference::Reference),
    Convert(convert::Convert),
    Registry(registry::Registry),
    Schema(schema::Schema),
    #[command(name = commands::VERB, hide = true)]
    HealthCommands(health_commands::HealthCommands),
    #[command(name = "verify-chain", hide = true)]
    VerifyChain(verify_chain::VerifyChain),
    #[command(name = "verify-token", hide = true)]
    VerifyToken(verify_token::VerifyToken),
}

/// Runs what the command line asks for.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are "errors" that go to the standard output and end with 0.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn dispatch(Cli { global, verb }: Cli) -> anyhow::Result<()> {
    if matches!(global.output, Output::Yaml | Output::Toml) && !matches!(verb, Verb::Get(_)) {
        return Err(crate::output::usage(
            "`-o yaml` and `-o toml` are for `get`; here it is `table` or `json`",
        ));
    }
    match verb {
        Verb::Init(verb) => verb.run(&global),
        Verb::Control(verb) => verb.run(&global),
        Verb::Join(verb) => verb.run(&global),
        Verb::Agent(verb) => verb.run(&global),
        Verb::Service(verb) => verb.run(&global),
        Verb::Containers(verb) => verb.run(&global),
        Verb::Apply(verb) => verb.run(&global),
        Verb::Delete(verb) => verb.run(&global),
        Verb::Get(verb) => verb.run(&global),
        Verb::Analyze(verb) => verb.run(&global),
        Verb::Explain(verb) => verb.run(&global),
        Verb::Doctor(verb) => verb.run(&global),
        Verb::Token(verb) => verb.run(&global),
        Verb::Host(verb) => verb.run(&global),
        Verb::Operator(verb) => verb.run(&global),
        Verb::History(verb) => verb.run(&global),
        Verb::Rollback(verb) => verb.run(&global),
        Verb::Audit(verb) => verb.run(&global),
        Verb::Backup(verb) => verb.run(&global),
        Verb::Restore(verb) => verb.run(&global),
        Verb::Status(verb) => verb.run(&global),
        Verb::Certs(verb) => verb.run(&global),
        Verb::Ca(verb) => verb.run(&global),
        Verb::Mtls(verb) => verb.run(&global),
        Verb::Capture(verb) => verb.run(&global),
        Verb::Alarm(verb) => verb.run(&global),
        Verb::Demo(verb) => verb.run(&global),
        Verb::Version(verb) => verb.run(&global),
        Verb::Completions(verb) => verb.run(&global),
        Verb::Reference(verb) => verb.run(&global),
        Verb::Convert(verb) => verb.run(&global),
        Verb::Registry(verb) => verb.run(&global),
        Verb::Schema(verb) => verb.run(&global),
        Verb::HealthCommands(verb) => verb.run(&global),
        Verb::VerifyChain(verb) => verb.run(),
        Verb::VerifyToken(verb) => verb.run(),
    }
}

/// Runs a future on a runtime of one thread: what most verbs need is one call to a socket.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("the runtime does not start")?.block_on(future)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;
    use crate::output::Exit;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    /// Every verb and option that is shown says what it is for.
    #[test]
    fn everything_has_help() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            if command.is_hide_set() {
                return;
            }
            assert!(command.get_about().is_some(), "{path}");
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                assert!(argument.get_help().is_some(), "{path} {}", argument.get_id());
            }
            command.get_subcommands().for_each(|command| check(command, &path));
        }
        check(&Cli::command(), "");
    }

    /// The help lists every code, and the manual says the same of each.
    #[test]
    fn exit_codes_are_documented() {
        let rows = EXIT_CODES.lines().filter_map(|line| line.trim_start().split_once("  "));
        let rows: Vec<(u8, &str)> =
            rows.filter_map(|(code, text)| Some((code.parse().ok()?, text))).collect();
        let codes: Vec<u8> = rows.iter().map(|(code, _)| *code).collect();
        assert_eq!(codes, [0, Exit::Refused as u8, Exit::Usage as u8, Exit::NothingAnswers as u8]);
        let manual = include_str!("../../docs/operating.md");
        for (code, text) in rows {
            let row = format!("| {code} | {text}");
            assert!(manual.lines().any(|line| line.starts_with(&row)), "docs/operating.md has no row: {row}");
        }
    }

    fn check(line: &str, expected: Result<(), ErrorKind>) {
        let found = Cli::try_parse_from(line.split_whitespace()).map(drop).map_err(|error| error.kind());
        assert_eq!(found, expected, "{line}");
    }

    #[test]
    fn takes_what_is_documented() {
        for line in [
            "baremesh init",
            "baremesh init --trust-domain example.org --service orders.shop --service web-* --address c:15012",
            "baremesh init --ca-cert a --ca-key b",
            "baremesh --state-dir /x control --listen 127.0.0.1:0 --listen [::1]:0 --workload-lifetime 60",
            "baremesh join c --token bm1.x --host h1",
            "baremesh join c --token-file -",
            "baremesh agent",
            "baremesh service register orders --port 80:8080 --unit orders.service --label a=b --label c=d",
            "baremesh service register orders --port 80 --port 81:9000 --protocol http --protocol tcp",
            "baremesh service deregister orders --namespace shop",
            "baremesh service list -o json",
            "baremesh service register db --port 5432 --container-label app=db --deliver container:5432",
            "baremesh containers follow",
            "baremesh containers follow --engine unix:///run/docker.sock --engine /run/podman/podman.sock",
            "baremesh containers list -o json",
            "baremesh apply -f x.toml -f - --dry-run",
            "baremesh delete Service orders -n shop",
            "baremesh get",
            "baremesh get services orders -n shop -o yaml",
            "baremesh token create --service orders --host h1 --expires 90m",
            "baremesh token list",
            "baremesh token delete abc",
            "baremesh host revoke h1",
            "baremesh ca",
            "baremesh ca rotate --intermediate",
            "baremesh ca rotate --root --within 2h -o json",
            "baremesh ca csr",
            "baremesh ca install-chain chain.pem --within 1d",
            "baremesh ca drop-root 0123abcd --force",
            "baremesh certs",
            "baremesh certs list",
            "baremesh certs revoked -o json",
            "baremesh certs revoke h1",
            "baremesh certs revoke --identity spiffe://mesh.internal/ns/shop/sa/orders",
            "baremesh certs revoke --serial 0a:ff",
            "baremesh operator add alice --role editor -n shop --namespace web --lifetime 7d --file a --replace",
            "baremesh operator list --credential a --control c:15012",
            "baremesh --config-dir /x apply -f a.toml --credential a",
            "baremesh status --credential a -o json",
            "baremesh audit --since 2h --limit 5",
            "baremesh history --limit 3",
            "baremesh backup mesh.tar",
            "baremesh restore mesh.tar --replace -o json",
            "baremesh mtls report --credential a -o json",
            "baremesh apply --simulate -f a.toml",
            "baremesh rollback",
            "baremesh rollback 17 --force --dry-run",
            "baremesh rollback --to 16",
            "baremesh capture apply --confirm 60s",
            "baremesh capture guard 7 /run/gone.nft",
            "baremesh capture revert /run/baremesh 60",
            "baremesh capture gone --file /run/gone.nft",
            "baremesh demo --once -o json",
            "baremesh completions bash",
            "baremesh analyze",
            "baremesh analyze a.toml b.yaml",
            "baremesh explain http://reviews:9080/api -H end-user:jason --from productpage -X POST -o json",
            "baremesh explain tls://login:443 --sni a.b --source-ip 10.0.0.1",
            "baremesh explain http://a -f a.toml -f b --from x.y --from-label a=b --from-locality eu/a",
            "baremesh analyze --live a.toml",
            "baremesh doctor",
            "baremesh doctor --peers -o json",
            "baremesh reference",
            "baremesh registry migrate --from files:/a --to consul:b.toml --replace --dry-run",
            "baremesh control --shared-ledger ledger.toml",
            "baremesh ca share ledger.toml",
            "baremesh ca unshare",
            "baremesh convert consul a.json - --default-policy deny --port web=80 -n shop --output-dir out",
            "baremesh convert consul --http-addr https://c:8501 --ca ca.pem --cert c.pem --key k.pem --token-file t --datacenter dc2",
            "baremesh schema",
            "baremesh schema VirtualService --form yaml",
            "baremesh verify-chain --roots r.pem --chain c.pem --purpose client --time 1700000000",
            "baremesh verify-token --jwks keys.json --token token",
        ] {
            check(line, Ok(()));
        }
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        for (line, kind) in [
            ("baremesh", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            ("baremesh nosuch", ErrorKind::InvalidSubcommand),
            ("baremesh init --ca-cert a", ErrorKind::MissingRequiredArgument),
            ("baremesh init --trust-domain UPPER", ErrorKind::ValueValidation),
            ("baremesh join c", ErrorKind::MissingRequiredArgument),
            ("baremesh join c --token a --token-file b", ErrorKind::ArgumentConflict),
            ("baremesh service register orders", ErrorKind::MissingRequiredArgument),
            ("baremesh service register orders --port 0", ErrorKind::ValueValidation),
            ("baremesh containers follow --engine tcp://127.0.0.1:2375", ErrorKind::ValueValidation),
            ("baremesh token create --host a --rejoin b", ErrorKind::ArgumentConflict),
            ("baremesh token create --expires never", ErrorKind::ValueValidation),
            ("baremesh operator add alice", ErrorKind::MissingRequiredArgument),
            ("baremesh operator add alice --role king", ErrorKind::InvalidValue),
            ("baremesh rollback 17 --to 16", ErrorKind::ArgumentConflict),
            ("baremesh apply --simulate --dry-run -f a.toml", ErrorKind::ArgumentConflict),
            ("baremesh rollback 0", ErrorKind::ValueValidation),
            ("baremesh join c --token t --credential a", ErrorKind::UnknownArgument),
            ("baremesh apply", ErrorKind::MissingRequiredArgument),
            ("baremesh ca rotate", ErrorKind::MissingRequiredArgument),
            ("baremesh ca rotate --root --intermediate", ErrorKind::ArgumentConflict),
            ("baremesh ca rotate --intermediate --within 1h", ErrorKind::ArgumentConflict),
            ("baremesh certs revoke", ErrorKind::MissingRequiredArgument),
            ("baremesh certs revoke h1 --serial ff", ErrorKind::ArgumentConflict),
            ("baremesh certs revoke --serial none", ErrorKind::ValueValidation),
            ("baremesh explain", ErrorKind::MissingRequiredArgument),
            ("baremesh convert consul", ErrorKind::MissingRequiredArgument),
            ("baremesh convert consul a.json --http-addr http://127.0.0.1:8500", ErrorKind::ArgumentConflict),
            ("baremesh convert consul a.json --token-file t", ErrorKind::ArgumentConflict),
            (
                "baremesh convert consul --http-addr https://c:8501 --cert c.pem",
                ErrorKind::MissingRequiredArgument,
            ),
            ("baremesh registry migrate --from files:/a", ErrorKind::MissingRequiredArgument),
            ("baremesh registry migrate --from /a --to consul:b", ErrorKind::ValueValidation),
            ("baremesh ca share", ErrorKind::MissingRequiredArgument),
            ("baremesh convert consul a.json --port web=0", ErrorKind::ValueValidation),
            ("baremesh convert consul a.json --default-policy maybe", ErrorKind::InvalidValue),
            ("baremesh explain http://a -H end-user=jason", ErrorKind::ValueValidation),
            ("baremesh explain http://a --from-label a=b", ErrorKind::MissingRequiredArgument),
            ("baremesh explain http://a -f a.toml", ErrorKind::MissingRequiredArgument),
            ("baremesh delete Pod x", ErrorKind::ValueValidation),
            ("baremesh get nosuch", ErrorKind::ValueValidation),
            ("baremesh -o xml get", ErrorKind::InvalidValue),
        ] {
            check(line, Err(kind));
        }
    }
}
