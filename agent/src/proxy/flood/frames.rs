//! Frames of HTTP/2 as they pass between the socket and the codec: their heads are looked at, in both directions, and
//! what lies between is not. A frame that carries nothing takes from an allowance, one that carries something adds to it;
//! at its end nothing more is read, and who serves the connection is told.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Frames without content that a peer may send before any of its traffic explains them: PING, SETTINGS, PRIORITY,
/// WINDOW_UPDATE, RST_STREAM, CONTINUATION, empty DATA, and kinds that nobody knows.
pub(super) const ALLOWANCE: u32 = 1_000;
/// What each frame with content explains, in either direction: the windows of its stream and of the connection given
/// back, a PING that measures how it went, a reset.
const EXPLAINED: u32 = 4;
/// The most that is explained at a time. As much as a window holds in small frames that are on their way: who takes them
/// in may give the windows back for each, when we have long stopped to send.
const MOST_EXPLAINED: u32 = 20_000;
/// One is forgiven after so long, up to `ALLOWANCE`: 100 a second.
const FORGIVEN_EVERY: Duration = Duration::from_millis(10);

/// What every client sends before its first frame (RFC 9113, section 3.4).
const PREFACE: usize = 24;
/// A frame's head (RFC 9113, section 4.1).
const HEAD: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const PADDED: u8 = 8;

/// Which side of the connection the peer is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Starts {
    /// The peer is the client, and sends the preface.
    Peer,
    /// The peer is the server.
    We,
}

/// What is told of a connection to who serves it.
#[derive(Debug, Default)]
pub struct Alarm {
    flooded: Notify,
    /// Bytes of heads, in the form in which they came.
    heads: AtomicU64,
    /// Streams that this side reset.
    resets: AtomicU32,
}

impl Alarm {
    /// Ends when the peer has sent too many frames without content.
    pub async fn flooded(&self) {
        self.flooded.notified().await;
    }

    /// How many bytes the heads took that came so far, as they were compressed.
    pub fn bytes_of_heads(&self) -> u64 {
        self.heads.load(Ordering::Relaxed)
    }

    /// How many streams this side has reset.
    pub fn resets_sent(&self) -> u32 {
        self.resets.load(Ordering::Relaxed)
    }
}

/// A connection whose frames are watched.
pub struct Watched<T> {
    io: T,
    received: Heads,
    sent: Heads,
    allowance: Allowance,
    /// Nothing more is read.
    is_flooded: bool,
    alarm: Arc<Alarm>,
}

impl<T> Watched<T> {
    /// Watches `io` from its first byte on.
    pub fn new(io: T, starts: Starts) -> (Self, Arc<Alarm>) {
        let alarm = Arc::<Alarm>::default();
        let (received, sent) = match starts {
            Starts::Peer => (Heads::after(PREFACE), Heads::after(0)),
            Starts::We => (Heads::after(0), Heads::after(PREFACE)),
        };
        let allowance = Allowance::new(Instant::now());
        (Self { io, received, sent, allowance, is_flooded: false, alarm: Arc::clone(&alarm) }, alarm)
    }
}

/// What a frame means to the allowance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weight {
    /// It carries something.
    Content,
    /// It carries nothing.
    Empty,
    /// It may be either, and the codec tells.
    Neither,
}

/// The first bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    length: u32,
    kind: u8,
    flags: u8,
}

impl Head {
    fn read(bytes: [u8; HEAD]) -> Self {
        let [high, middle, low, kind, flags, ..] = bytes;
        Self { length: u32::from_be_bytes([0, high, middle, low]), kind, flags }
    }

    fn weight(self) -> Weight {
        match self.kind {
            // What is in it besides its padding is not seen here.
            DATA if self.flags & PADDED != 0 => Weight::Neither,
            DATA if self.length > 0 => Weight::Content,
            DATA if self.flags & END_STREAM != 0 => Weight::Neither,
            HEADERS => Weight::Content,
            _ => Weight::Empty,
        }
    }
}

/// Finds heads in bytes however they are cut.
#[derive(Debug)]
struct Heads {
    head: [u8; HEAD],
    /// How much of `head` has come.
    have: usize,
    /// What is to come before the next head.
    skip: usize,
}

impl Heads {
    fn after(skip: usize) -> Self {
        Self { head: [0; HEAD], have: 0, skip }
    }

    fn find(&mut self, mut bytes: &[u8], mut found: impl FnMut(Head)) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let passed = self.skip.min(bytes.len());
                self.skip -= passed;
                bytes = &bytes[passed..];
                continue;
            }
            let part = (HEAD - self.have).min(bytes.len());
            self.head[self.have..self.have + part].copy_from_slice(&bytes[..part]);
            self.have += part;
            bytes = &bytes[part..];
            if self.have == HEAD {
                self.have = 0;
                let head = Head::read(self.head);
                // At most 2^24 - 1.
                self.skip = head.length as usize;
                found(head);
            }
        }
    }
}

/// Frames without content that may still come.
#[derive(Debug)]
pub(super) struct Allowance {
    left: u32,
    forgiven_at: Instant,
}

impl Allowance {
    pub(super) fn new(now: Instant) -> Self {
        Self { left: ALLOWANCE, forgiven_at: now }
    }

    fn add(&mut self) {
        self.left = self.left.saturating_add(EXPLAINED).min(MOST_EXPLAINED);
    }

    /// Takes one, and says whether there was one. The clock is asked only where there is none.
    pub(super) fn take(&mut self, now: impl FnOnce() -> Instant) -> bool {
        if self.left == 0 {
            let now = now();
            let passed = now.duration_since(self.forgiven_at).as_millis() / FORGIVEN_EVERY.as_millis();
            self.left = u32::try_from(passed).unwrap_or(u32::MAX).min(ALLOWANCE);
            self.forgiven_at = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => return false,
        }
        true
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { io, received, allowance, is_flooded, alarm, .. } = &mut *self;
        if *is_flooded {
            return Poll::Pending;
        }
        let before = into.filled().len();
        ready!(Pin::new(io).poll_read(cx, into))?;
        let (mut within, mut heads) = (true, 0);
        received.find(&into.filled()[before..], |head| {
            match head.weight() {
                Weight::Content => allowance.add(),
                Weight::Empty => within &= allowance.take(Instant::now),
                Weight::Neither => {}
            }
            if matches!(head.kind, HEADERS | CONTINUATION) {
                heads += u64::from(head.length);
            }
        });
        if heads > 0 {
            alarm.heads.fetch_add(heads, Ordering::Relaxed);
        }
        if !within {
            // Who serves the connection is woken by it, and ends it; the codec is given nothing more until then.
            into.set_filled(before);
            *is_flooded = true;
            alarm.flooded.notify_one();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { io, sent, allowance, alarm, .. } = &mut *self;
        let written = ready!(Pin::new(io).poll_write_vectored(cx, parts))?;
        let mut left = written;
        for part in parts {
            let of_part = part.len().min(left);
            left -= of_part;
            sent.find(&part[..of_part], |head| {
                if head.weight() == Weight::Content {
                    allowance.add();
                }
                if head.kind == RST_STREAM {
                    alarm.resets.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
