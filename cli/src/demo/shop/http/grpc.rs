//! What gRPC is on the wire, for both ends: messages with their length before them, and a status in the trailers.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderName};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Response, StatusCode};

use super::super::say;
use super::content::{Content, Fault, Feed, Unread, streamed, whole};

pub(super) const KIND: &str = "application/grpc";
pub(super) const STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// With this request header the answer is this status alone, in its head, as servers answer what fails at once.
const WANTED: &str = "want-status";

/// The status for what a server cannot do at the moment.
const UNAVAILABLE: &str = "14";
const RESOURCE_EXHAUSTED: &str = "8";
const OK: &str = "0";

/// The longest message: gRPC's own default.
const MAX_MESSAGE: usize = 4 << 20;

/// Before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Whether a request is a call.
pub(super) fn is_asked_for(head: &Parts) -> bool {
    head.headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(KIND.as_bytes()))
}

/// Answers a call: with a failure at once, or by sending each message back as it comes.
pub(super) fn answer(
    head: &Parts,
    incoming: Incoming,
    status: Option<StatusCode>,
) -> Result<Response<Content>, Fault> {
    let answer = Response::builder().header(CONTENT_TYPE, KIND);
    let failed =
        status.is_some_and(|status| !status.is_success()).then(|| UNAVAILABLE.parse()).transpose()?;
    if let Some(status) = failed.or_else(|| head.headers.get(WANTED).cloned()) {
        return Ok(answer.header(STATUS, status).header("grpc-message", "as wanted").body(whole(""))?);
    }
    let (feed, content) = streamed();
    tokio::spawn(async move {
        let mut messages = Messages::of(incoming);
        let ended = echo(&mut messages, &feed).await;
        let ended = if ended.is_ok() { "in good order" } else { "unread" };
        say(format_args!("stream ended {ended} after {} messages", messages.count));
    });
    Ok(answer.body(content)?)
}

async fn echo(messages: &mut Messages<Incoming>, feed: &Feed) -> Result<(), Unread> {
    let status = loop {
        match messages.next().await {
            Ok(Some(message)) => feed.data(framed(&message)).await?,
            Ok(None) => break OK,
            Err(Bad::TooLong) => break RESOURCE_EXHAUSTED,
            Err(Bad::Cut) => return Err(Unread),
        }
    };
    let trailers = [(STATUS, status.parse().map_err(|_| Unread)?)];
    feed.trailers(HeaderMap::from_iter(trailers)).await
}

/// A message as it is sent.
pub(super) fn framed(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(PREFIX + message.len());
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    bytes.put_slice(message);
    bytes.freeze()
}

/// Why there is no next message.
#[derive(Debug)]
pub(super) enum Bad {
    /// The body ended within a message, or with an error.
    Cut,
    TooLong,
}

/// The messages of a body.
pub(super) struct Messages<B> {
    body: B,
    buffer: BytesMut,
    pub(super) count: u64,
    pub(super) trailers: HeaderMap,
}

impl<B: Body<Data = Bytes> + Unpin> Messages<B> {
    pub(super) fn of(body: B) -> Self {
        Self { body, buffer: BytesMut::new(), count: 0, trailers: HeaderMap::new() }
    }

    /// The next message; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Bad> {
        loop {
            if let Some(message) = self.take()? {
                self.count += 1;
                return Ok(Some(message));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.buffer.put(data),
                    Err(other) => self.trailers.extend(other.into_trailers().unwrap_or_default()),
                },
                Some(Err(_)) => return Err(Bad::Cut),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Bad::Cut),
            }
        }
    }

    /// A message that is there already.
    fn take(&mut self) -> Result<Option<Bytes>, Bad> {
        let Some(length) = self.buffer.get(1..PREFIX) else { return Ok(None) };
        let length = length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        if length > MAX_MESSAGE {
            return Err(Bad::TooLong);
        }
        if self.buffer.len() < PREFIX + length {
            return Ok(None);
        }
        self.buffer.advance(PREFIX);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::content::streamed;
    use super::*;

    async fn messages_of(pieces: &'static [&'static [u8]]) -> Result<Vec<Bytes>, Bad> {
        let (feed, content) = streamed();
        tokio::spawn(async move {
            for piece in pieces {
                let _ = feed.data(Bytes::from_static(piece)).await;
            }
        });
        let mut messages = Messages::of(content);
        let mut all = Vec::new();
        while let Some(message) = messages.next().await? {
            all.push(message);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn messages_do_not_depend_on_how_they_are_cut() {
        let whole = messages_of(&[b"\0\0\0\0\x02hi\0\0\0\0\0\0\0\0\0\x01x"]).await.expect("messages");
        assert_eq!(whole, ["hi", "", "x"]);
        let cut = messages_of(&[b"\0\0", b"\0\0\x02h", b"i\0\0\0\0\0\0\0\0\0\x01", b"x"]).await;
        assert_eq!(cut.expect("messages"), whole);
        assert!(matches!(messages_of(&[b"\0\0\0\0\x02h"]).await, Err(Bad::Cut)));
        assert!(matches!(messages_of(&[b"\0\xff\0\0\0"]).await, Err(Bad::TooLong)));
        assert_eq!(framed(b"hi"), &b"\0\0\0\0\x02hi"[..]);
    }
}
