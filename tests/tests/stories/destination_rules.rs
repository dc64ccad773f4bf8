//! How a service is called, as a DestinationRule says it: limits, ejection, affinity, near before far.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use baremesh_tests::{Member, Mesh, Process, WAIT_BOUND, exit, exit_code_of, wait_until};

use crate::pair::{Pair, because, connections_of, is_cut, virtual_addresses};

/// A rule for `echo` with this policy.
fn rule(policy: &str) -> String {
    format!("[[DestinationRule]]\nname = \"echo\"\nhost = \"echo\"\ntrafficPolicy = {policy}\n")
}

fn open(pair: &Pair) -> TcpStream {
    let address = SocketAddr::new(virtual_addresses(&pair.web, "echo")[0], 7000);
    let stream = pair.web.host.connect(address).expect("the agent takes it");
    stream.set_read_timeout(Some(WAIT_BOUND)).expect("a timeout");
    stream
}

#[test]
fn a_limit_of_connections_refuses_at_once_and_lets_go_at_once() {
    let pair = Pair::new("limits");
    pair.serve("echo", 7000);
    // A connection counts under the rule that it was opened by.
    pair.mesh.enforce(&rule("{ connectionPool = { tcp = { maxConnections = 1 } } }"));
    // The kernel takes a connection before the agent does: what is answered holds the one place for certain.
    let mut first = open(&pair);
    first.write_all(b"hello\n").expect("written");
    let mut answered = [0; 6];
    first.read_exact(&mut answered).expect("an answer");
    wait_until("a second one is refused", || is_cut(pair.call("echo", 7000, "hello")));
    let line = pair.web.wait_for_log("the limit", because("over_limit"));
    assert_eq!(line["response_flags"], "UO");
    assert!(
        line["connection_termination_details"].as_str().is_some_and(|text| text.contains("maxConnections"))
    );
    drop(first);
    wait_until("there is room again", || exit_code_of(pair.call("echo", 7000, "hello")) == exit::DONE);
}

#[test]
fn what_asks_for_tls_is_never_sent_in_plaintext() {
    let pair = Pair::new("needs-tls");
    // A server without an agent, on the control host.
    let server = pair.mesh.control.serve("echo", ["echo", "0.0.0.0:7000"]);
    let service = format!(
        "[[Service]]\nname = \"echo\"\nports = [{{ port = 7000, protocol = \"tcp\" }}]\n\
         [[WorkloadEntry]]\nname = \"echo-1\"\naddress = \"{}\"\nlabels = {{ app = \"echo\" }}\n",
        pair.mesh.control.v4()
    );
    pair.mesh.apply(&service);
    pair.web.wait_for_endpoints("echo.default", 1);
    wait_until("in plaintext it answers", || exit_code_of(pair.call("echo", 7000, "hello")) == exit::DONE);
    pair.mesh.apply(&rule("{ tls = { mode = \"ISTIO_MUTUAL\" } }"));
    wait_until("it is not called at all", || is_cut(pair.call("echo", 7000, "hello")));
    pair.web.wait_for_log("why", because("needs_tls"));
    let before = connections_of(&server);
    assert!(is_cut(pair.call("echo", 7000, "hello")));
    assert_eq!(connections_of(&server), before, "its program never saw it");
    pair.mesh.apply(&rule("{ tls = { mode = \"SIMPLE\" } }"));
    let wire = pair.mesh.net.capture();
    wait_until("the handshake is what fails", || {
        assert!(is_cut(pair.call("echo", 7000, "secret word")), "the server speaks no TLS");
        pair.web.log().iter().any(because("handshake_failed"))
    });
    let wire = wire.stop();
    assert!(!wire.contains("secret word"), "{:?}", wire.find("secret word"));
}

/// An HTTP proxy without an agent: connects nobody anywhere, but answers as the target would, which speaks first.
fn proxy(listener: TcpListener) -> Arc<Mutex<Vec<String>>> {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&asked);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).is_ok_and(|read| read > 0) {}
            let answer: &[u8] = match head.contains(":443 ") {
                true => b"HTTP/1.1 200 Connection established\r\nVia: 1.1 proxy\r\n\r\nwelcome\n",
                false => b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
            };
            heard.lock().expect("no panic").push(head);
            let _ = stream.write_all(answer);
            thread::spawn(move || io::copy(&mut reader, &mut stream));
        }
    });
    asked
}

#[test]
fn connections_go_through_an_http_proxy_where_the_rule_says_so() {
    let pair = Pair::new("tunnel");
    let address = pair.mesh.control.v4();
    let asked = proxy(pair.mesh.control.listen((address, 3128)));
    pair.mesh.apply(&format!(
        "[[Service]]\nname = \"echo\"\nports = [{{ port = 7000, targetPort = 3128, protocol = \"tcp\" }}]\n\
         [[WorkloadEntry]]\nname = \"echo-1\"\naddress = \"{address}\"\nlabels = {{ app = \"echo\" }}\n"
    ));
    pair.mesh.enforce(&rule("{ tunnel = { targetHost = \"fd00::7\", targetPort = 443 } }"));
    pair.web.wait_for_endpoints("echo.default", 1);
    let mut stream = open(&pair);
    let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).map(|_| line)
    };
    assert_eq!(line().expect("what came with the proxy's answer"), "welcome\n");
    stream.write_all(b"hello\n").expect("written");
    assert_eq!(line().expect("what came after it"), "hello\n");
    let heard = asked.lock().expect("no panic").join("");
    assert_eq!(heard, "CONNECT [fd00::7]:443 HTTP/1.1\r\nHost: [fd00::7]:443\r\n\r\n");

    pair.mesh.enforce(&rule("{ tunnel = { targetHost = \"other.example\", targetPort = 80 } }"));
    assert!(is_cut(pair.call("echo", 7000, "hello")));
    let line = pair.web.wait_for_log("the proxy refuses", because("refused_by_proxy"));
    assert!(
        line["connection_termination_details"].as_str().is_some_and(|text| text.contains("403")),
        "{line}"
    );
}

