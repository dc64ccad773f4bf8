//! The processes that outlive the one that started them: the guard, and the one that takes a change back. The test
//! binary plays every part: `agent_part` is an agent, `lasting_part` what `baremesh capture …` runs.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

use super::confirm;
use super::guard::{self, Guard};
use super::namespace::{eventually, namespace_test, plan, service, sh};
use super::{Capture, CaptureError, CapturePlan, DnsCapture, State, Strictness, WhenGone};
use crate::descriptors;

/// The runtime directory of the agent to play.
const AGENT_PART: &str = "BAREMESH_TEST_AGENT";
/// The arguments of the command to play.
const LASTING_PART: &str = "BAREMESH_TEST_ARGUMENTS";

/// Where an agent is asked for its first listener, which is kept.
const KEPT: &str = "kept.sock";

/// The ports that the agent and its guard hold.
const HELD: [&str; 3] = ["[::]:15001", "[::]:15006", "[::]:15008"];

/// A file that takes the place of the `baremesh` binary.
fn baremesh(directory: &Path) -> PathBuf {
    let path = directory.join("baremesh");
    let test = std::env::current_exe().expect("a test has a binary");
    let part = "capture::process_tests::lasting_part --exact --nocapture --test-threads=1";
    let script = format!("#!/bin/sh\n{LASTING_PART}=\"$*\" exec {} {part}\n", test.display());
    fs::write(&path, script).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("made executable");
    path
}

#[test]
fn lasting_part() {
    let Ok(arguments) = std::env::var(LASTING_PART) else { return };
    let words: Vec<OsString> = arguments.split_whitespace().map(OsString::from).collect();
    let [capture, part, rest @ ..] = &words[..] else { panic!("{arguments}") };
    assert_eq!(capture, "capture");
    match part.to_str() {
        Some("guard") => drop(guard::run(rest).expect("the guard does its duty")),
        Some("revert") => drop(confirm::run(rest).expect("the change is taken back, or stays")),
        _ => panic!("{arguments}"),
    }
}

fn closed_plan() -> CapturePlan {
    CapturePlan { local: vec![service("orders", 8080, Strictness::Strict, WhenGone::Closed)], ..plan() }
}

#[test]
fn agent_part() {
    let Some(runtime) = std::env::var_os(AGENT_PART).map(PathBuf::from) else { return };
    let tcp = HELD.map(|address| TcpListener::bind(address).expect("bound"));
    let udp = UdpSocket::bind("127.0.0.1:15053").expect("bound");
    let mut listeners: Vec<_> = tcp.iter().map(AsFd::as_fd).collect();
    listeners.push(udp.as_fd());
    let mut capture = Capture::new(&runtime).expect("nft and ip are installed");
    capture.apply(&closed_plan()).expect("applied");
    let mut guard = Guard::spawn(&baremesh(&runtime), &capture.gone_file(), &listeners).expect("a guard");
    if let Ok(kept) = UnixStream::connect(runtime.join(KEPT)) {
        descriptors::give(&kept, &listeners[..1]).expect("given");
        guard.share().expect("told");
    }
    writeln!(io::stdout(), "up {}", guard.pid()).expect("written");
    let _ = io::stdin().read(&mut [0]);
    guard.dismiss().expect("dismissed");
    // The test looks at what the dismissed guard left before the listeners close.
    writeln!(io::stdout(), "dismissed").expect("written");
    let _ = io::stdin().read(&mut [0]);
}

/// An agent with its guard, and the guard's process.
struct Agent {
    process: Child,
    guard: Pid,
    lines: BufReader<std::process::ChildStdout>,
}

impl Agent {
    fn start(runtime: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("a test has a binary"));
        command.args(["capture::process_tests::agent_part", "--exact", "--nocapture", "--test-threads=1"]);
        command.env(AGENT_PART, runtime).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("started");
        let lines = BufReader::new(process.stdout.take().expect("a pipe"));
        let guard = Pid::from_child(&process);
        let mut agent = Self { process, guard, lines };
        let up = agent.wait_for("up ");
        agent.guard = up.trim().parse().ok().and_then(Pid::from_raw).expect("a process");
        agent
    }

    /// Waits for a line that contains `word`, and returns what follows it.
    fn wait_for(&mut self, word: &str) -> String {
        let mut line = String::new();
        while self.lines.read_line(&mut line).expect("read") > 0 {
            if let Some((_, rest)) = line.split_once(word) {
                return rest.to_owned();
            }
            line.clear();
        }
        panic!("the agent ended before it said `{word}`");
    }

    fn nudge(&mut self) {
        self.process.stdin.as_mut().expect("a pipe").write_all(b"\n").expect("written");
    }
}

namespace_test! {
    fn the_guard_closes_what_a_killed_agent_leaves() {
        let runtime = TempDir::new().expect("a directory");
        let capture = Capture::new(runtime.path()).expect("nft and ip are installed");
        let mut agent = Agent::start(runtime.path());
        let guard = agent.guard;
        assert_eq!(capture.status().expect("status").state, State::InPlace);
        for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
            kill_process(guard, signal).expect("the guard is there");
        }
        let group = rustix::process::getpgid(Some(guard)).expect("the guard is there");
        assert_eq!(group, guard, "the guard leads a group of its own");
        agent.process.kill().expect("killed");
        // The first moment at which somebody else gets a port, the rules do not lead there any more.
        let mut stolen = None;
        eventually("the ports are free", || {
            stolen = TcpListener::bind(HELD[0]).ok();
            stolen.is_some()
        });
        assert_eq!(capture.status().expect("status").state, State::Gone);
        assert!(TcpStream::connect("240.240.7.7:80").is_err());
        agent.process.wait().expect("reaped");
        eventually("the guard has ended", || test_kill_process(guard).is_err() || is_zombie(guard));
    }
}

