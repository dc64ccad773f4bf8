//! HTTP/2 by hand: frames as nobody's library would send them, and what comes back of them.

use std::time::{Duration, Instant};

use baremesh_tests::WAIT_BOUND;

use crate::attack::{End, Line};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// Error codes (RFC 9113, section 7).
pub const PROTOCOL_ERROR: u32 = 1;
pub const CANCEL: u32 = 8;

/// One frame (RFC 9113, section 4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A number with a prefix of so many bits (RFC 7541, section 5.1).
fn number(first: u8, bits: u32, mut value: usize) -> Vec<u8> {
    let most = (1_usize << bits) - 1;
    if value < most {
        return vec![first | value as u8];
    }
    let mut bytes = vec![first | most as u8];
    value -= most;
    while value >= 128 {
        bytes.push((value % 128) as u8 | 128);
        value /= 128;
    }
    bytes.push(value as u8);
    bytes
}

fn text(text: &[u8]) -> Vec<u8> {
    [number(0, 7, text.len()), text.to_vec()].concat()
}

/// A field as it is, without compression (RFC 7541, section 6.2.2).
pub fn field(name: &str, value: &[u8]) -> Vec<u8> {
    [vec![0], text(name.as_bytes()), text(value)].concat()
}

/// A field that the table keeps (RFC 7541, section 6.2.1).
pub fn kept(name: &str, value: &[u8]) -> Vec<u8> {
    [vec![0x40], text(name.as_bytes()), text(value)].concat()
}

/// The field that the table got last (RFC 7541, section 6.1): 62 is the first after those that every table has.
pub fn newest() -> Vec<u8> {
    number(0x80, 7, 62)
}

/// Fields as they are.
pub fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| field(name, value.as_bytes())).collect()
}

/// What every request has.
pub fn request(method: &str, path: &str) -> Vec<u8> {
    fields(&[(":method", method), (":scheme", "http"), (":path", path), (":authority", "shop")])
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of a reset or a farewell.
    fn code(&self) -> Option<u32> {
        let at = match self.kind {
            RST_STREAM => 0,
            GOAWAY => 4,
            _ => return None,
        };
        self.payload.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// The status with which an answer begins.
    pub fn status(&self) -> Option<u16> {
        let mut block = &self.payload[..];
        // The size of the sender's table may be said first (RFC 7541, section 6.3).
        while block.first()? & 0xe0 == 0x20 {
            block = &block[1..];
        }
        // RFC 7541, appendix A.
        match block[0] {
            indexed @ 0x88..=0x8e => Some([200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)]),
            0x48 | 0x08 => digits(&block[1..]),
            _ => None,
        }
    }
}

/// A text of digits, in Huffman's code or without (RFC 7541, appendix B: 0 to 2 have five bits, 3 to 9 six).
fn digits(block: &[u8]) -> Option<u16> {
    let (first, rest) = block.split_first()?;
    let text = rest.get(..usize::from(first & 0x7f))?;
    if first & 0x80 == 0 {
        return std::str::from_utf8(text).ok()?.parse().ok();
    }
    let bits: Vec<u8> = text.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)).collect();
    let (mut at, mut value) = (0, 0);
    let take = |at: usize, count: usize| {
        bits.get(at..at + count).map(|bits| bits.iter().fold(0, |code, bit| code << 1 | u16::from(*bit)))
    };
    while let Some(code) = take(at, 5) {
        let (digit, length) = match code {
            0..=2 => (code, 5),
            _ => match take(at, 6) {
                Some(code @ 0x19..=0x1f) => (code - 0x19 + 3, 6),
                _ => break,
            },
        };
        value = value * 10 + digit;
        at += length;
    }
    Some(value)
}

/// What became of a stream or a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The stream was answered.
    Status(u16),
    /// The stream was reset.
    Reset(u32),
    /// The connection ended, with this said.
    GoAway(u32),
    /// The connection ended without a word that reached us.
    Closed,
    /// Nothing.
    Open,
}

impl Outcome {
    /// Whether the connection has ended.
    pub fn is_end(self) -> bool {
        matches!(self, Self::GoAway(code) if code != 0) || self == Self::Closed
    }
}

/// A client's side of a connection.
pub struct Client<'t> {
    line: Line<'t>,
    came: Vec<u8>,
    pings: u64,
    next: u32,
    /// What we sent.
    pub sent: u64,
}

