//! What a DestinationRule makes of a service, on a host whose program `shop` calls `web` with endpoints in three places.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::snapshot::tests::{host, mesh, registration};
use crate::snapshot::{ServiceEntry, Snapshot};

const WEB: &str = r#"
[[Service]]
name = "web"
ports = [{ port = 80, protocol = "tcp" }, { port = 81, protocol = "tcp" }]

[[WorkloadEntry]]
name = "a"
address = "10.0.0.11"
locality = "eu/a"
labels = { app = "web", version = "v1" }

[[WorkloadEntry]]
name = "b"
address = "10.0.0.12"
locality = "eu/b"
labels = { app = "web", version = "v1" }

[[WorkloadEntry]]
name = "c"
address = "10.0.0.13"
locality = "us/a"
labels = { app = "web", version = "v2" }
"#;

const SHOP: &str = "name = \"shop\"\nports = [{ port = 7000 }]\nuser = 7\nlocality = \"eu/a\"\n";

fn build(rules: &str, previous: Option<&Snapshot>) -> Snapshot {
    let mesh = mesh(&format!("{WEB}{rules}"));
    Snapshot::build(&mesh, &[registration(SHOP)], &host(), 15008, previous).expect("a snapshot")
}

/// A rule for `web` with this policy.
fn rule(policy: &str) -> String {
    format!("[[DestinationRule]]\nname = \"web\"\nhost = \"web\"\ntrafficPolicy = {policy}\n")
}

fn web(snapshot: &Snapshot) -> Arc<ServiceEntry> {
    let mut services = snapshot.services();
    Arc::clone(services.find(|service| service.key.to_string() == "web.default").expect("web"))
}

/// The cluster by which `shop` calls port 80.
fn cluster(snapshot: &Snapshot) -> Arc<Cluster> {
    Arc::clone(web(snapshot).cluster(Some(0), 0, None).expect("a cluster"))
}

/// The last numbers of the addresses that are picked in so many draws.
fn picked(cluster: &Cluster, tried: &[SocketAddr], hash: Option<u64>) -> BTreeSet<u8> {
    let last = |endpoint: &Arc<Endpoint>| match endpoint.address.ip() {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(_) => panic!("IPv4 alone"),
    };
    let draw = |random| cluster.pick(tried, hash, Instant::now(), baremesh_model::balance::hash::mix(random));
    (0..200).filter_map(|random| draw(random).ok().map(last)).collect()
}

fn fail(cluster: &Cluster, last: u8, times: usize) -> Option<Ejected> {
    let address = IpAddr::from([10, 0, 0, last]);
    let endpoint = cluster.endpoints().iter().find(|endpoint| endpoint.address.ip() == address).expect("it");
    (0..times).fold(None, |_, _| cluster.judge(endpoint, Outcome::LocalFailure, Instant::now()))
}

#[test]
fn without_a_rule_all_are_as_near_and_any_is_better_than_none() {
    let snapshot = build("", None);
    let cluster = cluster(&snapshot);
    assert_eq!(picked(&cluster, &[], None), [11, 12, 13].into());
    assert!(cluster.connection().is_ok() && cluster.retry().is_ok());
    fail(&cluster, 11, 1);
    assert_eq!(picked(&cluster, &[], None), [12, 13].into());
    fail(&cluster, 12, 1);
    fail(&cluster, 13, 1);
    assert_eq!(picked(&cluster, &[], None), [11, 12, 13].into());
    let all: Vec<_> = cluster.endpoints().iter().map(|endpoint| endpoint.address).collect();
    assert_eq!(cluster.pick(&all[..2], None, Instant::now(), 1).map(|e| e.address), Ok(all[2]));
    assert!(cluster.pick(&all, None, Instant::now(), 1).is_err());
    assert!(web(&snapshot).cluster(Some(0), 0, Some("v1")).is_none());
}

