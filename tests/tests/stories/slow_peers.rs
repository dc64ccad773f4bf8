//! Peers that take their time: each is given up at a deadline that has a name, and holds up nobody meanwhile. What is on
//! its way to a program that does not read is bounded.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use baremesh_tests::{Mesh, Requests, WAIT_BOUND, wait_until};
use socket2::SockRef;

use crate::attack::{Answers, End, Line, Sent, Target, answers_each, growth_of, memory_of, status_of};
use crate::frames::{Client, END_HEADERS, END_STREAM, HEADERS, SETTINGS, frame, request};
use crate::pair::{Pair, virtual_addresses};
use crate::peer::agent_of;

/// Deadlines short enough to wait for. The called side waits longer than the caller's agent, whose deadline then shows.
const CONFIGS: [&str; 2] = [
    "[proxy]\nhandshake_timeout_seconds = 2\nbody_timeout_seconds = 2\n",
    "[proxy]\nhandshake_timeout_seconds = 2\nbody_timeout_seconds = 6\n",
];

/// Says `bytes` one at a time, as slowly as a peer that only wants to hold a place, and what comes back at the end.
fn drip(mut line: Line<'_>, bytes: &[u8]) -> (String, End) {
    let mut heard = Vec::new();
    for byte in bytes.iter().cycle() {
        let told = line.say(&[*byte]);
        let (part, end) = line.hear_all_within(Duration::from_millis(400));
        heard.extend_from_slice(&part);
        if end != End::Open || !told {
            return (String::from_utf8_lossy(&heard).into_owned(), end);
        }
    }
    unreachable!("a drip has no end of its own")
}

/// A peer that takes forever over a request.
#[derive(Clone, Copy)]
struct Slow {
    name: &'static str,
    /// What it says at once.
    first: &'static [u8],
    /// What it says then, byte by byte; nothing more, if nothing.
    then: &'static [u8],
    /// What it is told.
    statuses: &'static [u16],
}

const SLOW: [Slow; 6] = [
    Slow { name: "a slow head", first: b"GET / HTTP/1.1\r\nHost: shop\r\nX: ", then: b"x", statuses: &[408] },
    Slow { name: "a head that stops", first: b"GET / HTTP/1.1\r\nHo", then: b"", statuses: &[408] },
    Slow { name: "a first byte of either version", first: b"P", then: b"", statuses: &[408] },
    Slow {
        name: "a preface that stops",
        first: b"PRI * HTTP/2.0\r\n\r\nSM",
        then: b"",
        statuses: &[408, 505],
    },
    Slow {
        name: "a body that stops",
        first: b"POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 9\r\n\r\nx",
        then: b"",
        statuses: &[408],
    },
    Slow {
        name: "a chunk that stops",
        first: b"POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        then: b"",
        statuses: &[408],
    },
];

impl Slow {
    fn takes_forever(self, mut line: Line<'_>) {
        line.say(self.first);
        let (heard, end) = if self.then.is_empty() { line.hear_to_the_end() } else { drip(line, self.then) };
        assert_ne!(end, End::Open, "{}: {heard:?}", self.name);
        let status = status_of(&heard).unwrap_or_default();
        assert!(self.statuses.contains(&status), "{}: {heard:?}", self.name);
    }
}

#[test]
fn who_takes_forever_is_given_up_at_a_deadline() {
    let mesh = Mesh::new("slow-peers");
    let [of_web, of_store] = CONFIGS;
    let web = mesh.member_with("web", 1, &["*"], of_web);
    let store = mesh.member_with("store", 2, &["*"], of_store);
    web.register("web", ["--port", "80", "--user", "0"]);
    let target = Target::with(Pair { web, store, mesh }, answers_each as Answers);
    let others = Requests::start(&target.pair.web.host, &["--keep", "--parallel", "1"], "http://shop/other");
    let stranger = target.pair.mesh.net.host("stranger", 9);
    // The tunnel outlives the test, and so may its streams.
    let tunnel: &'static _ = Box::leak(Box::new(target.tunnel()));
    let mut peers = Vec::new();
    for inside in [false, true] {
        let line = || if inside { target.enter(tunnel) } else { target.dial() };
        for slow in SLOW {
            let line = line();
            peers.push(thread::spawn(move || slow.takes_forever(line)));
        }
        // Between two of its frames a peer of HTTP/2 can answer PINGs; within one it cannot.
        let mut client = Client::start(line(), &[]);
        peers.push(thread::spawn(move || {
            let head = frame(HEADERS, END_HEADERS | END_STREAM, 1, &request("GET", "/half"));
            client.send(&head[..12]);
            while let Ok(next) = client.next(WAIT_BOUND) {
                assert!(next.is_some(), "it ends when PINGs are not answered");
            }
        }));
    }
    let handshake = Line::Socket(stranger.connect(agent_of(&target.pair.store.host)).expect("it listens"));
    peers.push(thread::spawn(move || {
        let hello = [&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 600]].concat();
        assert_ne!(drip(handshake, &hello).1, End::Open, "a slow handshake");
    }));
    for peer in peers {
        peer.join().expect("each is given up");
    }
    others.wait_for_more(10);
    let failed: Vec<_> = others.stop().into_iter().filter(|answer| !answer.is_ok()).collect();
    assert!(failed.is_empty(), "others: {failed:?}");
    for (detail, status) in [("request_header_timeout", 408), ("request_body_timeout", 408)] {
        let of = |line: &serde_json::Value| line["response_code_details"] == detail;
        for member in target.agents() {
            let line = member.wait_for_log(detail, of);
            assert_eq!(line["response_code"], status, "{line}");
        }
    }
    wait_until("nothing is left of them at the program", || target.program.counts().1 < 10);
}

