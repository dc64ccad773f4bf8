//! Much at once: streams that stall, readers that are slow, thousands of connections.

use std::fs;
use std::time::Instant;

use baremesh_tests::{Member, output_of, wait_until};

use crate::pair::Pair;

/// What an agent may hold of one stream whose reader has stopped: the stream's window, once on its way in and once in
/// the relay's read, the send buffer of TLS and HTTP/2 in front of it.
const HELD_BY_A_STALLED_STREAM: u64 = 2 << 20;

/// What an agent may hold of a connection that is quiet.
const HELD_BY_A_QUIET_CONNECTION: u64 = 16 << 10;

/// What an agent may have besides: code, tables, stacks and what the allocator keeps, in a debug build.
const HELD_OTHERWISE: u64 = 64 << 20;

/// Streams of a tunnel (hbone.md: as many as gateways allow).
const STREAMS: usize = 100;

#[test]
fn ninety_nine_stalled_streams_do_not_slow_the_hundredth() {
    let pair = Pair::with_config("stalled", "[proxy]\nworkers = 1\n");
    for (role, port) in [("source", 7000), ("echo", 7001)] {
        pair.store.host.serve(role, [role, &format!("127.0.0.1:{port}")]);
    }
    pair.store.register("shop", ["--port", "7000", "--port", "7001"]);
    pair.web.wait_for_endpoints("shop.default", 2);
    let fetch = || {
        let started = Instant::now();
        let fetched = output_of(pair.web.host.shop(["fetch", "shop", "7000", "50000000"]));
        assert!(fetched.starts_with("moved 50000000 bytes"), "{fetched}");
        started.elapsed()
    };
    let alone = fetch();
    let stalled =
        pair.web.host.spawn("stall", pair.web.host.shop(["stall", "shop", "7000", "100000000", "99"]));
    stalled.wait_for_output(&format!("stalled {}", STREAMS - 1));
    wait_until_quiet(&pair.web);
    let beside = fetch();
    let tunnels = pair
        .web
        .host
        .sh("ss --no-header --numeric --tcp state established '( dport = :15008 )' | wc --lines");
    assert_eq!(output_of(tunnels), "1", "all hundred were in one tunnel");
    assert_eq!(output_of(pair.call("shop", 7001, "after them")), "after them");
    assert!(stalled.is_running(), "{}", stalled.stderr());
    // Times of a busy machine; a stream that has to wait for the stalled ones never ends.
    assert!(beside < alone * 10 + std::time::Duration::from_secs(2), "{beside:?} beside 99, {alone:?} alone");
}

#[test]
fn a_slow_reader_costs_no_more_than_its_share() {
    const READERS: u64 = 20;
    let pair = Pair::new("slow");
    pair.serve("source", 7000);
    let call = |role: &str, count: &[&str]| {
        let words = [&[role, "source", "7000", "1000000000"], count].concat();
        pair.web.host.spawn(role, pair.web.host.shop(words))
    };
    let stalled = call("stall", &["19"]);
    stalled.wait_for_output("stalled 19");
    let slow = call("slow", &[]);
    wait_until("the slow one reads", || open_connections(&pair.web) == READERS as usize);
    for member in [&pair.web, &pair.store] {
        wait_until_memory_stands(member);
        let bound = READERS * HELD_BY_A_STALLED_STREAM + HELD_OTHERWISE;
        let peak = memory(member, "VmHWM");
        assert!(peak < bound, "{peak} bytes on {}, bound {bound}", member.host.name());
    }
    assert!(slow.is_running() && stalled.is_running());
}

#[test]
fn five_thousand_connections_echo_after_the_last_has_opened() {
    let pair = Pair::new("many");
    pair.serve("echo", 7000);
    let many = pair.web.host.shop(["many", "--timeout", "60", "echo", "7000", "5000"]);
    let said = output_of(many);
    assert!(said.contains("opened 5000") && said.ends_with("echoed on 5000 of 5000"), "{said}");
    for member in [&pair.web, &pair.store] {
        wait_until("all of them have ended", || open_connections(member) == 0);
        let (peak, bound) = (memory(member, "VmHWM"), 5000 * HELD_BY_A_QUIET_CONNECTION + HELD_OTHERWISE);
        assert!(peak < bound, "{peak} bytes on {}, bound {bound}", member.host.name());
    }
}

fn open_connections(member: &Member) -> usize {
    let status = member.status().unwrap_or_default();
    status["open_connections"].as_u64().and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX)
}

/// A line of proc(5)'s status in bytes.
fn memory(member: &Member, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", member.agent_pid())).expect("the agent runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).expect("a field");
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kilobytes << 10
}

/// Waits until a value has been the same at many looks, one after another.
fn wait_until_it_stands(what: &str, mut value: impl FnMut() -> u64, slack: u64) {
    let (mut seen, mut looks) = (0, 0);
    wait_until(what, || {
        let now = value();
        looks = if now.abs_diff(seen) <= slack { looks + 1 } else { 0 };
        if looks == 0 {
            seen = now;
        }
        looks >= 50
    });
}

fn wait_until_memory_stands(member: &Member) {
    wait_until_it_stands("memory no longer grows", || memory(member, "VmRSS"), 1 << 20);
}

/// Waits until nothing arrives on the member's interface any more, but keepalives.
fn wait_until_quiet(member: &Member) {
    let received = || {
        let counted =
            output_of(member.host.sh("cat /sys/class/net/eth0/statistics/rx_bytes || ip -s link show eth0"));
        counted.lines().next().and_then(|line| line.parse().ok()).unwrap_or(0)
    };
    wait_until_it_stands("the stalled streams have stalled", received, 4096);
}
