//! A connection through the mesh ends as it would without one: halves are closed one by one, a reset stays a reset,
//! and many bytes arrive as they were sent.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use baremesh_tests::output_of;
use socket2::SockRef;

use crate::pair::{Pair, because};

const GIBIBYTE: &str = "1073741824";

#[test]
fn a_server_may_speak_first() {
    let pair = Pair::new("first");
    pair.serve("catalog", 7000);
    assert_eq!(output_of(pair.web.host.shop(["greet", "catalog", "7000"])), "catalog: ask for a price");
    pair.serve("echo", 7001);
    assert_eq!(output_of(pair.web.host.shop(["half-close", "echo", "7001", "to the end"])), "to the end");
}

#[test]
fn halves_are_closed_one_by_one() {
    let pair = Pair::new("halves");
    let listener = pair.store.host.listen(([127, 0, 0, 1], 7000));
    pair.register("halves", 7000);
    for turned in [false, true] {
        let (caller, called) = pair.both_ends("halves", &listener);
        let (mut first, mut second) = if turned { (called, caller) } else { (caller, called) };
        first.write_all(b"all that I have to say").expect("it is open");
        first.shutdown(Shutdown::Write).expect("it is open");
        let mut heard = String::new();
        second.read_to_string(&mut heard).expect("a clean end");
        assert_eq!(heard, "all that I have to say");
        // The other half lives on for as long as its side wants, each word on its own.
        for word in ["and", "yet", "more"] {
            second.write_all(word.as_bytes()).expect("the other half is open");
            let mut received = vec![0; word.len()];
            first.read_exact(&mut received).expect("the other half is open");
            assert_eq!(received, word.as_bytes());
        }
        second.shutdown(Shutdown::Write).expect("it is open");
        assert_eq!(first.read(&mut [0; 1]).expect("a clean end"), 0);
    }
    pair.store.wait_for_log("a connection that ended well", |line| {
        line["response_code_details"] == "-" && line["bytes_received"] == 22 && line["bytes_sent"] == 10
    });
}

/// Reads on, and says how it ended.
fn end_of(mut stream: &TcpStream) -> Result<(), ErrorKind> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error.kind()),
        }
    }
}

/// A word each way, so that the connection stands from end to end.
fn greet_each_other(mut caller: &TcpStream, mut called: &TcpStream) {
    caller.write_all(b"half a sentence").expect("it is open");
    called.read_exact(&mut [0; 15]).expect("it arrives");
    called.write_all(b"half an answer").expect("it is open");
    caller.read_exact(&mut [0; 14]).expect("it arrives");
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger is set");
    drop(stream);
}

#[test]
fn a_reset_is_passed_on_by_every_leg() {
    let pair = Pair::new("reset");
    let listener = pair.store.host.listen(([127, 0, 0, 1], 7000));
    pair.register("reset", 7000);
    let connect = || {
        let (caller, called) = pair.both_ends("reset", &listener);
        greet_each_other(&caller, &called);
        (caller, called)
    };
    let (caller, called) = connect();
    reset(caller);
    assert_eq!(end_of(&called), Err(ErrorKind::ConnectionReset), "the caller reset");
    pair.web.wait_for_log("the caller's reset", because("client_broke"));
    pair.store.wait_for_log("the caller's reset", because("client_broke"));

    let (caller, called) = connect();
    reset(called);
    assert_eq!(end_of(&caller), Err(ErrorKind::ConnectionReset), "the called program reset");
    pair.web.wait_for_log("the called program's reset", because("upstream_broke"));
    pair.store.wait_for_log("the called program's reset", because("upstream_broke"));

    for member in [&pair.web, &pair.store] {
        let (caller, called) = connect();
        let killed = member
            .host
            .sh("ss --no-header --kill --tcp state established '( dport = :15008 or sport = :15008 )'");
        assert!(output_of(killed).contains("15008"), "a tunnel is killed on {}", member.host.name());
        assert_eq!(
            end_of(&caller),
            Err(ErrorKind::ConnectionReset),
            "a tunnel killed on {}",
            member.host.name()
        );
        assert_eq!(
            end_of(&called),
            Err(ErrorKind::ConnectionReset),
            "a tunnel killed on {}",
            member.host.name()
        );
    }
}

#[test]
fn a_killed_agent_is_no_clean_end() {
    for of_caller in [true, false] {
        let pair = Pair::new("killed");
        let listener = pair.store.host.listen(([127, 0, 0, 1], 7000));
        pair.register("killed", 7000);
        let (caller, called) = pair.both_ends("killed", &listener);
        greet_each_other(&caller, &called);
        let agent = if of_caller { &pair.web } else { &pair.store };
        agent.kill_agent();
        assert_eq!(end_of(&caller), Err(ErrorKind::ConnectionReset), "the caller, {of_caller}");
        assert_eq!(end_of(&called), Err(ErrorKind::ConnectionReset), "the called program, {of_caller}");
    }
}

#[test]
fn a_gibibyte_arrives_as_it_was_sent() {
    let pair = Pair::new("gibibyte");
    pair.serve("sink", 7000);
    pair.serve("source", 7001);
    let sent = output_of(pair.web.host.shop(["send", "--timeout", "60", "sink", "7000", GIBIBYTE]));
    assert!(sent.starts_with("moved 1073741824 bytes, checksum "), "{sent}");
    let fetched = output_of(pair.web.host.shop(["fetch", "--timeout", "60", "source", "7001", GIBIBYTE]));
    assert_eq!(fetched, sent);
    let whole = |line: &serde_json::Value, field: &str| line[field].as_u64() >= GIBIBYTE.parse().ok();
    pair.store.wait_for_log("a gibibyte in", |line| whole(line, "bytes_received"));
    pair.store.wait_for_log("a gibibyte out", |line| whole(line, "bytes_sent"));
}
