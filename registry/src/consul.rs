//! Consul as registry: services and their health in its catalog, policy in its key-value store. A thin client of the
//! HTTP API (<https://developer.hashicorp.com/consul/api-docs>), as of Consul 1.8; nothing of Consul Enterprise.
//!
//! Modules in reading order.

/// Where Consul is, and with which credentials it is asked.
pub mod settings;
/// Why Consul did not answer, and what to do.
pub mod error;
/// Connections: sockets, TLS, files that change.
mod connect;
/// One request: which address, which limits, what the status means.
pub mod client;
/// How fresh an answer must be, and waiting for the next one.
pub mod query;
/// The key-value store.
pub mod kv;
/// Services and their health.
pub mod catalog;
/// How much of the catalog is held.
pub mod bounds;
/// The local Consul agent: registrations and their checks.
pub mod local;
/// The mesh's resources in the key-value store: read whole, changed by compare-and-set.
pub mod resources;
/// Config entries and intentions of Consul's own mesh, as they are converted.
pub mod exported;
/// How this mesh's own registrations are told from others in the catalog.
pub mod mark;
/// What an instance in the catalog comes to.
pub mod instance;
/// What all of it comes to: the entries of a mesh.
pub mod state;
/// Losses of many at once, which are not believed at once.
pub mod damping;

pub use client::Client;
pub use error::ConsulError;
pub use settings::Settings;

#[cfg(test)]
mod tests;
