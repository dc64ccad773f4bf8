//! Requests whose end two readers could see at two places.

use super::*;

/// A request with fields, refused.
fn fields_refused(fields: &str, status: u16, detail: &str) {
    refused(format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n0\r\n\r\n").as_bytes(), status, detail);
}

#[test]
fn framings_that_two_readers_could_read_differently_are_refused() {
    let length = "invalid_content_length";
    let coding = "invalid_transfer_encoding";
    let both = "content_length_and_chunked_not_allowed";
    let characters = "invalid_characters";
    for (fields, status, detail) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", 400, both),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5", 400, both),
        ("Transfer-Encoding: chunked\r\nContent-Length: 0", 400, both),
        ("Content-Length: 5\r\nContent-Length: 6", 400, length),
        ("Content-Length: 5\r\nContent-Length: 5", 400, length),
        ("Content-Length: 5, 5", 400, length),
        ("Content-Length: 5, 6", 400, length),
        ("Content-Length: +5", 400, length),
        ("Content-Length: -5", 400, length),
        ("Content-Length: 0x5", 400, length),
        ("Content-Length: 5 5", 400, length),
        ("Content-Length: 5;", 400, length),
        ("Content-Length: 1e1", 400, length),
        ("Content-Length: 5.0", 400, length),
        ("Content-Length: 1_0", 400, length),
        ("Content-Length: ", 400, length),
        ("Content-Length: \u{664}", 400, length),
        ("Content-Length: \"5\"", 400, length),
        ("Content-Length: 5\u{c}", 400, length),
        ("Content-Length: 18446744073709551616", 400, length),
        ("Content-Length: 18446744073709551621", 400, length),
        ("Content-Length: 9223372036854775808", 400, length),
        ("Content-Length: 00000000000000000000005", 400, length),
        ("Content-Length : 5", 400, characters),
        ("Content-Length\t: 5", 400, characters),
        ("Content-Length\0: 5", 400, characters),
        ("Transfer-Encoding: chunked, chunked", 400, coding),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 400, coding),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", 501, coding),
        ("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked", 501, coding),
        ("Transfer-Encoding: gzip, chunked", 501, coding),
        ("Transfer-Encoding: chunked, gzip", 501, coding),
        ("Transfer-Encoding: identity", 501, coding),
        ("Transfer-Encoding: xchunked", 501, coding),
        ("Transfer-Encoding: chunked, identity", 501, coding),
        ("Transfer-Encoding: ", 400, coding),
        ("Transfer-Encoding: ,chunked", 400, coding),
        ("Transfer-Encoding: chunked,", 400, coding),
        ("Transfer-Encoding: \"chunked\"", 400, coding),
        ("Transfer-Encoding: chunked;q=1", 400, coding),
        ("Transfer-Encoding: \u{b}chunked", 400, coding),
        ("Transfer-Encoding: \u{c}chunked", 400, coding),
        ("Transfer-Encoding: chunked\u{a0}", 400, coding),
        ("Transfer-Encoding: chun\u{212a}ed", 400, coding),
        ("Transfer-Encoding : chunked", 400, characters),
        ("Transfer-Encoding\u{a0}: chunked", 400, characters),
        ("Transfer_Encoding: chunked\r\nTransfer-Encoding: x", 501, coding),
        (" Transfer-Encoding: chunked", 400, "codec_error"),
        ("X: a\r\n Transfer-Encoding: chunked", 400, "codec_error"),
        ("X: a\r\n\tb", 400, "codec_error"),
        ("X: a\r\n \r\nY: b", 400, "codec_error"),
        ("X: a\rTransfer-Encoding: chunked", 400, characters),
        ("X: a\nTransfer-Encoding: chunked", 400, "codec_error"),
        ("X: a\r\r\nY: b", 400, characters),
        ("X: a\0", 400, characters),
        ("X: a\u{7f}", 400, characters),
        ("X: \u{1b}[0m", 400, characters),
        ("X", 400, "codec_error"),
        (": a", 400, characters),
        ("X Y: a", 400, characters),
        ("X\u{e4}: a", 400, characters),
        ("\"X\": a", 400, characters),
        ("X(: a", 400, characters),
        ("Keep-Alive: a\0", 400, characters),
        ("Upgrade: web\0socket", 400, characters),
        ("Proxy-Connection: \u{1}", 400, characters),
        ("Connection: close;q=1", 400, "connection_header_rejected"),
        ("Connection: a b", 400, "connection_header_rejected"),
        ("Connection: a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q", 400, "connection_header_rejected"),
    ] {
        fields_refused(fields, status, detail);
    }
    for bytes in [
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        refused(bytes.as_bytes(), 400, "body_disallowed");
    }
}

#[test]
fn chunks_that_two_readers_could_read_differently_are_refused() {
    let many = format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(300));
    let forever =
        "1;aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\nx\r\n"
            .repeat(250);
    for body in [
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "5\t\r\nhello\r\n0\r\n\r\n",
        "5 ;a\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        ";a\r\nhello\r\n0\r\n\r\n",
        "g\r\nhello\r\n0\r\n\r\n",
        "5_\r\nhello\r\n0\r\n\r\n",
        "5.0\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5\r\rhello\r\n0\r\n\r\n",
        "5;a\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "5;\0\r\nhello\r\n0\r\n\r\n",
        "5;a\n\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5\r\nhello\r0\r\n\r\n",
        "5\r\nhello\r\n\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "0000000000000005\r\nhello\r\n0\r\n\r\n",
        "0\n\n",
        "0\r\n\n",
        "0\r\nX: a\n\r\n",
        "0\r\n X: a\r\n\r\n",
        "0\r\n\rX\r\n\r\n",
        &many,
        &forever,
    ] {
        let bytes = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        let (messages, ended) = requests(&[bytes.as_bytes()]);
        assert_eq!((messages.len(), ended), (0, Err("400 http1.codec_error".into())), "{body:?}");
        if bytes.len() < 1000 {
            the_same_however_cut(bytes.as_bytes(), requests);
        }
    }
    for (trailers, detail) in [
        ("X : a\r\n\r\n", "invalid_characters"),
        ("X: \0\r\n\r\n", "invalid_characters"),
        ("Content-Length: \0\r\n\r\n", "invalid_characters"),
        ("X-Forwarded-(: a\r\n\r\n", "invalid_characters"),
        ("X", "truncated"),
        ("X\r\n\r\n", "codec_error"),
    ] {
        let bytes =
            format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{trailers}");
        refused(bytes.as_bytes(), 400, detail);
    }
}
