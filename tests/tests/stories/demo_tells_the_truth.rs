//! `baremesh demo --once` holds what it claims, from the binary alone; and where something is broken, it says so.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use baremesh_tests::{binary, is_root, run, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How many claims there are.
const CLAIMS: usize = 7;
/// A uid that no machine gives to a person, and so one without a range in /etc/subuid.
const NOBODY: &str = "65534";

/// A directory to run in, where nothing but `tmp` can be written, with a copy of the binary.
struct Bare(tempfile::TempDir);

impl Bare {
    fn new() -> Self {
        let bare = Self(tempfile::tempdir().expect("a temporary directory"));
        let mode =
            |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
        fs::copy(binary().expect("the binary"), bare.0.path().join("baremesh")).expect("a copy");
        fs::create_dir(bare.0.path().join("tmp")).expect("a directory");
        mode(&bare.0.path().join("tmp"), 0o1777);
        mode(bare.0.path(), 0o555);
        bare
    }

    /// `baremesh` run by `runner`, from here, without a home.
    fn command(&self, runner: &[&str], args: &[&str]) -> Command {
        let program = self.0.path().join("baremesh");
        let mut words =
            runner.iter().map(Path::new).chain([program.as_path()]).chain(args.iter().map(Path::new));
        let mut command = Command::new(words.next().expect("the program at least"));
        command.args(words).current_dir(self.0.path()).env("HOME", "/nonexistent");
        command.env("TMPDIR", self.0.path().join("tmp")).stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn expect_nothing_left(&self) {
        let left: Vec<_> = fs::read_dir(self.0.path().join("tmp")).expect("still there").flatten().collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn expect_every_claim_shown(output: &Output) {
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}: {stdout}{stderr}", output.status);
    let report: Value = serde_json::from_str(&stdout).expect("JSON");
    let checks = report["checks"].as_array().expect("a list");
    assert_eq!((checks.len(), &report["passed"]), (CLAIMS, &Value::Bool(true)), "{stdout}");
    for check in checks {
        let evidence = check["evidence"].as_array().expect("a list");
        assert!(check["passed"] == true && !evidence.is_empty(), "{check}");
    }
}

#[test]
fn every_claim_is_shown_to_whoever_asks() {
    let bare = Bare::new();
    expect_every_claim_shown(&run(bare.command(&[], &["demo", "--once", "--output", "json"])));
    bare.expect_nothing_left();
}

#[test]
fn every_claim_is_shown_to_an_ordinary_user_with_nothing_but_the_binary() {
    baremesh_tests::needs_root!(
        "another uid to run as; the one at hand is shown the same by the story before"
    );
    let bare = Bare::new();
    let nobody = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--"];
    expect_every_claim_shown(&run(bare.command(&nobody, &["demo", "--once", "--output", "json"])));
    bare.expect_nothing_left();
}

#[test]
fn a_missing_tool_is_named_with_its_package() {
    let hide = "for d in $(echo \"$PATH\" | tr : ' ') /usr/sbin /sbin /usr/bin /bin /usr/local/sbin; do \
                test ! -e $d/nft || mount --bind /dev/null $d/nft || exit 99; done; exec \"$@\"";
    let mut runner = vec!["unshare", "--mount", "sh", "-c", hide, "sh"];
    if !is_root() {
        runner.splice(1..1, ["--user", "--map-root-user"]);
    }
    let output = run(Bare::new().command(&runner, &["demo", "--once"]));
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("nft (Debian package nftables)"), "{stderr}");
}

#[test]
fn what_is_broken_is_not_claimed() {
    let bare = Bare::new();
    let mut command = bare.command(&[], &["demo", "--once"]);
    let said = bare.0.path().join("tmp/said");
    let out = fs::File::create(&said).expect("a file");
    let mut demo = command.stdout(out).stderr(Stdio::null()).spawn().expect("it starts");
    wait_until("the mesh is up", || fs::read_to_string(&said).is_ok_and(|said| said.contains("Up after")));
    // Every claim but one needs an answer of the catalog.
    kill_catalog_of(&demo);
    let status = demo.wait().expect("it ends");
    let said_text = fs::read_to_string(&said).expect("a file");
    assert_eq!(status.code(), Some(1), "{said_text}");
    assert!(said_text.contains("FAILED: 7") && !said_text.contains("checks passed"), "{said_text}");
    fs::remove_file(&said).expect("ours");
    bare.expect_nothing_left();
}

fn kill_catalog_of(demo: &Child) {
    let is_catalog = |pid: &i32| {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let parent = format!("PPid:\t{}\n", demo.id());
        read("cmdline").contains("demo-shop\0catalog\0") && read("status").contains(&parent)
    };
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let catalog = pids.find(is_catalog).and_then(Pid::from_raw).expect("the catalog runs");
    kill_process(catalog, Signal::KILL).expect("it is ours");
}
