//! A small server on a Unix socket answers as an engine does, and another one hears what the agent would.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast;

use super::*;

const NETWORKS: &str = r#"[{"Name":"bridge","Id":"f2de39df4171b0dc","Driver":"bridge","Options":{"com.docker.network.bridge.name":"docker0"}}]"#;

/// Containers by ID, name and address.
fn containers(running: &[(&str, &str)]) -> String {
    let one = |(id, address): &(&str, &str)| {
        format!(
            r#"{{"Id":"{id}","ImageID":"sha256:{id}","Names":["/{id}"],"Created":1,"Labels":{{"app":"{id}","by":"image"}},"NetworkSettings":{{"Networks":{{"bridge":{{"NetworkID":"f2de39df4171b0dc","IPAddress":"{address}"}}}}}}}}"#
        )
    };
    format!("[{}]", running.iter().map(one).collect::<Vec<_>>().join(","))
}

struct Engine {
    list: Mutex<String>,
    events: broadcast::Sender<String>,
    listed: tokio::sync::watch::Sender<usize>,
    images: Mutex<Vec<String>>,
    hangs: AtomicBool,
}

impl Engine {
    fn at(path: &Path, list: String) -> Arc<Self> {
        let listener = UnixListener::bind(path).expect("a socket");
        let engine = Arc::new(Self {
            list: Mutex::new(list),
            events: broadcast::Sender::new(16),
            listed: tokio::sync::watch::Sender::new(0),
            images: Mutex::default(),
            hangs: AtomicBool::new(false),
        });
        let serving = Arc::clone(&engine);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&serving).serve(stream));
            }
        });
        engine
    }

    async fn serve(self: Arc<Self>, stream: UnixStream) {
        let mut stream = BufReader::new(stream);
        while let Some(path) = request(&mut stream).await {
            if self.hangs.load(Ordering::Relaxed) {
                return std::future::pending().await;
            }
            let mut status = "200 OK";
            let body = match path.as_str() {
                engine::VERSION => r#"{"Version":"24.0.7","Components":null}"#.to_owned(),
                engine::CONTAINERS => self.list.lock().expect("unpoisoned").clone(),
                "/networks" => NETWORKS.to_owned(),
                engine::PING => "OK".to_owned(),
                image if image.starts_with("/images/") => {
                    self.images.lock().expect("unpoisoned").push(image.to_owned());
                    if image == "/images/sha256:gone/json" {
                        status = "404 Not Found";
                    }
                    r#"{"Config":{"Labels":{"by":"image"}}}"#.to_owned()
                }
                engine::EVENTS => return self.tell_events(stream).await,
                _ => panic!("{path} is not asked"),
            };
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
            if stream.write_all((head + &body).as_bytes()).await.is_err() {
                return;
            }
            self.listed.send_modify(|times| *times += usize::from(path == engine::CONTAINERS));
        }
    }

    async fn tell_events(&self, mut stream: impl AsyncWrite + Unpin) {
        let mut events = self.events.subscribe();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        // In pieces, as the network may cut them.
        while let Ok(event) = events.recv().await {
            let (first, second) = event.split_at(event.len() / 2);
            for piece in [first, second] {
                let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
                if piece.is_empty() || stream.write_all(chunk.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    }

    fn happens(&self, action: &str, id: &str) {
        let event =
            format!("{{\"Type\":\"container\",\"Action\":\"{action}\",\"Actor\":{{\"ID\":\"{id}\"}}}}\n");
        self.events.send(event).expect("somebody listens");
    }

    fn lists(&self, list: String) {
        *self.list.lock().expect("unpoisoned") = list;
    }
}

/// The target of the next request; it has no body.
async fn request(stream: &mut BufReader<UnixStream>) -> Option<String> {
    let mut first = String::new();
    stream.read_line(&mut first).await.ok().filter(|read| *read > 0)?;
    let mut line = String::new();
    while stream.read_line(&mut line).await.ok().filter(|read| *read > 2).is_some() {
        line.clear();
    }
    first.split(' ').nth(1).map(str::to_owned)
}

/// The agent's side: one connection after another.
struct Hearing(UnixListener);

impl Hearing {
    fn at(path: &Path) -> Self {
        Self(UnixListener::bind(path).expect("a socket"))
    }

    async fn follower(&self) -> BufReader<UnixStream> {
        let (stream, _) = self.0.accept().await.expect("a follower");
        let mut stream = BufReader::new(stream);
        assert_eq!(request(&mut stream).await.as_deref(), Some(ROUTE));
        let head =
            format!("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: {PROTOCOL}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("it listens");
        stream
    }
}

/// The next list that is told: names and addresses.
async fn told(stream: &mut BufReader<UnixStream>) -> Option<String> {
    let running = list(stream).await?;
    let one =
        |one: &Running| format!("{} {} {}", one.name, one.places[0].interface, one.places[0].addresses[0]);
    Some(running.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// The next list that is told.
async fn list(stream: &mut BufReader<UnixStream>) -> Option<Vec<Running>> {
    loop {
        let line = read_line(stream, MAX_LINE).await.ok()??;
        if line.is_empty() {
            continue;
        }
        let (_, running) = Told::read(&line).expect("a list");
        stream.write_all(b"{\"refused\":null}\n").await.expect("it listens");
        return Some(running);
    }
}

struct Scene {
    _directory: tempfile::TempDir,
    engine: Arc<Engine>,
    agent: Hearing,
    follower: Follower,
}

fn scene(list: String) -> Scene {
    let directory = tempfile::tempdir().expect("a directory");
    let follower =
        Follower { engine: directory.path().join("engine.sock"), agent: directory.path().join("agent.sock") };
    let engine = Engine::at(&follower.engine, list);
    let agent = Hearing::at(&follower.agent);
    Scene { engine, agent, follower, _directory: directory }
}

#[tokio::test]
async fn what_ends_is_taken_back_before_the_next_list() {
    let Scene { engine, agent, follower, _directory } =
        scene(containers(&[("a", "172.17.0.2"), ("b", "172.17.0.3")]));
    let following = tokio::spawn(follower.run());
    let mut stream = agent.follower().await;
    assert_eq!(told(&mut stream).await.as_deref(), Some("a docker0 172.17.0.2, b docker0 172.17.0.3"));
    // The engine's list has it still; that it ended counts.
    engine.happens("die", "a");
    assert_eq!(told(&mut stream).await.as_deref(), Some("b docker0 172.17.0.3"));
    engine.lists(containers(&[("b", "172.17.0.3"), ("c", "172.17.0.2")]));
    engine.happens("start", "c");
    assert_eq!(told(&mut stream).await.as_deref(), Some("b docker0 172.17.0.3, c docker0 172.17.0.2"));
    // What concerns nobody has nobody listed.
    let lists = *engine.listed.borrow();
    engine.happens("exec_start: true", "b");
    engine.lists(containers(&[]));
    engine.happens("destroy", "b");
    assert_eq!(told(&mut stream).await.as_deref(), Some("c docker0 172.17.0.2"));
    assert_eq!(told(&mut stream).await.as_deref(), Some(""));
    assert_eq!(*engine.listed.borrow(), lists + 1);
    following.abort();
}

#[tokio::test]
async fn an_engine_that_answers_nonsense_is_not_stood_by() {
    let Scene { engine, agent, follower, _directory } = scene(containers(&[("a", "172.17.0.2")]));
    let following = tokio::spawn(follower.run());
    let mut stream = agent.follower().await;
    assert_eq!(told(&mut stream).await.as_deref(), Some("a docker0 172.17.0.2"));
    engine.lists("{\"message\":\"no\"}".to_owned());
    engine.happens("start", "b");
    assert_eq!(told(&mut stream).await, None, "the connection ends");
    engine.lists(containers(&[("b", "172.17.0.4")]));
    let mut stream = agent.follower().await;
    assert_eq!(told(&mut stream).await.as_deref(), Some("b docker0 172.17.0.4"));
    // So is one whose events are none.
    engine.events.send("what?\n".to_owned()).expect("somebody listens");
    assert_eq!(told(&mut stream).await, None);
    let mut stream = agent.follower().await;
    assert_eq!(told(&mut stream).await.as_deref(), Some("b docker0 172.17.0.4"));
    // And an agent that goes is found again.
    drop(stream);
    let mut stream = agent.follower().await;
    assert_eq!(told(&mut stream).await.as_deref(), Some("b docker0 172.17.0.4"));
    following.abort();
}

#[tokio::test]
async fn the_labels_of_images_are_not_told() {
    let Scene { engine, agent, follower, _directory } =
        scene(containers(&[("a", "172.17.0.2"), ("gone", "172.17.0.3")]));
    let following = tokio::spawn(follower.run());
    let mut stream = agent.follower().await;
    let labels = |running: Vec<Running>| -> Vec<String> {
        running.iter().map(|one| format!("{} {:?}", one.name, one.labels)).collect()
    };
    let first = list(&mut stream).await.expect("a list");
    // Nobody can say which of the labels are the container's own where the image cannot be asked for.
    assert_eq!(labels(first), [r#"a {"app": "a"}"#, "gone {}"]);
    engine.lists(containers(&[("a", "172.17.0.2"), ("b", "172.17.0.3")]));
    engine.happens("start", "b");
    let second = list(&mut stream).await.expect("a list");
    assert_eq!(labels(second), [r#"a {"app": "a"}"#, r#"b {"app": "b"}"#]);
    let mut asked = engine.images.lock().expect("unpoisoned").clone();
    asked.sort();
    assert_eq!(
        asked,
        ["a", "b", "gone"].map(|id| format!("/images/sha256:{id}/json")),
        "each is asked for once"
    );
    following.abort();
}

#[tokio::test]
async fn an_engine_that_hangs_is_not_stood_by() {
    let Scene { engine, agent, follower, _directory } = scene(containers(&[("a", "172.17.0.2")]));
    let following = tokio::spawn(follower.run());
    let mut stream = agent.follower().await;
    assert_eq!(told(&mut stream).await.as_deref(), Some("a docker0 172.17.0.2"));
    let line = read_line(&mut stream, MAX_LINE).await.expect("a line");
    assert_eq!(line.as_deref(), Some(b"".as_slice()), "it stands by the list");
    engine.hangs.store(true, Ordering::Relaxed);
    // Nothing changes, and the connection for the events is open still: what is stood by ends all the same.
    assert_eq!(told(&mut stream).await, None);
    engine.hangs.store(false, Ordering::Relaxed);
    let mut stream = agent.follower().await;
    assert_eq!(told(&mut stream).await.as_deref(), Some("a docker0 172.17.0.2"));
    following.abort();
}

#[tokio::test]
async fn an_event_that_is_too_long_says_that_something_changed() {
    let Scene { engine, agent, follower, _directory } = scene(containers(&[("a", "172.17.0.2")]));
    let following = tokio::spawn(follower.run());
    let mut stream = agent.follower().await;
    assert_eq!(told(&mut stream).await.as_deref(), Some("a docker0 172.17.0.2"));
    engine.lists(containers(&[("b", "172.17.0.3")]));
    engine.happens("start", &"x".repeat(3 * MAX_EVENT));
    assert_eq!(told(&mut stream).await.as_deref(), Some("b docker0 172.17.0.3"));
    // What comes after it is read.
    engine.happens("die", "b");
    assert_eq!(told(&mut stream).await.as_deref(), Some(""));
    following.abort();
}
