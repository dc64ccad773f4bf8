use baremesh_model::mesh::Mesh;
use baremesh_registry::control::endpoint_addresses;
use serde_json::json;

use super::*;
use crate::originate::Originations;
use crate::snapshot::tests::{host, mesh, registration};

fn key(text: &str) -> Key {
    Key::read(text).expect("a key")
}

fn keys(texts: &[&str]) -> BTreeSet<Key> {
    texts.iter().map(|text| key(text)).collect()
}

fn sets(called: &[(&str, Seconds)], declared: Option<&[&str]>, wanted: Wanted) -> Sets {
    let called = called.iter().map(|(name, last)| (key(name), *last)).collect();
    Sets { wanted, called, declared: declared.map(keys) }
}

#[test]
fn what_is_called_and_what_is_declared_is_asked_for() {
    let check = |sets: &Sets, expected: &[&str]| {
        assert_eq!(
            sets.subscription().written(),
            expected.iter().map(ToString::to_string).collect::<Vec<_>>()
        );
    };
    check(&sets(&[], Some(&[]), Wanted::Called), &[]);
    check(&sets(&[("b.x", 1), ("a.x", 1)], Some(&["a.x", "c.x"]), Wanted::Called), &["a.x", "b.x", "c.x"]);
    check(&sets(&[("b.x", 1)], None, Wanted::Called), &["*"]);
    check(&sets(&[("b.x", 1)], Some(&[]), Wanted::All), &["*"]);
    let mut many = sets(&[], Some(&[]), Wanted::Called);
    for n in 0..MAX_SUBSCRIBED {
        assert!(many.note(&key(&format!("s{n}.x")), 1));
    }
    assert_eq!(many.subscription().written().len(), MAX_SUBSCRIBED);
    assert!(many.note(&key("one-more.x"), 1));
    check(&many, &["*"]);
    assert!(!many.note(&key("and-another.x"), 1), "what is remembered is bounded");
    assert_eq!(many.called.len(), MAX_SUBSCRIBED + 1);
}

#[test]
fn what_nobody_calls_is_forgotten() {
    let most = FORGOTTEN_AFTER.as_secs();
    let mut known =
        sets(&[("old.x", 10), ("new.x", 11), ("future.x", most * 9)], Some(&["old.x"]), Wanted::Called);
    assert!(!known.note(&key("new.x"), 12));
    assert!(!known.forget(10 + most - 1));
    assert!(known.forget(10 + most));
    assert_eq!(known.called.keys().cloned().collect::<BTreeSet<_>>(), keys(&["new.x", "future.x"]));
    assert_eq!(
        known.subscription(),
        Subscription::of(keys(&["new.x", "future.x", "old.x"])),
        "it is declared"
    );
}

