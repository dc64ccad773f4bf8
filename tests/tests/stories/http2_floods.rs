//! What HTTP/2 lets a peer have cheaply and its server dearly: resets, frames that carry nothing, heads that are mostly
//! references. Each ends the connection that it came on, and leaves everybody else alone.

use std::time::{Duration, Instant};

use baremesh_tests::{Answer, Requests, wait_until};
use serde_json::Value;

use crate::attack::{Answers, Line, Target, answers_others, growth_of, memory_of};
use crate::frames::{
    CANCEL, CONTINUATION, Client, DATA, END_HEADERS, END_STREAM, HEADERS, Outcome, PING, PRIORITY, Pace,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, field, flood, frame, kept, newest, request,
};
use crate::pair::{Pair, because};

/// What an agent's memory may grow by under any of it.
const MAX_GROWTH: u64 = 64 << 20;
/// Floods that get so far were not stopped.
const BATCHES: usize = 1_000;

/// One flood: what is sent at a time, and how many of these there may be at most before the connection ends.
struct Flood {
    name: &'static str,
    most: usize,
    batch: fn(&mut Client<'_>) -> Vec<u8>,
}

/// A target whose program answers what others ask, and nothing else.
fn unanswered(name: &str) -> Target {
    Target::with(Pair::new(name), answers_others as Answers)
}

/// What a stream is opened with.
fn open(client: &mut Client<'_>, flags: u8) -> (u32, Vec<u8>) {
    let stream = client.stream();
    (stream, frame(HEADERS, END_HEADERS | flags, stream, &request("POST", "/flood")))
}

fn ten(make: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    (0..10).flat_map(make).collect()
}

/// Sends each flood as a program of `web` and as a member within a tunnel. The connection is closed, and told why where
/// it still listens; the record says so; and requests of others go well meanwhile, though they share a tunnel with all that
/// one flood after another has reset.
fn stopped(target: &Target, pace: Pace, floods: &[Flood]) {
    let others = Requests::start(&target.pair.web.host, &["--keep", "--parallel", "2"], "http://shop/other");
    let before = target.agents().map(memory_of);
    for flood_of in floods {
        for inside in [false, true] {
            let tunnel = inside.then(|| target.tunnel());
            let line = tunnel.as_ref().map_or_else(|| target.dial(), |tunnel| target.enter(tunnel));
            let mut client = Client::start(line, &[]);
            // A busy agent hears of the last ones late, and no more are sent than may be.
            let batches = if pace == Pace::Looked { flood_of.most } else { BATCHES };
            let (outcome, after) = flood(&mut client, (batches, pace), flood_of.batch);
            let name = format!("{}, inside a tunnel: {inside}", flood_of.name);
            assert!(outcome.is_end() && after <= flood_of.most, "{name}: {outcome:?} after {after}");
            others.wait_for_more(5);
        }
    }
    let failed: Vec<_> = others.stop().into_iter().filter(|answer| !Answer::is_ok(answer)).collect();
    let said: Vec<_> = target.agents().iter().flat_map(|agent| agent.log()).collect();
    let said: Vec<_> = said.iter().filter(|line| line["response_code"] == 503).collect();
    assert!(failed.is_empty(), "others: {failed:?}, and the agents: {said:#?}");
    let growth = growth_of(target.agents(), before);
    assert!(growth.iter().all(|growth| *growth < MAX_GROWTH), "{growth:?} bytes more");
    wait_until("no connection to the program is left over", || target.program.counts().1 < 10);
}

/// Waits until both agents have recorded floods of a kind, and count them.
fn recorded(target: &Target, kind: &str) {
    for member in target.agents() {
        let flooded = |line: &Value| {
            let why = line["connection_termination_details"].as_str().unwrap_or_default();
            because("flooded")(line) && why.contains(kind)
        };
        member.wait_for_log(kind, flooded);
        let metrics = member.metrics();
        let counted = metrics.lines().any(|line| line.contains("flooded") && !line.ends_with(" 0"));
        assert!(counted, "a metric counts them: {metrics}");
    }
}

#[test]
fn streams_that_are_opened_to_be_reset_end_the_connection_alone() {
    let target = unanswered("resets");
    stopped(
        &target,
        Pace::Settled,
        &[
            Flood {
                name: "rapid reset",
                most: 100,
                batch: |client| {
                    let streams = (0..10).flat_map(|_| {
                        let (stream, head) = open(client, END_STREAM);
                        [head, frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())].concat()
                    });
                    streams.collect()
                },
            },
            Flood {
                name: "rapid reset, a hundred at once",
                most: 10,
                batch: |client| {
                    let streams = (0..100).flat_map(|_| {
                        let (stream, head) = open(client, END_STREAM);
                        [head, frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())].concat()
                    });
                    streams.collect()
                },
            },
        ],
    );
    recorded(&target, "given up");
    // The same with streams of a tunnel: each has cost a connection to the program, which speaks HTTP and was told nothing.
    let tunnel = target.tunnel();
    let started = Instant::now();
    let opened = (0..20_000).take_while(|_| {
        let opened = tunnel.connect(&target.authority());
        opened.map(|mut stream| tunnel.reset(&mut stream)).is_ok()
    });
    let opened = opened.count() as u64;
    // Some are forgiven as time passes, and each takes its time.
    let most = 1_000 + 60 * started.elapsed().as_secs();
    assert!((100..most).contains(&opened), "{opened}, {most} at most");
    // Another tunnel of the same peer is not touched.
    let tunnel = target.tunnel();
    let mut line = target.enter(&tunnel);
    line.say(b"GET /other HTTP/1.1\r\nHost: shop\r\n\r\n");
    line.hear_until("ok");
}

