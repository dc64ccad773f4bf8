//! A host holds the endpoints of the services that it calls. Of the others it knows where they are: the first call finds
//! nothing wrong, and nothing leaves in plaintext.

use std::fs;

use baremesh_tests::{Member, Mesh, Process, exit, exit_code_of, output_of, wait_until};
use serde_json::Value;

use crate::pair::because;

/// How long a call waits for endpoints that do not come, in seconds.
const PATIENCE: &str = "[proxy]\nconnect_timeout_seconds = 6\n";

/// A caller that registers nothing, and a host that serves.
struct Two {
    web: Member,
    store: Member,
    mesh: Mesh,
}

impl Two {
    #[track_caller]
    fn new(name: &str) -> Self {
        let mesh = Mesh::new(name);
        let web = mesh.member_with("web", 1, &["*"], PATIENCE);
        let store = mesh.member("store", 2, &["*"]);
        Self { web, store, mesh }
    }

    /// A service of `store` that speaks TCP.
    #[track_caller]
    fn echo(&self, service: &str, port: u16) -> Process {
        let program = self.store.host.serve(service, ["echo", &format!("127.0.0.1:{port}")]);
        self.store.register(service, ["--port", &port.to_string(), "--protocol", "tcp"]);
        self.web.wait_for_endpoints(&format!("{service}.default"), 1);
        program
    }

    /// One that speaks HTTP, at port 80.
    #[track_caller]
    fn http(&self, service: &str, port: u16) -> Process {
        let program = self.store.host.serve(
            service,
            ["web", service, &format!("127.0.0.1:{port}"), &format!("127.0.0.1:{}", port + 1000)],
        );
        self.store.register(service, ["--port", &format!("80:{port}"), "--protocol", "http"]);
        self.web.wait_for_endpoints(&format!("{service}.default"), 1);
        program
    }

