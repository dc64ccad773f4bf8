//! The two halves of an HTTP/2 stream as a reader and a writer of bytes, with the stream's flow control as the
//! back-pressure: received bytes are given back to the window when they are read, and a write waits for capacity.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes handed to HTTP/2 in one piece: its default frame size.
const PIECE: usize = 16 << 10;

/// The receiving half.
pub struct StreamReader {
    stream: RecvStream,
    rest: Bytes,
}

impl StreamReader {
    /// Reads the body of a request or a response.
    pub fn new(stream: RecvStream) -> Self {
        Self { stream, rest: Bytes::new() }
    }
}

impl AsyncRead for StreamReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.stream.poll_data(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Ok(data)) => self.rest = data,
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
        let taken = self.rest.len().min(out.remaining());
        out.put_slice(&self.rest[..taken]);
        self.rest.advance(taken);
        Poll::Ready(self.stream.flow_control().release_capacity(taken).map_err(io::Error::other))
    }
}

/// The sending half.
pub struct StreamWriter(SendStream<Bytes>);

impl StreamWriter {
    /// Writes the body of a request or a response.
    pub fn new(stream: SendStream<Bytes>) -> Self {
        Self(stream)
    }
}

impl AsyncWrite for StreamWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.0.reserve_capacity(data.len().min(PIECE));
        while self.0.capacity() == 0 {
            match ready!(self.0.poll_capacity(cx)) {
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
        let piece = data.len().min(self.0.capacity()).min(PIECE);
        self.0.send_data(Bytes::copy_from_slice(&data[..piece]), false).map_err(io::Error::other)?;
        Poll::Ready(Ok(piece))
    }

    /// The connection's task writes to the socket; there is nothing to flush here.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.send_data(Bytes::new(), true).map_err(io::Error::other))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Echoes one stream's body over real HTTP/2, larger than both flow-control windows.
    #[tokio::test]
    async fn carries_more_than_a_window_both_ways() {
        let (near, far) = tokio::io::duplex(64 << 10);
        let server = tokio::spawn(async move {
            let mut connection = h2::server::handshake(far).await.expect("a connection");
            let (request, mut respond) = connection.accept().await.expect("a request").expect("it is whole");
            let send = respond.send_response(http::Response::new(()), false).expect("a stream");
            let echo = tokio::spawn(async move {
                let mut reader = StreamReader::new(request.into_body());
                let mut writer = StreamWriter::new(send);
                tokio::io::copy(&mut reader, &mut writer).await.expect("echoed");
                writer.shutdown().await.expect("ended");
            });
            assert!(connection.accept().await.is_none());
            echo.await.expect("echo");
        });
        let (mut client, connection) = h2::client::handshake(near).await.expect("a connection");
        let driver = tokio::spawn(connection);
        let (response, send) =
            client.send_request(http::Request::new(()), false).expect("a request is taken");
        let sent: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let expected = sent.clone();
        let writing = tokio::spawn(async move {
            let mut writer = StreamWriter::new(send);
            writer.write_all(&sent).await.expect("written");
            writer.shutdown().await.expect("ended");
        });
        let mut reader = StreamReader::new(response.await.expect("a response").into_body());
        let mut received = Vec::new();
        reader.read_to_end(&mut received).await.expect("read");
        assert!(received == expected);
        writing.await.expect("wrote");
        drop((client, reader));
        driver.await.expect("driver").expect("a clean end");
        server.await.expect("server");
    }
}
