//! An agent takes the place of another, as on an upgrade, and no program notices.

use std::fs;

use crate::town::{REVIEWS, Town};
use baremesh_tests::{Load, Member, Mesh, Process, Requests, exit, exit_code_of, output_of, run, wait_until};

/// How often each side is taken over.
const TIMES: usize = 3;

/// A caller and the echo `store`.
fn two(name: &str, when_gone: &str) -> (Mesh, Member, Member) {
    let mesh = Mesh::new(name);
    let [web, store] = [("web", 1), ("store", 2)].map(|(name, index)| mesh.member(name, index, &["*"]));
    store.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    // What was heard of it holds at the agent that takes over: nobody says it again.
    store.register("store", ["--port", "80:7000", "--when-gone", when_gone, "--check-ttl", "600s"]);
    output_of(store.host.baremesh(["service", "heartbeat", "store"]));
    wait_until("it is healthy for its caller", || call(&web) == exit::DONE);
    (mesh, web, store)
}

fn call(web: &Member) -> u8 {
    exit_code_of(web.host.shop(["call", "--timeout", "60", "store", "80", "hello"]))
}

fn rules(member: &Member) -> String {
    output_of(member.host.sh("nft list ruleset"))
}

/// Waits until an agent has ended after another one took over.
fn ends(old: &Process) {
    assert!(old.wait().success(), "{}", old.stderr());
    assert!(old.stderr().contains("ended after another one took over"), "{}", old.stderr());
}

#[test]
fn connections_streams_and_requests_go_on_while_agents_take_over_on_both_sides() {
    let (_mesh, web, store) = two("take-over", "closed");
    let held = web.host.spawn("hold", web.host.shop(["hold", "store", "80"]));
    held.wait_for_output("open");
    let load = Load::start(&web.host, "store", 80);
    let (first, before) = ([web.agent_pid(), store.agent_pid()], rules(&store));
    let mut old = Vec::new();
    for _ in 0..TIMES {
        for member in [&store, &web] {
            old.push(member.take_over());
            load.wait_for_more(5);
        }
    }
    assert_eq!(load.stop(), [""; 0], "no connection failed");
    assert!(held.is_running(), "the stream goes on: {}", held.stdout());
    // The two that carry it are there for it yet; the others had nothing that stayed open.
    for (index, agent) in old.iter().enumerate() {
        let carries = first.contains(&agent.pid());
        assert_eq!(index < 2, carries);
        if carries {
            assert!(agent.is_running(), "{}", agent.stderr());
        }
    }
    held.kill();
    old.iter().for_each(ends);
    assert_eq!(rules(&store), before, "the rules are as they were");
    assert_eq!(web.endpoints("store.default"), Some(1), "it was never taken out");
    assert_eq!(call(&web), exit::DONE);
}

#[test]
fn requests_over_kept_and_new_connections_go_on_while_agents_take_over() {
    let town = Town::new("take-over-http", 1);
    let [_v1] = town.open();
    let kept = Requests::start(&town.web.host, &["--keep", "--parallel", "3"], REVIEWS);
    let single = Requests::start(&town.web.host, &["--parallel", "2"], REVIEWS);
    let mut old = Vec::new();
    for _ in 0..TIMES {
        for member in [&town.web, &town.hosts[0]] {
            old.push(member.take_over());
            kept.wait_for_more(10);
            single.wait_for_more(10);
        }
    }
    for requests in [kept, single] {
        let failed: Vec<_> = requests.stop().into_iter().filter(|answer| !answer.is_ok()).collect();
        assert!(failed.is_empty(), "{} failed, the first with {:?}", failed.len(), failed[0]);
    }
    old.iter().for_each(ends);
}

#[test]
fn one_that_cannot_serve_or_dies_on_the_way_leaves_the_other_in_charge() {
    let (mesh, web, store) = two("take-over-failed", "closed");
    let before = rules(&store);
    let load = Load::start(&web.host, "store", 80);
    // A configuration that cannot be read.
    fs::write(store.host.path("/etc/baremesh/agent.toml"), "[ports]\nhbone = \"none\"\n").expect("a file");
    let refused = run(store.host.baremesh(["agent", "--take-over", "--detach"]));
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("hbone") && said.contains("the one that runs stays in charge"), "{said}");
    fs::write(store.host.path("/etc/baremesh/agent.toml"), "").expect("a file");
    // Nobody signs, and the certificate is not on the disk: the new agent waits, and dies meanwhile.
    mesh.kill_control();
    fs::remove_dir_all(store.host.path("/var/lib/baremesh/certificates")).expect("certificates");
    let new = store.start_to_take_over();
    wait_until("the old agent knows of it", || store.agent_said().contains("prepares to take over"));
    load.wait_for_more(5);
    assert!(new.is_running(), "{}", new.stderr());
    new.kill();
    new.wait();
    wait_until("the old agent goes on", || store.agent_said().contains("did not come to take over"));
    mesh.start_control();
    load.wait_for_more(5);
    assert_eq!(store.status().expect("a status")["ready"], true);
    wait_until("the rules are as they were", || rules(&store) == before);
    assert_eq!(load.stop(), [""; 0]);
    // The next one does it.
    let old = store.take_over();
    ends(&old);
    assert_eq!(call(&web), exit::DONE);
}

#[test]
fn a_detached_one_is_left_running_and_guarded() {
    let (_mesh, web, store) = two("take-over-detached", "closed");
    output_of(store.host.sh("baremesh agent --take-over --detach > /run/taken-over.log 2>&1"));
    store.wait_until_ready();
    wait_until("the first one has ended", || {
        store.agent_said().contains("ended after another one took over")
    });
    assert_eq!(call(&web), exit::DONE);
    let said = store.agent_said();
    let process = said.lines().find_map(|line| {
        let (_, rest) = line.split_once("another agent takes over")?;
        rest.split_once("process=")?.1.split_whitespace().next()?.parse::<u32>().ok()
    });
    let process = process.expect("who took over is named");
    output_of(store.host.sh(&format!("kill -9 {process}")));
    wait_until("its guard acts", || rules(&store).contains("gone"));
    assert_ne!(call(&web), exit::DONE, "a closed service is refused");
}