#[test]
fn resets_that_the_agent_is_made_to_send_count_as_the_callers() {
    let target = unanswered("made-to-reset");
    stopped(
        &target,
        Pace::Settled,
        &[
            Flood {
                name: "windows of nothing",
                most: 50,
                batch: |client| {
                    let streams = (0..10).flat_map(|_| {
                        let (stream, head) = open(client, 0);
                        [head, frame(WINDOW_UPDATE, 0, stream, &[0; 4])].concat()
                    });
                    streams.collect()
                },
            },
            Flood {
                name: "windows that overflow",
                most: 50,
                batch: |client| {
                    let streams = (0..10).flat_map(|_| {
                        let (stream, head) = open(client, 0);
                        [head, frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes())].concat()
                    });
                    streams.collect()
                },
            },
            Flood {
                name: "data behind the end",
                most: 50,
                batch: |client| {
                    let streams = (0..10).flat_map(|_| {
                        let (stream, head) = open(client, END_STREAM);
                        [head, frame(DATA, 0, stream, b"more")].concat()
                    });
                    streams.collect()
                },
            },
            Flood {
                name: "streams that depend on themselves",
                most: 50,
                batch: |client| {
                    let streams = (0..10).flat_map(|_| {
                        let (stream, head) = open(client, 0);
                        [head, frame(PRIORITY, 0, stream, &[&stream.to_be_bytes()[..], &[0]].concat())]
                            .concat()
                    });
                    streams.collect()
                },
            },
            Flood {
                name: "more data than was said",
                most: 50,
                batch: |client| {
                    let streams = (0..10).flat_map(|_| {
                        let stream = client.stream();
                        let block = [request("POST", "/flood"), field("content-length", b"1")].concat();
                        let head = frame(HEADERS, END_HEADERS, stream, &block);
                        [head, frame(DATA, 0, stream, b"more")].concat()
                    });
                    streams.collect()
                },
            },
        ],
    );
    recorded(&target, "faulty streams");
}

#[test]
fn heads_without_an_end_are_ended() {
    let target = unanswered("continuation");
    // In tens of frames: 200 at most.
    stopped(
        &target,
        Pace::Looked,
        &[
            Flood {
                name: "continuations",
                most: 20,
                batch: |client| {
                    let begun = client.sent > 100;
                    let rest = ten(|_| frame(CONTINUATION, 0, 1, &field("x", b"y")));
                    if begun {
                        rest
                    } else {
                        [frame(HEADERS, 0, 1, &request("GET", "/flood")), rest].concat()
                    }
                },
            },
            Flood {
                name: "empty continuations",
                most: 20,
                batch: |client| {
                    let begun = client.sent > 100;
                    let rest = ten(|_| frame(CONTINUATION, 0, 1, &[]));
                    if begun {
                        rest
                    } else {
                        [frame(HEADERS, 0, 1, &request("GET", "/flood")), rest].concat()
                    }
                },
            },
            Flood {
                name: "a head of a megabyte",
                most: 20,
                batch: |client| {
                    let begun = client.sent > 100;
                    let rest = frame(CONTINUATION, 0, 1, &field("x", &[b'y'; 16_000]));
                    if begun {
                        rest
                    } else {
                        [frame(HEADERS, 0, 1, &request("GET", "/flood")), rest].concat()
                    }
                },
            },
        ],
    );
    recorded(&target, "frames of one kind");
}

