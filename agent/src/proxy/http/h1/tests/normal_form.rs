//! Whatever the bytes: what is taken is written in a form that is read as the same again.

use proptest::prelude::*;

use super::*;

const REQUESTS: [&str; 6] = [
    "GET /a?b HTTP/1.1\r\nHost: a:80\r\nAccept: */*\r\nConnection: x, keep-alive\r\nX: y\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 11\r\n\r\nhello worldGET / HTTP/1.1\r\nhost: b\r\n\r\n",
    "PUT http://a/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n5;x\r\nhello\r\n1\r\n!\r\n0\r\nSum: 1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    "OPTIONS * HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
    "\r\nGET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
];

const RESPONSES: [&str; 4] = [
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: x\r\nX: y\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nSum: 1\r\n\r\nHTTP/1.1 204 No\r\n\r\n",
    "HTTP/1.0 404 Not Found\r\nServer: x\r\n\r\nuntil the end",
    "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
];

/// What mutations are made of: what parsers look at.
const PIECES: [&str; 34] = [
    "\r",
    "\n",
    "\r\n",
    " ",
    "\t",
    ":",
    ",",
    ";",
    "\0",
    "0",
    "5",
    "a",
    "/",
    "*",
    "#",
    "%00",
    "-",
    "+",
    "\u{e4}",
    "\x0b",
    "Transfer-Encoding: chunked\r\n",
    "Content-Length: 3\r\n",
    "Host: b\r\n",
    "Connection: close\r\n",
    "\r\n\r\n",
    "Connection: upgrade\r\n",
    "Upgrade: websocket\r\n",
    "TE: trailers\r\n",
    "HTTP/1.0",
    "chunked",
    "0\r\n",
    " \r\n x: y",
    "GET / HTTP/1.1\r\n",
    "[",
];

#[derive(Debug, Clone)]
enum Mutation {
    Remove(prop::sample::Index, usize),
    Insert(prop::sample::Index, &'static str),
    Set(prop::sample::Index, u8),
    Repeat(prop::sample::Index, prop::sample::Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        (any::<prop::sample::Index>(), 1..4_usize).prop_map(|(at, length)| Mutation::Remove(at, length)),
        (any::<prop::sample::Index>(), prop::sample::select(&PIECES[..]))
            .prop_map(|(at, piece)| Mutation::Insert(at, piece)),
        (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        any::<(prop::sample::Index, prop::sample::Index)>().prop_map(|(from, to)| Mutation::Repeat(from, to)),
    ]
}

fn mutated(text: &str, mutations: Vec<Mutation>) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for mutation in mutations {
        let places = bytes.len() + 1;
        match mutation {
            Mutation::Remove(at, length) => {
                let at = at.index(places);
                bytes.drain(at..(at + length).min(places - 1));
            }
            Mutation::Insert(at, piece) => {
                let at = at.index(places);
                bytes.splice(at..at, piece.bytes());
            }
            Mutation::Set(at, byte) if places > 1 => {
                let at = at.index(places - 1);
                bytes[at] = byte;
            }
            Mutation::Set(..) => {}
            Mutation::Repeat(from, to) => {
                let (from, to) = (from.index(places), to.index(places));
                let part = bytes[from.min(to)..from.max(to)].to_vec();
                bytes.splice(from..from, part);
            }
        }
    }
    bytes
}

/// What is written says 1.1, with which a connection is kept without being said.
fn as_written(hop: Hop) -> Hop {
    match hop.persistence {
        Persistence::KeepSaid => Hop { persistence: Persistence::Keep, ..hop },
        _ => hop,
    }
}

/// Every request that was taken is read again as itself, alone, and is then written as before.
fn requests_are_stable(bytes: &[u8]) {
    for message in requests(&[bytes]).0 {
        let written = write_request(&message).expect("what was read can be written");
        let (again, ended) = requests(&[&written]);
        assert_eq!(ended, Ok(()), "{:?}", String::from_utf8_lossy(&written));
        let mut expected = Message { hop: as_written(message.hop), ..message };
        expected.head.version = Version::Http11;
        assert_eq!(again, [expected], "{:?}", String::from_utf8_lossy(&written));
    }
}

fn responses_are_stable(bytes: &[u8], asked: Asked) {
    for message in responses(&[bytes], asked).0 {
        let written = write_response(&message).expect("what was read can be written");
        let (again, ended) = responses(&[&written], asked);
        assert_eq!(ended, Ok(()), "{:?}", String::from_utf8_lossy(&written));
        let mut expected = Message { hop: as_written(message.hop), ..message };
        expected.head.version = Version::Http11;
        assert_eq!(again, [expected], "{:?}", String::from_utf8_lossy(&written));
    }
}

#[test]
fn the_texts_themselves_are_stable() {
    REQUESTS.iter().for_each(|text| requests_are_stable(text.as_bytes()));
    RESPONSES.iter().for_each(|text| responses_are_stable(text.as_bytes(), Asked::Other));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(2000), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_requests_are_refused_or_read_as_they_are_written(
        text in prop::sample::select(&REQUESTS[..]),
        mutations in prop::collection::vec(mutation(), 0..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let bytes = mutated(text, mutations);
        requests_are_stable(&bytes);
        let (before, after) = bytes.split_at(cut.index(bytes.len() + 1));
        prop_assert_eq!(requests(&[before, after]), requests(&[&bytes]));
    }

    #[test]
    fn mutated_responses_are_refused_or_read_as_they_are_written(
        text in prop::sample::select(&RESPONSES[..]),
        mutations in prop::collection::vec(mutation(), 0..6),
        asked in prop::sample::select(&[Asked::Head, Asked::Upgrade, Asked::Other][..]),
        cut in any::<prop::sample::Index>(),
    ) {
        let bytes = mutated(text, mutations);
        responses_are_stable(&bytes, asked);
        let (before, after) = bytes.split_at(cut.index(bytes.len() + 1));
        prop_assert_eq!(responses(&[before, after], asked), responses(&[&bytes], asked));
    }
}
