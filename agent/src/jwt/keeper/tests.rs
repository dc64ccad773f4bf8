//! Keys from a server on loopback and from files, over changes, failures and restarts.

use std::sync::Mutex;

use super::*;
use crate::jwt::testing::{Signer, ok, serve};
use crate::proxy::socket::Mark;
use crate::snapshot::tests::{host, mesh, registration};

const ORDERS: &str = "name = \"orders\"\nports = [{ port = 7000, protocol = \"http\" }]\nuser = 7\n";

fn snapshot(keys: &str) -> Arc<ArcSwap<Snapshot>> {
    let text =
        format!("[[RequestAuthentication]]\nname = \"a\"\njwtRules = [{{ issuer = \"i\", {keys} }}]\n");
    let built = Snapshot::build(&mesh(&text), &[registration(ORDERS)], &host(), 15008, None);
    Arc::new(ArcSwap::from_pointee(built.expect("a snapshot")))
}

fn keeper(snapshot: &Arc<ArcSwap<Snapshot>>, directory: &Path) -> (Keeper, watch::Sender<u64>) {
    let allow = vec!["127.0.0.0/8".parse().expect("a block")];
    let fetcher = Fetcher { mark: Mark(None), allow, allowed_by: "`jwks.allow`", authorities: None };
    let changed = watch::Sender::new(0);
    let states = (Arc::clone(snapshot), changed.subscribe());
    (Keeper::new(states, fetcher, directory.to_owned(), Metrics::new("m")), changed)
}

fn slot(snapshot: &ArcSwap<Snapshot>) -> Arc<KeySlot> {
    Arc::clone(snapshot.load().token_keys.all().next().expect("a slot").0)
}

