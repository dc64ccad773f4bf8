//! A server's socket, which can be made to end with a reset instead of a close.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The order to reset a connection.
#[derive(Clone, Default)]
pub(super) struct Doom(Arc<AtomicBool>);

impl Doom {
    /// Whatever ends the connection next, the client sees a reset.
    pub(super) fn seal(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_sealed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A connection that obeys its [`Doom`].
pub(super) struct Doomed {
    stream: TcpStream,
    doom: Doom,
}

impl Doomed {
    pub(super) fn new(stream: TcpStream, doom: Doom) -> Self {
        Self { stream, doom }
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        if self.doom.is_sealed() {
            // Without time to linger, a close is a reset (socket(7)).
            let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for Doomed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Doomed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.doom.is_sealed() {
            // A FIN now would look like an orderly end.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
