//! Both halves of a connection as one stream, for protocols that are read and written by others.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::SendStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{ByteReader, ByteWriter, poll_pending, poll_socket, release};
use crate::proxy::relay::{self, GATHER};

/// Both halves as one stream, for protocols that are read and written by others.
pub struct Joined {
    reader: ByteReader,
    writer: ByteWriter,
    /// What was read before, from the start on.
    buffer: BytesMut,
}

impl Joined {
    /// One stream of both halves, which starts with what was read already.
    pub fn new(reader: ByteReader, writer: ByteWriter, buffer: BytesMut) -> Self {
        Self { reader, writer, buffer }
    }
}

impl AsyncRead for Joined {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { reader, buffer, .. } = &mut *self;
        if !buffer.is_empty() {
            let part = buffer.len().min(into.remaining());
            into.put_slice(&buffer[..part]);
            buffer.advance(part);
            if buffer.is_empty() {
                *buffer = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        match reader {
            ByteReader::Socket(socket) => {
                let most = into.remaining();
                poll_socket(socket, cx, into, most).map_ok(|_| ())
            }
            ByteReader::Tunnel(stream, pending) => {
                if ready!(poll_pending(stream, pending, cx))? {
                    let part = pending.split_to(pending.len().min(into.remaining()));
                    into.put_slice(&part);
                    release(stream, part.len());
                }
                Poll::Ready(Ok(()))
            }
            ByteReader::Tls(tls) => Pin::new(tls).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for Joined {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, part: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(part)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let parts = &parts[..parts.len().min(GATHER)];
        match &mut self.writer {
            ByteWriter::Socket(socket) => loop {
                ready!(socket.poll_write_ready(cx))?;
                match socket.try_write_vectored(parts) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    done => return Poll::Ready(done),
                }
            },
            ByteWriter::Tunnel(stream) => {
                let total: usize = parts.iter().map(|part| part.len()).sum();
                if total == 0 {
                    return Poll::Ready(Ok(0));
                }
                stream.reserve_capacity(total.min(relay::LARGE_READ));
                let capacity = ready!(poll_capacity(stream, cx))?;
                let mut frame = BytesMut::with_capacity(capacity.min(total));
                for part in parts {
                    let room = capacity - frame.len();
                    frame.extend_from_slice(&part[..part.len().min(room)]);
                }
                let written = frame.len();
                stream.send_data(frame.freeze(), false).map_err(relay::h2_error)?;
                Poll::Ready(Ok(written))
            }
            ByteWriter::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.writer {
            ByteWriter::Tls(tls) => Pin::new(tls).poll_flush(cx),
            ByteWriter::Socket(_) | ByteWriter::Tunnel(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = self.writer.shutdown();
        self.writer.settle();
        Poll::Ready(ended)
    }
}

/// Waits until a stream may send something.
fn poll_capacity(stream: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    loop {
        let capacity = stream.capacity();
        if capacity > 0 {
            return Poll::Ready(Ok(capacity));
        }
        match ready!(stream.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Poll::Ready(Err(relay::h2_error(error))),
            None => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}
