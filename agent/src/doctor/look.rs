//! What is seen of this host, read and not judged. All of it blocks for some milliseconds.

/// Rules of others.
pub mod firewall;
/// The kernel, tools, limits, disk, addresses.
pub mod host;
/// What a name leads to.
pub mod names;
/// Processes, and who listens.
pub mod processes;
