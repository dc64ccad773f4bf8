//! Both sides together, over in-memory connections.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use baremesh_model::identity::Identity;
use baremesh_model::mesh_config::MeshConfig;
use baremesh_model::name::{Key, Label};
use baremesh_model::service::{Service, ServicePort};
use baremesh_model::workload::{Locality, Tunnel, Workload};
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::client::{Ended, FollowError, Local, follow};
use super::codec::{FrameReader, FrameWriter, MAX_MESSAGE};
use super::digest::Digest;
use super::followed::{Entries, Followed, SAVE_GAP};
use super::memory::HostStatus;
use super::message::{Complete, FromAgent, FromControl, Hello, Register, Renew, Unknown, frame};
use super::registration::Registration;
use super::server::{Control, ControlError, Format, Settings};
use super::store::Store;
use super::subscription::{Subscription, service_key};

const LEASE: Duration = Duration::from_secs(15);
/// Long for a machine under load; nothing waits that long unless it failed.
const PATIENCE: Duration = Duration::from_secs(60);

fn label(text: &str) -> Label {
    Label::new(text).expect("a label")
}

fn key(text: &str) -> Key {
    service_key(text).expect("a service")
}

fn read_service(key: &Key, value: &Value) -> Result<Service, String> {
    let port = value["port"].as_u64().and_then(|port| u16::try_from(port).ok()?.try_into().ok());
    let port = port.ok_or("no port")?;
    let ports = vec![ServicePort { port, target_port: port, protocol: Default::default(), name: None }];
    let addresses = value["addresses"].as_array().into_iter().flatten();
    let addresses = addresses.filter_map(|address| address.as_str()?.parse().ok()).collect();
    let service_account = key.name.clone();
    Ok(Service { key: key.clone(), ports, selector: None, service_account, addresses, federated: None })
}

fn write_service(service: &Service) -> Value {
    json!({ "port": service.ports[0].port, "addresses": service.addresses })
}

fn read_workload(key: &Key, value: &Value) -> Result<Workload, String> {
    let app = value["app"].as_str().ok_or("no app")?;
    Ok(Workload {
        key: key.clone(),
        address: "10.9.9.9".parse().map_err(|_| "no address")?,
        other_addresses: vec![],
        service: None,
        host: None,
        ports: BTreeMap::new(),
        labels: [("app".into(), app.into())].into(),
        network: None,
        locality: Locality::default(),
        weight: 1,
        service_account: None,
        tunnel: Tunnel::Plain,
        health: Default::default(),
    })
}

fn write_workload(workload: &Workload) -> Value {
    let host = workload.host.as_ref().map(Label::as_str);
    json!({ "address": workload.address, "host": host, "health": workload.health.word() })
}

fn settings() -> Settings {
    Settings {
        lease: LEASE,
        version: "1.2.3".to_owned(),
        format: Format {
            read_service,
            write_service,
            read_workload,
            write_workload,
            read_service_entry: |_, _| Err("these tests have none".to_owned()),
            write_service_entry: |_| Value::Null,
        },
        allowed: Arc::new(|host: &Label, identity: &Identity| {
            host.as_str() != "guest" || identity.service_account().as_str() == "guestbook"
        }),
        // The hosts of these tests are all at one place, and say that they are at 10.0.0.0/24.
        addresses: Arc::new(|_, address| address.to_string().starts_with("10.0.0.")),
    }
}

async fn open(directory: &Path) -> Control {
    let store = Store::open(&directory.join("control.db")).expect("a store");
    Control::open(store, settings()).await.expect("a control server")
}

async fn started(directory: &Path) -> Control {
    let control = open(directory).await;
    control.set_resources(MeshConfig::default(), vec![]).await.expect("no resources");
    control
}

fn registration(service: &str, address: &str) -> Registration {
    let raw = json!({ "service": service, "ports": [{ "port": 80 }], "addresses": [address] });
    Registration::read(&raw).expect("a registration")
}

/// Whose address it is.
mod ownership;
/// What checks have found.
mod health;
/// Many agents at once.
mod crowd;
/// Who has not asked for all endpoints.
mod subscriptions;

type Near = (ReadHalf<DuplexStream>, WriteHalf<DuplexStream>);

/// A connection to the control server, as `host`.
fn connect(control: &Control, host: &str) -> Near {
    connect_from(control, host, "10.1.0.1")
}

