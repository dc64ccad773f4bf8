//! Why the authority cannot be made, opened or used, and the way out.

use std::path::PathBuf;

use baremesh_model::identity::Identity;
use baremesh_model::name::TrustDomain;

use super::MAX_TRUSTED;
use crate::file::FileError;
use crate::seal::SealError;
use crate::tls::{BundleError, Fingerprint};

/// Why the authority cannot be made, opened or used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The directory has one.
    #[error("{directory} already holds an authority: open it, or choose another directory", directory = .0.display())]
    Exists(PathBuf),
    /// The directory has none.
    #[error("{directory} holds no authority: run `baremesh init` on this host first", directory = .0.display())]
    Missing(PathBuf),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file holds something else than it should.
    #[error("{path} cannot be used: {reason}", path = .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// The issuing certificate is past its end.
    #[error(
        "the intermediate certificate has expired: put the key of the certificate that signed it at {path} and start again", path = .0.display()
    )]
    Expired(PathBuf),
    /// The key that signs intermediates is not here.
    #[error("put the key of the root, or of whatever signs intermediates, at {path} (mode 0600) first; take it away again afterwards", path = .0.display())]
    NoRootKey(PathBuf),
    /// A key is sealed, and nobody said by what.
    #[error(
        "{path} is sealed by a passphrase: give it with `--ca-passphrase-file FILE` (`-` is the standard input), or let systemd hand it over as the credential `ca-passphrase`", path = .0.display()
    )]
    Sealed(PathBuf),
    /// A file holds no passphrase.
    #[error("{path}: {source}", path = .path.display())]
    Passphrase {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: SealError,
    },
    /// A key cannot be sealed, or not opened.
    #[error("{path}: {source}. `baremesh ca seal` changes the passphrase, and needs the one that there is", path = .path.display())]
    Seal {
        /// The key's file.
        path: PathBuf,
        /// Why not.
        source: SealError,
    },
    /// A chain came that nothing was requested for.
    #[error("nothing was requested that this chain could be for: `baremesh ca csr` first")]
    NotRequested,
    /// A root is being replaced already.
    #[error("the root {0} is to sign next already: wait for the switch, or drop it")]
    Rotating(Fingerprint),
    /// No more roots at a time.
    #[error("{MAX_TRUSTED} roots are trusted already: drop one of before first (`baremesh ca` shows them)")]
    TooManyRoots,
    /// No root is named, or several are.
    #[error("no root, or more than one, has a fingerprint that begins with {0}: `baremesh ca` shows them")]
    NoSuchRoot(String),
    /// The root that signs.
    #[error("the root {0} signs at the moment: replace it first (`baremesh ca rotate --root`)")]
    RootSigns(Fingerprint),
    /// Certificates under a root would be cut off.
    #[error(
        "{count} certificates that are in use lead to the root {root}: they are renewed by themselves within half of their life; `--force` cuts them off"
    )]
    RootInUse {
        /// The root.
        root: Fingerprint,
        /// How many have no successor under another root.
        count: usize,
    },
    /// The record of certificates failed.
    #[error(transparent)]
    Ledger(#[from] crate::ledger::LedgerError),
    /// An adopted authority cannot issue what the mesh verifies.
    #[error("the given authority cannot issue for the mesh: {0}")]
    Unusable(String),
    /// The identity belongs to another trust domain.
    #[error("{identity} is not of this authority's trust domain {trust_domain}")]
    OtherTrustDomain {
        /// What was to be signed.
        identity: Identity,
        /// What this authority signs for.
        trust_domain: TrustDomain,
    },
    /// The roots cannot serve as trust anchors.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The cryptographic library failed.
    #[error("signing failed: {0}")]
    Library(#[from] rcgen::Error),
}
