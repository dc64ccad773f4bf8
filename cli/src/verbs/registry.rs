//! `baremesh registry`: the mesh's resources from one registry to another.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, bail};
use baremesh_model::mesh::ResourceId;
use baremesh_registry::consul::Client;
use baremesh_registry::consul::client::plain_dial;
use baremesh_registry::consul::resources::{Changes, ResourceStore, Set};
use baremesh_registry::files::ResourceDirectory;
use baremesh_registry::format::source::{Origin, Source, Span};
use baremesh_registry::format::{decode, encode, to_toml};
use baremesh_registry::resource::{Located, Resource};
use baremesh_registry::set::{Loaded, assemble};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::aside::Aside;
use super::{Global, block_on};
use crate::control::shared_ledger::settings;
use crate::output::{Output, remark, say, say_json, to_unix, usage};

const LONG_ABOUT: &str = "\
Copy all resources from a directory of files to Consul's key-value store, or back. Where resources are is written
`files:DIR`, or `consul:FILE` with a file that has the table `[consul]`: addresses, token_file, prefix and the like.

The set is read whole and must hold together. It is put in place in one step, and read back: readers see what was there
before or all of it, never a part. What is there already is left alone unless --replace is given; a directory that is
replaced stays beside the new one, as DIR.before-migrate-TIME.";

const EXAMPLES: &str = "\
Examples:
  baremesh registry migrate --from files:/etc/baremesh/registry --to consul:/etc/baremesh/control.toml --dry-run
  baremesh registry migrate --from files:/etc/baremesh/registry --to consul:/etc/baremesh/control.toml
  baremesh registry migrate --from consul:/etc/baremesh/control.toml --to files:/etc/baremesh/registry --replace";

/// Move the mesh's resources between registries
#[derive(Debug, Args)]
pub struct Registry {
    #[command(subcommand)]
    verb: RegistryVerb,
}

#[derive(Debug, Subcommand)]
enum RegistryVerb {
    Migrate(Migrate),
}

/// Copy all resources from files to Consul, or back
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_help = EXAMPLES)]
struct Migrate {
    /// Where they are: `files:DIR` or `consul:FILE`
    #[arg(long, value_name = "REGISTRY", value_parser = place)]
    from: Place,
    /// Where they are to be: `files:DIR` or `consul:FILE`
    #[arg(long, value_name = "REGISTRY", value_parser = place)]
    to: Place,
    /// Take away what is there already
    #[arg(long)]
    replace: bool,
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Where resources are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Files(PathBuf),
    Consul(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files(path) => write!(f, "files:{}", path.display()),
            Self::Consul(path) => write!(f, "consul:{}", path.display()),
        }
    }
}

fn place(text: &str) -> Result<Place, String> {
    match text.split_once(':') {
        Some(("files", path)) if !path.is_empty() => Ok(Place::Files(path.into())),
        Some(("consul", path)) if !path.is_empty() => Ok(Place::Consul(path.into())),
        _ => Err(format!(
            "`{text}` is no registry: write files:DIR, or consul:FILE with a file that has [consul]"
        )),
    }
}

/// Resources as they are compared: each as one JSON text, by `Kind/namespace/name`.
type Canonical = BTreeMap<String, Value>;

impl Registry {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let RegistryVerb::Migrate(verb) = self.verb;
        block_on(verb.run(global.output))
    }
}

