//! What is explained is what the data path does: the same routes, shares and decisions, whatever is asked.

/// What a Sidecar of the called side says.
mod sidecars;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use baremesh_model::authorization::{Carried, Hello};
use baremesh_model::balance::hash::mix;
use baremesh_model::name::Label;
use baremesh_model::outlier::Outcome as Went;
use proptest::prelude::*;

use super::*;
use crate::admin::report::explain::DestinationReport;
use crate::proxy::http::caller::plan::{self, Plan};
use crate::snapshot::Host;
use crate::snapshot::tests::{host, mesh, registration};

const MESH: &str = r#"
[[Service]]
name = "reviews"
addresses = ["240.240.0.2"]
ports = [{ port = 80, targetPort = 8080, protocol = "http" }, { port = 81, targetPort = 8081, protocol = "auto" }]

[[Service]]
name = "ratings"
ports = [{ port = 80, protocol = "http" }]

[[WorkloadEntry]]
name = "a"
address = "10.0.0.11"
labels = { app = "reviews", version = "v1" }
locality = "eu/a"
tunnel = "hbone"

[[WorkloadEntry]]
name = "b"
address = "10.0.0.12"
labels = { app = "reviews", version = "v1" }
locality = "eu/b"
weight = 3
tunnel = "hbone"

[[WorkloadEntry]]
name = "c"
address = "10.0.0.13"
labels = { app = "reviews", version = "v2" }
locality = "us/a"
tunnel = "hbone"

[[WorkloadEntry]]
name = "d"
address = "10.0.0.14"
labels = { app = "ratings" }
tunnel = "hbone"

[[VirtualService]]
name = "reviews"
hosts = ["reviews"]
http = [
  { name = "jason", match = [{ headers = { end-user = { exact = "jason" } } }, { queryParams = { beta = { exact = "1" } } }], route = [{ destination = { host = "reviews", subset = "v2" } }] },
  { match = [{ uri = { prefix = "/moved" }, method = { exact = "GET" } }], redirect = { uri = "/new" } },
  { match = [{ uri = { exact = "/said" } }], directResponse = { status = 418 } },
  { match = [{ uri = { prefix = "/none" } }], route = [{ destination = { host = "reviews", subset = "v9" }, weight = 1 }, { destination = { host = "ratings" }, weight = 3 }] },
  { match = [{ port = 81 }], route = [{ destination = { host = "ratings", port = { number = 80 } } }] },
  { match = [{ uri = { prefix = "/split" }, sourceLabels = { app = "shop" }, withoutHeaders = { x-no = {} } }], route = [{ destination = { host = "reviews", subset = "v1" }, weight = 5 }, { destination = { host = "reviews", subset = "v2" }, weight = 2 }, { destination = { host = "ratings", port = { number = 80 } }, weight = 0 }] },
]

[[DestinationRule]]
name = "reviews"
host = "reviews"
subsets = [{ name = "v1", labels = { version = "v1" } }, { name = "v2", labels = { version = "v2" } }]
"#;

const SHOP: &str = "name = \"shop\"\nports = [{ port = 7000 }]\nuser = 7\nlocality = \"eu/a\"\n";

fn build(further: &str) -> Snapshot {
    let mesh = mesh(&format!("{MESH}{further}"));
    Snapshot::build(&mesh, &[registration(SHOP)], &host(), 15008, None).expect("a snapshot")
}

fn question(url: &str) -> Question {
    let (method, headers) = ("GET".to_owned(), Vec::new());
    Question { url: url.to_owned(), method, headers, from: None, source_ip: None, sni: None, claims: None }
}

fn explained(snapshot: &Snapshot, from: Option<&str>, question: &Question) -> Explanation {
    let caller = Caller::registered(snapshot, from).expect("a caller");
    explain(snapshot, &caller, question, &|_| true).expect("an explanation")
}

