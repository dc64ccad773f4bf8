//! Names: those of the mesh are answered on the host, and go nowhere else; the others are none of the mesh's business.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use baremesh_tests::{Host, Member, Mesh, exit, exit_code_of, output_of, run, wait_until};

/// A name server on another host, which answers what it is told to and keeps what it is asked.
struct Upstream(Arc<Mutex<Vec<(String, SocketAddr)>>>);

const REAL: [u8; 4] = [192, 0, 2, 7];

impl Upstream {
    fn on(host: &Host) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (udp, tcp) =
            (host.bind_udp((Ipv4Addr::UNSPECIFIED, 53)), host.listen((Ipv4Addr::UNSPECIFIED, 53)));
        let (by_udp, by_tcp) = (Arc::clone(&asked), Arc::clone(&asked));
        // Both end with the process.
        std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                let answer = answer(&buffer[..length], ("udp", from), &by_udp);
                let _ = udp.send_to(&answer, from);
            }
        });
        std::thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                let from = stream.peer_addr().expect("a peer");
                let mut length = [0; 2];
                while stream.read_exact(&mut length).is_ok() {
                    let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
                    stream.read_exact(&mut question).expect("a question");
                    let answer = answer(&question, ("tcp", from), &by_tcp);
                    let length = u16::try_from(answer.len()).expect("short").to_be_bytes();
                    let _ = stream.write_all(&[&length[..], &answer].concat());
                }
            }
        });
        Self(asked)
    }

    /// Who asked for a name that holds `text`, each as `udp NAME` or `tcp NAME`.
    fn asked_for(&self, text: &str) -> Vec<(String, IpAddr)> {
        let asked = self.0.lock().expect("no thread panics with it");
        asked
            .iter()
            .filter(|(name, _)| name.contains(text))
            .map(|(name, from)| (name.clone(), from.ip()))
            .collect()
    }
}

/// `large.…` is truncated over UDP, `evil.…` is in the virtual range, everything else is `REAL`.
fn answer(
    question: &[u8],
    (way, from): (&str, SocketAddr),
    asked: &Mutex<Vec<(String, SocketAddr)>>,
) -> Vec<u8> {
    let (mut name, mut at) = (String::new(), 12);
    while question[at] != 0 {
        let length = usize::from(question[at]);
        name += &String::from_utf8_lossy(&question[at + 1..at + 1 + length]).to_lowercase();
        name.push('.');
        at += length + 1;
    }
    let is_a = question[at + 1..at + 3] == [0, 1];
    asked.lock().expect("no panic").push((format!("{way} {name}"), from));
    let truncated = way == "udp" && name.starts_with("large.");
    let address = if name.starts_with("evil.") { [240, 240, 0, 9] } else { REAL };
    let count = u8::from(is_a && !truncated);
    let mut answer =
        [&question[..2], &[0x81 | (u8::from(truncated) << 1), 0x80, 0, 1, 0, count, 0, 0, 0, 0]].concat();
    answer.extend(&question[12..at + 5]);
    if count == 1 {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address);
    }
    answer
}

/// What the host's own resolver finds, as any program does.
fn look_up(host: &Host, family: &str, name: &str) -> Option<String> {
    let found = run(host.sh(&format!("getent {family} {name}")));
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    found.status.success().then(|| text.split_whitespace().next().unwrap_or_default().to_owned())
}

/// A caller, an echo `store`, and a host with a name server.
fn three(mesh: &Mesh, dns: &str) -> (Member, Member, Host, Upstream) {
    let upstream = mesh.net.host("upstream", 53);
    let recorded = Upstream::on(&upstream);
    let web = mesh.member_with("web", 1, &[], dns);
    let store = mesh.member("store", 2, &["store"]);
    store.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    store.register("store", ["--port", "80:7000"]);
    web.wait_for_endpoints("store.default", 1);
    (web, store, upstream, recorded)
}

const CAPTURE: &str = "[dns]\nupstreams = [\"10.77.0.53:53\"]\n";

