//! `baremesh doctor` names what is wrong with a host, and has nothing to say of one that is well.

use std::fs;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use baremesh_tests::clock::library;
use baremesh_tests::{Host, Member, Mesh, exit, exit_code_of, needs_root, output_of, run, wait_until};
use serde_json::Value;

use crate::diagnosed::{diagnosed, explains, findings_of, named, named_by, over, said_by, seen, well};
use crate::pair::Pair;

/// Fewer connections than a machine of tests has descriptors for.
const FEW: &str = "[proxy]\nmax_connections = 500\n";

fn nft(host: &Host, commands: &[&str]) {
    for command in commands {
        output_of(host.sh(&format!("nft '{command}'")));
    }
}

/// A pair whose every registered service has its program.
#[track_caller]
fn pair(name: &str) -> Pair {
    let pair = Pair::with_config(name, FEW);
    pair.web.host.serve("own", ["echo", "127.0.0.1:80"]);
    pair.serve("echo", 7000);
    pair
}

#[test]
fn doctor_names_what_is_wrong_between_hosts_and_has_nothing_to_say_of_one_that_is_well() {
    let pair = pair("doctor-ways");
    let (web, store) = (&pair.web.host, &pair.store.host);
    let store_v4 = store.v4().to_string();
    for host in [web, store] {
        well(host, &["--peers"]);
    }
    // It has no agent, which is no fault of a control host.
    well(&pair.mesh.control, &[]);

    nft(
        web,
        &[
            "add table ip other",
            "add chain ip other out { type nat hook output priority -150; }",
            "add rule ip other out tcp dport 7000 redirect to :9",
        ],
    );
    let found = named(web, "foreign_redirect", &[]);
    assert!(seen(&found).contains("ip other out"), "{found:#}");
    nft(web, &["delete table ip other"]);

    nft(
        store,
        &[
            "add table inet fw",
            "add chain inet fw input { type filter hook input priority 0; }",
            "add rule inet fw input tcp dport 15008 drop",
        ],
    );
    let found = named(store, "firewall_drops", &[]);
    assert!(seen(&found).contains("inet fw input"), "{found:#}");
    let found = named(web, "peer_unreachable", &["--peers"]);
    assert!(seen(&found).contains(":15008"), "{found:#}");
    nft(store, &["delete table inet fw"]);
    well(web, &["--peers"]);

    output_of(web.sh(&format!(
        "ip route add unreachable {store_v4}/32; ip -6 route add unreachable {}/128",
        store.v6()
    )));
    let found = named(web, "peer_unreachable", &["--peers"]);
    assert!(found["do"].as_str().is_some_and(|way| way.contains("ip route get")), "{found:#}");
    // It is left out for some seconds.
    wait_until("it is explained that the endpoint is left out", || {
        assert_ne!(exit_code_of(pair.call("echo", 7000, "nowhere")), exit::DONE);
        let explained = run(web.baremesh(["explain", "tcp://echo:7000", "--from", "web"]));
        String::from_utf8_lossy(&explained.stdout).contains("ejected")
    });
    output_of(web.sh(&format!(
        "ip route del unreachable {store_v4}/32; ip -6 route del unreachable {}/128",
        store.v6()
    )));

    // The route is put back within half a minute: it is taken away before each look.
    let mut found = Vec::new();
    wait_until("route_missing is named", || {
        run(web.sh("ip route flush table local type local protocol 151; ip -6 route flush table local type local protocol 151"));
        found = findings_of(&diagnosed(web, &[]), "route_missing");
        !found.is_empty()
    });
    output_of(web.baremesh(["capture", "apply"]));

    nft(web, &["flush ruleset"]);
    wait_until("the rules stand again", || {
        pair.web.ask("/capture/status").is_some_and(|status| status["state"] == "in-place")
    });
    let found = named(web, "rules_restored", &[]);
    assert!(seen(&found).contains("by nft (process"), "the kernel said who: {found:#}");
    let restored = |line: &str| line.starts_with("baremesh_capture_restored_total ") && !line.ends_with(" 0");
    assert!(pair.web.metrics().lines().any(restored), "it is counted");
    assert_eq!(output_of(pair.call("echo", 7000, "as before")), "as before");

    // A caller without an agent.
    let stranger = pair.mesh.net.host("stranger", 9);
    run(stranger.shop(["call", "--timeout", "5", &store_v4, "7000", "hello"]));
    let found = named(store, "plaintext_refused", &[]);
    assert!(seen(&found).contains(&stranger.v4().to_string()), "{found:#}");
}

