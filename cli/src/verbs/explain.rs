//! `baremesh explain`.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Context;
use baremesh_agent::admin::client::{Socket, SocketError};
use baremesh_agent::admin::report::explain::{Explanation, Question};
use baremesh_agent::explain::{caller, explain};
use baremesh_agent::jwt::jws::Compact;
use baremesh_model::workload::Locality;
use baremesh_registry::diagnostic::Diagnostic;
use baremesh_registry::format::{Form, Parsed};
use baremesh_registry::set::assemble;
use clap::Args;
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::analyze::texts;
use super::{Global, block_on, values};
use crate::output::{Exit, Output, Said, remark, say, say_json, usage};

/// The answer as people read it.
mod show;

const LONG_ABOUT: &str = "\
Show what becomes of a call and why: which route takes it, and why earlier ones do not; where it may go, with shares, and how
each endpoint stands; what the route does; which policies decide at the called side, by which rule. Nothing is sent.

It asks this host's agent, so that it speaks of the state in force and of what the agent has learnt of endpoints; run it on the
host that calls. With -f it needs no agent: files of resources are put together as an agent would, and --from is any
service or service account of theirs.

Exits with 0 where the call is let through wherever it may go, or answered by its route; 1 where it is refused, in part too, or
leads nowhere; 2 where the question cannot be understood; 3 where no agent answers.";

const EXAMPLES: &str = "\
Examples:
  baremesh explain http://reviews:9080/api -H 'end-user: jason' --from productpage
  baremesh explain http://orders.shop:8080/ -X POST -o json | jq '.destinations[].share'
  baremesh explain http://orders/ --from web --claim iss=https://login.example --claim sub=jason
  baremesh explain tcp://orders:7000                    bytes, as this host itself
  baremesh explain tls://login.shop:443 --sni login.example.com --from web.shop
  baremesh explain http://reviews:9080/ -f mesh.yaml -f policy.toml --from productpage
  baremesh explain http://reviews:9080/ -f . --from web.shop --from-label version=v2

On a control host without an agent: baremesh get -o yaml | baremesh explain http://reviews:9080/ -f - --from productpage
(what hosts have registered is not among the resources: WorkloadEntries are all the endpoints that it then knows).";

/// Show what becomes of a call, and why
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_help = EXAMPLES)]
pub struct Explain {
    /// http://SERVICE[:PORT]/PATH; tcp://SERVICE:PORT for bytes; https:// or tls:// for TLS of the application's own
    #[arg(value_name = "URL")]
    url: String,
    /// A header of the request; can be given several times
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = values::header)]
    header: Vec<(String, String)>,
    /// The request's method
    #[arg(short = 'X', long, value_name = "METHOD", default_value = "GET")]
    method: String,
    /// Who calls: a service of this host, NAME or NAME.NAMESPACE; without it the host itself
    #[arg(long, value_name = "NAME")]
    from: Option<String>,
    /// The address that the call comes from, where policies or hashes ask for it and it is not the host's
    #[arg(long, value_name = "ADDRESS")]
    source_ip: Option<IpAddr>,
    /// The TLS server name that the application asks for; the URL's host unless given
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// The request's token, as a file with its compact form has it: what it says is taken for verified, its dates are
    /// looked at. Whether it is signed is not
    #[arg(long, value_name = "FILE")]
    token: Option<PathBuf>,
    /// A claim of the request's token, instead of --token; a value that is JSON is taken as that; can be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = values::label, conflicts_with = "token")]
    claim: Vec<(String, String)>,
    /// Explain by these files or directories instead of by the agent, `-` for the standard input; can be given several times
    #[arg(short, long = "file", value_name = "FILE", requires = "from")]
    file: Vec<PathBuf>,
    /// With -f: a label of the caller, besides those of its workload; can be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::label, requires = "file")]
    from_label: Vec<(String, String)>,
    /// With -f: where the caller stands, unless where its workload does
    #[arg(long, value_name = "REGION/ZONE/SUBZONE", requires = "file")]
    from_locality: Option<String>,
}

