//! Resources as people write them, TOML and Istio's YAML, made into the model; and the sources that supply them:
//! a directory of files, the control server with its protocol, and Consul.
//!
//! Modules in reading order.

/// Findings about resources: file, line, excerpt, and what to do.
pub mod diagnostic;
/// One resource as read, with the place where it stands.
pub mod resource;
/// The written forms, TOML, YAML and JSON, and what each field means.
pub mod format;
/// Resources put together into one validated mesh.
pub mod set;
/// What a set of resources does not do although it is taken: Istio's analysers, and our own.
pub mod analysis;
/// A directory of resource files: read, watched, changed.
pub mod files;
/// The control protocol: what the control server keeps and pushes, and how agents follow it.
pub mod control;
/// Consul: its catalog, its key-value store and the checks of a local Consul agent.
pub mod consul;
