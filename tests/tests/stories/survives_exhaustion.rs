//! An agent that runs out of something, or is turned against itself, serves on.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use baremesh_tests::{Member, Process, exit, exit_code_of, output_of, wait_until};
use serde_json::Value;

use crate::pair::{Pair, because, is_cut, virtual_addresses};
use crate::peer::agent_of;

/// Descriptors of the agent in these stories.
const DESCRIPTORS: usize = 1024;
/// How soon an agent has recovered when the load is gone, on a machine that has other load.
const RECOVERY: Duration = Duration::from_secs(20);

/// Starts the member's agent anew, with few descriptors.
fn with_few_descriptors(member: &Member) -> Process {
    member.stop_agent();
    let limited = member.host.sh(&format!("ulimit -n {DESCRIPTORS}; exec baremesh agent"));
    let agent = member.host.spawn("agent", limited);
    member.wait_until_ready();
    agent
}

/// Clock ticks of processor time (proc(5)), 100 a second.
fn processor_time(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<_> = stat.rsplit_once(") ").expect("a name").1.split(' ').collect();
    fields[11..13].iter().filter_map(|field| field.parse::<u64>().ok()).sum()
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map(Iterator::count).unwrap_or_default()
}

/// What a program on the host is told when it asks whether the agent is ready.
fn readiness(member: &Member) -> Option<String> {
    use std::io::Write as _;
    let mut stream = member.host.connect(([127, 0, 0, 1], 15021)).ok()?;
    stream.set_read_timeout(Some(RECOVERY)).ok()?;
    stream.write_all(b"GET /healthz/ready HTTP/1.1\r\nHost: story\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.lines().next().map(str::to_owned)
}

/// More connections from `web` than the agents have descriptors for. Nobody reads what comes on them.
fn flood(pair: &Pair, port: u16) -> Process {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/flood.py");
    let mut python = pair.web.host.command("python3");
    let address = virtual_addresses(&pair.web, "source")[0].to_string();
    python.arg(script).args([&address, &port.to_string(), &(2 * DESCRIPTORS).to_string(), "100000"]);
    let flood = pair.web.host.spawn("flood", python);
    flood.wait_for_output("held");
    flood
}

#[test]
fn survives_a_flood_of_connections_with_few_descriptors() {
    let pair = Pair::new("descriptors");
    pair.serve("source", 7000);
    pair.serve("echo", 7001);
    for member in [&pair.web, &pair.store] {
        let agent = with_few_descriptors(member);
        wait_until("calls are carried", || exit_code_of(pair.call("echo", 7001, "hello")) == exit::DONE);
        let before = descriptors(agent.pid());
        let flood = flood(&pair, 7000);
        member.wait_for_log("what is beyond the limit", because("overloaded"));
        assert!(descriptors(agent.pid()) > DESCRIPTORS / 4, "it does carry many");

        let (started, used) = (Instant::now(), processor_time(agent.pid()));
        while started.elapsed() < Duration::from_secs(3) {
            assert_eq!(readiness(member).as_deref(), Some("HTTP/1.1 200 OK"), "readiness answers");
            assert!(member.status().is_some(), "the administration socket answers");
            assert!(!member.metrics().is_empty(), "metrics are served");
            std::thread::sleep(Duration::from_millis(100));
        }
        let spent = processor_time(agent.pid()) - used;
        let share = spent as f64 / started.elapsed().as_secs_f64();
        assert!(share < 50.0, "{spent} ticks in {:?}: it spins", started.elapsed());

        flood.kill();
        flood.wait();
        let gone = Instant::now();
        wait_until("calls are carried again", || {
            exit_code_of(pair.call("echo", 7001, "hello")) == exit::DONE
        });
        assert!(gone.elapsed() < RECOVERY, "{:?}", gone.elapsed());
        wait_until("its descriptors are free again", || descriptors(agent.pid()) <= before + 10);
        agent.terminate();
        agent.wait();
        member.start();
    }
}

#[test]
fn an_agent_that_is_led_to_itself_refuses_at_one_hop() {
    let pair = Pair::new("itself");
    pair.serve("echo", 7000);
    let own = pair.web.host.v4();
    for (name, port, tunnel) in
        [("out", 15001, "plain"), ("in", 15006, "plain"), ("wire", 15008, "plain"), ("mesh", 7777, "hbone")]
    {
        pair.mesh.apply(&format!(
            "[[Service]]\nname = \"{name}\"\nports = [{{ port = 7777, targetPort = {port} }}]\n\
             [[WorkloadEntry]]\nname = \"{name}\"\nservice = \"{name}\"\naddress = \"{own}\"\ntunnel = \"{tunnel}\"\n"
        ));
        pair.web.wait_for_endpoints(&format!("{name}.default"), 1);
    }
    pair.web.wait_for_endpoints("echo.default", 1);
    assert_eq!(exit_code_of(pair.call("echo", 7000, "hello")), exit::DONE);
    let before = descriptors(pair.web.agent_pid());
    for turn in 0..5 {
        for name in ["out", "in", "wire", "mesh"] {
            let call = pair.web.host.shop(["call", "--timeout", "25", name, "7777", "hello"]);
            assert!(is_cut(call), "{name}, turn {turn}");
            assert!(descriptors(pair.web.agent_pid()) <= before + 10, "{name}");
        }
    }
    assert_eq!(exit_code_of(pair.call("echo", 7000, "hello")), exit::DONE);
    let lines = pair.web.log();
    let loops =
        |line: &&Value| line["upstream_cluster"].as_str().is_some_and(|host| !host.starts_with("echo"));
    let dialled = lines.iter().filter(|line| line["reporter"] == "source").filter(loops);
    let callers: BTreeSet<_> =
        dialled.clone().map(|line| line["downstream_remote_address"].to_string()).collect();
    assert_eq!(dialled.count(), callers.len(), "each is a connection of the caller's, none the agent's own");
    let arrived = lines.iter().filter(|line| line["reporter"] == "destination").count();
    assert!(arrived <= callers.len(), "{arrived} arrived of {}", callers.len());
}

#[test]
fn quiet_peers_are_closed_at_the_deadline_and_hold_up_nobody() {
    let pair = Pair::with_config("quiet", "[proxy]\nhandshake_timeout_seconds = 2\n");
    pair.serve("echo", 7000);
    let stranger = pair.mesh.net.host("stranger", 3);
    let mut quiet: Vec<_> =
        (0..50).map(|_| stranger.connect(agent_of(&pair.store.host)).expect("it listens")).collect();
    let started = Instant::now();
    assert_eq!(output_of(pair.call("echo", 7000, "meanwhile")), "meanwhile");
    for stream in &mut quiet {
        stream.set_read_timeout(Some(baremesh_tests::WAIT_BOUND)).expect("a timeout");
        // Closed, or reset: nothing was said that could be lost.
        assert!(matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_)));
    }
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    wait_until("each is in the log", || {
        pair.store.log().iter().filter(|line| because("handshake_failed")(line)).count() >= quiet.len()
    });
}