fn connect_from(control: &Control, host: &str, from: &str) -> Near {
    let (near, far) = tokio::io::duplex(16 << 10);
    let (control, host, (reader, writer)) = (control.clone(), label(host), tokio::io::split(far));
    let from = vec![from.parse().expect("an address")];
    tokio::spawn(async move { control.connect(host, from, reader, writer).await });
    tokio::io::split(near)
}

/// An agent that follows one connection.
struct Agent {
    published: watch::Receiver<(u64, BTreeMap<String, Value>)>,
    registrations: watch::Sender<Vec<Registration>>,
    subscription: watch::Sender<Subscription>,
    shutdown: watch::Sender<bool>,
    link: watch::Receiver<super::followed::Link>,
    task: JoinHandle<(Followed, Result<Ended, FollowError>)>,
}

impl Agent {
    /// Refuses every state that holds the key `refused`.
    fn start(control: &Control, host: &str, followed: Followed, registrations: Vec<Registration>) -> Self {
        Self::over(connect(control, host), followed, registrations)
    }

    fn over(near: Near, followed: Followed, registered: Vec<Registration>) -> Self {
        Self::asking(near, followed, (registered, Subscription::All))
    }

    fn asking(
        (reader, writer): Near,
        mut followed: Followed,
        (registered, asked): (Vec<Registration>, Subscription),
    ) -> Self {
        let (registrations, own) = watch::channel(registered);
        let (subscription, wanted) = watch::channel(asked);
        let (shutdown, told) = watch::channel(false);
        let flushed = mpsc::channel(1).1;
        let (published, seen) = watch::channel((0, BTreeMap::new()));
        let link = followed.link();
        let task = tokio::spawn(async move {
            let mut local = Local {
                agent_version: "4.5.6".to_owned(),
                registrations: own,
                subscription: wanted,
                shutdown: told,
                flush: flushed,
            };
            let publish = |entries: &Entries, version: u64| {
                if entries.contains_key("Policy/x/refused") {
                    return Err("it is refused".to_owned());
                }
                let values = entries.iter().map(|(key, entry)| (key.clone(), entry.value())).collect();
                published.send_replace((version, values));
                Ok(())
            };
            let ended = follow(reader, writer, &mut followed, &mut local, publish).await;
            (followed, ended)
        });
        Self { published: seen, registrations, subscription, shutdown, link, task }
    }

    /// Waits until exactly these keys are in force.
    async fn sees(&mut self, keys: &[&str]) {
        let keys: BTreeSet<&str> = keys.iter().copied().collect();
        let same = |values: &BTreeMap<String, Value>| {
            values.keys().map(String::as_str).collect::<BTreeSet<_>>() == keys
        };
        let waiting = self.published.wait_for(|(_, values)| same(values));
        let waited = tokio::time::timeout(PATIENCE, waiting).await.map(|seen| seen.is_ok());
        assert_eq!(waited, Ok(true), "{keys:?}, but {:?}", self.published.borrow().1.keys());
    }

    async fn ends(self) -> (Followed, Result<Ended, FollowError>) {
        tokio::time::timeout(PATIENCE, self.task).await.expect("it ends").expect("no panic")
    }

