//! One HTTP route: what it takes, and what becomes of it.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use super::cors::CorsPolicy;
use super::fault::Fault;
use super::header_operations::HeaderRules;
use super::http_match::{HttpMatch, Incoming};
use super::percentage::Percentage;
use super::retry::RetryPolicy;
use super::url::{MatchedPath, Redirect, Rewrite};
use crate::grpc;
use crate::http::RequestHead;
use crate::name::Key;

/// One entry of `http`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpEntry {
    /// A route of its own.
    Route(Arc<HttpRoute>),
    /// The routes of another VirtualService, which has no hosts.
    Delegate(Box<Delegation>),
}

impl HttpEntry {
    /// What it asks of requests.
    pub fn matches(&self) -> &[HttpMatch] {
        match self {
            Self::Route(route) => &route.matches,
            Self::Delegate(delegation) => &delegation.matches,
        }
    }
}

/// Routes taken from another VirtualService, within what this one matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegation {
    /// The other VirtualService.
    pub to: Key,
    /// The name put before those of its routes.
    pub name: Option<Arc<str>>,
    /// What its routes may take at most; empty: everything.
    pub matches: Vec<HttpMatch>,
    /// What holds where its routes say nothing.
    pub options: RouteOptions,
}

/// An HTTP route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpRoute {
    /// Its name, for records.
    pub name: Option<Arc<str>>,
    /// It takes what any of these matches; empty: everything.
    pub matches: Vec<HttpMatch>,
    /// What becomes of a request.
    pub action: HttpAction,
    /// How.
    pub options: RouteOptions,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpAction {
    /// It is sent on.
    Forward(Split),
    /// The caller is told to go elsewhere.
    Redirect(Redirect),
    /// It is answered.
    Respond(DirectResponse),
}

/// An answer of the mesh's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectResponse {
    /// The status, 200 to 599.
    pub status: u16,
    /// The body, if there is one.
    pub body: Option<Arc<[u8]>>,
}

/// How a route does what it does. All of it may be left out, and a delegate then takes what its root says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RouteOptions {
    /// Changes of path and authority. Redirects and direct responses do not look at it.
    pub rewrite: Option<Rewrite>,
    /// The time for a request with all its tries, from its end to the answer's; 0 means none.
    pub timeout: Option<Duration>,
    /// Retries; the mesh's default without.
    pub retries: Option<RetryPolicy>,
    /// Faults on purpose.
    pub fault: Option<Fault>,
    /// Who gets a copy.
    pub mirrors: Vec<Mirror>,
    /// Cross-origin requests.
    pub cors: Option<CorsPolicy>,
    /// Changes of fields.
    pub headers: Option<HeaderRules>,
}

/// A service's endpoints, all or a subset.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The host as written in the resource; in [`super::Routing`] its full name.
    pub host: Arc<str>,
    /// The subset of its DestinationRule; all endpoints without.
    pub subset: Option<Arc<str>>,
    /// The port; without one it is the only port of the host, or the one that the caller dialled.
    pub port: Option<NonZeroU16>,
}

/// A copy of a part of the requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Who gets it.
    pub destination: Destination,
    /// Of how many requests.
    pub percentage: Percentage,
}

/// A destination with its share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightedDestination {
    /// The destination.
    pub destination: Destination,
    /// The share, relative to the sum; 0 gets nothing unless it stands alone.
    pub weight: u32,
    /// Changes of fields, after those of the route. Always empty where bytes are carried.
    pub headers: HeaderRules,
}

/// Destinations among which traffic is split: at least one, and not all with weight 0 where there are several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    all: Vec<WeightedDestination>,
    total: u64,
}

/// Why destinations are no split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// There are none.
    #[error("a route needs at least one destination")]
    Empty,
    /// There are several, and none takes anything.
    #[error("total destination weight = 0: give at least one destination a weight")]
    NoWeight,
}

impl Split {
    /// Checks and takes destinations.
    pub fn new(all: Vec<WeightedDestination>) -> Result<Self, SplitError> {
        let total = all.iter().map(|destination| u64::from(destination.weight)).sum();
        match all.len() {
            0 => Err(SplitError::Empty),
            2.. if total == 0 => Err(SplitError::NoWeight),
            _ => Ok(Self { all, total }),
        }
    }

    /// The destinations as written.
    pub fn all(&self) -> &[WeightedDestination] {
        &self.all
    }

    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut WeightedDestination> {
        self.all.iter_mut()
    }

    /// The index in [`Split::all`] of the destination that a draw takes. `random` is evenly spread.
    pub fn pick(&self, random: u64) -> usize {
        let mut left = random % self.total.max(1);
        let found = self.all.iter().position(|destination| {
            let weight = u64::from(destination.weight);
            let here = left < weight;
            left = left.saturating_sub(weight);
            here
        });
        // One alone may have weight 0.
        found.unwrap_or(0)
    }
}