/// A member with one service whose program listens.
#[track_caller]
fn member(mesh: &Mesh, services: &[&str]) -> Member {
    let web = mesh.member_with("web", 1, services, FEW);
    web.host.serve("own", ["echo", "127.0.0.1:80"]);
    web.register("web", ["--port", "80", "--user", "0"]);
    web
}

/// Starts the agent by a command of its own, in place of the one that runs.
#[track_caller]
fn restart(member: &Member, command: Command) {
    member.stop_agent();
    member.host.spawn("agent", command);
    member.wait_until_ready();
}

#[test]
fn doctor_names_what_is_wrong_with_the_control_server_and_the_clock() {
    let mesh = Mesh::new("doctor-control");
    let web = member(&mesh, &["web"]);
    let host = &web.host;
    well(host, &[]);
    let control = mesh.control.v4().to_string();

    run(host.baremesh(["service", "register", "orders", "--port", "7300"]));
    let found = named(host, "not_granted", &[]);
    assert!(seen(&found).contains("sa/orders"), "{found:#}");
    explains(
        host,
        &["tcp://web:80", "--from", "orders"],
        "no certificate for spiffe://mesh.internal/ns/default/sa/orders",
    );
    let found = named(&mesh.control, "registration_held", &[]);
    assert!(seen(&found).contains("orders.default of web"), "{found:#}");
    output_of(host.baremesh(["service", "deregister", "orders"]));

    nft(
        host,
        &[
            "add table inet fw",
            "add chain inet fw out { type filter hook output priority 0; }",
            "add rule inet fw out tcp dport 15012 drop",
        ],
    );
    named(host, "control_silent", &[]);
    // With segments of their own, so that the rule sees packets as a network does.
    for host in [host, &mesh.control] {
        output_of(host.sh("ip link set dev eth0 gso_max_segs 1"));
    }
    nft(host, &["flush chain inet fw out", "add rule inet fw out tcp dport 15012 meta length > 1200 drop"]);
    named(host, "large_packets_lost", &[]);
    nft(host, &["delete table inet fw"]);

    output_of(host.sh(&format!("ip route add unreachable {control}/32")));
    named(host, "control_route", &[]);
    output_of(host.sh(&format!("ip route del unreachable {control}/32")));

    let other = mesh.beside("other.internal", &[]);
    nft(
        host,
        &[
            "add table ip led",
            "add chain ip led out { type nat hook output priority -90; }",
            &format!("add rule ip led out ip daddr {control} tcp dport 15012 dnat to {}", other.control.v4()),
        ],
    );
    named(host, "control_identity", &[]);
    nft(host, &["delete table ip led"]);
    drop(other);

    mesh.kill_control();
    named(host, "control_port", &[]);
    named(host, "registry_away", &[]);
    explains(host, &["tcp://web:80"], "no newer one can come");
    named(&mesh.control, "control_down", &[]);
    mesh.start_control();
    well(host, &[]);

    // The clock on the wall alone: what is waited for goes by another.
    let library = library();
    let skewed = |arguments: &[&str], by: &str| {
        let mut command = host.baremesh(arguments);
        command.env("LD_PRELOAD", &library).env("FAKETIME", by).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        command
    };
    // A host that lost its clock's battery.
    web.stop_agent();
    let agent = host.spawn("agent", skewed(&["agent"], "-3600s"));
    let found = named_by("certificate_early", || said_by(skewed(&["doctor", "-o", "json"], "-3600s")));
    assert!(seen(&found).contains("it is valid in"), "{found:#}");
    agent.terminate();
    agent.wait();
    web.start();
    well(host, &[]);

    restart(&web, skewed(&["agent"], "+300s"));
    let found = named(host, "clock_skew", &[]);
    assert!(seen(&found).contains("ahead of the control server's"), "{found:#}");

    output_of(mesh.control.baremesh(["host", "revoke", "web"]));
    named(host, "control_refuses", &[]);
}

