//! The stream of a tunnel. Reading opens records from the socket's buffer straight into the reader's; writing seals
//! into one buffer that goes to the socket with few system calls. An idle stream holds no buffer.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::BufMut as _;
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{AlertDescription, Error, ExtractedSecrets};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::cursor::Cursor;
use super::record::{ContentType, HEADER, MAX_CONTENT, MAX_PAYLOAD, Opener, Sealer, invalid, whole_record};

/// Ciphertext that is read of the socket at a time, at first and once a read has filled that.
const SMALL_READ: usize = 8 * 1024;
const LARGE_READ: usize = 128 * 1024;
/// Sealed bytes that are collected before they are handed to the socket without having been flushed.
const WRITE_AT: usize = 128 * 1024;
/// Records that bring no data and are taken in a row before the connection is broken off: empty ones, tickets, key
/// updates.
const MAX_EMPTY: u32 = 64;
/// Key updates that a peer may ask for between two records of data.
const MAX_KEY_UPDATES: u32 = 16;
/// The longest handshake message that is taken after the handshake: a ticket.
const MAX_MESSAGE: usize = 32 * 1024;

/// Handshake messages of RFC 8446, section 4, that come after the handshake.
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// rustls's part after the handshake: the next keys.
pub enum Rekey {
    /// Of the calling side.
    Client(Box<KernelConnection<ClientConnectionData>>),
    /// Of the called side.
    Server(Box<KernelConnection<ServerConnectionData>>),
}

impl Rekey {
    fn sealer(&mut self) -> io::Result<Sealer> {
        let updated = match self {
            Self::Client(keys) => keys.update_tx_secret(),
            Self::Server(keys) => keys.update_tx_secret(),
        };
        let (sequence, secrets) = updated.map_err(io::Error::other)?;
        Sealer::new((sequence, &secrets))
    }

    fn opener(&mut self) -> io::Result<Opener> {
        let updated = match self {
            Self::Client(keys) => keys.update_rx_secret(),
            Self::Server(keys) => keys.update_rx_secret(),
        };
        let (sequence, secrets) = updated.map_err(io::Error::other)?;
        Opener::new((sequence, &secrets))
    }
}

/// A mutually authenticated stream.
pub struct TlsStream {
    socket: TcpStream,
    rekey: Rekey,
    opener: Opener,
    sealer: Sealer,
    /// Ciphertext from `taken` on.
    received: Vec<u8>,
    taken: usize,
    read_size: usize,
    /// Content that did not fit into the reader's buffer, from `given` on.
    plain: Vec<u8>,
    given: usize,
    /// Parts of handshake messages.
    message: Vec<u8>,
    empty: u32,
    key_updates: u32,
    /// The peer has asked for new keys of ours.
    update_owed: bool,
    /// The peer has said that it sends nothing more.
    ended: bool,
    /// Sealed bytes from `sent` on.
    outgoing: Vec<u8>,
    sent: usize,
    closing: bool,
}

/// What opening one record came to.
enum Opened {
    /// So many bytes of content in the buffer that it was opened into.
    Content(usize),
    /// Something of the protocol's own.
    Nothing,
    /// The peer sends nothing more.
    End,
}

impl TlsStream {
    /// The record layer of a finished handshake. `received` came after its last record.
    pub fn new(
        socket: TcpStream,
        received: Vec<u8>,
        secrets: &ExtractedSecrets,
        rekey: Rekey,
    ) -> io::Result<Self> {
        Ok(Self {
            opener: Opener::new((secrets.rx.0, &secrets.rx.1))?,
            sealer: Sealer::new((secrets.tx.0, &secrets.tx.1))?,
            socket,
            rekey,
            received,
            taken: 0,
            read_size: SMALL_READ,
            plain: Vec::new(),
            given: 0,
            message: Vec::new(),
            empty: 0,
            key_updates: 0,
            update_owed: false,
            ended: false,
            outgoing: Vec::new(),
            sent: 0,
            closing: false,
        })
    }

