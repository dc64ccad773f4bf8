//! The routes of one VirtualService as they are in force, and which of them takes a request or connection.

use std::sync::Arc;

use super::http_match::{HttpMatch, Incoming};
use super::http_route::HttpRoute;
use super::stream_route::{Opening, TcpRoute, TlsRoute};
use super::url::MatchedPath;
use crate::name::Key;

/// The routes of one VirtualService as they are in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routes {
    /// The VirtualService.
    pub key: Key,
    /// Routes of requests, in their order. Destinations have full names.
    pub http: Vec<Arc<HttpRoute>>,
    /// Routes of bytes, in their order.
    pub tcp: Vec<Arc<TcpRoute>>,
    /// Routes of TLS of the application's own, in their order.
    pub tls: Vec<Arc<TlsRoute>>,
}

/// What the routes say of a request.
#[derive(Debug, Clone, Copy)]
pub enum Routed<'a> {
    /// This route takes it.
    Route(RouteMatch<'a>),
    /// There are routes for this caller and port, and none takes it: 404, `NR`.
    NoRoute,
    /// There is no route for this caller and port at all: the request goes to the service that it names.
    Unconcerned,
}

/// A route that takes a request.
#[derive(Debug, Clone, Copy)]
pub struct RouteMatch<'a> {
    /// The route.
    pub route: &'a Arc<HttpRoute>,
    /// The block that matched; none where the route has no blocks.
    pub block: Option<&'a HttpMatch>,
    /// The part of the path that matched, for rewriting and redirecting.
    pub path: MatchedPath,
}

impl RouteMatch<'_> {
    /// The route's name for records, with the block's behind it.
    pub fn name(&self) -> Option<String> {
        let route = self.route.name.as_deref();
        match (route, self.block.and_then(|block| block.name.as_deref())) {
            (None, None) => None,
            (route, None) => route.map(str::to_owned),
            (route, Some(block)) => Some(format!("{}.{block}", route.unwrap_or_default())),
        }
    }
}

impl Routes {
    /// What becomes of a request: the first route that takes it.
    pub fn http(&self, request: Incoming<'_>) -> Routed<'_> {
        for route in &self.http {
            if let Some((block, path)) = route.matches(request) {
                return Routed::Route(RouteMatch { route, block, path });
            }
        }
        let concerns = |block: &HttpMatch| block.scope.holds_for_requests(request.caller, request.port);
        // A route without blocks would have taken it.
        if self.http.iter().any(|route| route.matches.iter().any(concerns)) {
            Routed::NoRoute
        } else {
            Routed::Unconcerned
        }
    }

    /// The route of a connection of bytes; `None`: it goes where it was going.
    pub fn tcp(&self, opening: Opening<'_>) -> Option<&Arc<TcpRoute>> {
        self.tcp.iter().find(|route| route.matches(opening))
    }

    /// The route of a connection with TLS of the application's own; `None`: it goes where it was going.
    pub fn tls(&self, opening: Opening<'_>, server_name: Option<&str>) -> Option<&Arc<TlsRoute>> {
        self.tls.iter().find(|route| route.matches(opening, server_name))
    }
}
