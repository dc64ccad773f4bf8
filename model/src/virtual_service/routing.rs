//! All VirtualServices of a mesh, ready to be asked: names in full, delegates put in their places, and which one holds for
//! a host found at once. On the mesh exactly one holds: an exact host goes before a star, the longer star before the
//! shorter, and of two for the same host the first by namespace and name; they are not merged.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::delegate;
use super::host::{HostName, HostPattern};
use super::http_match::{HttpMatch, Incoming};
use super::http_route::{Destination, HttpAction, HttpEntry, HttpRoute, Split};
use super::scope::{Gateway, Visibility};
use super::stream_route::{Opening, TcpRoute, TlsRoute};
use super::url::MatchedPath;
use super::{Delegation, VirtualService};
use crate::name::{Domain, Key, Label};

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

/// All VirtualServices of a mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routing {
    /// By full name; of each name in the order of the keys.
    exact: HashMap<Arc<str>, Vec<Arc<Bound>>>,
    /// The longest first, of one length in the order of the keys.
    stars: Vec<(HostPattern, Arc<Bound>)>,
    /// Routes of delegates that are dropped because they conflict with their root.
    dropped: Vec<DroppedRoute>,
}

/// Routes with those for whom they are.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bound {
    gateways: Vec<Gateway>,
    visibility: Visibility,
    routes: Arc<Routes>,
}

/// A delegate's route that conflicts with the match of its root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DroppedRoute {
    /// The VirtualService with the hosts.
    pub root: Key,
    /// The VirtualService whose route it is.
    pub delegate: Key,
    /// The index of the route there.
    pub index: usize,
}

impl Routing {
    /// Puts all VirtualServices together.
    pub fn new(all: &[Arc<VirtualService>], domain: &Domain) -> Self {
        let by_key: BTreeMap<Key, VirtualService> =
            all.iter().map(|one| (one.key.clone(), in_full(one, domain))).collect();
        let mut routing = Self::default();
        // In the order of the keys, so that the first of a host is the one that holds.
        for service in by_key.values().filter(|service| !service.is_delegate()) {
            let bound = Arc::new(Bound {
                gateways: service.gateways.clone(),
                visibility: service.export_to.clone(),
                routes: Arc::new(routing.routes_of(service, &by_key)),
            });
            for host in &service.hosts {
                match host {
                    HostPattern::Exact(name) => {
                        routing.exact.entry(Arc::clone(name)).or_default().push(Arc::clone(&bound));
                    }
                    star => routing.stars.push((star.clone(), Arc::clone(&bound))),
                }
            }
        }
        // Stable: of one length, the order of the keys stays.
        routing.stars.sort_by_key(|(star, _)| std::cmp::Reverse(star.length()));
        routing
    }