/// Which cluster and how often, of so many draws of the data path; answers under their status.
fn drawn(snapshot: &Snapshot, from: Option<&str>, question: &Question, draws: u64) -> BTreeMap<String, u64> {
    let caller = Caller::registered(snapshot, from).expect("a caller");
    let asked = Asked::read(question).expect("a question");
    let service = snapshot.service_of_host(&asked.host).expect("a service");
    let authority = plan::Authority::Names;
    let (identity, index, service) = (&caller.identity, caller.index, &service.key);
    let to = plan::Asked {
        identity,
        caller: index,
        service,
        port: asked.port,
        token: None,
        authority,
        real_address: false,
    };
    let mut found = BTreeMap::new();
    for random in 0..draws {
        let what = match plan::plan(snapshot, to, &asked.head, random) {
            Plan::Answer(reply) => format!("{} {}", reply.status, reply.flags),
            Plan::Forward(forward) => {
                let name = &forward.cluster.name;
                format!("{} {} {:?}", forward.service.key, name.port, name.subset.as_deref())
            }
        };
        *found.entry(what).or_default() += 1;
    }
    found
}

/// The same as an explanation has it.
fn told(explanation: &Explanation, draws: u64) -> BTreeMap<String, u64> {
    let answer = |status: Option<u16>, flags: &str| format!("{} {flags}", status.unwrap_or_default());
    if explanation.destinations.is_empty() {
        let said = explanation.answer.as_ref().expect("an answer");
        return [(answer(said.status, &said.flags), draws)].into();
    }
    let mut told = BTreeMap::new();
    for destination in explanation.destinations.iter().filter(|destination| destination.share > 0.0) {
        let DestinationReport { service, port, subset, share, balancer, .. } = destination;
        let name = match balancer {
            Some(_) => format!("{service} {} {:?}", port.unwrap_or_default(), subset.as_deref()),
            None => answer(Some(503), "NC"),
        };
        *told.entry(name).or_default() += (share / 100.0 * draws as f64).round() as u64;
    }
    told
}

fn any_question() -> impl Strategy<Value = (Option<&'static str>, Question)> {
    let paths = ["/", "/moved/x", "/said", "/said/", "/none", "/split", "/split?beta=1", "/x?beta=0"];
    let headers =
        [("end-user", "jason"), ("end-user", "jasonx"), ("x-no", ""), ("Host", "ratings"), ("host", "x")];
    let headers = prop::sample::subsequence(headers.to_vec(), 0..=2);
    let path = prop::sample::select(paths.to_vec());
    let port = prop::sample::select(vec![80_u16, 81]);
    let (method, from) =
        (prop::sample::select(vec!["GET", "POST"]), prop::sample::select(vec![None, Some("shop")]));
    (path, headers, port, method, from).prop_map(|(path, headers, port, method, from)| {
        let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let method = method.to_owned();
        (from, Question { method, headers, ..question(&format!("http://reviews:{port}{path}")) })
    })
}

proptest! {
    /// Routes, destinations and their shares are those of the data path, and the route that is said to take a request does.
    #[test]
    fn explains_what_the_data_path_does((from, question) in any_question()) {
        // A multiple of every sum of weights.
        const DRAWS: u64 = 28;
        let snapshot = build("");
        let explanation = explained(&snapshot, from, &question);
        prop_assert_eq!(told(&explanation, DRAWS), drawn(&snapshot, from, &question, DRAWS), "{:?}", explanation);
        for route in &explanation.routes {
            let matches = route.matches.is_empty() || route.matches.iter().any(|block| block.unmet.is_none());
            prop_assert_eq!(route.taken, matches, "{:?}", route);
        }
        let taken = explanation.routes.iter().filter(|route| route.taken).count();
        prop_assert!(taken <= 1 && (taken == 0 || explanation.routes.last().is_some_and(|last| last.taken)));
    }
}

