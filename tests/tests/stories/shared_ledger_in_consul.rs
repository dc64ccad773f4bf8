//! Two control processes side by side, of a mesh whose registry is Consul too: a host is served by either.

use std::fs;

use baremesh_tests::consul::{Consul, ask, host_with_consul};
use baremesh_tests::{Host, Member, Mesh, Process, exit_code_of, net, output_of, run, wait_until};
use serde_json::Value;

use crate::peer::{self, Tunnel, agent_of, authority};

/// Where Consul is: of the registry, and of the ledger.
const FILE: &str = "/etc/baremesh/control.toml";
const ARCHIVE: &str = "/etc/baremesh/mesh.tar";
/// Node credentials are short-lived, so that their renewal is seen.
const NODE_LIFETIME: &str = "20";

struct Two {
    mesh: Mesh,
    second: Host,
    second_server: Process,
    store: Host,
    consul: Consul,
}

fn serve(host: &Host) -> std::process::Command {
    host.baremesh(["control", "--shared-ledger", FILE, "--node-lifetime", NODE_LIFETIME])
}

#[track_caller]
fn wait_for_control(host: &Host) {
    wait_until("the control server answers", || run(host.baremesh(["host", "list"])).status.success());
}

impl Two {
    #[track_caller]
    fn new(name: &str) -> Self {
        let net = net(name);
        let (store, consul) = host_with_consul(&net, "consul", 150);
        let (first, second) = (net.host("control", 200), net.host("control2", 201));
        output_of(first.baremesh(["init"]));
        let granted = "[[HostGrant]]\nname = \"all\"\nhost = \"*\"\naddresses = [\"0.0.0.0/0\", \"::/0\"]\n";
        fs::write(first.path("/etc/baremesh/registry/all.toml"), granted).expect("written");
        for host in [&first, &second] {
            fs::create_dir_all(host.path("/etc/baremesh")).expect("the host's configuration");
            fs::write(host.path(FILE), consul.config()).expect("the host's configuration");
        }
        output_of(first.baremesh(["ca", "share", FILE]));
        let command = serve(&first);
        let mesh = Mesh::served(net, first, command);
        output_of(mesh.control.baremesh(["backup", ARCHIVE]));
        fs::copy(mesh.control.path(ARCHIVE), second.path(ARCHIVE)).expect("the backup");
        output_of(second.baremesh(["restore", ARCHIVE]));
        let second_server = second.spawn("control", serve(&second));
        wait_for_control(&second);
        output_of(second.baremesh(["ca", "rotate", "--intermediate"]));
        Self { mesh, second, second_server, store, consul }
    }

    /// A token of one of the two, for a host with that service.
    #[track_caller]
    fn token(at: &Host, service: &str) -> String {
        let made = output_of(at.baremesh(["token", "create", "--output", "json", "--service", service]));
        let made: Value = serde_json::from_str(&made).expect("JSON");
        made["token"].as_str().expect("a token").to_owned()
    }

    /// A member that joins at one of the two.
    #[track_caller]
    fn member(&self, at: &Host, (name, index): (&str, u8)) -> Member {
        let host = self.mesh.net.host(name, index);
        host.set_nameserver([10, 77, 0, 254]);
        let token = Self::token(at, name);
        output_of(host.baremesh(["join", &at.v4().to_string(), "--token", &token, "--host", name]));
        let member = Member::of(host);
        member.configure(&self.consul.config());
        member.start();
        member
    }
}

fn calls(from: &Member) -> bool {
    exit_code_of(from.host.shop(["call", "--timeout", "20", "orders", "80", "hello"])) == 0
}

#[test]
fn a_host_of_one_control_process_goes_on_with_the_other_and_either_changes_the_mesh() {
    let two = Two::new("ledger-consul");
    let (first, second) = (&two.mesh.control, &two.second);
    let (web, orders) = (two.member(first, ("web", 1)), two.member(second, ("orders", 2)));
    let thief = two.member(first, ("thief", 3));
    orders.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    orders.register("orders", ["--port", "80:7000"]);
    thief.register("thief", ["--port", "80"]);
    web.wait_for_endpoints("orders.default", 1);
    assert!(calls(&web), "certificates of either lead to the root that both know");

    // A token that one has taken opens nothing at the other, nor after the one is gone.
    let used = Two::token(first, "once");
    let joins = |name: &str, index: u8, at: &Host| {
        let host = two.mesh.net.host(name, index);
        let address = at.v4().to_string();
        let answer = run(host.baremesh(["join", &address, "--token", &used, "--host", name]));
        (answer.status.success(), String::from_utf8_lossy(&answer.stderr).into_owned())
    };
    assert!(joins("once", 5, first).0);
    let is_used_up = |(joined, said): (bool, String)| {
        assert!(!joined && said.contains("used"), "{said}");
    };
    is_used_up(joins("twice", 6, second));

    // The first dies. Who joined there renews at the second: only the address is another.
    two.mesh.kill_control();
    let file = web.host.path("/var/lib/baremesh/node/mesh.toml");
    let text = fs::read_to_string(&file).expect("the membership");
    let moved = text.replace(&first.v4().to_string(), &second.v4().to_string());
    assert_ne!(moved, text);
    web.stop_agent();
    fs::write(&file, moved).expect("written");
    is_used_up(joins("thrice", 7, second));
    let credential =
        || fs::read_to_string(web.host.path("/var/lib/baremesh/node/node.pem")).expect("a credential");
    let before = credential();
    web.start();
    wait_until("the second has renewed its credential", || credential() != before);
    assert!(calls(&web));
    // What is applied at the second reaches everybody, whoever let them in.
    let deny = "[[AuthorizationPolicy]]\nname = \"orders\"\naction = \"DENY\"\n\
        selector = { matchLabels = { app = \"orders\" } }\nrules = [{}]\n";
    fs::write(second.path("/run/baremesh/deny.toml"), deny).expect("written");
    output_of(second.baremesh(["apply", "-f", "/run/baremesh/deny.toml"]));
    wait_until("the policy is in force", || !calls(&web));
    output_of(second.baremesh(["delete", "AuthorizationPolicy", "orders"]));
    wait_until("the policy is gone", || calls(&web));
    // And so does what is taken back there, of a host that the first let in.
    let is_let_in = || {
        let config = peer::config(&two.mesh, peer::stolen(&thief, "thief"));
        let name = Some("orders.default.mesh.internal");
        let tunnel = Tunnel::open(&thief.host, agent_of(&orders.host), config, name);
        tunnel.and_then(|tunnel| tunnel.echoes(&authority(orders.host.v4(), 7000))).is_ok()
    };
    assert!(is_let_in());
    output_of(second.baremesh(["host", "revoke", "thief"]));
    wait_until("who was shut out is refused", || !is_let_in());

    // The first comes back to all of it, and the second dies: nothing of it is undone.
    let _back = first.spawn("control", serve(first));
    wait_for_control(first);
    let known = output_of(first.baremesh(["certs", "revoked"]));
    assert!(known.contains("thief"), "{known}");
    assert!(output_of(first.baremesh(["get", "HostGrant"])).contains("all"));
    two.second_server.kill();
    two.second_server.wait();
    let late = two.member(first, ("late", 4));
    late.wait_for_endpoints("orders.default", 1);
    assert!(calls(&late) && calls(&web));
    assert!(!is_let_in());
    let (_, list) = ask(&two.store, "GET", "/v1/kv/baremesh/trust/?keys", None).expect("an answer");
    assert!(list.contains("revoked"), "{list}");
}
