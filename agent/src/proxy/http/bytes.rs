//! Bytes from and to a socket or a stream in a tunnel, pulled by who needs them: what is not read is not acknowledged, so
//! that a slow reader slows the writer at the other end. A side that waits holds no buffer.

/// Both halves as one stream.
mod joined;

use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::super::relay::{self, TunnelStream};

pub use joined::Joined;

/// The most that is read ahead of a peer that is only asked whether it is still there.
pub const READ_AHEAD: usize = 16 * 1024;
/// Writes into a tunnel up to this size become one DATA frame: copying them costs less than the head of a frame.
const MERGE: usize = 4 * 1024;
/// What one record of TLS holds (RFC 8446, section 5.1).
const TLS_RECORD: usize = 16 * 1024;
/// How long a peer that was answered before it had finished is listened to, so that the answer reaches it: the kernel
/// resets a connection that is closed with unread input, and the reset overtakes the answer.
pub const LINGER: Duration = Duration::from_secs(2);
/// The most that is read and thrown away meanwhile.
pub const LINGER_BYTES: usize = 256 * 1024;

/// The reading half of a connection.
pub enum ByteReader {
    /// Of a program's socket.
    Socket(Arc<TcpStream>),
    /// Of a stream in a tunnel, with what came and was not taken yet.
    Tunnel(RecvStream, Bytes),
    /// Of an endpoint's own TLS.
    Tls(ReadHalf<TlsStream<TcpStream>>),
}

/// The writing half of a connection. Nothing is closed by dropping it: a socket that was not `settle`d resets, since an
/// end that nobody said would be taken for a whole one.
pub enum ByteWriter {
    /// Of a program's socket.
    Socket(Arc<TcpStream>),
    /// Of a stream in a tunnel.
    Tunnel(SendStream<Bytes>),
    /// Of an endpoint's own TLS.
    Tls(WriteHalf<TlsStream<TcpStream>>),
}

/// Both halves of a program's socket. Until the writer is `settle`d, closing it resets it.
pub fn of_socket(socket: TcpStream) -> (ByteReader, ByteWriter) {
    relay::reset_on_close(&socket);
    let socket = Arc::new(socket);
    (ByteReader::Socket(Arc::clone(&socket)), ByteWriter::Socket(socket))
}

/// Both halves of an endpoint's own TLS.
pub fn of_tls(stream: TlsStream<TcpStream>) -> (ByteReader, ByteWriter) {
    let (reader, writer) = tokio::io::split(stream);
    (ByteReader::Tls(reader), ByteWriter::Tls(writer))
}

/// Both halves of a stream in a tunnel.
pub fn of_tunnel(stream: TunnelStream) -> (ByteReader, ByteWriter) {
    of_tunnel_with(stream, Bytes::new())
}

/// The same of a stream of which `first` has come and was not let go.
pub fn of_tunnel_with(stream: TunnelStream, first: Bytes) -> (ByteReader, ByteWriter) {
    (ByteReader::Tunnel(stream.receive, first), ByteWriter::Tunnel(stream.send))
}

impl ByteReader {
    /// Reads at most `most` bytes behind those in `buffer`, and says how many: 0 once nothing more comes. Nothing is lost
    /// when the future is dropped. While nothing comes, an empty buffer lets go of its memory.
    pub async fn read_some(&mut self, buffer: &mut BytesMut, most: usize) -> io::Result<usize> {
        poll_fn(|cx| self.poll_some(cx, buffer, most)).await
    }

    /// Reads at most `most` bytes, without copying them where that can be; empty once nothing more comes. `spare` is
    /// empty, and is the memory that a socket is read into.
    pub async fn read_bytes(&mut self, spare: &mut BytesMut, most: usize) -> io::Result<Bytes> {
        debug_assert!(spare.is_empty(), "what was read before comes first");
        poll_fn(|cx| match self {
            Self::Tunnel(stream, pending) => {
                if !ready!(poll_pending(stream, pending, cx))? {
                    return Poll::Ready(Ok(Bytes::new()));
                }
                let part = pending.split_to(pending.len().min(most));
                release(stream, part.len());
                Poll::Ready(Ok(part))
            }
            Self::Socket(_) | Self::Tls(_) => {
                ready!(self.poll_some(cx, spare, most))?;
                Poll::Ready(Ok(spare.split().freeze()))
            }
        })
        .await
    }

