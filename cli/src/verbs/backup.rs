//! `baremesh backup` and `baremesh restore`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};
use baremesh_agent::config::Directories;
use baremesh_ca::ledger::Ledger;
use baremesh_registry::files::ResourceDirectory;
use clap::Args;
use serde_json::json;

use super::Global;
use super::aside::Aside;
use super::server::Denied;
use crate::control::{self, DATABASE, backup, make_directory};
use crate::output::{Output, remark, say, say_json, to_unix, usage, when};

const LONG_ABOUT: &str = "\
Write the state of the control server to one file: the certificate authority, control.db (hosts, operators, assigned
addresses, revocations, versions and audit) and the resources. On the control host, which may be serving.

The file holds the authority's private keys as they lie on this host, sealed ones sealed: keep it as you keep those. A
root's key that was taken away, keys that come from credentials of systemd, and files outside that resources name
(`bundleFile`, `jwksFile`) are not in it. Hosts keep keys of their own and need no backup.";

const LONG_ABOUT_RESTORE: &str = "\
Put a backup in place, on a host that is to be the control host: `baremesh control` then serves the mesh as it was. Nothing
is put in place unless the file is whole. Tokens that nobody had used are withdrawn, since some may have been used since.

What changed after the backup is not in it: hosts that joined since join anew, and what was revoked since is to be revoked
again. Agents find the control server at the address where they always have, and go on meanwhile.";

/// Write the state of the control server to a file
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT)]
pub struct Backup {
    /// The file, which must not be there yet; only its owner can read it
    file: PathBuf,
}

/// Put a backup of the control server in place
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT_RESTORE)]
pub struct Restore {
    /// The file that `baremesh backup` wrote
    file: PathBuf,
    /// Where there is a mesh on this host already, move its files aside
    #[arg(long)]
    replace: bool,
}

impl Backup {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let directories = global.directories();
        let shown = self.file.display();
        if self.file.exists() {
            return Err(usage(format!("{shown} is there already: name another file")));
        }
        if !directories.authority().exists() {
            bail!(
                "there is no mesh on this host ({} is missing): a backup is made on the control host",
                directories.authority().display()
            );
        }
        let aside = Aside::new(&directories.state, ".backup-")?;
        let parent = match self.file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let failed = || format!("{shown} cannot be written");
        // Its mode is 0600.
        let mut file = tempfile::NamedTempFile::new_in(parent).with_context(failed)?;
        let manifest = backup::write(&directories, aside.path(), file.as_file_mut()).with_context(failed)?;
        file.as_file().sync_all().with_context(failed)?;
        file.persist_noclobber(&self.file).map_err(|error| error.error).with_context(failed)?;
        File::open(parent).and_then(|parent| parent.sync_all()).with_context(failed)?;
        let (authority, resources, files) = manifest.count();
        if global.output == Output::Json {
            return say_json(&json!({ "file": self.file, "created": manifest.created, "files": files }));
        }
        say(format_args!(
            "{shown}: {authority} files of the authority, {resources} of resources, and {DATABASE}\n\
             Whoever reads it can issue every identity of the mesh: keep it where nobody else can."
        ))
    }
}

impl Restore {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let directories = global.directories();
        let shown = self.file.display();
        let archive =
            File::open(&self.file).map_err(|error| usage(format!("{shown} cannot be read: {error}")))?;
        make_directory(&directories.state, 0o700)?;
        make_directory(&directories.config, 0o755)?;
        let _lock = control::lock(&directories.state).context("stop the control server first")?;
        let found = existing(&directories);
        if let Some(first) = found.first().filter(|_| !self.replace) {
            bail!("{} is there: `--replace` moves what is there aside", first.display());
        }
        let (state, config) =
            (Aside::new(&directories.state, ".restore-")?, Aside::new(&directories.config, ".restore-")?);
        let manifest = backup::read(archive, state.path(), config.path())
            .with_context(|| format!("{shown} cannot be restored, and nothing was changed"))?;
        let withdrawn = withdraw_tokens(&state.path().join(DATABASE))?;
        let registry = config.path().join("registry");
        make_directory(&registry, 0o755)?;
        let refused = ResourceDirectory::new(&registry).load().map_err(Denied::from).err();
        let kept = put_in_place(&directories, &found, (state.path(), &registry))?;
        if global.output == Output::Json {
            return say_json(&json!({
                "created": manifest.created, "version": manifest.version, "tokensWithdrawn": withdrawn, "movedAside": kept,
            }));
        }
        say(format_args!(
            "The control state of {} is in place: start `baremesh control` (systemctl start baremesh-control).",
            when(manifest.created)
        ))?;
        if withdrawn > 0 {
            remark(format_args!(
                "{withdrawn} tokens that nobody had used were withdrawn: `baremesh token create` makes others"
            ));
        }
        if let Some(kept) = kept {
            remark(format_args!("What was there before is in {}", kept.display()));
        }
        if let Some(refused) = refused {
            remark(format_args!("warning: these resources were refused then, too:\n{refused}"));
        }
        Ok(())
    }
}

