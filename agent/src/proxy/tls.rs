//! Mutual TLS 1.3 under a tunnel. rustls does the handshake, every check of it, and the key schedule; once it is done,
//! records are sealed and opened here, where a tunnel spends its time: straight between the socket's buffer and
//! the reader's, without the copies that a general connection object needs.

/// The handshake, record by record.
mod handshake;
/// Records: RFC 8446, section 5.
mod record;
/// Slices as one sequence.
mod cursor;
/// The stream that a tunnel reads and writes.
mod stream;

use rustls::pki_types::CertificateDer;

pub use handshake::{accept, connect};
pub use stream::TlsStream;

/// What a handshake came to, besides the stream.
#[derive(Debug)]
pub struct Session {
    /// The peer's leaf certificate, verified.
    pub peer: CertificateDer<'static>,
    /// What it showed besides, verified as far as it led to a root.
    pub issuers: Vec<CertificateDer<'static>>,
    /// The server name that the peer asked for; on the accepting side alone.
    pub server_name: Option<String>,
}

#[cfg(test)]
pub(super) mod tests;