    /// Ends when the peer will send nothing more: `Ok` if it said so itself, the error if it broke off. What comes until
    /// then is kept in `buffer`. Of a peer that sends more than `READ_AHEAD` the kernel still tells the end of its socket,
    /// and no stream in a tunnel does.
    pub async fn closed(&mut self, buffer: &mut BytesMut) -> io::Result<()> {
        let ended = poll_fn(|cx| {
            while buffer.len() < READ_AHEAD {
                let most = READ_AHEAD - buffer.len();
                if ready!(self.poll_some(cx, buffer, most))? == 0 {
                    return Poll::Ready(Ok(true));
                }
            }
            Poll::Ready(Ok::<_, io::Error>(false))
        });
        match (ended.await?, self) {
            (true, _) => Ok(()),
            // Besides priority data, for which it is not registered, this tells the peer's end alone, however much is
            // still to be read before it (EPOLLRDHUP, epoll_ctl(2)).
            (false, Self::Socket(socket)) => socket.ready(Interest::PRIORITY).await.map(|_| ()),
            (false, Self::Tunnel(..) | Self::Tls(_)) => std::future::pending().await,
        }
    }

    /// Whether a connection that nothing is expected on is as it was left: nothing has come, and it has not ended. Only
    /// while nothing else waits for it.
    pub fn is_quiet(&mut self, buffer: &mut BytesMut) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        buffer.is_empty() && self.poll_some(&mut cx, buffer, READ_AHEAD).is_pending()
    }

    /// As `read_some`.
    pub fn poll_some(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
        most: usize,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Socket(socket) => {
                // Asked first, so that who waits holds no buffer.
                if buffer.is_empty() && socket.poll_read_ready(cx)?.is_pending() {
                    *buffer = BytesMut::new();
                    return Poll::Pending;
                }
                buffer.reserve(most);
                poll_socket(socket, cx, buffer, most)
            }
            Self::Tunnel(stream, pending) => {
                if !ready!(poll_pending(stream, pending, cx))? {
                    return Poll::Ready(Ok(0));
                }
                let part = pending.split_to(pending.len().min(most));
                buffer.extend_from_slice(&part);
                release(stream, part.len());
                Poll::Ready(Ok(part.len()))
            }
            Self::Tls(tls) => {
                let mut record = [0; TLS_RECORD];
                let mut part = ReadBuf::new(&mut record[..most.min(TLS_RECORD)]);
                ready!(Pin::new(tls).poll_read(cx, &mut part))?;
                buffer.extend_from_slice(part.filled());
                Poll::Ready(Ok(part.filled().len()))
            }
        }
    }
}

