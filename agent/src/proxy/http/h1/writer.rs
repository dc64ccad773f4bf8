//! Messages to a connection, in one normal form: HTTP/1.1, names in lower case, one framing. What is queued leaves with
//! the next flush, so that a head and the start of its body take one system call.

use std::io;

use baremesh_model::http::syntax::{check_target, is_authority, is_method};
use baremesh_model::http::{Headers, RequestHead, ResponseHead};
use bytes::{BufMut, Bytes, BytesMut};

use super::super::bytes::ByteWriter;
use super::{Framing, Hop, Persistence};

/// Parts of a body up to this size are copied behind what stands before them; larger ones are written from where they are.
const COPY: usize = 1024;

/// The writing direction of a connection.
pub struct Writer {
    bytes: ByteWriter,
    pending: Pending,
    /// A write was begun and did not end: how much of it left is not known.
    cut: bool,
}

/// What was queued.
#[derive(Debug, Default)]
pub struct Pending {
    /// Before what is in `text`.
    parts: Vec<Bytes>,
    text: BytesMut,
    body: Body,
}

/// What is to come of a body.
#[derive(Debug, Default, PartialEq, Eq)]
enum Body {
    #[default]
    Over,
    Length(u64),
    Chunks,
    UntilClose,
}

impl Writer {
    /// A connection at its start.
    pub fn new(bytes: ByteWriter) -> Self {
        Self { bytes, pending: Pending::default(), cut: false }
    }

    /// Queues a request's head.
    pub fn request(&mut self, head: &RequestHead, hop: &Hop) -> io::Result<()> {
        self.pending.request(head, hop)
    }

    /// Queues a response's head. `Framing::None` is for answers to HEAD, 1xx, 204 and 304 alone: to anything else the peer
    /// would wait for a body.
    pub fn response(&mut self, head: &ResponseHead, hop: &Hop) -> io::Result<()> {
        self.pending.response(head, hop)
    }

    /// Queues a part of the body.
    pub fn queue(&mut self, data: Bytes) -> io::Result<()> {
        self.pending.data(data)
    }

    /// Writes a part of the body and all that was queued before.
    pub async fn data(&mut self, data: Bytes) -> io::Result<()> {
        self.pending.data(data)?;
        self.flush().await
    }

    /// Writes the end of the body, with trailers where the framing has them, and all that was queued before. Where the end
    /// of the connection is the end of the body, shutting down is left to the caller.
    pub async fn finish(&mut self, trailers: Option<&Headers>) -> io::Result<()> {
        self.pending.finish(trailers)?;
        self.flush().await
    }

    /// Writes what was queued. A connection whose flush was dropped or failed takes nothing more.
    pub async fn flush(&mut self) -> io::Result<()> {
        if self.cut {
            return Err(io::Error::other("a write before was not finished"));
        }
        let parts = self.pending.take();
        if !parts.is_empty() {
            self.cut = true;
            self.bytes.write_all(parts).await?;
            self.pending.parts.clear();
            self.cut = false;
        }
        Ok(())
    }

    /// How many bytes are queued.
    pub fn queued(&self) -> usize {
        self.pending.parts.iter().map(Bytes::len).sum::<usize>() + self.pending.text.len()
    }

    /// Whether all messages were written to their ends, so that another one may follow.
    pub fn is_over(&self) -> bool {
        self.pending.body == Body::Over && self.queued() == 0 && !self.cut
    }

    /// The bytes below: to shut them down, to settle or to reset them.
    pub fn bytes(&mut self) -> &mut ByteWriter {
        &mut self.bytes
    }

    /// The bytes below. What was queued and not flushed is dropped.
    pub fn into_bytes(self) -> ByteWriter {
        self.bytes
    }
}

impl Pending {
    /// Puts a request's head behind what is there.
    pub fn request(&mut self, head: &RequestHead, hop: &Hop) -> io::Result<()> {
        // Rules rewrite heads: looked at again, since what is wrong here makes two requests of one.
        let target = head.target.as_bytes();
        let whole_server = head.method == "OPTIONS" && target == b"*";
        let sound = is_method(head.method.as_bytes())
            && (whole_server || check_target(target).is_ok())
            && (head.authority.is_empty() || is_authority(head.authority.as_bytes()));
        if !sound {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a request line that cannot be written"));
        }
        self.begin(hop.framing)?;
        self.text.reserve(128 + target.len() + head.authority.len() + room(&head.headers));
        self.text.put_slice(head.method.as_bytes());
        self.text.put_u8(b' ');
        self.text.put_slice(target);
        self.text.put_slice(b" HTTP/1.1\r\nhost: ");
        self.text.put_slice(head.authority.as_bytes());
        self.text.put_slice(b"\r\n");
        self.fields(&head.headers, hop, Length::Never);
        Ok(())
    }

    /// Puts a response's head behind what is there.
    pub fn response(&mut self, head: &ResponseHead, hop: &Hop) -> io::Result<()> {
        let status = http::StatusCode::from_u16(head.status)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a status that cannot be written"))?;
        self.begin(hop.framing)?;
        self.text.reserve(128 + room(&head.headers));
        self.text.put_slice(b"HTTP/1.1 ");
        self.text.put_slice(status.as_str().as_bytes());
        self.text.put_u8(b' ');
        self.text.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
        self.text.put_slice(b"\r\n");
        let length = match head.status {
            100..=199 | 204 => Length::Never,
            _ => Length::OfWhatIsNotSent,
        };
        self.fields(&head.headers, hop, length);
        Ok(())
    }

