//! Putting rules in place, changing, reading back and removing them, with the real nft in namespaces.

use std::net::{Ipv4Addr, SocketAddr};

use tempfile::TempDir;

use super::namespace::{addresses, namespace_test, plan, service, sh};
use super::{Anchor, Capture, CapturePlan, Change, DnsCapture, State, Strictness, WhenGone, route, sets};

/// What a test has: capture, and the directory for its state.
fn capture() -> (Capture, TempDir) {
    let runtime = TempDir::new().expect("a directory");
    (Capture::new(runtime.path()).expect("nft and ip are installed"), runtime)
}

/// Our table as text, without figures.
fn table() -> String {
    let text = sh("nft -s list table inet baremesh");
    text.lines().filter(|line| !line.contains("packets")).map(|line| format!("{line}\n")).collect()
}

fn some_plan() -> CapturePlan {
    let local = vec![service("orders", 8080, Strictness::Strict, WhenGone::Closed)];
    CapturePlan { local, endpoints: addresses(&["10.0.0.7:8080", "[fd09::7]:8080"]), ..plan() }
}

fn many(count: u32) -> CapturePlan {
    let base = u32::from(Ipv4Addr::new(10, 0, 0, 0));
    let endpoints = (0..count).map(|n| SocketAddr::from((Ipv4Addr::from(base + n), 8080))).collect();
    CapturePlan { endpoints, ..plan() }
}

namespace_test! {
    fn applying_twice_is_applying_once() {
        let (mut capture, _runtime) = capture();
        assert_eq!(capture.status().expect("status").state, State::Missing);
        assert_eq!(capture.apply(&some_plan()).expect("applied").change, Change::Replaced);
        let once = table();
        assert_eq!(capture.apply(&some_plan()).expect("applied").change, Change::None);
        assert_eq!(table(), once);
        let (mut another, _runtime) = self::capture();
        assert_eq!(another.apply(&some_plan()).expect("applied").change, Change::Replaced);
        assert_eq!(table(), once);
        let status = capture.status().expect("status");
        assert_eq!(status.state, State::InPlace);
        assert_eq!(status.elements["endpoints4"], 1);
        assert_eq!(status.routes.len(), 2);
        assert!(status.counters.contains_key("strict_stray"));
    }
}

namespace_test! {
    fn fifty_starts_and_stops_leave_nothing_and_touch_nothing() {
        sh("nft 'table inet foreign { set s { type inet_service; elements = { 1 }; }
            chain c { type filter hook output priority 0; tcp dport @s accept; }; }'");
        sh("nft 'table ip nat { chain OUTPUT { type nat hook output priority -100; ip daddr 192.0.2.1 accept; }; }'");
        sh("ip route add local 198.51.100.0/24 dev lo");
        let outside = || sh("nft list ruleset; ip route show table all; ip -6 route show table all");
        let before = outside();
        let (mut capture, runtime) = capture();
        for _ in 0..50 {
            capture.apply(&some_plan()).expect("applied");
            capture.remove(Anchor::Remove).expect("removed");
            assert_eq!(outside(), before);
        }
        capture.remove(Anchor::Remove).expect("removed though there is nothing");
        assert_eq!(std::fs::read_dir(runtime.path()).expect("a directory").count(), 0);
        capture.apply(&some_plan()).expect("applied");
        capture.remove(Anchor::Keep).expect("removed");
        assert!(outside().contains("table inet baremesh_anchor"));
        assert!(!outside().contains("table inet baremesh {"));
    }
}

namespace_test! {
    fn a_change_of_elements_comes_to_the_same_as_a_replacement() {
        let (mut capture, _runtime) = capture();
        capture.apply(&some_plan()).expect("applied");
        let mut changed = some_plan();
        changed.endpoints = addresses(&["10.0.0.8:8080", "10.0.0.7:8080"]);
        changed.local.push(service("carts", 9090, Strictness::Permissive, WhenGone::Open));
        changed.local[0].strictness = Strictness::Permissive;
        let change = capture.apply(&changed).expect("applied").change;
        // Endpoints: one came, one went. The new service's port came twice (own callers, others); one strict port went.
        assert_eq!(change, Change::Elements { added: 3, removed: 2 });
        let in_steps = table();
        assert_eq!(capture.status().expect("status").state, State::InPlace);
        let (mut another, _runtime) = self::capture();
        assert_eq!(another.apply(&changed).expect("applied").change, Change::Replaced);
        assert_eq!(table(), in_steps);
        changed.dns = DnsCapture::Port53;
        assert_eq!(capture.apply(&changed).expect("applied").change, Change::Replaced);
    }
}

namespace_test! {
    fn what_somebody_else_changed_is_seen_and_mended() {
        let (mut capture, _runtime) = capture();
        capture.apply(&some_plan()).expect("applied");
        let whole = table();
        for damage in [
            "nft flush chain inet baremesh inbound_check",
            "nft delete element inet baremesh endpoints4 '{ 10.0.0.7 . 8080 }'",
            "nft add element inet baremesh exempt_ports '{ 8080 }'",
            "nft insert rule inet baremesh outbound accept",
            "nft flush set inet baremesh seal",
        ] {
            sh(damage);
            assert!(matches!(capture.status().expect("status").state, State::Altered(_)), "{damage}");
            let applied = capture.apply(&some_plan()).expect("applied");
            assert_eq!((applied.change, applied.found.is_some()), (Change::Restored, true), "{damage}");
            assert_eq!(table(), whole);
        }
        sh("nft delete table inet baremesh");
        assert!(matches!(capture.status().expect("status").state, State::Altered(_)), "the routes stand alone");
        let mut changed = some_plan();
        changed.endpoints.clear();
        assert_eq!(capture.apply(&changed).expect("applied").change, Change::Restored);
        sh("ip route flush table local type local protocol 151; ip -6 route flush table local type local protocol 151");
        assert!(matches!(capture.status().expect("status").state, State::Altered(_)));
        capture.apply(&changed).expect("applied");
        assert_eq!(capture.status().expect("status").state, State::InPlace);
    }
}

