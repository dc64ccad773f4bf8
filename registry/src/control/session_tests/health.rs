//! What checks of hosts have found.

use baremesh_model::health::Health;

use super::super::message::{self, Finding};
use super::*;

fn unwell(service: &str, address: &str) -> Registration {
    Registration { health: Health::Unhealthy, ..registration(service, address) }
}

impl Agent {
    /// Waits until the entries have this health.
    pub(super) async fn finds(&mut self, entries: &[(&str, &str)]) {
        let same = |(_, values): &(u64, BTreeMap<String, Value>)| {
            entries
                .iter()
                .all(|(key, health)| values.get(*key).is_some_and(|value| value["health"] == *health))
        };
        let waited =
            tokio::time::timeout(PATIENCE, self.published.wait_for(same)).await.map(|seen| seen.is_ok());
        assert_eq!(waited, Ok(true), "{entries:?}, but {:?}", self.published.borrow().1);
    }
}

const A: &str = "WorkloadEntry/x/a-h1";
const B: &str = "WorkloadEntry/x/b-h1";

#[tokio::test]
async fn health_is_told_by_itself_and_stays_known_over_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let control = started(directory.path()).await;
    let mut caller = Agent::start(&control, "h2", Followed::new(None), vec![]);
    let list = |a: Registration| vec![a, registration("b.x", "10.0.0.2")];
    let agent = Agent::start(&control, "h1", Followed::new(None), list(unwell("a.x", "10.0.0.1")));
    // One that is registered as unhealthy never appears as anything else.
    caller.finds(&[(A, "unhealthy"), (B, "healthy")]).await;
    let (mut reader, mut writer) = raw(&control, "h3");
    let hello = Hello { protocol: 1, subscribe: vec!["*".into()], ..Hello::default() };
    writer.send(&frame(&hello)).await.expect("sent");
    read_complete(&mut reader).await;
    agent.registrations.send_replace(list(registration("a.x", "10.0.0.1")));
    caller.finds(&[(A, "healthy"), (B, "healthy")]).await;
    assert_eq!(read_complete(&mut reader).await.0, 1, "what has changed, and nothing else");
    agent.registrations.send_replace(list(unwell("a.x", "10.0.0.1")));
    caller.finds(&[(A, "unhealthy"), (B, "healthy")]).await;
    let health = status(&control, "h1").map(|host| host.registrations[0].health);
    assert_eq!(health, Some(Health::Unhealthy));
    // Nothing is written or pushed where nothing changes.
    let version = *control.versions().borrow();
    agent.registrations.send_replace(list(unwell("a.x", "10.0.0.1")));
    // Something else has changed too: the whole list is registered. These tests' entries do not show weights.
    let heavier = Registration { weight: 7, ..registration("b.x", "10.0.0.2") };
    agent.registrations.send_replace(vec![registration("a.x", "10.0.0.1"), heavier]);
    caller.finds(&[(A, "healthy")]).await;
    assert_eq!(*control.versions().borrow(), version.map(|version| version + 1), "one entry, once");
    agent.registrations.send_replace(list(unwell("a.x", "10.0.0.1")));
    caller.finds(&[(A, "unhealthy")]).await;
    agent.killed().await;
    caller.killed().await;
    drop((control, reader, writer));
    let control = started(directory.path()).await;
    let mut caller = Agent::start(&control, "h2", Followed::new(None), vec![]);
    caller.finds(&[(A, "unhealthy"), (B, "healthy")]).await;
}

#[tokio::test]
async fn what_is_said_of_others_or_not_understood_changes_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let control = started(directory.path()).await;
    let mut agent = Agent::start(&control, "h1", Followed::new(None), vec![registration("a.x", "10.0.0.1")]);
    agent.finds(&[(A, "healthy")]).await;
    let (mut reader, mut writer) = raw(&control, "h2");
    let hello = Hello { protocol: 1, subscribe: vec!["*".into()], ..Hello::default() };
    writer.send(&frame(&hello)).await.expect("sent");
    read_complete(&mut reader).await;
    let own = registration("c.x", "10.0.0.3").written();
    let register = Register { number: 1, registrations: vec![own] };
    writer.send(&frame(&register)).await.expect("sent");
    let say = |service: &str, health: &str| Finding { service: service.into(), health: health.into() };
    let changes = vec![
        // Another host's, nobody's, and words of other versions.
        say("a.x", "unhealthy"),
        say("none.x", "unhealthy"),
        say("", "unhealthy"),
        say("c.x", "tired"),
        say("c.x", ""),
    ];
    writer.send(&frame(&message::Health { changes })).await.expect("sent");
    // In its turn, so that what came before it has been taken.
    writer.send(&frame(&message::Health { changes: vec![say("c.x", "unhealthy")] })).await.expect("sent");
    agent.finds(&[("WorkloadEntry/x/c-h2", "unhealthy"), (A, "healthy")]).await;
}

/// A server of before there were checks takes what it knows, and is not told what it does not.
#[tokio::test]
async fn an_older_server_is_not_told_of_health_alone() {
    let (near, far) = tokio::io::duplex(16 << 10);
    let agent = Agent::over(tokio::io::split(near), Followed::new(None), vec![unwell("a.x", "10.0.0.1")]);
    let (reader, writer) = tokio::io::split(far);
    let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
    let welcome = message::Welcome { protocol: 1, lease_seconds: 3600, ..Default::default() };
    writer.send(&frame(&welcome)).await.expect("sent");
    let mut next = async || {
        let next = tokio::time::timeout(PATIENCE, reader.next()).await.expect("a message").expect("whole");
        FromAgent::read(&next.expect("a message"), &Unknown::default()).expect("a message")
    };
    assert!(matches!(next().await, Some(FromAgent::Hello(_))));
    let Some(FromAgent::Register(Register { registrations, .. })) = next().await else { panic!("a list") };
    assert_eq!(registrations[0]["health"], "unhealthy");
    agent.registrations.send_replace(vec![registration("a.x", "10.0.0.1")]);
    agent.registrations.send_replace(vec![registration("a.x", "10.0.0.1"), registration("b.x", "10.0.0.2")]);
    let Some(FromAgent::Register(Register { registrations, .. })) = next().await else { panic!("a list") };
    assert_eq!(registrations.len(), 2);
    assert!(registrations[0].get("health").is_none(), "healthy is what older peers write too");
}
