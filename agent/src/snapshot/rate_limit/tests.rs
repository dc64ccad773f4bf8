//! What limits decide on a host `h1` with `orders` of its own, whose callers may call `web`.

use std::sync::Weak;

use baremesh_model::name::default_namespace;

use super::*;
use crate::snapshot::Snapshot;
use crate::snapshot::tests::{host, mesh, registration};

const MESH: &str = r#"
[[Service]]
name = "web"
ports = [{ port = 80, protocol = "http" }]

[[WorkloadEntry]]
name = "web-h2"
address = "10.0.0.2"
labels = { app = "web" }
tunnel = "hbone"
"#;

const ORDERS: &str = "name = \"orders\"\nports = [{ port = 7000, protocol = \"http\" }]\nuser = 7\n\
    labels = { app = \"orders\" }\n";

fn build(limits: &str, previous: Option<&Snapshot>) -> Snapshot {
    let mesh = mesh(&format!("{MESH}{limits}"));
    Snapshot::build(&mesh, &[registration(ORDERS)], &host(), 15008, previous).expect("a snapshot")
}

/// A RateLimit with these further lines.
fn limit(name: &str, lines: &str) -> String {
    format!("[[RateLimit]]\nname = \"{name}\"\n{lines}\n")
}

fn identity(account: &str) -> Identity {
    let text = format!("spiffe://mesh.internal/ns/default/sa/{account}");
    Identity::parse(&text).expect("an identity")
}

fn head(target: &str, tenant: &str) -> RequestHead {
    let mut head = RequestHead { method: "GET".into(), target: target.into(), ..RequestHead::default() };
    head.headers.append("x-tenant", tenant.as_bytes()).expect("a field");
    head
}

/// What limits say of a request that arrives at `orders`.
fn arrive(snapshot: &Snapshot, account: &str, head: &RequestHead) -> (bool, Vec<String>) {
    let local = snapshot.local_endpoints().next().expect("orders");
    let source = identity(account);
    let from = (Some(&source), "10.0.0.9".parse().expect("an address"));
    let mut decisions = Vec::new();
    let decided = snapshot.rate_limits.on_arrival(local, (head, None), from, &mut decisions);
    decisions.iter().for_each(Decision::count);
    (decided.is_ok(), decisions.iter().map(ToString::to_string).collect())
}

/// How many of so many requests to `orders` are let through.
fn let_through(snapshot: &Snapshot, account: &str, count: usize) -> usize {
    (0..count).filter(|_| arrive(snapshot, account, &head("/", "a")).0).count()
}

fn limiter<'a>(snapshot: &'a Snapshot, name: &str) -> &'a Arc<Limiter> {
    let mut all = snapshot.rate_limits.all();
    all.find(|limiter| limiter.policy.key.name.as_str() == name).expect("the limit")
}

const THREE: &str = "limit = { requests = 3, per = \"1h\" }";

#[test]
fn limits_hold_where_they_are_enforced() {
    let sent = |limits: &str, account: &str| {
        let snapshot = build(limits, None);
        let web = Key::new(default_namespace(), Label::new("web").expect("a label"));
        let (source, mut decisions) = (identity(account), Vec::new());
        let from = (&source, "127.0.0.1".parse().expect("an address"));
        let send = |decisions: &mut Vec<Decision>| {
            snapshot.rate_limits.on_sending((&web, 80), &head("/", "a"), from, decisions)
        };
        (0..5).filter(|_| send(&mut decisions).is_ok()).count()
    };
    let arrived = |limits: &str| let_through(&build(limits, None), "web", 5);
    let orders = limit("a", &format!("selector = {{ matchLabels = {{ app = \"orders\" }} }}\n{THREE}"));
    assert_eq!((arrived(&orders), sent(&orders, "orders")), (3, 5));
    let others = limit("a", &format!("selector = {{ matchLabels = {{ app = \"others\" }} }}\n{THREE}"));
    assert_eq!(arrived(&others), 5);
    assert_eq!(arrived(&limit("a", &format!("namespace = \"shop\"\n{THREE}"))), 5, "another namespace's");
    assert_eq!(arrived(&limit("a", &format!("namespace = \"mesh-system\"\n{THREE}"))), 3, "the root's");
    let host = |namespace: &str| {
        limit("a", &format!("namespace = \"{namespace}\"\nhost = \"web.default\"\n{THREE}"))
    };
    assert_eq!((arrived(&host("default")), sent(&host("default"), "orders")), (5, 3));
    assert_eq!(sent(&host("mesh-system"), "orders"), 3);
    assert_eq!(sent(&host("shop"), "orders"), 5, "callers of another namespace");
    assert_eq!(sent(&limit("a", &format!("host = \"nobody\"\n{THREE}")), "orders"), 5);
}

