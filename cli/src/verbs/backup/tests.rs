use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use clap::Parser;

use super::super::{Cli, Verb};
use super::*;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    /// With a mesh whose first token nobody has used.
    fn with_mesh(domain: &str) -> Self {
        let place = Self::new();
        place.run(&format!("init --trust-domain {domain}")).expect("made");
        place
    }

    fn directories(&self) -> Directories {
        let below = |name: &str| self.0.path().join(name);
        Directories { config: below("etc"), state: below("state"), runtime: below("run") }
    }

    fn run(&self, arguments: &str) -> Result<(), String> {
        let path = |name: &str| self.0.path().join(name).display().to_string();
        let (etc, state, run) = (path("etc"), path("state"), path("run"));
        let line =
            format!("baremesh --config-dir {etc} --state-dir {state} --run-dir {run} -o json {arguments}");
        let cli = Cli::try_parse_from(line.split_whitespace()).map_err(|error| error.to_string())?;
        let done = match cli.verb {
            Verb::Init(verb) => verb.run(&cli.global),
            Verb::Backup(verb) => verb.run(&cli.global),
            Verb::Restore(verb) => verb.run(&cli.global),
            _ => panic!("another verb"),
        };
        done.map_err(|error| format!("{error:#}"))
    }

    fn backup(&self) -> PathBuf {
        let file = self.0.path().join("mesh.tar");
        self.run(&format!("backup {}", file.display())).expect("written");
        file
    }

    fn restore(&self, file: &Path, more: &str) -> Result<(), String> {
        self.run(&format!("restore {} {more}", file.display()))
    }

    /// Every file but the database and locks, with its mode.
    fn files(&self) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
        fn add(root: &Path, directory: &Path, files: &mut BTreeMap<PathBuf, (u32, Vec<u8>)>) {
            for entry in fs::read_dir(directory).into_iter().flatten() {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    add(root, &path, files);
                    continue;
                }
                let mode = fs::metadata(&path).expect("a file").permissions().mode() & 0o777;
                let own = path.strip_prefix(root).expect("below").to_owned();
                files.insert(own, (mode, fs::read(&path).expect("a file")));
            }
        }
        let mut files = BTreeMap::new();
        for name in ["etc", "state"] {
            add(self.0.path(), &self.0.path().join(name), &mut files);
        }
        files.retain(|path, _| !path.to_string_lossy().contains("/control."));
        files
    }

    fn tokens(&self) -> usize {
        let ledger = Ledger::open(&self.directories().state.join(DATABASE)).expect("a ledger");
        ledger.tokens().expect("tokens").len()
    }
}

#[test]
fn a_mesh_comes_back_whole_without_the_tokens_that_nobody_used() {
    let (here, there) = (Place::with_mesh("mesh.test"), Place::new());
    fs::create_dir(here.directories().registry().join("shop")).expect("a directory");
    fs::write(
        here.directories().registry().join("shop/orders.toml"),
        "[[Service]]\nname = \"orders\"\nports = [{ port = 80 }]\n",
    )
    .expect("written");
    // What is in the database's journal alone counts, and one who is at work in it is not in the way.
    let _open = Ledger::open(&here.directories().state.join(DATABASE)).expect("a ledger");
    let file = here.backup();
    assert_eq!(fs::metadata(&file).expect("a file").permissions().mode() & 0o777, 0o600);
    there.restore(&file, "").expect("restored");
    assert_eq!(here.files(), there.files());
    assert_eq!((here.tokens(), there.tokens()), (1, 0));
    let mode = fs::metadata(there.directories().state.join(DATABASE)).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // No copy of keys is left behind.
    for place in [&here, &there] {
        let mut names: Vec<_> = fs::read_dir(place.directories().state).expect("entries").collect();
        names
            .retain(|entry| entry.as_ref().expect("an entry").file_name().to_string_lossy().starts_with('.'));
        assert!(names.is_empty(), "{names:?}");
    }
    let error = here.run(&format!("backup {}", file.display())).expect_err("it is there");
    assert!(error.contains("is there already"), "{error}");
    let error = there.restore(&file, "").expect_err("a mesh is there");
    assert!(error.contains("--replace"), "{error}");
}

#[test]
fn what_is_there_is_moved_aside_with_its_journal() {
    let (here, there) = (Place::with_mesh("mesh.test"), Place::with_mesh("other.test"));
    let journal = there.directories().state.join(format!("{DATABASE}-wal"));
    fs::write(&journal, "of another database").expect("written");
    let before = there.files();
    there.restore(&here.backup(), "--replace").expect("restored");
    assert!(!journal.exists());
    let moved = |path: &Path| path.to_string_lossy().contains("before-restore-");
    let now = there.files();
    let old: Vec<_> = now.iter().filter(|(path, _)| moved(path)).map(|(_, file)| file).collect();
    for (path, file) in &before {
        assert!(old.contains(&file), "{} is gone", path.display());
    }
    let new: BTreeMap<_, _> = now.iter().filter(|(path, _)| !moved(path)).collect();
    assert_eq!(new, here.files().iter().collect());
}

