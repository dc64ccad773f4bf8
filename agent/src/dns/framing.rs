//! Messages on a byte stream: two bytes of length, then the message (RFC 1035, section 4.2.2).

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::wire::HEADER;

/// The next message; `None` where the stream ends before it starts.
///
/// # Errors
/// Those of the stream; `InvalidData` for a length that no message has, after which the stream means nothing;
/// `UnexpectedEof` where it ends within a message.
pub(super) async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    if stream.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[1..]).await?;
    let length = usize::from(u16::from_be_bytes(length));
    if length < HEADER {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message shorter than its header"));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

/// Sends a message with its length in one write, as some peers take a segment for a message (RFC 7766, section 8).
pub(super) async fn write_message(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a message of more than 65,535 bytes"))?;
    let mut framed = Vec::with_capacity(2 + message.len());
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}