    /// Whether there are no routes at all.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.stars.is_empty()
    }

    /// The routes that hold on the mesh for callers of `namespace` and a host.
    pub fn on_mesh(&self, namespace: &Label, host: &HostName) -> Option<&Arc<Routes>> {
        let holds = |bound: &&Arc<Bound>| {
            bound.gateways.contains(&Gateway::Mesh) && bound.visibility.includes(namespace)
        };
        self.of_host(host).find(holds).map(|bound| &bound.routes)
    }

    /// All routes that hold at a gateway for a host, in the order in which they are tried.
    pub fn at_gateway<'a>(
        &'a self,
        gateway: &Gateway,
        host: &HostName,
    ) -> impl Iterator<Item = &'a Arc<Routes>> {
        self.of_host(host).filter(move |bound| bound.gateways.contains(gateway)).map(|bound| &bound.routes)
    }

    /// What was dropped of delegates.
    pub fn dropped(&self) -> &[DroppedRoute] {
        &self.dropped
    }

    /// What is bound to a host, the first to go first.
    fn of_host<'a>(&'a self, host: &HostName) -> impl Iterator<Item = &'a Arc<Bound>> {
        let exact = self.exact.get(host.full()).into_iter().flatten();
        let stars = self.stars.iter().filter(|(star, _)| star.matches(host)).map(|(_, bound)| bound);
        exact.chain(stars)
    }

    fn routes_of(&mut self, service: &VirtualService, by_key: &BTreeMap<Key, VirtualService>) -> Routes {
        let mut http = Vec::new();
        for entry in &service.http {
            match entry {
                HttpEntry::Route(route) => http.push(Arc::clone(route)),
                HttpEntry::Delegate(delegation) => self.delegated(service, delegation, by_key, &mut http),
            }
        }
        Routes { key: service.key.clone(), http, tcp: service.tcp.clone(), tls: service.tls.clone() }
    }

    /// Adds the routes of a delegate. One that is not there, or not for this namespace, has none.
    fn delegated(
        &mut self,
        root: &VirtualService,
        delegation: &Delegation,
        by_key: &BTreeMap<Key, VirtualService>,
        http: &mut Vec<Arc<HttpRoute>>,
    ) {
        let visible = |delegate: &&VirtualService| delegate.export_to.includes(&root.key.namespace);
        let Some(delegate) = by_key.get(&delegation.to).filter(visible) else { return };
        for (index, entry) in delegate.http.iter().enumerate() {
            // One level: a delegate that delegates is refused where it is read.
            let HttpEntry::Route(route) = entry else { continue };
            match delegate::merged(delegation, route) {
                Some(merged) => http.push(Arc::new(merged)),
                None => self.dropped.push(DroppedRoute {
                    root: root.key.clone(),
                    delegate: delegate.key.clone(),
                    index,
                }),
            }
        }
    }
}

