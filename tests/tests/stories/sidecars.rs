//! A Sidecar says which services a workload calls, and the others are none to it; and at which ports it is called.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use baremesh_tests::{Host, WAIT_BOUND, exit, exit_code_of, output_of, run, wait_until};

use crate::pair::{Pair, because, counted, is_cut, real_addresses, virtual_addresses};

/// The reason of what is refused at a port that is called by nobody.
const NOT_CALLED: &str = "not_in_sidecar_ingress";

fn sidecar(place: &str, egress: &str) -> String {
    format!("[[Sidecar]]\n{place}\negress = [{egress}]\n")
}

#[test]
fn a_service_calls_what_its_sidecar_names_and_nothing_else() {
    let pair = Pair::new("sidecar");
    pair.serve("echo", 7000);
    pair.serve_as("other", "echo", 7001);
    let call = |name: &str, port: u16| pair.call(name, port, "hello");
    assert_eq!(output_of(call("other", 7001)), "hello", "without a Sidecar everything is called");
    let web = "name = \"web\"\nworkloadSelector = { labels = { app = \"web\" } }";
    pair.mesh.enforce(&sidecar(web, "{ hosts = [\"./echo.default.mesh.internal\"] }"));
    wait_until("other is no service to web", || is_cut(call("other", 7001)));
    assert_eq!(output_of(call("echo", 7000)), "hello");
    // By none of its addresses, and never in plaintext in its place.
    let wire = pair.mesh.net.capture();
    for address in real_addresses(&pair.store.host) {
        assert!(is_cut(pair.call(&address, 7001, "in plaintext")), "{address}");
        assert_eq!(output_of(call(&address, 7000)), "hello", "{address}");
    }
    assert!(!wire.stop().off_loopback().contains("in plaintext"));
    let line = pair.web.wait_for_log("the refusal", because("not_in_sidecar"));
    assert_eq!(
        (line["response_flags"].as_str(), line["upstream_cluster"].as_str()),
        (Some("UH"), Some("BlackHoleCluster"))
    );
    let said = line["connection_termination_details"].to_string();
    assert!(said.contains("web.default") && said.contains("other.default"), "{line}");
    // It is explained as it is done.
    let explained = run(pair.web.host.baremesh(["explain", "tcp://other:7001", "--from", "web"]));
    let text =
        String::from_utf8_lossy(&explained.stdout).into_owned() + &String::from_utf8_lossy(&explained.stderr);
    assert!(text.contains("Sidecar web.default"), "{text}");
    // What selects the workload goes before its namespace's, and that before the root namespace's.
    let namespace = sidecar("name = \"default\"", "{ hosts = [\"~/*\"] }");
    let root = sidecar("name = \"default\"\nnamespace = \"mesh-system\"", "{ hosts = [\"*/other\"] }");
    pair.mesh.enforce(&(namespace + &root));
    assert_eq!(output_of(call("echo", 7000)), "hello");
    output_of(pair.mesh.control.baremesh(["delete", "Sidecar", "web"]));
    wait_until("the namespace's holds", || is_cut(call("echo", 7000)) && is_cut(call("other", 7001)));
    output_of(pair.mesh.control.baremesh(["delete", "Sidecar", "default"]));
    wait_until("the root namespace's holds", || exit_code_of(call("other", 7001)) == exit::DONE);
    assert!(is_cut(call("echo", 7000)));
    output_of(pair.mesh.control.baremesh(["delete", "Sidecar", "default", "-n", "mesh-system"]));
    wait_until("everything is called again", || exit_code_of(call("echo", 7000)) == exit::DONE);
}