fn fail(snapshot: &Snapshot, subset: Option<&str>, last: u8, times: usize) {
    let service = snapshot.service_of_host("reviews").expect("a service");
    let cluster = service.cluster(Some(0), 0, subset).expect("a cluster");
    let address = IpAddr::from([10, 0, 0, last]);
    let endpoint = cluster.endpoints().iter().find(|endpoint| endpoint.address.ip() == address).expect("it");
    for _ in 0..times {
        cluster.judge(endpoint, Went::LocalFailure, Instant::now());
    }
}

/// The shares of endpoints are those by which they are picked, whoever is left out, and being asked changes nothing.
#[test]
fn endpoints_have_the_shares_by_which_they_are_picked() {
    const DRAWS: u32 = 20_000;
    let policy = |policy: &str| {
        format!("[[DestinationRule]]\nname = \"all\"\nhost = \"reviews\"\ntrafficPolicy = {policy}\n")
    };
    let random = "loadBalancer = { simple = \"RANDOM\" }";
    let near = "loadBalancer = { simple = \"RANDOM\", localityLbSetting = { distribute = [{ from = \"eu/*\", to = { \"eu/a/*\" = 50, \"eu/*\" = 20, \"us/*\" = 30 } }] } }";
    let outlier = "outlierDetection = { consecutive5xxErrors = 1, maxEjectionPercent = 100, baseEjectionTime = \"1h\" }";
    let panic = "outlierDetection = { consecutive5xxErrors = 1, maxEjectionPercent = 100, minHealthPercent = 50, baseEjectionTime = \"1h\" }";
    for rule in [
        String::new(),
        policy(&format!("{{ {random} }}")),
        policy(&format!("{{ {near} }}")),
        policy(&format!("{{ {random}, {outlier} }}")),
        policy(&format!("{{ {near}, {outlier} }}")),
        policy(&format!("{{ {random}, {panic} }}")),
    ] {
        for failed in [&[][..], &[11], &[11, 12], &[11, 12, 13]] {
            let snapshot = build(&rule.replace("all", "more"));
            failed.iter().for_each(|last| fail(&snapshot, None, *last, 1));
            let service = snapshot.service_of_host("reviews").expect("a service");
            let cluster = service.cluster(Some(0), 0, None).expect("a cluster");
            let mut picked: BTreeMap<SocketAddr, u32> = BTreeMap::new();
            for draw in 0..DRAWS {
                if let Ok(endpoint) = cluster.pick(&[], None, Instant::now(), mix(u64::from(draw))) {
                    *picked.entry(endpoint.address).or_default() += 1;
                }
            }
            for standing in cluster.standings(Instant::now()) {
                let address = standing.endpoint.address;
                let drawn = f64::from(picked.get(&address).copied().unwrap_or(0)) / f64::from(DRAWS);
                assert!(
                    (standing.share - drawn).abs() < 0.02,
                    "{address}: told {}, drawn {drawn}: {rule} without {failed:?}",
                    standing.share
                );
                let is_failed = failed.iter().any(|last| address.ip() == IpAddr::from([10, 0, 0, *last]));
                assert!(is_failed || standing.ejected_for.is_none());
            }
        }
    }
}

#[test]
fn an_endpoint_that_is_left_out_is_shown_so_and_gets_nothing() {
    let rule = "[[DestinationRule]]\nname = \"z\"\nhost = \"reviews\"\n";
    let snapshot = build(rule);
    fail(&snapshot, Some("v1"), 11, 1);
    let all = explained(&snapshot, Some("shop"), &question("http://reviews/split"));
    assert!(all.passes, "{all:?}");
    let [v1, v2, nobody] = &all.destinations[..] else { panic!("{all:?}") };
    assert_eq!((v1.share.round(), v2.share.round(), nobody.share), (71.0, 29.0, 0.0));
    assert_eq!((nobody.fault.as_deref(), nobody.endpoints.len()), (None, 1), "it is there, and gets nothing");
    let states = v1.endpoints.iter().map(|one| (one.workload.as_str(), one.health.as_str(), one.share));
    assert_eq!(states.collect::<Vec<_>>(), [("a", "ejected", 0.0), ("b", "healthy", 100.0)]);
    assert!(v1.endpoints[0].ejected_for.is_some());
}