namespace_test! {
    fn thousands_of_endpoints_load() {
        let (mut capture, _runtime) = capture();
        // The largest does not fit into one message in a user namespace.
        for count in [5_000, 40_000] {
            capture.apply(&plan()).expect("applied");
            let change = capture.apply(&many(count)).expect("applied").change;
            let status = capture.status().expect("status");
            assert_eq!((&status.state, status.elements["endpoints4"]), (&State::InPlace, count as usize));
            assert_ne!(change, Change::None);
        }
        let one_more = capture.apply(&many(40_001)).expect("applied").change;
        assert_eq!(one_more, Change::Elements { added: 1, removed: 0 });
    }
}

namespace_test! {
    fn a_split_load_is_whole_only_with_its_last_part() {
        let (capture, _runtime) = capture();
        let ruleset = super::rules::ruleset(&many(2_500));
        let parts = super::apply::in_parts(&super::rules::skeleton(&ruleset), &ruleset.sets);
        assert_eq!(parts.len(), 2_507usize.div_ceil(sets::ELEMENTS_PER_TRANSACTION));
        for part in &parts {
            assert!(matches!(capture.status().expect("status").state, State::Missing | State::Altered(_)));
            capture.tools.apply(part).expect("a part loads");
        }
        assert_eq!(capture.status().expect("status").elements["endpoints4"], 2_500);
    }
}

namespace_test! {
    fn a_changed_range_moves_the_route() {
        let (mut capture, _runtime) = capture();
        capture.apply(&plan()).expect("applied");
        // What an operator sets for a route stays, whatever of the rules changes.
        let local = "local 240.240.0.0/16 dev lo table local protocol 151";
        sh(&format!("ip route replace {local} congctl reno"));
        capture.apply(&some_plan()).expect("applied");
        assert!(sh("ip route show table local protocol 151").contains("congctl reno"));
        let moved = CapturePlan { virtual_v4: "240.0.0.0/12".parse().expect("a range"), virtual_v6: None, ..plan() };
        capture.apply(&moved).expect("applied");
        assert_eq!(capture.status().expect("status").routes, route::ranges_of(&moved));
    }
}

namespace_test! {
    fn a_host_without_ipv6_is_served_and_told() {
        sh("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 > /proc/sys/net/ipv6/conf/lo/disable_ipv6");
        let (mut capture, _runtime) = capture();
        let applied = capture.apply(&some_plan()).expect("applied");
        assert!(applied.without_ipv6.is_some());
        let status = capture.status().expect("status");
        assert_eq!((status.state, status.routes.len()), (State::InPlace, 1));
        capture.remove(Anchor::Remove).expect("removed");
        assert_eq!(capture.status().expect("status").state, State::Missing);
    }
}

namespace_test! {
    fn one_endpoint_more_among_thousands_is_one_element_and_what_others_changed_is_seen() {
        let (mut capture, _runtime) = capture();
        let follow = |capture: &mut Capture, count| capture.follow(&many(count)).expect("applied").change;
        assert_eq!(follow(&mut capture, 20_000), Change::Replaced);
        assert_eq!(follow(&mut capture, 20_001), Change::Elements { added: 1, removed: 0 });
        assert_eq!(follow(&mut capture, 20_000), Change::Elements { added: 0, removed: 1 });
        assert_eq!(follow(&mut capture, 20_000), Change::None);
        assert_eq!(capture.status().expect("status").state, State::InPlace, "the seal is of what stands");
        // What is not concerned is not looked at, until all is.
        sh("nft delete element inet baremesh endpoints4 '{ 10.0.0.9 . 8080 }'");
        assert_eq!(follow(&mut capture, 20_001), Change::Elements { added: 1, removed: 0 });
        assert_eq!(capture.apply(&many(20_001)).expect("applied").change, Change::Restored);
        sh("nft delete table inet baremesh");
        assert_eq!(follow(&mut capture, 20_002), Change::Restored);
        assert_eq!(capture.status().expect("status").state, State::InPlace);
    }
}

namespace_test! {
    fn the_rules_for_the_next_boot_are_written_with_each_service_and_not_with_each_endpoint() {
        let directory = TempDir::new().expect("a directory");
        let boot = directory.path().join("boot.nft");
        let capture = Capture::new(directory.path()).expect("nft and ip are installed");
        let mut capture = capture.keeping_for_boot(boot.clone());
        let written = || std::fs::read_to_string(&boot).expect("written");
        let closed = |name: &str, port: u16| service(name, port, Strictness::Strict, WhenGone::Closed);
        let mut plan = CapturePlan { local: vec![closed("orders", 8080)], ..plan() };
        capture.apply(&plan).expect("applied");
        let first = written();
        assert!(first.contains("8080") && first == std::fs::read_to_string(capture.gone_file()).expect("written"));
        plan.endpoints.insert("10.9.9.9:9000".parse().expect("an address"));
        capture.apply(&plan).expect("applied");
        assert_eq!(written(), first, "not for an endpoint of another host");
        plan.local.push(closed("stock", 8081));
        capture.apply(&plan).expect("applied");
        assert!(written().contains("8081") && written().contains("10.9.9.9"));
        // A disk that takes nothing leaves the host with its rules.
        std::fs::remove_file(&boot).expect("removed");
        std::fs::create_dir(&boot).expect("in the way");
        plan.local.push(closed("shop", 8082));
        capture.apply(&plan).expect("applied all the same");
    }
}