/// What `explain` says to people.
fn explained(host: &Host, question: &[&str]) -> String {
    let output = run(host.baremesh(["explain"].iter().chain(question)));
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_service_is_called_at_the_ports_that_its_sidecar_names_and_at_no_other() {
    let pair = Pair::new("ingress");
    let (web, store) = (&pair.web, &pair.store);
    let _program = store.host.serve("two", ["echo", "127.0.0.1:7000"]);
    let _other = store.host.serve("other", ["echo", "127.0.0.1:7001"]);
    store.register("two", ["--port", "7000", "--port", "7001"]);
    // Its two ports.
    web.wait_for_endpoints("two.default", 2);
    let call =
        |to: &str, port: u16| web.host.shop(["call", "--timeout", "5", to, &port.to_string(), "hello"]);
    let within =
        |to: &str, port: u16| store.host.shop(["call", "--timeout", "5", to, &port.to_string(), "hello"]);
    let mut all: Vec<String> = virtual_addresses(web, "two").iter().map(ToString::to_string).collect();
    all.extend(real_addresses(&store.host));
    for address in &all {
        assert_eq!(output_of(call(address, 7001)), "hello", "without a Sidecar at every port: {address}");
        assert_eq!(output_of(within(address, 7001)), "hello", "{address}");
    }
    // Open when the Sidecar comes, one to each port.
    let open = |port: u16| {
        let at = SocketAddr::new(virtual_addresses(web, "two")[0], port);
        web.host.connect(at).expect("a connection to the agent")
    };
    let mut kept = open(7000);
    let mut ended = open(7001);
    for stream in [&mut kept, &mut ended] {
        stream.set_read_timeout(Some(WAIT_BOUND)).expect("a timeout");
        assert_eq!(echoed(stream).expect("both are carried"), *b"now\n");
    }

    let sidecar = "[[Sidecar]]\nname = \"two\"\nworkloadSelector = { labels = { app = \"two\" } }\n\
                   ingress = [{ port = { number = 7000, protocol = \"TCP\" }, defaultEndpoint = \"127.0.0.1:7000\" }]\n";
    pair.mesh.enforce(sidecar);
    wait_until("what is open to the other port ends", || echoed(&mut ended).is_err());
    assert_eq!(echoed(&mut kept).expect("it goes on"), *b"now\n");
    for address in &all {
        assert_eq!(output_of(call(address, 7000)), "hello", "{address}");
        assert_eq!(output_of(within(address, 7000)), "hello", "{address}");
        let before = counted(store, NOT_CALLED);
        assert!(is_cut(call(address, 7001)), "in a tunnel: {address}");
        wait_until("it is counted", || counted(store, NOT_CALLED) > before);
        assert!(is_cut(within(address, 7001)), "within the host: {address}");
    }
    // Not by the address that it is delivered to either.
    assert!(is_cut(within("127.0.0.1", 7001)));
    assert_eq!(output_of(within("127.0.0.1", 7000)), "hello");
    let line = store.wait_for_log("the refusal", because(NOT_CALLED));
    assert_eq!(line["response_flags"], "UAEX", "{line}");
    let said = line["connection_termination_details"].to_string();
    assert!(said.contains("Sidecar two.default") && said.contains("port 7001"), "{line}");
    web.wait_for_log("the caller's side of it", because("denied_by_peer"));
    // It is explained as it is done, on both hosts.
    for host in [&web.host, &store.host] {
        let text = explained(host, &["tcp://two:7001"]);
        assert!(text.contains("Sidecar two.default"), "{text}");
        assert!(!explained(host, &["tcp://two:7000"]).contains("Sidecar"));
    }

    // In plaintext it is no other.
    pair.mesh.enforce("[[PeerAuthentication]]\nname = \"open\"\nmtls = { mode = \"PERMISSIVE\" }\n");
    let stranger = pair.mesh.net.host("stranger", 9);
    let plain =
        |to: &str, port: u16| stranger.shop(["call", "--timeout", "5", to, &port.to_string(), "hello"]);
    for address in real_addresses(&store.host) {
        wait_until("plaintext is taken", || exit_code_of(plain(&address, 7000)) == exit::DONE);
        let before = counted(store, NOT_CALLED);
        assert!(is_cut(plain(&address, 7001)), "{address}");
        wait_until("it is counted", || counted(store, NOT_CALLED) > before);
    }

    // An entry that says what the port does not speak is of another port.
    pair.mesh.enforce(&sidecar.replace("TCP", "HTTP"));
    wait_until("the port speaks something else", || is_cut(call("two", 7000)));
    output_of(pair.mesh.control.baremesh(["delete", "Sidecar", "two"]));
    wait_until("every port is called again", || exit_code_of(call("two", 7001)) == exit::DONE);
    assert_eq!(output_of(call("two", 7000)), "hello");
}

#[test]
fn requests_to_a_port_that_a_sidecar_does_not_name_get_403() {
    let pair = Pair::new("ingress-http");
    let (web, store) = (&pair.web, &pair.store);
    let _pages = store.web("pages", "one", &[]);
    web.wait_for_endpoints("pages.default", 1);
    let status = |host: &Host| host.get(&[], "http://pages/").status;
    for host in [&web.host, &store.host] {
        wait_until("it answers", || status(host) == Some(200));
    }
    pair.mesh.enforce("[[Sidecar]]\nname = \"default\"\ningress = [{ port = { number = 8081 } }]\n");
    for host in [&web.host, &store.host] {
        wait_until("it is refused", || status(host) == Some(403));
    }
    let line = store.wait_for_log("the refusal", |line| line["response_code"] == 403);
    assert_eq!(
        (&line["response_flags"], &line["response_code_details"]),
        (&"UAEX".into(), &"rbac_access_denied".into())
    );
    assert!(line.to_string().contains("Sidecar default.default"), "{line}");
    assert!(explained(&web.host, &["http://pages/", "--from", "web"]).contains("Sidecar default.default"));
    // Its own port, and not the one that callers dial.
    pair.mesh.enforce("[[Sidecar]]\nname = \"default\"\ningress = [{ port = { number = 8080 } }]\n");
    for host in [&web.host, &store.host] {
        wait_until("it answers again", || status(host) == Some(200));
    }
}

/// A line to an echo, and what comes back.
fn echoed(stream: &mut TcpStream) -> io::Result<[u8; 4]> {
    let mut back = [0; 4];
    stream.write_all(b"now\n")?;
    stream.read_exact(&mut back)?;
    Ok(back)
}