    /// The services whose endpoints `web` holds, in order.
    fn held(&self) -> Vec<String> {
        let services = self.web.ask("/services").unwrap_or_default();
        let all = services.as_array().cloned().unwrap_or_default();
        let is_held = |service: &&Value| service["endpoints"][0]["health"] == "healthy";
        all.iter()
            .filter(is_held)
            .map(|service| service["service"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// The answer to one call by name.
    fn call(&self, service: &str, port: u16) -> u8 {
        exit_code_of(self.web.host.shop(["call", "--timeout", "60", service, &port.to_string(), "hello"]))
    }
}

#[test]
fn a_first_call_finds_nothing_wrong_by_name_and_by_real_address_and_sends_no_plaintext() {
    let two = Two::new("first-call");
    let _servers = [two.echo("by-name", 7001), two.echo("by-address", 7002), two.echo("other", 7003)];
    let _http = [two.http("page", 8001), two.http("page-there", 8002)];
    assert_eq!(two.held(), [""; 0], "nobody has called anything");
    let wire = two.mesh.net.capture();
    let address = two.store.host.v4().to_string();
    for (to, port) in [("by-name", "7001"), (&*address, "7002"), (&*two.store.host.v6().to_string(), "7002")]
    {
        let secret = format!("payload for {to}");
        assert_eq!(output_of(two.web.host.shop(["call", to, port, &secret])), secret);
    }
    for url in ["http://page/payload-of-a-request", &format!("http://{address}:8002/payload-of-a-request")] {
        let answer = two.web.host.get(&[], url);
        assert_eq!(answer.status, Some(200), "{url}: {answer:?}");
    }
    let wire = wire.stop().off_loopback();
    assert_eq!(wire.holes(), 0, "nothing on the wire was missed");
    assert!(!wire.contains("payload"), "{:?}", wire.find("payload"));
    assert_eq!(two.held(), ["by-address.default", "by-name.default", "page-there.default", "page.default"]);
    two.web.wait_until_kept("by-name");
    let state = fs::read_to_string(two.web.host.path("/var/lib/baremesh/last-good.state")).expect("a state");
    assert!(!state.contains("WorkloadEntry/default/other-store"), "nobody has called it");
    assert!(state.contains("EndpointAddresses/default/other"), "it is known where it is");
    let endpoints = two.web.status().expect("a status")["endpoints"].clone();
    assert_eq!(
        (&endpoints["all"], &endpoints["called"], &endpoints["held"]),
        (&false.into(), &4.into(), &4.into())
    );
    assert!(two.web.metrics().contains("\nbaremesh_endpoints_asked_total 4\n"), "{}", two.web.metrics());
    // To explain a call is to ask for what it takes.
    output_of(two.web.host.baremesh(["explain", "tcp://other:7003"]));
    assert!(two.held().contains(&"other.default".to_owned()));
}

#[test]
fn what_was_called_is_called_without_the_control_server_and_what_was_not_fails_with_the_reason_and_heals() {
    let two = Two::new("remembered");
    let _servers = [two.echo("known", 7001), two.echo("late", 7002)];
    let _page = two.http("page", 8001);
    assert_eq!(two.call("known", 7001), exit::DONE);
    two.web.wait_until_kept("known");
    two.mesh.kill_control();
    two.web.kill_agent();
    two.web.start();
    assert_eq!(two.call("known", 7001), exit::DONE, "it was called before");
    let wire = two.mesh.net.capture();
    assert_ne!(two.call("late", 7002), exit::DONE);
    let real = two.web.host.shop([
        "call",
        "--timeout",
        "60",
        &two.store.host.v4().to_string(),
        "7002",
        "in plaintext",
    ]);
    assert_ne!(exit_code_of(real), exit::DONE);
    let answer = two.web.host.get(&[], "http://page/");
    assert_eq!(answer.status, Some(503), "{answer:?}");
    assert!(!wire.stop().off_loopback().contains("in plaintext"));
    let of = |service: &'static str| {
        move |line: &Value| {
            because("endpoints_unknown")(line) && line.to_string().contains(&format!("{service}.default"))
        }
    };
    let line = two.web.wait_for_log("why", of("late"));
    assert_eq!(line["response_flags"], "UH", "{line}");
    two.web.wait_for_log("why of a request", of("page"));
    assert!(two.web.metrics().contains("\nbaremesh_endpoints_not_told_total 3\n"), "{}", two.web.metrics());
    let explained = baremesh_tests::run(two.web.host.baremesh(["explain", "tcp://late:7002"]));
    let text = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(text.contains("did not tell its endpoints in time"), "{text}");
    two.mesh.start_control();
    wait_until("it is called as soon as the control server is back", || two.call("late", 7002) == exit::DONE);
    assert_eq!(two.web.host.get(&[], "http://page/").status, Some(200));
}

#[test]
fn routes_lead_to_what_nobody_has_called_yet() {
    let two = Two::new("routed-first");
    let _servers = [two.http("front", 8001), two.http("canary", 8002), two.http("copied", 8003)];
    two.mesh.enforce(
        "[[VirtualService]]\nname = \"front\"\nhosts = [\"front\"]\nhttp = [{ route = [{ destination = { host = \"canary\" } }], mirror = { host = \"copied\" } }]\n",
    );
    let answer = two.web.host.get(&[], "http://front/");
    assert_eq!((answer.status, answer.instance.as_deref()), (Some(200), Some("canary")), "{answer:?}");
    wait_until("the copy's service was asked for too", || two.held() == ["canary.default", "copied.default"]);
}

#[test]
fn what_a_sidecar_names_is_held_before_it_is_called() {
    let two = Two::new("declared");
    let _servers = [two.echo("named", 7001), two.echo("other", 7002)];
    two.web.register("web", ["--port", "80", "--user", "0"]);
    two.mesh.enforce("[[Sidecar]]\nname = \"web\"\negress = [{ hosts = [\"./named\"] }]\n");
    wait_until("it is asked for", || two.held() == ["named.default", "web.default"]);
    assert_eq!(two.web.status().expect("a status")["endpoints"]["declared"], 2);
    two.web.configure("[registry]\nendpoints = \"all\"\n");
    two.web.stop_agent();
    two.web.start();
    wait_until("everything is", || two.held() == ["named.default", "other.default", "web.default"]);
}
