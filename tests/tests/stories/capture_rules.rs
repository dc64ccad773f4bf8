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
    // The kernel adds a route of its own when it has made sure that nobody else has the host's link-local address.
    wait_until("the host has its link-local address", || traces(&bare).contains("local fe80::"));
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
    // Rules follow what is known a moment later: where the other is called, and where this one is.
    wait_until("the rules are in place", || {
        let rules = ours(&web.host);
        state(&web) == "in-place" && rules.contains(" 7000") && rules.contains("8100")
    });
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
fn what_is_outside_passes_and_is_seen_where_everything_is_captured() {
    let mesh = Mesh::new("passthrough");
    let web = mesh.member_with("web", 1, &[], "[capture]\noutbound = \"all\"\n");
    let store = mesh.member("store", 2, &["echo"]);
    store.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    store.register("echo", ["--port", "7000"]);
    web.wait_for_endpoints("echo.default", 1);
    let outside = mesh.net.host("outside", 9);
    outside.serve("echo", ["echo", "[::]:9999"]);
    let wire = mesh.net.capture();
    for address in [outside.v4().to_string(), outside.v6().to_string()] {
        assert_eq!(output_of(web.host.shop(["call", &address, "9999", "as it was"])), "as it was");
        let line = web.wait_for_log(&address, |line| {
            line["upstream_cluster"] == "PassthroughCluster"
                && line["downstream_local_address"].to_string().contains(&address)
        });
        assert_eq!(line["connection_security_policy"], "none", "{line}");
    }
    assert!(web.metrics().contains("destination_service_name=\"PassthroughCluster\""));
    assert_eq!(output_of(web.host.shop(["call", "echo", "7000", "within the mesh"])), "within the mesh");
    let wire = wire.stop().off_loopback();
    assert!(wire.contains("as it was") && !wire.contains("within the mesh"));
    // The agent's own ways stay as they are: it is connected, and goes on where nobody answers outside.
    let status = web.status().expect("the agent answers");
    assert_eq!(status["source"]["connected"], true, "{status}");
    let refused = exit_code_of(web.host.shop(["call", &outside.v4().to_string(), "9998", "x"]));
    assert_ne!(refused, exit::DONE);
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
    assert!(status.status.code() == Some(1) && String::from_utf8_lossy(&status.stdout).contains("off: "));
    assert_ne!(call(), exit::DONE);
    assert_eq!(web.status().expect("a status")["ready"], false);

    // Nobody confirms: they take themselves back.
    let tried = Instant::now();
    let applied = capture(&web, &["apply", "--confirm", "10s"]);
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    let said = String::from_utf8_lossy(&applied.stdout).into_owned();
    assert!(said.contains("in place\nthey are taken back in 10 s unless they are confirmed"), "{said}");
    assert_eq!((state(&web).as_str(), call()), ("in-place", exit::DONE));
    wait_until("the rules have taken themselves back", || state(&web) == "missing");
    assert!(tried.elapsed() >= Duration::from_secs(10));

    assert!(capture(&web, &["apply", "--confirm", "10s"]).status.success());
    assert!(capture(&web, &["confirm"]).status.success());
    let confirmed = Instant::now();
    wait_until("the time for taking them back is over", || confirmed.elapsed() > Duration::from_secs(11));
    assert_eq!((state(&web).as_str(), call()), ("in-place", exit::DONE));
    web.wait_until_ready();
    assert_eq!(capture(&web, &["confirm"]).status.code(), Some(1), "there is nothing left to confirm");
}

#[test]
fn rules_that_somebody_took_away_are_put_back() {
    let mesh = Mesh::new("hands");
    let (web, _store) = two(&mesh, "closed");
    wait_until("the rules are in place", || state(&web) == "in-place");
    // A change of the mesh that is still under way would put them back before anybody looks.
    wait_until("somebody's rule is seen", || {
        output_of(web.host.sh("nft add rule inet baremesh outbound counter accept"));
        state(&web) == "altered"
    });
    // What changes the mesh has them written anew.
    mesh.apply("[[Service]]\nname = \"other\"\nports = [{ port = 80 }]\n[[WorkloadEntry]]\nname = \"other\"\naddress = \"10.77.0.77\"\nlabels = { app = \"other\" }\ntunnel = \"hbone\"\n");
    wait_until("they are as they were", || state(&web) == "in-place");
}

