//! HTTP/1.0 and HTTP/1.1 (RFC 9112), strictly: what two readers could understand in two ways is refused, and what is
//! written out again is one normal form. A message comes apart into its head, which routing and policy see, its `Hop`,
//! which concerns this connection alone, and its body's frames.

/// What is wrong with a message.
pub mod error;
/// Messages out of bytes, without I/O.
pub mod parser;
/// Messages from a connection.
pub mod reader;
/// Messages to a connection.
pub mod writer;
/// Chunked bodies.
mod chunks;
/// Field lines, and what they say of framing and connection.
mod fields;
/// Fields behind a body.
mod trailers;
/// Where a head ends.
mod lines;
/// Request lines.
mod request;
/// Status lines.
mod response;

use std::time::Duration;

use baremesh_model::http::{Headers, RequestHead, Version};
use bytes::Bytes;

pub use error::H1Error;
pub use parser::Parser;
pub use reader::Reader;
pub use trailers::may_trail;
pub use writer::Writer;

/// How long the head of a request may take from its first byte on.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// The most heads of kind 1xx before the final one.
pub const MAX_INTERIM: usize = 16;

/// Bounds of one message's head, and of its trailers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpLimits {
    /// Bytes of the head with all line ends. Envoy's default.
    pub head_bytes: usize,
    /// Field lines. Envoy's default.
    pub fields: usize,
    /// Bytes of a request's target, its scheme and authority included.
    pub target_bytes: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self { head_bytes: 60 * 1024, fields: 100, target_bytes: 32 * 1024 }
    }
}

/// How the end of a body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none: a request without, an answer to HEAD, 1xx, 204, 304.
    None,
    /// By its length.
    Length(u64),
    /// By its last chunk.
    Chunked,
    /// By the end of the connection: responses alone.
    UntilClose,
    /// After 101: bytes of another protocol until the connection ends.
    Upgraded,
}

/// What becomes of a connection after a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// It is kept.
    Keep,
    /// It is kept, and that must be said: with HTTP/1.0.
    KeepSaid,
    /// It ends.
    Close,
}

/// What a head says of its connection alone. It is not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// How the body ends.
    pub framing: Framing,
    /// What becomes of the connection.
    pub persistence: Persistence,
    /// A change to WebSocket is asked for, or granted; the field `upgrade` then stands among the others. Other changes
    /// are not passed on: asking for them is ignored, as RFC 9110, section 7.8, allows.
    pub upgrade: bool,
}

impl Hop {
    /// The hop of an answer to a client that speaks `version`, wishes `persistence`, and gets a body whose upstream told
    /// its end by `framing`: who does not know chunks gets none, and who does is not told by a close.
    pub fn to_client(version: Version, persistence: Persistence, framing: Framing) -> Self {
        let framing = match framing {
            Framing::Chunked | Framing::UntilClose if version == Version::Http10 => Framing::UntilClose,
            Framing::UntilClose => Framing::Chunked,
            other => other,
        };
        let persistence = match framing {
            Framing::UntilClose => Persistence::Close,
            _ => persistence,
        };
        Self { framing, persistence, upgrade: framing == Framing::Upgraded }
    }

    /// The hop of a request as it is passed on, over a connection that is kept.
    pub fn to_upstream(self) -> Self {
        Self { persistence: Persistence::Keep, ..self }
    }
}

/// What a response answers, as far as its framing depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// HEAD: whatever the answer says of a body, none comes.
    Head,
    /// A change to WebSocket, which 101 grants.
    Upgrade,
    /// Anything else.
    Other,
}

impl Asked {
    /// What the answer to `head`, sent with `hop`, answers.
    pub fn by(head: &RequestHead, hop: &Hop) -> Self {
        match &*head.method {
            "HEAD" => Self::Head,
            _ if hop.upgrade => Self::Upgrade,
            _ => Self::Other,
        }
    }
}

/// A part of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Content.
    Data(Bytes),
    /// Fields after the content, without those that may not stand there; then nothing more comes.
    Trailers(Headers),
}

#[cfg(test)]
mod tests;
