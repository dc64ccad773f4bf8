//! What HTTP is besides heads: connections that are kept, old versions, bodies of all kinds, and what is not a body.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;

use baremesh_tests::{Member, WAIT_BOUND};

use crate::pair::virtual_addresses;
use crate::town::{REVIEWS, Town};

const GIBIBYTE: u64 = 1 << 30;

/// What an agent may hold at most while bodies of a gibibyte go through it.
const HELD: u64 = 64 << 20;

#[test]
fn connections_are_kept_on_both_sides() {
    let town = Town::new("kept", 1);
    let [v1] = town.open();
    let check = |options: &[&str], connections: u64| {
        let options = [&["--count", "50"], options].concat();
        let answers = town.web.host.get_all(&options, REVIEWS);
        assert!(answers.iter().all(baremesh_tests::Answer::is_ok), "{answers:?}");
        assert_eq!(answers.iter().map(|answer| answer.connection).max(), Some(connections), "{options:?}");
    };
    check(&["--keep"], 1);
    check(&["--keep", "--http2", "--parallel", "5"], 1);
    check(&[], 50);
    let connections = v1.requests().iter().filter_map(|request| request["connection"].as_u64()).max();
    assert!(connections < Some(20), "150 requests came over {connections:?} connections");
    // A client's wish to close its own connection does not reach the instance's.
    let answer = town.web.host.get(&["--header", "Connection: close"], REVIEWS);
    assert_eq!((answer.status, answer.header("connection").as_str()), (Some(200), "close"), "{answer:?}");
    assert_eq!(answer.account()["headers"].get("connection"), None);
}

#[test]
fn every_version_meets_every_other() {
    for (name, protocol, spoken) in [("to-one", "http", "HTTP/1.1"), ("to-two", "http2", "HTTP/2.0")] {
        let town = Town::new(name, 1);
        let [_v1] = town.open_with(protocol, |_| Vec::new());
        for (option, version) in [("--http1.0", "HTTP/1.0"), ("--keep", "HTTP/1.1"), ("--http2", "HTTP/2.0")]
        {
            let get = |further: &[&str], path: &str| {
                town.web.host.get(&[&[option], further].concat(), &format!("{REVIEWS}{path}"))
            };
            let answer = get(&["--data", "order tea"], "/a%20b?q=%31");
            // Envoy answers HTTP/1.0 with HTTP/1.1, and RFC 9110 (section 6.2) has the highest minor version be sent.
            let answered = [version, if version == "HTTP/1.0" { "HTTP/1.1" } else { version }];
            assert!(answered.contains(&answer.version.as_str()), "{answer:?}");
            let account = answer.account();
            assert_eq!((&account["version"], &account["authority"]), (&spoken.into(), &"reviews".into()));
            assert_eq!((&account["path"], &account["query"]), (&"/a%20b".into(), &"q=%31".into()));
            assert_eq!(account["body"]["text"], "order tea");
            let answer = get(&["--method", "HEAD"], "/?size=77");
            assert_eq!((answer.status, answer.length), (Some(200), 0), "{answer:?}");
            assert_eq!(answer.header("content-length"), "77");
            let answer = get(&[], "/?size=100000&chunked");
            assert_eq!((answer.status, answer.length, answer.error), (Some(200), 100_000, None));
            let answer = get(&[], "/?status=204");
            assert_eq!((answer.status, answer.length), (Some(204), 0), "{answer:?}");
        }
    }
}

#[test]
fn trailers_arrive_on_both_sides() {
    for (name, protocol) in [("trailers-one", "http"), ("trailers-two", "http2")] {
        let town = Town::new(name, 1);
        let [_v1] = town.open_with(protocol, |_| Vec::new());
        for option in ["--keep", "--http2"] {
            let options = [option, "--header", "TE: trailers", "--data", "x", "--trailer", "x-end: yes"];
            let answer = town.web.host.get(&options, &format!("{REVIEWS}/?trailers&size=9"));
            assert_eq!(answer.trailers.get("x-checksum"), Some(&vec![answer.checksum.clone()]), "{answer:?}");
            let account = town.web.host.get(&options, REVIEWS).account();
            assert_eq!(account["body"]["trailers"]["x-end"][0], "yes", "{account}");
        }
    }
}

#[test]
fn a_body_waits_for_its_hundred() {
    let town = Town::new("continue", 1);
    let [_v1] = town.open();
    let answer = town.web.host.get(&["--expect", "--data", "late"], REVIEWS);
    assert_eq!((answer.status, &answer.informational[..]), (Some(200), &[100][..]), "{answer:?}");
    assert_eq!(answer.account()["body"]["text"], "late");
}

#[test]
fn an_answer_may_come_before_the_request_has_ended() {
    let town = Town::new("early", 1);
    let [v1] = town.open();
    for option in ["--keep", "--http2"] {
        // The answer comes while half of the body is still to be sent.
        let slow = [option, "--size", "200000", "--body-pause", "1000", "--timeout", "60"];
        let answer = town.web.host.get(&slow, &format!("{REVIEWS}/early?early"));
        assert_eq!(answer.status, Some(200), "{answer:?}");
        assert!(town.web.host.get(&[option], REVIEWS).is_ok());
    }
    assert_eq!(v1.seen("/early"), 2);
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let town = Town::new("pipelined", 1);
    let [_v1] = town.open();
    let address = SocketAddr::new(virtual_addresses(&town.web, "reviews")[0], 80);
    let mut stream = town.web.host.connect(address).expect("the agent takes it");
    stream.set_read_timeout(Some(WAIT_BOUND)).expect("a timeout");
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: reviews\r\n\r\n");
    let all = [request("/a?delay=0.5"), request("/b"), request("/c?status=404")].concat();
    stream.write_all(all.as_bytes()).expect("it is taken");
    let mut lines = BufReader::new(stream).lines();
    let mut statuses = Vec::new();
    while statuses.len() < 3 {
        let line = lines.next().expect("more").expect("it stands");
        // Bodies end with a line's end, so that every head begins a line.
        statuses.extend(line.strip_prefix("HTTP/1.1 ").map(|rest| rest[..3].to_owned()));
    }
    assert_eq!(statuses, ["200", "200", "404"]);
}

#[test]
fn a_gibibyte_goes_both_ways_through_agents_that_keep_little_of_it() {
    let town = Town::new("http-gibibyte", 1);
    let [_v1] = town.open();
    let size = GIBIBYTE.to_string();
    for option in ["--keep", "--http2"] {
        let up = town.web.host.get(&[option, "--timeout", "300", "--size", &size], REVIEWS);
        let account = up.account();
        assert_eq!(account["body"]["length"], GIBIBYTE, "{up:?}");
        let down = town.web.host.get(&[option, "--timeout", "300"], &format!("{REVIEWS}/?size={size}"));
        assert_eq!((down.length, &down.checksum), (GIBIBYTE, &text(&account["body"]["checksum"])));
        for member in [&town.web, &town.hosts[0]] {
            let peak = peak_of(member);
            assert!(peak < HELD, "{option}: {peak} bytes on {}", member.host.name());
        }
    }
}

fn text(value: &serde_json::Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The most memory that the agent ever had (proc(5)).
fn peak_of(member: &Member) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", member.agent_pid())).expect("the agent runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    peak.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}