#[test]
fn a_plan_lists_the_connections_from_before_the_capture() {
    let mesh = Mesh::new("before");
    let web = mesh.member_with("web", 1, &["web"], "[capture]\nenabled = false\n");
    let (store, bare) = (mesh.member("store", 2, &["store"]), mesh.net.host("bare", 9));
    // Where a service takes plaintext, connections from before the capture go on.
    mesh.enforce(
        "[[PeerAuthentication]]\nname = \"store\"\nselector = { matchLabels = { app = \"store\" } }\nmtls.mode = \"PERMISSIVE\"\n",
    );
    store.host.serve("echo", ["echo", "[::]:7000"]);
    web.host.serve("echo", ["echo", "[::]:8100"]);
    let hold = |host: &Host, to: &str, port: &str| {
        let held = host.spawn("hold", host.shop(["hold", to, port]));
        held.wait_for_output("open");
        held
    };
    let outgoing = hold(&web.host, "10.77.0.2", "7000");
    let (incoming, within) = (hold(&bare, "fd77::1", "8100"), hold(&web.host, "127.0.0.1", "8100"));
    hold(&bare, "10.77.0.2", "7000");
    store.register("store", ["--port", "80:7000"]);
    web.register("web", ["--port", "81:8100"]);
    web.wait_for_endpoints("store.default", 1);

    let plan = || -> Vec<(String, String, String, u64, String)> {
        let plan: Value =
            serde_json::from_str(&output_of(web.host.baremesh(["capture", "plan", "--output", "json"])))
                .expect("JSON");
        let text = |flow: &Value, key: &str| flow[key].as_str().unwrap_or_default().to_owned();
        let flows = plan["flows"].as_array().expect("a list").iter();
        let row = |flow: &Value| {
            let uid = flow["uid"].as_u64().expect("a number");
            (
                text(flow, "direction"),
                text(flow, "service"),
                text(flow, "to"),
                uid,
                text(flow, "under_the_rules"),
            )
        };
        flows.map(row).collect()
    };
    let row = |direction: &str, service: &str, to: &str, becomes: &str| {
        (direction.to_owned(), service.to_owned(), to.to_owned(), 0, becomes.to_owned())
    };
    let goes_on = row("outgoing", "store.default", "10.77.0.2:7000", "goes-on");
    let all = [
        row("incoming", "web.default", "[fd77::1]:8100", "ended"),
        row("within", "web.default", "127.0.0.1:8100", "ended"),
        goes_on.clone(),
    ];
    assert_eq!(plan(), all);
    let said = output_of(web.host.sh(
        "baremesh capture plan | tee /run/baremesh/plan | nft --check --file - && cat /run/baremesh/plan",
    ));
    let line = said.lines().find(|line| line.contains("10.77.0.2:7000")).expect("a line for people");
    assert!(line.starts_with("# ") && line.contains("goes on past the agent"), "{line}");
    assert_eq!(web.status().expect("a status")["capture"], "off");

    let applied = output_of(web.host.baremesh(["capture", "apply"]));
    assert_eq!(applied, "the rules are in place");
    for held in [&incoming, &within] {
        assert_eq!(held.wait().code(), Some(exit::CUT.into()), "{}", held.stdout());
    }
    // What comes through the agent now is not from before, whichever way it was called.
    let through = [("10.77.0.2", "7000"), ("127.0.0.1", "8100")].map(|(to, port)| hold(&web.host, to, port));
    // Callers that were cut know it; their service hears of it with its own next packet, and may be listed until then.
    let left: Vec<_> = plan().into_iter().filter(|flow| !all[..2].contains(flow)).collect();
    assert_eq!(left, [goes_on]);
    assert!(outgoing.is_running() && through.iter().all(|held| held.is_running()));
    assert_eq!(
        output_of(web.host.baremesh(["capture", "apply", "--output", "json"])),
        "{\n  \"change\": \"none\",\n  \"added\": 0,\n  \"removed\": 0,\n  \"without_ipv6\": null,\n  \"taken_back_after_seconds\": null\n}"
    );
}

/// What is left after a reboot: disks, but neither rules nor routes nor `/run`; and the network is not up yet.
fn reboot(host: &Host) {
    output_of(host.sh("nft delete table inet baremesh; nft delete table inet baremesh_anchor 2>/dev/null
        for v in 4 6; do ip -$v route flush table local type local protocol 151; done
        rm -rf /run/baremesh/*; ip link set eth0 down"));
}

#[test]
fn a_closed_service_is_closed_from_the_first_packet_after_a_reboot() {
    let mesh = Mesh::new("reboot");
    let (store, bare) = (mesh.member("store", 2, &["store"]), mesh.net.host("bare", 9));
    let echo = store.host.serve("echo", ["echo", "[::]:7000"]);
    store.register("store", ["--port", "80:7000", "--when-gone", "closed"]);
    let call = || exit_code_of(bare.shop(["call", "--timeout", "5", "10.77.0.2", "7000", "early"]));
    // With no rules from the last run it is open until the agent is up: this is what they are for.
    store.stop_agent();
    output_of(store.host.sh("cp /run/baremesh/gone.nft /var/lib/baremesh/boot.nft"));
    reboot(&store.host);
    output_of(store.host.sh("ip link set eth0 up"));
    wait_until("the network is up", || call() == exit::DONE);

    let received = || echo.stdout().lines().filter(|line| line.contains("connection from")).count();
    let before = received();
    assert!(before > 0);

    // As baremesh-boot.service does, before the network is up; the state may be lost besides.
    for state_is_lost in [false, true] {
        reboot(&store.host);
        output_of(store.host.baremesh(["capture", "gone", "--file", "/var/lib/baremesh/boot.nft"]));
        output_of(store.host.sh("ip link set eth0 up"));
        wait_until("the network is up", || store.host.connect((mesh.control.v4(), 15012)).is_ok());
        assert_eq!((call(), state(&store).as_str()), (exit::NO_CONNECTION, "gone"));
        mesh.kill_control();
        if state_is_lost {
            std::fs::remove_file(store.host.path("/var/lib/baremesh/last-good.state"))
                .expect("a saved state");
        }
        store.start_without_waiting();
        let expected = if state_is_lost { "gone" } else { "in-place" };
        wait_until("the agent has looked at its rules", || {
            store.status().is_some() && state(&store) == expected
        });
        assert_ne!(call(), exit::DONE);
        mesh.start_control();
        store.wait_until_ready();
        assert_ne!(call(), exit::DONE);
        store.stop_agent();
    }
    assert_eq!(received(), before, "{}", echo.stdout());
}