#[test]
fn what_a_slow_caller_speaks_is_not_waited_for_without_end() {
    let pair = Pair::new("slow-sniffing");
    let listener = pair.store.host.listen(([127, 0, 0, 1], 7000));
    pair.store.register("either", ["--port", "7000", "--protocol", "auto"]);
    pair.web.wait_for_endpoints("either.default", 1);
    let address = SocketAddr::new(virtual_addresses(&pair.web, "either")[0], 7000);
    // It may become a method, and may become anything else. The called side's agent passes nothing on before it knows, and in
    // the end takes it for a request that never comes.
    let mut undecided: Vec<_> = (0..50)
        .map(|_| {
            let mut stream = pair.web.host.connect(address).expect("the agent takes it");
            stream.write_all(b"GE").expect("it is taken");
            stream
        })
        .collect();
    for stream in &mut undecided {
        stream.set_read_timeout(Some(3 * WAIT_BOUND)).expect("a timeout");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer, and an end");
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer:?}");
        let (mut called, _) = listener.accept().expect("the agent has connected to the program");
        called.set_read_timeout(Some(WAIT_BOUND)).expect("a timeout");
        let mut heard = Vec::new();
        let _ = called.read_to_end(&mut heard);
        assert!(heard.is_empty(), "{:?}", String::from_utf8_lossy(&heard));
    }
}

/// Sends without end once it is asked.
fn answers_without_end(stream: &mut TcpStream, sent: &Sent) -> io::Result<()> {
    if !sent.bytes.ends_with(b"\r\n\r\n") {
        return Ok(());
    }
    // The connection may have carried others' requests before.
    if sent.text().rsplit_once("GET ").is_none_or(|(_, last)| !last.starts_with("/endless")) {
        return answers_each(stream, sent);
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n")?;
    let part = vec![b'x'; 64 * 1024];
    for _ in 0..(1 << 30) / part.len() {
        stream.write_all(&part)?;
    }
    Ok(())
}

#[test]
fn a_hundred_readers_of_a_gibibyte_who_do_not_read_cost_what_their_windows_hold() {
    const READERS: usize = 100;
    /// A stream's window in a tunnel (`STREAM_WINDOW`), a window of HTTP/2 on top (`STREAM_WINDOW` there), and a read.
    const OF_READER: u64 = (1024 + 256 + 64) << 10;
    /// Tasks, heads and tables, and what an allocator keeps, in a build for tests.
    const BESIDES: u64 = 48 << 20;
    let target = Target::with(Pair::new("slow-readers"), answers_without_end as Answers);
    let others = Requests::start(&target.pair.web.host, &["--keep", "--parallel", "1"], "http://shop/other");
    let before = target.agents().map(memory_of);
    let ask = b"GET /endless HTTP/1.1\r\nHost: shop\r\n\r\n";
    let mut lines: Vec<_> = (0..READERS)
        .map(|_| {
            let socket = target.pair.web.host.connect(target.address()).expect("the agent takes it");
            SockRef::from(&socket).set_recv_buffer_size(4096).expect("a small buffer");
            let mut line = Line::Socket(socket);
            line.say(ask);
            line
        })
        .collect();
    // Each has begun.
    for line in &mut lines {
        let head = line.hear_within(WAIT_BOUND).expect("its head comes");
        assert!(head.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&head));
    }
    // As many on one connection.
    let mut client = Client::start(target.dial(), &[]);
    client.send(&frame(SETTINGS, 0, 0, &[]));
    for _ in 0..READERS {
        let stream = client.stream();
        client.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &request("GET", "/endless")));
    }
    let mut begun = 0;
    while begun < READERS {
        let frame = client.next(WAIT_BOUND).expect("it is open").expect("its heads come");
        if frame.kind == HEADERS {
            assert_eq!(frame.status(), Some(200), "{frame:?}");
            begun += 1;
        }
    }
    let growth = growth_of(target.agents(), before);
    let most = 2 * READERS as u64 * OF_READER + BESIDES;
    assert!(growth.iter().all(|growth| *growth < most), "{growth:?}, {most} at most");
    others.wait_for_more(20);
    let failed: Vec<_> = others.stop().into_iter().filter(|answer| !answer.is_ok()).collect();
    assert!(failed.is_empty(), "others: {failed:?}");
    // They go, and take what they held with them.
    drop((lines, client));
    let broken =
        |sent: &Sent| matches!(sent.ended, Some(Err(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)));
    wait_until("the program is told", || {
        let seen = target.program.seen();
        seen.iter().filter(|sent| broken(sent)).count() == 2 * READERS && target.program.counts().1 < 10
    });
}
