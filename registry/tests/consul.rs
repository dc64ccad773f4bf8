//! The client and the resources against a real Consul: the one of `tests/peers/consul`.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use baremesh_registry::consul::client::plain_dial;
use baremesh_registry::consul::kv::{MAX_VALUE, Operation, Transacted, When};
use baremesh_registry::consul::local::{Known, Registration, Share, Status, Ttl};
use baremesh_registry::consul::query::{Consistency, Place, Read, Step};
use baremesh_registry::consul::resources::{ChangeError, Changes, Following, Next, ResourceStore, Set};
use baremesh_registry::consul::{Client, Settings};
use serde_json::{Value, json};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A Consul of its own, without a disk.
struct Consul {
    process: Child,
    http: u16,
    _directory: tempfile::TempDir,
}

impl Drop for Consul {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn program() -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/peers/consul");
    let output = Command::new(script).output().expect("the script runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

impl Consul {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let held: Vec<_> = (0..4).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        let ports: Vec<u16> = held.iter().map(|l| l.local_addr().expect("an address").port()).collect();
        drop(held);
        let [http, server, lan, wan] = ports[..] else { unreachable!("four were taken") };
        let process = Command::new(program())
            .args(["agent", "-dev", "-bind", "127.0.0.1", "-node", "test", "-log-level", "err"])
            .args(["-dns-port", "-1", "-grpc-port", "-1", "-http-port", &http.to_string()])
            .args(["-server-port", &server.to_string(), "-serf-lan-port", &lan.to_string()])
            .args(["-serf-wan-port", &wan.to_string()])
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Consul starts");
        let consul = Self { process, http, _directory: directory };
        let (client, began) = (consul.client(), Instant::now());
        while !client.leader().await.is_ok_and(|said| said.leader.is_some()) {
            assert!(began.elapsed() < PATIENCE, "Consul has no leader");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        consul
    }

    fn client(&self) -> Client {
        let text = format!("addresses = [\"http://127.0.0.1:{}\"]", self.http);
        Client::new(toml::from_str::<Settings>(&text).expect("settings"), plain_dial())
    }
}

fn now() -> Read {
    Read::now(Consistency::Consistent)
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_written_once_read_back_waited_for_and_deleted() {
    let consul = Consul::start().await;
    let client = consul.client();
    assert_eq!(client.get("a/none", now()).await.expect("read").value, None);
    assert!(client.put("a/b c", b"1".to_vec(), When::Absent).await.expect("written"));
    assert!(!client.put("a/b c", b"2".to_vec(), When::Absent).await.expect("asked"), "it is there already");
    let read = client.get("a/b c", now()).await.expect("read");
    let pair = read.value.expect("a pair");
    assert_eq!((pair.key.as_str(), pair.value.as_slice()), ("a/b c", b"1".as_slice()));
    let mut place = Place::default();
    assert_eq!(place.advance(read.index), Step::Changed);
    let waiting = client.clone();
    let wait = place.read(Consistency::Leader, PATIENCE);
    let changed = tokio::spawn(async move { waiting.get("a/b c", wait).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(client.put("a/b c", vec![7; MAX_VALUE], When::Unchanged(pair.modified)).await.expect("written"));
    let changed = changed.await.expect("no panic").expect("read");
    assert_eq!(place.advance(changed.index), Step::Changed);
    assert_eq!(changed.value.expect("a pair").value.len(), MAX_VALUE);
    assert_eq!(client.keys("a/", now()).await.expect("read").value, ["a/b c"]);
    let check = |modified| Operation::Check { key: "a/b c".to_owned(), modified };
    let put = Operation::Put { key: "a/d".to_owned(), value: b"4".to_vec(), when: When::Always };
    let stale = client.transact(&[put.clone(), check(pair.modified)]).await.expect("asked");
    assert!(matches!(&stale, Transacted::Refused(faults) if faults[0].0 == 1), "{stale:?}");
    let modified = client.get("a/b c", now()).await.expect("read").value.expect("a pair").modified;
    assert_eq!(client.transact(&[put, check(modified)]).await.expect("asked"), Transacted::Done);
    assert_eq!(client.list("a/", now()).await.expect("read").value.len(), 2);
    // What a transaction changed a key at is what the key says then.
    let next = |when| Operation::Put { key: "a/d".to_owned(), value: b"5".to_vec(), when };
    let at = client.get("a/d", now()).await.expect("read").value.expect("a pair").modified;
    let changed = client.transact_at(&[next(When::Unchanged(at))]).await.expect("asked").expect("changed");
    let pair = client.get("a/d", now()).await.expect("read").value.expect("a pair");
    assert_eq!((pair.modified, pair.value.as_slice()), (changed, b"5".as_slice()));
    for when in [When::Unchanged(at), When::Absent] {
        let faults = client.transact_at(&[next(when)]).await.expect("asked").expect_err("it was changed");
        assert!(faults[0].1.contains("index is stale"), "{faults:?}");
    }
    assert!(!client.delete("a/d", When::Unchanged(1)).await.expect("asked"));
    assert!(client.delete("a/d", When::Always).await.expect("deleted"));
    let error = client.transact(&[Operation::Check { key: "none".to_owned(), modified: 3 }]).await;
    assert!(matches!(error, Ok(Transacted::Refused(_))), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_registered_found_well_and_ill_and_gone() {
    let consul = Consul::start().await;
    let client = consul.client();
    let registration = Registration {
        id: "baremesh:h1:default:orders".to_owned(),
        name: "orders".to_owned(),
        tags: vec!["baremesh".to_owned()],
        address: "10.0.0.7".to_owned(),
        port: 8080,
        meta: [("baremesh-host".to_owned(), "h1".to_owned())].into(),
        weights: Share { passing: 3, warning: 1 },
        check: Ttl {
            id: "baremesh:h1:default:orders".to_owned(),
            name: "as baremesh sees it".to_owned(),
            ttl: "60s".to_owned(),
            status: Status::Passing,
            deregister_critical_service_after: "24h".to_owned(),
        },
    };
    assert_eq!(client.update(&registration.check.id, Status::Passing, "").await.expect("told"), Known::Lost);
    client.register(&registration).await.expect("registered");
    assert!(client.own_services().await.expect("asked").contains_key(&registration.id));
    let found = async |status: &str| {
        let began = Instant::now();
        loop {
            let instances = client.instances("orders", now()).await.expect("read").value;
            let checks = instances.iter().flat_map(|instance| &instance.checks);
            if checks.into_iter().any(|check| check.id == registration.check.id && check.status == status) {
                return instances;
            }
            assert!(began.elapsed() < PATIENCE, "{instances:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let well = found("passing").await;
    assert_eq!((well[0].service.port, well[0].service.weights.passing), (8080, 3));
    assert_eq!(well[0].node.node, "test");
    let told = client.update(&registration.check.id, Status::Critical, "it is ill").await.expect("told");
    assert_eq!(told, Known::Known);
    let ill = found("critical").await;
    assert!(ill[0].checks.iter().any(|check| check.output == "it is ill"));
    let names = client.services(Read::now(Consistency::Stale(PATIENCE))).await.expect("read").value;
    assert_eq!(names["orders"], ["baremesh"]);
    assert_eq!(client.deregister(&registration.id).await.expect("deregistered"), Known::Known);
    assert!(client.own_services().await.expect("asked").is_empty());
    assert_eq!(client.myself().await.expect("asked").config.node_name, "test");
}

fn id(n: usize) -> String {
    format!("Service/default/s{n}")
}

fn put(n: usize, value: &Value) -> Changes {
    [(id(n), Some(value.clone()))].into()
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_are_seen_whole_or_not_at_all_however_many_write_them() {
    let consul = Consul::start().await;
    let store = ResourceStore::new(consul.client());
    assert_eq!(store.read(&Set::default()).await.expect("read"), None);
    // Every change writes two resources with the same value: whoever sees two that differ saw half of one.
    let both = |n: u64| -> Changes { [(id(0), Some(json!(n))), (id(1), Some(json!(n)))].into() };
    let writing = (0..3).map(|_| {
        let store = ResourceStore::new(consul.client());
        tokio::spawn(async move {
            let mut written = 0;
            while written < 8 {
                let next = |set: &Set| {
                    // Values come back, so that what was retired is written again.
                    let next = set.values.get(&id(0)).and_then(Value::as_u64).map_or(0, |n| (n + 1) % 3);
                    Ok::<_, String>((both(next), ()))
                };
                match store.change(next).await {
                    Ok(_) => written += 1,
                    Err(ChangeError::Overtaken) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        })
    });
    let writing: Vec<_> = writing.collect();
    let mut following = Following::new(store.clone());
    let (mut sets, began) = (0, Instant::now());
    let mut last = 0;
    while last < 24 {
        assert!(began.elapsed() < PATIENCE, "version {last}");
        match following.next(Duration::from_secs(1)).await.expect("read") {
            Next::Set(set) => {
                assert!(set.version > last, "{} after {last}", set.version);
                assert_eq!(set.values[&id(0)], set.values[&id(1)]);
                (last, sets) = (set.version, sets + 1);
            }
            Next::Same | Next::Nothing => {}
        }
    }
    for writer in writing {
        writer.await.expect("no panic");
    }
    assert!(sets > 1, "nothing was seen in between");
    let keys = consul.client().keys("baremesh/resources/", now()).await.expect("read").value;
    // Two in force, those of the version before, and those of the one before that, which the next change deletes.
    assert!(keys.len() <= 6, "{keys:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_refused_before_anything_is_written_and_many_are_one() {
    let consul = Consul::start().await;
    let store = ResourceStore::new(consul.client());
    let refused = store.change(|_| Err::<(Changes, ()), _>("it does not hold together")).await;
    assert!(matches!(refused, Err(ChangeError::Refused("it does not hold together"))));
    let huge = put(0, &json!("x".repeat(MAX_VALUE)));
    let refused = store.change(|_| Ok::<_, String>((huge.clone(), ()))).await;
    assert!(matches!(&refused, Err(ChangeError::TooLarge { .. })), "{refused:?}");
    let none: Changes = [("Service/..".to_owned(), None)].into();
    let refused = store.change(|_| Ok::<_, String>((none.clone(), ()))).await;
    assert!(matches!(&refused, Err(ChangeError::NoResource(_)) | Ok(_)), "{refused:?}");
    assert!(consul.client().keys("baremesh/", now()).await.expect("read").value.is_empty());
    let many: Changes = (0..100).map(|n| (id(n), Some(json!({ "n": n })))).collect();
    let changed = store.change(|_| Ok::<_, String>((many.clone(), 5))).await.expect("changed");
    assert_eq!((changed.set.version, changed.plan), (1, 5));
    let read = store.read(&Set::default()).await.expect("read").expect("a set");
    assert_eq!(read, changed.set);
    let same = store.change(|_| Ok::<_, String>((many.clone(), 5))).await.expect("changed");
    assert_eq!(same.set.version, 1, "nothing changed");
    // An index that is gone and comes back, as a Consul says that is just starting, is the same set once more.
    let mut following = Following::new(store.clone());
    assert_eq!(following.next(Duration::ZERO).await.expect("read"), Next::Set(read.clone()));
    let index = consul.client().get("baremesh/index", now()).await.expect("read").value.expect("an index");
    consul.client().delete("baremesh/index", When::Always).await.expect("deleted");
    assert_eq!(following.next(Duration::ZERO).await.expect("read"), Next::Nothing);
    consul.client().put("baremesh/index", index.value, When::Always).await.expect("written");
    assert_eq!(following.next(Duration::ZERO).await.expect("read"), Next::Set(read));
    assert_eq!(following.next(Duration::from_secs(1)).await.expect("read"), Next::Same);
    let gone: Changes = [(id(7), None)].into();
    let changed = store.change(|_| Ok::<_, String>((gone.clone(), ()))).await.expect("changed");
    assert!(!changed.set.values.contains_key(&id(7)) && changed.set.values.len() == 99);
    // A value that is not the one that its key is named for is not taken.
    let keys =
        consul.client().keys("baremesh/resources/Service/default/s8/", now()).await.expect("read").value;
    consul.client().put(&keys[0], b"{}".to_vec(), When::Always).await.expect("written");
    let error = store.read(&Set::default()).await.expect_err("refused");
    assert!(error.to_string().contains("s8"), "{error}");
    let mut following = Following::new(store.clone());
    assert!(following.next(Duration::ZERO).await.is_err());
    consul.client().delete("baremesh/index", When::Always).await.expect("deleted");
    assert_eq!(following.next(Duration::ZERO).await.expect("read"), Next::Nothing);
}
