//! Responses: how their bodies end, and those that are refused.

use super::*;

fn taken(bytes: &[u8], asked: Asked, framing: Framing, expected: &[u8]) {
    let shown = String::from_utf8_lossy(bytes);
    let (messages, ended) = responses(&[bytes], asked);
    assert_eq!(ended, Ok(()), "{shown:?}");
    assert_eq!(messages.last().expect("a response").hop.framing, framing, "{shown:?}");
    let written: Vec<_> =
        messages.iter().flat_map(|message| write_response(message).expect("written")).collect();
    assert_eq!(String::from_utf8_lossy(&written), String::from_utf8_lossy(expected), "{shown:?}");
    the_same_however_cut(bytes, |parts| responses(parts, asked));
}

#[test]
fn bodies_end_as_the_status_and_the_fields_say() {
    use Asked::{Head, Other, Upgrade};
    taken(
        b"HTTP/1.1 200 Whatever\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
        Other,
        Framing::Length(2),
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
    );
    taken(
        b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\nServer: x\r\n\r\n2\r\nhi\r\n0\r\ngrpc-status: 0\r\n\r\n",
        Other,
        Framing::Chunked,
        b"HTTP/1.1 200 OK\r\nserver: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\ngrpc-status: 0\r\n\r\n",
    );
    taken(
        b"HTTP/1.0 200 OK\r\n\r\nall of\r\n\r\nit",
        Other,
        Framing::UntilClose,
        b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nall of\r\n\r\nit",
    );
    taken(
        b"HTTP/1.1 599 \r\nContent-Length: 0\r\n\r\n",
        Other,
        Framing::Length(0),
        b"HTTP/1.1 599 \r\ncontent-length: 0\r\n\r\n",
    );
    // Nothing comes where the request or the status says so.
    taken(
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        Head,
        Framing::None,
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    );
    taken(
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        Other,
        Framing::None,
        b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n",
    );
    taken(
        b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
        Other,
        Framing::None,
        b"HTTP/1.1 204 No Content\r\n\r\n",
    );
    taken(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
        Other,
        Framing::Length(1),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx",
    );
    // After 101 the bytes are another protocol's.
    taken(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n\x81\x02hiHTTP/1.1",
        Upgrade,
        Framing::Upgraded,
        b"HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n\x81\x02hiHTTP/1.1",
    );
    // A change that was asked for and not granted.
    taken(
        b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 0\r\n\r\n",
        Upgrade,
        Framing::Length(0),
        b"HTTP/1.1 426 Upgrade Required\r\ncontent-length: 0\r\n\r\n",
    );
}

#[test]
fn malformed_responses_are_refused() {
    let interim = "HTTP/1.1 102 Processing\r\n\r\n".repeat(MAX_INTERIM + 1);
    let upgrade = "Upgrade: websocket\r\nConnection: upgrade\r\n";
    for (bytes, asked, detail) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            Asked::Other,
            "content_length_and_chunked_not_allowed",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            Asked::Other,
            "invalid_content_length",
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\n", Asked::Other, "invalid_content_length"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", Asked::Other, "invalid_transfer_encoding"),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Asked::Other, "body_disallowed"),
        ("HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n", Asked::Other, "body_disallowed"),
        ("HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked\r\n\r\n", Asked::Other, "body_disallowed"),
        ("HTTP/1.1 200 OK\r\nX: a\nY: b\r\n\r\n", Asked::Other, "codec_error"),
        ("HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", Asked::Other, "codec_error"),
        ("HTTP/1.1 200 OK\r\nX : a\r\n\r\n", Asked::Other, "invalid_characters"),
        ("HTTP/1.1 200 O\0K\r\n\r\n", Asked::Other, "codec_error"),
        ("HTTP/1.1 200OK\r\n\r\n", Asked::Other, "codec_error"),
        ("HTTP/1.1  200 OK\r\n\r\n", Asked::Other, "codec_error"),
        ("HTTP/1.1 20 OK\r\n\r\n", Asked::Other, "codec_error"),
        ("HTTP/1.1 099 OK\r\n\r\n", Asked::Other, "codec_error"),
        ("HTTP/1.1\r\n\r\n", Asked::Other, "codec_error"),
        ("HTTP/2.0 200 OK\r\n\r\n", Asked::Other, "unsupported_version"),
        ("ICY 200 OK\r\n\r\n", Asked::Other, "codec_error"),
        ("\r\nHTTP/1.1 200 OK\r\n\r\n", Asked::Other, "codec_error"),
        ("<html>", Asked::Other, "codec_error"),
        (&format!("HTTP/1.1 101 S\r\n{upgrade}\r\n"), Asked::Other, "unexpected_upgrade"),
        (
            "HTTP/1.1 101 S\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
            Asked::Upgrade,
            "unexpected_upgrade",
        ),
        ("HTTP/1.1 101 S\r\nUpgrade: websocket\r\n\r\n", Asked::Upgrade, "unexpected_upgrade"),
        (&interim, Asked::Other, "codec_error"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", Asked::Other, "truncated"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", Asked::Other, "truncated"),
        ("HTTP/1.1 200 OK\r\nTransfer-Enc", Asked::Other, "truncated"),
    ] {
        let (_, ended) = responses(&[bytes.as_bytes()], asked);
        let word = ended.expect_err(bytes);
        assert!(word.ends_with(&format!("http1.{detail}")), "{bytes:?}: {word}");
        the_same_however_cut(bytes.as_bytes(), |parts| responses(parts, asked));
    }
}

#[test]
fn answers_fit_the_client() {
    use Framing::{Chunked, Length, UntilClose};
    use Persistence::{Close, Keep, KeepSaid};
    let check = |version, wish, framing, expected| {
        let hop = Hop::to_client(version, wish, framing);
        assert_eq!((hop.framing, hop.persistence), expected, "{version:?} {wish:?} {framing:?}");
    };
    check(Version::Http11, Keep, Chunked, (Chunked, Keep));
    check(Version::Http11, Keep, UntilClose, (Chunked, Keep));
    check(Version::Http11, Close, Length(1), (Length(1), Close));
    check(Version::Http10, KeepSaid, Chunked, (UntilClose, Close));
    check(Version::Http10, KeepSaid, UntilClose, (UntilClose, Close));
    check(Version::Http10, KeepSaid, Length(1), (Length(1), KeepSaid));
}
