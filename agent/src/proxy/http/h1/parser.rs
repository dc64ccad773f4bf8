//! Messages out of bytes, without I/O: one direction of a connection. Heads are taken when they are whole, bodies as they
//! come, and what is left is the next message's.

use baremesh_model::http::headers::is_token;
use baremesh_model::http::{RequestHead, ResponseHead};
use bytes::{Buf, Bytes, BytesMut};

use super::chunks::Chunks;
use super::lines::Lines;
use super::{Asked, Frame, Framing, H1Error, Hop, HttpLimits, MAX_INTERIM, request, response};

/// One direction of a connection.
#[derive(Debug)]
pub struct Parser {
    /// What came and was not taken yet.
    pub(super) buffer: BytesMut,
    limits: HttpLimits,
    lines: Lines,
    body: Body,
    /// An empty line before the request line was passed over.
    skipped: bool,
    interim: usize,
}

/// What is to come of a body.
#[derive(Debug)]
enum Body {
    Over,
    Length(u64),
    Chunks(Chunks),
    UntilClose,
}

/// What is there of a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// A part.
    Frame(Frame),
    /// Its end.
    End,
    /// Nothing before more bytes come.
    More,
}

impl Parser {
    /// A connection at its start.
    pub fn new(limits: HttpLimits) -> Self {
        let (buffer, lines) = (BytesMut::new(), Lines::default());
        Self { buffer, limits, lines, body: Body::Over, skipped: false, interim: 0 }
    }

    /// Bytes that came.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes the head of a request, if it is there as a whole. An error is final.
    pub fn request(&mut self, head: &mut RequestHead) -> Result<Option<Hop>, H1Error> {
        self.between()?;
        if !self.starts_a_request()? {
            return Ok(None);
        }
        let Some(end) = self.lines.head(&self.buffer, &self.limits)? else { return Ok(None) };
        let hop = request::read(head, &self.lines, &self.buffer, &self.limits)?;
        self.skipped = false;
        self.taken(end, hop.framing);
        Ok(Some(hop))
    }

    /// Takes the head of a response, if it is there as a whole. An error is final.
    pub fn response(&mut self, head: &mut ResponseHead, asked: Asked) -> Result<Option<Hop>, H1Error> {
        self.between()?;
        let start = self.buffer.len().min(5);
        if self.buffer[..start] != b"HTTP/"[..start] {
            return Err(H1Error::StartLine);
        }
        let Some(end) = self.lines.head(&self.buffer, &self.limits)? else { return Ok(None) };
        let hop = response::read(head, &self.lines, &self.buffer, asked)?;
        self.interim = if head.status < 200 { self.interim + 1 } else { 0 };
        if self.interim > MAX_INTERIM {
            return Err(H1Error::Interim(MAX_INTERIM));
        }
        self.taken(end, hop.framing);
        Ok(Some(hop))
    }

    /// Takes the next part of the body.
    pub fn frame(&mut self) -> Result<Step, H1Error> {
        let most = match &mut self.body {
            Body::Over => return Ok(Step::End),
            Body::Chunks(chunks) => {
                let step = chunks.next(&mut self.buffer, &self.limits)?;
                if !matches!(step, Step::More | Step::Frame(Frame::Data(_))) {
                    self.body = Body::Over;
                }
                return Ok(step);
            }
            Body::Length(left) => usize::try_from(*left).unwrap_or(usize::MAX),
            Body::UntilClose => usize::MAX,
        };
        if self.buffer.is_empty() {
            return Ok(Step::More);
        }
        let part = self.buffer.split_to(most.min(self.buffer.len())).freeze();
        self.passed(part.len());
        Ok(Step::Frame(Frame::Data(part)))
    }

    /// No more bytes come: an error if that is within a message.
    pub fn end(&mut self) -> Result<(), H1Error> {
        match self.body {
            Body::UntilClose => self.body = Body::Over,
            Body::Over if self.buffer.is_empty() => {}
            _ => return Err(H1Error::Truncated),
        }
        Ok(())
    }

    /// Whether the message was taken to its end.
    pub fn is_over(&self) -> bool {
        matches!(self.body, Body::Over)
    }

    /// From here on the bytes are another protocol's.
    pub fn upgrade(&mut self) {
        self.body = Body::UntilClose;
    }

    /// What came and was not taken, for who reads on.
    pub fn into_buffer(self) -> BytesMut {
        self.buffer
    }

    /// How many bytes of body are to come that need no parsing, if nothing is in the buffer: they can be passed on as they
    /// are read.
    pub(super) fn plain(&self) -> Option<u64> {
        match self.body {
            Body::Length(left) if self.buffer.is_empty() => Some(left),
            Body::UntilClose if self.buffer.is_empty() => Some(u64::MAX),
            _ => None,
        }
    }

    /// Takes note of bytes of such a body.
    pub(super) fn passed(&mut self, bytes: usize) {
        if let Body::Length(left) = &mut self.body {
            *left = left.saturating_sub(bytes as u64);
            if *left == 0 {
                self.body = Body::Over;
            }
        }
    }

    /// An error if the message before has not ended: the rest of its body is no head.
    fn between(&self) -> Result<(), H1Error> {
        if self.is_over() { Ok(()) } else { Err(H1Error::Unfinished) }
    }

    /// Passes over one empty line before the request line (RFC 9112, section 2.2), and refuses what is no HTTP as soon as
    /// it is seen.
    fn starts_a_request(&mut self) -> Result<bool, H1Error> {
        if !self.skipped && self.buffer.starts_with(b"\r\n") {
            self.buffer.advance(2);
            self.skipped = true;
        }
        match self.buffer[..] {
            [] => Ok(false),
            [b'\r'] if !self.skipped => Ok(false),
            [first, ..] if is_token(first) => Ok(true),
            _ => Err(H1Error::StartLine),
        }
    }

    fn taken(&mut self, end: usize, framing: Framing) {
        self.buffer.advance(end);
        self.lines.clear();
        self.body = match framing {
            Framing::None | Framing::Length(0) => Body::Over,
            Framing::Length(length) => Body::Length(length),
            Framing::Chunked => Body::Chunks(Chunks::default()),
            Framing::UntilClose | Framing::Upgraded => Body::UntilClose,
        };
    }
}

impl From<Bytes> for Frame {
    fn from(data: Bytes) -> Self {
        Self::Data(data)
    }
}
