//! How HTTP ends: halves of a WebSocket one by one, resets on every leg, bodies that are never taken for whole, and large
//! ones that are sent once.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use baremesh_tests::{Member, WAIT_BOUND, output_of, wait_until};
use socket2::SockRef;

use crate::attack::{Answers, End, Line, Sent, Target, growth_of, is_whole, memory_of};
use crate::pair::{Pair, virtual_addresses};
use crate::town::{Town, routes, subsets, to};

/// A WebSocket through the mesh, both of whose ends are the test's.
fn websocket(target: &Pair, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let mut caller = target.web.host.connect((virtual_addresses(&target.web, "chat")[0], 80)).expect("taken");
    let ask = "GET /chat HTTP/1.1\r\nHost: chat\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    caller.write_all(ask.as_bytes()).expect("it is open");
    let (mut called, _) = listener.accept().expect("the agent delivers");
    for end in [&caller, &called] {
        end.set_read_timeout(Some(WAIT_BOUND)).expect("a timeout");
    }
    read_until(&mut called, b"\r\n\r\n");
    let grant = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    called.write_all(grant.as_bytes()).expect("it is open");
    read_until(&mut caller, b"\r\n\r\n");
    (caller, called)
}

fn read_until(stream: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut read = Vec::new();
    while !read.ends_with(end) {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("it comes");
        read.push(byte[0]);
    }
    read
}

#[test]
fn halves_of_a_websocket_are_closed_one_by_one() {
    let pair = Pair::new("chat-halves");
    let listener = pair.store.host.listen(([127, 0, 0, 1], 8080));
    pair.store.register("chat", ["--port", "80:8080", "--protocol", "http"]);
    pair.web.wait_for_endpoints("chat.default", 1);
    pair.mesh.wait_until_in_force();
    for number in 0..60 {
        let (caller, called) = websocket(&pair, &listener);
        let (mut first, mut second) = if number % 2 == 0 { (caller, called) } else { (called, caller) };
        first.write_all(b"\x88\x02\x03\xe8 a farewell").expect("it is open");
        first.shutdown(Shutdown::Write).expect("it is open");
        let mut heard = Vec::new();
        second.read_to_end(&mut heard).expect("a clean end");
        assert_eq!(heard, b"\x88\x02\x03\xe8 a farewell");
        // The other half is open still: its own farewell comes whole, and then its end.
        second.write_all(b"\x88\x02\x03\xe8 another").expect("the other half is open");
        second.shutdown(Shutdown::Write).expect("the other half is open");
        let mut heard = Vec::new();
        first.read_to_end(&mut heard).expect("a clean end");
        assert_eq!(heard, b"\x88\x02\x03\xe8 another", "{number}");
    }
    // A reset is no farewell.
    for turned in [false, true] {
        let (caller, called) = websocket(&pair, &listener);
        let (first, mut second) = if turned { (called, caller) } else { (caller, called) };
        SockRef::from(&first).set_linger(Some(Duration::ZERO)).expect("linger is set");
        drop(first);
        let error = second.read(&mut [0; 16]).expect_err("no end in good order");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "turned: {turned}");
    }
}

/// What is in a body that is cut off.
const HALF: &str = "half of it";
/// Whether the caller has heard that much of the answer that is to be reset.
static HALF_IS_HEARD: AtomicBool = AtomicBool::new(false);

/// Says half of an answer, framed as the path says, and then as little as the path says.
fn answers_half(stream: &mut TcpStream, sent: &Sent) -> io::Result<()> {
    if !is_whole(&sent.bytes) {
        return Ok(());
    }
    let text = sent.text();
    let path = text.rsplit("GET ").next().unwrap_or_default();
    let head = match path {
        path if path.starts_with("/length") => "content-length: 20\r\n\r\nhalf of it".to_owned(),
        path if path.starts_with("/chunked") => {
            "transfer-encoding: chunked\r\n\r\na\r\nhalf of it\r\n".to_owned()
        }
        _ => "connection: close\r\n\r\nhalf of it".to_owned(),
    };
    stream.write_all(format!("HTTP/1.1 200 OK\r\n{head}").as_bytes())?;
    if path.contains("?reset") {
        // A reset overtakes what an agent has not passed on yet.
        wait_until("half of it is heard", || HALF_IS_HEARD.swap(false, Ordering::Relaxed));
        SockRef::from(&*stream).set_linger(Some(Duration::ZERO))?;
        return Err(ErrorKind::ConnectionAborted.into());
    }
    Ok(())
}

/// Ends the tunnels of a host as a network that fails does.
fn kill_tunnels(member: &Member) {
    let killed = member
        .host
        .sh("ss --no-header --kill --tcp state established '( dport = :15008 or sport = :15008 )'");
    assert!(output_of(killed).contains("15008"), "a tunnel is killed on {}", member.host.name());
}

