//! What the programs that stay may do beyond others: as the kernel has it of each of their processes.

use std::collections::BTreeMap;
use std::fs;

use baremesh_tests::{exit, exit_code_of, needs_root, output_of, wait_until};

use crate::pair::Pair;

/// Bits of CapEff and its like (linux/capability.h).
const SETGID: u64 = 1 << 6;
const SETUID: u64 = 1 << 7;
const NET_BIND_SERVICE: u64 = 1 << 10;
const NET_ADMIN: u64 = 1 << 12;
const OF_COMMANDS: u64 = SETGID | SETUID;

/// What a process holds: effective, permitted, inheritable, bounding, ambient; and whether what it starts may gain any.
fn held(pid: u32) -> ([u64; 5], bool) {
    told(&fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs"))
}

/// The same as the kernel says it.
fn told(status: &str) -> ([u64; 5], bool) {
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
    };
    let set = |name| u64::from_str_radix(&value(name), 16).expect("bits");
    let sets = ["CapEff:", "CapPrm:", "CapInh:", "CapBnd:", "CapAmb:"].map(set);
    (sets, value("NoNewPrivs:") == "1")
}

/// The same of each of its threads, which are all alike.
#[track_caller]
fn check(what: &str, pid: u32, held_: u64, bounding: u64) {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    for task in tasks {
        let task = task.expect("a thread").path();
        // A thread that had nothing to do may have ended meanwhile.
        let Ok(status) = fs::read_to_string(task.join("status")) else { continue };
        assert_eq!(told(&status), ([held_, held_, 0, bounding, 0], true), "{what}, {}", task.display());
    }
}

/// Processes that a process has started, by the verb that they run.
fn children(of: u32) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    for process in fs::read_dir("/proc").expect("processes").flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let status = fs::read_to_string(process.path().join("status")).unwrap_or_default();
        if status
            .lines()
            .any(|line| line.strip_prefix("PPid:").is_some_and(|parent| parent.trim() == of.to_string()))
        {
            let line = fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
            for verb in ["guard", "health-commands"] {
                if line.split('\0').any(|word| word == verb) {
                    found.insert(verb.to_owned(), pid);
                }
            }
        }
    }
    found
}

#[test]
fn what_is_not_needed_is_given_up_and_everything_still_works() {
    needs_root!("two uids");
    let pair = Pair::new("privileges");
    let agent = pair.store.agent_pid();
    let children = children(agent);
    check("the agent", agent, NET_ADMIN, NET_ADMIN);
    check("its guard", children["guard"], NET_ADMIN, NET_ADMIN);
    check("what runs its commands", children["health-commands"], OF_COMMANDS, OF_COMMANDS);
    check("the control server", pair.mesh.control_pid(), 0, 0);
    let status = output_of(pair.store.host.baremesh(["status"]));
    assert!(status.contains("privileges    CAP_NET_ADMIN; programs that it starts gain none"), "{status}");

    // A command as another user, by a registration that came afterwards.
    let _echo = pair.store.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    let command =
        ["--check-exec", "/bin/sh", "-c", "test $(id -u) = 4242 && test -z \"$(id -G | grep -w 0)\""];
    let check_ = ["--port", "7000", "--user", "4242", "--check-interval", "0.2s"];
    pair.store.register_with("echo", &[&check_[..], &command].concat());
    pair.web.wait_for_endpoints("echo.default", 1);
    // New rules, new elements, and routes: what was registered is captured and reached.
    wait_until("it is called", || exit_code_of(pair.call("echo", 7000, "hello")) == exit::DONE);
    // Rules that somebody else took away come back, and the agent takes all of them away itself.
    output_of(pair.store.host.baremesh(["capture", "remove"]));
    output_of(pair.store.host.baremesh(["capture", "apply"]));
    output_of(pair.store.host.baremesh(["capture", "status"]));
    wait_until("it is called again", || exit_code_of(pair.call("echo", 7000, "hello")) == exit::DONE);
    // A guard that is posted later has no more.
    let guard = children["guard"];
    let mut kill = pair.store.host.command("kill");
    kill.args(["-KILL", &guard.to_string()]);
    output_of(kill);
    wait_until("another guard is posted", || {
        self::children(agent).get("guard").is_some_and(|pid| *pid != guard)
    });
    wait_until("it has given up the rest", || held(self::children(agent)["guard"]).0[0] == NET_ADMIN);
    check("the agent", agent, NET_ADMIN, NET_ADMIN);
    // And what ran commands ends with the agent.
    let commands = children["health-commands"];
    pair.store.stop_agent();
    wait_until("nothing of it runs", || !fs::exists(format!("/proc/{commands}")).unwrap_or(true));
}

#[test]
fn a_low_port_is_bound_with_the_one_capability_that_it_takes() {
    needs_root!("ports of the system's");
    let pair = Pair::with_config("privileges-port", "[dns]\nmode = \"nameserver\"\nport = 53\n");
    check("the agent", pair.store.agent_pid(), NET_ADMIN | NET_BIND_SERVICE, NET_ADMIN | NET_BIND_SERVICE);
    let guard = children(pair.store.agent_pid())["guard"];
    // It holds no more than it uses, whatever the agent that started it was left.
    assert_eq!(held(guard).0[..2], [NET_ADMIN, NET_ADMIN]);
}
