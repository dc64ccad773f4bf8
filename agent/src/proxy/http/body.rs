//! Bodies, whichever version of HTTP they come in and leave by. A body is pulled frame by frame, and a frame is pulled
//! only when the one before has been taken: that is all the back-pressure there is.

use std::future::{pending, poll_fn};
use std::io;

use baremesh_model::http::{Headers, ResponseHead, Version};
use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};

use super::h1::{self, Frame, Framing, H1Error, Hop, HttpLimits, Persistence};
use super::h2 as http2;
use crate::proxy::relay::{h2_error, send_all};

/// Why a body does not go on.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection broke, or the peer reset the stream.
    #[error(transparent)]
    Broken(#[from] io::Error),
    /// It is not HTTP.
    #[error("{0}")]
    Malformed(&'static str),
}

impl From<H1Error> for BodyError {
    fn from(error: H1Error) -> Self {
        match error {
            H1Error::Io(error) => Self::Broken(error),
            H1Error::Truncated => Self::Broken(io::ErrorKind::UnexpectedEof.into()),
            other => Self::Malformed(other.detail()),
        }
    }
}

impl From<h2::Error> for BodyError {
    fn from(error: h2::Error) -> Self {
        Self::Broken(h2_error(error))
    }
}

/// The body of a stream of HTTP/2.
pub struct Received {
    stream: RecvStream,
    /// Bytes handed out whose window has not been given back.
    held: usize,
}

impl Received {
    /// The body of `stream`.
    pub fn new(stream: RecvStream) -> Self {
        Self { stream, held: 0 }
    }

    /// Whether nothing follows.
    pub fn is_over(&self) -> bool {
        self.stream.is_end_stream()
    }

    async fn frame(&mut self) -> Result<Option<Frame>, BodyError> {
        // Asking for the next frame says that the one before is done with.
        let held = std::mem::take(&mut self.held);
        // Fails only on a stream that is gone, which the next poll says with its reason.
        let _ = self.stream.flow_control().release_capacity(held);
        loop {
            match poll_fn(|cx| self.stream.poll_data(cx)).await {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    self.held = data.len();
                    return Ok(Some(Frame::Data(data)));
                }
                Some(Err(error)) => return Err(error.into()),
                None => break,
            }
        }
        let Some(fields) = poll_fn(|cx| self.stream.poll_trailers(cx)).await? else { return Ok(None) };
        let mut trailers = Headers::default();
        http2::read_fields(&fields, &mut trailers, &HttpLimits::default()).map_err(BodyError::Malformed)?;
        trailers.retain(|name| h1::may_trail(name.as_bytes()));
        Ok(Some(Frame::Trailers(trailers)))
    }
}

/// Where a body comes from.
pub enum Source<'a> {
    /// A connection of HTTP/1.
    Http1(&'a mut h1::Reader),
    /// A stream of HTTP/2.
    Http2(&'a mut Received),
    /// Nothing more comes.
    Over,
}

impl Source<'_> {
    /// The next frame; nothing after the last. Dropping the future loses nothing.
    pub async fn frame(&mut self) -> Result<Option<Frame>, BodyError> {
        match self {
            Self::Http1(reader) => Ok(reader.body().await?),
            Self::Http2(received) => received.frame().await,
            Self::Over => Ok(None),
        }
    }

    /// Ends when the peer has gone. Over HTTP/2 the way back tells.
    pub async fn gone(&mut self) {
        match self {
            // However it went.
            Self::Http1(reader) => _ = reader.closed().await,
            Self::Http2(_) | Self::Over => pending().await,
        }
    }

    /// From here on the bytes are another protocol's.
    pub fn upgrade(&mut self) {
        if let Self::Http1(reader) = self {
            reader.upgrade();
        }
    }
}

/// Where a body goes.
pub enum Sink<'a> {
    /// A connection of HTTP/1.
    Http1(&'a mut h1::Writer),
    /// A stream of HTTP/2.
    Http2(&'a mut SendStream<Bytes>),
    /// The agent itself.
    Kept(&'a mut Kept),
    /// The head said already that nothing comes.
    Over,
}

/// An answer that is for the agent itself, as far as it has come.
#[derive(Debug, Default)]
pub struct Kept {
    /// The head; its status is 0 before it has come.
    pub head: ResponseHead,
    /// The body.
    pub body: BytesMut,
    /// What came behind it.
    pub trailers: Option<Headers>,
    /// All of it has come.
    pub is_whole: bool,
    /// The most bytes of a body that are taken.
    most: usize,
}

impl Kept {
    /// Nothing yet; an answer with more than `most` bytes is broken off.
    pub fn new(most: usize) -> Self {
        Self { most, ..Self::default() }
    }

    fn take(&mut self, data: &Bytes) -> io::Result<()> {
        if self.body.len() + data.len() > self.most {
            return Err(io::Error::other("an answer that is longer than any that is taken"));
        }
        self.body.extend_from_slice(data);
        Ok(())
    }
}

impl Sink<'_> {
    /// Writes what was held back to leave in one piece with what comes after.
    pub async fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Http1(writer) => writer.flush().await,
            Self::Http2(_) | Self::Kept(_) | Self::Over => Ok(()),
        }
    }

    /// Ends when the peer has reset the stream. Over HTTP/1 the end of its connection tells.
    pub async fn gone(&mut self) {
        match self {
            // However it went.
            Self::Http2(stream) => _ = poll_fn(|cx| stream.poll_reset(cx)).await,
            Self::Http1(_) | Self::Kept(_) | Self::Over => pending().await,
        }
    }

    /// Says that nothing more comes of an upgraded connection; the other direction goes on.
    pub fn shutdown(&mut self) {
        if let Self::Http1(writer) = self {
            // A peer that has gone both ways is told by what it sends.
            let _ = writer.bytes().shutdown();
            // What is still on its way arrives, whoever ends first.
            writer.bytes().settle();
        }
    }

    /// Writes bytes of the body.
    pub async fn data(&mut self, data: Bytes) -> io::Result<()> {
        match self {
            Self::Http1(writer) => writer.data(data).await,
            Self::Http2(stream) => send_all(stream, data).await,
            Self::Kept(kept) => kept.take(&data),
            Self::Over => Ok(()),
        }
    }

    /// Ends the body.
    pub async fn finish(&mut self, trailers: Option<&Headers>) -> io::Result<()> {
        match self {
            Self::Http1(writer) => writer.finish(trailers).await,
            Self::Http2(stream) => match trailers {
                Some(trailers) => stream.send_trailers(http2::fields(trailers)).map_err(h2_error),
                None => stream.send_data(Bytes::new(), true).map_err(h2_error),
            },
            Self::Kept(kept) => {
                kept.trailers = trailers.cloned();
                kept.is_whole = true;
                Ok(())
            }
            Self::Over => Ok(()),
        }
    }
}

