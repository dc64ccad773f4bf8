//! What a program sends as HTTP/1. The first byte says where what follows is cut in two, as if it came in two parts.

use baremesh_agent::proxy::http::h1::parser::Step;
use baremesh_agent::proxy::http::h1::writer::Pending;
use baremesh_agent::proxy::http::h1::{Frame, Framing, Hop, HttpLimits, Parser, Persistence};
use baremesh_model::http::{Headers, RequestHead, Version};
use bytes::Bytes;

/// One request and all that is known of it.
#[derive(Debug, Clone, PartialEq)]
struct Message {
    head: RequestHead,
    hop: Hop,
    body: Vec<u8>,
    trailers: Headers,
}

pub fn check(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else { return };
    let (before, after) = bytes.split_at(usize::from(*cut).min(bytes.len()));
    let (messages, sound) = read(&[bytes]);
    assert_eq!(read(&[before, after]), (messages.clone(), sound), "it depends on where it is cut");
    for message in messages {
        let written = write(&message);
        judge(&written);
        let mut expected = message;
        expected.head.version = Version::Http11;
        if expected.hop.persistence == Persistence::KeepSaid {
            expected.hop.persistence = Persistence::Keep;
        }
        assert_eq!(read(&[&written]), (vec![expected], true), "another request when written");
    }
}

/// The requests of some bytes, and whether these are nothing else.
fn read(parts: &[&[u8]]) -> (Vec<Message>, bool) {
    let (mut parser, mut messages) = (Parser::new(HttpLimits::default()), Vec::new());
    let mut open: Option<Message> = None;
    for part in parts {
        parser.feed(part);
        loop {
            let Some(message) = &mut open else {
                let mut head = RequestHead::default();
                match parser.request(&mut head) {
                    Ok(Some(hop)) => {
                        open = Some(Message { head, hop, body: Vec::new(), trailers: Headers::default() });
                        continue;
                    }
                    Ok(None) => break,
                    Err(_) => return (messages, false),
                }
            };
            match parser.frame() {
                Ok(Step::Frame(Frame::Data(data))) => message.body.extend_from_slice(&data),
                Ok(Step::Frame(Frame::Trailers(trailers))) => message.trailers = trailers,
                Ok(Step::End) => messages.extend(open.take()),
                Ok(Step::More) => break,
                Err(_) => return (messages, false),
            }
        }
    }
    (messages, parser.end().is_ok())
}

fn write(message: &Message) -> Vec<u8> {
    let mut pending = Pending::default();
    pending.request(&message.head, &message.hop).expect("what was read can be written");
    pending.data(Bytes::copy_from_slice(&message.body)).expect("as long as was said");
    pending.finish(Some(&message.trailers)).expect("as long as was said");
    assert!(
        message.hop.framing == Framing::Chunked || message.trailers.is_empty(),
        "trailers without chunks"
    );
    pending.take().concat()
}

/// What any reader must find in what is written, looked at without a parser.
fn judge(written: &[u8]) {
    let end = written.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8_lossy(&written[..end]);
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    assert_eq!(first.split(' ').count(), 3, "{first:?}");
    assert!(first.ends_with(" HTTP/1.1"), "{first:?}");
    let (mut hosts, mut framings) = (0, 0);
    for line in lines {
        let (name, value) = line.split_once(": ").expect("a field");
        assert!(!line.contains(['\r', '\n', '\0']), "{line:?}");
        assert!(!name.contains([' ', '\t', ':']) && !name.is_empty(), "{line:?}");
        assert_eq!(value.trim_matches([' ', '\t']), value, "{line:?}");
        assert!(name != "transfer-encoding" || value == "chunked", "{line:?}");
        hosts += usize::from(name == "host");
        framings += usize::from(matches!(name, "content-length" | "transfer-encoding"));
    }
    assert!(hosts == 1 && framings <= 1, "{head:?}");
}