impl Explain {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let question = Question {
            url: self.url.clone(),
            method: self.method.clone(),
            headers: self.header.clone(),
            from: self.from.clone(),
            source_ip: self.source_ip,
            sni: self.sni.clone(),
            claims: self.claims()?,
        };
        let explanation = match self.file.is_empty() {
            true => ask(global, &question)?,
            false => self.by_files(global, &question)?,
        };
        match global.output {
            Output::Json => say_json(&explanation)?,
            _ => say(show::text(&explanation))?,
        }
        if explanation.passes { Ok(()) } else { Err(Said(Exit::Refused).into()) }
    }

    /// The payload of the request's token, where it has one.
    fn claims(&self) -> anyhow::Result<Option<String>> {
        if let Some(file) = &self.token {
            let shown = file.display();
            let text = std::fs::read_to_string(file).map_err(|error| usage(format!("{shown}: {error}")))?;
            let compact = Compact::parse(text.trim());
            let payload = compact.and_then(|compact| compact.payload());
            let payload = payload.map_err(|refusal| usage(format!("{shown}: {}", refusal.text())))?;
            return Ok(Some(String::from_utf8_lossy(&payload).into_owned()));
        }
        let claim = |(name, value): &(String, String)| {
            let read = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.clone()));
            (name.clone(), read)
        };
        let claims: Map<String, Value> = self.claim.iter().map(claim).collect();
        Ok((!claims.is_empty()).then(|| Value::Object(claims).to_string()))
    }

    fn by_files(&self, global: &Global, question: &Question) -> anyhow::Result<Explanation> {
        let mut parsed = Parsed::default();
        for (name, text) in texts(&self.file)? {
            let form = Form::of_file(&name).unwrap_or_else(|| Form::of_text(&text));
            let of_file = form.parse(&text, &name);
            parsed.resources.extend(of_file.resources);
            parsed.findings.extend(of_file.findings);
        }
        let loaded = match assemble(parsed.resources, parsed.findings) {
            Ok(loaded) => loaded,
            Err(refused) => {
                if global.output == Output::Json {
                    let findings: Vec<_> = refused.0.iter().map(Diagnostic::to_json).collect();
                    say_json(&json!({ "findings": findings }))?;
                } else {
                    let text: Vec<_> = refused.0.iter().map(ToString::to_string).collect();
                    remark(text.join("\n").trim_end());
                }
                remark("the files do not hold together: `baremesh analyze` says the same");
                return Err(Said(Exit::Usage).into());
            }
        };
        let labels = self.from_label.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into()));
        let named = caller::Named {
            from: self.from.clone().unwrap_or_default(),
            labels: labels.collect(),
            locality: self.from_locality.as_deref().map(Locality::parse),
        };
        let (snapshot, caller) =
            caller::in_set(&loaded.mesh, &named).map_err(|error| usage(error.to_string()))?;
        // Whoever calls has a certificate where it calls from.
        explain(&snapshot, &caller, question, &|_| true).map_err(|error| usage(error.to_string()))
    }
}

/// Asks the agent of this host.
fn ask(global: &Global, question: &Question) -> anyhow::Result<Explanation> {
    let path = global.directories().agent_socket();
    let body = serde_json::to_vec(question).context("the question cannot be written")?;
    let socket = Socket { path: &path, program: "baremesh agent" };
    let answer = block_on(async { Ok(socket.call(Method::POST, "/explain", body).await) })?;
    match answer {
        Ok(answer) => Ok(serde_json::from_slice(&answer)?),
        Err(SocketError::Refused { status: StatusCode::BAD_REQUEST, message }) => Err(usage(message)),
        Err(SocketError::Refused { status: StatusCode::NOT_FOUND, .. }) => {
            anyhow::bail!(
                "the agent that runs here is of an older version, which explains nothing: restart it"
            )
        }
        Err(error @ SocketError::Connect { .. }) => Err(anyhow::Error::new(error).context(
            "no agent to ask: run it on the host that calls, or explain by files with -f FILE --from NAME",
        )),
        Err(error) => Err(error.into()),
    }
}
