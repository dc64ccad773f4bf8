//! The built-in certificate authority: who may have which identity, and how every connection of the mesh
//! checks it. The control server runs the authority, the ledger and the service; agents use the client; both
//! speak the TLS that is defined here.

/// Root and intermediate: made, adopted, opened, replaced; and the signing of leaves.
pub mod authority;
/// The calling side of enrolment and issuing.
pub mod client;
/// Seconds since 1970 at the boundaries of certificates and of the ledger.
mod clock;
/// Bundles of roots, as trust domains exchange them.
pub mod federation;
/// Files that are whole or absent, and secrets that only their owner can read.
pub mod file;
/// A certificate with its key, as a member of the mesh holds it.
pub mod issued;
/// Key pairs of mesh members, and the signing requests that prove their possession.
pub mod key;
/// What a leaf certificate says: identity, serial, validity, purposes.
pub mod leaf;
/// What the authority remembers: tokens, hosts, issued certificates, refusals.
pub mod ledger;
/// Issuing in process, for a mesh of one host.
pub mod local;
/// The calls as they stand on the wire.
pub mod protocol;
/// Certificates that are not to be taken although they have not ended.
pub mod revocation;
/// Private keys that a passphrase seals.
pub mod seal;
/// Enrolment and issuing, with every check that stands before a signature.
pub mod service;
#[cfg(test)]
mod testing;
/// The mesh's TLS: one provider, one way to verify a peer.
pub mod tls;
/// Join tokens.
pub mod token;