/// The caller's side of an answer.
pub enum Answer<'a> {
    /// A connection of HTTP/1.
    Http1 {
        /// Where it is written.
        writer: &'a mut h1::Writer,
        /// What the caller speaks.
        version: Version,
        /// What becomes of the connection after it.
        persistence: &'a mut Persistence,
    },
    /// A stream of HTTP/2.
    Http2 {
        /// Where the head is sent.
        respond: &'a mut SendResponse<Bytes>,
        /// Where the body is sent, once the head has been.
        stream: Option<SendStream<Bytes>>,
        /// The head said that nothing follows.
        is_over: bool,
    },
    /// The agent itself asked.
    Kept(&'a mut Kept),
    /// Nobody waits for it.
    Nobody,
}

impl Answer<'_> {
    /// Ends when the caller has reset the stream. Over HTTP/1 the end of its connection tells.
    pub async fn gone(&mut self) {
        match self {
            Self::Http1 { .. } | Self::Kept(_) | Self::Nobody => pending().await,
            // However it went.
            Self::Http2 { respond, .. } => _ = poll_fn(|cx| respond.poll_reset(cx)).await,
        }
    }

    /// Sends an interim answer (1xx).
    pub async fn interim(&mut self, head: &ResponseHead) -> io::Result<()> {
        match self {
            Self::Http1 { version: Version::Http10, .. } | Self::Kept(_) | Self::Nobody => Ok(()),
            Self::Http1 { writer, .. } => {
                let hop = Hop { framing: Framing::None, persistence: Persistence::Keep, upgrade: false };
                writer.response(head, &hop)?;
                writer.flush().await
            }
            Self::Http2 { respond, .. } => {
                respond.send_informational(http2::response(head)).map_err(h2_error)
            }
        }
    }

    /// Sends the head of the final answer. Over HTTP/1 it leaves with what comes after it, or at a flush.
    pub fn head(&mut self, head: &ResponseHead, framing: Framing) -> io::Result<()> {
        match self {
            Self::Http1 { writer, version, persistence } => {
                let hop = Hop::to_client(*version, **persistence, framing);
                if matches!(hop.framing, Framing::UntilClose | Framing::Upgraded) {
                    **persistence = Persistence::Close;
                }
                writer.response(head, &hop)
            }
            Self::Http2 { respond, stream, is_over } => {
                *is_over = matches!(framing, Framing::None | Framing::Length(0));
                *stream = Some(respond.send_response(http2::response(head), *is_over).map_err(h2_error)?);
                Ok(())
            }
            Self::Kept(kept) => {
                kept.head = head.clone();
                Ok(())
            }
            Self::Nobody => Ok(()),
        }
    }

    /// The sink for the body, once the head has been sent.
    pub fn body(&mut self) -> Sink<'_> {
        match self {
            Self::Http1 { writer, .. } => Sink::Http1(writer),
            Self::Http2 { stream: Some(stream), is_over: false, .. } => Sink::Http2(stream),
            Self::Kept(kept) => Sink::Kept(kept),
            Self::Http2 { .. } | Self::Nobody => Sink::Over,
        }
    }

    /// Gives a request back unseen: the caller's agent may send it elsewhere, whatever it is.
    pub fn refuse(&mut self) {
        match self {
            Self::Http1 { writer, persistence, .. } => {
                **persistence = Persistence::Close;
                writer.bytes().refuse();
            }
            Self::Http2 { respond, .. } => respond.send_reset(Reason::REFUSED_STREAM),
            Self::Kept(_) | Self::Nobody => {}
        }
    }

    /// Breaks an answer off: a caller never takes it for a whole one.
    pub fn abort(&mut self) {
        match self {
            Self::Http1 { writer, persistence, .. } => {
                **persistence = Persistence::Close;
                writer.bytes().reset();
            }
            Self::Http2 { stream: Some(stream), .. } => stream.send_reset(Reason::INTERNAL_ERROR),
            Self::Http2 { respond, .. } => respond.send_reset(Reason::INTERNAL_ERROR),
            // What is not whole is never taken for it.
            Self::Kept(_) | Self::Nobody => {}
        }
    }

    /// Whether the caller speaks HTTP/2.
    pub fn is_http2(&self) -> bool {
        matches!(self, Self::Http2 { .. })
    }
}

/// How the body of an HTTP/2 message ends.
pub fn framing_of(headers: &Headers, body: &Received) -> Framing {
    let length = headers.get("content-length").and_then(|value| std::str::from_utf8(value).ok());
    match length.and_then(|text| text.parse().ok()) {
        _ if body.is_over() => Framing::None,
        Some(length) => Framing::Length(length),
        None => Framing::Chunked,
    }
}
