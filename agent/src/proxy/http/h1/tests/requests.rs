//! Requests: their lines, whom they are for, and what they are understood as, in the form in which they are written on.

use super::*;

#[test]
fn request_lines_and_hosts_have_one_reading() {
    let all: [(&str, u16, &str); 52] = [
        ("GET / HTTP/1.1\r\n\r\n", 400, "invalid_host"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400, "invalid_host"),
        ("GET / HTTP/1.1\r\nHost: a\r\nhOST: b\r\n\r\n", 400, "invalid_host"),
        ("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400, "invalid_host"),
        ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400, "invalid_host"),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "invalid_host"),
        ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400, "invalid_host"),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, "invalid_host"),
        ("GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 400, "invalid_host"),
        ("GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n", 400, "invalid_host"),
        ("GET / HTTP/1.1\r\nHost: http://a\r\n\r\n", 400, "invalid_host"),
        ("GET / HTTP/1.1\r\nHost: a%2eb\r\n\r\n", 400, "invalid_host"),
        ("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400, "invalid_host"),
        ("GET / HTTP/1.1\r\nHost: a\0\r\n\r\n", 400, "invalid_characters"),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400, "invalid_characters"),
        ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400, "codec_error"),
        ("GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", 400, "invalid_host"),
        ("GET http://a/ HTTP/1.0\r\nHost: b\r\n\r\n", 400, "invalid_host"),
        ("GET http://a/ HTTP/1.1\r\n\r\n", 400, "invalid_host"),
        ("GET http://a/ HTTP/1.1\r\nHost:\r\n\r\n", 400, "invalid_host"),
        ("GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_host"),
        ("GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_host"),
        ("GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_host"),
        ("GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_scheme"),
        ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_scheme"),
        ("GET http:/a HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_url"),
        ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_url"),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_url"),
        ("GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_url"),
        ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_url"),
        ("GET /a?b#c HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_url"),
        ("GET http://a?b#c HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_url"),
        ("GET http://a#c HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_url"),
        ("GET /a%00b HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_url"),
        ("GET /\u{e4} HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_url"),
        ("GET /\t HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_url"),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "codec_error"),
        ("GET /  HTTP/1.1\r\nHost: a\r\n\r\n", 400, "codec_error"),
        ("GET / x HTTP/1.1\r\nHost: a\r\n\r\n", 400, "codec_error"),
        ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400, "codec_error"),
        ("GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n", 400, "codec_error"),
        ("G@T / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "codec_error"),
        (" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "codec_error"),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "codec_error"),
        ("\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "codec_error"),
        ("GET / HTTP/1.1\nHost: a\n\n", 400, "codec_error"),
        ("GET /\r\n\r\n", 400, "codec_error"),
        ("GET / http/1.1\r\nHost: a\r\n\r\n", 400, "codec_error"),
        ("GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400, "codec_error"),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505, "unsupported_version"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "unsupported_version"),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 405, "connect_not_allowed"),
    ];
    for (bytes, status, detail) in all {
        refused(bytes.as_bytes(), status, detail);
    }
    refused(b"\x16\x03\x01\x02\0\x01\0", 400, "codec_error");
    refused(b"GET / HTTP/1.1\r\nHost: a\r\n", 400, "truncated");
    refused(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell", 400, "truncated");
    refused(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        400,
        "truncated",
    );
}

#[test]
fn sound_requests_are_written_on_in_one_form() {
    taken(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    taken(b"\r\nGET / HTTP/1.1\r\nHOST:\ta:80 \r\n\r\n", b"GET / HTTP/1.1\r\nhost: a:80\r\n\r\n");
    taken(
        b"get /a//b/../%2e?x=%00|{} HTTP/1.1\r\nhost: A\r\n\r\n",
        b"get /a//b/../%2e?x=%00|{} HTTP/1.1\r\nhost: A\r\n\r\n",
    );
    taken(
        b"GET / HTTP/1.1\r\nHost:\r\nX-A:  b \t c\t\r\nx-a:\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: \r\nx-a: b \t c\r\nx-a: \r\n\r\n",
    );
    taken(
        b"GET / HTTP/1.1\r\nHost: a\r\nX: \xe4\xff\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: \xe4\xff\r\n\r\n",
    );
    taken(b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nhost: \r\nconnection: close\r\n\r\n");
    taken(b"GET http://A:80?x HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /?x HTTP/1.1\r\nhost: A:80\r\n\r\n");
    taken(b"GET HTTP://a HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    taken(b"OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n", b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n");
    taken(b"OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", b"OPTIONS * HTTP/1.1\r\nhost: [::1]:80\r\n\r\n");
    // Lengths, and what comes behind a body.
    taken(
        b"POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 003\r\nb: c\r\n\r\nabcGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\nb: c\r\n\r\nabcGET /2 HTTP/1.1\r\nhost: a\r\n\r\n",
    );
    taken(
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    );
    // Chunks: what was written as two parts is one where it was read at once; extensions go, forbidden trailers too.
    taken(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n5;a=\"b c\";d\r\nhello\r\n0A\r\n, world!!!\r\n00;x\r\nX-Sum: 1\r\nContent-Length: 5\r\nHost: b\r\nX-Forwarded-For: c\r\nIf-Match: d\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nf\r\nhello, world!!!\r\n0\r\nx-sum: 1\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
    );
    taken(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    );
}

#[test]
fn fields_of_one_connection_are_not_passed_on() {
    let check = |fields: &str, expected: &str| {
        taken(
            format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n").as_bytes(),
            format!("GET / HTTP/1.1\r\nhost: a\r\n{expected}\r\n").as_bytes(),
        );
    };
    check("Connection: keep-alive\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive", "");
    check("Connection: x-b, ,X-C\r\nX-A: 1\r\nX-B: 2\r\nx-c: 3", "x-a: 1\r\n");
    check("X-B: 2\r\nConnection: close\r\nConnection: x-b", "connection: close\r\n");
    check(
        "Connection: host, content-length, transfer-encoding\r\nContent-Length: 0",
        "content-length: 0\r\n",
    );
    check("TE: gzip, Trailers\r\nConnection: TE", "te: trailers\r\nconnection: te\r\n");
    check("TE: gzip\r\nConnection: TE", "");
    check("TE: trailers;q=0.5", "");
    check("Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__", "");
    check("Upgrade: websocket, h2c\r\nConnection: Upgrade", "");
    check("Upgrade: websocket\r\nUpgrade: h2c\r\nConnection: Upgrade", "");
    check("Upgrade: websocket", "");
    check("Connection: upgrade", "");
    check(
        "Connection: close, upgrade\r\nUpgrade: websocket",
        "upgrade: websocket\r\nconnection: upgrade, close\r\n",
    );
    check(
        "UPGRADE: WebSocket\r\nConnection: keep-alive, Upgrade",
        "upgrade: websocket\r\nconnection: upgrade\r\n",
    );
    taken(
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 1\r\n\r\nx",
        b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx",
    );
    taken(
        b"GET / HTTP/1.0\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade, keep-alive\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nconnection: keep-alive\r\n\r\n",
    );
}

#[test]
fn connections_are_kept_as_their_version_says() {
    let check = |version: &str, connection: &str, expected| {
        let bytes = format!("GET / HTTP/{version}\r\nHost: a\r\n{connection}\r\n");
        let (messages, _) = requests(&[bytes.as_bytes()]);
        assert_eq!(messages[0].hop.persistence, expected, "{bytes:?}");
    };
    check("1.1", "", Persistence::Keep);
    check("1.1", "Connection: keep-alive\r\n", Persistence::Keep);
    check("1.1", "Connection: keep-alive, Close\r\n", Persistence::Close);
    check("1.0", "", Persistence::Close);
    check("1.0", "Connection: Keep-Alive\r\n", Persistence::KeepSaid);
    check("1.0", "Connection: keep-alive\r\nConnection: close\r\n", Persistence::Close);
}

#[test]
fn heads_have_bounds() {
    let limits = HttpLimits { head_bytes: 200, fields: 4, target_bytes: 20 };
    let check = |bytes: String, expected: Option<u16>| {
        for size in [1, 7, 1000] {
            let (mut parser, mut head) = (Parser::new(limits), RequestHead::default());
            let status = bytes.as_bytes().chunks(size).find_map(|part| {
                parser.feed(part);
                parser.request(&mut head).err().map(|error| error.status().expect("a status"))
            });
            assert_eq!(status, expected, "{bytes:?} by {size}");
        }
    };
    let fields = |count: usize| "x: y\r\n".repeat(count);
    check(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(3)), None);
    check(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(4)), Some(431));
    check(format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(19)), None);
    check(format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(20)), Some(414));
    check(format!("GET /{}", "a".repeat(300)), Some(414));
    // 16 for the first line, 9 for the host, 4 for the last two line ends and 4 for the field's name.
    check(format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}\r\n\r\n", "a".repeat(168)), None);
    check(format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}\r\n\r\n", "a".repeat(169)), Some(431));
    check(format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}", "a".repeat(300)), Some(431));
    let chunked = |trailers: String| {
        format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{trailers}")
    };
    for (trailers, expected) in [
        (format!("{}\r\n", fields(4)), None),
        (format!("{}\r\n", fields(5)), Some(431)),
        (format!("x: {}", "a".repeat(300)), Some(431)),
    ] {
        let (mut parser, mut head) = (Parser::new(limits), RequestHead::default());
        parser.feed(chunked(trailers).as_bytes());
        assert!(parser.request(&mut head).expect("a head").is_some());
        assert_eq!(parser.frame().err().and_then(|error| error.status()), expected);
    }
}

#[test]
fn what_is_left_of_a_body_is_no_request() {
    let (mut parser, mut head) = (Parser::new(HttpLimits::default()), RequestHead::default());
    parser.feed(
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 60\r\n\r\nGET /evil HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    assert!(parser.request(&mut head).expect("a head").is_some());
    assert!(matches!(parser.request(&mut head), Err(H1Error::Unfinished)));
}

#[test]
fn what_would_make_two_requests_of_one_is_not_written() {
    let mut sound =
        RequestHead { method: "GET".into(), target: "/".into(), authority: "a".into(), ..Default::default() };
    let hop = Hop { framing: Framing::None, persistence: Persistence::Keep, upgrade: false };
    let write = |head: &RequestHead, hop: &Hop| Pending::default().request(head, hop);
    assert!(write(&sound, &hop).is_ok());
    for (method, target, authority) in [
        ("GET / HTTP/1.1\r\n", "/", "a"),
        ("", "/", "a"),
        ("GET", "/ HTTP/1.1\r\nx: y", "a"),
        ("GET", "x", "a"),
        ("GET", "*", "a"),
        ("GET", "", "a"),
        ("GET", "/", "a\r\nx: y"),
        ("GET", "/", "a b"),
    ] {
        let head = RequestHead {
            method: method.into(),
            target: target.into(),
            authority: authority.into(),
            ..Default::default()
        };
        assert!(write(&head, &hop).is_err(), "{head:?}");
    }
    // Whatever rules put among the fields, there is one framing and one host.
    for (name, value) in [
        ("host", "b"),
        ("content-length", "9"),
        ("transfer-encoding", "x"),
        ("connection", "y"),
        ("upgrade", "z"),
    ] {
        sound.headers.append(name, value.as_bytes()).expect("a field");
    }
    let mut pending = Pending::default();
    pending.request(&sound, &Hop { framing: Framing::Length(2), ..hop }).expect("written");
    assert!(pending.data(Bytes::from_static(b"abc")).is_err(), "more than was said");
    assert!(pending.finish(None).is_err(), "less than was said");
    assert!(pending.request(&sound, &hop).is_err(), "within a body");
    assert_eq!(pending.take().concat(), b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n");
}
