//! The memory that the agent's unit may have is kept by refusing what is new: the kernel ends nobody.

use std::fs;
use std::path::{Path, PathBuf};

use baremesh_tests::{Member, exit, exit_code_of, needs_root, wait_until};

use crate::pair::{Pair, because, virtual_addresses};

/// What the agents of the story may have, in bytes: what they hold already counts where they were before.
const LIMIT: u64 = 24 << 20;
/// More connections than an agent carries with that, tried one after the other.
const CONNECTIONS: &str = "4000";

/// A cgroup in which the kernel counts memory, of the version that does so on this machine.
struct Limited {
    directory: PathBuf,
    limit: &'static str,
    kills: (&'static str, &'static str),
}

impl Limited {
    fn new(name: &str) -> Self {
        let name = format!("baremesh-{name}-{}", std::process::id());
        let one = Path::new("/sys/fs/cgroup/memory");
        let limited = if one.join("memory.limit_in_bytes").exists() || one.join("cgroup.procs").exists() {
            let kills = ("memory.oom_control", "oom_kill ");
            Self { directory: one.join(name), limit: "memory.limit_in_bytes", kills }
        } else {
            let top = Path::new("/sys/fs/cgroup");
            fs::write(top.join("cgroup.subtree_control"), "+memory").expect("memory is counted somewhere");
            Self { directory: top.join(name), limit: "memory.max", kills: ("memory.events", "oom_kill ") }
        };
        fs::create_dir(&limited.directory).expect("a cgroup");
        fs::write(limited.directory.join(limited.limit), LIMIT.to_string()).expect("a limit");
        limited
    }

    fn take(&self, process: u32) {
        fs::write(self.directory.join("cgroup.procs"), process.to_string()).expect("it is moved");
    }

    /// How many the kernel has ended.
    fn killed(&self) -> u64 {
        let (file, field) = self.kills;
        let text = fs::read_to_string(self.directory.join(file)).expect("counted");
        let count = text.lines().find_map(|line| line.strip_prefix(field)?.parse().ok());
        count.unwrap_or_else(|| panic!("no {field} in {text}"))
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        // Its processes belong to hosts that end after it: they go back to where they came from.
        let procs = fs::read_to_string(self.directory.join("cgroup.procs")).unwrap_or_default();
        let above = self.directory.parent().expect("it is below the top").join("cgroup.procs");
        procs.lines().for_each(|process| drop(fs::write(&above, process)));
        let _ = fs::remove_dir(&self.directory);
    }
}

fn metric(member: &Member, name: &str) -> Option<u64> {
    member.metrics().lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

#[test]
fn connections_beyond_the_memory_of_the_unit_are_refused_and_nobody_is_killed() {
    needs_root!("a limit of memory");
    let pair = Pair::new("memory");
    pair.serve("source", 7000);
    pair.serve("echo", 7001);
    let call = || exit_code_of(pair.call("echo", 7001, "hello"));
    wait_until("calls are carried", || call() == exit::DONE);
    for (member, name) in [(&pair.web, "web"), (&pair.store, "store")] {
        assert_eq!(metric(member, "baremesh_memory_limit_bytes "), None, "no limit yet");
        let (limited, agent) = (Limited::new(name), member.agent_pid());
        limited.take(agent);
        wait_until("the limit is known", || metric(member, "baremesh_memory_limit_bytes ") == Some(LIMIT));

        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/flood.py");
        let mut python = pair.web.host.command("python3");
        let address = virtual_addresses(&pair.web, "source")[0].to_string();
        python.arg(script).args([&*address, "7000", CONNECTIONS, "100000"]);
        let flood = pair.web.host.spawn("flood", python);
        let refused = member.wait_for_log("what there is no memory for", |line| {
            because("overloaded")(line)
                && line["connection_termination_details"]
                    .as_str()
                    .is_some_and(|why| why.contains("MemoryMax"))
        });
        assert_eq!(refused["response_flags"], "UO", "{refused}");
        wait_until("it carries many", || {
            metric(member, "baremesh_open_connections ").is_some_and(|open| open > 100)
        });
        assert_eq!((member.agent_pid(), limited.killed()), (agent, 0), "the same agent lives");

        flood.kill();
        flood.wait();
        wait_until("calls are carried again", || call() == exit::DONE);
        wait_until("there is memory again", || metric(member, "baremesh_memory_short ") == Some(0));
        assert_eq!(limited.killed(), 0);
        drop(limited);
    }
}
