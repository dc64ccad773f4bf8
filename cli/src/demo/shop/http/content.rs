//! Bodies: whole ones, streamed ones that a task fills as they are read, and what is left of one that was read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::HeaderMap;
use hyper::body::{Body, Frame};
use tokio::sync::mpsc;

use super::super::checksum::{Checksum, Pattern};
use super::super::servers::CHUNK;

/// How much of a body's text is kept to be shown.
const MAX_TEXT: usize = 64 * 1024;

/// How many frames wait for a reader.
const WAITING: usize = 2;

/// An error of a body or of a service, as hyper takes it.
pub(super) type Fault = Box<dyn std::error::Error + Send + Sync>;

/// A body to be sent.
pub(super) type Content = UnsyncBoxBody<Bytes, Fault>;

/// All of a body at once; its length is told in the head.
pub(super) fn whole(bytes: impl Into<Bytes>) -> Content {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// The writing end of a body that is made while it is read.
pub(super) struct Feed(mpsc::Sender<Result<Frame<Bytes>, Fault>>);

struct Streamed(mpsc::Receiver<Result<Frame<Bytes>, Fault>>);

/// A body, and where to write it.
pub(super) fn streamed() -> (Feed, Content) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Feed(sender), Streamed(receiver).boxed_unsync())
}

impl Body for Streamed {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        self.0.poll_recv(context)
    }
}

/// Nobody reads the body any more.
#[derive(Debug)]
pub(super) struct Unread;

impl Feed {
    pub(super) async fn data(&self, bytes: Bytes) -> Result<(), Unread> {
        self.0.send(Ok(Frame::data(bytes))).await.map_err(|_| Unread)
    }

    pub(super) async fn trailers(&self, trailers: HeaderMap) -> Result<(), Unread> {
        self.0.send(Ok(Frame::trailers(trailers))).await.map_err(|_| Unread)
    }

    /// Ends the body with an error: it is not complete.
    pub(super) async fn break_off(&self) -> Result<(), Unread> {
        let fault = io::Error::new(io::ErrorKind::ConnectionReset, "broken off on purpose");
        self.0.send(Err(fault.into())).await.map_err(|_| Unread)
    }

    /// The next `bytes` of the pattern.
    pub(super) async fn pattern(&self, pattern: &mut Summed, bytes: u64) -> Result<(), Unread> {
        let mut left = bytes;
        while left > 0 {
            let length = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
            self.data(pattern.next(length)).await?;
            left -= length as u64;
        }
        Ok(())
    }
}

/// The pattern, and the checksum of what was taken of it.
pub(super) struct Summed {
    pattern: Pattern,
    pub(super) sum: Checksum,
}

impl Summed {
    pub(super) fn new() -> Self {
        Self { pattern: Pattern::new(), sum: Checksum::default() }
    }

    /// The next bytes. All but the last call have to ask for a multiple of eight.
    fn next(&mut self, length: usize) -> Bytes {
        let mut buffer = vec![0; length];
        self.pattern.fill(&mut buffer);
        self.sum.add(&buffer);
        buffer.into()
    }
}

/// What is left of a body that was read to its end.
#[derive(Default)]
pub(super) struct Read {
    pub(super) sum: Checksum,
    /// Its beginning.
    kept: Vec<u8>,
    pub(super) trailers: HeaderMap,
}

impl Read {
    /// Reads `body` to its end.
    pub(super) async fn all<B>(mut body: B) -> Result<Self, B::Error>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let mut read = Self::default();
        while let Some(frame) = body.frame().await {
            match frame?.into_data() {
                Ok(data) => read.data(&data),
                Err(other) => read.trailers.extend(other.into_trailers().unwrap_or_default()),
            }
        }
        Ok(read)
    }

    fn data(&mut self, data: &[u8]) {
        self.sum.add(data);
        let room = MAX_TEXT - self.kept.len();
        self.kept.extend_from_slice(&data[..data.len().min(room)]);
    }

    /// The text, if it is one and not too long to be shown.
    pub(super) fn text(&self) -> Option<&str> {
        let is_whole = self.sum.length() == self.kept.len() as u64;
        std::str::from_utf8(&self.kept).ok().filter(|_| is_whole)
    }
}