#[test]
fn a_damaged_file_changes_nothing() {
    let here = Place::with_mesh("mesh.test");
    let file = here.backup();
    let whole = fs::read(&file).expect("a file");
    let there = Place::new();
    let broken = there.0.path().join("broken.tar");
    let check = |bytes: &[u8], what: &str| {
        fs::write(&broken, bytes).expect("written");
        let error = there.restore(&broken, "").expect_err(what);
        assert!(error.contains("cannot be restored, and nothing was changed"), "{what}: {error}");
        assert_eq!(there.files(), BTreeMap::new(), "{what}");
    };
    // The last two blocks only say that it ends.
    for length in (0..whole.len() - 1024).step_by(4096) {
        check(&whole[..length], &format!("cut at {length}"));
    }
    // A bit of each file's contents: they begin behind heads of 512 bytes.
    let mut at = 0;
    while let Some(length) = whole
        .get(at + 124..at + 135)
        .and_then(|text| u64::from_str_radix(std::str::from_utf8(text).ok()?.trim_end_matches('\0'), 8).ok())
    {
        let length = usize::try_from(length).expect("a length");
        if length > 0 && at > 0 {
            let mut bytes = whole.clone();
            bytes[at + 512 + length / 2] ^= 1;
            check(&bytes, &format!("a bit at {at}"));
        }
        at += 512 + length.next_multiple_of(512);
    }
    assert!(at > 5 * 1024, "the heads were not found");
    there.restore(&file, "").expect("the whole one");
}

#[test]
fn nothing_is_written_outside_its_place() {
    let entry = |path: &str, kind: tar::EntryType, bytes: &[u8], archive: &mut tar::Builder<Vec<u8>>| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_entry_type(kind);
        if kind == tar::EntryType::Symlink {
            header.set_link_name("/etc/passwd").expect("a name");
        }
        // Unchecked, as somebody could write it.
        let name = &mut header.as_gnu_mut().expect("GNU's").name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        archive.append(&header, bytes).expect("appended");
    };
    let (file, link) = (tar::EntryType::Regular, tar::EntryType::Symlink);
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    for (path, kind) in [
        ("ca/../../escaped", file),
        ("/escaped", file),
        ("registry", file),
        ("node/node.pem", file),
        ("ca/./../x", file),
        ("registry/link", link),
        ("control.db-wal", file),
    ] {
        let manifest = json!({
            "format": 1, "version": "0", "created": 0, "files": { path: { "bytes": 0, "mode": 0o600, "sha256": empty } },
        });
        let mut archive = tar::Builder::new(Vec::new());
        entry("manifest.json", file, manifest.to_string().as_bytes(), &mut archive);
        entry(path, kind, b"", &mut archive);
        let there = Place::new();
        let hostile = there.0.path().join("hostile.tar");
        fs::write(&hostile, archive.into_inner().expect("written")).expect("written");
        let error = there.restore(&hostile, "").expect_err(path);
        assert!(error.contains("does not belong in it") || error.contains("is no file"), "{path}: {error}");
        assert_eq!(there.files(), BTreeMap::new(), "{path}");
        assert!(!there.0.path().join("escaped").exists(), "{path}");
    }
}

#[test]
fn a_server_that_runs_keeps_its_state_and_a_move_that_fails_is_undone() {
    let (here, there) = (Place::with_mesh("mesh.test"), Place::with_mesh("other.test"));
    let file = here.backup();
    let before = there.files();
    let lock = control::lock(&there.directories().state).expect("held");
    let error = there.restore(&file, "--replace").expect_err("it runs");
    assert!(error.contains("stop the control server first"), "{error}");
    drop(lock);
    assert_eq!(there.files(), before);
    // The authority is in the way, as if it had come into being meanwhile.
    let fresh = Place::new();
    let directories = fresh.directories();
    for path in ["state/ca/x", "etc", "aside/ca", "aside/registry"] {
        fs::create_dir_all(fresh.0.path().join(path)).expect("a directory");
    }
    let aside = fresh.0.path().join("aside");
    fs::write(aside.join(DATABASE), "").expect("written");
    let error = put_in_place(&directories, &[], (&aside, &aside.join("registry"))).expect_err("in the way");
    assert!(format!("{error:#}").contains("nothing was changed"), "{error:#}");
    assert!(aside.join(DATABASE).exists() && aside.join("registry").exists());
    assert!(!directories.state.join(DATABASE).exists() && !directories.registry().exists());
}
