//! An agent that is told to stop lets what is open end, for a while.

use std::time::{Duration, Instant};

use baremesh_tests::{Member, Mesh, exit, exit_code_of, output_of, wait_until};

/// A caller, and the echo `store`; both drain for so many seconds.
fn two(mesh: &Mesh, seconds: u32) -> (Member, Member) {
    let config = format!("drain_seconds = {seconds}\n");
    let web = mesh.member_with("web", 1, &["web"], &config);
    let store = mesh.member_with("store", 2, &["store"], &config);
    store.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    store.register("store", ["--port", "80:7000", "--when-gone", "open"]);
    web.register("web", ["--port", "81", "--when-gone", "open"]);
    web.wait_for_endpoints("store.default", 1);
    (web, store)
}

fn tables(member: &Member) -> String {
    output_of(member.host.sh("nft list tables; ip route show table local | grep 240.240 || true"))
}

#[test]
fn open_connections_end_in_their_own_time_and_new_ones_are_refused() {
    for stopping in ["store", "web"] {
        let mesh = Mesh::new("drain");
        let (web, store) = two(&mesh, 30);
        let held = web.host.spawn("hold", web.host.shop(["hold", "store", "80"]));
        held.wait_for_output("open");
        let member = if stopping == "web" { &web } else { &store };
        let told = Instant::now();
        let agent = member.tell_agent_to_stop();
        wait_until("new connections are refused", || {
            exit_code_of(web.host.shop(["call", "--timeout", "5", "store", "80", "new"])) != exit::DONE
        });
        let log = web.host.directory().join("log");
        assert!(held.is_running() && agent.is_running(), "{stopping}: {} {log:?}", held.stdout());
        // The end of the one connection is the end of the agent: long before the limit.
        held.kill();
        assert!(agent.wait().success(), "{stopping}: {}", agent.stderr());
        assert!(told.elapsed() < Duration::from_secs(20), "{stopping}: it took {:?}", told.elapsed());
        assert_eq!(tables(member), "", "{stopping}");
    }
}

#[test]
fn connections_that_do_not_end_are_closed_at_the_limit() {
    for stopping in ["store", "web"] {
        let mesh = Mesh::new("limit");
        let (web, store) = two(&mesh, 3);
        let held = web.host.spawn("hold", web.host.shop(["hold", "store", "80"]));
        held.wait_for_output("open");
        let member = if stopping == "web" { &web } else { &store };
        let told = Instant::now();
        let agent = member.tell_agent_to_stop();
        assert!(agent.wait().success(), "{stopping}: {}", agent.stderr());
        assert!(told.elapsed() >= Duration::from_secs(3), "{stopping}: it did not wait");
        assert_eq!(held.wait().code(), Some(exit::CUT.into()), "{stopping}: {}", held.stdout());
        let exchanges = held.stdout();
        assert!(exchanges.contains("ended after"), "{stopping}: {exchanges}");
        member.wait_for_log("why it ended", |line| line["response_code_details"] == "draining");
        assert_eq!(tables(member), "", "{stopping}");
    }
}