#[test]
fn no_answer_that_broke_off_looks_whole_whichever_leg_it_broke_on() {
    let target = Target::with(Pair::new("broken-answers"), answers_half as Answers);
    for framing in ["/length", "/chunked", "/to-the-end"] {
        for version in ["1.1", "1.0"] {
            let ask = |leg: &str| {
                let mut line = target.dial();
                let query = if leg == "program" { "?reset" } else { "" };
                line.say(format!("GET {framing}{query} HTTP/{version}\r\nHost: shop\r\n\r\n").as_bytes());
                let mut heard = line.hear_until(HALF);
                match leg {
                    "program" => HALF_IS_HEARD.store(true, Ordering::Relaxed),
                    "caller's tunnel" => kill_tunnels(&target.pair.web),
                    _ => kill_tunnels(&target.pair.store),
                }
                let (rest, end) = line.hear_to_the_end();
                heard += &rest;
                (heard, end)
            };
            for leg in ["program", "caller's tunnel", "called side's tunnel"] {
                let (heard, end) = ask(leg);
                let what = format!("{framing}, HTTP/{version}, {leg}: {heard:?}, {end:?}");
                assert!(heard.starts_with("HTTP/1.1 200") && heard.contains(HALF), "{what}");
                assert!(!heard.contains("\r\n0\r\n") && !heard.contains("HTTP/1.1 5"), "{what}");
                // Where an end in good order would end the body, it must be none; elsewhere it is none either.
                assert_eq!(end, End::Reset, "{what}");
            }
        }
    }
    // The caller's own leg: the program is told, whatever it was doing.
    target.program.forget();
    let mut line = target.dial();
    line.say(b"GET /chunked HTTP/1.1\r\nHost: shop\r\n\r\n");
    line.hear_until(HALF);
    let Line::Socket(socket) = line else { unreachable!("a program's connection") };
    SockRef::from(&socket).set_linger(Some(Duration::ZERO)).expect("linger is set");
    drop(socket);
    wait_until("the program's connection is broken off too", || {
        target.program.seen().iter().any(|sent| matches!(sent.ended, Some(Err(ErrorKind::ConnectionReset))))
    });
    // And while it sends: a request that broke off is no whole one either.
    target.program.forget();
    for body in ["Content-Length: 99\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"] {
        let mut line = target.dial();
        line.say(format!("POST /upload HTTP/1.1\r\nHost: shop\r\n{body}").as_bytes());
        wait_until("the half has come", || target.program.heard().contains("half"));
        line.say_end();
        wait_until("it is broken off", || {
            let seen = target.program.seen();
            let upload = seen.iter().find(|sent| sent.text().contains("/upload"));
            upload.is_some_and(|sent| matches!(sent.ended, Some(Err(ErrorKind::ConnectionReset))))
        });
        assert!(!target.program.heard().contains("0\r\n\r\n"), "{:?}", target.program.heard());
        target.program.forget();
    }
}

#[test]
fn a_large_body_is_streamed_and_sent_once_whatever_retries_say() {
    const PART: usize = 1 << 20;
    const PARTS: usize = 64;
    let town = Town::new("large-retries", 1);
    let [v1] = town.open();
    let retries = "{ attempts = 3, retryOn = \"5xx,reset\" }";
    town.mesh
        .enforce(&(subsets() + &routes(&format!("{{ route = [{}], retries = {retries} }}", to("v1", 1)))));
    let small = town.web.host.get(&["--size", "60000"], "http://reviews/small?status=503");
    assert_eq!((small.status, v1.seen("/small")), (Some(503), 4), "what fits is sent again");
    let before = [memory_of(&town.web), memory_of(&town.hosts[0])];
    let size = (PART * PARTS).to_string();
    for options in [["--keep"], ["--http2"]] {
        let path = format!("/large{}", options[0]);
        let options = [&options[..], &["--size", &size, "--timeout", "120"]].concat();
        let large = town.web.host.get(&options, &format!("http://reviews{path}?status=503"));
        assert_eq!((large.status, v1.seen(&path)), (Some(503), 1), "{large:?}");
    }
    let growth = growth_of([&town.web, &town.hosts[0]], before);
    assert!(growth.iter().all(|growth| *growth < (PARTS * PART / 2) as u64), "{growth:?} bytes more");
    // A body that is not known to be large yet: what has come of it is on its way long before its end.
    let address = virtual_addresses(&town.web, "reviews")[0];
    let mut stream = town.web.host.connect((address, 80)).expect("the agent takes it");
    stream.set_read_timeout(Some(WAIT_BOUND)).expect("a timeout");
    stream.write_all(b"POST /chunks?early HTTP/1.1\r\nHost: reviews\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").expect("taken");
    let head = read_until(&mut stream, b"\r\n\r\n");
    assert!(head.starts_with(b"HTTP/1.1 200"), "it is answered though it has not ended");
}