impl<'t> Client<'t> {
    /// Begins, with these settings.
    pub fn start(line: Line<'t>, settings: &[u8]) -> Self {
        let mut client = Self { line, came: Vec::new(), pings: 0, next: 1, sent: 0 };
        client.send(&[PREFACE, &frame(SETTINGS, 0, 0, settings), &frame(SETTINGS, ACK, 0, &[])].concat());
        client
    }

    /// Sends bytes; whether they could be sent.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.sent += bytes.len() as u64;
        self.line.say(bytes)
    }

    /// The number of a stream that has not been used.
    pub fn stream(&mut self) -> u32 {
        self.next += 2;
        self.next - 2
    }

    /// The next frame, if it comes within so long.
    pub fn next(&mut self, patience: Duration) -> Result<Option<Frame>, End> {
        let until = Instant::now() + patience;
        loop {
            if let Some((head, rest)) = self.came.split_first_chunk::<9>() {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                if rest.len() >= length {
                    let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
                    let payload = rest[..length].to_vec();
                    let frame = Frame { kind: head[3], flags: head[4], stream, payload };
                    self.came.drain(..9 + length);
                    return Ok(Some(frame));
                }
            }
            let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            match self.line.hear_within(left) {
                Ok(part) if part.is_empty() => return Err(End::Closed),
                Ok(part) => self.came.extend_from_slice(&part),
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) =>
                {
                    return Ok(None);
                }
                Err(_) => return Err(End::Reset),
            }
        }
    }

    /// What becomes of a stream.
    pub fn outcome(&mut self, stream: u32) -> Outcome {
        self.outcome_within(stream, WAIT_BOUND)
    }

    fn outcome_within(&mut self, stream: u32, patience: Duration) -> Outcome {
        loop {
            match self.next(patience) {
                Err(_) => return Outcome::Closed,
                Ok(None) => return Outcome::Open,
                Ok(Some(frame)) => match frame.kind {
                    GOAWAY => return Outcome::GoAway(frame.code().unwrap_or_default()),
                    HEADERS if frame.stream == stream => match frame.status() {
                        Some(100..=199) => {}
                        status => return Outcome::Status(status.unwrap_or_default()),
                    },
                    RST_STREAM if frame.stream == stream => {
                        return Outcome::Reset(frame.code().unwrap_or_default());
                    }
                    _ => {}
                },
            }
        }
    }

    /// Waits until everything that was sent has been taken: what ended the connection, if it did.
    pub fn settle(&mut self) -> Option<Outcome> {
        self.pings += 1;
        let payload = self.pings.to_be_bytes();
        let sent = self.send(&frame(PING, 0, 0, &payload));
        loop {
            match self.next(WAIT_BOUND) {
                Err(_) => return Some(Outcome::Closed),
                Ok(None) if sent => panic!("neither answered nor closed"),
                Ok(None) => return Some(Outcome::Closed),
                Ok(Some(frame)) if frame.kind == GOAWAY && frame.code() != Some(0) => {
                    return Some(Outcome::GoAway(frame.code().unwrap_or_default()));
                }
                Ok(Some(frame)) if frame.kind == PING && frame.flags == ACK && frame.payload == payload => {
                    return None;
                }
                Ok(Some(_)) => {}
            }
        }
    }

    /// What ended the connection, if it has ended by now.
    pub fn ended(&mut self) -> Option<Outcome> {
        let outcome = self.outcome_within(0, Duration::from_millis(200));
        outcome.is_end().then_some(outcome)
    }
}

/// How a flood goes on after each of its batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// When the agent has taken it.
    Settled,
    /// After a while in which the agent may have ended it: within a head nothing can be asked. The last is followed by as
    /// long as it takes.
    Looked,
}

/// A flood: what is sent in `batches` until the connection ends, and after how many of them it did.
pub fn flood(
    client: &mut Client<'_>,
    (batches, pace): (usize, Pace),
    mut batch: impl FnMut(&mut Client<'_>) -> Vec<u8>,
) -> (Outcome, usize) {
    for sent in 1..=batches {
        let bytes = batch(client);
        let taken = client.send(&bytes);
        let ended = match pace {
            Pace::Settled => client.settle(),
            Pace::Looked => client.ended(),
        };
        if let Some(outcome) = ended {
            return (outcome, sent);
        }
        if !taken {
            return (client.outcome_within(0, WAIT_BOUND), sent);
        }
    }
    let ended = match pace {
        Pace::Settled => client.settle().unwrap_or(Outcome::Open),
        Pace::Looked => client.outcome_within(0, WAIT_BOUND),
    };
    (ended, batches)
}
