//! A peer that nobody here wrote (PyPI's h2, tests/peers/malformed_hbone.py) shows a member's certificate and then says
//! what no agent would say.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use baremesh_tests::{Process, exit, exit_code_of, output_of, run, wait_until};
use serde_json::Value;

use crate::pair::{Pair, WEB_ID, because, connections_of};
use crate::peer::{authority, certificate_file};

/// What an agent's memory may grow by under all of it.
const MAX_GROWTH: u64 = 64 << 20;

/// What comes of each case: any of these, before any ` after`.
const EXPECTED: &[(&str, &[&str])] = &[
    ("connect", &["status 200"]),
    ("get", &["status 400"]),
    ("post", &["status 400"]),
    ("no-port", &["status 400"]),
    ("port-zero", &["status 400"]),
    ("port-too-large", &["status 400", "reset 1"]),
    ("user-information", &["status 400", "reset 1"]),
    // What is no request at all by RFC 9113, section 8.1.1, is a stream error of type PROTOCOL_ERROR.
    ("empty-authority", &["status 400", "reset 1"]),
    ("no-authority", &["status 400", "reset 1"]),
    ("two-authorities", &["reset 1", "goaway 1"]),
    ("extended", &["status 400", "reset 1"]),
    ("with-path", &["status 400", "reset 1"]),
    ("unknown-pseudo-header", &["reset 1", "goaway 1"]),
    ("transfer-encoding", &["status 400", "reset 1"]),
    ("line-break-in-a-header", &["reset 1", "goaway 1"]),
    ("upper-case-header", &["reset 1", "goaway 1"]),
    ("early-data", &["status 200 and echo"]),
    ("early-data-refused", &["status 503"]),
    ("oversized-headers", &["status 431", "reset 1", "reset 11", "goaway 11"]),
    ("continuation-flood", &["goaway 11", "goaway 1", "closed"]),
    ("empty-continuation-flood", &["goaway 11", "goaway 1", "closed"]),
    ("rapid-reset", &["goaway 11", "closed"]),
    ("rapid-reset-refused", &["goaway 11", "closed"]),
    ("open-and-reset", &["goaway 11", "closed"]),
    // Answered one by one, or not read any further: either way nothing piles up.
    ("ping-flood", &["open", "closed", "goaway 11"]),
    ("settings-flood", &["open", "closed", "goaway 11"]),
    ("data-on-stream-zero", &["goaway 1", "closed"]),
    ("data-on-an-idle-stream", &["goaway 1", "goaway 5", "closed"]),
    ("window-overflow", &["goaway 3", "closed"]),
    ("even-stream", &["goaway 1", "closed"]),
    // COMPRESSION_ERROR by RFC 9113, section 4.3; the codec says PROTOCOL_ERROR.
    ("broken-compression", &["goaway 9", "goaway 1", "closed"]),
    ("huge-frame", &["goaway 6", "closed"]),
    ("not-http2", &["goaway 1", "closed"]),
    ("other-protocol", &["refused", "closed"]),
];

/// Floods that are ended as soon as they are seen, and after how many frames at the latest.
const LIMITS: &[(&str, u32)] = &[("continuation-flood", 200), ("empty-continuation-flood", 200)];

/// Floods of streams that are given up. How many frames were sent until their end was heard of says something of the wire;
/// what counts is how many of them the agent took up.
const GIVEN_UP: [&str; 3] = ["rapid-reset", "rapid-reset-refused", "open-and-reset"];

/// Streams of a flood that an agent takes up before it ends the tunnel: those that are given up (`MAX_GIVEN_UP_IN_TUNNEL`),
/// those that are under way meanwhile (`CROWD`), and those that the codec has and nobody has heard of (`MAX_RESET_UNHEARD`).
const MAX_TAKEN_UP: usize = 800 + 200 + 400;
/// As many more for each second that it takes: what is given up now and then is forgiven (`FORGIVEN_EVERY`).
const FORGIVEN_A_SECOND: usize = 50;

/// The memory of a process.
fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a field");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