#[test]
fn subsets_are_clusters_of_their_own() {
    let text = "[[DestinationRule]]\nname = \"web\"\nhost = \"web.default.svc.cluster.local\"\n\
        trafficPolicy = { connectionPool = { tcp = { maxConnections = 1 } } }\n\
        subsets = [{ name = \"v1\", labels = { version = \"v1\" } }, { name = \"v3\", labels = { version = \"v3\" } }]\n";
    let snapshot = build(text, None);
    let service = web(&snapshot);
    let (whole, v1) = (cluster(&snapshot), service.cluster(Some(0), 0, Some("v1")).expect("a subset"));
    assert_eq!(picked(v1, &[], None), [11, 12].into());
    let v3 = service.cluster(Some(0), 1, Some("v3")).expect("a subset");
    assert_eq!(v3.pick(&[], None, Instant::now(), 1).err(), Some(NoEndpoint::Empty));
    // Each has its own count; connections in flight at an endpoint are one number.
    let held = (whole.connection().expect("the first"), v1.connection().expect("the first"));
    assert_eq!(v1.connection().err(), Some(OverLimit("maxConnections")));
    let in_flight = v1.endpoints()[0].state.enter();
    assert_eq!(whole.endpoints()[0].state.active(), 1);
    // And both outlive a change.
    let later = build(&text.replace("maxConnections = 1", "maxConnections = 2"), Some(&snapshot));
    let whole = cluster(&later);
    assert_eq!(whole.endpoints()[0].state.active(), 1);
    let second = whole.connection().expect("a second");
    assert!(whole.connection().is_err());
    drop((held, second, in_flight));
    assert!(whole.connection().is_ok() && whole.endpoints()[0].state.active() == 0);
}

#[test]
fn endpoints_that_fail_are_left_out_and_come_back() {
    let outlier = |fields: &str| {
        rule(&format!(
            "{{ outlierDetection = {{ {fields} }}, loadBalancer = {{ localityLbSetting = {{ enabled = false }} }} }}"
        ))
    };
    let text = outlier("consecutive5xxErrors = 2, maxEjectionPercent = 70, baseEjectionTime = \"30s\"");
    let snapshot = build(&text, None);
    let cluster = cluster(&snapshot);
    assert_eq!(fail(&cluster, 11, 1), None);
    assert_eq!(fail(&cluster, 11, 1), Some(Ejected { cause: Cause::Consecutive5xx, times: 1 }));
    assert_eq!(picked(&cluster, &[], None), [12, 13].into());
    assert!(web(&snapshot).is_ejected(cluster.endpoints()[0].address));
    assert!(fail(&cluster, 12, 2).is_some());
    assert_eq!(fail(&cluster, 13, 9), None, "no more than seven of ten");
    assert_eq!(picked(&cluster, &[], None), [13].into());
    let later = Instant::now() + Duration::from_secs(31);
    let picks: BTreeSet<_> = (0..50)
        .map(|n| cluster.pick(&[], None, later, baremesh_model::balance::hash::mix(n)).expect("one").address)
        .collect();
    assert_eq!(picks.len(), 3, "they are back");
    // A change of something else forgets nothing, and other ports know nothing of it.
    let after = build(
        &format!("{text}\n[[Service]]\nname = \"x\"\nports = [{{ port = 1, protocol = \"tcp\" }}]\n"),
        Some(&snapshot),
    );
    assert_eq!(picked(&self::cluster(&after), &[], None), [13].into());
    let other = Arc::clone(web(&after).cluster(Some(0), 1, None).expect("a cluster"));
    assert_eq!(picked(&other, &[], None), [11, 12, 13].into());
}

#[test]
fn all_left_out_is_no_endpoint_unless_few_that_are_well_mean_panic() {
    let text = |least| {
        rule(&format!(
            "{{ outlierDetection = {{ consecutive5xxErrors = 1, maxEjectionPercent = 100, minHealthPercent = {least} }} }}"
        ))
    };
    let eject_all = |cluster: &Cluster| [11, 12, 13].map(|last| fail(cluster, last, 1).is_some());
    let none = cluster(&build(&text(0), None));
    assert_eq!(eject_all(&none), [true; 3]);
    assert_eq!(none.pick(&[], None, Instant::now(), 1).err(), Some(NoEndpoint::Ejected));
    let panic = cluster(&build(&text(50), None));
    eject_all(&panic);
    assert!(panic.pick(&[], None, Instant::now(), 1).is_ok());
}

/// The same endpoints, of which these are unhealthy by their own hosts' word.
fn build_unwell(rules: &str, unwell: &[&str], previous: Option<&Snapshot>) -> Snapshot {
    let mut text = format!("{WEB}{rules}");
    for name in unwell {
        let entry = format!("name = \"{name}\"\n");
        text = text.replace(&entry, &format!("{entry}health = \"unhealthy\"\n"));
    }
    let mesh = mesh(&text);
    Snapshot::build(&mesh, &[registration(SHOP)], &host(), 15008, previous).expect("a snapshot")
}