#[test]
fn frames_that_carry_nothing_end_the_connection_alone() {
    let target = unanswered("frames");
    stopped(
        &target,
        Pace::Settled,
        &[
            Flood {
                name: "PING",
                most: 400,
                batch: |_| ten(|number| frame(PING, 0, 0, &u64::from(number).to_be_bytes())),
            },
            Flood {
                name: "answers to no PING",
                most: 400,
                batch: |_| ten(|number| frame(PING, 1, 0, &u64::from(number).to_be_bytes())),
            },
            Flood {
                name: "SETTINGS",
                most: 400,
                batch: |_| ten(|number| frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, number as u8])),
            },
            Flood { name: "empty SETTINGS", most: 400, batch: |_| ten(|_| frame(SETTINGS, 0, 0, &[])) },
            Flood {
                name: "PRIORITY",
                most: 400,
                batch: |_| ten(|number| frame(PRIORITY, 0, 1 + 2 * number, &[0, 0, 0, 0, 1])),
            },
            Flood {
                name: "WINDOW_UPDATE",
                most: 400,
                batch: |_| ten(|_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
            },
            Flood { name: "kinds that nobody knows", most: 400, batch: |_| ten(|_| frame(99, 0, 0, b"?")) },
            Flood {
                name: "empty DATA",
                most: 400,
                batch: |client| {
                    let begun = client.sent > 100;
                    let rest = ten(|_| frame(DATA, 0, 1, &[]));
                    if begun { rest } else { [open(client, 0).1, rest].concat() }
                },
            },
            Flood {
                name: "DATA of padding",
                most: 400,
                batch: |client| {
                    let begun = client.sent > 100;
                    let rest = ten(|_| frame(DATA, 8, 1, &[3, 0, 0, 0]));
                    if begun { rest } else { [open(client, 0).1, rest].concat() }
                },
            },
        ],
    );
    recorded(&target, "without content");
}

#[test]
fn pings_whose_answers_nobody_reads_pile_up_nowhere() {
    let target = unanswered("unread-pings");
    let before = target.agents().map(memory_of);
    let tunnel = target.tunnel();
    for line in [target.dial(), target.enter(&tunnel)] {
        if let Line::Socket(socket) = &line {
            socket.set_write_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        }
        let mut client = Client::start(line, &[]);
        let pings = frame(PING, 0, 0, &[7; 8]).repeat(1_000);
        let sent = (0..200).take_while(|_| client.send(&pings)).count();
        let growth = growth_of(target.agents(), before);
        assert!(growth.iter().all(|growth| *growth < MAX_GROWTH), "{sent}: {growth:?} bytes more");
    }
}

/// What the attacker holds open, over so many connections: heads made of references to one field, whose answers it does
/// not take.
fn bombs<'t>(lines: impl Iterator<Item = Line<'t>>, fields: usize, size: usize) -> (Vec<Client<'t>>, u64) {
    // SETTINGS_INITIAL_WINDOW_SIZE is 0 (RFC 9113, section 6.5.2).
    let clients = lines.map(|line| {
        let mut client = Client::start(line, &[0, 4, 0, 0, 0, 0]);
        let first = [request("GET", "/bomb"), kept("cookie", &vec![b'c'; size])].concat();
        let rest = [request("GET", "/bomb"), newest().repeat(fields)].concat();
        for number in 0..100 {
            let stream = client.stream();
            let block = if number == 0 { &first } else { &rest };
            client.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, block));
        }
        client.settle();
        client
    });
    let clients: Vec<_> = clients.collect();
    let sent = clients.iter().map(|client| client.sent).sum();
    (clients, sent)
}

#[test]
fn heads_of_references_hold_no_more_than_a_hundred_times_what_was_sent() {
    const CONNECTIONS: usize = 50;
    let target = unanswered("bombs");
    // Many crumbs of little; few of much.
    for (fields, size) in [(1_500, 1), (90, 500), (14, 4_000)] {
        let others =
            Requests::start(&target.pair.web.host, &["--keep", "--parallel", "1"], "http://shop/other");
        let before = target.agents().map(memory_of);
        let (clients, sent) = bombs((0..CONNECTIONS).map(|_| target.dial()), fields, size);
        let growth = growth_of(target.agents(), before);
        assert!(growth[0] < 100 * sent, "{fields} of {size}: {growth:?} bytes more for {sent}");
        others.wait_for_more(20);
        let failed: Vec<_> = others.stop().into_iter().filter(|answer| !Answer::is_ok(answer)).collect();
        assert!(failed.is_empty(), "others: {failed:?}");
        drop(clients);
    }
    // Each crumb counts as a field.
    let mut client = Client::start(target.dial(), &[]);
    let stream = client.stream();
    let block = [request("GET", "/crumbs"), kept("cookie", b"a=b"), newest().repeat(120)].concat();
    client.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &block));
    assert_eq!(client.outcome(stream), Outcome::Status(431));
    target.pair.web.wait_for_log("crumbs", |line| line["response_code_details"] == "http2.too_many_headers");
    assert!(!target.program.heard().contains("crumbs"));
}
