//! The rules that bring connections to the agent: ours alone, narrow, and gone when they shall be gone.

use std::time::{Duration, Instant};

use baremesh_tests::{Host, Member, Mesh, exit, exit_code_of, output_of, run, wait_until};
use serde_json::Value;

/// What a firewall and a container engine leave on a host.
const FOREIGN: &str = "table inet filter { chain input { type filter hook input priority 0; policy accept; tcp dport 23 drop; }; }
table ip nat { chain output { type nat hook output priority -100; policy accept; tcp dport 24 redirect to :25; }; }
table ip6 nat { set s { type ipv6_addr; elements = { fd00::7 }; }; }
";

fn foreign(host: &Host) -> String {
    output_of(host.sh("nft list table inet filter; nft list table ip nat; nft list table ip6 nat"))
}

/// Everything else that somebody could leave behind: tables, routes, rules of routing.
fn traces(host: &Host) -> String {
    output_of(
        host.sh(
            "nft list tables; ip -4 route show table all; ip -6 route show table all; ip rule; ip -6 rule",
        ),
    )
}

fn capture(member: &Member, arguments: &[&str]) -> std::process::Output {
    run(member.host.baremesh(["capture"].iter().chain(arguments)))
}

fn state(member: &Member) -> String {
    let output = capture(member, &["status", "--output", "json"]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    status["state"].as_str().unwrap_or_default().to_owned()
}

/// A caller with foreign rules, and the echo `store`; the caller runs a service of its own.
fn two(mesh: &Mesh, when_gone: &str) -> (Member, Member) {
    let (web, store) = (mesh.member("web", 1, &["web"]), mesh.member("store", 2, &["store"]));
    store.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    store.register("store", ["--port", "80:7000"]);
    web.register("web", ["--port", "81:8100", "--when-gone", when_gone]);
    web.wait_for_endpoints("store.default", 1);
    (web, store)
}

#[test]
fn capture_leaves_other_tables_untouched_and_nothing_behind() {
    let mesh = Mesh::new("traces");
    let bare = mesh.net.host("bare", 9);
    bare.set_nameserver([10, 77, 0, 254]);
    let rules = bare.path("/run/baremesh/foreign.nft");
    std::fs::write(rules, FOREIGN).expect("written");
    output_of(bare.sh("nft -f /run/baremesh/foreign.nft"));
    let (others, before) = (foreign(&bare), traces(&bare));
    output_of(bare.baremesh(["join", "10.77.0.200", "--token", &mesh.token(&["web"])]));
    let web = Member::of(bare);
    web.start();
    web.register("web", ["--port", "81:8100", "--when-gone", "open"]);
    wait_until("the rules are in place", || state(&web) == "in-place");
    assert_eq!(foreign(&web.host), others);
    assert_ne!(traces(&web.host), before);
    assert!(capture(&web, &["remove"]).status.success());
    assert_eq!((foreign(&web.host), traces(&web.host)), (others.clone(), before.clone()));
    assert!(capture(&web, &["apply"]).status.success());
    assert_eq!(state(&web), "in-place");
    // SIGTERM; the one service is released when the agent is gone.
    web.stop_agent();
    assert_eq!((foreign(&web.host), traces(&web.host)), (others, before));
}

#[test]
fn fifty_starts_and_stops_lead_to_the_same_rules() {
    let mesh = Mesh::new("fifty");
    let (web, _store) = two(&mesh, "open");
    let ours = |host: &Host| {
        output_of(host.sh("nft -s list table inet baremesh; nft -s list table inet baremesh_anchor"))
    };
    std::fs::write(web.host.path("/run/baremesh/foreign.nft"), FOREIGN).expect("written");
    output_of(web.host.sh("nft -f /run/baremesh/foreign.nft"));
    wait_until("the rules are in place", || state(&web) == "in-place");
    let (others, rules) = (foreign(&web.host), ours(&web.host));
    for turn in 0..50 {
        if turn % 5 == 4 {
            web.kill_agent();
            wait_until("the guard has removed the rules", || state(&web) == "missing");
        } else {
            web.stop_agent();
            assert_eq!(state(&web), "missing");
        }
        web.start();
        assert_eq!(ours(&web.host), rules, "turn {turn}");
    }
    assert_eq!(foreign(&web.host), others);
}

#[test]
fn ssh_is_never_captured() {
    let mesh = Mesh::new("ssh");
    let web = mesh.member_with("web", 1, &[], "[capture]\noutbound = \"all\"\n");
    let store = mesh.member("store", 2, &["*"]);
    for arguments in [["--port", "22"], ["--port", "2222:22"], ["--port=80", "--deliver=127.0.0.1:22"]] {
        let refused = run(store.host.baremesh(["service", "register", "shell"].iter().chain(&arguments)));
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(
            refused.status.code() == Some(1) && said.contains("port 22 is SSH's"),
            "{arguments:?}: {said}"
        );
    }
    // Resources cannot bring it about either.
    let address = store.host.v4();
    mesh.apply(&format!(
        "[[Service]]\nname = \"shell\"\nports = [{{ port = 22 }}]\n[[WorkloadEntry]]\nname = \"shell\"\naddress = \"{address}\"\n\
         labels = {{ app = \"shell\" }}\ntunnel = \"hbone\"\n"
    ));
    web.wait_for_endpoints("shell.default", 1);
    store.host.serve("shell", ["echo", "[::]:22"]);
    let wire = mesh.net.capture();
    for address in [store.host.v4().to_string(), store.host.v6().to_string(), "127.0.0.1".to_owned()] {
        let from = if address == "127.0.0.1" { &store.host } else { &web.host };
        assert_eq!(output_of(from.shop(["call", &address, "22", "SSH-2.0-plain"])), "SSH-2.0-plain");
    }
    assert!(wire.stop().off_loopback().contains("SSH-2.0-plain"), "it went through the agents");
    for line in web.log().iter().chain(&store.log()) {
        assert!(!line["downstream_local_address"].to_string().ends_with(":22\""), "{line}");
    }
}

#[test]
fn an_operator_plans_tries_confirms_and_removes() {
    let mesh = Mesh::new("trial");
    let (web, _store) = two(&mesh, "closed");
    let call = || exit_code_of(web.host.shop(["call", "--timeout", "5", "store", "80", "x"]));
    output_of(web.host.sh("baremesh capture plan | nft --check --file -"));
    assert_eq!((state(&web).as_str(), call()), ("in-place", exit::DONE));
    assert!(capture(&web, &["remove"]).status.success());
    let status = capture(&web, &["status"]);
    assert!(status.status.code() == Some(1) && String::from_utf8_lossy(&status.stdout).contains("missing"));
    assert_ne!(call(), exit::DONE);
    assert_eq!(web.status().expect("a status")["ready"], false);

    // Nobody confirms: they take themselves back.
    let tried = Instant::now();
    let applied = capture(&web, &["apply", "--confirm", "2s"]);
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    assert_eq!((state(&web).as_str(), call()), ("in-place", exit::DONE));
    wait_until("the rules have taken themselves back", || state(&web) == "missing");
    assert!(tried.elapsed() >= Duration::from_secs(2));

    assert!(capture(&web, &["apply", "--confirm", "3s"]).status.success());
    assert!(capture(&web, &["confirm"]).status.success());
    let confirmed = Instant::now();
    wait_until("the time for taking them back is over", || confirmed.elapsed() > Duration::from_secs(4));
    assert_eq!((state(&web).as_str(), call()), ("in-place", exit::DONE));
    web.wait_until_ready();
    assert_eq!(capture(&web, &["confirm"]).status.code(), Some(1), "there is nothing left to confirm");
}

#[test]
fn rules_that_somebody_took_away_are_put_back() {
    let mesh = Mesh::new("hands");
    let (web, _store) = two(&mesh, "closed");
    wait_until("the rules are in place", || state(&web) == "in-place");
    output_of(web.host.sh("nft add rule inet baremesh outbound counter accept"));
    assert_eq!(state(&web), "altered");
    // What changes the mesh has them written anew.
    mesh.apply("[[Service]]\nname = \"other\"\nports = [{ port = 80 }]\n[[WorkloadEntry]]\nname = \"other\"\naddress = \"10.77.0.77\"\nlabels = { app = \"other\" }\ntunnel = \"hbone\"\n");
    wait_until("they are as they were", || state(&web) == "in-place");
}