    /// Ends without a word, as a killed host does.
    async fn killed(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

async fn until<T>(what: &str, mut holds: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = holds() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn status(control: &Control, host: &str) -> Option<HostStatus> {
    control.status().into_iter().find(|status| status.host.as_str() == host)
}

async fn set(control: &Control, resources: &[(&str, Value)]) {
    let resources = resources.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    control.set_resources(MeshConfig::default(), resources).await.expect("resources");
}

#[tokio::test]
async fn pushes_everything_then_differences() {
    let directory = tempfile::tempdir().expect("a directory");
    let control = started(directory.path()).await;
    set(&control, &[("Policy/x/p", json!(1)), ("MeshConfig/x/mesh", json!({ "name": "m" }))]).await;
    let mut a = Agent::start(&control, "h1", Followed::new(None), vec![registration("a.x", "10.0.0.1")]);
    let all = ["MeshConfig/x/mesh", "Policy/x/p", "Service/x/a", "WorkloadEntry/x/a-h1"];
    a.sees(&all).await;
    set(&control, &[("Policy/x/q", json!(2))]).await;
    a.sees(&["Policy/x/q", "Service/x/a", "WorkloadEntry/x/a-h1"]).await;
    a.registrations.send_replace(vec![]);
    a.sees(&["Policy/x/q"]).await;
    let newest = control.versions().borrow().expect("a version");
    let acked =
        until("it is acked", || status(&control, "h1").filter(|s| s.acked == newest && s.sent == newest))
            .await;
    assert_eq!((acked.connected, acked.agent_version.as_str(), acked.nack), (true, "4.5.6", None));
    assert_eq!(a.link.borrow().server_version, "1.2.3");
}

/// In time that passes while nobody has anything to do.
#[tokio::test(start_paused = true)]
async fn policies_that_follow_each_other_are_on_the_disk_long_before_endpoints_are() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("state");
    let control = started(directory.path()).await;
    let agent = Agent::start(&control, "h1", Followed::new(Some(file.clone())), vec![]);
    let is_kept = async |key: &str| {
        let began = tokio::time::Instant::now();
        until(key, || Followed::load(&file).ok()?.entries().contains_key(key).then_some(())).await;
        began.elapsed()
    };
    set(&control, &[("Policy/x/first", json!(1))]).await;
    is_kept("Policy/x/first").await;
    set(&control, &[("Policy/x/first", json!(1)), ("Policy/x/second", json!(2))]).await;
    let policy = is_kept("Policy/x/second").await;
    agent.registrations.send_replace(vec![registration("a.x", "10.0.0.1")]);
    is_kept("Service/x/a").await;
    agent.registrations.send_replace(vec![registration("a.x", "10.0.0.2")]);
    let began = tokio::time::Instant::now();
    until("another address", || {
        let kept = Followed::load(&file).ok()?;
        let entry = kept.entries().get("WorkloadEntry/x/a-h1")?;
        entry.value().to_string().contains("10.0.0.2").then_some(())
    })
    .await;
    let endpoint = began.elapsed();
    assert!(policy * 4 < endpoint && endpoint <= SAVE_GAP * 2, "{policy:?}, {endpoint:?}");
}

#[tokio::test]
async fn sends_endpoints_to_those_that_asked() {
    let directory = tempfile::tempdir().expect("a directory");
    let control = started(directory.path()).await;
    let both = vec![registration("a.x", "10.0.0.1"), registration("b.x", "10.0.0.2")];
    let mut all = Agent::start(&control, "h1", Followed::new(None), both);
    let services = ["Service/x/a", "Service/x/b"];
    all.sees(&[services[0], services[1], "WorkloadEntry/x/a-h1", "WorkloadEntry/x/b-h1"]).await;
    let mut some = Agent::start(&control, "h2", Followed::new(None), vec![]);
    let elsewhere = ["EndpointAddresses/x/a", "EndpointAddresses/x/b"];
    some.subscription.send_replace(Subscription::Services([key("b.x")].into()));
    some.sees(&[services[0], services[1], elsewhere[0], "WorkloadEntry/x/b-h1"]).await;
    some.subscription.send_replace(Subscription::Services([key("a.x"), key("b.x")].into()));
    some.sees(&[services[0], services[1], "WorkloadEntry/x/a-h1", "WorkloadEntry/x/b-h1"]).await;
    some.subscription.send_replace(Subscription::default());
    some.sees(&[services[0], services[1], elsewhere[0], elsewhere[1]]).await;
    all.registrations.send_replace(vec![registration("b.x", "10.0.0.2")]);
    some.sees(&[services[1], elsewhere[1]]).await;
}

#[tokio::test]
async fn goes_on_where_the_last_connection_ended() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("state");
    let control = started(directory.path()).await;
    let mut resources: Vec<_> = (0..200).map(|n| (format!("Policy/x/p{n}"), json!(n))).collect();
    control.set_resources(MeshConfig::default(), resources.clone()).await.expect("resources");
    let mut agent = Agent::start(&control, "h1", Followed::new(Some(file.clone())), vec![]);
    until("all is there", || (agent.published.borrow_and_update().1.len() == 200).then_some(())).await;
    agent.shutdown.send_replace(true);
    assert_eq!(agent.ends().await.1.expect("in order"), Ended::Goodbye);
    let followed = Followed::load(&file).expect("a state");
    assert_eq!(followed.entries().len(), 200);
    let hello = |resume| Hello { protocol: 1, resume, subscribe: vec!["*".into()], ..Hello::default() };
    let from_file = hello(followed.resume(&Subscription::All));
    let pushed = async |control: &Control, hello: &Hello| {
        let (mut reader, mut writer) = raw(control, "h1");
        writer.send(&frame(hello)).await.expect("sent");
        let (upserts, complete) = read_complete(&mut reader).await;
        (upserts, complete.full)
    };
    assert_eq!(pushed(&control, &from_file).await, (0, false), "nothing is new");
    resources[7].1 = json!("other");
    control.set_resources(MeshConfig::default(), resources.clone()).await.expect("resources");
    assert_eq!(pushed(&control, &from_file).await, (1, false), "one entry is");
    assert_eq!(pushed(&control, &hello(None)).await, (200, true));

    // Versions of another run say nothing; the digest does.
    drop(control);
    let control = open(directory.path()).await;
    control.set_resources(MeshConfig::default(), resources.clone()).await.expect("resources");
    assert_eq!(pushed(&control, &from_file).await, (200, true), "it cannot be told what is new");
    resources[7].1 = json!(7);
    control.set_resources(MeshConfig::default(), resources).await.expect("resources");
    assert_eq!(pushed(&control, &from_file).await, (0, false), "the same as in the file");
    let mut agent = Agent::start(&control, "h1", followed, vec![]);
    until("it is in force", || (agent.published.borrow_and_update().1.len() == 200).then_some(())).await;
}

/// A connection on which a test writes the frames.
fn raw(
    control: &Control,
    host: &str,
) -> (FrameReader<ReadHalf<DuplexStream>>, FrameWriter<WriteHalf<DuplexStream>>) {
    let (reader, writer) = connect(control, host);
    (FrameReader::new(reader), FrameWriter::new(writer))
}

async fn read(reader: &mut FrameReader<ReadHalf<DuplexStream>>) -> Option<FromControl> {
    let next = tokio::time::timeout(PATIENCE, reader.next()).await.expect("an answer").expect("whole")?;
    FromControl::read(&next, &Unknown::default()).expect("a message")
}

/// How many upserts came before the next marker, and the marker.
async fn read_complete(reader: &mut FrameReader<ReadHalf<DuplexStream>>) -> (usize, Complete) {
    let mut upserts = 0;
    loop {
        match read(reader).await.expect("a message") {
            FromControl::Upsert(_) => upserts += 1,
            FromControl::Complete(complete) => return (upserts, complete),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_refused_state_leaves_the_former_one_in_force() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("state");
    let control = started(directory.path()).await;
    set(&control, &[("Policy/x/good", json!(1))]).await;
    let mut agent = Agent::start(&control, "h1", Followed::new(Some(file.clone())), vec![]);
    agent.sees(&["Policy/x/good"]).await;
    set(&control, &[("Policy/x/refused", json!(1))]).await;
    let nack = until("a nack", || status(&control, "h1")?.nack).await;
    assert_eq!(nack.reason, "it is refused");
    agent.sees(&["Policy/x/good"]).await;
    assert_eq!(agent.link.borrow().nack.as_deref(), Some("it is refused"));
    agent.shutdown.send_replace(true);
    let (followed, _) = agent.ends().await;
    assert!(Followed::load(&file).expect("a state").entries().contains_key("Policy/x/good"));
    // The same again after reconnecting, until it is put right.
    let mut agent = Agent::start(&control, "h1", followed, vec![]);
    until("a nack again", || status(&control, "h1")?.nack).await;
    set(&control, &[("Policy/x/good", json!(2))]).await;
    agent.sees(&["Policy/x/good"]).await;
    until("an ack", || status(&control, "h1").filter(|status| status.nack.is_none())).await;
}

#[tokio::test]
async fn a_killed_hosts_endpoints_go_and_return_with_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let control = started(directory.path()).await;
    let mut watcher = Agent::start(&control, "h1", Followed::new(None), vec![]);
    let own = || vec![registration("a.x", "10.0.0.2")];
    let killed = Agent::start(&control, "h2", Followed::new(None), own());
    watcher.sees(&["Service/x/a", "WorkloadEntry/x/a-h2"]).await;
    killed.killed().await;
    control.sweep(Instant::now()).await.expect("swept");
    assert!(status(&control, "h2").expect("known").live, "its lease runs");
    control.sweep(Instant::now() + LEASE + LEASE / 3).await.expect("swept");
    watcher.sees(&["Service/x/a"]).await;
    let gone = status(&control, "h2").expect("known");
    assert_eq!((gone.live, gone.registrations.len(), gone.lease), (false, 1, None));
    let _returned = Agent::start(&control, "h2", Followed::new(None), own());
    watcher.sees(&["Service/x/a", "WorkloadEntry/x/a-h2"]).await;
}

#[tokio::test]
async fn a_session_that_outlived_its_lease_brings_its_endpoints_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let control = started(directory.path()).await;
    let (mut reader, mut writer) = raw(&control, "h1");
    writer.send(&frame(&Hello { protocol: 1, ..Hello::default() })).await.expect("sent");
    let registrations = vec![registration("a.x", "10.0.0.1").written()];
    writer.send(&frame(&Register { number: 1, registrations })).await.expect("sent");
    until("it is there", || status(&control, "h1").filter(|status| status.live)).await;
    control.sweep(Instant::now() + LEASE * 2).await.expect("swept");
    assert!(!status(&control, "h1").expect("known").live);
    writer.send(&frame(&Renew {})).await.expect("sent");
    while !matches!(read(&mut reader).await, Some(FromControl::Renewed(_))) {}
    assert!(status(&control, "h1").expect("known").live);
}

#[tokio::test]
async fn many_silent_hosts_are_an_alarm_and_keep_their_endpoints() {
    let directory = tempfile::tempdir().expect("a directory");
    let control = started(directory.path()).await;
    for n in 1..=5 {
        let own = vec![registration(&format!("s{n}.x"), &format!("10.0.0.{n}"))];
        let agent = Agent::start(&control, &format!("h{n}"), Followed::new(None), own);
        until("it is there", || status(&control, &format!("h{n}")).filter(|status| status.live)).await;
        agent.killed().await;
    }
    let late = Instant::now() + LEASE * 2;
    control.sweep(late).await.expect("swept");
    let alarm = control.alarm().expect("an alarm");
    assert_eq!((alarm.silent, alarm.hosts), (5, 5));
    assert!(control.status().iter().all(|status| status.live));
    assert_eq!(control.clear_alarm().await.expect("cleared"), [], "no lease has run out yet");
    control.sweep(late).await.expect("swept");
    assert!(control.alarm().is_some(), "they are still silent");
}

#[tokio::test]
async fn a_restart_gives_every_host_a_full_lease() {
    let directory = tempfile::tempdir().expect("a directory");
    let control = started(directory.path()).await;
    for (n, goodbye) in [(1, false), (2, false), (3, true)] {
        let host = format!("h{n}");
        let own = vec![registration(&format!("s{n}.x"), &format!("10.0.0.{n}"))];
        let agent = Agent::start(&control, &host, Followed::new(None), own);
        until("it is there", || status(&control, &host).filter(|status| status.live)).await;
        if goodbye {
            agent.shutdown.send_replace(true);
            assert_eq!(agent.ends().await.1.expect("in order"), Ended::Goodbye);
        } else {
            agent.killed().await;
        }
    }
    drop(control);
    let control = started(directory.path()).await;
    let live: Vec<_> = control.status().into_iter().map(|s| (s.live, s.lease.is_some())).collect();
    assert_eq!(live, [(true, true), (true, true), (false, false)], "who said goodbye stays away");
    control.sweep(Instant::now() + LEASE / 2).await.expect("swept");
    assert_eq!(control.status().iter().filter(|status| status.live).count(), 2);
    control.sweep(Instant::now() + LEASE * 2).await.expect("swept");
    assert_eq!(control.status().iter().filter(|status| status.live).count(), 0);
}

#[tokio::test]
async fn a_goodbye_takes_the_endpoints_at_once_and_leaves_the_service() {
    let directory = tempfile::tempdir().expect("a directory");
    let control = started(directory.path()).await;
    let mut watcher = Agent::start(&control, "h1", Followed::new(None), vec![]);
    let leaving = Agent::start(&control, "h2", Followed::new(None), vec![registration("a.x", "10.0.0.2")]);
    watcher.sees(&["Service/x/a", "WorkloadEntry/x/a-h2"]).await;
    let address = watcher.published.borrow().1["Service/x/a"].clone();
    leaving.shutdown.send_replace(true);
    assert_eq!(leaving.ends().await.1.expect("in order"), Ended::Goodbye);
    watcher.sees(&["Service/x/a"]).await;
    assert_eq!(watcher.published.borrow().1["Service/x/a"], address);
    assert!(control.deregister(label("h2"), key("a.x")).await.expect("stored"));
    watcher.sees(&[]).await;
    assert!(!control.deregister(label("h2"), key("a.x")).await.expect("nothing to store"));
}

#[tokio::test]
async fn the_newer_session_of_a_host_wins() {
    let directory = tempfile::tempdir().expect("a directory");
    let control = started(directory.path()).await;
    let mut old = Agent::start(&control, "h1", Followed::new(None), vec![registration("a.x", "10.0.0.1")]);
    old.sees(&["Service/x/a", "WorkloadEntry/x/a-h1"]).await;
    let mut new = Agent::start(&control, "h1", Followed::new(None), vec![registration("b.x", "10.0.0.1")]);
    new.sees(&["Service/x/b", "WorkloadEntry/x/b-h1"]).await;
    let (_, ended) = old.ends().await;
    let ended = ended.expect_err("refused").to_string();
    assert!(ended.contains("newer session"), "{ended}");
    assert!(status(&control, "h1").expect("known").connected, "the old one's end is not the new one's");
}

#[tokio::test]
async fn tells_the_agent_and_the_operator_what_was_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let control = started(directory.path()).await;
    let own = vec![registration("a.x", "10.0.0.1"), registration("guestbook.x", "10.0.0.1")];
    let mut agent = Agent::start(&control, "guest", Followed::new(None), own);
    agent.sees(&["Service/x/guestbook", "WorkloadEntry/x/guestbook-guest"]).await;
    let waiting = agent.link.wait_for(|link| link.registrations.is_some());
    let link = tokio::time::timeout(PATIENCE, waiting).await.expect("answered").expect("followed").clone();
    let refused = link.registrations.expect("answered").remove(0);
    assert!(refused.refused.as_deref().is_some_and(|reason| reason.contains("may not serve")), "{refused:?}");
    assert_eq!(status(&control, "guest").expect("known").refused, [refused]);
}

