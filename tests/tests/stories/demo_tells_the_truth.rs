//! `baremesh demo --once` holds what it claims, from the binary alone; and where something is broken, it says so.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use baremesh_tests::{binary, is_root, output_of, run, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How many claims there are.
const CLAIMS: usize = 13;
/// How long a demo is waited for: longer than it allows itself, so that it says what it waited for.
const DEMO_BOUND: Duration = Duration::from_secs(330);
/// How often it is looked at.
const POLL: Duration = Duration::from_millis(20);
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

impl Drop for Bare {
    fn drop(&mut self) {
        // Otherwise an ordinary user could not remove what is in it.
        let _ = fs::set_permissions(self.0.path(), fs::Permissions::from_mode(0o755));
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
    let mut demo = Watched::start(&bare, &["demo", "--once"]);
    demo.said_until("Up after");
    // The last two claims need an answer of the catalog, and come long after it is gone; the first may be shown before.
    kill_catalog_of(&demo.child);
    let status = demo.child.wait().expect("it ends");
    let said = demo.said();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("FAILED: 12  ") && said.contains("FAILED: 13  "), "{said}");
    assert!(!said.contains("checks passed"), "{said}");
    bare.expect_nothing_left();
}

/// A claim, and resources under which it does not hold.
struct Untrue {
    title: &'static str,
    file: &'static str,
    example: &'static str,
    /// What the example says, and what is said in its place.
    otherwise: (&'static str, &'static str),
    /// What the demo has to say of it.
    said: &'static str,
}

macro_rules! untrue {
    ($title:literal, $file:literal, $otherwise:expr, $said:literal) => {
        Untrue {
            title: $title,
            file: $file,
            example: include_str!(concat!("../../../examples/demo/", $file)),
            otherwise: $otherwise,
            said: $said,
        }
    };
}

/// Each claim about HTTP.
const UNTRUE: [Untrue; 6] = [
    untrue!(
        "a tenth of the requests goes to a canary",
        "canary.toml",
        ("weight = 10", "weight = 25"),
        "that is no tenth"
    ),
    untrue!(
        "a request's header chooses the version",
        "by-header.toml",
        ("{ exact = \"jason\" }", "{ prefix = \"jas\" }"),
        "the requests of jasmine go astray"
    ),
    untrue!(
        "a retry hides an instance that fails",
        "retries.toml",
        ("retryOn = \"503\"", "retryOn = \"reset\""),
        "web sees the failure"
    ),
    untrue!(
        "an instance that fails is left out, and comes back",
        "outliers.toml",
        ("consecutive5xxErrors = 3", "consecutive5xxErrors = 0"),
        "is not left out"
    ),
    untrue!(
        "a mirror gets copies, and holds nothing up",
        "mirror.toml",
        ("value = 100", "value = 0"),
        "v2 sees the copy"
    ),
    untrue!(
        "a caller is held to its rate limit, and no other is",
        "rate-limit.toml",
        ("requests = 5,", "requests = 50,"),
        "where 5 may be served"
    ),
];

#[test]
fn each_claim_about_http_fails_where_it_does_not_hold() {
    let (bare, resources) = (Bare::new(), tempfile::tempdir().expect("a temporary directory"));
    for untrue in &UNTRUE {
        let (so, otherwise) = untrue.otherwise;
        assert!(untrue.example.contains(so), "{} has no {so}", untrue.file);
        let changed = untrue.example.replacen(so, otherwise, 1);
        fs::write(resources.path().join(untrue.file), changed).expect("ours");
    }
    let resources = resources.path().to_str().expect("a path in UTF-8");
    let output = run(bare.command(&[], &["demo", "--once", "--output", "json", "--resources", resources]));
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{stdout}{stderr}");
    let report: Value = serde_json::from_str(&stdout).expect("JSON");
    let checks = report["checks"].as_array().expect("a list");
    assert_eq!((checks.len(), &report["passed"]), (CLAIMS, &Value::Bool(false)), "{stdout}");
    for check in checks {
        let untrue = UNTRUE.iter().find(|untrue| check["title"] == untrue.title);
        assert_eq!(check["passed"], untrue.is_none(), "{check}");
        if let Some(Untrue { otherwise: (_, otherwise), said, .. }) = untrue {
            let failure = check["failure"].as_str().unwrap_or_default();
            assert!(failure.contains(said), "{said:?} is not said: {check}");
            assert!(check["applied"].as_str().is_some_and(|text| text.contains(otherwise)), "{check}");
        }
    }
    let failed = checks.iter().filter(|check| check["passed"] == false).count();
    assert_eq!(failed, UNTRUE.len(), "{stdout}");
    bare.expect_nothing_left();
}

