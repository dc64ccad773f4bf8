//! Policies decide who may call, also for connections that are open, and say what they decided.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;

use baremesh_tests::{WAIT_BOUND, exit, exit_code_of, output_of, wait_until};

use crate::pair::{Pair, WEB, WEB_ID, because, connections_of, is_cut, real_addresses, virtual_addresses};

/// An AuthorizationPolicy for the service `echo`, with further lines.
fn policy(name: &str, lines: &str) -> String {
    format!(
        "[[AuthorizationPolicy]]\nname = \"{name}\"\nselector = {{ matchLabels = {{ app = \"echo\" }} }}\n{lines}\n"
    )
}

fn from(source: &str) -> String {
    format!("rules = [{{ from = [{{ source = {{ {source} }} }}] }}]")
}

/// Waits until a call is carried.
#[track_caller]
fn wait_until_carried(pair: &Pair) {
    wait_until("a call is carried", || !is_cut(pair.call("echo", 7000, "hello")));
}

/// Waits until a call is cut off.
#[track_caller]
fn wait_until_cut(pair: &Pair) {
    wait_until("a call is cut off", || is_cut(pair.call("echo", 7000, "hello")));
}

#[test]
fn denies_an_unlisted_caller() {
    let pair = Pair::new("unlisted");
    let echo = pair.serve("echo", 7000);
    assert_eq!(exit_code_of(pair.call("echo", 7000, "hello")), exit::DONE, "without a policy");
    pair.mesh.apply(&policy("echo", &from("principals = [\"mesh.internal/ns/default/sa/somebody\"]")));
    wait_until_cut(&pair);
    let before = connections_of(&echo);
    for name in ["echo", &real_addresses(&pair.store.host)[0], &real_addresses(&pair.store.host)[1]] {
        assert!(is_cut(pair.call(name, 7000, "hello")), "{name}");
    }
    assert_eq!(connections_of(&echo), before, "its program never saw them");
    pair.web.wait_for_log("the refusal", because("denied_by_peer"));
    pair.store.wait_for_log("the refusal and its caller", |line| {
        because("denied")(line) && line["source_principal"] == WEB_ID
    });
    pair.mesh.apply(&policy("echo", &from(&format!("principals = [\"{WEB}\"]"))));
    wait_until_carried(&pair);
    pair.mesh.apply(&policy("echo", "rules = []"));
    wait_until_cut(&pair);
}

/// What other proxies took for regular expressions, and names that merely look alike.
#[test]
fn names_in_policies_are_compared_as_they_stand() {
    let pair = Pair::new("literal");
    let echo = pair.serve("echo", 7000);
    let mut before = 0;
    for name in [
        "mesh.internal/ns/default/sa/w.b",
        "mesh.internal/ns/default/sa/.*",
        "mesh.internal/ns/.+/sa/web",
        "mesh.internal/ns/default/sa/(web)",
        "mesh.internal/ns/default/sa/[w]eb",
        "mesh.internal/ns/default/sa/web|",
        "mesh.internal/ns/default/sa/web$",
        "mesh?internal/ns/default/sa/web",
        "meshxinternal/ns/default/sa/web",
        "MESH.internal/ns/default/sa/web",
        "mesh.internal/ns/default/sa/we",
        "mesh.internal/ns/default/sa/web/",
    ] {
        pair.mesh.enforce(&policy("echo", &from(&format!("principals = [\"{name}\"]"))));
        assert!(is_cut(pair.call("echo", 7000, "hello")), "{name}");
        assert_eq!(connections_of(&echo), before, "{name}: its program saw it");
        // It is the name that was wrong.
        pair.mesh.enforce(&policy("echo", &from(&format!("principals = [\"{WEB}\"]"))));
        assert_eq!(exit_code_of(pair.call("echo", 7000, "hello")), exit::DONE);
        before = connections_of(&echo);
    }
    pair.store.wait_for_log("the refusal", because("denied"));
}

/// A word on an open connection to an echo, and the same word back.
fn exchange(mut stream: &TcpStream, word: &str) -> bool {
    let mut heard = vec![0; word.len()];
    stream.write_all(word.as_bytes()).and_then(|()| stream.read_exact(&mut heard)).is_ok()
        && heard == word.as_bytes()
}

