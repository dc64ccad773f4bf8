//! Messages from a connection. Each future can be dropped and asked for again: nothing that came is lost.

use std::io;
use std::task::Poll;

use baremesh_model::http::{RequestHead, ResponseHead};
use bytes::BytesMut;

use super::super::bytes::ByteReader;
use super::parser::Step;
use super::{Asked, Frame, H1Error, Hop, HttpLimits, Parser};

/// The first read of a message: most heads and small bodies fit.
const SMALL_READ: usize = 4 * 1024;
/// Once a body has moved `MEDIUM_AFTER` bytes.
const MEDIUM_READ: usize = 32 * 1024;
const MEDIUM_AFTER: u64 = 32 * 1024;
/// Once a body has moved `LARGE_AFTER` bytes.
const LARGE_READ: usize = 64 * 1024;
const LARGE_AFTER: u64 = 1024 * 1024;

/// The reading direction of a connection.
pub struct Reader {
    bytes: ByteReader,
    parser: Parser,
    /// Bytes of the body that have come.
    moved: u64,
}

impl Reader {
    /// A connection at its start.
    pub fn new(bytes: ByteReader, limits: HttpLimits) -> Self {
        Self { bytes, parser: Parser::new(limits), moved: 0 }
    }

    /// As `new`, of which `read` was read already.
    pub fn with(bytes: ByteReader, limits: HttpLimits, read: BytesMut) -> Self {
        let mut reader = Self::new(bytes, limits);
        reader.parser.buffer = read;
        reader
    }

    /// Waits for a request's first bytes, and says whether any came: a connection that is kept is quiet for long, while
    /// `request` may then take `HEAD_TIMEOUT`.
    pub async fn begins(&mut self) -> Result<bool, H1Error> {
        Ok(!self.parser.buffer.is_empty() || self.more().await? > 0)
    }

    /// Reads the head of a request; `None` once the peer has ended the connection between two of them.
    pub async fn request(&mut self, head: &mut RequestHead) -> Result<Option<Hop>, H1Error> {
        self.moved = 0;
        loop {
            if let Some(hop) = self.parser.request(head)? {
                return Ok(Some(hop));
            }
            if self.more().await? == 0 {
                return self.parser.end().map(|()| None);
            }
        }
    }

    /// Reads the head of a response to what `asked` says. A status below 200 is followed by another one, but for 101. The
    /// connection's end before the head is `Truncated`.
    pub async fn response(&mut self, head: &mut ResponseHead, asked: Asked) -> Result<Hop, H1Error> {
        self.moved = 0;
        loop {
            if let Some(hop) = self.parser.response(head, asked)? {
                return Ok(hop);
            }
            if self.more().await? == 0 {
                return Err(H1Error::Truncated);
            }
        }
    }

    /// Reads the next part of the body; `None` at its end. A body that ends before its end is an error.
    pub async fn body(&mut self) -> Result<Option<Frame>, H1Error> {
        loop {
            if let Poll::Ready(frame) = self.body_now()? {
                return Ok(frame);
            }
            let Some(left) = self.parser.plain() else {
                if self.more().await? == 0 {
                    self.parser.end()?;
                }
                continue;
            };
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.size());
            let data = self.bytes.read_bytes(&mut self.parser.buffer, most).await?;
            if data.is_empty() {
                self.parser.end()?;
                continue;
            }
            self.moved += data.len() as u64;
            self.parser.passed(data.len());
            return Ok(Some(Frame::Data(data)));
        }
    }

    /// The next part of the body as far as it has been read already: pending if it would have to be waited for, which is
    /// the time to flush what was made of the parts before.
    pub fn body_now(&mut self) -> Result<Poll<Option<Frame>>, H1Error> {
        Ok(match self.parser.frame()? {
            Step::Frame(frame) => Poll::Ready(Some(frame)),
            Step::End => Poll::Ready(None),
            Step::More => Poll::Pending,
        })
    }

    /// Whether the message was read to its end, so that another one may follow.
    pub fn is_over(&self) -> bool {
        self.parser.is_over()
    }

    /// From here on the bytes are another protocol's: 101 was sent.
    pub fn upgrade(&mut self) {
        self.parser.upgrade();
    }

    /// Ends when the peer will send nothing more: `Ok` if it said so, as one that has gone and one that only waits for its
    /// answer both do; the error if it broke off.
    pub async fn closed(&mut self) -> io::Result<()> {
        self.bytes.closed(&mut self.parser.buffer).await
    }

    /// Whether a connection on which nothing is expected is as it was left. One that is not cannot be used.
    pub fn is_quiet(&mut self) -> bool {
        self.bytes.is_quiet(&mut self.parser.buffer)
    }

    /// Ends when something comes on a connection on which nothing is expected, its end included.
    pub async fn stirs(&mut self) {
        // Whatever it is, the connection is over.
        let _ = self.more().await;
    }

    /// The bytes below, and what was read of them and not taken.
    pub fn into_parts(self) -> (ByteReader, BytesMut) {
        (self.bytes, self.parser.into_buffer())
    }

    /// The bytes below, for `bytes::linger`.
    pub fn bytes(&mut self) -> &mut ByteReader {
        &mut self.bytes
    }

    async fn more(&mut self) -> Result<usize, H1Error> {
        let size = self.size();
        let read = self.bytes.read_some(&mut self.parser.buffer, size).await?;
        self.moved += read as u64;
        Ok(read)
    }

    fn size(&self) -> usize {
        match self.moved {
            LARGE_AFTER.. => LARGE_READ,
            MEDIUM_AFTER.. => MEDIUM_READ,
            _ => SMALL_READ,
        }
    }
}