    /// Opens the next record that has been received whole, into `room` if its content is sure to fit there, else
    /// into `plain`. `None` while none is whole.
    fn open_next(&mut self, room: &mut ReadBuf<'_>) -> io::Result<Option<Opened>> {
        let Some(length) = whole_record(&self.received[self.taken..])? else { return Ok(None) };
        let record = &self.received[self.taken..self.taken + length];
        let most = length - HEADER;
        let in_room = room.remaining() >= most;
        let (content_type, content) = if in_room {
            let (content_type, content) = self.opener.open(record, room.initialize_unfilled_to(most))?;
            if content_type != ContentType::Data {
                self.plain.clear();
                self.plain.extend_from_slice(&room.initialize_unfilled_to(most)[..content]);
                self.given = content;
            }
            (content_type, content)
        } else {
            self.plain.resize(most, 0);
            let (content_type, content) = self.opener.open(record, &mut self.plain)?;
            self.plain.truncate(content);
            self.given = if content_type == ContentType::Data { 0 } else { content };
            (content_type, content)
        };
        self.taken += length;
        match content_type {
            ContentType::Data if content == 0 => self.take_empty(),
            ContentType::Data => {
                (self.empty, self.key_updates) = (0, 0);
                Ok(Opened::Content(if in_room { content } else { 0 }))
            }
            ContentType::Alert => self.take_alert(),
            ContentType::Handshake if content == 0 => Err(invalid("a handshake record without content")),
            ContentType::Handshake => self.take_message(),
        }
        .map(Some)
    }

    fn take_empty(&mut self) -> io::Result<Opened> {
        self.empty += 1;
        if self.empty > MAX_EMPTY {
            Err(invalid("too many records without data"))
        } else {
            Ok(Opened::Nothing)
        }
    }

