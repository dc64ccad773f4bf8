//! `baremesh get`.

use anyhow::Context;
use baremesh_model::mesh::Kind;
use baremesh_model::name::Label;
use baremesh_registry::format;
use clap::Args;
use serde_json::json;

use super::place::{Done, Place, shown};
use super::server::Remote;
use super::{Global, block_on, values};
use crate::control::report::ResourceReport;
use crate::control::resources::Filter;
use crate::output::{Output, say, say_json, table};

const EXAMPLES: &str = "\
Examples:
  baremesh get                                         everything, as a table
  baremesh get services                                of one kind
  baremesh get AuthorizationPolicy orders -n shop -o toml
  baremesh get -o yaml > mesh.yaml                     all of it, as Istio writes it";

/// Show the resources in force
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Get {
    #[command(flatten)]
    remote: Remote,
    /// Service, WorkloadEntry, VirtualService, PeerAuthentication, AuthorizationPolicy, DestinationRule,
    /// RequestAuthentication, RateLimit, ServiceEntry, HostGrant or MeshConfig; the plural too
    #[arg(value_parser = values::kind)]
    kind: Option<Kind>,
    /// One resource's name
    #[arg(value_parser = Label::new)]
    name: Option<Label>,
    /// Of one namespace
    #[arg(short, long, value_name = "NAMESPACE", value_parser = Label::new)]
    namespace: Option<Label>,
}

impl Get {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let filter = Filter {
            kind: self.kind,
            namespace: self.namespace.map(|namespace| namespace.to_string()),
            name: self.name.as_ref().map(ToString::to_string),
        };
        let place = Place::of(&global.directories(), &self.remote)?;
        let found = shown(global.output, block_on(place.list(&filter)), &Done::Asking)?;
        if let Some(name) = self.name.filter(|_| found.is_empty()) {
            anyhow::bail!(
                "no resource of that kind is named `{name}` there: `baremesh get` lists what there is"
            );
        }
        match global.output {
            Output::Table => say(as_table(&found)),
            Output::Json => {
                let documents: Vec<_> = found.iter().map(|resource| &resource.document).collect();
                say_json(&json!({ "apiVersion": "v1", "kind": "List", "items": documents }))
            }
            Output::Yaml => say(written(&found, format::to_yaml)?.join("---\n")),
            Output::Toml => say(written(&found, format::to_toml)?.join("\n")),
        }
    }
}

fn as_table(found: &[ResourceReport]) -> String {
    let row = |resource: &ResourceReport| {
        let place = resource.place.clone().unwrap_or_else(|| "(defaults)".to_owned());
        vec![resource.kind.clone(), resource.namespace.clone(), resource.name.clone(), place]
    };
    table(&["KIND", "NAMESPACE", "NAME", "WRITTEN AT"], found.iter().map(row).collect(), "no resources")
}

fn written(
    found: &[ResourceReport],
    write: fn(&baremesh_registry::resource::Resource) -> String,
) -> anyhow::Result<Vec<String>> {
    let one = |report: &ResourceReport| {
        let resource = format::decode(&report.document).ok();
        let resource = resource.with_context(|| {
            let (kind, name) = (&report.kind, &report.name);
            format!("{kind} {name} is from a newer version of baremesh: `-o json` shows it as it is")
        });
        Ok(write(&resource?))
    };
    found.iter().map(one).collect()
}