/// For how long the first of a member's certificates is valid still.
fn seconds_left(member: &Member) -> u64 {
    let certificates = member.ask("/certificates").unwrap_or_default();
    let ends = certificates.as_array().into_iter().flatten().filter_map(|held| held["not_after"].as_u64());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    ends.min().unwrap_or(now).saturating_sub(now)
}

#[test]
fn doctor_names_certificates_that_ended_and_those_that_cannot_be_renewed() {
    let lifetimes = ["--workload-lifetime", "60", "--node-lifetime", "60"];
    let mesh = Mesh::with_control_arguments("doctor-ended", &lifetimes);
    let web = member(&mesh, &["web"]);
    mesh.kill_control();
    // Each is longer than is waited for one thing. The renewal begins with the second half of its life at the latest.
    let near_its_end = |left| wait_until("the certificate nears its end", || seconds_left(&web) < left);
    near_its_end(45);
    near_its_end(30);
    named(&web.host, "renewal_fails", &[]);
    near_its_end(10);
    let found = named(&web.host, "certificate_near_end", &[]);
    assert!(seen(&found).contains("ends in"), "{found:#}");
    let found = named(&web.host, "certificate_ended", &[]);
    assert!(seen(&found).contains("ago"), "{found:#}");
    named(&web.host, "not_ready", &[]);
    explains(&web.host, &["tcp://web:80", "--from", "web"], "this agent is not ready: no certificate for");
    let found = named(&web.host, "node_ended", &[]);
    assert!(seen(&found).contains("renews itself for"), "{found:#}");
    mesh.start_control();
    over(&web.host, &["certificate_ended", "renewal_fails", "not_ready", "node_ended"]);
}

#[test]
fn doctor_names_what_is_wrong_on_the_host_itself() {
    let pair = pair("doctor-own");
    let (web, host) = (&pair.web, &pair.web.host);
    let stranger = pair.mesh.net.host("stranger", 9);
    named(&stranger, "not_joined", &[]);

    output_of(pair.store.host.baremesh([
        "service",
        "register",
        "idle",
        "--port",
        "7100",
        "--unit",
        "nosuch.service",
    ]));
    let store = &pair.store.host;
    for code in ["not_listening", "no_process"] {
        let found = named(store, code, &[]);
        assert!(seen(&found).contains("idle.default"), "{found:#}");
    }
    output_of(store.baremesh(["service", "register", "idle", "--port", "7100", "--check-tcp"]));
    let found = named(store, "service_unhealthy", &[]);
    assert!(seen(&found).contains("idle.default"), "{found:#}");

    // A second agent, with everything of its own but the network.
    output_of(host.sh(
        "mkdir -p /run/second/config && cp -a /var/lib/baremesh /run/second/state && printf '%s\n' '[ports]' 'outbound = 25001' \
         'inbound = 25006' 'hbone = 25008' '[capture]' 'enabled = false' '[dns]' 'port = 25053' '[telemetry]' \
         'metrics = \"127.0.0.1:25020\"' 'ready = \"127.0.0.1:25021\"' > /run/second/config/agent.toml",
    ));
    let second = [
        "--config-dir",
        "/run/second/config",
        "--state-dir",
        "/run/second/state",
        "--run-dir",
        "/run/second/run",
    ];
    let second = host.spawn("second", host.baremesh(second.iter().chain(&["agent"])));
    let found = named(host, "two_agents", &[]);
    assert!(seen(&found).contains(&second.pid().to_string()), "{found:#}");
    second.kill();
    second.wait();

    output_of(host.sh(
        "mount --bind /var/lib/baremesh /var/lib/baremesh && mount -o remount,bind,ro /var/lib/baremesh",
    ));
    named(host, "state_unwritable", &[]);
    output_of(host.sh("umount /var/lib/baremesh"));
    output_of(host.sh("mount -t tmpfs -o size=4m,mode=700 tmpfs /var/lib/baremesh"));
    run(host.sh("cat /dev/zero > /var/lib/baremesh/fill"));
    named(host, "disk_full", &[]);
    output_of(host.sh("umount /var/lib/baremesh"));
    well(host, &[]);

    web.configure("[proxy]\nmax_connections = 5000\n[dns]\nmode = \"nameserver\"\n");
    restart(web, host.sh("ulimit -n 1024 && exec baremesh agent"));
    let found = named(host, "descriptors_low", &[]);
    assert!(seen(&found).contains("of 1024"), "{found:#}");
    let found = named(host, "names_bypassed", &[]);
    assert!(seen(&found).contains("10.77.0.254"), "{found:#}");

    pair.store.stop_agent();
    store.serve("thief", ["echo", "0.0.0.0:15008"]);
    named(store, "agent_down", &[]);
    let found = named(store, "port_taken", &[]);
    assert!(seen(&found).contains("15008"), "{found:#}");
    fs::write(store.path("/etc/baremesh/agent.toml"), "[ports]\nhbone = \"x\"\n").expect("written");
    let found = named(store, "config_invalid", &[]);
    assert!(seen(&found).contains("hbone"), "{found:#}");
}