/// The names of the keys that are at hand.
fn ids(slot: &KeySlot) -> Vec<String> {
    slot.keys().map_or_else(Vec::new, |set| set.keys.iter().filter_map(|key| key.id.clone()).collect())
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(120);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn keys_outlive_their_server_and_a_restart_but_not_a_day() {
    let scratch = tempfile::tempdir().expect("a directory");
    let jwks = Signer::jwks(&[&Signer::es256("first")]);
    let (address, serving) = serve(move |_| ok(&jwks)).await;
    let snapshot = snapshot(&format!("jwksUri = \"http://{address}/keys\""));
    let (first, changed) = keeper(&snapshot, scratch.path());
    let running = tokio::spawn(first.run());
    let slot = slot(&snapshot);
    until("keys come", || ids(&slot) == ["first"]).await;
    running.abort();
    serving.abort();
    drop(changed);
    slot.put(None);
    let (mut again, _changed) = keeper(&snapshot, scratch.path());
    again.load_stored();
    assert_eq!(ids(&slot), ["first"], "a restart needs no server");
    let metrics = Arc::clone(&again.metrics);
    let running = tokio::spawn(again.run());
    // The known keys are asked for at once, and the server is gone.
    until("failures are counted", || metrics.render(None).contains("fetches_total{outcome=\"connect\"}"))
        .await;
    assert_eq!(ids(&slot), ["first"], "the last good ones stay");
    running.abort();
    let stored =
        std::fs::read_dir(scratch.path()).expect("read").next().expect("a file").expect("read").path();
    let file = std::fs::File::options().write(true).open(&stored).expect("opened");
    file.set_modified(SystemTime::now() - KEEP - Duration::from_secs(1)).expect("set");
    slot.put(None);
    let (mut late, _changed) = keeper(&snapshot, scratch.path());
    late.load_stored();
    assert_eq!(ids(&slot), [""; 0], "nobody vouches for keys of the day before");
}

#[tokio::test]
async fn what_a_server_serves_instead_of_keys_is_repeated_nowhere() {
    let scratch = tempfile::tempdir().expect("a directory");
    let (address, _serving) = serve(|_| ok("root:x:0:0")).await;
    let snapshot = snapshot(&format!("jwksUri = \"http://{address}/keys\""));
    let (keeper, _changed) = keeper(&snapshot, scratch.path());
    let (ranges, patience) = (VirtualRanges::default(), Duration::from_secs(60));
    let (source, directory) = (slot(&snapshot).source().clone(), scratch.path().to_owned());
    let (_, read) = ask(source, Arc::clone(&keeper.fetcher), directory, (ranges, patience)).await;
    let Err(error) = read else { panic!("no keys were served") };
    assert_eq!(error.reason(), "no_keys", "{error}");
    assert!(!error.to_string().contains("root:"), "{error}");
}

#[tokio::test]
async fn keys_that_nobody_vouched_for_in_a_day_are_let_go() {
    let scratch = tempfile::tempdir().expect("a directory");
    let snapshot = snapshot("jwksUri = \"http://127.0.0.1:1/keys\"");
    let (mut keeper, _changed) = keeper(&snapshot, scratch.path());
    let slot = slot(&snapshot);
    let set = KeySet::parse(&Signer::jwks(&[&Signer::es256("old")])).expect("a set");
    slot.put(Some(Arc::new(set)));
    let fails = |keeper: &mut Keeper, since: Duration| {
        let known = Known { since: Some(SystemTime::now() - since), is_asking: true, ..Known::new() };
        keeper.known.insert(slot.source().clone(), known);
        keeper.take((slot.source().clone(), Err(FetchError::Status(500).into())));
    };
    fails(&mut keeper, KEEP - Duration::from_secs(60));
    assert_eq!(ids(&slot), ["old"]);
    assert_eq!(keeper.metrics.tokens.without_keys.get(), 0);
    fails(&mut keeper, KEEP);
    assert_eq!(ids(&slot), [""; 0]);
    assert_eq!(keeper.metrics.tokens.without_keys.get(), 1);
}

#[tokio::test]
async fn a_token_with_an_unknown_key_brings_the_next_question_forward_and_not_at_will() {
    let scratch = tempfile::tempdir().expect("a directory");
    let served = Arc::new(Mutex::new((Signer::jwks(&[&Signer::es256("first")]), 0)));
    let serving = Arc::clone(&served);
    let (address, _serving) = serve(move |_| {
        let mut served = serving.lock().expect("no panic");
        served.1 += 1;
        ok(&served.0)
    })
    .await;
    let snapshot = snapshot(&format!("jwksUri = \"http://{address}/keys\""));
    let (keeper, _changed) = keeper(&snapshot, scratch.path());
    let slot = slot(&snapshot);
    let _running = tokio::spawn(keeper.run());
    until("keys come", || ids(&slot) == ["first"]).await;
    served.lock().expect("no panic").0 = Signer::jwks(&[&Signer::es256("second")]);
    let begun = Instant::now();
    (0..1000).for_each(|_| slot.ask());
    until("newer keys come", || ids(&slot) == ["second"]).await;
    assert!(begun.elapsed() < REFRESH / 2, "it was brought forward");
    assert_eq!(served.lock().expect("no panic").1, 2, "a thousand tokens are one question");
}

#[test]
fn failures_are_asked_again_with_patience() {
    let mut known = Known::new();
    for failures in 0..40 {
        known.failed();
        let patience = FIRST_RETRY.saturating_mul(1 << failures.min(10)).min(MOST_PATIENT);
        let wait = known.next - Instant::now();
        assert!(wait <= patience && wait + Duration::from_secs(5) >= patience / 2, "{failures}: {wait:?}");
    }
    known.last = Some(Instant::now());
    let asked = known.due(true);
    assert!(
        asked <= Instant::now() + LEAST_BETWEEN
            && asked + Duration::from_secs(5) >= Instant::now() + LEAST_BETWEEN
    );
    assert_eq!(known.due(false), known.next);
}

#[tokio::test]
async fn files_are_read_and_what_is_no_set_leaves_the_last_one() {
    let scratch = tempfile::tempdir().expect("a directory");
    let file = scratch.path().join("keys.json");
    std::fs::write(&file, Signer::jwks(&[&Signer::es256("first")])).expect("written");
    let snapshot = snapshot(&format!("jwksFile = \"{}\"", file.display()));
    let (mut keeper, _changed) = keeper(&snapshot, &scratch.path().join("jwks"));
    keeper.load_stored();
    let slot = slot(&snapshot);
    assert_eq!(ids(&slot), ["first"], "before the first request");
    for bad in ["", "{}", "{\"keys\":[{\"kty\":\"oct\",\"k\":\"AA\"}]}", &" ".repeat(MAX_SET + 1)] {
        std::fs::write(&file, bad).expect("written");
        let read = read_file(file.clone()).await;
        assert!(read.is_err(), "{bad:.60}");
        keeper.take((slot.source().clone(), read));
        assert_eq!(ids(&slot), ["first"], "{bad:.60}");
    }
    std::fs::remove_file(&file).expect("removed");
    assert!(read_file(file.clone()).await.is_err());
    let made = std::process::Command::new("mkfifo").arg(&file).status().expect("coreutils");
    assert!(made.success());
    for other in [file, scratch.path().to_owned(), "/dev/zero".into()] {
        assert!(read_file(other).await.is_err(), "no pipe is waited for");
    }
}
