use std::os::unix::fs::PermissionsExt;

use clap::Parser;

use super::super::{Cli, Verb};
use super::*;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn directories(&self) -> Directories {
        let below = |name: &str| self.0.path().join(name);
        Directories { config: below("etc"), state: below("state"), runtime: below("run") }
    }

    fn init(&self, arguments: &str) -> Result<(), String> {
        let path = |name: &str| self.0.path().join(name).display().to_string();
        let line = format!(
            "baremesh --config-dir {} --state-dir {} --run-dir {} init {arguments}",
            path("etc"),
            path("state"),
            path("run")
        );
        let cli = Cli::try_parse_from(line.split_whitespace()).map_err(|error| error.to_string())?;
        let Verb::Init(init) = cli.verb else { panic!("it is init") };
        init.run(&cli.global).map_err(|error| format!("{error:#}"))
    }

    fn entries(&self, directory: &Path) -> Vec<String> {
        let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
        let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directories().registry().join(name);
        fs::create_dir_all(self.directories().registry()).expect("a directory");
        fs::write(&path, text).expect("written");
        path
    }
}

#[test]
fn makes_a_mesh_once() {
    let place = Place::new();
    place.init("--trust-domain mesh.test --service orders.shop").expect("made");
    let directories = place.directories();
    assert_eq!(place.entries(&directories.state), ["ca", "control.db"]);
    assert_eq!(place.entries(&directories.registry()), ["mesh.toml", "mtls.toml"]);
    let mode = fs::metadata(directories.state.join(DATABASE)).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let loaded = ResourceDirectory::new(&directories.registry()).load().expect("a set");
    assert_eq!(loaded.mesh.config.trust_domain.as_str(), "mesh.test");
    assert_eq!(loaded.warnings, []);
    let policy = &loaded.mesh.peer_authentications[0];
    assert_eq!(policy.mode, Some(baremesh_model::peer_authentication::MtlsMode::Strict));
    let authority = Authority::open(directories.authority(), SystemTime::now()).expect("an authority");
    assert_eq!(authority.trust_domain().as_str(), "mesh.test");
    let tokens = Ledger::open(&directories.state.join(DATABASE)).expect("a ledger").tokens().expect("tokens");
    assert_eq!(tokens[0].invitation.grants, [Grant::parse("orders.shop").expect("a grant")]);

    let refused = place.init("").expect_err("there is one");
    assert!(refused.contains("already") && refused.contains("token create"), "{refused}");
}

#[test]
fn an_attempt_that_fails_leaves_nothing() {
    let place = Place::new();
    let directories = place.directories();
    let missing = place.0.path().join("missing.pem").display().to_string();
    place.init(&format!("--ca-cert {missing} --ca-key {missing}")).expect_err("no such file");
    assert_eq!(place.entries(&directories.state), [""; 0]);
    assert_eq!(place.entries(&directories.registry()), [""; 0]);
    // What a killed attempt left is cleared away.
    fs::create_dir(directories.state.join(".init-x")).expect("a directory");
    place.init("").expect("made");
    assert_eq!(place.entries(&directories.state), ["ca", "control.db"]);
}

#[test]
fn takes_what_the_operator_wrote() {
    let place = Place::new();
    let mine = place.write("mine.toml", "[[MeshConfig]]\ntrustDomain = \"mine.test\"\n");
    let refused = place.init("--trust-domain other.test").expect_err("they disagree");
    assert!(refused.contains("mine.toml:1"), "{refused}");
    fs::write(&mine, "[[MeshConfig]]\ntrustDomain = 7\n").expect("written");
    assert!(place.init("").expect_err("a bad file").contains("mine.toml:2"));
    assert_eq!(place.entries(&place.directories().state), [""; 0]);
    fs::write(&mine, "[[MeshConfig]]\ntrustDomain = \"mine.test\"\n").expect("written");
    place.init("").expect("made");
    assert_eq!(place.entries(&place.directories().registry()), ["mine.toml", "mtls.toml"]);
}

#[test]
fn does_not_write_over_files_nor_over_a_ledger() {
    let place = Place::new();
    place.write("mesh.toml", "# nothing yet\n");
    assert!(place.init("").expect_err("taken").contains("mesh.toml"));
    fs::remove_file(place.directories().registry().join("mesh.toml")).expect("removed");
    fs::create_dir_all(place.directories().state).expect("a directory");
    fs::write(place.directories().state.join(DATABASE), "").expect("written");
    assert!(place.init("").expect_err("a ledger").contains("gone"));
}

#[test]
fn a_mesh_in_consul_has_its_control_server_told_so() {
    let place = Place::new();
    let refused = place.init("--consul http://10.0.0.1:8500").expect_err("in plaintext over a network");
    assert!(refused.contains("allow_plaintext"), "{refused}");
    assert!(!place.directories().authority().exists());
    place.init("--consul http://127.0.0.1:8500").expect("made");
    let settings = crate::control::consul_settings(&place.directories().config).expect("read");
    assert_eq!(settings, Some(baremesh_registry::consul::Settings::default()));
}
