//! VirtualService: how requests and connections for a host are routed. The types here are as a resource has them;
//! `Routing` puts all of a mesh together and answers which route takes a request. Everything is decided from its
//! arguments: draws of chance are parameters.

use std::sync::Arc;

use crate::name::Key;

mod cors;
mod delegate;
mod fault;
mod header_operations;
mod host;
mod http_match;
mod http_route;
mod percentage;
mod retry;
mod retry_on;
mod routes;
mod routing;
mod scope;
mod stream_route;
mod unmet;
mod url;

pub use cors::{CorsDecision, CorsPolicy, Credentials, UnmatchedPreflights};
pub use fault::{Abort, AbortStatus, Delay, Fault, FaultDecision};
pub use header_operations::{HeaderOperations, HeaderRules, HeaderValue, is_changeable};
pub use host::{HostError, HostName, HostPattern};
pub use http_match::{HttpMatch, Incoming};
pub use http_route::{
    Delegation, Destination, DirectResponse, HttpAction, HttpEntry, HttpRoute, Mirror, RouteOptions, Split,
    SplitError, WeightedDestination,
};
pub use percentage::Percentage;
pub use retry::{DEFAULT_ATTEMPTS, DEFAULT_BACKOFF, EndpointChoice, RetryPolicy, Sent, TryOutcome};
pub use retry_on::{RetryConditions, RetryOn, RetryOnError};
pub use routes::{RouteMatch, Routed, Routes};
pub use routing::{DelegationFault, DelegationReason, Routing};
pub use scope::{Caller, Gateway, Scope, Visibility};
pub use stream_route::{Opening, TcpMatch, TcpRoute, TlsMatch, TlsRoute};
pub use unmet::Unmet;
pub use url::{
    MatchedPath, PathRewrite, Redirect, RedirectPath, RedirectPort, RedirectStatus, Rewrite, UrlText,
};

/// One VirtualService.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualService {
    /// Namespace and name.
    pub key: Key,
    /// The hosts that it is for; without any it is a delegate, whose HTTP routes others take.
    pub hosts: Vec<HostPattern>,
    /// Where it holds; the mesh unless something else is written.
    pub gateways: Vec<Gateway>,
    /// Whose traffic it is for.
    pub export_to: Visibility,
    /// Routes of requests, the first that matches wins.
    pub http: Vec<HttpEntry>,
    /// Routes of TLS of the application's own, by server name.
    pub tls: Vec<Arc<TlsRoute>>,
    /// Routes of bytes.
    pub tcp: Vec<Arc<TcpRoute>>,
}

impl VirtualService {
    /// Whether it only stands for others to delegate to.
    pub fn is_delegate(&self) -> bool {
        self.hosts.is_empty()
    }

    /// Whether any of its routes asks for claims of a token.
    pub fn asks_for_claims(&self) -> bool {
        self.http.iter().flat_map(HttpEntry::matches).any(HttpMatch::asks_for_claims)
    }
}