namespace_test! {
    fn what_waits_in_line_at_listeners_that_are_kept_is_answered_by_the_next_agent() {
        let runtime = TempDir::new().expect("a directory");
        let capture = Capture::new(runtime.path()).expect("nft and ip are installed");
        let keeper = UnixListener::bind(runtime.path().join(KEPT)).expect("bound");
        let mut agent = Agent::start(runtime.path());
        let (channel, _) = keeper.accept().expect("the agent");
        let kept = TcpListener::from(descriptors::take(&channel, 1).expect("given").remove(0));
        let mut waiting = TcpStream::connect("240.240.7.7:80").expect("it waits in line");
        waiting.write_all(b"hello").expect("sent");
        agent.process.kill().expect("killed");
        eventually("the guard has ended", || test_kill_process(agent.guard).is_err() || is_zombie(agent.guard));
        assert_eq!(capture.status().expect("status").state, State::Gone);
        assert!(TcpStream::connect("240.240.7.7:80").is_err(), "what comes now is refused");
        // Sent while the rules for a gone agent stand.
        waiting.write_all(b" again").expect("sent");
        let (mut accepted, _) = kept.accept().expect("who waited");
        accepted.write_all(b"good day").expect("sent");
        let (mut heard, mut answer) = ([0; 11], [0; 8]);
        accepted.read_exact(&mut heard).expect("what was sent");
        waiting.read_exact(&mut answer).expect("an answer");
        assert_eq!((&heard, &answer), (b"hello again", b"good day"));
        agent.process.wait().expect("reaped");
    }
}

/// In these namespaces nobody may be there to reap an orphan.
fn is_zombie(process: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
}

namespace_test! {
    fn a_dismissed_guard_changes_nothing() {
        let runtime = TempDir::new().expect("a directory");
        let capture = Capture::new(runtime.path()).expect("nft and ip are installed");
        let mut agent = Agent::start(runtime.path());
        let guard = agent.guard;
        agent.nudge();
        agent.wait_for("dismissed");
        assert!(test_kill_process(guard).is_err(), "the guard was reaped");
        assert_eq!(capture.status().expect("status").state, State::InPlace);
        // And its copies of the listeners are closed with the agent's.
        agent.process.kill().expect("killed");
        agent.process.wait().expect("reaped");
        for address in HELD {
            TcpListener::bind(address).expect("free at once");
        }
        assert_eq!(capture.status().expect("status").state, State::InPlace);
    }
}

namespace_test! {
    fn a_guard_that_cannot_start_is_an_error() {
        let runtime = TempDir::new().expect("a directory");
        let gone = runtime.path().join("gone.nft");
        for exe in ["/bin/false", "/no/such/file"] {
            let error = Guard::spawn(Path::new(exe), &gone, &[]).expect_err("no guard");
            assert!(matches!(error, CaptureError::NotReady { process: "guard", .. }), "{error}");
        }
    }
}

/// Whether a process still waits for the confirmation of a change.
fn is_waiting(runtime: &Path) -> bool {
    let wanted = format!("{LASTING_PART}=capture revert {}", runtime.display());
    let processes = fs::read_dir("/proc").expect("a list of processes").filter_map(Result::ok);
    let environments = processes.filter_map(|entry| fs::read(entry.path().join("environ")).ok());
    environments.into_iter().any(|environment| String::from_utf8_lossy(&environment).contains(&wanted))
}

namespace_test! {
    fn an_unconfirmed_change_takes_itself_back() {
        let runtime = TempDir::new().expect("a directory");
        let exe = baremesh(runtime.path());
        let capture = || Capture::new(runtime.path()).expect("nft and ip are installed");
        let state = || capture().status().expect("status").state;
        let unconfirmed = |plan: &CapturePlan| {
            capture().apply_with_confirm(&exe, plan, Duration::from_secs(2)).expect("applied");
            let again = capture().apply_with_confirm(&exe, plan, Duration::from_secs(2));
            assert!(matches!(again, Err(CaptureError::Unconfirmed { .. })), "one at a time");
            assert_eq!(state(), State::InPlace);
        };
        let taken_back = || {
            // In this order: the one file becomes the other.
            eventually("it is taken back", || !capture().is_unconfirmed() && !runtime.path().join("reverting.nft").exists());
            assert!(matches!(capture().confirm(), Err(CaptureError::NothingToConfirm)));
        };
        // To nothing.
        unconfirmed(&closed_plan());
        taken_back();
        assert_eq!(state(), State::Missing);
        assert_eq!(sh("nft list tables"), "");
        assert!(!capture().gone_file().exists());
        // To the rules that stood before, to the last element.
        capture().apply(&closed_plan()).expect("applied");
        let before = || sh("nft -s list table inet baremesh | grep -v packets; ip route show table all; ip -6 route show table local");
        let (rules, gone) = (before(), fs::read_to_string(capture().gone_file()).expect("a file"));
        let other = CapturePlan { virtual_v4: "240.0.0.0/16".parse().expect("a range"), dns: DnsCapture::Port53, ..plan() };
        unconfirmed(&other);
        assert_ne!(before(), rules);
        taken_back();
        assert_eq!((before(), fs::read_to_string(capture().gone_file()).expect("a file")), (rules, gone));
        assert_eq!(state(), State::InPlace);
        // Not if it is confirmed.
        unconfirmed(&other);
        let rules = before();
        capture().confirm().expect("confirmed");
        assert!(matches!(capture().confirm(), Err(CaptureError::NothingToConfirm)));
        eventually("the process that waited has ended", || !is_waiting(runtime.path()));
        assert_eq!(before(), rules);
    }
}