#[test]
fn it_stays_until_it_is_told_to_end_and_leaves_nothing() {
    let bare = Bare::new();
    let mut demo = Watched::start(&bare, &["demo"]);
    demo.said_until("Up after");
    demo.said_until("control server dies");
    let lines = demo.said_until("a shell on a host");
    let status =
        lines.lines().find(|line| line.ends_with(" control baremesh status")).expect("a line to try");
    let mut shell = Command::new("sh");
    shell.args(["-c", status]);
    let said = output_of(shell);
    assert!(said.contains("Control server") && said.contains("checkout.default"), "{said}");
    expect_half_for_the_canary(&lines);
    let pid = Pid::from_child(&demo.child);
    kill_process(pid, Signal::TERM).expect("it is ours");
    assert!(demo.child.wait().expect("it ends").success());
    bare.expect_nothing_left();
}

/// The lines to try count a canary, and then move more to it.
#[track_caller]
fn expect_half_for_the_canary(lines: &str) {
    let typed = |part: &str| {
        let line = lines.lines().find(|line| line.contains(part)).expect("a line to try");
        let mut shell = Command::new("sh");
        shell.args(["-c", line]);
        output_of(shell)
    };
    // As `uniq -c` counts: a number, and what it is the number of.
    let for_the_canary = || -> usize {
        let counts = typed("uniq -c");
        let line = counts.lines().find(|line| line.contains("v2")).unwrap_or_default();
        line.split_whitespace().next().and_then(|count| count.parse().ok()).unwrap_or_default()
    };
    let before = for_the_canary();
    // Of a thousand requests, 100 give or take 9.5, and then 500 give or take 15.8.
    assert!((1..250).contains(&before), "{before}");
    typed("half.toml");
    wait_until("half of the requests go to the canary", || for_the_canary() > 350);
}

/// A demo that runs, and what it has written so far, both to standard output and standard error.
struct Watched {
    child: Child,
    out: tempfile::NamedTempFile,
}

impl Watched {
    fn start(bare: &Bare, args: &[&str]) -> Self {
        let out = tempfile::NamedTempFile::new().expect("a file");
        let mut command = bare.command(&[], args);
        let append = || OpenOptions::new().append(true).open(out.path()).expect("the same file");
        command.stdout(append()).stderr(append());
        Self { child: command.spawn().expect("it starts"), out }
    }

    fn said(&self) -> String {
        fs::read_to_string(self.out.path()).expect("a file")
    }

    /// What it has written, as soon as `text` is in it.
    #[track_caller]
    fn said_until(&mut self, text: &str) -> String {
        let deadline = Instant::now() + DEMO_BOUND;
        loop {
            let ended = self.child.try_wait().expect("it is ours");
            let said = self.said();
            if said.contains(text) {
                return said;
            }
            let status = ended.map_or_else(|| "it runs".to_owned(), |status| status.to_string());
            let late = ended.is_some() || Instant::now() >= deadline;
            assert!(!late, "the demo does not say {text:?} ({status}), but:\n{said}");
            thread::sleep(POLL);
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // After a failure: the hosts' keepers end with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
