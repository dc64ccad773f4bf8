//! Why Consul did not answer, and what to do. Each names the address and the path.

use std::path::PathBuf;
use std::time::Duration;

use baremesh_ca::file::FileError;

/// Why Consul did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ConsulError {
    /// No connection came about.
    #[error("nothing answers at {address}: {reason}; is Consul stopped, or a firewall between?")]
    Unreachable {
        /// Consul's address.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// No TLS.
    #[error(
        "TLS with {address}: {reason}; look at ca_certificates, server_name, certificate and key of [consul]"
    )]
    Tls {
        /// Consul's address.
        address: String,
        /// Why.
        reason: String,
    },
    /// It took too long.
    #[error("{address}{path}: no answer within {after:?}")]
    Timeout {
        /// Consul's address.
        address: String,
        /// The path.
        path: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The connection broke, or what came was no HTTP. Whether a change was made is not known.
    #[error("{address}{path}: the answer broke off: {reason}")]
    Broken {
        /// Consul's address.
        address: String,
        /// The path.
        path: String,
        /// Why.
        reason: String,
    },
    /// The token may not.
    #[error(
        "{address}{path}: Consul's ACLs forbid it ({said}): does token_file hold the right token, and may it do this?"
    )]
    Denied {
        /// Consul's address.
        address: String,
        /// The path.
        path: String,
        /// What Consul said.
        said: String,
    },
    /// The servers have no leader, so that nothing can be read consistently or written.
    #[error(
        "{address}{path}: Consul has no leader ({said}): are most of its servers up, and do they reach each other?"
    )]
    NoLeader {
        /// Consul's address.
        address: String,
        /// The path.
        path: String,
        /// What Consul said.
        said: String,
    },
    /// Consul limits requests.
    #[error(
        "{address}{path}: Consul refuses so many requests (429): raise its limits, or ask fewer things of it"
    )]
    TooMany {
        /// Consul's address.
        address: String,
        /// The path.
        path: String,
    },
    /// Another status.
    #[error("{address}{path}: Consul answered {status}: {said}")]
    Status {
        /// Consul's address.
        address: String,
        /// The path.
        path: String,
        /// The status.
        status: u16,
        /// What Consul said, its beginning.
        said: String,
    },
    /// What came is not what the API says.
    #[error("{address}{path}: the answer cannot be read: {reason}; is this Consul, of version 1.8 or later?")]
    Malformed {
        /// Consul's address.
        address: String,
        /// The path.
        path: String,
        /// Why.
        reason: String,
    },
    /// More came than is taken.
    #[error("{address}{path}: the answer is larger than {limit} bytes, and is not taken")]
    TooLarge {
        /// Consul's address.
        address: String,
        /// The path.
        path: String,
        /// The limit.
        limit: usize,
    },
    /// What was to be written is more than Consul takes.
    #[error("{key}: {size} bytes are more than Consul takes as one value, {limit}: split it")]
    ValueTooLarge {
        /// The key.
        key: String,
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// More operations than a transaction takes.
    #[error("{operations} operations are more than one transaction of Consul takes, {limit}")]
    TransactionTooLarge {
        /// How many.
        operations: usize,
        /// The limit.
        limit: usize,
    },
    /// The token, or a file of TLS.
    #[error(transparent)]
    File(#[from] FileError),
    /// What stands in a file.
    #[error("{path}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl ConsulError {
    /// Whether another of Consul's addresses may do better. Of a change it is then certain that it was not made here.
    pub(super) fn is_elsewhere_perhaps(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Tls { .. } | Self::NoLeader { .. } | Self::TooMany { .. }
        )
    }

    /// The same of a question, which may be asked again whatever became of it.
    pub(super) fn may_be_asked_again(&self) -> bool {
        let server_failed = matches!(self, Self::Status { status: 500.., .. });
        let broke = matches!(self, Self::Broken { .. } | Self::Timeout { .. } | Self::Malformed { .. });
        self.is_elsewhere_perhaps() || server_failed || broke
    }

    /// A short word for metrics and status.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Tls { .. } => "tls",
            Self::Timeout { .. } => "timeout",
            Self::Broken { .. } => "broken",
            Self::Denied { .. } => "denied",
            Self::NoLeader { .. } => "no_leader",
            Self::TooMany { .. } => "too_many",
            Self::Status { .. } => "status",
            Self::Malformed { .. } => "malformed",
            Self::TooLarge { .. } | Self::ValueTooLarge { .. } | Self::TransactionTooLarge { .. } => {
                "too_large"
            }
            Self::File(_) | Self::Content { .. } => "file",
        }
    }
}