#[tokio::test]
async fn ends_sessions_that_speak_something_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let control = started(directory.path()).await;
    let hello = |protocol| frame(&Hello { protocol, ..Hello::default() });
    let framed = |frames: &[&[u8]]| -> Vec<u8> {
        frames.iter().flat_map(|f| [&(f.len() as u32).to_be_bytes()[..], f].concat()).collect()
    };
    for (bytes, reason) in [
        (b"GET /v1/state HTTP/1.1\r\n\r\n".to_vec(), "larger than the limit"),
        (vec![0xff; 100], "larger than the limit"),
        (framed(&[b"{"]), "not a message"),
        (framed(&[&[0; 1000]]), "not a message"),
        (framed(&[&frame(&Renew {})]), "first message must be Hello"),
        (framed(&[&hello(9)]), "speaks protocol 9"),
        (framed(&[&hello(1), &hello(1)]), "first message must be Hello, once"),
        (framed(&[&hello(1), b"[]"]), "not a message"),
        (
            framed(&[&frame(&Hello { protocol: 1, subscribe: vec!["?".into()], ..Hello::default() })]),
            "no service",
        ),
        (
            [framed(&[&hello(1)]), (MAX_MESSAGE as u32 + 1).to_be_bytes().to_vec()].concat(),
            "larger than the limit",
        ),
    ] {
        let (reader, mut writer) = connect(&control, "h1");
        writer.write_all(&bytes).await.expect("written");
        let mut reader = FrameReader::new(reader);
        let refused = loop {
            match read(&mut reader).await {
                Some(FromControl::Refused(refused)) => break refused.reason,
                Some(_) => {}
                None => panic!("it ended without {reason}"),
            }
        };
        assert!(refused.contains(reason), "{refused} should say {reason}");
        until("the session is over", || status(&control, "h1").is_none_or(|s| !s.connected).then_some(()))
            .await;
    }
    assert_eq!(control.counts().failed_sessions, 10);
    // A host that closes in the middle of a message is no more than gone.
    let (_, mut writer) = connect(&control, "h1");
    writer.write_all(&[0, 0]).await.expect("written");
    writer.shutdown().await.expect("closed");
    until("it is counted", || (control.counts().failed_sessions == 11).then_some(())).await;
}

