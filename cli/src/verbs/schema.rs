//! `baremesh schema`: JSON Schemas for editors, from the tables that reading checks against.

use baremesh_model::mesh::Kind;
use baremesh_registry::format::{Form, schema};
use clap::Args;

use super::{Global, values};
use crate::control::report::WrittenForm;
use crate::output::say;

const EXAMPLES: &str = "\
Examples:
  baremesh schema > baremesh.toml.schema.json
  baremesh schema --form yaml > baremesh.yaml.schema.json
  baremesh schema VirtualService                of one kind

In an editor: `#:schema ./baremesh.toml.schema.json` on the first line of a TOML file (taplo), or
`# yaml-language-server: $schema=./baremesh.yaml.schema.json` on the first line of a YAML file.";

/// Print a JSON Schema of resources, for editors
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Schema {
    /// Of one kind; of all without
    #[arg(value_parser = values::kind)]
    kind: Option<Kind>,
    /// Of which written form
    #[arg(long, value_enum, default_value = "toml")]
    form: WrittenForm,
}

impl Schema {
    pub(super) fn run(self, _: &Global) -> anyhow::Result<()> {
        let form = match self.form {
            WrittenForm::Toml => Form::Toml,
            WrittenForm::Yaml => Form::Yaml,
        };
        let schema = match self.kind {
            Some(kind) => schema::schema(form, &[kind]),
            None => schema::whole_schema(form),
        };
        say(format_args!("{schema:#}"))
    }
}