impl Migrate {
    async fn run(self, output: Output) -> anyhow::Result<()> {
        if self.from == self.to {
            return Err(usage("--from and --to are the same"));
        }
        let resources = match &self.from {
            Place::Files(path) => read_files(path)?,
            Place::Consul(file) => read_store(&store(file)?).await?.1,
        };
        let wanted: Canonical =
            resources.iter().map(|resource| (id(&resource.id()), encode(resource))).collect();
        let before = match &self.to {
            Place::Files(path) if is_empty(path)? => Canonical::new(),
            Place::Files(path) => canonical(&read_files(path)?),
            // What cannot be understood there is still something that is there.
            Place::Consul(file) => store(file)?.read(&Set::default()).await?.unwrap_or_default().values,
        };
        let effects = effects(&before, &wanted);
        let changed = effects.iter().filter(|(_, effect)| **effect != "unchanged").count();
        if !self.dry_run && changed > 0 {
            if !before.is_empty() && !self.replace {
                bail!(
                    "{} holds {} resources already, and nothing was changed: look at them with --dry-run, and give --replace \
                     to have these in their place",
                    self.to,
                    before.len()
                );
            }
            match &self.to {
                Place::Files(path) => write_files(path, &resources, &wanted)?,
                Place::Consul(file) => write_store(&store(file)?, &before, &wanted).await?,
            }
        }
        if output == Output::Json {
            let changes: Vec<_> =
                effects.iter().map(|(id, effect)| json!({ "resource": id, "effect": effect })).collect();
            return say_json(&json!({ "changes": changes, "dryRun": self.dry_run }));
        }
        let would = if self.dry_run { "would be " } else { "" };
        for (id, effect) in effects.iter().filter(|(_, effect)| **effect != "unchanged") {
            say(format_args!("{id} {would}{effect}"))?;
        }
        let done = if self.dry_run { "would be" } else { "are" };
        remark(format_args!("{} resources {done} in {}, {changed} of them changed", wanted.len(), self.to));
        Ok(())
    }
}

fn id(id: &ResourceId) -> String {
    format!("{}/{}/{}", id.kind, id.key.namespace, id.key.name)
}

fn canonical(resources: &[Resource]) -> Canonical {
    resources.iter().map(|resource| (id(&resource.id()), encode(resource))).collect()
}

/// What becomes of each resource.
fn effects(before: &Canonical, wanted: &Canonical) -> BTreeMap<String, &'static str> {
    let gone = before.keys().filter(|id| !wanted.contains_key(*id)).map(|id| (id.clone(), "deleted"));
    let there = wanted.iter().map(|(id, value)| {
        let effect = match before.get(id) {
            None => "created",
            Some(found) if found == value => "unchanged",
            Some(_) => "changed",
        };
        (id.clone(), effect)
    });
    there.chain(gone).collect()
}

/// The resources that were written: the mesh's own settings are not among them where nobody wrote any.
fn written(loaded: &Loaded) -> Vec<Resource> {
    loaded.resources().into_iter().filter(|resource| loaded.places.contains_key(&resource.id())).collect()
}

fn read_files(path: &Path) -> anyhow::Result<Vec<Resource>> {
    let loaded = ResourceDirectory::new(path).load();
    Ok(written(&loaded.with_context(|| format!("{} holds no set of resources", path.display()))?))
}

fn store(file: &Path) -> anyhow::Result<ResourceStore> {
    Ok(ResourceStore::new(Client::new(settings(file)?, plain_dial())))
}

/// The set in Consul, as it stands and as resources. Nothing is left out: what this version does not understand it does not
/// copy.
async fn read_store(store: &ResourceStore) -> anyhow::Result<(Set, Vec<Resource>)> {
    let set =
        store.read(&Set::default()).await?.context("there are no resources in Consul below this prefix")?;
    let mut located = Vec::new();
    for (id, value) in &set.values {
        let resource = decode(value).map_err(|findings| {
            let first = findings.first().map(ToString::to_string).unwrap_or_default();
            anyhow::anyhow!("{id} in Consul is not understood, is it of a newer version? {first}")
        })?;
        let origin = Origin { source: Arc::new(Source::new(id, "")), span: Span::default() };
        located.push(Located { value: resource, origin });
    }
    let loaded = assemble(located, Vec::new()).context("what is in Consul does not hold together")?;
    Ok((set, written(&loaded)))
}

async fn write_store(store: &ResourceStore, before: &Canonical, wanted: &Canonical) -> anyhow::Result<()> {
    let plan = |found: &Set| {
        if found.values != *before {
            return Err(
                "somebody changed the resources in Consul meanwhile, and nothing was written: try again",
            );
        }
        let gone = found.values.keys().filter(|id| !wanted.contains_key(*id)).map(|id| (id.clone(), None));
        let there = wanted.iter().map(|(id, value)| (id.clone(), Some(value.clone())));
        Ok((gone.chain(there).collect::<Changes>(), ()))
    };
    store.change(plan).await?;
    let (set, _) = read_store(store).await.context("what was written was read back")?;
    if set.values != *wanted {
        bail!("what stands in Consul is not what was written: does somebody else change it?");
    }
    Ok(())
}

