//! How a service is called, after routing has chosen it: Istio's DestinationRule. The types are valid by construction;
//! `TrafficPolicy::effective` and `Rules` are the two decisions: what holds for a port, and which rule holds for a caller.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::name::{Key, Label};
use crate::outlier::OutlierDetection;
use crate::retry_budget::RetryBudget;
use crate::workload::Labels;

/// Limits of connections and requests.
pub mod connection_pool;
/// What holds for a subset and a port.
pub mod effective;
/// Choosing an endpoint.
pub mod load_balancer;
/// Near endpoints before far ones.
pub mod locality;
/// Which rule holds for whom.
pub mod selection;
/// The caller's address ahead of a connection's bytes.
pub mod proxy_protocol;
/// TLS towards endpoints without an agent.
pub mod tls;
/// Through an HTTP proxy.
pub mod tunnel;

pub use connection_pool::{ConnectionPool, H2Upgrade, HttpPool, Keepalive, TcpPool};
pub use effective::{EffectivePolicy, Limits};
pub use load_balancer::{Algorithm, ConsistentHash, Cookie, HashKey, HashTable, LoadBalancer, Warmup};
pub use locality::{Distribute, LocalityPattern, LocalitySetting, PriorityLabel, RegionFailover, Spread};
pub use proxy_protocol::ProxyProtocol;
pub use selection::{Caller, HostPattern, MergedRule, Rules};
pub use tls::{ClientCertificate, ClientTls, ServerCheck, Trust, Verify};
pub use tunnel::Tunnel;

/// One DestinationRule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationRule {
    /// Namespace and name.
    pub key: Key,
    /// The service, or the services, that it is for, as written.
    pub host: HostPattern,
    /// What holds for every subset and port that says nothing else.
    pub policy: TrafficPolicy,
    /// Named parts of the service's endpoints; no name twice.
    pub subsets: Vec<Subset>,
    /// The callers of the rule's own namespace that it is for; all callers without it.
    pub workload_selector: Option<Labels>,
    /// The namespaces whose callers it is for.
    pub export_to: ExportTo,
}

/// A named part of a service's endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subset {
    /// The name, as routes use it.
    pub name: Arc<str>,
    /// Labels that its endpoints carry, all of them; without any, all endpoints.
    pub labels: Labels,
    /// What differs from the rule's own policy.
    pub policy: Option<TrafficPolicy>,
}

/// Namespaces whose callers a rule is for. Callers of its own namespace are always among them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ExportTo {
    /// All.
    #[default]
    All,
    /// These alone; empty for its own alone.
    Only(Vec<Label>),
}

/// How a service is called. What is not said is inherited, or has its default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TrafficPolicy {
    /// Choosing an endpoint.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits of connections and requests.
    pub connection_pool: Option<ConnectionPool>,
    /// Leaving out endpoints that fail.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS towards endpoints without an agent.
    pub tls: Option<ClientTls>,
    /// What replaces the four above, whole, for a port that callers name.
    pub ports: BTreeMap<u16, PortPolicy>,
    /// How many of the requests in flight may be retries.
    pub retry_budget: Option<RetryBudget>,
    /// Sends the caller's address ahead of the connection's bytes.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// The endpoints are HTTP proxies, and connections that are carried as bytes go through them.
    pub tunnel: Option<Tunnel>,
}

/// What replaces a policy for one port. What it does not say has its default, not what the service says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortPolicy {
    /// Choosing an endpoint.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits of connections and requests.
    pub connection_pool: Option<ConnectionPool>,
    /// Leaving out endpoints that fail.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS towards endpoints without an agent.
    pub tls: Option<ClientTls>,
}