#[test]
fn what_cannot_be_sent_does_not_pass() {
    let caller = |snapshot: &Snapshot| Caller::registered(snapshot, Some("shop")).expect("a caller");
    let snapshot = build("");
    let asked = question("http://reviews/split");
    let without = explain(&snapshot, &caller(&snapshot), &asked, &|_| false).expect("an explanation");
    assert_eq!((without.passes, without.outcome), (false, Outcome::Refused));
    assert!(without.summary.contains("no valid certificate"), "{}", without.summary);
    assert_eq!(without.answer.and_then(|answer| answer.status), Some(503));
    let in_part = explained(&snapshot, Some("shop"), &question("http://reviews/none"));
    assert_eq!((in_part.passes, in_part.outcome), (false, Outcome::Partly), "{in_part:?}");
    let empty = explained(
        &build("[[Service]]\nname = \"empty\"\nports = [{ port = 80, protocol = \"http\" }]\n"),
        None,
        &question("http://empty"),
    );
    assert_eq!((empty.passes, empty.outcome), (false, Outcome::NoEndpoint));
}

const POLICIES: &str = r#"
[[AuthorizationPolicy]]
name = "a"
selector = { matchLabels = { app = "orders" } }
rules = [
  { from = [{ source = { serviceAccounts = ["shop"] } }] },
  { from = [{ source = { namespaces = ["web"] } }], to = [{ operation = { ports = ["7001"] } }] },
  { from = [{ source = { ipBlocks = ["192.168.0.0/16"] } }] },
]

[[AuthorizationPolicy]]
name = "b"
action = "DENY"
selector = { matchLabels = { tier = "back" } }
rules = [{ from = [{ source = { principals = ["*/sa/evil"] } }] }, { when = [{ key = "source.ip", values = ["192.168.1.0/24"] }] }]

[[AuthorizationPolicy]]
name = "c"
dryRun = true
action = "DENY"
rules = [{}]
"#;

/// What a caller's host says of a decision is what the called side's host decides, from its own registrations.
#[test]
fn decisions_are_those_of_the_called_side() {
    let orders = "name = \"orders\"\nports = [{ port = 7000 }, { port = 7001 }]\nuser = 7\nlabels = { tier = \"back\" }\n";
    let orders = registration(orders);
    let called = Host {
        name: Label::new("h2").expect("a label"),
        addresses: vec![IpAddr::from([10, 0, 0, 2])],
        why: "".into(),
        network: None,
    };
    let workload = orders.workload(&called).expect("a workload");
    let mut parts = mesh(POLICIES).into_parts();
    let at_home = baremesh_model::mesh::Mesh::assemble(parts.clone()).expect("a mesh");
    let at_home =
        Snapshot::build(&at_home, &[Arc::clone(&orders)], &called, 15008, None).expect("a snapshot");
    parts.services = at_home.mesh.services.clone();
    parts.workloads.insert(workload.key.clone(), workload.into());
    let pushed = baremesh_model::mesh::Mesh::assemble(parts).expect("a mesh");
    let callers = ["shop", "evil", "other", "web.web", "evil.web"];
    let written = |name: &str| {
        let (name, namespace) = name.split_once('.').unwrap_or((name, "default"));
        let account =
            format!("name = \"{name}\"\nnamespace = \"{namespace}\"\nports = [{{ port = 9000 }}]\n");
        registration(&account)
    };
    let mut verdicts = BTreeMap::new();
    for caller in callers {
        let snapshot =
            Snapshot::build(&pushed, &[written(caller)], &host(), 15008, None).expect("a snapshot");
        for source in [None, Some("192.168.1.1"), Some("192.168.2.1")] {
            for port in [7000, 7001] {
                let source_ip = source.map(|text| text.parse().expect("an address"));
                let asked = Question { source_ip, ..question(&format!("tcp://orders:{port}")) };
                let explanation = explained(&snapshot, Some(caller), &asked);
                let identity = snapshot.sources[0].identity.clone();
                let local =
                    at_home.advertised(SocketAddr::new(called.addresses[0], port)).expect("registered");
                let from = (Some(&identity), source_ip.unwrap_or(host().addresses[0]));
                let decision = local.authorize(from, Carried::Bytes, &Hello::Unread);
                let [told] = &explanation.destinations[0].decisions[..] else { panic!("{explanation:?}") };
                assert_eq!(told.verdict, decision.verdict.to_string(), "{caller} {source:?} {port}");
                assert_eq!(
                    (told.allowed, explanation.passes),
                    (decision.verdict.allows(), decision.verdict.allows())
                );
                let dry = told.policies.iter().find(|policy| policy.dry_run).expect("the dry run");
                assert_eq!((dry.matched_rule, decision.notes.len()), (Some(1), 1));
                *verdicts.entry(told.verdict.clone()).or_insert(0) += 1;
            }
        }
    }
    assert_eq!(verdicts.len(), 3, "every kind of verdict has been seen: {verdicts:?}");
}