#[test]
fn a_changed_policy_ends_what_it_denies_and_nothing_else() {
    let pair = Pair::with_config("changed", "[proxy]\nworkers = 1\n");
    pair.store.host.serve("echo", ["echo", "127.0.0.1:7000", "127.0.0.1:7001"]);
    pair.store.register("echo", ["--port", "7000", "--port", "7001"]);
    pair.web.wait_for_endpoints("echo.default", 2);
    let address = virtual_addresses(&pair.web, "echo")[0];
    let connect = |port| {
        let stream = pair.web.host.connect((address, port)).expect("a connection");
        stream.set_read_timeout(Some(WAIT_BOUND)).expect("a timeout");
        assert!(exchange(&stream, "before"));
        stream
    };
    let (allowed, denied) = (connect(7000), connect(7001));
    let tunnels = pair
        .web
        .host
        .sh("ss --no-header --numeric --tcp state established '( dport = :15008 )' | wc --lines");
    assert_eq!(output_of(tunnels), "1", "both are in one tunnel");

    let deny = "action = \"DENY\"\nrules = [{ to = [{ operation = { ports = [\"7001\"] } }] }]";
    pair.mesh.apply(&policy("echo", deny));
    let ended = (&denied).read(&mut [0; 1]).expect_err("it is reset while it is quiet");
    assert_eq!(ended.kind(), ErrorKind::ConnectionReset);
    pair.store.wait_for_log("the end", because("no_longer_allowed"));
    assert!(is_cut(pair.call("echo", 7001, "hello")));
    assert!(exchange(&allowed, "after"), "the other stream of the tunnel goes on");
    assert_eq!(exit_code_of(pair.call("echo", 7000, "hello")), exit::DONE);
}

#[test]
fn audit_and_dry_run_are_noted_and_decide_nothing() {
    let pair = Pair::new("notes");
    pair.serve("echo", 7000);
    let all = from(&format!("principals = [\"{WEB}\"]"));
    pair.mesh.apply(&policy("watched", &format!("action = \"AUDIT\"\n{all}")));
    pair.mesh.apply(&policy("planned", &format!("action = \"DENY\"\ndryRun = true\n{all}")));
    pair.mesh.apply(&policy("promised", &format!("dryRun = true\n{}", from("namespaces = [\"elsewhere\"]"))));
    let noted = |line: &serde_json::Value| {
        let notes = line["policy_notes"].as_array().cloned().unwrap_or_default();
        let notes: Vec<_> = notes.iter().filter_map(|note| note.as_str()).map(str::to_owned).collect();
        ["default/watched: audit", "default/planned: would deny"]
            .iter()
            .all(|n| notes.iter().any(|note| note == n))
    };
    wait_until("the notes are in the log", || {
        assert_eq!(exit_code_of(pair.call("echo", 7000, "hello")), exit::DONE, "nothing is decided");
        pair.store.log().iter().any(noted)
    });
    // A dry-run ALLOW grants nothing: with another one in force, it does not let its caller in.
    pair.mesh.apply(&policy("promised", &format!("dryRun = true\n{all}")));
    pair.mesh.enforce(&policy("real", &from("namespaces = [\"elsewhere\"]")));
    wait_until_cut(&pair);
    pair.store.wait_for_log("what it would have done", |line| {
        let notes = line["policy_notes"].as_array().cloned().unwrap_or_default();
        because("denied")(line) && notes.iter().any(|note| note == "default/promised: would allow")
    });
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Carried,
    Cut,
}

fn fate_of(pair: &Pair, port: u16) -> Fate {
    if is_cut(pair.call("echo", port, "hello")) { Fate::Cut } else { Fate::Carried }
}

#[test]
fn policies_see_addresses_and_ports() {
    let pair = Pair::new("blocks");
    pair.store.host.serve("echo", ["echo", "127.0.0.1:7000", "127.0.0.1:7001"]);
    pair.store.register("echo", ["--port", "7000", "--port", "81:7001"]);
    pair.web.wait_for_endpoints("echo.default", 2);
    let check = |lines: &str, first: Fate, second: Fate| {
        pair.mesh.apply(&policy("echo", lines));
        wait_until(&format!("{lines} gives {first:?} and {second:?}"), || {
            [(7000, first), (81, second)].iter().all(|(port, fate)| fate_of(&pair, *port) == *fate)
        });
    };
    check(&from("ipBlocks = [\"10.77.0.1\", \"fd77::1\"]"), Fate::Carried, Fate::Carried);
    check(&from("ipBlocks = [\"10.77.0.2/32\", \"fd77::2/128\"]"), Fate::Cut, Fate::Cut);
    check(
        &from("ipBlocks = [\"10.77.0.0/24\", \"fd77::/64\"], notIpBlocks = [\"10.77.0.1\", \"fd77::1\"]"),
        Fate::Cut,
        Fate::Cut,
    );
    // A policy names the workload's own port, not the one that callers name.
    check("rules = [{ to = [{ operation = { ports = [\"7001\"] } }] }]", Fate::Cut, Fate::Carried);
    check("rules = [{ to = [{ operation = { notPorts = [\"7001\"] } }] }]", Fate::Carried, Fate::Cut);
    check("rules = [{ to = [{ operation = { ports = [\"81\"] } }] }]", Fate::Cut, Fate::Cut);
    check(
        "rules = [{ when = [{ key = \"destination.port\", values = [\"7000\"] }] }]",
        Fate::Carried,
        Fate::Cut,
    );
}
