//! `baremesh delete`.

use baremesh_model::mesh::{Kind, ResourceId};
use baremesh_model::name::{Key, Label};
use baremesh_registry::resource::mesh_config_key;
use clap::Args;

use super::place::{Done, Place, changes_json, remark_version, say_changes, shown};
use super::server::Remote;
use super::{Global, block_on, values};
use crate::control::resources::Mode;
use crate::output::{Output, remark, say, say_json};

const EXAMPLES: &str = "\
Examples:
  baremesh delete AuthorizationPolicy orders -n shop
  baremesh delete HostGrant web --dry-run";

/// Take a resource out of force, if the rest holds together without it
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Delete {
    #[command(flatten)]
    remote: Remote,
    /// Service, WorkloadEntry, VirtualService, PeerAuthentication, AuthorizationPolicy, DestinationRule,
    /// RequestAuthentication, RateLimit, ServiceEntry, HostGrant or MeshConfig
    #[arg(value_parser = values::kind)]
    kind: Kind,
    /// Its name; of a MeshConfig any, as there is one
    #[arg(value_parser = Label::new)]
    name: Label,
    /// Its namespace
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default", value_parser = Label::new)]
    namespace: Label,
    /// Say whether it could be deleted, and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Delete {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let key = match self.kind {
            // A mesh has one, whatever its name.
            Kind::MeshConfig => mesh_config_key(),
            _ => Key::new(self.namespace, self.name),
        };
        let id = ResourceId { kind: self.kind, key };
        let place = Place::of(&global.directories(), &self.remote)?;
        let mode = Mode::of_dry_run(self.dry_run);
        let changes = shown(global.output, block_on(place.delete(&id, mode)), &Done::Changed(&[]))?;
        if global.output == Output::Json {
            return say_json(&changes_json(&[changes]));
        }
        if mode == Mode::DryRun {
            return say(format_args!("{id} can be deleted"));
        }
        say(say_changes(&changes))?;
        remark_version(&changes);
        if let Some(consequence) = place.consequence(&changes) {
            remark(consequence);
        }
        Ok(())
    }
}
