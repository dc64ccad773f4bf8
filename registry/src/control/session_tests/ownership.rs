use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

const A_H1: [&str; 2] = ["Service/x/a", "WorkloadEntry/x/a-h1"];

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn at(service: &str, addresses: &[&str]) -> Registration {
    let port = if service == "a.x" { 80 } else { 81 };
    let raw = json!({ "service": service, "ports": [{ "port": port }], "addresses": addresses });
    Registration::read(&raw).expect("a registration")
}

fn agent(control: &Control, host: &str, from: &str, own: Vec<Registration>) -> Agent {
    Agent::over(connect_from(control, host, from), Followed::new(None), own)
}

async fn answered(agent: &mut Agent, holds: impl Fn(&[super::super::message::Outcome]) -> bool) {
    let waiting = agent.link.wait_for(|link| link.registrations.as_deref().is_some_and(&holds));
    let waited = tokio::time::timeout(PATIENCE, waiting).await.map(|link| link.is_ok());
    assert_eq!(waited, Ok(true), "{:?}", agent.link.borrow().registrations);
}

/// The addresses of an endpoint as stored.
fn addresses(control: &Control, host: &str, service: &str) -> Vec<String> {
    let core = control.0.core();
    let entry = core.catalog.hosts().get(&label(host));
    let registered = entry.and_then(|entry| entry.registrations.get(&key(service)));
    let addresses = registered.into_iter().flat_map(|known| &known.registration.addresses);
    addresses.map(ToString::to_string).collect()
}

#[tokio::test]
async fn a_host_is_at_the_addresses_that_it_speaks_from_and_at_no_other() {
    let directory = tempfile::tempdir().expect("a directory");
    let control = started(directory.path()).await;
    let own = vec![at("a.x", &["10.66.0.1", "10.66.0.2"]), at("b.x", &["10.66.0.2"])];
    let mut h1 = agent(&control, "h1", "10.66.0.1", own.clone());
    h1.sees(&A_H1).await;
    answered(&mut h1, |results| {
        let reasons = [results[0].without.as_deref(), results[1].refused.as_deref()];
        reasons
            .iter()
            .all(|reason| reason.is_some_and(|r| r.contains("10.66.0.2") && r.contains("HostGrant")))
    })
    .await;
    assert_eq!(addresses(&control, "h1", "a.x"), ["10.66.0.1"]);
    assert_eq!(status(&control, "h1").expect("known").refused.len(), 2, "the operator sees both");
    // Whom the address is of says so, and is believed, whoever was first.
    let mut h2 = agent(&control, "h2", "10.66.0.2", vec![at("b.x", &["10.66.0.2"])]);
    h2.sees(&["Service/x/a", "Service/x/b", "WorkloadEntry/x/a-h1", "WorkloadEntry/x/b-h2"]).await;
    h1.registrations.send_replace(own[..1].to_vec());
    answered(&mut h1, |results| results[0].without.as_deref().is_some_and(|r| r.contains("of host h2")))
        .await;
}

#[tokio::test]
async fn a_host_with_two_addresses_shows_the_other_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let control = started(directory.path()).await;
    let both = vec![address("10.66.0.1"), address("fd00::1")];
    let wanted = |more: &str| [both.clone(), vec![address(more)]].concat();
    let unknown = control.show(label("h1"), vec![both[0]], wanted("10.66.0.9")).await.expect("answered");
    assert_eq!(unknown, [address("10.66.0.9"), both[1]]);
    let unknown = control.show(label("h1"), vec![both[1]], wanted("10.0.0.9")).await.expect("answered");
    assert!(unknown.is_empty(), "what is granted need not be shown");
    let mut h1 = agent(&control, "h1", "10.66.0.1", vec![at("a.x", &["10.66.0.1", "fd00::1"])]);
    h1.sees(&A_H1).await;
    assert_eq!(addresses(&control, "h1", "a.x"), ["10.66.0.1", "fd00::1"]);
    // It stays so over a restart, in which nothing is known of who spoke from where.
    h1.killed().await;
    drop(control);
    let control = started(directory.path()).await;
    set(&control, &[("Policy/x/p", json!(1))]).await;
    assert_eq!(addresses(&control, "h1", "a.x"), ["10.66.0.1", "fd00::1"]);
}

#[tokio::test]
async fn who_speaks_from_an_address_takes_it_from_who_does_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let control = started(directory.path()).await;
    // Granted to it, as a wide grant does.
    let own = vec![at("a.x", &["10.0.0.7", "10.66.0.1"]), at("b.x", &["10.0.0.7"])];
    let mut h1 = agent(&control, "h1", "10.66.0.1", own.clone());
    h1.sees(&["Service/x/a", "Service/x/b", "WorkloadEntry/x/a-h1", "WorkloadEntry/x/b-h1"]).await;
    // The host that is there has registered nothing, and need not.
    let mut h2 = agent(&control, "h2", "10.0.0.7", vec![]);
    h2.sees(&A_H1).await;
    assert_eq!(addresses(&control, "h1", "a.x"), ["10.66.0.1"]);
    let (_, ended) = h1.ends().await;
    let ended = ended.expect_err("refused").to_string();
    assert!(ended.contains("register anew"), "{ended}");
    let mut h1 = agent(&control, "h1", "10.66.0.1", own);
    answered(&mut h1, |results| {
        let reasons = [results[0].without.as_deref(), results[1].refused.as_deref()];
        reasons.iter().all(|reason| reason.is_some_and(|reason| reason.contains("an address of host h2")))
    })
    .await;
    // Two that speak from one address are behind one gateway, and do not take it from each other.
    let _h3 = agent(&control, "h3", "10.66.0.1", vec![]);
    until("it is connected", || status(&control, "h3").filter(|status| status.connected)).await;
    assert_eq!(addresses(&control, "h1", "a.x"), ["10.66.0.1"]);
    assert!(status(&control, "h1").expect("known").connected);
}

#[tokio::test]
async fn a_grant_that_is_taken_back_takes_the_address_with_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let granted = Arc::new(AtomicBool::new(true));
    let asked = granted.clone();
    let settings = Settings { addresses: Arc::new(move |_, _| asked.load(Ordering::Relaxed)), ..settings() };
    let store = Store::open(&directory.path().join("control.db")).expect("a store");
    let control = Control::open(store, settings).await.expect("a control server");
    set(&control, &[]).await;
    let own = vec![at("a.x", &["10.66.0.1", "10.66.0.2"])];
    let mut h1 = agent(&control, "h1", "10.66.0.1", own.clone());
    h1.sees(&A_H1).await;
    answered(&mut h1, |results| results[0].fault().is_none()).await;
    assert_eq!(addresses(&control, "h1", "a.x"), ["10.66.0.1", "10.66.0.2"]);
    granted.store(false, Ordering::Relaxed);
    set(&control, &[]).await;
    assert_eq!(addresses(&control, "h1", "a.x"), ["10.66.0.1"]);
    assert!(h1.ends().await.1.is_err(), "its agent is to learn of it");
    let mut h1 = agent(&control, "h1", "10.66.0.1", own);
    answered(&mut h1, |results| results[0].without.is_some()).await;
    h1.sees(&A_H1).await;
}