/// What a control server has on this host: the resources first, the authority last.
fn existing(directories: &Directories) -> Vec<PathBuf> {
    let registry = directories.registry();
    let has_entries = fs::read_dir(&registry).is_ok_and(|mut entries| entries.next().is_some());
    // A journal of the old database must not be taken for one of the new.
    let of_database = ["-wal", "-shm", ""].map(|end| directories.state.join(format!("{DATABASE}{end}")));
    let resources = has_entries.then_some(registry);
    let rest = of_database.into_iter().chain([
        directories.state.join(backup::LAST_GOOD),
        directories.state.join(backup::FEDERATION),
        directories.authority(),
    ]);
    resources.into_iter().chain(rest.filter(|path| path.exists())).collect()
}

/// Withdraws what nobody has used, as far as is known here.
fn withdraw_tokens(database: &Path) -> anyhow::Result<usize> {
    let ledger = Ledger::open(database)?;
    if ledger.is_shared()? {
        // The log says which of them were used since.
        return Ok(0);
    }
    let unused: Vec<_> = ledger.tokens()?.into_iter().filter(|token| token.redeemed_by.is_none()).collect();
    for token in &unused {
        ledger.delete_token(&token.id)?;
    }
    Ok(unused.len())
}

/// Moves what is there aside, and what was restored into its place; if something fails, back again. Says where the old
/// things are.
fn put_in_place(
    directories: &Directories,
    found: &[PathBuf],
    (state, registry): (&Path, &Path),
) -> anyhow::Result<Option<PathBuf>> {
    let suffix = format!("before-restore-{}", to_unix(SystemTime::now()));
    let aside = directories.state.join(&suffix);
    let mut moves = Vec::new();
    if !found.is_empty() {
        make_directory(&aside, 0o700)?;
    }
    for path in found {
        let to = match *path == directories.registry() {
            // Perhaps on another file system than the state.
            true => directories.config.join(format!("registry.{suffix}")),
            false => aside.join(path.file_name().context("it has a name")?),
        };
        moves.push((path.clone(), to));
    }
    if found.iter().all(|path| *path != directories.registry()) && directories.registry().exists() {
        fs::remove_dir(directories.registry())?;
    }
    moves.push((registry.to_owned(), directories.registry()));
    // The authority makes the mesh exist, so it goes last.
    for name in [backup::LAST_GOOD, backup::FEDERATION, DATABASE, "ca"] {
        let from = state.join(name);
        if from.exists() {
            moves.push((from, directories.state.join(name)));
        }
    }
    for (done, (from, to)) in moves.iter().enumerate() {
        if let Err(error) = fs::rename(from, to) {
            for (from, to) in moves[..done].iter().rev() {
                fs::rename(to, from)
                    .with_context(|| format!("{} is to be moved back to {}", to.display(), from.display()))?;
            }
            return Err(error).with_context(|| {
                format!("{} cannot be moved to {}, and nothing was changed", from.display(), to.display())
            });
        }
    }
    for directory in [&directories.state, &directories.config] {
        File::open(directory)?.sync_all()?;
    }
    Ok((!found.is_empty()).then_some(aside))
}

#[cfg(test)]
mod tests;