#[test]
fn callers_are_counted_apart_and_a_refusal_uses_up_no_other_limit() {
    let limits = limit("all", "limit = { requests = 5, per = \"1h\" }")
        + &limit("each", "key = [\"sourceIdentity\"]\nlimit = { requests = 2, per = \"1h\" }");
    let snapshot = build(&limits, None);
    assert_eq!(let_through(&snapshot, "web", 100), 2);
    // Ninety-eight refused requests of another caller left three of five.
    assert_eq!(let_through(&snapshot, "shop", 1), 1);
    let (allowed, said) = arrive(&snapshot, "shop", &head("/", "a"));
    assert!(allowed);
    assert_eq!(said, ["default/all: 1 left", "default/each: 0 left"]);
    assert_eq!(
        arrive(&snapshot, "shop", &head("/", "a")).1.last().map(|s| &**s),
        Some("default/each: refused")
    );
    assert_eq!(let_through(&snapshot, "third", 5), 1);
    let tally = |name: &str| {
        let Tally { allowed, refused, .. } = &*limiter(&snapshot, name).tally;
        (allowed.load(Ordering::Relaxed), refused.load(Ordering::Relaxed))
    };
    assert_eq!(tally("each").0 + tally("each").1, 100 + 3 + 1);
    assert_eq!(tally("all").1, 4);
}

#[test]
fn a_dry_run_refuses_nothing_and_is_counted() {
    let snapshot = build(&limit("dry", &format!("dryRun = true\n{THREE}")), None);
    assert_eq!(let_through(&snapshot, "web", 5), 5);
    assert_eq!(arrive(&snapshot, "web", &head("/", "a")).1, ["default/dry: would refuse"]);
    let tally = &limiter(&snapshot, "dry").tally;
    assert_eq!(tally.would_refuse.load(Ordering::Relaxed), 3);
    assert_eq!((tally.allowed.load(Ordering::Relaxed), tally.refused.load(Ordering::Relaxed)), (3, 0));
}

#[test]
fn what_was_counted_outlives_a_change_and_goes_with_its_limit() {
    for key in ["", "key = [\"sourceIdentity\"]\n"] {
        let of =
            |requests: u32| limit("a", &format!("{key}limit = {{ requests = {requests}, per = \"1h\" }}"));
        let first = build(&of(3), None);
        assert_eq!(let_through(&first, "web", 2), 2);
        let second = build(&(of(3) + &limit("other", THREE)), Some(&first));
        assert_eq!(let_through(&second, "web", 1), 1, "{key}");
        assert_eq!(
            let_through(&first, "web", 1),
            0,
            "a request of the former state counts in the same place"
        );
        let more = build(&of(5), Some(&second));
        assert_eq!(let_through(&more, "web", 9), 2, "three of five are used");
        let fewer = build(&of(2), Some(&more));
        assert_eq!(let_through(&fewer, "web", 9), 0);
        assert_eq!(limiter(&fewer, "a").tally.allowed.load(Ordering::Relaxed), 2 + 1 + 2);
        let apart = build(&limit("a", &format!("key = [\"path\"]\n{THREE}")), Some(&fewer));
        assert_eq!(let_through(&apart, "web", 9), 3, "counted by something else, it begins anew");
        let kept: Weak<Counts> = Arc::downgrade(&limiter(&apart, "a").counts);
        let none = build("", Some(&apart));
        drop(apart);
        assert_eq!((let_through(&none, "web", 9), kept.upgrade().is_none()), (9, true));
    }
}

/// Keys that a caller makes up: it is held to what its share of the places holds, memory is bounded, and nobody else
/// notices.
#[test]
fn random_keys_are_bounded_and_harm_nobody_else() {
    let snapshot = build(&limit("a", &format!("key = [{{ header = \"x-tenant\" }}]\n{THREE}")), None);
    assert_eq!(arrive(&snapshot, "honest", &head("/", "before")).1, ["default/a: 2 left"]);
    let through =
        (0..100_000).filter(|number| arrive(&snapshot, "attacker", &head("/", &number.to_string())).0);
    let through = through.count();
    let limiter = limiter(&snapshot, "a");
    assert!(
        through <= MAX_COUNTS + 3,
        "one for each key that is kept apart, and one count for all others: {through}"
    );
    assert!(limiter.counts() <= MAX_COUNTS + 1, "{}", limiter.counts());
    let shared = limiter.tally.shared.load(Ordering::Relaxed);
    assert!(shared >= 100_000 - MAX_COUNTS as u64, "{shared}");
    // A key that was there before, and hundreds of new ones.
    assert_eq!(arrive(&snapshot, "honest", &head("/", "before")).1, ["default/a: 1 left"]);
    for number in 0..500 {
        let head = head("/", &format!("honest-{number}"));
        let left: Vec<_> = (0..4).map(|_| arrive(&snapshot, "honest", &head).1).collect();
        let expected =
            ["2 left", "1 left", "0 left", "refused"].map(|said| vec![format!("default/a: {said}")]);
        assert_eq!(left, expected, "{number}");
    }
    assert!(!arrive(&snapshot, "attacker", &head("/", "one more")).0);
    assert!(limiter.counts() <= MAX_COUNTS + 1);
    // When everything is full again, nothing is left of it.
    snapshot.rate_limits.sweep(Instant::now() + Duration::from_secs(7200));
    assert_eq!(limiter.counts(), 0);
}

#[test]
fn threads_let_through_no_more_than_one_would() {
    for key in ["", "key = [\"sourceIdentity\"]\n"] {
        let snapshot = build(&limit("a", &format!("{key}limit = {{ requests = 1000, per = \"1h\" }}")), None);
        let through: usize = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| let_through(&snapshot, "web", 500))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert_eq!(through, 1000, "{key}");
    }
}
