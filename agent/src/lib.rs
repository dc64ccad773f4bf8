//! The host agent: it puts the capture rules in place, finds out which local service opened a connection, carries
//! it over mutual TLS to the chosen endpoint, and takes what arrives for the host's own services.
//!
//! Modules in reading order.

/// What the host's agent is told by its configuration file.
pub mod config;
/// The machine's own name.
pub mod machine;
/// What the host has from joining a mesh.
pub mod membership;
/// At which addresses other hosts reach this one.
pub mod addresses;
/// The services that run on this host.
pub mod registration;
/// The containers of this host, as their engines tell of them.
pub mod containers;
/// What connections are decided from, compiled.
pub mod snapshot;
/// The certificates that this host holds.
pub mod credentials;
/// What peers are verified against.
pub mod trust;
/// Asking for certificates and renewing them.
pub mod identity;
/// Where the mesh comes from.
pub mod source;
/// A new state coming into force.
pub mod publish;
/// Whose endpoints this host asks for.
pub mod demand;
/// Shares of what there is a limited number of.
mod share;
/// TLS towards endpoints without an agent.
pub mod originate;
/// What URLs of resources serve.
pub mod fetch;
/// Addresses of names outside the mesh.
pub mod resolution;
/// Tokens of requests, and the keys that they are verified with.
pub mod jwt;
/// Who is asked by CUSTOM policies.
pub mod external_authorization;
/// The data path.
pub mod proxy;
/// What is mounted where.
pub mod mounts;
/// Which local process's connection this is, as the kernel says.
pub mod attribution;
/// Sockets handed from process to process.
mod descriptors;
/// The nftables rules that bring connections here, and take them away again.
pub mod capture;
/// Looks that are taken again and again, at the same moments.
mod beat;
/// What is wrong with this host.
pub mod doctor;
/// What becomes of a call, and why.
pub mod explain;
/// Names of the mesh answered, others forwarded.
pub mod dns;
/// systemd-resolved, told which names are the mesh's.
pub mod resolved;
/// Who came to which service of this host.
pub mod flows;
/// Checks of this host's services.
pub mod health;
/// How much is left of what the system grants.
mod headroom;
/// What systemd does for the agent.
pub mod service_manager;
/// What a program that stays may do beyond others.
pub mod privileges;
/// Metrics and the access log.
pub mod telemetry;
/// The administration socket, metrics and readiness.
pub mod admin;
/// The capture rules kept in step with the state.
pub mod steward;
/// The agent's life, from its start to its end.
pub mod agent;