#[test]
fn who_cannot_call_from_here_is_told_who_can() {
    let snapshot = build("");
    let error = |from: &str| match Caller::registered(&snapshot, Some(from)) {
        Ok(caller) => panic!("{caller:?}"),
        Err(error) => error.to_string(),
    };
    assert!(error("shp").ends_with("did you mean `shop.default`?"), "{}", error("shp"));
    assert!(error("reviews").ends_with(": registered here shop.default"), "{}", error("reviews"));
    let of =
        |from: Option<&str>| Caller::registered(&snapshot, from).map(|caller| caller.identity.to_string());
    let shop = "spiffe://mesh.internal/ns/default/sa/shop";
    assert_eq!(of(Some("shop")).as_deref(), Ok(shop));
    assert_eq!(of(Some("shop.default")), of(Some(shop)));
    assert_eq!(of(None).as_deref(), Ok("spiffe://mesh.internal/ns/hosts/sa/h1"));
    assert_eq!(of(None), of(Some("spiffe://mesh.internal/ns/hosts/sa/h1")));
}

#[test]
fn an_address_is_explained_by_the_host_of_service_entries_that_is_reached_there() {
    let entries = r#"
[[ServiceEntry]]
name = "block"
hosts = ["block.example.com"]
addresses = ["10.1.0.0/16"]
ports = [{ number = 5432, protocol = "TCP" }]

[[ServiceEntry]]
name = "listed"
hosts = ["listed.example.com"]
resolution = "STATIC"
ports = [{ number = 80, targetPort = 8080, protocol = "TCP" }]
endpoints = [{ address = "192.0.2.1" }]

[[ServiceEntry]]
name = "one"
hosts = ["one.example.com"]
addresses = ["198.51.100.1"]
ports = [{ number = 443, protocol = "TLS" }]

[[ServiceEntry]]
name = "two"
hosts = ["two.example.com"]
addresses = ["198.51.100.1"]
ports = [{ number = 443, protocol = "TLS" }]
"#;
    let snapshot = build(entries);
    let check = |url: &str, sni: Option<&str>, expected: Option<&str>| {
        let asked = Question { sni: sni.map(str::to_owned), ..question(url) };
        let explanation = explained(&snapshot, Some("shop"), &asked);
        let service = explanation.service.as_ref().map(|service| &*service.host);
        assert_eq!(service, expected, "{url} {sni:?} {explanation:?}");
    };
    check("tcp://10.1.2.3:5432", None, Some("block.example.com"));
    check("tcp://10.1.2.3:5433", None, None);
    check("tcp://192.0.2.1:8080", None, Some("listed.example.com"));
    check("tls://198.51.100.1:443", None, Some("one.example.com"));
    check("tls://198.51.100.1:443", Some("two.example.com"), Some("two.example.com"));
}