#[test]
fn malformed_requests_are_refused_and_other_tunnels_go_on() {
    let pair = Pair::new("malformed");
    let found = run({
        let mut python = pair.web.host.command("python3");
        python.args(["-c", "import h2"]);
        python
    });
    assert!(
        found.status.success(),
        "this story needs python3 with h2: `pip install h2`, or Debian's python3-h2"
    );
    let echo = pair.serve("echo", 7000);
    let held = pair.web.host.spawn("hold", pair.web.host.shop(["hold", "echo", "7000"]));
    held.wait_for_output("open");
    let before = memory(pair.store.agent_pid());

    let said_in = |cases: &[&str]| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/malformed_hbone.py");
        let mut peer = pair.web.host.command("python3");
        peer.arg(script).args(["--address", &pair.store.host.v4().to_string()]);
        peer.arg("--certificate").arg(certificate_file(&pair.web, "web"));
        peer.arg("--root").arg(pair.mesh.control.path("/var/lib/baremesh/ca/root.crt"));
        peer.args(["--server-name", "echo.default.mesh.internal"]);
        peer.args(["--authority", &authority(pair.store.host.v4(), 7000)]);
        peer.args(["--other-authority", &authority(pair.store.host.v4(), 22)]);
        output_of({
            peer.args(cases);
            peer
        }) + "\n"
    };
    let others: Vec<_> =
        EXPECTED.iter().map(|(case, _)| *case).filter(|case| !GIVEN_UP.contains(case)).collect();
    let mut said = said_in(&others);
    for flood in GIVEN_UP {
        let (before, started) = (taken_up(&pair, &echo), Instant::now());
        said += &said_in(&[flood]);
        let most = MAX_TAKEN_UP + FORGIVEN_A_SECOND * started.elapsed().as_secs() as usize;
        let mut after = taken_up(&pair, &echo);
        wait_until("nothing of the flood is under way", || {
            let (now, was) = (taken_up(&pair, &echo), after);
            after = now;
            thread::sleep(Duration::from_millis(200));
            now == was
        });
        let (streams, connections) = (after.0 - before.0, after.1 - before.1);
        assert!((1..=most).contains(&streams), "{flood}: {streams} streams were taken up, {most} may be");
        assert!(connections <= most, "{flood}: it reached the program {connections} times, {most} may be");
    }
    let outcomes: Vec<_> = said.lines().filter_map(|line| line.split_once(": ")).collect();
    let mut wrong = Vec::new();
    for (case, expected) in EXPECTED {
        let outcome =
            outcomes.iter().find(|(name, _)| name == case).map_or("missing", |(_, outcome)| outcome);
        let (what, after) = outcome.split_once(" after ").unwrap_or((outcome, "0"));
        let limit = LIMITS.iter().find(|(name, _)| name == case).map_or(u32::MAX, |(_, limit)| *limit);
        if !expected.contains(&what) || after.parse::<u32>().map_or(true, |after| after > limit) {
            wrong.push(format!("{case}: {outcome}, expected {expected:?} within {limit}"));
        }
    }
    assert_eq!(wrong, [""; 0], "all that was said: {said}");
    assert_eq!(outcomes.len(), EXPECTED.len(), "every case is judged: {said}");

    assert!(held.is_running(), "{}", held.stdout());
    let given_up = |line: &Value| {
        let why = line["connection_termination_details"].as_str().unwrap_or_default();
        because("flooded")(line) && line["source_principal"] == WEB_ID && why.contains("given up")
    };
    pair.store.wait_for_log("who opened and reset", given_up);
    assert_eq!(exit_code_of(pair.call("echo", 7000, "hello")), exit::DONE);
    let grown = memory(pair.store.agent_pid()).saturating_sub(before);
    assert!(grown < MAX_GROWTH, "{grown} bytes more");
}

/// How many streams the called side has taken up so far, each of which has a line, and how many connections its program.
fn taken_up(pair: &Pair, echo: &Process) -> (usize, usize) {
    let lines = pair.store.log().iter().filter(|line| line["source_principal"] == WEB_ID).count();
    (lines, connections_of(echo))
}