/// A caller in `eu/a`, and `echo` on two hosts: one beside it, one far away.
struct Two {
    mesh: Mesh,
    web: Member,
    near: Member,
    far: Member,
}

impl Two {
    #[track_caller]
    fn new(name: &str) -> Self {
        let mesh = Mesh::new(name);
        let web = mesh.member("web", 1, &["*"]);
        let (near, far) = (mesh.member("near", 2, &["*"]), mesh.member("far", 3, &["*"]));
        web.register("web", ["--port", "80", "--user", "0", "--locality", "eu/a"]);
        near.register("echo", ["--port", "7000", "--locality", "eu/a"]);
        far.register("echo", ["--port", "7000", "--locality", "us/a"]);
        web.wait_for_endpoints("echo.default", 2);
        Self { mesh, web, near, far }
    }

    #[track_caller]
    fn serve(member: &Member) -> Process {
        member.host.serve("echo", ["echo", "127.0.0.1:7000"])
    }

    fn call(&self) -> bool {
        exit_code_of(self.web.host.shop(["call", "echo", "7000", "hello"])) == exit::DONE
    }

    /// The hosts that these many calls were carried to.
    #[track_caller]
    fn reached(&self, calls: usize) -> BTreeSet<String> {
        let carried = |member: &Member| {
            let log = member.log();
            log.iter()
                .filter(|line| line["reporter"] == "destination" && line["response_flags"] == "-")
                .count()
        };
        let before = [carried(&self.near), carried(&self.far)];
        for _ in 0..calls {
            assert!(self.call(), "a call is carried");
        }
        let mut after = before;
        wait_until("every call is in a log", || {
            after = [carried(&self.near), carried(&self.far)];
            after.iter().sum::<usize>() >= before.iter().sum::<usize>() + calls
        });
        let names = ["near", "far"].into_iter().zip(before).zip(after);
        names.filter(|((_, before), after)| after > before).map(|((name, _), _)| name.to_owned()).collect()
    }
}

fn hosts(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(ToString::to_string).collect()
}

#[test]
fn callers_of_one_address_stay_with_one_endpoint() {
    let two = Two::new("sticky");
    let _servers = (Two::serve(&two.near), Two::serve(&two.far));
    assert_eq!(two.reached(40), hosts(&["near", "far"]), "without a rule both are used");
    // In force before it is looked at: without it, too, a few calls may all go to one.
    two.mesh.enforce(&rule("{ loadBalancer = { consistentHash = { useSourceIp = true } } }"));
    wait_until("one alone is used", || two.reached(12).len() == 1);
    let chosen = two.reached(1);
    assert_eq!(two.reached(30), chosen);
}

#[test]
fn a_failing_endpoint_is_left_out_and_comes_back() {
    let two = Two::new("ejected");
    let _far = Two::serve(&two.far);
    let balanced = "loadBalancer = { localityLbSetting = { enabled = false } }";
    two.mesh.enforce(&rule(&format!(
        "{{ {balanced}, outlierDetection = {{ consecutive5xxErrors = 2, baseEjectionTime = \"1s\", maxEjectionPercent = 50 }} }}"
    )));
    let ejected = || {
        let services = two.web.ask("/services").unwrap_or_default();
        let services = services.as_array().cloned().unwrap_or_default();
        let echo = services.into_iter().find(|service| service["service"] == "echo.default");
        let endpoints = echo.and_then(|echo| echo["endpoints"].as_array().cloned()).unwrap_or_default();
        endpoints.iter().filter(|endpoint| endpoint["health"] == "ejected").count()
    };
    // Nothing listens there: the calls go on to the other one, and the endpoint is left out.
    wait_until("it is left out", || {
        assert!(two.call(), "another endpoint takes the call");
        ejected() == 1
    });
    let metrics = two.web.metrics();
    assert!(
        metrics.lines().any(|line| line.starts_with("baremesh_ejections_total") && !line.ends_with(" 0"))
    );
    let _near = Two::serve(&two.near);
    wait_until("it is used again", || two.reached(4).contains("near"));
    assert_eq!(ejected(), 0);
}

#[test]
fn the_nearest_is_used_until_it_fails() {
    let two = Two::new("nearest");
    let (near, _far) = (Two::serve(&two.near), Two::serve(&two.far));
    two.mesh.enforce(&rule(
        "{ outlierDetection = { consecutive5xxErrors = 1, baseEjectionTime = \"2s\", maxEjectionPercent = 100 } }",
    ));
    wait_until("the near one alone is used", || two.reached(12) == hosts(&["near"]));
    near.kill();
    near.wait();
    wait_until("the far one is used", || two.reached(2) == hosts(&["far"]));
    let _near = Two::serve(&two.near);
    wait_until("the near one alone is used again", || two.reached(6) == hosts(&["near"]));
}
