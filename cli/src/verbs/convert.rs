//! `baremesh convert`: another mesh's configuration made into resources.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use baremesh_model::name::Label;
use baremesh_registry::convert::{self, Converted, DefaultPolicy, Options};
use baremesh_registry::format::{encode, to_toml};
use baremesh_registry::resource::Resource;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::apply::read;
use super::{Global, block_on};
use crate::output::{Exit, Output, Said, remark, say, say_json, usage};

/// A Consul that runs.
mod live;

use live::Live;

const LONG_ABOUT: &str = "\
Make resources of Consul's config entries and intentions: service-defaults, proxy-defaults, service-intentions (and the
older single intentions), service-router, service-splitter and service-resolver, in the JSON of Consul's API or of
`consul config read`. Answers of /v1/catalog/service/NAME and /v1/health/service/NAME may stand among them: the ports come
from there.

With --http-addr they are read from a Consul that runs, intentions and ports included; nothing is changed there. Consul leaves out
what a token may not read: one that may not read every service and intention is refused.

What is made does the same, or is not made: whatever cannot be said in resources is named with the field, the reason and
the way out, and then nothing is printed. docs/consul-migration.md says what becomes of each field.

Exits with 0 where all of it was converted, 1 where something was refused, 2 where a file or Consul cannot be read.";

const EXAMPLES: &str = "\
Examples:
  baremesh convert consul --http-addr http://127.0.0.1:8500 --default-policy deny --output-dir mesh/
  baremesh convert consul --http-addr https://consul.example:8501 --ca consul-ca.pem --token-file token --default-policy deny
  consul config read -kind service-router -name web | baremesh convert consul --port web=8080 -
  for k in proxy-defaults service-defaults service-intentions service-router service-splitter service-resolver; do
    curl -s localhost:8500/v1/config/$k; done > consul.json
  baremesh convert consul consul.json --default-policy deny --port web=8080 --port db=5432 > mesh.toml
  baremesh convert consul consul.json --default-policy deny --output-dir mesh/ && baremesh analyze mesh/";

/// Make resources of another mesh's configuration
#[derive(Debug, Args)]
pub struct Convert {
    #[command(subcommand)]
    from: Mesh,
}

#[derive(Debug, Subcommand)]
enum Mesh {
    Consul(Consul),
}

/// Make resources of Consul's config entries and intentions
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_help = EXAMPLES)]
struct Consul {
    /// Files of JSON, or `-` for the standard input
    #[arg(value_name = "FILE", required_unless_present = "http_addr", conflicts_with = "http_addr")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    live: Live,
    /// What Consul does with a call that no intention is about: `default_intention_policy`, else `acl.default_policy`
    #[arg(long, value_enum, value_name = "POLICY")]
    default_policy: Option<Policy>,
    /// The namespace of what is made
    #[arg(long, short, value_name = "NAMESPACE", default_value = "default", value_parser = label)]
    namespace: Label,
    /// The port that callers name of a service; can be given several times
    #[arg(long = "port", value_name = "SERVICE=PORT", value_parser = port)]
    ports: Vec<(String, u16)>,
    /// Write a file for each resource into this directory, which must be empty or not be there
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Policy {
    /// It is let through
    Allow,
    /// It is refused
    Deny,
}

fn label(text: &str) -> Result<Label, String> {
    Label::new(text).map_err(|error| error.to_string())
}

fn port(text: &str) -> Result<(String, u16), String> {
    let read =
        text.split_once('=').and_then(|(service, port)| Some((service.to_owned(), port.parse().ok()?)));
    read.filter(|(_, port)| *port > 0)
        .ok_or_else(|| format!("`{text}` is no port: write SERVICE=PORT, such as web=8080"))
}

impl Convert {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let Mesh::Consul(verb) = self.from;
        verb.run(global)
    }
}

impl Consul {
    fn run(self, global: &Global) -> anyhow::Result<()> {
        let texts = match self.live.settings()? {
            Some(settings) => block_on(self.live.read(settings))?,
            None => self.files.iter().map(|file| read(file)).collect::<anyhow::Result<Vec<_>>>()?,
        };
        let default_policy = self.default_policy.map(|policy| match policy {
            Policy::Allow => DefaultPolicy::Allow,
            Policy::Deny => DefaultPolicy::Deny,
        });
        let ports: BTreeMap<String, u16> = self.ports.into_iter().collect();
        let options = Options { namespace: self.namespace, default_policy, ports };
        let made = match convert::consul(&texts, &options) {
            Ok(made) => made,
            Err(refusals) => {
                for refusal in &refusals {
                    remark(format_args!("error: {refusal}"));
                    if !refusal.help.is_empty() {
                        remark(format_args!("  help: {}", refusal.help));
                    }
                }
                remark(format_args!("{} refused; nothing was made", refusals.len()));
                return Err(Said(Exit::Refused).into());
            }
        };
        if made.resources.is_empty() {
            remark("there is nothing in it that resources would say");
        }
        match &self.output_dir {
            Some(directory) => write(directory, &made),
            None if global.output == Output::Json => {
                let resources: Vec<_> = made.resources.iter().map(encode).collect();
                say_json(&json!({ "resources": resources }))
            }
            None => say(made.resources.iter().map(to_toml).collect::<Vec<_>>().join("\n")),
        }
    }
}

/// One file a resource. A directory with something in it is left alone: what is there may belong to somebody.
fn write(directory: &Path, made: &Converted) -> anyhow::Result<()> {
    let shown = directory.display();
    std::fs::create_dir_all(directory).with_context(|| format!("{shown} cannot be made"))?;
    let mut entries = std::fs::read_dir(directory).with_context(|| format!("{shown} cannot be read"))?;
    if entries.next().is_some() {
        return Err(usage(format!("{shown} is not empty: give a directory that is, or that is not there")));
    }
    for resource in &made.resources {
        let file = directory.join(name(resource));
        std::fs::write(&file, to_toml(resource))
            .with_context(|| format!("{} cannot be written", file.display()))?;
    }
    say(format_args!("{} resources in {shown}", made.resources.len()))
}

fn name(resource: &Resource) -> String {
    let key = resource.key();
    format!("{}-{}-{}.toml", resource.kind().name().to_lowercase(), key.namespace, key.name)
}