    /// An alert: the orderly end, or the peer's reason for breaking off.
    fn take_alert(&mut self) -> io::Result<Opened> {
        match self.plain[..] {
            [_, 0] => Ok(Opened::End),
            [_, description] => {
                let error = Error::AlertReceived(AlertDescription::from(description));
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, error))
            }
            _ => Err(invalid("an alert of the wrong length")),
        }
    }

    /// A handshake message after the handshake. Tickets are left alone, since nothing is resumed.
    fn take_message(&mut self) -> io::Result<Opened> {
        self.take_empty()?;
        self.message.extend_from_slice(&self.plain);
        while let Some(head) = self.message.first_chunk::<4>() {
            let length = usize::from(head[1]) << 16 | usize::from(head[2]) << 8 | usize::from(head[3]);
            if length > MAX_MESSAGE {
                return Err(invalid("a handshake message without end"));
            }
            if self.message.len() < 4 + length {
                break;
            }
            let (kind, body): (u8, Vec<u8>) = (head[0], self.message[4..4 + length].to_vec());
            self.message.drain(..4 + length);
            match (kind, &body[..]) {
                (NEW_SESSION_TICKET, _) if matches!(self.rekey, Rekey::Client(_)) => {}
                (KEY_UPDATE, [wanted @ 0..=1]) if self.message.is_empty() => {
                    self.update_keys(*wanted == 1)?;
                }
                _ => return Err(invalid("an unexpected handshake message")),
            }
        }
        Ok(Opened::Nothing)
    }

    /// The peer's next records are under new keys; it may want the same of us.
    fn update_keys(&mut self, ours_too: bool) -> io::Result<()> {
        self.key_updates += 1;
        if self.key_updates > MAX_KEY_UPDATES {
            return Err(invalid("too many key updates"));
        }
        self.opener = self.rekey.opener()?;
        // One answer serves all requests that came before it (RFC 8446, section 4.6.3), and it goes with our next data.
        self.update_owed |= ours_too;
        Ok(())
    }

    fn replace_sealer(&mut self) -> io::Result<()> {
        let update = [KEY_UPDATE, 0, 0, 1, 0];
        self.sealer.seal(ContentType::Handshake, [&update[..]].into_iter(), &mut self.outgoing)?;
        self.sealer = self.rekey.sealer()?;
        Ok(())
    }

    /// Reads ciphertext; `false` at the end of the socket's stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        // What is left is a part of one record: it moves to the front, so that the buffer does not creep.
        if self.taken > 0 {
            self.received.drain(..self.taken);
            self.taken = 0;
        }
        let before = self.received.len();
        let room = self.read_size.max(HEADER + MAX_PAYLOAD - before.min(HEADER + MAX_PAYLOAD));
        // Nothing is held while nothing comes; and this counts against the task's budget, so that a peer which never
        // falls silent leaves the worker to others in between.
        let filled = match self.socket.poll_read_ready(cx)? {
            Poll::Ready(()) => {
                self.received.reserve(room);
                // A read that leaves room has taken all that there was. The stream knows, and does not ask the socket
                // again before the kernel reports more, which `try_read` would, once for every message.
                pin!(self.socket.read_buf(&mut (&mut self.received).limit(room))).poll(cx)?
            }
            Poll::Pending => Poll::Pending,
        };
        match filled {
            Poll::Ready(0) => Poll::Ready(Ok(false)),
            Poll::Ready(read) => {
                if read == room {
                    self.read_size = LARGE_READ;
                } else if read < SMALL_READ {
                    self.read_size = SMALL_READ;
                }
                Poll::Ready(Ok(true))
            }
            Poll::Pending => {
                if before == 0 && self.read_size == SMALL_READ {
                    self.let_go();
                }
                Poll::Pending
            }
        }
    }

    /// Hands sealed bytes to the socket until none are left.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.outgoing.len() {
            match self.socket.try_write(&self.outgoing[self.sent..]) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.socket.poll_write_ready(cx))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        self.sent = 0;
        self.outgoing.clear();
        Poll::Ready(Ok(()))
    }

    /// Nothing comes, and what came last was little: buffers are taken anew when there is something to put in them.
    fn let_go(&mut self) {
        (self.received, self.plain, self.given) = (Vec::new(), Vec::new(), 0);
        if self.outgoing.is_empty() {
            self.outgoing = Vec::new();
        }
    }

    /// Seals as much of the slices as fits, and says how much that was.
    fn seal(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        let total = total.min(WRITE_AT);
        let mut cursor = Cursor::new(slices);
        let mut sealed = 0;
        self.outgoing.reserve(total + (total / MAX_CONTENT + 2) * super::record::OVERHEAD);
        while sealed < total {
            if std::mem::take(&mut self.update_owed) || self.sealer.is_worn() {
                self.replace_sealer()?;
            }
            let length = (total - sealed).min(MAX_CONTENT);
            self.sealer.seal(ContentType::Data, cursor.take(length), &mut self.outgoing)?;
            sealed += length;
        }
        Ok(total)
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = room.filled().len();
        loop {
            let left = &this.plain[this.given..];
            if !left.is_empty() {
                let part = left.len().min(room.remaining());
                room.put_slice(&left[..part]);
                this.given += part;
                return Poll::Ready(Ok(()));
            }
            if this.ended || room.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            match this.open_next(room)? {
                Some(Opened::Content(length)) => room.advance(length),
                Some(Opened::Nothing) => {}
                Some(Opened::End) => this.ended = true,
                // What has been opened is given before more is waited for.
                None if room.filled().len() > before => return Poll::Ready(Ok(())),
                None => {
                    if !ready!(this.poll_fill(cx))? {
                        // Cut off without the peer's word: whatever was under way is not whole.
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                }
            }
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.outgoing.len() - this.sent >= WRITE_AT {
            ready!(this.poll_send(cx))?;
        }
        Poll::Ready(this.seal(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closing {
            this.closing = true;
            // Warning, close_notify: RFC 8446, section 6.1.
            this.sealer.seal(ContentType::Alert, [&[1, 0][..]].into_iter(), &mut this.outgoing)?;
        }
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
impl TlsStream {
    /// As after `RECORDS_A_KEY` records.
    pub fn replace_sealer_for_test(&mut self) {
        self.replace_sealer().expect("new keys");
    }
}