#[test]
fn services_have_addresses_of_both_families_for_every_program() {
    let mesh = Mesh::new("names");
    let (web, _store, _host, upstream) = three(&mesh, CAPTURE);
    for name in ["store", "store.mesh.internal", "store.default.mesh.internal", "STORE.mesh.internal"] {
        let v4 = look_up(&web.host, "ahostsv4", name).expect(name);
        let v6 = look_up(&web.host, "ahostsv6", name).expect(name);
        assert!(v4.starts_with("240.240."), "{name}: {v4}");
        assert!(v6.starts_with("fd") && v6.contains(':'), "{name}: {v6}");
        for address in [v4, v6] {
            assert_eq!(output_of(web.host.shop(["call", &address, "80", name])), name);
        }
    }
    assert_eq!(upstream.asked_for("mesh.internal"), []);
}

#[test]
fn names_of_the_mesh_that_do_not_exist_go_nowhere() {
    let mesh = Mesh::new("unknown");
    let (web, _store, _host, upstream) = three(&mesh, CAPTURE);
    for name in [
        "nosuch.mesh.internal",
        "nosuch.default.mesh.internal",
        "a.b.c.mesh.internal",
        "store.other.mesh.internal",
    ] {
        for family in ["ahostsv4", "ahostsv6"] {
            assert_eq!(look_up(&web.host, family, name), None, "{name}");
        }
        assert_eq!(exit_code_of(web.host.shop(["call", name, "80", "x"])), exit::NO_NAME);
    }
    assert_eq!(upstream.asked_for("mesh.internal"), []);
    assert_eq!(
        look_up(&web.host, "ahostsv4", "example.test").as_deref(),
        Some("192.0.2.7"),
        "the way as such is open"
    );
}

#[test]
fn other_names_are_forwarded_over_udp_and_tcp() {
    let mesh = Mesh::new("forward");
    let (web, _store, _host, upstream) = three(&mesh, CAPTURE);
    assert_eq!(look_up(&web.host, "ahostsv4", "example.test").as_deref(), Some("192.0.2.7"));
    assert!(
        upstream.asked_for("udp example.test").iter().all(|(_, from)| *from == IpAddr::from([10, 77, 0, 1]))
    );
    assert!(!upstream.asked_for("udp example.test").is_empty());
    assert_eq!(look_up(&web.host, "ahostsv4", "large.test").as_deref(), Some("192.0.2.7"));
    assert!(
        !upstream.asked_for("udp large.test").is_empty() && !upstream.asked_for("tcp large.test").is_empty()
    );
}

#[test]
fn a_foreign_name_never_leads_to_a_virtual_address() {
    let mesh = Mesh::new("rebind");
    let (web, _store, _host, upstream) = three(&mesh, CAPTURE);
    assert_eq!(look_up(&web.host, "ahostsv4", "evil.test"), None);
    assert!(!upstream.asked_for("evil.test").is_empty(), "it was never asked");
    wait_until("it is counted", || {
        let metrics = web.metrics();
        metrics.lines().any(|line| line.starts_with("baremesh_dns_queries_total") && !line.ends_with(" 0"))
    });
}

#[test]
fn a_plain_name_server_answers_without_capture_of_port_53() {
    let mesh = Mesh::new("server");
    let config = "[dns]\nmode = \"nameserver\"\nport = 53\nupstreams = [\"10.77.0.53:53\"]\n";
    let (web, _store, _host, upstream) = three(&mesh, config);
    assert_eq!(look_up(&web.host, "ahostsv4", "store.mesh.internal"), None, "10.77.0.254 is no name server");
    assert!(!output_of(web.host.sh("nft list table inet baremesh")).contains("dport 53"));
    web.host.set_nameserver([127, 0, 0, 1]);
    assert!(
        look_up(&web.host, "ahostsv4", "store.mesh.internal")
            .is_some_and(|found| found.starts_with("240.240."))
    );
    assert_eq!(look_up(&web.host, "ahostsv4", "example.test").as_deref(), Some("192.0.2.7"));
    assert_eq!(output_of(web.host.shop(["call", "store", "80", "by name"])), "by name");
    // Programs that ask another server are left alone.
    web.host.set_nameserver([10, 77, 0, 53]);
    assert_eq!(look_up(&web.host, "ahostsv4", "direct.mesh.internal").as_deref(), Some("192.0.2.7"));
    assert!(!upstream.asked_for("direct.mesh.internal").is_empty());
}