#[test]
fn what_is_remembered_is_read_as_it_was_written() {
    let place = tempfile::tempdir().expect("a directory");
    let file = place.path().join(FILE);
    assert_eq!(remembered::load(&file), Ok(BTreeMap::new()));
    let called = BTreeMap::from([(key("a.x"), 7), (key("b.y"), 9)]);
    remembered::save(&file, &called).expect("written");
    assert_eq!(remembered::load(&file), Ok(called));
    for damaged in ["", "{", "{}", r#"{"called":[]}"#] {
        std::fs::write(&file, damaged).expect("written");
        assert!(remembered::load(&file).is_err(), "{damaged}");
    }
    std::fs::write(&file, r#"{"called":{"a.x":1,"no name":2},"newer":{}}"#).expect("written");
    assert_eq!(remembered::load(&file), Ok(BTreeMap::from([(key("a.x"), 1)])), "what is a name counts");
}

const SERVICES: &str = "[[Service]]\nname = \"a\"\nports = [{ port = 80 }]\n[[Service]]\nname = \"b\"\nports = [{ port = 80 }]\n";

/// The mesh as a host knows it that has asked for none of these services.
fn unheld(services: &[&str]) -> Mesh {
    let addresses = json!({ "groups": [{ "ports": "80", "at": "10.0.0.7" }] });
    let addresses = Arc::new(endpoint_addresses::read(&addresses).expect("addresses"));
    mesh(SERVICES).holding_all_but(services.iter().map(|name| (key(name), Arc::clone(&addresses))).collect())
}

fn started(place: &Path, mesh: Mesh) -> (Arc<Publisher>, Arc<Demand>, Arc<Metrics>) {
    let metrics = Metrics::new("mesh");
    let originations = Arc::new(Originations::new("/nowhere".into()));
    let own = [registration("name = \"own\"\nports = [{ port = 7000 }]\n")];
    let publisher = Publisher::new((mesh, 1), &own, (host(), 15008), originations, Arc::clone(&metrics));
    let publisher = publisher.expect("published");
    let demand = Demand::open(Wanted::Called, place, &publisher, &metrics);
    (publisher, demand, metrics)
}

fn unknown(service: &str, within: Duration) -> ProxyError {
    ProxyError::EndpointsUnknown { service: key(service), within }
}

#[tokio::test]
async fn a_first_call_asks_once_and_waits_for_the_state_that_answers() {
    let place = tempfile::tempdir().expect("a directory");
    let (publisher, demand, metrics) = started(place.path(), unheld(&["a.default", "b.default"]));
    let asked = demand.subscription();
    assert_eq!(*asked.borrow(), Subscription::of(keys(&["own.default"])), "its own services");
    let long = Duration::from_secs(600);
    let waiting = |service: &'static str| {
        let demand = Arc::clone(&demand);
        tokio::spawn(async move { demand.wait(unknown(service, long), Instant::now()).await })
    };
    let (first, second) = (waiting("a.default"), waiting("a.default"));
    let mut seen = asked.clone();
    seen.wait_for(|asked| asked.covers(&key("a.default"))).await.expect("it is asked for");
    // Another state, which does not answer.
    publisher.take_mesh(unheld(&["a.default"]), 2).expect("in force");
    tokio::task::yield_now().await;
    assert!(!first.is_finished() && !second.is_finished());
    publisher.take_mesh(unheld(&[]), 3).expect("in force");
    assert!(first.await.expect("no panic").is_ok() && second.await.expect("no panic").is_ok());
    assert_eq!((metrics.endpoints_asked.get(), metrics.endpoints_not_told.get()), (1, 0));
    // What is held, or no longer there, is not waited for.
    demand.wait(unknown("b.default", Duration::ZERO), Instant::now()).await.expect("held");
    demand.wait(unknown("gone.default", Duration::ZERO), Instant::now()).await.expect("there is none");
    assert!(!asked.borrow().covers(&key("gone.default")));
}

#[tokio::test]
async fn who_is_not_answered_in_time_fails_with_the_reason_and_so_do_too_many() {
    let place = tempfile::tempdir().expect("a directory");
    let (_publisher, demand, metrics) = started(place.path(), unheld(&["a.default"]));
    let failed = demand.wait(unknown("a.default", Duration::from_millis(1)), Instant::now()).await;
    assert!(matches!(failed, Err(ProxyError::EndpointsUnknown { .. })), "{failed:?}");
    assert_eq!(metrics.endpoints_not_told.get(), 1);
    assert!(demand.subscription().borrow().covers(&key("a.default")), "it is asked for all the same");
    let _all = demand
        .waiting
        .acquire_many(u32::try_from(MAX_WAITING_FOR_ENDPOINTS).expect("few"))
        .await
        .expect("places");
    let refused = demand.wait(unknown("a.default", Duration::from_secs(600)), Instant::now()).await;
    assert!(matches!(refused, Err(ProxyError::Overloaded("MAX_WAITING_FOR_ENDPOINTS"))), "{refused:?}");
    let other = demand.wait(ProxyError::TooLong, Instant::now()).await;
    assert!(matches!(other, Err(ProxyError::TooLong)), "what is another error stays that");
}

#[tokio::test]
async fn calls_are_remembered_and_a_restart_begins_with_them() {
    let place = tempfile::tempdir().expect("a directory");
    let (publisher, demand, _) = started(place.path(), unheld(&["b.default"]));
    let snapshot = publisher.snapshot().load_full();
    let call = |name: &str| snapshot.service(&key(name)).expect("a service").call(Duration::ZERO);
    assert!(call("a.default").is_ok() && call("b.default").is_err());
    demand.sweep(now());
    demand.save().await;
    let (_, again, _) = started(place.path(), unheld(&["a.default", "b.default"]));
    let expected = keys(&["a.default", "b.default", "own.default"]);
    assert_eq!(*again.subscription().borrow(), Subscription::of(expected));
    demand.sweep(now() + FORGOTTEN_AFTER.as_secs());
    demand.save().await;
    let (_, again, _) = started(place.path(), unheld(&["a.default", "b.default"]));
    assert_eq!(*again.subscription().borrow(), Subscription::of(keys(&["own.default"])));
}
