//! Networks that lose packets, and networks that are cut in two: nothing stays stuck.

use std::time::{Duration, Instant};

use baremesh_tests::{Host, exit, exit_code_of, output_of, wait_until};

use crate::consul::patiently;
use crate::pair::Pair;

/// After so long at most a call gets through again: a connection that waited repeats itself, or is given up for a new one.
const BACK: Duration = Duration::from_secs(30);

/// Has a host lose so many of a hundred packets, each by chance, in both directions. Those of its own interfaces pass.
fn lose(host: &Host, percent: u32) {
    // nft takes no comparison that always holds.
    let by_chance = match percent {
        100 => String::new(),
        some => format!("numgen random mod 100 < {some} "),
    };
    let chain = |name: &str, hook: &str, device: &str| {
        format!(
            "add chain inet loss {name} {{ type filter hook {hook} priority -300; }}; \
             add rule inet loss {name} {device} != \"lo\" meta l4proto tcp {by_chance}drop"
        )
    };
    let rules = [chain("in", "input", "iifname"), chain("out", "output", "oifname")].join("; ");
    output_of(host.sh(&format!("nft 'add table inet loss; {rules}'")));
}

fn lose_nothing_more(host: &Host) {
    output_of(host.sh("nft delete table inet loss"));
}

/// Whether a connection is still open at either agent.
fn is_any_open(pair: &Pair) -> bool {
    [&pair.web, &pair.store]
        .into_iter()
        .any(|member| member.status().is_none_or(|status| status["open_connections"].as_i64() != Some(0)))
}

#[test]
fn calls_and_changes_get_through_a_network_that_loses_packets() {
    // A SYN that is lost four times in a row is sent again after 15 s.
    let patience = "[proxy]\nconnect_timeout_seconds = 60\nhandshake_timeout_seconds = 60\n";
    let pair = Pair::with_config("lossy", patience);
    pair.serve("echo", 7000);
    let hosts = [&pair.web.host, &pair.store.host, &pair.mesh.control];
    hosts.iter().for_each(|host| lose(host, 10));
    for number in 0..20 {
        let text = format!("call {number}");
        let call = pair.web.host.shop(["call", "--timeout", "60", "echo", "7000", &text]);
        assert_eq!(output_of(call), text);
    }
    pair.mesh.apply("[[Service]]\nname = \"news\"\nports = [{ port = 80 }]\n");
    // A segment that is lost several times in a row is sent again half a minute later.
    patiently("the change is known", || pair.web.endpoints("news.default").is_some());
    hosts.iter().for_each(|host| lose_nothing_more(host));
    wait_until("no connection is stuck", || !is_any_open(&pair));
}

#[test]
fn a_host_that_was_cut_off_is_back_soon_after() {
    let pair = Pair::new("parted");
    pair.serve("echo", 7000);
    assert_eq!(output_of(pair.call("echo", 7000, "before")), "before");
    lose(&pair.web.host, 100);
    // Through the tunnel that stands, whose packets are lost from here on.
    let call = pair.web.host.shop(["call", "--timeout", "5", "echo", "7000", "lost"]);
    assert_ne!(exit_code_of(call), exit::DONE);
    lose_nothing_more(&pair.web.host);
    let healed = Instant::now();
    wait_until("calls get through", || {
        let call = pair.web.host.shop(["call", "--timeout", "5", "echo", "7000", "after"]);
        exit_code_of(call) == exit::DONE
    });
    let took = healed.elapsed();
    eprintln!("calls got through {took:?} after the network had");
    assert!(took < BACK, "{took:?}");
    wait_until("the control server is connected", || {
        pair.web.status().is_some_and(|status| status["source"]["connected"] == true)
    });
    wait_until("no connection is stuck", || !is_any_open(&pair));
}
