//! Which routes hold, and which of them takes a request.

use super::*;
use crate::http::RequestHead;
use crate::string_match::StringMatch;
use crate::virtual_service::{
    Caller, HeaderRules, HttpMatch, Incoming, MatchedPath, Mirror, Percentage, RouteMatch, RouteOptions,
    Routed, Scope, WeightedDestination,
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
    let at = label("mesh-system");
    let found: Vec<Key> = all.at_gateway(&at, &public, &host).map(|routes| routes.key.clone()).collect();
    assert_eq!(found, [key("a/bound")]);
    let of_hosts = |asked: &str| -> Vec<Key> {
        let is_for = |hosts: &[HostPattern]| hosts.iter().any(|host| host.to_string() == asked);
        all.of_gateway(&at, &public, is_for).iter().map(|routes| routes.key.clone()).collect()
    };
    assert_eq!(of_hosts("b.z"), [key("a/bound")]);
    assert_eq!(of_hosts("b.z.mesh.internal"), [key("a/bound")]);
    assert_eq!(of_hosts("c.z"), []);
}

/// Where a request to port 80 goes: a full host, `404`, or `as named`.
fn check_goes(routes: &Routes, path: &str, labels: &[(&str, &str)], expected: &str) {
    let head = RequestHead { method: "GET".into(), target: path.into(), ..RequestHead::default() };
    let labels: Labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    let caller = Caller { gateway: &Gateway::Mesh, namespace: &label("x"), labels: &labels };
    let found = match routes.http(Incoming { head: &head, port: 80, caller, token: None }) {
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
        delegation("a/root", "/"),
        delegation("d/d", "/product"),
        entry(route("last", vec![prefix("/last")])),
    ];
    let all = routing(vec![service("a/root", &["b"], http), service("d/d", &[], inner), hidden]);
    let routes = routes_for(&all, "b");
    check_goes(&routes, "/product/v1/x", &[], "v1.d.mesh.internal");
    check_goes(&routes, "/product/zzz", &[], "rest.d.mesh.internal");
    check_goes(&routes, "/last", &[], "last.a.mesh.internal");
    check_goes(&routes, "/other", &[], "404");
    let fault =
        |delegate: &str, reason| DelegationFault { root: key("a/root"), delegate: key(delegate), reason };
    let faults = [
        fault("d/hidden", DelegationReason::NotExported),
        fault("d/gone", DelegationReason::NotThere),
        fault("a/root", DelegationReason::HasHosts),
        fault("d/d", DelegationReason::Conflict(1)),
    ];
    assert_eq!(all.faults(), faults);
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
        let matched = RouteMatch { route: &route, block: route.matches.first(), path: MatchedPath::Whole };
        assert_eq!(matched.name().as_deref(), expected);
    }
}
