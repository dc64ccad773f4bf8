//! The control state in one file, a tar archive: the authority, what it remembers, and the resources. Its first entry lists
//! the others with their hashes, so that what is damaged or cut short is found before anything is put in place.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail, ensure};
use aws_lc_rs::digest;
use baremesh_agent::config::Directories;
use baremesh_ca::file::{PUBLIC, SECRET};
use baremesh_ca::ledger::Ledger;
use serde::{Deserialize, Serialize};

use super::DATABASE;
pub use super::federation::DIRECTORY as FEDERATION;
pub use super::last_good::FILE as LAST_GOOD;
use crate::output::to_unix;

/// The list of what is in an archive, its first entry.
const MANIFEST: &str = "manifest.json";
/// The form of archives that this version writes, and the only one that it reads.
const FORMAT: u32 = 1;
/// What a list may be long: 10,000 resource files take a tenth.
const MAX_MANIFEST: u64 = 16 << 20;
/// How often reading begins again where files change meanwhile.
const ATTEMPTS: usize = 5;
/// The authority's directory, and that of the resources, in an archive.
const AUTHORITY: &str = "ca";
const RESOURCES: &str = "registry";

/// What an archive holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    format: u32,
    /// The version of this program that wrote it.
    pub version: String,
    /// When, in seconds since 1970.
    pub created: u64,
    /// By path.
    files: BTreeMap<String, Member>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Member {
    bytes: u64,
    mode: u32,
    sha256: String,
}

/// Files by their paths in an archive.
type Tree = BTreeMap<String, (u32, Vec<u8>)>;

impl Manifest {
    /// How many files there are of the authority, of resources, and in all.
    pub fn count(&self) -> (usize, usize, usize) {
        let below = |directory: &str| {
            self.files.keys().filter(|path| path.split('/').next() == Some(directory)).count()
        };
        (below(AUTHORITY), below(RESOURCES), self.files.len())
    }
}

/// Writes the control state to `out`. The server may be running: what changes meanwhile is read again. `aside` is an empty
/// directory for a copy of the database.
pub fn write(directories: &Directories, aside: &Path, out: impl Write) -> anyhow::Result<Manifest> {
    let copy = aside.join(DATABASE);
    let tree = read_at_rest(directories, &copy)?;
    let mut files: BTreeMap<_, _> = tree
        .iter()
        .map(|(path, (mode, bytes))| {
            let member = Member { bytes: bytes.len() as u64, mode: *mode, sha256: hash(&**bytes)? };
            Ok((path.clone(), member))
        })
        .collect::<anyhow::Result<_>>()?;
    let bytes = fs::metadata(&copy)?.len();
    let member = Member { bytes, mode: SECRET, sha256: hash(File::open(&copy)?)? };
    files.insert(DATABASE.to_owned(), member);
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let manifest = Manifest { format: FORMAT, version, created: to_unix(SystemTime::now()), files };

    let mut archive = tar::Builder::new(out);
    let listed = serde_json::to_vec_pretty(&manifest)?;
    append(&mut archive, MANIFEST, (SECRET, listed.len() as u64), &manifest, &*listed)?;
    for (path, (mode, bytes)) in &tree {
        append(&mut archive, path, (*mode, bytes.len() as u64), &manifest, &**bytes)?;
    }
    append(&mut archive, DATABASE, (SECRET, bytes), &manifest, File::open(&copy)?)?;
    archive.into_inner()?.flush()?;
    Ok(manifest)
}

fn append(
    archive: &mut tar::Builder<impl Write>,
    path: &str,
    (mode, bytes): (u32, u64),
    manifest: &Manifest,
    data: impl Read,
) -> anyhow::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(mode);
    header.set_mtime(manifest.created);
    archive.append_data(&mut header, path, data).with_context(|| format!("{path} cannot be written"))
}

/// The files as they are while nothing changes them, and the database of that time at `copy`.
fn read_at_rest(directories: &Directories, copy: &Path) -> anyhow::Result<Tree> {
    let mut before = read_all(directories)?;
    for _ in 0..ATTEMPTS {
        if copy.exists() {
            fs::remove_file(copy)?;
        }
        Ledger::copy(&directories.state.join(DATABASE), copy)?;
        let after = read_all(directories)?;
        if before == after {
            return Ok(after);
        }
        before = after;
    }
    bail!(
        "the files of the authority or of the resources go on changing: try again when nobody changes them"
    );
}

fn read_all(directories: &Directories) -> anyhow::Result<Tree> {
    let authority = directories.authority();
    ensure!(
        authority.exists(),
        "there is no mesh on this host ({} is missing): a backup is made on the control host",
        authority.display()
    );
    let mut tree = Tree::new();
    read_below(&authority, AUTHORITY, &mut tree)?;
    read_below(&directories.registry(), RESOURCES, &mut tree)?;
    // Roots of other trust domains as they were read last, where there are any.
    let federation = directories.state.join(FEDERATION);
    if federation.exists() {
        read_below(&federation, FEDERATION, &mut tree)?;
    }
    if let Ok(bytes) = fs::read(directories.state.join(LAST_GOOD)) {
        tree.insert(LAST_GOOD.to_owned(), (PUBLIC, bytes));
    }
    Ok(tree)
}

