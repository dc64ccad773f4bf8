//! Services: what callers name, and what the identity of every endpoint follows from.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::Arc;

use crate::identity::Identity;
use crate::name::{Key, Label, TrustDomain};
use crate::workload::Labels;

/// What a port speaks. A declared protocol is never sniffed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Protocol {
    /// Bytes. Also `mongo`, `mysql` and `redis`.
    #[default]
    Tcp,
    /// TLS of the application's own, passed through.
    Tls,
    /// HTTP/1.1.
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// gRPC.
    Grpc,
    /// HTTPS of the application's own, passed through.
    Https,
    /// Decided by the first bytes.
    Auto,
}

impl Protocol {
    /// Whether requests are told apart.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc)
    }

    /// The name as written in resources.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Https => "https",
            Self::Auto => "auto",
        }
    }
}

/// A protocol's name that the mesh does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a protocol: use tcp, tls, http, http2, grpc, https, mongo, mysql, redis or auto")]
pub struct UnknownProtocol(pub String);

impl FromStr for Protocol {
    type Err = UnknownProtocol;
    fn from_str(text: &str) -> Result<Self, UnknownProtocol> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" | "mongo" | "mysql" | "redis" => Ok(Self::Tcp),
            "tls" => Ok(Self::Tls),
            "http" => Ok(Self::Http),
            "http2" => Ok(Self::Http2),
            "grpc" | "grpc-web" => Ok(Self::Grpc),
            "https" => Ok(Self::Https),
            "auto" => Ok(Self::Auto),
            _ => Err(UnknownProtocol(text.to_owned())),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One port that callers dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// The port that callers name.
    pub port: NonZeroU16,
    /// The port at the endpoints, unless the workload maps the port's name to another.
    pub target_port: NonZeroU16,
    /// What the port speaks.
    pub protocol: Protocol,
    /// The port's name, by which a workload may map it.
    pub name: Option<Arc<str>>,
}

/// A service that callers name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub key: Key,
    /// Ports, at least one, no number twice.
    pub ports: Vec<ServicePort>,
    /// Labels that a workload must carry; without a selector the workloads registered under the service's name.
    pub selector: Option<Labels>,
    /// The account that every endpoint runs as; the service's own name unless stated.
    pub service_account: Label,
    /// Virtual addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// Who the endpoints are where they are another mesh's: an identity of a federated trust domain.
    pub federated: Option<Identity>,
}

impl Service {
    /// The identity that every endpoint of the service must show.
    pub fn identity(&self, trust_domain: &TrustDomain) -> Identity {
        let own = || {
            let (namespace, account) = (self.key.namespace.clone(), self.service_account.clone());
            Identity::new(trust_domain.clone(), namespace, account)
        };
        self.federated.clone().unwrap_or_else(own)
    }

    /// The declared port with that number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.port.get() == number)
    }
}
