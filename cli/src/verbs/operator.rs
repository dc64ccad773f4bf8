//! `baremesh operator`.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use baremesh_ca::issued::{Issued, chain_from_pem};
use baremesh_ca::key::PrivateKey;
use baremesh_ca::tls::TrustBundle;
use baremesh_model::name::{Label, TrustDomain};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::credential::Credential;
use super::server::{ControlServer, Remote};
use super::{Global, block_on, values};
use crate::control::report::{OperatorAnswer, OperatorOrder, OperatorReport};
use crate::output::{Output, in_words, relative, remark, say, say_json, table, usage};

const LONG_ABOUT: &str = "\
An operator is a person, or a program such as a pipeline, that works with the mesh from another machine than the control
host. Each has a credential of its own, a role, and a line in the audit for all that it does. On the control host itself,
root and the group `baremesh` need none.

  viewer   looks: get, analyze, status, host list, history
  editor   that, and changes resources of its namespaces, as long as they hold there alone
  admin    everything: mesh-wide resources, grants, tokens, hosts, operators, the audit";

/// Add, list and remove those who may give orders from other machines
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT)]
pub struct Operator {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    verb: OperatorVerb,
}

#[derive(Debug, Subcommand)]
enum OperatorVerb {
    Add(Add),
    /// List the operators, with role and until when each credential is valid
    List,
    /// Remove an operator: its credential is refused at once, and what is open with it is cut
    Remove {
        /// Its name
        #[arg(value_parser = Label::new)]
        name: Label,
    },
}

const EXAMPLES: &str = "\
Examples:
  baremesh operator add alice --role editor --namespace shop --namespace web
  baremesh operator add pipeline --role editor --namespace shop --lifetime 7d --file pipeline.credential
  baremesh operator add alice --role admin --replace          another role, another credential

Then, on the operator's machine, with the file at mode 0600:
  baremesh apply -f policy.toml --credential alice.credential";

/// Add an operator, and write its credential to a file
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
struct Add {
    /// Its name, as the audit shows it
    #[arg(value_parser = Label::new)]
    name: Label,
    /// What it may do: viewer, editor or admin
    #[arg(long, value_parser = ["viewer", "editor", "admin"])]
    role: String,
    /// A namespace whose resources an editor may change; can be given several times
    #[arg(long = "namespace", short, value_name = "NAMESPACE", value_parser = Label::new)]
    namespaces: Vec<Label>,
    /// How long the credential is valid: 12h, 30d; 366 days at most
    #[arg(long, value_name = "DURATION", default_value = "30d", value_parser = values::duration)]
    lifetime: Duration,
    /// Where the credential is written [default: NAME.credential in the current directory]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Where the operator's machine reaches the control server [default: the name of the machine that this is said on]
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,
    /// Give an operator that is there already another credential and role; the one before ends
    #[arg(long)]
    replace: bool,
}

impl Operator {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let server = self.remote.server(&global.directories())?;
        match self.verb {
            OperatorVerb::Add(add) => add.run(&server, global.output),
            OperatorVerb::List => list(&server, global.output),
            OperatorVerb::Remove { name } => {
                let _: Value = block_on(server.ask(Method::DELETE, &format!("/operators/{name}")))?;
                match global.output {
                    Output::Json => say_json(&json!({ "removed": name.as_str() })),
                    _ => say(format_args!("operator {name} is removed")),
                }
            }
        }
    }
}

impl Add {
    fn run(self, server: &ControlServer, output: Output) -> anyhow::Result<()> {
        let file = self.file.unwrap_or_else(|| PathBuf::from(format!("{}.credential", self.name)));
        let shown = file.display();
        if file.exists() && !self.replace {
            return Err(usage(format!("{shown} is there already: remove it, or name another with --file")));
        }
        // The key is made here, and goes nowhere but into the file.
        let key = PrivateKey::generate()?;
        let order = OperatorOrder {
            name: self.name.to_string(),
            role: self.role,
            namespaces: self.namespaces.iter().map(ToString::to_string).collect(),
            request: STANDARD.encode(key.request()?),
            lifetime_seconds: Some(self.lifetime.as_secs()),
            replace: self.replace,
        };
        let answer: OperatorAnswer = block_on(server.post("/operators", &order))?;
        let chain = chain_from_pem(answer.chain.as_bytes()).context("the answer holds no certificate")?;
        let domain = TrustDomain::new(&answer.trust_domain).context("the answer names no trust domain")?;
        let credential = Credential {
            control: self.address.unwrap_or_else(|| server.reached_at(answer.port)),
            bundle: TrustBundle::from_pem(domain, answer.roots.as_bytes())?,
            issued: Issued::new(chain, key.to_der())?,
        };
        credential.save(&file).with_context(|| {
            format!("operator {} is added, and its credential is lost: use --replace", self.name)
        })?;
        if output == Output::Json {
            return say_json(&json!({
                "name": self.name.as_str(),
                "file": file,
                "control": credential.control,
                "notAfter": answer.not_after,
            }));
        }
        say(format_args!("operator {} is added, as {}", self.name, role_of(&order.role, &order.namespaces)))?;
        let (within, control) = (in_words(self.lifetime), &credential.control);
        remark(format_args!(
            "\n{shown} is its credential, and a secret: take it to the operator's machine, with mode 0600.\nIt is valid for \
             {within} and finds the control server at {control}:\n  baremesh get --credential {shown}"
        ));
        Ok(())
    }
}

fn role_of(role: &str, namespaces: &[String]) -> String {
    if namespaces.is_empty() { role.to_owned() } else { format!("{role} of {}", namespaces.join(", ")) }
}

fn list(server: &ControlServer, output: Output) -> anyhow::Result<()> {
    let operators: Vec<OperatorReport> = block_on(server.ask(Method::GET, "/operators"))?;
    if output == Output::Json {
        return say_json(&operators);
    }
    let now = SystemTime::now();
    let row = |operator: &OperatorReport| {
        let role = role_of(&operator.role, &operator.namespaces);
        vec![
            operator.name.clone(),
            role,
            relative(operator.issued_at, now),
            relative(operator.not_after, now),
        ]
    };
    let rows = operators.iter().map(row).collect();
    let empty = "no operators: root and the group `baremesh` of the control host need none";
    say(table(&["OPERATOR", "ROLE", "ISSUED", "ENDS"], rows, empty))
}
