//! Limits of connections and requests. What is not set has no limit but the agent's own.

use std::time::Duration;

/// Limits of connections and requests.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConnectionPool {
    /// Of connections.
    pub tcp: TcpPool,
    /// Of requests.
    pub http: HttpPool,
}

/// Limits of connections, HTTP's among them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TcpPool {
    /// Connections at once to all endpoints together.
    pub max_connections: Option<u32>,
    /// How long a connect may take.
    pub connect_timeout: Option<Duration>,
    /// Asking a quiet peer whether it lives.
    pub keepalive: Option<Keepalive>,
    /// How long a connection may last.
    pub max_connection_duration: Option<Duration>,
    /// How long a connection may be quiet both ways; zero for ever.
    pub idle_timeout: Option<Duration>,
}

/// Asking a quiet peer whether it lives. What is not set is the system's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keepalive {
    /// Questions without an answer after which it is dead.
    pub probes: Option<u32>,
    /// Quiet time before the first question.
    pub time: Option<Duration>,
    /// Time between questions.
    pub interval: Option<Duration>,
}

/// Limits of requests.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HttpPool {
    /// Requests that may wait for a connection.
    pub http1_max_pending_requests: Option<u32>,
    /// Requests at once, whichever version of HTTP.
    pub http2_max_requests: Option<u32>,
    /// Requests after which a connection is closed; 0 for no limit.
    pub max_requests_per_connection: Option<u32>,
    /// Retries at once.
    pub max_retries: Option<u32>,
    /// How long a connection may have no request; zero for ever.
    pub idle_timeout: Option<Duration>,
    /// Whether HTTP/1.1 is carried over HTTP/2.
    pub h2_upgrade: H2Upgrade,
    /// The version that the caller spoke is spoken to the endpoint.
    pub use_client_protocol: bool,
    /// Requests at once on one HTTP/2 connection.
    pub max_concurrent_streams: Option<u32>,
}

/// Whether HTTP/1.1 is carried over HTTP/2 to the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum H2Upgrade {
    /// As the port's protocol says.
    #[default]
    Default,
    /// Never.
    DoNotUpgrade,
    /// Always.
    Upgrade,
}
