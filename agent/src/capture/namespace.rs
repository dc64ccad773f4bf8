//! Where the tests run: each in network namespaces of its own, so that the rules of the machine they run on are
//! never touched. A test starts itself again under `unshare`, once as root and once in a user namespace, and only
//! that second self runs the body.

use std::fs;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use baremesh_model::name::{Key, Label};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::held::Held;
use super::{AgentPorts, CapturePlan, Containers, DnsCapture, LocalService, Outbound, Strictness, WhenGone};

/// Names the test that runs in a namespace.
const INSIDE: &str = "BAREMESH_TEST_INSIDE";
/// The network namespace that the test came from.
const OUTSIDE: &str = "BAREMESH_TEST_OUTSIDE";

/// How long a condition may take to come true on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// A test whose body runs in fresh namespaces.
macro_rules! namespace_test {
    (fn $name:ident() $body:block) => {
        #[test]
        fn $name() {
            crate::capture::namespace::run(concat!(module_path!(), "::", stringify!($name)), || $body);
        }
    };
}
pub(super) use namespace_test;

/// Runs the body in fresh namespaces, or starts this test there.
pub(super) fn run(test: &str, body: impl FnOnce()) {
    let test = test.split_once("::").map_or(test, |(_, test)| test);
    if std::env::var(INSIDE).as_deref() == Ok(test) {
        assert_ne!(
            std::env::var(OUTSIDE).as_deref(),
            Ok(network().as_str()),
            "still in the machine's own namespace"
        );
        sh("ip link set lo up");
        return body();
    }
    for kind in kinds() {
        let mut command = Command::new("unshare");
        command.arg(kind).arg(std::env::current_exe().expect("a test has a binary"));
        command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
        let output = command.env(INSIDE, test).env(OUTSIDE, network()).output().expect("unshare runs");
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "under `unshare {kind}`:\n{text}");
    }
}

/// Root sees to both kinds, an ordinary user to the one that he may make.
pub(super) fn kinds() -> &'static [&'static str] {
    if rustix::process::geteuid().is_root() { &["-n", "-Urn"] } else { &["-Urn"] }
}

fn network() -> String {
    let link = fs::read_link("/proc/thread-self/ns/net").expect("a thread has a network namespace");
    link.to_string_lossy().into_owned()
}

/// Runs a command line in this namespace and returns what it wrote.
pub(super) fn sh(line: &str) -> String {
    let output = Command::new("/bin/sh").args(["-c", line]).output().expect("a shell runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits for a condition.
pub(super) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Another host: a network namespace that a cable connects with ours. Here is 10.9.0.1 and fd09::1, there 10.9.0.2
/// and fd09::2.
pub(super) struct Peer {
    process: Child,
}

impl Peer {
    pub(super) fn new() -> Self {
        // It ends when its standard input does, so not later than the test.
        let mut command = Command::new("unshare");
        let process = command.args(["-n", "cat"]).stdin(Stdio::piped()).spawn().expect("unshare runs");
        let peer = Self { process };
        let there = format!("/proc/{}/ns/net", peer.process.id());
        let ours = network();
        eventually("the other host's namespace", || {
            fs::read_link(&there).is_ok_and(|link| link.to_string_lossy() != ours)
        });
        let pid = peer.process.id();
        sh(&format!("ip link add eth0 type veth peer name eth0 netns {pid}"));
        sh(
            "ip link set eth0 up && ip addr add 10.9.0.1/24 dev eth0 && ip addr add fd09::1/64 dev eth0 nodad",
        );
        sh(&format!(
            "nsenter --net={there} sh -c 'ip link set lo up && ip link set eth0 up && ip addr add 10.9.0.2/24 dev eth0 && ip addr add fd09::2/64 dev eth0 nodad'"
        ));
        peer
    }

    /// Runs something on the other host.
    pub(super) fn there<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let path = format!("/proc/{}/ns/net", self.process.id());
        let namespace = fs::File::open(path).expect("the other host is up");
        thread::scope(|scope| {
            let body = scope.spawn(move || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("setns");
                body()
            });
            body.join().expect("what runs on the other host does not panic")
        })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A plan with both virtual ranges and nothing registered, of an agent that runs as root.
pub(super) fn plan() -> CapturePlan {
    CapturePlan {
        virtual_v4: "240.240.0.0/16".parse().expect("a range"),
        virtual_v6: Some("fd00:240::/64".parse().expect("a range")),
        endpoints: [].into(),
        external: [].into(),
        local: Vec::new(),
        agent_uid: 0,
        ports: AgentPorts::default(),
        dns: DnsCapture::Off,
        bridges: Containers::new(),
        uncaptured: Containers::new(),
        outbound: Outbound::Registered,
        ssh_ports: [].into(),
        held: Held::default(),
        held_when_gone: Held::default(),
        units: Default::default(),
    }
}

/// A service of one port.
pub(super) fn service(name: &str, port: u16, strictness: Strictness, when_gone: WhenGone) -> LocalService {
    let label = |text| Label::new(text).expect("a label");
    let name = Key::new(label("shop"), label(name));
    LocalService { name, ports: [port].into(), addresses: [].into(), strictness, when_gone }
}

/// Addresses from text.
pub(super) fn addresses<T: FromIterator<std::net::SocketAddr>>(texts: &[&str]) -> T {
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}
