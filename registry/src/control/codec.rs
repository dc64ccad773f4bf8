//! Frames: a length of four bytes, big-endian, and as many bytes. Reading can be cancelled at any point and
//! taken up again; memory is taken as bytes come, never on the word of a length.

use std::io;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// Largest message in bytes. A resource that would not fit is refused when it is applied.
pub const MAX_MESSAGE: usize = 1 << 20;
/// How long one write may make no progress before the connection counts as dead.
pub const WRITE_STALL: Duration = Duration::from_secs(30);
/// Bytes gathered before they are written.
const WRITE_BUFFER: usize = 64 << 10;
const HEADER: usize = 4;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// A length beyond the limit: the peer speaks something else, or a resource was not checked.
    #[error("a message of {0} bytes is larger than the limit of {MAX_MESSAGE}")]
    TooLarge(usize),
    /// The stream ended within a frame.
    #[error("the connection ended within a message")]
    Truncated,
    /// A write made no progress.
    #[error("the peer took nothing for {} seconds", WRITE_STALL.as_secs())]
    Stalled,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Connection(#[from] io::Error),
}

/// Reads frames.
pub struct FrameReader<R> {
    inner: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads frames from `inner`.
    pub fn new(inner: R) -> Self {
        Self { inner, buffer: BytesMut::new() }
    }

    /// The next frame, or `None` at the end of the stream. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<Bytes>, FrameError> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(Some(frame));
            }
            if self.inner.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(FrameError::Truncated) };
            }
        }
    }

    fn take(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else { return Ok(None) };
        let length = u32::from_be_bytes(*header) as usize;
        if length > MAX_MESSAGE {
            return Err(FrameError::TooLarge(length));
        }
        if self.buffer.len() < HEADER + length {
            return Ok(None);
        }
        self.buffer.advance(HEADER);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}

/// Writes frames.
pub struct FrameWriter<W> {
    inner: W,
    buffer: BytesMut,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes frames to `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, buffer: BytesMut::new() }
    }

    /// Takes a frame, and writes what has been gathered when it is much.
    pub async fn feed(&mut self, frame: &[u8]) -> Result<(), FrameError> {
        let length = u32::try_from(frame.len()).ok().filter(|length| *length as usize <= MAX_MESSAGE);
        self.buffer.put_u32(length.ok_or(FrameError::TooLarge(frame.len()))?);
        self.buffer.put_slice(frame);
        if self.buffer.len() >= WRITE_BUFFER { self.drain().await } else { Ok(()) }
    }

    /// Takes whole frames with their lengths. Much of them is written without being gathered first.
    pub async fn feed_encoded(&mut self, frames: &[u8]) -> Result<(), FrameError> {
        if self.buffer.len() + frames.len() < WRITE_BUFFER {
            self.buffer.put_slice(frames);
            return Ok(());
        }
        self.drain().await?;
        let mut rest = frames;
        while !rest.is_empty() {
            let write = self.inner.write(rest);
            match timeout(WRITE_STALL, write).await.map_err(|_| FrameError::Stalled)?? {
                0 => return Err(FrameError::Connection(io::ErrorKind::WriteZero.into())),
                written => rest = &rest[written..],
            }
        }
        Ok(())
    }

    /// Writes out what was taken.
    pub async fn flush(&mut self) -> Result<(), FrameError> {
        self.drain().await?;
        // Thousands of connections wait most of the time, each with as much as it once had to write.
        self.buffer = BytesMut::new();
        timeout(WRITE_STALL, self.inner.flush()).await.map_err(|_| FrameError::Stalled)??;
        Ok(())
    }

    /// Writes a frame at once.
    pub async fn send(&mut self, frame: &[u8]) -> Result<(), FrameError> {
        self.feed(frame).await?;
        self.flush().await
    }

    /// Writes out what was taken and ends this direction.
    pub async fn close(&mut self) -> Result<(), FrameError> {
        self.flush().await?;
        timeout(WRITE_STALL, self.inner.shutdown()).await.map_err(|_| FrameError::Stalled)??;
        Ok(())
    }

    async fn drain(&mut self) -> Result<(), FrameError> {
        while !self.buffer.is_empty() {
            let write = self.inner.write_buf(&mut self.buffer);
            if timeout(WRITE_STALL, write).await.map_err(|_| FrameError::Stalled)?? == 0 {
                return Err(FrameError::Connection(io::ErrorKind::WriteZero.into()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_all(bytes: &[u8]) -> (Vec<Bytes>, Option<String>) {
        let mut reader = FrameReader::new(bytes);
        let mut frames = Vec::new();
        loop {
            match reader.next().await {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return (frames, None),
                Err(error) => return (frames, Some(error.to_string())),
            }
        }
    }

    #[tokio::test]
    async fn reads_what_is_whole_and_refuses_the_rest() {
        for (bytes, frames, error) in [
            (&b""[..], 0, None),
            (b"\0\0\0\x02{}\0\0\0\0", 2, None),
            (b"\0\0\0\x02{", 0, Some("ended within")),
            (b"\0\0\0", 0, Some("ended within")),
            (b"\0\x10\0\x01", 0, Some("larger than the limit")),
            (b"GET / HTTP/1.1\r\n", 0, Some("larger than the limit")),
            (b"\0\0\0\x02{}\xff\xff\xff\xff", 1, Some("4294967295 bytes")),
        ] {
            let (found, failed) = read_all(bytes).await;
            assert_eq!(found.len(), frames, "{bytes:?}");
            match error {
                None => assert_eq!(failed, None),
                Some(part) => assert!(failed.expect("an error").contains(part), "{bytes:?}"),
            }
        }
    }

    #[tokio::test]
    async fn carries_frames_through_a_narrow_pipe() {
        let (near, far) = tokio::io::duplex(7);
        let frames: Vec<Vec<u8>> = [0, 1, 100, 200_000, MAX_MESSAGE].map(|n| vec![b'x'; n]).into();
        let sent = frames.clone();
        let writing = tokio::spawn(async move {
            let mut writer = FrameWriter::new(near);
            for frame in &sent {
                writer.feed(frame).await.expect("written");
            }
            writer.close().await.expect("closed");
            assert!(matches!(writer.feed(&vec![0; MAX_MESSAGE + 1]).await, Err(FrameError::TooLarge(_))));
        });
        let mut reader = FrameReader::new(far);
        for frame in &frames {
            assert_eq!(reader.next().await.expect("read").expect("a frame"), frame);
        }
        assert!(reader.next().await.expect("the end").is_none());
        writing.await.expect("wrote");
    }
}