#[test]
fn what_is_unhealthy_takes_no_calls_by_whatever_balancer() {
    let tables = ["ringHash = { minimumRingSize = 100 }", "maglev = { tableSize = 4099 }"];
    let hashed = tables.map(|table| {
        rule(&format!("{{ loadBalancer = {{ consistentHash = {{ useSourceIp = true, {table} }} }} }}"))
    });
    let simple = ["LEAST_REQUEST", "ROUND_ROBIN", "RANDOM", "PASSTHROUGH"]
        .map(|simple| rule(&format!("{{ loadBalancer = {{ simple = \"{simple}\" }} }}")));
    let weights = rule(
        "{ loadBalancer = { localityLbSetting = { distribute = [{ from = \"eu/a\", to = { \"eu/*\" = 50, \"us/*\" = 50 } }] } } }",
    );
    for rules in hashed.iter().chain(&simple).chain([&weights, &String::new()]) {
        let all: BTreeSet<u8> = (0..50)
            .flat_map(|hash| {
                picked(
                    &cluster(&build_unwell(rules, &["b"], None)),
                    &[],
                    Some(baremesh_model::balance::hash::mix(hash)),
                )
            })
            .collect();
        assert_eq!(all, [11, 13].into(), "{rules}");
        let last = cluster(&build_unwell(rules, &["a", "b"], None));
        assert_eq!(picked(&last, &[], None), [13].into(), "{rules}");
        let tried =
            last.endpoints().iter().find(|endpoint| endpoint.health.is_healthy()).expect("one").address;
        assert_eq!(last.pick(&[tried], None, Instant::now(), 1).err(), Some(NoEndpoint::Tried), "{rules}");
        let none = cluster(&build_unwell(rules, &["a", "b", "c"], None));
        assert_eq!(none.pick(&[], None, Instant::now(), 1).err(), Some(NoEndpoint::Unhealthy), "{rules}");
    }
}

/// Without a rule, one that could not be connected to is better than none; one that is unhealthy is not.
#[test]
fn what_is_unhealthy_is_no_last_resort() {
    let snapshot = build_unwell("", &["a"], None);
    let cluster = cluster(&snapshot);
    fail(&cluster, 12, 1);
    fail(&cluster, 13, 1);
    assert_eq!(picked(&cluster, &[], None), [12, 13].into());
    // What was learnt and what is known of its health do not touch each other.
    let well = self::cluster(&build_unwell("", &[], Some(&snapshot)));
    assert_eq!(picked(&well, &[], None), [11].into());
}

#[test]
fn the_unhealthy_and_the_ejected_count_alike_for_panic_and_for_failover() {
    let outlier = |least: u8| {
        rule(&format!(
            "{{ outlierDetection = {{ consecutive5xxErrors = 1, maxEjectionPercent = 100, minHealthPercent = {least} }}, \
             loadBalancer = {{ localityLbSetting = {{ enabled = false }} }} }}"
        ))
    };
    // Istio's default, where Envoy's own is 50: no panic, however few are well.
    let strict = cluster(&build_unwell(&outlier(0), &["a", "b"], None));
    assert_eq!(picked(&strict, &[], None), [13].into());
    fail(&strict, 13, 1);
    assert_eq!(strict.pick(&[], None, Instant::now(), 1).err(), Some(NoEndpoint::Ejected));
    // One of three is less than half: all are used, the unhealthy too. Two of three are not.
    let panic = cluster(&build_unwell(&outlier(50), &["a", "b"], None));
    assert_eq!(picked(&panic, &[], None), [11, 12, 13].into());
    let enough = cluster(&build_unwell(&outlier(50), &["a"], None));
    assert_eq!(picked(&enough, &[], None), [12, 13].into());
    fail(&enough, 12, 1);
    assert_eq!(picked(&enough, &[], None), [11, 12, 13].into(), "one ejected and one unhealthy");
    // The nearest that are well, by health as by ejection.
    let near = rule("{ outlierDetection = { consecutive5xxErrors = 1, maxEjectionPercent = 100 } }");
    assert_eq!(picked(&cluster(&build_unwell(&near, &[], None)), &[], None), [11].into());
    assert_eq!(picked(&cluster(&build_unwell(&near, &["a"], None)), &[], None), [12].into());
    assert_eq!(picked(&cluster(&build_unwell(&near, &["a", "b"], None)), &[], None), [13].into());
}