fn is_empty(directory: &Path) -> anyhow::Result<bool> {
    match fs::read_dir(directory) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error).with_context(|| format!("{} cannot be read", directory.display())),
    }
}

/// Makes the directory aside, reads it back, and moves it into its place.
fn write_files(directory: &Path, resources: &[Resource], wanted: &Canonical) -> anyhow::Result<()> {
    let shown = directory.display();
    let parent = directory.parent().filter(|parent| parent.is_dir());
    let parent = parent.with_context(|| format!("{shown} has no directory to be in"))?;
    let aside = Aside::new(parent, ".migrate-")?;
    let made = aside.path().join("registry");
    fs::create_dir(&made)?;
    for resource in resources {
        let key = resource.key();
        let name = format!("{}-{}-{}.toml", resource.kind().name().to_lowercase(), key.namespace, key.name);
        let file =
            fs::File::create_new(made.join(&name)).with_context(|| format!("{name} cannot be made"))?;
        std::io::Write::write_all(&mut &file, to_toml(resource).as_bytes())?;
        file.sync_all()?;
    }
    if canonical(&read_files(&made)?) != *wanted {
        bail!(
            "what was written reads as something else, and nothing was changed: this is a fault of baremesh"
        );
    }
    fs::File::open(&made)?.sync_all()?;
    let kept = directory.with_file_name(format!(
        "{}.before-migrate-{}",
        directory.file_name().unwrap_or_default().to_string_lossy(),
        to_unix(SystemTime::now())
    ));
    // A rename takes the place of a directory that is empty, and of none that is not.
    let replaces = !is_empty(directory)?;
    if replaces {
        fs::rename(directory, &kept).with_context(|| format!("{shown} cannot be moved aside"))?;
    }
    if let Err(error) = fs::rename(&made, directory) {
        if replaces {
            fs::rename(&kept, directory).with_context(|| format!("{shown} stands in {}", kept.display()))?;
        }
        return Err(error).with_context(|| format!("{shown} cannot be put in place, and is as it was"));
    }
    fs::File::open(parent)?.sync_all()?;
    if replaces {
        remark(format_args!("what was there before is in {}", kept.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read() {
        assert_eq!(place("files:/a:b"), Ok(Place::Files("/a:b".into())));
        assert_eq!(place("consul:c.toml"), Ok(Place::Consul("c.toml".into())));
        for bad in ["", "/a", "files:", "consul:", "http://127.0.0.1:8500"] {
            assert!(place(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn files_are_put_in_place_whole_and_what_was_there_is_kept() {
        let root = tempfile::tempdir().expect("a directory");
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        fs::create_dir(&from).expect("made");
        fs::write(from.join("a.toml"), "[[Service]]\nname = \"a\"\nports = [{ port = 80 }]\n")
            .expect("written");
        let resources = read_files(&from).expect("a set");
        assert_eq!(resources.len(), 1, "the settings that nobody wrote are not written");
        write_files(&to, &resources, &canonical(&resources)).expect("written");
        assert_eq!(read_files(&to).expect("a set"), resources);
        // Again, over what is there.
        fs::write(to.join("b.toml"), "[[Service]]\nname = \"b\"\nports = [{ port = 80 }]\n")
            .expect("written");
        write_files(&to, &resources, &canonical(&resources)).expect("written");
        assert_eq!(read_files(&to).expect("a set"), resources);
        let names = fs::read_dir(root.path()).expect("read").map(|entry| entry.expect("read").file_name());
        let kept: Vec<_> =
            names.filter(|name| name.to_string_lossy().starts_with("to.before-migrate-")).collect();
        assert_eq!(kept.len(), 1);
        assert_eq!(read_files(&root.path().join(&kept[0])).expect("a set").len(), 2);
    }
}