fn poll_socket(
    socket: &TcpStream,
    cx: &mut Context<'_>,
    into: &mut impl BufMut,
    most: usize,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(socket.poll_read_ready(cx))?;
        let mut read = 0;
        let tried = socket.try_io(Interest::READABLE, || {
            read = socket.try_read_buf(&mut (&mut *into).limit(most))?;
            // A short read has emptied the socket (epoll(7)): the next one waits without asking the kernel in vain.
            if read > 0 && read < most { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match tried {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(error)),
            Err(_) if read == 0 => {}
            _ => return Poll::Ready(Ok(read)),
        }
    }
}

/// Waits until something of a stream is there; whether there is, and not its end.
fn poll_pending(
    stream: &mut RecvStream,
    pending: &mut Bytes,
    cx: &mut Context<'_>,
) -> Poll<io::Result<bool>> {
    while pending.is_empty() {
        match ready!(stream.poll_data(cx)) {
            Some(Ok(frame)) => *pending = frame,
            Some(Err(error)) => return Poll::Ready(Err(relay::h2_error(error))),
            None => return Poll::Ready(Ok(false)),
        }
    }
    Poll::Ready(Ok(true))
}

/// Lets the peer send as much again as was taken.
fn release(stream: &mut RecvStream, taken: usize) {
    // An error means that the stream is gone, which the next poll says with its reason.
    let _ = stream.flow_control().release_capacity(taken);
}

impl ByteWriter {
    /// Writes all of `parts`, in as few system calls or frames as it takes. None of them is empty.
    pub async fn write_all(&mut self, parts: &mut [Bytes]) -> io::Result<()> {
        debug_assert!(
            !parts.iter().any(Bytes::is_empty),
            "writing nothing looks like a socket that takes nothing"
        );
        match self {
            Self::Socket(socket) => relay::write_all(socket, parts).await.map(|_| ()),
            Self::Tunnel(stream) => {
                let total = parts.iter().map(Bytes::len).sum();
                if parts.len() > 1 && total <= MERGE {
                    let mut merged = BytesMut::with_capacity(total);
                    parts.iter().for_each(|part| merged.extend_from_slice(part));
                    return relay::send_all(stream, merged.freeze()).await;
                }
                for part in parts {
                    relay::send_all(stream, std::mem::take(part)).await?;
                }
                Ok(())
            }
            Self::Tls(tls) => {
                for part in parts {
                    tls.write_all(part).await?;
                }
                tls.flush().await
            }
        }
    }

    /// Says that nothing more comes. The other direction goes on.
    pub fn shutdown(&mut self) -> io::Result<()> {
        match self {
            Self::Socket(socket) => SockRef::from(&**socket).shutdown(Shutdown::Write),
            Self::Tunnel(stream) => stream.send_data(Bytes::new(), true).map_err(relay::h2_error),
            Self::Tls(tls) => {
                let mut cx = Context::from_waker(Waker::noop());
                match Pin::new(tls).poll_shutdown(&mut cx) {
                    Poll::Ready(ended) => ended,
                    // The farewell is a few bytes; a peer that takes none of them has gone.
                    Poll::Pending => Ok(()),
                }
            }
        }
    }

    /// Everything was said and heard: a socket's close will be an orderly one.
    pub fn settle(&self) {
        if let Self::Socket(socket) = self {
            // Fails only on a socket that is gone already.
            let _ = SockRef::from(&**socket).set_linger(None);
        }
    }

    /// Breaks the connection off, and says of what came last that nothing was done with it (RFC 9113, section 8.7), where
    /// that can be said.
    pub fn refuse(&mut self) {
        match self {
            Self::Tunnel(stream) => stream.send_reset(Reason::REFUSED_STREAM),
            Self::Socket(_) | Self::Tls(_) => self.reset(),
        }
    }

    /// Breaks the connection off, so that the peer does not take what it has for all there is.
    pub fn reset(&mut self) {
        match self {
            Self::Socket(socket) => relay::reset_on_close(socket),
            Self::Tunnel(stream) => stream.send_reset(Reason::CANCEL),
            // Without a farewell, the peer takes it for broken off (RFC 8446, section 6.1).
            Self::Tls(_) => {}
        }
    }
}

/// Says what is left to say and listens until the peer has heard it, at most for `LINGER`: the end of a connection that
/// was answered before its sender had finished.
pub async fn linger(reader: &mut ByteReader, writer: &mut ByteWriter) {
    if writer.shutdown().is_err() {
        return;
    }
    let drained = async {
        let (mut buffer, mut left) = (BytesMut::new(), LINGER_BYTES);
        while left > 0 {
            match reader.read_some(&mut buffer, left.min(READ_AHEAD)).await {
                Ok(read) if read > 0 => left -= read,
                _ => return,
            }
            buffer.clear();
        }
    };
    let _ = tokio::time::timeout(LINGER, drained).await;
    writer.settle();
}

#[cfg(test)]
pub(in crate::proxy) mod tests;
