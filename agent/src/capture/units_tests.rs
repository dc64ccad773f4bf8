//! The table of units through changes of the plan, of other programs and of the agent's life, in the real kernel. Who is held by it
//! is the stories' to show: it takes cgroups.

use tempfile::TempDir;

use super::namespace::{namespace_test, plan, service, sh};
use super::{Anchor, Capture, CapturePlan, DnsCapture, Strictness, Units, Waiting, WhenGone, apply_gone};

fn capture() -> (Capture, TempDir) {
    let runtime = TempDir::new().expect("a directory");
    (Capture::new(runtime.path()).expect("nft and ip are installed"), runtime)
}

fn told_by_units(services: &[(&str, Option<WhenGone>)]) -> CapturePlan {
    let orders = service("orders", 8080, Strictness::Strict, WhenGone::Closed);
    let key = |name: &str| service(name, 1, Strictness::Strict, WhenGone::Closed).name;
    let units: Units = services.iter().map(|(name, held)| (key(name), *held)).collect();
    CapturePlan { local: vec![orders], units, ..plan() }
}

/// Puts some cgroup into a set, as systemd does with a unit's.
fn note(set: &str) {
    let some = sh("cd /sys/fs/cgroup && find . -mindepth 1 -type d | head -1");
    let some = some.trim().trim_start_matches("./");
    sh(&format!("nft 'add element inet baremesh_units {set} {{ \"{some}\" }}'"));
}

fn is_noted(set: &str) -> bool {
    sh(&format!("nft list set inet baremesh_units {set}")).contains("elements = {")
}

/// The table without what is noted.
fn table() -> String {
    sh("nft -s -t list table inet baremesh_units 2>/dev/null || true")
}

const BOTH: [(&str, Option<WhenGone>); 2] =
    [("orders", Some(WhenGone::Closed)), ("carts", Some(WhenGone::Open))];

namespace_test! {
    fn what_systemd_noted_outlives_every_change_of_the_rules() {
        let (mut capture, _runtime) = capture();
        capture.apply(&plan()).expect("applied");
        assert_eq!(table(), "", "nobody is told by a unit");
        let both = told_by_units(&BOTH);
        capture.apply(&both).expect("applied");
        note("unit.shop.orders");
        note("unit.shop.carts");
        assert!(table().contains("@unit.shop.orders goto refuse") && table().contains("@unit.shop.carts goto refuse"));
        capture.apply(&CapturePlan { dns: DnsCapture::Port53, ..both.clone() }).expect("the other table is replaced");
        assert!(is_noted("unit.shop.orders") && is_noted("unit.shop.carts"));
        // Another agent knows nothing of what this one wrote.
        let (mut next, _directory) = self::capture();
        next.apply(&told_by_units(&[("orders", Some(WhenGone::Closed)), ("web", None)])).expect("applied");
        assert!(is_noted("unit.shop.orders") && !is_noted("unit.shop.web"));
        assert!(!table().contains("unit.shop.carts"), "{}", table());
        assert!(!table().contains("@unit.shop.web"), "who is not held has a set, and no rule");
        next.apply(&told_by_units(&[("orders", None)])).expect("applied");
        assert!(is_noted("unit.shop.orders") && !table().contains("chain"), "nobody is held");
        next.apply(&plan()).expect("applied");
        assert_eq!(table(), "");
    }
}

namespace_test! {
    fn what_somebody_took_of_the_sets_is_put_back() {
        let (mut capture, _runtime) = capture();
        let both = told_by_units(&BOTH);
        capture.apply(&both).expect("applied");
        let whole = table();
        for harm in ["delete table inet baremesh_units", "flush chain inet baremesh_units outbound_check", "flush ruleset"] {
            sh(&format!("nft '{harm}'"));
            capture.follow(&both).expect("a change of the mesh alone");
            assert_ne!(table(), whole, "{harm}: it is not looked at for each of them");
            capture.apply(&both).expect("looked at");
            assert_eq!(table(), whole, "{harm}");
        }
    }
}

namespace_test! {
    fn a_gone_agent_leaves_the_sets_and_holds_closed_units_alone() {
        let (mut capture, _runtime) = capture();
        let both = told_by_units(&BOTH);
        capture.apply(&both).expect("applied");
        note("unit.shop.orders");
        note("unit.shop.carts");
        for waiting in [Waiting::Kept, Waiting::Reset] {
            apply_gone(&capture.gone_file(), waiting).expect("applied");
            assert!(is_noted("unit.shop.orders") && is_noted("unit.shop.carts"));
            assert!(table().contains("@unit.shop.orders goto refuse") && !table().contains("@unit.shop.carts"));
            assert!(!table().contains("redirect"));
        }
        // What is registered before the mesh's state is known has its set, and what is held stays held.
        let more = told_by_units(&[BOTH[0], BOTH[1], ("web", None)].map(|(name, _)| (name, None)));
        capture.hold(&more).expect("held");
        assert!(table().contains("set unit.shop.web") && table().contains("@unit.shop.orders goto refuse"));
        apply_gone(&capture.gone_file(), Waiting::Reset).expect("applied");
        assert!(table().contains("set unit.shop.web") && table().contains("@unit.shop.orders goto refuse"));
        // With open services alone the sets stay, and nothing is held.
        let open = CapturePlan { local: Vec::new(), ..told_by_units(&BOTH[1..]) };
        capture.apply(&open).expect("applied");
        apply_gone(&capture.gone_file(), Waiting::Reset).expect("applied");
        assert!(is_noted("unit.shop.carts") && !table().contains("chain"));
        capture.remove(Anchor::Remove).expect("removed");
        assert_eq!(sh("nft list tables"), "");
        // Nobody is told by a unit, and a state is not known yet: before there are rules, and beside those for a gone agent.
        let none = told_by_units(&[]);
        for _ in 0..2 {
            capture.hold(&none).expect("held");
            assert_eq!(sh("nft list tables"), "table inet baremesh\n");
        }
    }
}

namespace_test! {
    fn a_change_that_is_taken_back_leaves_who_was_held_before() {
        let (mut capture, _runtime) = capture();
        let nothing = capture.way_back().expect("a way back");
        capture.apply(&told_by_units(&BOTH)).expect("applied");
        note("unit.shop.orders");
        let (before, back) = (table(), capture.way_back().expect("a way back"));
        for other in [&BOTH[..1], &[("orders", None), ("carts", None)]] {
            capture.apply(&told_by_units(other)).expect("applied");
            assert_ne!(table(), before);
            back.run(&capture.tools).expect("taken back");
            assert_eq!(table().matches("goto refuse").count(), before.matches("goto refuse").count());
            assert!(is_noted("unit.shop.orders"));
        }
        nothing.run(&capture.tools).expect("taken back");
        assert_eq!(sh("nft list tables"), "");
    }
}
