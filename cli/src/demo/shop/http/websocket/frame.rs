//! Frames of WebSocket (RFC 6455, section 5).

use std::io::{self, ErrorKind};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The longest payload that is taken.
const MAX_PAYLOAD: u64 = 1 << 20;

/// The last frame of a message, which here is every one.
const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;

/// A frame that is a message of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    payload: Vec<u8>,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

/// Clients mask what they send, servers do not.
#[derive(Clone, Copy)]
pub(super) enum Mask {
    None,
    Random,
}

impl Frame {
    pub(super) fn new(kind: Kind, payload: impl Into<Vec<u8>>) -> Self {
        Self { kind, payload: payload.into() }
    }

    /// The next frame; `None` where the stream ends before one.
    pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let mut head = [0; 2];
        if stream.read(&mut head[..1]).await? == 0 {
            return Ok(None);
        }
        stream.read_exact(&mut head[1..]).await?;
        let kind = Kind::of(head[0]).ok_or_else(|| bad("a frame of no kind that is known here"))?;
        let length = match head[1] & !MASKED {
            126 => u64::from(stream.read_u16().await?),
            127 => stream.read_u64().await?,
            short => u64::from(short),
        };
        if length > MAX_PAYLOAD {
            return Err(bad("a frame that is too long"));
        }
        let mut mask = [0; 4];
        if head[1] & MASKED != 0 {
            stream.read_exact(&mut mask).await?;
        }
        let mut payload = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        stream.read_exact(&mut payload).await?;
        apply(mask, &mut payload);
        Ok(Some(Self { kind, payload }))
    }

    pub(super) async fn write(&self, stream: &mut (impl AsyncWrite + Unpin), mask: Mask) -> io::Result<()> {
        let masked = match mask {
            Mask::None => 0,
            Mask::Random => MASKED,
        };
        let mut bytes = vec![FINAL | self.kind.code()];
        match u16::try_from(self.payload.len()) {
            Ok(short @ 0..126) => bytes.push(masked | short.to_be_bytes()[1]),
            Ok(length) => {
                bytes.push(masked | 126);
                bytes.extend(length.to_be_bytes());
            }
            Err(_) => {
                bytes.push(masked | 127);
                bytes.extend((self.payload.len() as u64).to_be_bytes());
            }
        }
        let mut payload = self.payload.clone();
        if let Mask::Random = mask {
            let mask = rand::random::<[u8; 4]>();
            bytes.extend(mask);
            apply(mask, &mut payload);
        }
        bytes.extend(payload);
        stream.write_all(&bytes).await?;
        stream.flush().await
    }
}

fn apply(mask: [u8; 4], payload: &mut [u8]) {
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

fn bad(why: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why)
}

impl Kind {
    fn of(first: u8) -> Option<Self> {
        [Self::Text, Self::Binary, Self::Close, Self::Ping, Self::Pong]
            .into_iter()
            .find(|kind| first == FINAL | kind.code())
    }

    fn code(self) -> u8 {
        match self {
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_through_as_they_were() {
        for length in [0, 5, 125, 126, 65_535, 65_536] {
            for mask in [Mask::None, Mask::Random] {
                let frame = Frame::new(Kind::Binary, vec![7; length]);
                let mut wire = Vec::new();
                frame.write(&mut wire, mask).await.expect("memory");
                let mut wire = &wire[..];
                assert_eq!(Frame::read(&mut wire).await.expect("a frame"), Some(frame));
                assert_eq!(Frame::read(&mut wire).await.expect("an end"), None);
            }
        }
    }

    /// The examples of section 5.7.
    #[tokio::test]
    async fn the_examples_of_the_specification_are_read() {
        let hello = Frame::new(Kind::Text, "Hello");
        for mut wire in [&b"\x81\x05Hello"[..], b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"] {
            assert_eq!(Frame::read(&mut wire).await.expect("a frame").as_ref(), Some(&hello));
        }
        for mut bad in [&b"\x83\x00"[..], b"\x81\x05Hell", b"\x81\x7f\xff\0\0\0\0\0\0\0"] {
            assert!(Frame::read(&mut bad).await.is_err(), "{bad:?}");
        }
    }
}
