//! What is sent again, and what must not be.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use baremesh_tests::{Instance, exit};

use crate::frames::{ACK, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PREFACE, SETTINGS, frame};
use crate::pair::Pair;
use crate::town::{REVIEWS, Town, routes, subsets, to};

/// A town whose requests are sent up to three times, each time for up to five seconds.
fn patient(name: &str) -> (Town, String) {
    let retries =
        "{ attempts = 2, perTryTimeout = \"5s\", retryOn = \"5xx,reset,connect-failure,refused-stream\" }";
    let route = routes(&format!("{{ route = [{}], retries = {retries} }}", to("v1", 1)));
    (Town::new(name, 1), subsets() + &route)
}

/// Sends a request whose first attempts fail, and returns what became of it and how often it was seen.
fn failing(town: &Town, v1: &Instance<'_>, (path, query): (&str, &str)) -> (baremesh_tests::Answer, usize) {
    let answer = town.web.host.get(&["--timeout", "30"], &format!("{REVIEWS}{path}?{query}"));
    let seen = v1.seen(path);
    (answer, seen)
}

#[test]
fn a_retry_hides_whatever_befell_the_first_attempt() {
    let (town, resources) = patient("retries");
    let [v1] = town.open();
    town.mesh.enforce(&resources);
    for (path, query) in
        [("/status", "status=503&"), ("/reset", "close=before-head&"), ("/hang", "hang&"), ("/plain", "")]
    {
        let (answer, seen) = failing(&town, &v1, (path, &format!("{query}fail-first=1")));
        assert!(answer.is_ok(), "{path}: {answer:?}");
        assert_eq!(seen, 2, "{path}");
        let attempts: Vec<_> = v1
            .requests()
            .iter()
            .filter(|request| request["path"] == path)
            .map(|request| request["headers"]["x-envoy-attempt-count"][0].clone())
            .collect();
        // A connection that was kept and dies is no attempt of the route's: its agent asks again itself.
        let again = if path == "/reset" { &attempts[1] == "1" } else { false };
        assert!(again || attempts == ["1", "2"], "{path}: {attempts:?}");
    }
    // The body is sent again too.
    let answer = town.web.host.get(&["--data", "order tea"], &format!("{REVIEWS}/body?fail-first=2"));
    assert_eq!(answer.account()["body"]["text"], "order tea");
    assert_eq!(v1.seen("/body"), 3);
}

#[test]
fn retries_end() {
    let (town, resources) = patient("retries-end");
    let [v1] = town.open();
    town.mesh.enforce(&resources);
    let (answer, seen) = failing(&town, &v1, ("/status", "status=503"));
    assert_eq!((answer.status, answer.instance.as_deref(), seen), (Some(503), Some("v1"), 3));
    let (answer, seen) = failing(&town, &v1, ("/hang", "hang"));
    assert_eq!((answer.status, seen), (Some(504), 3), "{answer:?}");
    let line = town.web.wait_for_log("the last attempt", |line| line["path"] == "/hang?hang");
    let flags = line["response_flags"].as_str().unwrap_or_default();
    assert!(flags.contains("URX") || flags.contains("UT"), "{line}");
    let (answer, seen) = failing(&town, &v1, ("/reset", "close=before-head"));
    assert_eq!((answer.status, seen), (Some(503), 3), "{answer:?}");
    // What is sent again is counted at the budget of none other: the instance is as good as before.
    assert!(town.web.host.get(&[], REVIEWS).is_ok());
}

#[test]
fn an_answer_that_dies_in_its_middle_is_cut_off_and_not_asked_for_again() {
    let (town, resources) = patient("mid-body");
    let [v1] = town.open();
    town.mesh.enforce(&resources);
    for (path, options) in [("/one", &[][..]), ("/two", &["--http2"]), ("/chunked", &["--keep"])] {
        let chunked = if path == "/chunked" { "&chunked" } else { "" };
        let url = format!("{REVIEWS}{path}?close=mid-body&size=100000{chunked}");
        let answer = town.web.host.get(options, &url);
        assert_eq!((answer.status, answer.code), (Some(200), exit::CUT), "{answer:?}");
        assert_eq!(v1.seen(path), 1, "{path}");
    }
}