#[test]
fn who_may_not_look_is_told_what_was_not_looked_at() {
    needs_root!("two uids");
    let mesh = Mesh::new("doctor-user");
    let web = member(&mesh, &["web"]);
    let mut doctor = web.host.command_as(1234, "baremesh");
    doctor.args(["doctor", "-o", "json"]);
    let said: Value = serde_json::from_slice(&run(doctor).stdout).expect("JSON");
    assert_eq!(said["agent"], "not_allowed", "{said:#}");
    let left: Vec<_> =
        said["not_checked"].as_array().into_iter().flatten().map(|one| &one["check"]).collect();
    for check in ["agent", "ports", "rules", "firewall", "registry", "certificates", "names"] {
        assert!(left.iter().any(|one| *one == check), "{check}: {said:#}");
    }
}

#[test]
fn explain_names_what_keeps_a_call_from_its_service() {
    let pair = pair("explain-faults");
    let host = &pair.web.host;
    let explained = |url: &str| {
        let output = run(host.baremesh(["explain", "-o", "json", url, "--from", "web"]));
        let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (said["outcome"].as_str().unwrap_or_default().to_owned(), said.to_string())
    };
    let becomes = |url: &str, outcome: &str, word: &str| {
        wait_until(&format!("{url} comes to {outcome}"), || {
            let (found, said) = explained(url);
            if found != outcome || !said.contains(word) {
                eprintln!("{url}: {found}: {said}");
            }
            found == outcome && said.contains(word)
        });
    };
    becomes("tcp://echo:7000", "forwarded", "echo");

    let store = &pair.store.host;
    output_of(store.baremesh(["service", "register", "ill", "--port", "7100", "--check-tcp"]));
    becomes("tcp://ill:7100", "no_endpoint", "unhealthy");
    named(store, "service_unhealthy", &[]);

    pair.mesh.enforce(
        "[[Service]]\nname = \"nobody\"\nports = [{ port = 7200 }]\n\
         [[Service]]\nname = \"split\"\nports = [{ port = 80, protocol = \"http\" }]\n\
         [[VirtualService]]\nname = \"split\"\nhosts = [\"split\"]\nhttp = [{ route = [{ destination = { host = \"split\", subset = \"v9\" } }] }]\n\
         [[AuthorizationPolicy]]\nname = \"closed\"\naction = \"DENY\"\nselector = { matchLabels = { app = \"echo\" } }\nrules = [{}]\n",
    );
    becomes("tcp://nobody:7200", "no_endpoint", "there is no endpoint");
    becomes("http://split/", "no_destination", "no such service, port or subset");
    becomes("tcp://echo:7000", "refused", "default/closed");
    assert_ne!(exit_code_of(pair.call("echo", 7000, "refused")), exit::DONE);
    becomes("tcp://echo:7009", "no_such_port", "7000/");
    pair.mesh.enforce(
        "[[Sidecar]]\nname = \"web\"\nworkloadSelector = { labels = { app = \"web\" } }\negress = [{ hosts = [\"./ill\"] }]\n\
         outboundTrafficPolicy = { mode = \"REGISTRY_ONLY\" }\n",
    );
    becomes("tcp://echo:7000", "no_route", "Sidecar web.default");
    becomes("tcp://192.0.2.1:80", "no_route", "not_in_registry");
}
