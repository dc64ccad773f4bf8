//! The host's identities: certificates are asked for as services are registered, renewed at half of their life, kept
//! on disk so that a restart needs no certificate authority, and published to the data path as one set.

/// Who signs.
pub mod issuer;
/// Certificates that come to their end.
pub mod expiry;
/// Certificates on disk.
mod store;
/// When a certificate is renewed.
mod renewal;
/// Asking, renewing, publishing.
pub mod rotation;

pub use issuer::{Issuer, NodeCredential};
pub use rotation::{Rotation, RotationStatus};
