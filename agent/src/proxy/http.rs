//! HTTP. Below, heads and bodies come out of bytes and go into bytes, those of a program's socket or of a stream in a
//! tunnel; above, a request is routed, sent, judged, sent again if need be, and recorded. `caller` reads top to bottom as
//! what happens to a request where it is made, `callee` where it arrives.

/// Bytes from and to a socket or a tunnel's stream.
pub mod bytes;
/// HTTP/1.0 and HTTP/1.1.
pub mod h1;
/// HTTP/2.
pub mod h2;
/// What of gRPC is counted.
pub mod grpc;
/// Bodies in either version.
pub mod body;
/// A request's body on its way.
pub mod upload;
/// A request on one upstream connection, and its answer.
pub mod attempt;
/// Upstream connections that are kept.
pub mod upstream;
/// What programs are told of their callers.
pub mod forwarded_cert;
/// Where a request comes from.
pub mod forwarded_for;
/// Tokens of requests for services of this host.
pub mod authentication;
/// Asking the providers of CUSTOM policies.
pub mod external;
/// Answers of the agent's own.
pub mod reply;
/// Connections that ask.
pub mod downstream;
/// Requests where they are made.
pub mod caller;
/// Requests where they arrive.
pub mod callee;
/// Requests that leave the mesh through a gateway of this host.
pub mod gateway;

pub use caller::MAX_COPIES;
