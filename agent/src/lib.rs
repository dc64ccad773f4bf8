//! The host agent: it puts the capture rules in place, finds out which local service opened a connection, carries
//! it over mutual TLS to the chosen endpoint, and takes what arrives for the host's own services.
//!
//! Modules in reading order.

/// What the host's agent is told by its configuration file.
pub mod config;
/// The nftables rules that bring connections here, and take them away again.
pub mod capture;
/// Which local process's connection this is, as the kernel says.
pub mod attribution;
/// Names of the mesh answered, others forwarded.
pub mod dns;
