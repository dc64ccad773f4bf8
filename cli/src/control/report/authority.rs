//! What signs, and whose roots are trusted besides, as it goes over the wire.

use serde::{Deserialize, Serialize};

/// `GET /ca`, and the answer to `POST /ca/rotate`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorityReport {
    /// The roots that members trust, the one that signs first.
    pub roots: Vec<RootReport>,
    /// Seconds since 1970 until which the intermediate is valid.
    pub intermediate_not_after: u64,
    /// Seconds since 1970 at which the next root signs at the latest, where there is one.
    pub switches_by: Option<u64>,
    /// The roots of other trust domains.
    #[serde(default)]
    pub federated: Vec<FederatedReport>,
}

/// Another trust domain.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FederatedReport {
    /// Its name.
    pub trust_domain: String,
    /// The file or URL that its roots are from.
    pub source: String,
    /// The SHA-256 of each root, in hexadecimal.
    pub roots: Vec<String>,
    /// Seconds since 1970 until which the last of them is valid.
    pub not_after: Option<u64>,
    /// Seconds since 1970 at which they were read last.
    pub read_at: Option<u64>,
    /// Why they cannot be read anew, where they cannot.
    pub failure: Option<String>,
}

/// `GET /ca/bundle`: what another trust domain needs to take members of this one.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BundleAnswer {
    /// The trust domain.
    pub trust_domain: String,
    /// Its roots, in PEM.
    pub pem: String,
    /// The same as a SPIFFE bundle.
    pub spiffe: String,
}

/// One root.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RootReport {
    /// The SHA-256 of its certificate, in hexadecimal.
    pub fingerprint: String,
    /// `signs`, `next` or `before`.
    pub standing: String,
    /// Seconds since 1970 until which it is valid.
    pub not_after: u64,
    /// Of one of before: how many certificates in use lead to it.
    pub in_use: Option<usize>,
}
