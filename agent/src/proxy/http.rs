//! HTTP on the wire, apart from what is decided about it: heads and bodies come out of bytes and go into bytes. The bytes
//! are those of a program's socket or of a stream in a tunnel, and nothing above knows which.

/// Bytes from and to a socket or a tunnel's stream.
pub mod bytes;
/// HTTP/1.0 and HTTP/1.1.
pub mod h1;
