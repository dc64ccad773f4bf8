//! Messages as bytes, and what becomes of them.

mod connection;
mod normal_form;
mod requests;
mod responses;
mod smuggling;

use baremesh_model::http::{Headers, RequestHead, ResponseHead};
use bytes::Bytes;

use super::parser::Step;
use super::writer::Pending;
use super::*;

/// One message and all that is known of it.
#[derive(Debug, Clone, PartialEq)]
struct Message<H> {
    head: H,
    hop: Hop,
    body: Vec<u8>,
    trailers: Headers,
}

/// What came of bytes: messages, and how it ended.
type Outcome<H> = (Vec<Message<H>>, Result<(), String>);

/// Reads requests out of parts until they end or one is none.
fn requests(parts: &[&[u8]]) -> Outcome<RequestHead> {
    messages(parts, |parser, head| parser.request(head))
}

/// Reads responses.
fn responses(parts: &[&[u8]], asked: Asked) -> Outcome<ResponseHead> {
    messages(parts, |parser, head| parser.response(head, asked))
}

fn messages<H: Default + Clone>(
    parts: &[&[u8]],
    take: impl Fn(&mut Parser, &mut H) -> Result<Option<Hop>, H1Error>,
) -> Outcome<H> {
    let mut parser = Parser::new(HttpLimits::default());
    let mut messages = Vec::new();
    let ended = (|| {
        let (mut head, mut body, mut trailers) = (H::default(), Vec::new(), Headers::default());
        let mut open: Option<Hop> = None;
        for part in parts {
            parser.feed(part);
            loop {
                let Some(hop) = open else {
                    open = take(&mut parser, &mut head)?;
                    if open.is_none() {
                        break;
                    }
                    continue;
                };
                match parser.frame()? {
                    Step::Frame(Frame::Data(data)) => body.extend_from_slice(&data),
                    Step::Frame(Frame::Trailers(fields)) => trailers = fields,
                    Step::More => break,
                    Step::End => {
                        let (body, trailers) = (std::mem::take(&mut body), std::mem::take(&mut trailers));
                        messages.push(Message { head: head.clone(), hop, body, trailers });
                        open = None;
                    }
                }
            }
        }
        parser.end()?;
        if let Some(hop) = open {
            messages.push(Message { head, hop, body, trailers });
        }
        Ok::<_, H1Error>(())
    })();
    (messages, ended.map_err(|error| format!("{} {}", error.status().unwrap_or_default(), error.detail())))
}

/// The bytes that a message is written as.
fn write<H>(
    message: &Message<H>,
    head: impl Fn(&mut Pending, &H, &Hop) -> std::io::Result<()>,
) -> Result<Vec<u8>, std::io::Error> {
    let mut pending = Pending::default();
    head(&mut pending, &message.head, &message.hop)?;
    pending.data(Bytes::copy_from_slice(&message.body))?;
    pending.finish(Some(&message.trailers))?;
    Ok(pending.take().concat())
}

fn write_request(message: &Message<RequestHead>) -> Result<Vec<u8>, std::io::Error> {
    write(message, Pending::request)
}

fn write_response(message: &Message<ResponseHead>) -> Result<Vec<u8>, std::io::Error> {
    write(message, Pending::response)
}

/// Whichever way bytes are cut in two, and byte by byte, the outcome is the same.
fn the_same_however_cut<H: PartialEq + std::fmt::Debug>(bytes: &[u8], read: impl Fn(&[&[u8]]) -> Outcome<H>) {
    let whole = read(&[bytes]);
    for at in 0..=bytes.len() {
        let (before, after) = bytes.split_at(at);
        assert_eq!(read(&[before, after]), whole, "cut at {at}: {:?}", String::from_utf8_lossy(bytes));
    }
    let single: Vec<_> = bytes.chunks(1).collect();
    assert_eq!(read(&single), whole, "byte by byte: {:?}", String::from_utf8_lossy(bytes));
}

/// Refused, whichever way the bytes are cut.
fn refused(bytes: &[u8], status: u16, detail: &str) {
    let shown = String::from_utf8_lossy(bytes);
    let (messages, ended) = requests(&[bytes]);
    assert_eq!(ended, Err(format!("{status} http1.{detail}")), "{shown:?}");
    assert!(messages.is_empty(), "{shown:?}");
    the_same_however_cut(bytes, requests);
}

/// Written on as `expected`, whichever way the bytes are cut.
fn taken(bytes: &[u8], expected: &[u8]) {
    let shown = String::from_utf8_lossy(bytes);
    let (messages, ended) = requests(&[bytes]);
    assert_eq!(ended, Ok(()), "{shown:?}");
    let written: Vec<_> =
        messages.iter().flat_map(|message| write_request(message).expect("written")).collect();
    assert_eq!(String::from_utf8_lossy(&written), String::from_utf8_lossy(expected), "{shown:?}");
    the_same_however_cut(bytes, requests);
}