fn read_below(directory: &Path, name: &str, tree: &mut Tree) -> anyhow::Result<()> {
    let failed = || format!("{} cannot be read", directory.display());
    for entry in fs::read_dir(directory).with_context(failed)? {
        let path = entry.with_context(failed)?.path();
        let (Some(own), Ok(found)) = (path.file_name().and_then(|own| own.to_str()), fs::metadata(&path))
        else {
            continue;
        };
        let inside = format!("{name}/{own}");
        if found.is_dir() {
            read_below(&path, &inside, tree)?;
        } else if found.is_file() {
            let bytes = fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
            tree.insert(inside, (found.permissions().mode() & 0o777, bytes));
        }
    }
    Ok(())
}

/// Takes an archive apart: resources go to `registry` below `resources`, everything else to `state`, both of them empty
/// directories. Nothing of it is taken unless all of it is as it was written.
pub fn read(archive: impl Read, state: &Path, resources: &Path) -> anyhow::Result<Manifest> {
    let mut archive = tar::Archive::new(archive);
    let mut entries = archive.entries().context("this is no backup")?;
    let first = entries.next().context("this is no backup: it is empty")?.context("this is no backup")?;
    ensure!(
        first.path().is_ok_and(|path| path == Path::new(MANIFEST)),
        "this is no backup: it does not begin with {MANIFEST}"
    );
    let mut listed = Vec::new();
    first.take(MAX_MANIFEST).read_to_end(&mut listed)?;
    let manifest: Manifest =
        serde_json::from_slice(&listed).with_context(|| format!("its {MANIFEST} cannot be read"))?;
    ensure!(
        manifest.format == FORMAT,
        "it has format {}, and this version of baremesh knows {FORMAT}: use version {}, which wrote it",
        manifest.format,
        manifest.version
    );
    let mut missing: BTreeMap<&str, &Member> =
        manifest.files.iter().map(|(path, member)| (&**path, member)).collect();
    for entry in entries {
        let mut entry = entry.context("it is cut short, or damaged")?;
        let path = entry.path().ok().and_then(|path| Some(path.to_str()?.to_owned())).unwrap_or_default();
        ensure!(entry.header().entry_type().is_file(), "`{path}` in it is no file");
        let Some(member) = missing.remove(&*path) else {
            bail!("`{path}` is in it twice, or not in its list")
        };
        let to = place(&path, state, resources).with_context(|| format!("`{path}` does not belong in it"))?;
        unpack(&mut entry, &to, member).with_context(|| format!("`{path}` in it cannot be taken"))?;
    }
    if let Some((path, _)) = missing.first_key_value() {
        bail!("`{path}` is missing in it: the file was cut short");
    }
    ensure!(manifest.files.contains_key(DATABASE), "{DATABASE} is missing in its list");
    Ok(manifest)
}

/// Where a file of an archive goes; nowhere if it is none that is written by `write`.
fn place(path: &str, state: &Path, resources: &Path) -> Option<PathBuf> {
    let parts: Option<Vec<_>> = Path::new(path)
        .components()
        .map(|part| if let Component::Normal(part) = part { part.to_str() } else { None })
        .collect();
    match parts?.as_slice() {
        [AUTHORITY | FEDERATION, _, ..] => Some(state.join(path)),
        [RESOURCES, _, ..] => Some(resources.join(path)),
        [file] if [DATABASE, LAST_GOOD].contains(file) => Some(state.join(path)),
        _ => None,
    }
}

fn unpack(entry: &mut impl Read, to: &Path, member: &Member) -> anyhow::Result<()> {
    fs::create_dir_all(to.parent().context("it has no directory")?)?;
    let mut file = File::options().write(true).create_new(true).mode(member.mode & 0o777).open(to)?;
    let copied = std::io::copy(&mut entry.take(member.bytes + 1), &mut file)?;
    file.set_permissions(fs::Permissions::from_mode(member.mode & 0o777))?;
    file.sync_all()?;
    let found = hash(File::open(to)?)?;
    ensure!(
        copied == member.bytes && found == member.sha256,
        "its {} bytes are not those that were written",
        copied
    );
    Ok(())
}

/// The SHA-256, in hexadecimal.
fn hash(mut from: impl Read) -> std::io::Result<String> {
    let (mut context, mut buffer) = (digest::Context::new(&digest::SHA256), vec![0; 1 << 16]);
    loop {
        match from.read(&mut buffer)? {
            0 => break,
            read => context.update(&buffer[..read]),
        }
    }
    Ok(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}