#[test]
fn the_nearest_that_are_well() {
    let text = rule("{ outlierDetection = { consecutive5xxErrors = 1, maxEjectionPercent = 100 } }");
    let snapshot = build(&text, None);
    let near = cluster(&snapshot);
    assert_eq!(picked(&near, &[], None), [11].into());
    let tried = near.endpoints()[0].address;
    assert_eq!(picked(&near, &[tried], None), [12].into(), "a second attempt goes to the next nearest");
    fail(&near, 11, 1);
    assert_eq!(picked(&near, &[], None), [12].into());
    fail(&near, 12, 1);
    assert_eq!(picked(&near, &[], None), [13].into());
    let weights = rule(
        "{ loadBalancer = { localityLbSetting = { distribute = [{ from = \"eu/a\", to = { \"eu/*\" = 50, \"us/*\" = 50 } }] } } }",
    );
    assert_eq!(picked(&cluster(&build(&weights, None)), &[], None), [11, 12, 13].into());
    let only = weights.replace("\"eu/*\" = 50, \"us/*\" = 50", "\"us/*\" = 100");
    assert_eq!(picked(&cluster(&build(&only, None)), &[], None), [13].into());
}

#[test]
fn the_same_key_goes_to_the_same_endpoint() {
    for table in ["ringHash = { minimumRingSize = 100 }", "maglev = { tableSize = 4099 }"] {
        let text =
            rule(&format!("{{ loadBalancer = {{ consistentHash = {{ useSourceIp = true, {table} }} }} }}"));
        let snapshot = build(&text, None);
        let cluster = cluster(&snapshot);
        let hash = |last| cluster.hash_of_connection(IpAddr::from([10, 9, 9, last]));
        let all: Vec<_> = (0..50).map(|last| picked(&cluster, &[], hash(last))).collect();
        assert!(all.iter().all(|one| one.len() == 1), "{all:?}");
        assert_eq!(all.iter().flatten().collect::<BTreeSet<_>>().len(), 3, "{all:?}");
        // The table is made once.
        let again = build(&text, Some(&snapshot));
        let again = self::cluster(&again);
        assert!(Arc::ptr_eq(&cluster.groups()[0].table, &again.groups()[0].table));
    }
}

#[test]
fn callers_have_the_rules_of_their_namespace() {
    let text = "[[DestinationRule]]\nname = \"own\"\nhost = \"web\"\nexportTo = [\".\"]\n\
        trafficPolicy = { connectionPool = { tcp = { maxConnections = 1 } } }\n\
        [[DestinationRule]]\nname = \"all\"\nnamespace = \"mesh-system\"\nhost = \"*.local\"\n\
        trafficPolicy = { connectionPool = { tcp = { maxConnections = 2 } } }\n";
    let service = web(&build(text, None));
    let limit = |caller| service.cluster(caller, 0, None).expect("a cluster").limits().max_connections;
    assert_eq!((limit(Some(0)), limit(None)), (1, 2));
    assert_eq!(service.rule(None).map(|rule| rule.keys[0].to_string()).as_deref(), Some("all.mesh-system"));
}

#[test]
fn retries_have_a_budget_or_a_number() {
    let number = cluster(&build(
        &rule(
            "{ connectionPool = { http = { maxRetries = 1, http2MaxRequests = 2, http1MaxPendingRequests = 1 } } }",
        ),
        None,
    ));
    let held = (number.retry().expect("one"), number.request().expect("one"), number.request().expect("two"));
    assert_eq!(number.retry().err(), Some(OverLimit("maxRetries")));
    assert_eq!(number.request().err(), Some(OverLimit("http2MaxRequests")));
    let waiting = number.pending().expect("one");
    assert_eq!(number.pending().err(), Some(OverLimit("http1MaxPendingRequests")));
    drop((held, waiting));
    assert!(number.retry().is_ok());
    let budget = cluster(&build(&rule("{ retryBudget = { percent = 50, minRetryConcurrency = 1 } }"), None));
    let requests: Vec<_> = (0..4).map(|_| budget.request().expect("one")).collect();
    let retries = (budget.retry().expect("one"), budget.retry().expect("two"));
    assert_eq!(budget.retry().err(), Some(OverLimit("retryBudget")));
    drop((requests, retries.1));
    assert!(budget.retry().is_err(), "one is left, and so is one retry");
    drop(retries.0);
    assert!(budget.retry().is_ok());
}