/// A VirtualService with all its hosts in full: short names are those of its own namespace, a delegate's too.
fn in_full(service: &VirtualService, domain: &Domain) -> VirtualService {
    let from = &service.key.namespace;
    let resolve = |destination: &mut Destination| {
        destination.host = Arc::clone(HostName::resolve(&destination.host, from, domain).full());
    };
    let resolve_split = |split: &mut Split| split.all_mut().for_each(|to| resolve(&mut to.destination));
    let mut service = service.clone();
    service.hosts.iter_mut().for_each(|host| *host = host.resolved(from, domain));
    for entry in &mut service.http {
        let options = match entry {
            HttpEntry::Route(route) => {
                let route = Arc::make_mut(route);
                if let HttpAction::Forward(split) = &mut route.action {
                    resolve_split(split);
                }
                &mut route.options
            }
            HttpEntry::Delegate(delegation) => &mut delegation.options,
        };
        options.mirrors.iter_mut().for_each(|mirror| resolve(&mut mirror.destination));
    }
    service.tcp.iter_mut().for_each(|route| resolve_split(&mut Arc::make_mut(route).split));
    service.tls.iter_mut().for_each(|route| resolve_split(&mut Arc::make_mut(route).split));
    service
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::RequestHead;
    use crate::string_match::StringMatch;
    use crate::virtual_service::{
        Caller, HeaderRules, Mirror, Percentage, RouteOptions, Scope, WeightedDestination,
    };
    use crate::workload::Labels;

    fn label(text: &str) -> Label {
        Label::new(text).expect("a label")
    }

    fn key(text: &str) -> Key {
        let (namespace, name) = text.split_once('/').expect("namespace/name");
        Key::new(label(namespace), label(name))
    }

    fn domain() -> Domain {
        Domain::new("mesh.internal").expect("a domain")
    }

    fn to(host: &str) -> Destination {
        Destination { host: host.into(), subset: None, port: None }
    }

    fn split(host: &str) -> Split {
        let headers = HeaderRules::default();
        Split::new(vec![WeightedDestination { destination: to(host), weight: 1, headers }]).expect("a split")
    }

    fn route(host: &str, matches: Vec<HttpMatch>) -> HttpRoute {
        let options = RouteOptions::default();
        HttpRoute { name: None, matches, action: HttpAction::Forward(split(host)), options }
    }

    fn entry(route: HttpRoute) -> HttpEntry {
        HttpEntry::Route(Arc::new(route))
    }

    fn service(name: &str, hosts: &[&str], http: Vec<HttpEntry>) -> VirtualService {
        VirtualService {
            key: key(name),
            hosts: hosts.iter().map(|host| HostPattern::new(host).expect("a host")).collect(),
            gateways: vec![Gateway::Mesh],
            export_to: Visibility::Everywhere,
            http,
            tls: vec![],
            tcp: vec![],
        }
    }

    fn routing(all: Vec<VirtualService>) -> Routing {
        Routing::new(&all.into_iter().map(Arc::new).collect::<Vec<_>>(), &domain())
    }

    /// The VirtualService that holds for callers of `from`.
    fn check_holds(routing: &Routing, from: &str, host: &str, expected: Option<&str>) {
        let from = label(from);
        let host = HostName::resolve(host, &from, &domain());
        let found = routing.on_mesh(&from, &host).map(|routes| routes.key.clone());
        assert_eq!(found, expected.map(key), "{host:?} from {from}");
    }

    #[test]
    fn the_most_specific_host_holds_and_then_the_first_by_key() {
        let any = service("a/any", &["*"], vec![]);
        let short = service("a/short", &["*.example.com"], vec![]);
        let long = service("z/long", &["*.shop.example.com"], vec![]);
        let exact = service("z/exact", &["a.shop.example.com", "reviews"], vec![]);
        let first = service("b/first", &["reviews.z"], vec![]);
        let all = routing(vec![exact, any, long, first, short]);
        check_holds(&all, "x", "a.shop.example.com", Some("z/exact"));
        check_holds(&all, "x", "b.shop.example.com", Some("z/long"));
        check_holds(&all, "x", "b.example.com", Some("a/short"));
        check_holds(&all, "x", "else", Some("a/any"));
        check_holds(&all, "x", "reviews.z.svc.cluster.local", Some("b/first"));
        check_holds(&all, "z", "reviews", Some("b/first"));
        check_holds(&all, "x", "reviews", Some("a/any"));
    }

    #[test]
    fn it_holds_for_whom_it_is_exported_to_and_where_it_is_bound() {
        let own = Visibility::Namespaces([label("a")].into());
        let private = VirtualService { export_to: own, ..service("a/private", &["b.z"], vec![]) };
        let public = Gateway::Named(key("a/public"));
        let bound = VirtualService { gateways: vec![public.clone()], ..service("a/bound", &["b.z"], vec![]) };
        let open = service("z/open", &["b.z"], vec![]);
        let all = routing(vec![private, bound, open]);
        check_holds(&all, "a", "b.z", Some("a/private"));
        check_holds(&all, "z", "b", Some("z/open"));
        let host = HostName::resolve("b.z", &label("x"), &domain());
        let found: Vec<Key> = all.at_gateway(&public, &host).map(|routes| routes.key.clone()).collect();
        assert_eq!(found, [key("a/bound")]);
    }

    /// Where a request to port 80 goes: a full host, `404`, or `as named`.
    fn check_goes(routes: &Routes, path: &str, labels: &[(&str, &str)], expected: &str) {
        let head = RequestHead { method: "GET".into(), target: path.into(), ..RequestHead::default() };
        let labels: Labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let caller = Caller { gateway: &Gateway::Mesh, namespace: &label("x"), labels: &labels };
        let found = match routes.http(Incoming { head: &head, port: 80, caller }) {
            Routed::Route(matched) => {
                matched.route.destination(0).map(|to| to.destination.host.to_string()).unwrap_or_default()
            }
            Routed::NoRoute => "404".to_owned(),
            Routed::Unconcerned => "as named".to_owned(),
        };
        assert_eq!(found, expected, "{path} {labels:?}");
    }

    fn prefix(path: &str) -> HttpMatch {
        HttpMatch { uri: Some(StringMatch::Prefix(path.into())), ..HttpMatch::default() }
    }

    fn routes_for(all: &Routing, host: &str) -> Arc<Routes> {
        let from = label("a");
        Arc::clone(all.on_mesh(&from, &HostName::resolve(host, &from, &domain())).expect("routes"))
    }

    #[test]
    fn the_first_route_that_matches_wins() {
        let http = vec![
            entry(route("one", vec![prefix("/1"), prefix("/2")])),
            entry(route("two.z", vec![prefix("/2/x")])),
            entry(route("wild.example.com", vec![prefix("/3")])),
        ];
        let routes = routes_for(&routing(vec![service("a/s", &["b"], http)]), "b");
        check_goes(&routes, "/1", &[], "one.a.mesh.internal");
        check_goes(&routes, "/2/x", &[], "one.a.mesh.internal");
        check_goes(&routes, "/3?q", &[], "wild.example.com");
        check_goes(&routes, "/4", &[], "404");
    }

    #[test]
    fn routes_for_other_callers_and_ports_do_not_concern_a_request() {
        let scoped = |scope| HttpMatch { scope, ..HttpMatch::default() };
        let other_port = scoped(Scope { port: 81.try_into().ok(), ..Scope::default() });
        let of_a = Scope { source_labels: Labels::from([("app".into(), "a".into())]), ..Scope::default() };
        let from_a = HttpMatch { uri: prefix("/a").uri, ..scoped(of_a) };
        let http = vec![entry(route("one", vec![other_port])), entry(route("two", vec![from_a]))];
        let routes = routes_for(&routing(vec![service("a/s", &["b"], http)]), "b");
        check_goes(&routes, "/a", &[("app", "a")], "two.a.mesh.internal");
        check_goes(&routes, "/b", &[("app", "a")], "404");
        check_goes(&routes, "/a", &[("app", "c")], "as named");
    }

    #[test]
    fn delegates_stand_in_their_roots_places() {
        let delegation = |to: &str, path: &str| {
            let mirror = Mirror { destination: self::to("copy"), percentage: Percentage::ALL };
            let options = RouteOptions { mirrors: vec![mirror], ..RouteOptions::default() };
            let matches = vec![prefix(path)];
            HttpEntry::Delegate(Box::new(Delegation { to: key(to), name: None, matches, options }))
        };
        let inner = vec![
            entry(route("v1", vec![prefix("/product/v1")])),
            entry(route("wide", vec![prefix("/")])),
            entry(route("rest", vec![])),
        ];
        let hidden = VirtualService {
            export_to: Visibility::Namespaces([label("d")].into()),
            ..service("d/hidden", &[], vec![entry(route("hidden", vec![]))])
        };
        let http = vec![
            delegation("d/hidden", "/"),
            delegation("d/gone", "/"),
            delegation("d/d", "/product"),
            entry(route("last", vec![prefix("/last")])),
        ];
        let all = routing(vec![service("a/root", &["b"], http), service("d/d", &[], inner), hidden]);
        let routes = routes_for(&all, "b");
        check_goes(&routes, "/product/v1/x", &[], "v1.d.mesh.internal");
        check_goes(&routes, "/product/zzz", &[], "rest.d.mesh.internal");
        check_goes(&routes, "/last", &[], "last.a.mesh.internal");
        check_goes(&routes, "/other", &[], "404");
        let dropped = DroppedRoute { root: key("a/root"), delegate: key("d/d"), index: 1 };
        assert_eq!(all.dropped(), [dropped]);
        // A short name of the root's is one of the root's namespace.
        assert_eq!(&*routes.http[0].options.mirrors[0].destination.host, "copy.a.mesh.internal");
    }

    #[test]
    fn names_for_records_are_joined() {
        let block = HttpMatch { name: Some("block".into()), ..HttpMatch::default() };
        for (name, blocks, expected) in [
            (None, vec![], None),
            (Some("route"), vec![], Some("route")),
            (Some("route"), vec![block.clone()], Some("route.block")),
            (None, vec![block], Some(".block")),
        ] {
            let route = Arc::new(HttpRoute { name: name.map(Arc::from), ..route("b", blocks) });
            let matched =
                RouteMatch { route: &route, block: route.matches.first(), path: MatchedPath::Whole };
            assert_eq!(matched.name().as_deref(), expected);
        }
    }
}
