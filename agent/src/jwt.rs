//! JSON Web Tokens of requests: found, verified with keys that are at hand, and taken for what they say. Nothing here waits:
//! keys are fetched by a task of its own, and a token for which there are none is refused.

/// Why a token is refused.
mod refusal;
/// The compact form and its signature.
pub mod jws;
/// JWK sets.
pub mod keys;
/// What a payload says.
pub mod claims;
/// Where tokens stand in a request.
mod places;
/// The rules of a workload.
mod rules;
/// Tokens whose signature is known to be good.
mod verified;
/// Sets of keys that are at hand.
mod key_slot;
/// Keys from files and servers.
pub mod keeper;
#[cfg(test)]
pub(crate) mod testing;

pub use key_slot::{KeySlot, TokenKeys};
pub use refusal::Refusal;
pub use rules::TokenRules;

use std::time::Duration;

/// The longest token that is read, in bytes.
pub const MAX_TOKEN: usize = 16 * 1024;
/// The most tokens of one request that are verified; a request with more is refused.
pub const MAX_TOKENS: usize = 4;
/// The most signatures that are checked for one request, whatever tokens it has and however many rules and keys there are
/// for them. Each takes some 50 µs of a processor; one that is known to be good takes none.
pub const MAX_CHECKS: usize = 16;
/// How far the clocks of issuers may be off (Istio's and Envoy's default).
pub const CLOCK_LEEWAY: Duration = Duration::from_secs(60);