    fn begin(&mut self, framing: Framing) -> io::Result<()> {
        if self.body != Body::Over {
            return Err(io::Error::other("the message before was not written to its end"));
        }
        self.body = match framing {
            Framing::None | Framing::Length(0) => Body::Over,
            Framing::Length(length) => Body::Length(length),
            Framing::Chunked => Body::Chunks,
            Framing::UntilClose | Framing::Upgraded => Body::UntilClose,
        };
        Ok(())
    }

    fn fields(&mut self, headers: &Headers, hop: &Hop, length: Length) {
        let (mut te, mut framed) = (false, false);
        for (name, value) in headers.lines() {
            let passed = match name {
                b"host" | b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding"
                | b"http2-settings" => false,
                b"upgrade" => hop.upgrade,
                b"te" => value.eq_ignore_ascii_case(b"trailers") && !std::mem::replace(&mut te, true),
                b"content-length" => match hop.framing {
                    // Where it stood, with the length that the body is framed by.
                    Framing::Length(length) => {
                        if !std::mem::replace(&mut framed, true) {
                            self.content_length(length);
                        }
                        false
                    }
                    Framing::None => length == Length::OfWhatIsNotSent,
                    Framing::Chunked | Framing::UntilClose | Framing::Upgraded => false,
                },
                _ => true,
            };
            if passed {
                line(&mut self.text, name, value);
            }
        }
        match hop.framing {
            Framing::Length(length) if !framed => self.content_length(length),
            Framing::Chunked => self.text.put_slice(b"transfer-encoding: chunked\r\n"),
            Framing::Length(_) | Framing::None | Framing::UntilClose | Framing::Upgraded => {}
        }
        self.connection(hop, te);
        self.text.put_slice(b"\r\n");
    }

    fn content_length(&mut self, length: u64) {
        self.text.put_slice(b"content-length: ");
        digits(&mut self.text, length, 10);
        self.text.put_slice(b"\r\n");
    }

    fn connection(&mut self, hop: &Hop, te: bool) {
        let options = [
            (hop.upgrade, "upgrade"),
            // Once the protocol has changed, it says itself when it ends.
            (hop.framing != Framing::Upgraded && hop.persistence == Persistence::Close, "close"),
            (hop.persistence == Persistence::KeepSaid, "keep-alive"),
            (te, "te"),
        ];
        let mut before = "connection: ";
        for (_, option) in options.iter().filter(|(said, _)| *said) {
            self.text.put_slice(before.as_bytes());
            self.text.put_slice(option.as_bytes());
            before = ", ";
        }
        if before == ", " {
            self.text.put_slice(b"\r\n");
        }
    }

    /// Puts a part of the body behind what is there.
    pub fn data(&mut self, data: Bytes) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        match &mut self.body {
            Body::Over => return Err(io::Error::other("a body that is longer than was said")),
            Body::Length(left) => {
                *left = left
                    .checked_sub(data.len() as u64)
                    .ok_or_else(|| io::Error::other("a body that is longer than was said"))?;
                if *left == 0 {
                    self.body = Body::Over;
                }
                self.bytes(data);
            }
            Body::UntilClose => self.bytes(data),
            Body::Chunks => {
                digits(&mut self.text, data.len() as u64, 16);
                self.text.put_slice(b"\r\n");
                self.bytes(data);
                self.text.put_slice(b"\r\n");
            }
        }
        Ok(())
    }

    /// Puts the end of the body behind what is there. Framings other than chunks have no trailers: they are dropped.
    pub fn finish(&mut self, trailers: Option<&Headers>) -> io::Result<()> {
        match self.body {
            Body::Length(_) => return Err(io::Error::other("a body that is shorter than was said")),
            Body::Over | Body::UntilClose => {}
            Body::Chunks => {
                self.text.put_slice(b"0\r\n");
                for (name, value) in trailers.iter().flat_map(|trailers| trailers.lines()) {
                    line(&mut self.text, name, value);
                }
                self.text.put_slice(b"\r\n");
            }
        }
        self.body = Body::Over;
        Ok(())
    }

    /// All that is there, in its order.
    pub fn take(&mut self) -> &mut [Bytes] {
        if !self.text.is_empty() {
            self.parts.push(self.text.split().freeze());
        }
        &mut self.parts
    }

    fn bytes(&mut self, data: Bytes) {
        if data.len() <= COPY {
            self.text.put_slice(&data);
            return;
        }
        self.take();
        self.parts.push(data);
    }
}

/// What becomes of a `Content-Length` among the fields, where the framing says none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    /// It is not written.
    Never,
    /// It tells the length of a body that is not sent: answers to HEAD, and 304.
    OfWhatIsNotSent,
}

/// What the fields take with their punctuation.
fn room(headers: &Headers) -> usize {
    headers.bytes() + 4 * headers.len()
}

fn line(text: &mut BytesMut, name: &[u8], value: &[u8]) {
    text.put_slice(name);
    text.put_slice(b": ");
    text.put_slice(value);
    text.put_slice(b"\r\n");
}

fn digits(text: &mut BytesMut, mut number: u64, base: u64) {
    // As many as 64 bits have in decimal.
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[(number % base) as usize];
        number /= base;
        if number == 0 || at == 0 {
            break;
        }
    }
    text.put_slice(&digits[at..]);
}
