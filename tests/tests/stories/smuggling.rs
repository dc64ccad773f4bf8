//! Requests that two readers could read in two ways, said to real agents byte by byte: to the caller's agent as a program
//! of its host would, and to the called side's inside a tunnel, with a member's stolen key.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use baremesh_tests::{Member, Refusal, wait_until};
use socket2::SockRef;

use crate::attack::{Answers, End, Line, Sent, Target, answers_each, status_of};
use crate::frames::{
    Client, END_HEADERS, END_STREAM, HEADERS, Outcome, PROTOCOL_ERROR, field, fields, frame, request,
};
use crate::pair::Pair;

/// A request whose fields are `lines`, with a body that would be a request.
fn post(lines: &str) -> String {
    format!(
        "POST /cover HTTP/1.1\r\nHost: shop\r\n{lines}\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: shop\r\n\r\n"
    )
}

/// A request with this chunked body.
fn chunked(body: &str) -> String {
    format!("POST /cover HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
}

/// Both places where an attacker may stand, and which agent hears it first.
fn from_both_sides(target: &Target, check: impl Fn(&str, (&Member, &str), &dyn Fn() -> Line<'static>)) {
    check("a program", (&target.pair.web, "source"), &|| target.dial());
    // The tunnel outlives the test: each line borrows it.
    let tunnel: &'static _ = Box::leak(Box::new(target.tunnel()));
    check("a member", (&target.pair.store, "destination"), &|| target.enter(tunnel));
}

/// What the log may give as the reason for a status.
fn reasons(status: u16) -> &'static [&'static str] {
    match status {
        405 => &["http1.connect_not_allowed"],
        414 => &["http1.url_too_long"],
        431 => &["http1.headers_too_large", "http1.too_many_headers"],
        501 => &["http1.invalid_transfer_encoding"],
        505 => &["http1.unsupported_version"],
        _ => &["http1."],
    }
}

/// Says each, and checks that it is answered with its status, that the connection ends, that the program hears nothing, or
/// nothing whole, and that the agent logs it with its reason and counts it.
fn refused(target: &Target, cases: &[(&str, String, u16)], heard: fn(&str) -> bool) {
    from_both_sides(target, |who, (agent, reporter), line| {
        for (name, bytes, status) in cases {
            target.program.forget();
            let code = status.to_string();
            let refusal = Refusal::of_request(reporter, &code, reasons(*status));
            let (answer, end) = agent.refuses(&refusal, 1, || {
                let mut line = line();
                line.say(bytes.as_bytes());
                line.hear_to_the_end()
            });
            assert_eq!(status_of(&answer), Some(*status), "{who}, {name}: {answer:?}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{who}, {name}: one answer: {answer:?}");
            assert_ne!(end, End::Open, "{who}, {name}");
            let reached = target.program.heard();
            assert!(heard(&reached), "{who}, {name}: the program heard {reached:?}");
        }
        let mut line = line();
        line.say(b"GET /well HTTP/1.1\r\nHost: shop\r\n\r\n");
        assert!(line.hear_until("ok").starts_with("HTTP/1.1 200"), "{who}: what is well is carried");
    });
}

#[test]
fn requests_with_two_readings_are_refused_and_the_program_sees_no_byte() {
    let target = Target::new("smuggling");
    let head = |line: &str| format!("{line}\r\nHost: shop\r\n\r\n");
    let with = |lines: &str| format!("GET /cover HTTP/1.1\r\nHost: shop\r\n{lines}\r\n\r\n");
    let many: String = (0..101).map(|number| format!("x-{number}: a\r\n")).collect();
    let cases = [
        // Two framings, and lengths that are none.
        ("CL.TE", post("Content-Length: 6\r\nTransfer-Encoding: chunked"), 400),
        ("TE.CL", post("Transfer-Encoding: chunked\r\nContent-Length: 6"), 400),
        ("two lengths", post("Content-Length: 5\r\nContent-Length: 40"), 400),
        ("one length twice", post("Content-Length: 5\r\nContent-Length: 5"), 400),
        ("a list of lengths", post("Content-Length: 5, 5"), 400),
        ("a signed length", post("Content-Length: +5"), 400),
        ("a negative length", post("Content-Length: -1"), 400),
        ("a huge length", post("Content-Length: 18446744073709551617"), 400),
        ("a length in hexadecimal", post("Content-Length: 0x5"), 400),
        ("a length behind a space", post("Content-Length : 5"), 400),
        // Codings that one reader sees and another does not.
        ("an unknown coding", post("Transfer-Encoding: xchunked"), 501),
        ("identity", post("Transfer-Encoding: identity"), 501),
        ("chunked twice", post("Transfer-Encoding: chunked, chunked"), 400),
        ("a coding behind a form feed", post("Transfer-Encoding: \u{c}chunked"), 400),
        ("a coding behind a vertical tab", post("Transfer-Encoding: \u{b}chunked"), 400),
        ("a coding and another", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: x"), 501),
        ("a coding behind a space", post("Transfer-Encoding : chunked"), 400),
        ("a folded coding", post("Transfer-Encoding:\r\n chunked"), 400),
        ("a folded field", with("X: a\r\n Transfer-Encoding: chunked"), 400),
        (
            "a coding in HTTP/1.0",
            "POST / HTTP/1.0\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
            400,
        ),
        // Line ends and characters.
        ("bare line feeds", "GET /cover HTTP/1.1\nHost: shop\n\n".to_owned(), 400),
        ("a bare line feed", with("X: a\nTransfer-Encoding: chunked"), 400),
        ("a bare carriage return", with("X: a\rB: c"), 400),
        ("a carriage return more", with("X: a\r"), 400),
        ("a NUL in a value", with("X: a\0b"), 400),
        ("a NUL in a name", with("X\0: a"), 400),
        ("a space in a name", with("X Y: a"), 400),
        ("a space before a colon", with("X : a"), 400),
        ("no colon", with("X"), 400),
        ("no name", with(": a"), 400),
        // Request lines.
        ("a line feed in the target", head("GET /a\nb HTTP/1.1"), 400),
        ("a tab for a space", head("GET\t/cover HTTP/1.1"), 400),
        ("two spaces", head("GET  /cover HTTP/1.1"), 400),
        ("a target with a space", head("GET /a b HTTP/1.1"), 400),
        ("no version", head("GET /cover"), 400),
        ("an unknown version", head("GET /cover HTTP/2.1"), 505),
        ("another protocol", head("GET /cover SIP/2.0"), 400),
        ("CONNECT", head("CONNECT shop:80 HTTP/1.1"), 405),
        ("CONNECT to somebody else", head("CONNECT 169.254.169.254:80 HTTP/1.1"), 405),
        ("CONNECT to a port of the agent's own", head("CONNECT 127.0.0.1:15020 HTTP/1.1"), 405),
        // Paths that are read in two ways.
        ("a NUL in the path", head("GET /a%00.html HTTP/1.1"), 400),
        ("a fragment", head("GET /a#b HTTP/1.1"), 400),
        ("no path", head("GET a HTTP/1.1"), 400),
        ("a backslash for a slash", head("GET \\a HTTP/1.1"), 400),
        // Whom it is for.
        ("no Host", "GET /cover HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("two Hosts", with("Host: admin"), 400),
        ("one Host twice", with("host: shop"), 400),
        ("a target of another", head("GET http://admin/cover HTTP/1.1"), 400),
        ("a target of another port", head("GET http://shop:81/cover HTTP/1.1"), 400),
        ("a Host with a user", "GET / HTTP/1.1\r\nHost: admin@shop\r\n\r\n".to_owned(), 400),
        ("two names in one Host", "GET / HTTP/1.1\r\nHost: shop,admin\r\n\r\n".to_owned(), 400),
        ("an encoded Host", "GET / HTTP/1.1\r\nHost: sho%70\r\n\r\n".to_owned(), 400),
        // Too much.
        ("too many fields", with(many.trim_end()), 431),
        ("a field that is too large", with(&format!("X: {}", "a".repeat(70_000))), 431),
        ("many large fields", with(&vec![format!("X: {}", "a".repeat(20_000)); 4].join("\r\n")), 431),
        ("a target that is too long", head(&format!("GET /{} HTTP/1.1", "a".repeat(40_000))), 414),
    ];
    refused(&target, &cases, str::is_empty);
}

#[test]
fn chunks_with_two_readings_never_end_a_body() {
    let target = Target::new("chunks");
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: shop\r\n\r\n";
    let cases = [
        ("0x", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("a sign", "+5\r\nhello\r\n0\r\n\r\n"),
        ("a space", "5 \r\nhello\r\n0\r\n\r\n"),
        ("an overflow", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
        ("all bits", "ffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
        ("a bare line feed", "5\nhello\r\n0\r\n\r\n"),
        ("a line feed in an extension", "5;a\nhello\r\n0\r\n\r\n"),
        ("a carriage return in an extension", "5;a\rb\r\nhello\r\n0\r\n\r\n"),
        ("a line feed behind the data", "5\r\nhello\n0\r\n\r\n"),
        ("data that is too long", "5\r\nhelloX\r\n0\r\n\r\n"),
        ("a last chunk with line feeds", "5\r\nhello\r\n0\n\n"),
        ("a folded trailer", "5\r\nhello\r\n0\r\nX: a\r\n b\r\n\r\n"),
        ("a line feed in a trailer", "5\r\nhello\r\n0\r\nX: a\n\r\n"),
    ];
    let cases: Vec<_> =
        cases.iter().map(|(name, body)| (*name, chunked(&format!("{body}{smuggled}")), 400)).collect();
    // A head may be on its way when its body turns out to be none; neither its end nor anything behind it ever is.
    refused(&target, &cases, |heard| !heard.contains("0\r\n\r\n") && !heard.contains("smuggled"));
    // What comes through has lost its extensions, and is chunked anew.
    target.program.forget();
    let mut line = target.dial();
    line.say(chunked("5;a=\"b\"\r\nhello\r\n000;x\r\nX: y\r\nHost: admin\r\n\r\n").as_bytes());
    line.hear_until("ok");
    let heard = target.program.heard();
    assert!(heard.contains("\r\n5\r\nhello\r\n0\r\n") && !heard.contains("admin"), "{heard:?}");
}

#[test]
fn paths_hosts_and_codings_are_passed_on_as_they_were_matched() {
    let target = Target::new("as-matched");
    // What policies and routes see is the path in its one form, and so is what the program gets.
    from_both_sides(&target, |who, _, line| {
        for (path, seen) in [
            ("/%2e%2e/admin", "/admin"),
            ("/a/../admin", "/admin"),
            ("//admin", "//admin"),
            ("/a//b", "/a//b"),
            ("/ADMIN", "/ADMIN"),
            ("/a\\..\\admin", "/admin"),
            ("/a%2Fadmin", "/a%2Fadmin"),
            ("/a%5cadmin", "/a%5cadmin"),
            ("/admin;x=1", "/admin;x=1"),
            ("/a%23b", "/a%23b"),
            ("/%61dmin", "/admin"),
            ("/a%", "/a%"),
            ("/a?b=%00", "/a?b=%00"),
            ("/a?b?c/../%61", "/a?b?c/../%61"),
        ] {
            target.program.forget();
            let mut line = line();
            line.say(format!("GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n").as_bytes());
            line.hear_until("ok");
            let heard = target.program.heard();
            assert!(
                heard.starts_with(&format!("GET {seen} HTTP/1.1\r\nhost: shop\r\n")),
                "{who}: {path}: {heard:?}"
            );
        }
        for (target_and_host, authority) in [
            (("http://shop/x", "shop"), "shop"),
            (("HTTP://SHOP/x", "shop:80"), "SHOP"),
            (("/x", "SHOP"), "SHOP"),
            (("http://shop", "shop"), "shop"),
        ] {
            target.program.forget();
            let mut line = line();
            let (path, host) = target_and_host;
            line.say(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes());
            line.hear_until("ok");
            let heard = target.program.heard();
            let (first, rest) = heard.split_once("\r\n").expect("a line");
            assert!(["GET /x HTTP/1.1", "GET / HTTP/1.1"].contains(&first), "{who}: {heard:?}");
            assert!(rest.starts_with(&format!("host: {authority}\r\n")), "{who}: {heard:?}");
            assert_eq!(heard.to_lowercase().matches("host:").count(), 1, "{who}: {heard:?}");
        }
    });
    // What is compressed is passed on as it came: nobody on the way unpacks it, or looks what it would come to.
    let bomb = [&b"\x1f\x8b\x08\0\0\0\0\0\0\x03"[..], &[0; 4000]].concat();
    target.program.forget();
    let mut line = target.dial();
    let head = "POST /bomb HTTP/1.1\r\nHost: shop\r\nContent-Encoding: gzip\r\nContent-Length: 4010\r\n\r\n";
    line.say(&[head.as_bytes(), &bomb].concat());
    line.hear_until("ok");
    let heard = target.program.seen().into_iter().find(|sent| sent.bytes.starts_with(b"POST /bomb"));
    let heard = heard.expect("it came");
    assert!(heard.text().contains("content-encoding: gzip") && heard.bytes.ends_with(&bomb));
}

/// Answers as soon as there is a head, whatever is to follow.
fn answers_early(stream: &mut TcpStream, sent: &Sent) -> io::Result<()> {
    let heads = sent.bytes.windows(4).filter(|part| part == b"\r\n\r\n").count();
    if heads == 1 && sent.bytes.ends_with(b"\r\n\r\n") {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nearly")?;
    }
    Ok(())
}

/// Answers one request with two answers.
fn answers_twice(stream: &mut TcpStream, sent: &Sent) -> io::Result<()> {
    if sent.bytes.ends_with(b"\r\n\r\n") {
        let answer = |text: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len());
        stream.write_all([answer("first"), answer("smuggled")].concat().as_bytes())?;
    }
    Ok(())
}

#[test]
fn what_was_left_of_one_exchange_is_never_taken_for_the_next() {
    let early = Target::with(Pair::new("early"), answers_early);
    from_both_sides(&early, |who, _, line| {
        for fields in ["Content-Length: 50", "Content-Length: 50\r\nExpect: 100-continue"] {
            early.program.forget();
            let mut first = line();
            first.say(format!("POST /early HTTP/1.1\r\nHost: shop\r\n{fields}\r\n\r\n").as_bytes());
            assert!(first.hear_until("early").starts_with("HTTP/1.1 200"));
            // What would have been the body, and looks like a request; then one that is.
            first.say(b"GET /smuggled HTTP/1.1\r\nHost: shop\r\nX: 012345678\r\n\r\nGET /behind HTTP/1.1\r\nHost: shop\r\n\r\n");
            let (rest, end) = first.hear_to_the_end();
            assert_eq!((rest.contains("HTTP/1.1"), end == End::Open), (false, false), "{who}: {rest:?}");
            let mut second = line();
            second.say(b"GET /next HTTP/1.1\r\nHost: shop\r\n\r\n");
            second.hear_until("early");
            let seen = early.program.seen();
            let next = seen.iter().find(|sent| sent.text().contains("/next")).expect("it came");
            assert!(next.text().starts_with("GET /next "), "{who}: on a connection of its own: {seen:?}");
            assert!(seen.iter().all(|sent| !sent.text().starts_with("GET /smuggled")), "{who}: {seen:?}");
            assert!(seen.iter().all(|sent| !sent.text().contains("/behind")), "{who}: {seen:?}");
        }
    });
    let twice = Target::with(Pair::new("twice"), answers_twice);
    from_both_sides(&twice, |who, _, line| {
        let mut line = line();
        for number in 0..10 {
            line.say(format!("GET /{number} HTTP/1.1\r\nHost: shop\r\n\r\n").as_bytes());
            let answer = line.hear_until("first");
            assert!(!answer.contains("smuggled"), "{who}: {answer:?}");
            // A read that was under way may have brought what nobody asked for; it is not passed on either.
            let (rest, _) = line.hear_for_now();
            assert!(!rest.contains("smuggled"), "{who}: {rest:?}");
        }
    });
}

/// Says nothing until it is told what to say by the path.
fn switches_late(stream: &mut TcpStream, sent: &Sent) -> io::Result<()> {
    if !sent.bytes.ends_with(b"\r\n\r\n") {
        return Ok(());
    }
    let text = sent.text();
    if text.starts_with("GET /grants") {
        // Nothing may come before it is granted.
        SockRef::from(&*stream).set_read_timeout(Some(Duration::from_millis(500)))?;
        let early = stream.read(&mut [0; 64]);
        SockRef::from(&*stream).set_read_timeout(None)?;
        let held = matches!(&early, Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
        let said = if held { "<held>" } else { "<leaked>" };
        let granted = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        stream.write_all(format!("{granted}{said}").as_bytes())
    } else {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno")
    }
}

#[test]
fn bytes_behind_an_upgrade_are_held_until_it_is_granted() {
    let target = Target::with(Pair::new("upgrade"), switches_late);
    let upgrade =
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    from_both_sides(&target, |who, _, line| {
        let ask = |path: &str, fields: &str| {
            target.program.forget();
            let mut line = line();
            let head = format!("GET {path} HTTP/1.1\r\nHost: shop\r\n{fields}\r\n");
            line.say(format!("{head}GET /behind HTTP/1.1\r\nHost: shop\r\n\r\n").as_bytes());
            line
        };
        let mut granted = ask("/grants", upgrade);
        let answer = granted.hear_until(">");
        assert!(answer.starts_with("HTTP/1.1 101") && answer.ends_with("<held>"), "{who}: {answer:?}");
        wait_until("what was held comes as it is", || {
            target.program.heard().ends_with("\r\n\r\nGET /behind HTTP/1.1\r\nHost: shop\r\n\r\n")
        });
        // Where it is not granted, what follows is a request like any other, with all that agents do to one.
        let mut refused = ask("/refuses", upgrade);
        refused.hear_until("no");
        wait_until("the request behind it is carried", || target.program.heard().contains("GET /behind"));
        let heard = target.program.heard();
        assert!(heard.matches("host: shop").count() == 2 && !heard.contains("Host:"), "{who}: {heard:?}");
        // Other protocols are never granted, since they are never asked for.
        for fields in [
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
            "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
            "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        ] {
            ask("/h2c", fields).hear_until("no");
            let heard = target.program.heard().to_lowercase();
            assert!(!heard.contains("upgrade") && !heard.contains("http2-settings"), "{who}: {heard:?}");
        }
    });
}

#[test]
fn requests_of_http2_are_never_more_than_one_of_http1() {
    let target = Target::with(Pair::new("downgrade"), answers_each as Answers);
    let get = request("GET", "/one");
    let post = request("POST", "/one");
    let with = |name: &str, value: &str| [get.clone(), field(name, value.as_bytes())].concat();
    let smuggled = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: shop\r\n\r\n";
    let pseudo = |method: &str, path: &str, authority: &str| {
        fields(&[(":method", method), (":scheme", "http"), (":path", path), (":authority", authority)])
    };
    let cases: Vec<(&str, Vec<u8>, Option<&str>)> = vec![
        ("a coding", with("transfer-encoding", "chunked"), Some(smuggled)),
        ("a connection", with("connection", "content-length"), None),
        ("keep-alive", with("keep-alive", "x"), None),
        ("an upgrade", with("upgrade", "h2c"), None),
        ("te", with("te", "gzip"), None),
        ("a line break in a value", with("x", "a\r\ntransfer-encoding: chunked"), Some(smuggled)),
        ("a line feed in a value", with("x", "a\nb: c"), None),
        ("a carriage return in a value", with("x", "a\rb"), None),
        ("a NUL in a value", with("x", "a\0b"), None),
        ("a line break in a name", with("x: a\r\ny", "b"), None),
        ("a colon in a name", with("x:y", "b"), None),
        ("a space in a name", with("x y", "b"), None),
        ("a name in capitals", with("Transfer-Encoding", "chunked"), Some(smuggled)),
        ("a line break in the path", pseudo("GET", "/ HTTP/1.1\r\nx: y", "shop"), None),
        ("a space in the path", pseudo("GET", "/a b", "shop"), None),
        ("a NUL in the path", pseudo("GET", "/a%00b", "shop"), None),
        ("a path without a slash", pseudo("GET", "a", "shop"), None),
        ("a path beyond ASCII", pseudo("GET", "/\u{e4}", "shop"), None),
        ("an empty path", pseudo("GET", "", "shop"), None),
        ("a line break in the method", pseudo("GET / HTTP/1.1\r\nx: ", "/", "shop"), None),
        ("a space in the method", pseudo("GET /x", "/", "shop"), None),
        ("a line break in the authority", pseudo("GET", "/", "shop\r\nx: y"), None),
        ("a user in the authority", pseudo("GET", "/", "admin@shop"), None),
        ("an encoded authority", pseudo("GET", "/", "sho%70"), None),
        ("an authority and another host", with("host", "admin"), None),
        ("two paths", [get.clone(), field(":path", b"/two")].concat(), None),
        ("a pseudo field behind others", [field("x", b"y"), get.clone()].concat(), None),
        ("an unknown pseudo field", with(":upstream", "admin"), None),
        (
            "a scheme that is none",
            fields(&[(":method", "GET"), (":scheme", "http://x/"), (":path", "/"), (":authority", "shop")]),
            None,
        ),
        ("a length that is none", [post.clone(), field("content-length", b"+5")].concat(), Some("hello")),
        (
            "two lengths",
            [post.clone(), field("content-length", b"5"), field("content-length", b"6")].concat(),
            Some("hello"),
        ),
        ("a list of lengths", [post.clone(), field("content-length", b"5, 5")].concat(), Some("hello")),
        (
            "a length that is too short",
            [post.clone(), field("content-length", b"1")].concat(),
            Some(smuggled),
        ),
        ("a length that is too long", [post, field("content-length", b"99")].concat(), Some("hello")),
        (
            "CONNECT",
            fields(&[(":method", "CONNECT"), (":authority", "shop:80")]),
            Some("GET / HTTP/1.1\r\n\r\n"),
        ),
    ];
    from_both_sides(&target, |who, (agent, reporter), line| {
        // What the codec takes for no request (PROTOCOL_ERROR) has no line and no count: only what is answered is one.
        let answered = ["400", "405"].map(|code| Refusal::of_request(reporter, code, &["http1.", "http2."]));
        for (name, block, body) in &cases {
            target.program.forget();
            let before = answered.map(|refusal| agent.noted(&refusal));
            let mut client = Client::start(line(), &[]);
            let stream = client.stream();
            let flags = END_HEADERS | if body.is_none() { END_STREAM } else { 0 };
            client.send(&frame(HEADERS, flags, stream, block));
            if let Some(body) = body {
                client.send(&frame(0, END_STREAM, stream, body.as_bytes()));
            }
            let outcome = client.outcome(stream);
            let expected = [
                Outcome::Reset(PROTOCOL_ERROR),
                Outcome::GoAway(PROTOCOL_ERROR),
                Outcome::Status(400),
                Outcome::Status(405),
            ];
            assert!(expected.contains(&outcome), "{who}, {name}: {outcome:?}");
            if let Outcome::Status(status) = outcome {
                let at = usize::from(status == 405);
                agent.wait_until_noted(&answered[at], before[at], 1);
            }
            let heard = target.program.heard();
            // One whose body turns out to be none may have begun; no other ever does.
            let begun = heard.matches(" HTTP/1.1\r\n").count();
            assert!(begun <= 1 && !heard.contains("smuggled"), "{who}, {name}: {heard:?}");
            assert!(begun == 0 || body.is_some(), "{who}, {name}: {heard:?}");
        }
    });
    // Within a tunnel HTTP/2 stays what it is; from a program it becomes HTTP/1, as the port says.
    let mut client = Client::start(target.dial(), &[]);
    let stream = client.stream();
    client.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &get));
    assert_eq!(client.outcome(stream), Outcome::Status(200), "what is well is carried");
}