impl HttpRoute {
    /// Whether a request is this route's: by which block, and with which part of its path.
    pub(super) fn matches(&self, request: Incoming<'_>) -> Option<(Option<&HttpMatch>, MatchedPath)> {
        if self.matches.is_empty() {
            return Some((None, MatchedPath::Prefix(1)));
        }
        self.matches.iter().find_map(|block| Some((Some(block), block.matches(request)?)))
    }

    /// The destination that a draw takes; none where the route does not forward.
    pub fn destination(&self, random: u64) -> Option<&WeightedDestination> {
        match &self.action {
            HttpAction::Forward(split) => split.all().get(split.pick(random)),
            HttpAction::Redirect(_) | HttpAction::Respond(_) => None,
        }
    }

    /// The authority that a request to `destination` is given; none: its own. What the route says goes before what the
    /// destination says.
    pub fn authority<'a>(&'a self, destination: &'a WeightedDestination) -> Option<&'a str> {
        let rewritten = self.options.rewrite.as_ref().and_then(|rewrite| rewrite.authority.as_ref());
        let of = |rules: &'a HeaderRules| rules.authority.as_deref();
        rewritten
            .map(|text| text.as_str())
            .or_else(|| self.options.headers.as_ref().and_then(of))
            .or_else(|| of(&destination.headers))
    }

    /// The time for a request with all its tries: the route's, or for gRPC the caller's deadline where it is shorter.
    pub fn timeout(&self, head: &RequestHead) -> Option<Duration> {
        let own = self.options.timeout.filter(|timeout| !timeout.is_zero());
        let deadline = head.is_grpc().then(|| grpc::timeout_of(head)).flatten();
        match (own, deadline) {
            (Some(own), Some(deadline)) => Some(own.min(deadline)),
            (own, deadline) => own.or(deadline),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtual_service::UrlText;

    fn to(host: &str, weight: u32) -> WeightedDestination {
        let destination = Destination { host: host.into(), subset: None, port: None };
        WeightedDestination { destination, weight, headers: HeaderRules::default() }
    }

    fn route(all: Vec<WeightedDestination>, options: RouteOptions) -> HttpRoute {
        let action = HttpAction::Forward(Split::new(all).expect("a split"));
        HttpRoute { name: None, matches: vec![], action, options }
    }

    #[test]
    fn weights_are_relative_to_their_sum() {
        let check = |weights: &[u32], expected: &[usize]| {
            let all = weights.iter().map(|weight| to("b", *weight)).collect();
            let split = Split::new(all).expect("a split");
            let mut hits = vec![0; weights.len()];
            (0..100).for_each(|random| hits[split.pick(random)] += 1);
            assert_eq!(hits, expected, "{weights:?}");
        };
        check(&[50, 25, 25], &[50, 25, 25]);
        check(&[1, 1], &[50, 50]);
        check(&[100, 0], &[100, 0]);
        check(&[0, 3], &[0, 100]);
        check(&[0], &[100]);
        check(&[u32::MAX, u32::MAX], &[100, 0]);
        assert_eq!(Split::new(vec![]), Err(SplitError::Empty));
        assert_eq!(Split::new(vec![to("a", 0), to("b", 0)]), Err(SplitError::NoWeight));
    }

    #[test]
    fn the_routes_authority_goes_before_the_destinations() {
        let rules =
            |authority: &str| HeaderRules { authority: Some(authority.into()), ..HeaderRules::default() };
        let mut to = to("b", 1);
        let plain = route(vec![to.clone()], RouteOptions::default());
        assert_eq!(plain.authority(&to), None);
        to.headers = rules("of-destination");
        assert_eq!(plain.authority(&to), Some("of-destination"));
        let headers = Some(rules("of-route"));
        let set =
            route(vec![to.clone()], RouteOptions { headers: headers.clone(), ..RouteOptions::default() });
        assert_eq!(set.authority(&to), Some("of-route"));
        let rewrite = Some(Rewrite { path: None, authority: UrlText::new("rewritten") });
        let rewriting = route(vec![to.clone()], RouteOptions { headers, rewrite, ..RouteOptions::default() });
        assert_eq!(rewriting.authority(&to), Some("rewritten"));
    }

    #[test]
    fn a_grpc_deadline_shortens_the_timeout() {
        let check = |timeout: Option<u64>, kind: &str, deadline: Option<&str>, expected: Option<u64>| {
            let timeout = timeout.map(Duration::from_secs);
            let route = route(vec![to("b", 1)], RouteOptions { timeout, ..RouteOptions::default() });
            let mut head = RequestHead::default();
            head.headers.append("content-type", kind.as_bytes()).expect("a field");
            if let Some(deadline) = deadline {
                head.headers.append("grpc-timeout", deadline.as_bytes()).expect("a field");
            }
            assert_eq!(route.timeout(&head), expected.map(Duration::from_secs));
        };
        check(None, "application/grpc", None, None);
        check(Some(0), "application/grpc", Some("5S"), Some(5));
        check(Some(3), "application/grpc", Some("5S"), Some(3));
        check(Some(9), "application/grpc", Some("5S"), Some(5));
        check(Some(9), "text/plain", Some("5S"), Some(9));
        check(Some(0), "text/plain", None, None);
    }
}