#[test]
fn a_request_that_may_have_been_seen_is_not_repeated_unless_asked_for() {
    let town = Town::new("not-repeated", 1);
    let [v1] = town.open();
    // A first request leaves a connection behind, on which the next one dies.
    assert!(town.web.host.get(&[], REVIEWS).is_ok());
    let url = format!("{REVIEWS}/order?close=before-head");
    let answer = town.web.host.get(&["--data", "order tea"], &url);
    assert_eq!((answer.status, answer.instance.as_deref()), (Some(503), None), "{answer:?}");
    assert_eq!(v1.seen("/order"), 1);
    let line = town.hosts[0].wait_for_log("the reset", |line| line["path"] == "/order?close=before-head");
    assert_eq!(line["response_flags"], "UC", "{line}");
    let (answer, seen) = failing(&town, &v1, ("/status", "status=503"));
    assert_eq!((answer.status, seen), (Some(503), 1), "an answer of 503 is an answer");
}

#[test]
fn what_nobody_has_seen_is_sent_elsewhere() {
    let town = Town::new("elsewhere", 2);
    let [v1, v2] = town.open();
    v1.process().kill();
    v1.process().wait();
    for number in 0..20 {
        let answer = town.web.host.get(&["--data", "order tea"], &format!("{REVIEWS}/{number}"));
        assert_eq!(answer.instance.as_deref(), Some("v2"), "{answer:?}");
        assert_eq!(v2.seen(&format!("/{number}")), 1);
    }
}

#[test]
fn a_refused_stream_is_asked_for_again() {
    let town = Town::new("refused", 1);
    let [v1] = town.open_with("http2", |_| Vec::new());
    let (answer, seen) = failing(&town, &v1, ("/refused", "close=refused&fail-first=1"));
    assert!(answer.is_ok(), "{answer:?}");
    assert_eq!(seen, 2);
}

/// A program of HTTP/2 that says to so many of its connections that it takes nothing on them, each time as a request is there,
/// and answers on the others. The count is of its connections.
fn program(listener: TcpListener, going: usize) -> Arc<AtomicUsize> {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let goes = count.fetch_add(1, Ordering::SeqCst) < going;
            // Until its peer has gone.
            thread::spawn(move || talk(stream, goes));
        }
    });
    connections
}

fn talk(mut stream: TcpStream, goes: bool) -> io::Result<()> {
    let settings = [frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, ACK, 0, &[])].concat();
    stream.read_exact(&mut [0; PREFACE.len()])?;
    stream.write_all(&settings)?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        stream.read_exact(&mut vec![0; length])?;
        let (kind, number) = (head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]));
        match (kind, goes) {
            // No stream was taken up, and there is no error.
            (HEADERS, true) => stream.write_all(&frame(GOAWAY, 0, 0, &[0; 8]))?,
            // 200 is the eighth entry of every table (RFC 7541, appendix A).
            (HEADERS, false) => {
                stream.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, number, &[0x88]))?;
            }
            _ => {}
        }
    }
}

#[test]
fn a_request_that_a_leaving_connection_did_not_take_up_is_sent_on_another() {
    let pair = Pair::new("not-taken-up");
    let none = "{ route = [{ destination = { host = \"leaving\" } }], retries = { attempts = 0 } }";
    pair.mesh
        .apply(&format!("[[VirtualService]]\nname = \"leaving\"\nhosts = [\"leaving\"]\nhttp = [{none}]\n"));
    for (port, going, status) in [(7001, 1, 200), (7002, 2, 503)] {
        let connections = program(pair.store.host.listen(([127, 0, 0, 1], port)), going);
        let ports = format!("80:{port}");
        pair.store.register("leaving", ["--port", &ports, "--protocol", "http2"]);
        pair.web.wait_for_endpoints("leaving.default", 1);
        pair.mesh.wait_until_in_force();
        let answer = pair.web.host.get(&["--data", "order tea"], "http://leaving/");
        assert_eq!(answer.status, Some(status), "{answer:?}");
        assert_eq!(connections.load(Ordering::SeqCst), 2, "one more is tried, and no third");
    }
}
