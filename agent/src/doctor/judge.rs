//! From what was seen to what is wrong. Pure: what is known comes as arguments, the time among them.

/// Certificates and the node credential.
pub mod certificates;
/// The control server, its clock, and the state that comes from it.
pub mod control;
/// The kernel, its limits, the disk.
pub mod host;
/// Names.
pub mod names;
/// Ports, agents, and other hosts' agents.
pub mod network;
/// The capture rules, and those of others.
pub mod rules;
/// This host's services.
pub mod services;
