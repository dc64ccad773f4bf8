//! The administration socket, metrics and readiness: three small HTTP servers. The socket takes commands from root
//! and the group `baremesh` of this host alone; the other two only tell.

/// What the socket answers, as the command line reads it.
pub mod report;
/// Serving.
pub mod server;
/// The command line's side of the socket.
pub mod client;
