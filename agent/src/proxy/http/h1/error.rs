//! What is wrong with a message: how it is answered, and a stable word for the log, of Envoy's where Envoy has one.

use std::io;

use baremesh_model::http::{FieldError, syntax::TargetError};

/// Why a message was not understood. After any of these the connection ends: where the next message would start is not
/// known.
#[derive(Debug, thiserror::Error)]
pub enum H1Error {
    /// Reading failed.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The connection ended within a message.
    #[error("the connection ended within a message")]
    Truncated,
    /// A line ends otherwise than with CR and LF.
    #[error("a line ends with a bare LF")]
    BareLf,
    /// Neither a request line nor a status line.
    #[error("the first line is none of HTTP/1")]
    StartLine,
    /// Another version than 1.0 and 1.1.
    #[error("the version of HTTP is none of 1.0 and 1.1")]
    Version,
    /// CONNECT.
    #[error("CONNECT is not taken here")]
    Connect,
    /// A target that is none of RFC 9112, section 3.2.
    #[error("the target is none: {0}")]
    Target(#[from] TargetError),
    /// A target of another scheme than `http`.
    #[error("the target's scheme is not http")]
    Scheme,
    /// The target is too long.
    #[error("the target is longer than {0} bytes")]
    TargetTooLong(usize),
    /// No `Host`, more than one, or one that is no authority, or differs from the target's.
    #[error("`Host` does not say one authority: {0}")]
    Host(&'static str),
    /// A line that is no field.
    #[error("a field line has no colon after its name")]
    Field,
    /// A line that continues the one before.
    #[error("a field is folded over several lines")]
    Folded,
    /// A name or a value with characters that may not stand there.
    #[error("a field cannot be: {0}")]
    Characters(#[from] FieldError),
    /// The head is too long.
    #[error("the head is longer than {0} bytes")]
    HeadTooLarge(usize),
    /// Too many fields.
    #[error("there are more than {0} fields")]
    TooManyFields(usize),
    /// `Connection` with what is no option, or too many.
    #[error("`Connection` lists what is no option, or too many")]
    ConnectionOptions,
    /// A `Content-Length` that is no length, or several.
    #[error("`Content-Length` is not one length")]
    ContentLength,
    /// Both framings.
    #[error("both `Content-Length` and `Transfer-Encoding`")]
    TwoFramings,
    /// A coding other than `chunked`.
    #[error("a transfer coding other than chunked")]
    UnknownCoding,
    /// A `Transfer-Encoding` that is no list of codings, or names `chunked` twice.
    #[error("`Transfer-Encoding` is not `chunked` once")]
    TransferEncoding,
    /// Framing where there can be no body, or of another version.
    #[error("a body where there can be none")]
    BodyNotAllowed,
    /// A chunk that is none.
    #[error("a chunk is malformed: {0}")]
    Chunk(&'static str),
    /// A change of protocol that nobody asked for.
    #[error("101 without having been asked for WebSocket")]
    Upgrade,
    /// More interim responses than are taken.
    #[error("more than {0} interim responses")]
    Interim(usize),
    /// The body of the message before was not read to its end.
    #[error("the message before has not ended")]
    Unfinished,
}

impl H1Error {
    /// The status of the answer to a request like this, if there is somebody to answer.
    pub fn status(&self) -> Option<u16> {
        Some(match self {
            Self::Io(_) | Self::Unfinished => return None,
            Self::Connect => 405,
            Self::TargetTooLong(_) => 414,
            Self::HeadTooLarge(_) | Self::TooManyFields(_) => 431,
            Self::UnknownCoding => 501,
            Self::Version => 505,
            _ => 400,
        })
    }

    /// A stable word for the log.
    pub fn detail(&self) -> &'static str {
        match self {
            Self::Io(_) => "http1.connection_broken",
            Self::Truncated => "http1.truncated",
            Self::Unfinished => "http1.unfinished",
            Self::Version => "http1.unsupported_version",
            Self::Connect => "http1.connect_not_allowed",
            Self::Target(_) => "http1.invalid_url",
            Self::TargetTooLong(_) => "http1.url_too_long",
            Self::Scheme => "http1.invalid_scheme",
            Self::Host(_) => "http1.invalid_host",
            Self::Characters(_) => "http1.invalid_characters",
            Self::HeadTooLarge(_) => "http1.headers_too_large",
            Self::TooManyFields(_) => "http1.too_many_headers",
            Self::ConnectionOptions => "http1.connection_header_rejected",
            Self::ContentLength => "http1.invalid_content_length",
            Self::TwoFramings => "http1.content_length_and_chunked_not_allowed",
            Self::UnknownCoding | Self::TransferEncoding => "http1.invalid_transfer_encoding",
            Self::BodyNotAllowed => "http1.body_disallowed",
            Self::Upgrade => "http1.unexpected_upgrade",
            Self::BareLf
            | Self::StartLine
            | Self::Field
            | Self::Folded
            | Self::Chunk(_)
            | Self::Interim(_) => "http1.codec_error",
        }
    }
}
