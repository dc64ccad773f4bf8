//! Agents that have not asked for all endpoints.

use baremesh_model::health::Health;

use super::super::message::{Complete, Delete, Subscribe, Welcome, upsert_frame};
use super::*;

/// The keys that came before the next marker.
async fn pushed(reader: &mut FrameReader<ReadHalf<DuplexStream>>) -> Vec<String> {
    let mut keys = Vec::new();
    loop {
        match read(reader).await.expect("a message") {
            FromControl::Upsert(upsert) => keys.push(upsert.key),
            FromControl::Delete(Delete { key }) => keys.push(format!("-{key}")),
            FromControl::Complete(_) => return keys,
            _ => {}
        }
    }
}

#[tokio::test]
async fn who_does_not_call_a_service_is_told_where_it_is_and_nothing_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let control = started(directory.path()).await;
    let agent = Agent::start(&control, "h1", Followed::new(None), vec![registration("a.x", "10.0.0.1")]);
    let mut second = Agent::start(&control, "h2", Followed::new(None), vec![registration("b.x", "10.0.0.2")]);
    second.sees(&["Service/x/a", "Service/x/b", "WorkloadEntry/x/a-h1", "WorkloadEntry/x/b-h2"]).await;
    let (mut reader, mut writer) = raw(&control, "h3");
    let hello = Hello { protocol: 1, subscribe: vec!["b.x".into()], ..Hello::default() };
    writer.send(&frame(&hello)).await.expect("sent");
    let all = ["EndpointAddresses/x/a", "Service/x/a", "Service/x/b", "WorkloadEntry/x/b-h2"];
    assert_eq!(pushed(&mut reader).await, all);
    // Its health is nobody's business who does not call it.
    agent
        .registrations
        .send_replace(vec![Registration { health: Health::Unhealthy, ..registration("a.x", "10.0.0.1") }]);
    second.finds(&[("WorkloadEntry/x/a-h1", "unhealthy")]).await;
    second.registrations.send_replace(vec![registration("b.x", "10.0.0.2"), registration("a.x", "10.0.0.3")]);
    assert_eq!(pushed(&mut reader).await, ["EndpointAddresses/x/a"]);
    let told = control.published().into_iter().find(|(key, _)| &**key == "EndpointAddresses/x/a");
    let told = told.map(|(_, text)| text.to_string()).unwrap_or_default();
    assert_eq!(told, r#"{"groups":[{"at":"10.0.0.1 10.0.0.3","ports":"80"}]}"#, "an unhealthy one too");
    writer.send(&frame(&Subscribe { number: 1, subscribe: vec!["a.x".into()] })).await.expect("sent");
    let mut swapped = pushed(&mut reader).await;
    swapped.sort();
    let expected = [
        "-EndpointAddresses/x/a",
        "-WorkloadEntry/x/b-h2",
        "EndpointAddresses/x/b",
        "WorkloadEntry/x/a-h1",
        "WorkloadEntry/x/a-h2",
    ];
    assert_eq!(swapped, expected);
    second.registrations.send_replace(vec![registration("a.x", "10.0.0.3")]);
    let mut gone = pushed(&mut reader).await;
    gone.sort();
    assert_eq!(gone, ["-EndpointAddresses/x/b", "-Service/x/b"]);
}

#[tokio::test]
async fn endpoints_by_hand_are_told_as_registered_ones_are() {
    let directory = tempfile::tempdir().expect("a directory");
    let control = started(directory.path()).await;
    let service = ("Service/x/a", json!({ "port": 80, "addresses": ["240.240.0.9"] }));
    set(&control, &[service, ("WorkloadEntry/x/w", json!({ "app": "a" }))]).await;
    let _agent = Agent::start(&control, "h1", Followed::new(None), vec![registration("a.x", "10.0.0.1")]);
    let told = || control.published().into_iter().find(|(key, _)| &**key == "EndpointAddresses/x/a");
    let both =
        r#"{"groups":[{"at":"10.0.0.1","ports":"80"},{"at":"10.9.9.9","ports":"80","tunnel":"plain"}]}"#;
    until("both are told", || told().filter(|(_, text)| &**text == both)).await;
    set(&control, &[("WorkloadEntry/x/w", json!({ "app": "other" }))]).await;
    let one = r#"{"groups":[{"at":"10.0.0.1","ports":"80"}]}"#;
    until("one is left", || told().filter(|(_, text)| &**text == one)).await;
}

/// From a server of before everything is asked for, and nothing less is put in force.
#[tokio::test]
async fn an_older_server_is_asked_for_all_endpoints_before_anything_is_in_force() {
    let (near, far) = tokio::io::duplex(16 << 10);
    let file = tempfile::tempdir().expect("a directory");
    let followed = Followed::new(Some(file.path().join("state")));
    let mut agent = Agent::asking(tokio::io::split(near), followed, (vec![], Subscription::default()));
    let (reader, writer) = tokio::io::split(far);
    let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
    let welcome = Welcome { protocol: 1, lease_seconds: 3600, ..Default::default() };
    writer.send(&frame(&welcome)).await.expect("sent");
    let mut next = async || {
        let next = tokio::time::timeout(PATIENCE, reader.next()).await.expect("a message").expect("whole");
        FromAgent::read(&next.expect("a message"), &Unknown::default()).expect("a message").expect("known")
    };
    assert!(matches!(next().await, FromAgent::Hello(hello) if hello.subscribe.is_empty()));
    assert!(matches!(next().await, FromAgent::Register(_)));
    let FromAgent::Subscribe(asked) = next().await else { panic!("it asks") };
    assert_eq!((asked.number, asked.subscribe), (1, vec!["*".to_owned()]));
    let digest_of = |keys: &[&str]| {
        let sum = keys.iter().map(|key| Digest::of(key, "1"));
        sum.fold(Digest::default(), Digest::plus).to_string()
    };
    let complete = |keys: &[&str], full: bool, subscribed: u64| {
        frame(&Complete { version: subscribed + 1, digest: digest_of(keys), full, subscribed })
    };
    writer.send(&upsert_frame("Service/x/a", "1")).await.expect("sent");
    writer.send(&complete(&["Service/x/a"], true, 0)).await.expect("sent");
    writer.send(&upsert_frame("WorkloadEntry/x/w", "1")).await.expect("sent");
    writer.send(&complete(&["Service/x/a", "WorkloadEntry/x/w"], false, 1)).await.expect("sent");
    assert!(matches!(next().await, FromAgent::Ack(ack) if ack.version == 2), "not of the first");
    agent.sees(&["Service/x/a", "WorkloadEntry/x/w"]).await;
}
