//! The control protocol and the control server's state. An agent holds one HTTP/2 stream to `/v1/state` inside
//! mutual TLS; on it, both sides write length-prefixed JSON messages. The server keeps what files and
//! registrations come to as one keyed, versioned map and pushes differences; an agent applies them up to a
//! marker, as one, and says whether the result could be put in force.
//!
//! Modules in reading order: the wire, what is decided from arguments alone, what is kept, and the two sides.

/// Frames: a length and as many bytes.
pub mod codec;
/// The messages of both sides.
pub mod message;
/// An HTTP/2 stream as a reader and a writer of bytes.
pub mod stream;

/// Virtual addresses, assigned and remembered.
pub mod addresses;
/// How a registration compares with what is known already.
pub mod admission;
/// Everything known, and what follows from a change.
pub mod catalog;
/// What registrations and resources change.
pub mod decision;
/// Sums over entries, by which two sides know that they hold the same.
pub mod digest;
/// Who is there: one lease a host.
pub mod leases;
/// Who came to which service, as hosts tell it.
pub mod flows;
/// Whose address it is.
pub mod ownership;
/// Whether the control server is there, and what its clock says.
pub mod reach;
/// What a host says it runs.
pub mod registration;
/// The keyed, versioned map that is pushed.
pub mod state;
/// What is written of it to an agent at once.
pub mod push;
/// Which endpoints an agent asks for.
pub mod subscription;
/// Where the others are.
pub mod endpoint_addresses;

/// What the control server has in memory.
pub mod memory;
/// The control server's state behind one handle.
pub mod server;
/// What the authority has to say to every agent.
mod statements;
/// One agent's session at the server.
pub mod session;
/// The durable records.
pub mod store;
/// One change after another.
mod turns;

/// The agent's side of a connection.
pub mod client;
/// What an agent holds of the mesh, and its file.
pub mod followed;

/// Version of the protocol. Either side serves one version more and one less.
pub const PROTOCOL: u32 = 1;

/// Whether a peer of that protocol version can be spoken to.
pub fn understands(protocol: u32) -> bool {
    protocol.abs_diff(PROTOCOL) <= 1
}

/// A name of a capability: the server answers every renewal, so its silence means that the connection is dead.
pub const ANSWERS_RENEWALS: &str = "answers-renewals";

/// A name of a capability: the server takes changes of health apart from registrations.
pub const TAKES_HEALTH: &str = "takes-health";

/// A name of a capability: the server tells agents where the endpoints are that they have not asked for. From one that does
/// not an agent has to ask for all, so that it knows which addresses are the mesh's.
pub const ENDPOINT_ADDRESSES: &str = "endpoint-addresses";

/// The key, among the entries of a state, of the list of revoked certificates. It is no resource: who does not know it
/// takes it for a kind of a newer version.
pub const REVOKED: &str = "RevocationList/control/revoked";

/// The key of the roots that members trust, the one under which is signed first. Likewise no resource.
pub const ROOTS: &str = "TrustBundle/control/roots";

/// The key of the roots of other trust domains: an object with the roots of each, in PEM, by its name. Likewise no resource.
pub const FEDERATED: &str = "TrustBundle/control/federated";

/// The field of a statement of the authority that holds what it says, in PEM.
pub const STATEMENT_PEM: &str = "pem";

#[cfg(test)]
mod session_tests;