#[tokio::test]
async fn speaks_with_peers_of_other_versions() {
    let directory = tempfile::tempdir().expect("a directory");
    let control = started(directory.path()).await;
    let (mut reader, mut writer) = raw(&control, "h1");
    let newer = json!({ "type": "Hello", "body": { "protocol": 2, "agent_version": "9", "mood": "good" } });
    writer.send(newer.to_string().as_bytes()).await.expect("sent");
    writer.send(br#"{"type":"Rebalance","body":{"to":"h2"}}"#).await.expect("sent");
    read_complete(&mut reader).await;
    until("both are counted", || {
        let counts = control.counts();
        (counts.unknown_messages == 1 && counts.unknown_fields == 1).then_some(())
    })
    .await;

    // A server that is newer, and one that answers no renewals.
    let (near, far) = tokio::io::duplex(1 << 16);
    let mut agent = Agent::over(tokio::io::split(near), Followed::new(None), vec![]);
    let mut server = FrameWriter::new(far);
    for message in [
        r#"{"type":"Welcome","body":{"protocol":2,"epoch":5,"colour":"green"}}"#,
        r#"{"type":"Upsert","body":{"key":"Policy/x/p","value":1,"ttl":3}}"#,
        r#"{"type":"Hint","body":{}}"#,
    ] {
        server.send(message.as_bytes()).await.expect("sent");
    }
    let digest = Digest::of("Policy/x/p", "1").to_string();
    server.send(&frame(&Complete { version: 1, digest, full: true, subscribed: 0 })).await.expect("sent");
    agent.sees(&["Policy/x/p"]).await;
    server.close().await.expect("closed");
    drop(server);
    let (_, ended) = agent.ends().await;
    assert_eq!(ended.ok(), Some(Ended::Closed));
}

#[tokio::test]
async fn agents_refuse_servers_that_speak_something_else() {
    for (message, reason) in [
        (r#"{"type":"Welcome","body":{"protocol":7}}"#, "speaks protocol 7"),
        (r#"{"type":"Complete","body":{}}"#, "was not Welcome"),
        (r#"{"type":"Refused","body":{"reason":"go\naway"}}"#, "ended the session: go away"),
        ("{}", "not a message"),
    ] {
        let (near, far) = tokio::io::duplex(1 << 16);
        let agent = Agent::over(tokio::io::split(near), Followed::new(None), vec![]);
        let mut server = FrameWriter::new(far);
        server.send(message.as_bytes()).await.expect("sent");
        let ended = agent.ends().await.1.expect_err(reason).to_string();
        assert!(ended.contains(reason), "{ended} should say {reason}");
    }
}

#[tokio::test]
async fn the_servers_last_word_is_read_when_writing_fails() {
    let (near, far) = tokio::io::duplex(1 << 16);
    let mut server = FrameWriter::new(far);
    server.send(br#"{"type":"Refused","body":{"reason":"too many hosts"}}"#).await.expect("sent");
    drop(server);
    let ended = Agent::over(tokio::io::split(near), Followed::new(None), vec![]).ends().await.1;
    assert!(matches!(&ended, Err(FollowError::Refused(reason)) if reason == "too many hosts"), "{ended:?}");
}

#[tokio::test]
async fn a_diverged_state_is_not_applied_and_asked_for_anew() {
    let (near, far) = tokio::io::duplex(1 << 16);
    let agent = Agent::over(tokio::io::split(near), Followed::new(None), vec![]);
    let (reader, writer) = tokio::io::split(far);
    let (mut reader, mut server) = (FrameReader::new(reader), FrameWriter::new(writer));
    for message in [
        r#"{"type":"Welcome","body":{"protocol":1,"epoch":5}}"#,
        r#"{"type":"Upsert","body":{"key":"Policy/x/p","value":1}}"#,
        r#"{"type":"Complete","body":{"version":1,"digest":"00","full":true}}"#,
    ] {
        server.send(message.as_bytes()).await.expect("sent");
    }
    let mut last = None;
    while let Some(next) = reader.next().await.expect("whole") {
        last = FromAgent::read(&next, &Unknown::default()).expect("a message");
    }
    assert!(matches!(last, Some(FromAgent::Nack(_))), "{last:?}");
    let published = agent.published.clone();
    let (followed, ended) = agent.ends().await;
    assert!(ended.is_err() && followed.entries().is_empty() && published.borrow().1.is_empty());
    assert_eq!(followed.resume(&Subscription::All), None);
}

#[tokio::test]
async fn a_slow_agent_is_sent_the_newest_state_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let control = started(directory.path()).await;
    let (mut reader, mut writer) = raw(&control, "h1");
    let hello = Hello { protocol: 1, subscribe: vec!["*".into()], ..Hello::default() };
    writer.send(&frame(&hello)).await.expect("sent");
    read_complete(&mut reader).await;
    // Far more than the connection holds: the server waits in the middle of this push.
    let large = "x".repeat(100_000);
    set(&control, &[("Policy/x/large", json!(large)), ("Policy/x/n", json!(0))]).await;
    for n in 1..=50 {
        set(&control, &[("Policy/x/large", json!(large)), ("Policy/x/n", json!(n))]).await;
    }
    let newest = control.versions().borrow().expect("a version");
    let (mut pushes, mut upserts) = (0, 0);
    loop {
        let (more, complete) = read_complete(&mut reader).await;
        (pushes, upserts) = (pushes + 1, upserts + more);
        if complete.version == newest {
            break;
        }
    }
    assert!(pushes <= 3 && upserts <= 6, "{pushes} pushes, {upserts} entries");
}

#[tokio::test]
async fn tells_nobody_of_a_mesh_before_there_are_resources() {
    let directory = tempfile::tempdir().expect("a directory");
    let control = open(directory.path()).await;
    let mut agent = Agent::start(&control, "h1", Followed::new(None), vec![registration("a.x", "10.0.0.1")]);
    until("it is connected", || status(&control, "h1").filter(|status| status.connected)).await;
    assert_eq!(agent.published.borrow().0, 0);
    set(&control, &[("Service/x/a", json!({ "port": 80 }))]).await;
    agent.sees(&["Service/x/a", "WorkloadEntry/x/a-h1"]).await;
}

#[tokio::test]
async fn addresses_survive_restarts_and_stated_ones_stand() {
    let directory = tempfile::tempdir().expect("a directory");
    let stated = json!({ "port": 80, "addresses": ["240.240.0.9"] });
    let resources = [("Service/x/stated", stated.clone()), ("Service/x/given", json!({ "port": 80 }))];
    let addresses = |control: &Control| -> BTreeMap<String, Value> {
        let published = control.published().into_iter();
        published
            .filter(|(key, _)| key.starts_with("Service/"))
            .map(|(key, text)| (key.to_string(), serde_json::from_str(&text).expect("JSON")))
            .collect()
    };
    let control = started(directory.path()).await;
    set(&control, &resources).await;
    let own = vec![registration("implied.x", "10.0.0.1")];
    let agent = Agent::start(&control, "h1", Followed::new(None), own);
    until("it is there", || status(&control, "h1").filter(|status| status.live)).await;
    let before = addresses(&control);
    assert_eq!(before["Service/x/stated"], stated);
    assert_eq!(before["Service/x/given"]["addresses"].as_array().map(Vec::len), Some(2));
    agent.killed().await;
    drop(control);
    let control = open(directory.path()).await;
    set(&control, &resources).await;
    assert_eq!(addresses(&control), before);
    // A stated address that another service has is refused, and nothing changes.
    let taken = before["Service/x/given"]["addresses"][0].clone();
    let collision = vec![
        ("Service/x/given".to_owned(), json!({ "port": 80 })),
        ("Service/x/thief".to_owned(), json!({ "port": 80, "addresses": [taken] })),
    ];
    let refused = control.set_resources(MeshConfig::default(), collision).await;
    assert!(matches!(refused, Err(ControlError::Address(_))), "{refused:?}");
    assert_eq!(addresses(&control), before);
}

#[tokio::test]
async fn refuses_resources_that_no_message_holds() {
    let directory = tempfile::tempdir().expect("a directory");
    let control = started(directory.path()).await;
    for (key, value, reason) in [
        ("Policy/x/p", json!("x".repeat(MAX_MESSAGE)), "split it"),
        ("Policy", json!(1), "not a resource's key"),
        ("Service/x/a", json!({}), "no port"),
    ] {
        let refused = control.set_resources(MeshConfig::default(), vec![(key.to_owned(), value)]).await;
        let refused = refused.expect_err(reason).to_string();
        assert!(refused.contains(reason), "{refused} should say {reason}");
        assert!(control.published().is_empty());
    }
}

#[tokio::test]
async fn a_full_disk_refuses_registrations_and_keeps_the_former() {
    let directory = tempfile::tempdir().expect("a directory");
    let path: PathBuf = directory.path().join("control.db");
    let store = Store::open(&path).expect("a store");
    let limit = store.limit_pages();
    let control = Control::open(store, settings()).await.expect("a control server");
    set(&control, &[]).await;
    let mut agent = Agent::start(&control, "h1", Followed::new(None), vec![registration("a.x", "10.0.0.1")]);
    agent.sees(&["Service/x/a", "WorkloadEntry/x/a-h1"]).await;
    assert!(limit > 0);
    let many = (0..250).map(|n| registration(&format!("s{n}.x"), "10.0.0.1"));
    let many = many.map(|one| Registration { service_account: Some(label("one")), ..one });
    agent.registrations.send_replace(many.collect());
    let full =
        until("it is refused", || status(&control, "h1").filter(|status| status.refused.len() == 250)).await;
    assert!(full.refused[0].refused.as_deref().is_some_and(|reason| reason.contains("disk full")));
    agent.sees(&["Service/x/a", "WorkloadEntry/x/a-h1"]).await;
    drop(control);
    let kept = Store::open(&path).expect("a store").load().expect("records");
    assert!(!kept.is_empty() && kept.len() < 10, "{kept:?}");
}
