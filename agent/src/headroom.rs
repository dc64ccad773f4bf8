//! How much of what the system grants is left: memory, descriptors, places in the table of tracked connections. An agent
//! whose memory is nearly used up takes nothing new before the kernel would end it with all that it carries.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use rustix::process::{Resource, getrlimit};

use crate::beat;
use crate::capture::conntrack::Tracked;
use crate::mounts;

/// The limit that is named where a connection is refused for it: `MemoryMax=` of the unit.
pub const MEMORY_MAX: &str = "MemoryMax";
/// Hundredths of the limit from which on nothing new is taken,
const SHORT: u64 = 85;
/// and below which it is taken again.
const ENOUGH: u64 = 78;
/// Bytes that a connection may take within its first moments, at most but for few: so many are put by for each that is young.
const YOUNG: u64 = 64 << 10;
/// How often it is looked where there is a limit,
const LOOK: Duration = Duration::from_millis(50);
/// in how many looks a connection has grown up: what it takes is in what is used,
const LOOKS: usize = 20;
/// and where there is none: one may be set while the agent runs.
const LOOK_FOR_LIMIT: Duration = Duration::from_secs(2);
/// From so many bytes on, a limit is none.
const NO_LIMIT: u64 = 1 << 60;

/// The memory of this process's cgroup, or of the nearest above it that has a limit.
#[derive(Debug)]
pub struct Memory {
    is_short: AtomicBool,
    /// So many connections may be open until the next look.
    places: AtomicUsize,
    seen: Mutex<Option<Used>>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            is_short: AtomicBool::new(false),
            places: AtomicUsize::new(usize::MAX),
            seen: Mutex::default(),
        }
    }
}

/// A cgroup that memory is counted in.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    directory: PathBuf,
    /// Where its hierarchy can be seen.
    top: PathBuf,
    version: Version,
}

/// Of control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// How much is used of how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Bytes that the kernel could not take back.
    pub bytes: u64,
    /// Bytes that there may be.
    pub limit: u64,
}

impl Memory {
    /// Whether nothing new is to be taken.
    pub fn is_short(&self) -> bool {
        self.is_short.load(Ordering::Relaxed)
    }

    /// Whether there is memory for one more connection beside so many that are open.
    pub fn has_place_beside(&self, open: usize) -> bool {
        open < self.places.load(Ordering::Relaxed)
    }

    /// What is used; nothing where there is no limit.
    pub fn used() -> Option<Used> {
        Group::of_this_process()?.used()
    }

    /// Looks at it, until the task is ended. `open` is how many connections are open.
    pub async fn watch(self: Arc<Self>, open: Arc<AtomicUsize>) {
        let mut group = None;
        let mut open_before = VecDeque::from([0; LOOKS]);
        loop {
            let used = group.as_ref().and_then(Group::used);
            let was_short = self.is_short();
            let is_short = used.is_some_and(|used| used.is_short(was_short));
            self.is_short.store(is_short, Ordering::Relaxed);
            open_before.pop_front();
            open_before.push_back(open.load(Ordering::Relaxed));
            *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = used;
            let grown_up = open_before.iter().copied().min().unwrap_or_default();
            let places = used.map_or(usize::MAX, |used| used.places(is_short, grown_up));
            self.places.store(places, Ordering::Relaxed);
            let Used { bytes, limit } = used.unwrap_or(Used { bytes: 0, limit: 0 });
            match (was_short, is_short) {
                (false, true) => tracing::warn!(
                    bytes,
                    limit,
                    "the memory that the unit may have (MemoryMax) is nearly used up: new connections are refused; raise it, or lower `max_connections`"
                ),
                (true, false) => {
                    tracing::info!(bytes, limit, "there is memory again: new connections are taken");
                }
                _ => {}
            }
            if used.is_some() {
                tokio::time::sleep(LOOK).await;
            } else {
                group = Group::of_this_process();
                let has_limit = group.as_ref().is_some_and(|group| group.used().is_some());
                if has_limit {
                    tokio::time::sleep(LOOK).await;
                } else {
                    beat::next(LOOK_FOR_LIMIT).await;
                }
            }
        }
    }
}

impl Used {
    /// Whether so much is used that nothing new is to be taken.
    pub fn is_nearly_all(self) -> bool {
        self.is_short(false)
    }

    /// How many connections may be open, where so many have been for a while.
    fn places(self, is_short: bool, grown_up: usize) -> usize {
        let left = (self.limit / 100).saturating_mul(SHORT).saturating_sub(self.bytes) / YOUNG;
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        if is_short { 0 } else { grown_up.saturating_add(left) }
    }

    fn is_short(self, was_short: bool) -> bool {
        let from = if was_short { ENOUGH } else { SHORT };
        // Less than what one more may take is nothing.
        u128::from(self.bytes.saturating_add(YOUNG)) * 100 > u128::from(self.limit) * u128::from(from)
    }
}

impl Group {
    /// That of this process: of version 2, or of version 1 where memory is counted there.
    fn of_this_process() -> Option<Self> {
        let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
        Self::among(&own, &mounts, |directory| directory.join("memory.max").exists())
    }

    fn among(own: &str, mounts: &str, counts_memory: impl Fn(&Path) -> bool) -> Option<Self> {
        let in_two = own.lines().find_map(|line| line.strip_prefix("0::"));
        let two = in_two.and_then(|path| directory_of(path, mounts, |kind, _| kind == "cgroup2"));
        if let Some((directory, top)) = two.filter(|(directory, _)| counts_memory(directory)) {
            return Some(Self { directory, top, version: Version::Two });
        }
        let is_memory = |controllers: &str| controllers.split(',').any(|one| one == "memory");
        let in_one = own.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            is_memory(controllers).then_some(path)
        });
        let is_meant = |kind: &str, options: &str| kind == "cgroup" && is_memory(options);
        let (directory, top) = directory_of(in_one?, mounts, is_meant)?;
        Some(Self { directory, top, version: Version::One })
    }

    fn used(&self) -> Option<Used> {
        let mut up_to_top = self.directory.ancestors().take_while(|above| above.starts_with(&self.top));
        up_to_top.find_map(|directory| self.used_in(directory))
    }

    fn used_in(&self, directory: &Path) -> Option<Used> {
        let read = |name: &str| std::fs::read_to_string(directory.join(name)).ok();
        let [max, current, stat] = match self.version {
            Version::One => ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_"],
            Version::Two => ["memory.max", "memory.current", ""],
        };
        // `max` is no number, and no limit. Version 1 has a number that no machine has memory for.
        let limit = read(max)?.trim().parse().ok().filter(|limit| *limit < NO_LIMIT)?;
        let all = Used { bytes: read(current)?.trim().parse().ok()?, limit };
        if !all.is_short(true) {
            return Some(all);
        }
        // Files that were read or written, a log above all, are given up before anything else.
        let counted = read("memory.stat").unwrap_or_default();
        let of = |wanted: &str| {
            let value =
                |line: &str| line.strip_prefix(stat)?.strip_prefix(wanted)?.strip_prefix(' ')?.parse().ok();
            counted.lines().find_map(value).unwrap_or(0)
        };
        let reclaimable: u64 = ["inactive_file", "active_file", "slab_reclaimable"].into_iter().map(of).sum();
        Some(Used { bytes: all.bytes.saturating_sub(reclaimable), limit })
    }
}

/// Where a cgroup can be seen, and the top of its hierarchy: the kind of file system and its options say which hierarchy is
/// meant.
fn directory_of(
    path: &str,
    mountinfo: &str,
    is_meant: impl Fn(&str, &str) -> bool,
) -> Option<(PathBuf, PathBuf)> {
    mounts::of(mountinfo).filter(|mount| is_meant(mount.kind, mount.options)).find_map(|mount| {
        let below = Path::new(path).strip_prefix(&mount.root).ok()?;
        Some((mount.point.join(below), mount.point))
    })
}

/// Descriptors that this process has open; nothing where the kernel does not tell.
pub fn open_descriptors() -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let directory = Path::new("/proc/self/fd");
    match std::fs::metadata(directory).ok()?.size() {
        // Linux before 6.2 does not count them.
        0 => u64::try_from(std::fs::read_dir(directory).ok()?.count()).ok(),
        open => Some(open),
    }
}

/// All of it, read when metrics are asked for.
#[derive(Debug)]
pub struct Headroom(pub Arc<Memory>);

impl Collector for Headroom {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = |name: &str, help: &str, value: u64| {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let encoder = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(encoder)
        };
        let seen = *self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Used { bytes, limit }) = seen {
            gauge(
                "baremesh_memory_used_bytes",
                "Memory of the agent's unit that the kernel could not take back",
                bytes,
            )?;
            gauge("baremesh_memory_limit_bytes", "MemoryMax of the agent's unit", limit)?;
        }
        let is_short = "1 while new connections are refused because memory is nearly used up";
        gauge("baremesh_memory_short", is_short, u64::from(self.0.is_short()))?;
        if let Some(open) = open_descriptors() {
            gauge("baremesh_descriptors_open", "Descriptors that the agent has open", open)?;
        }
        if let Some(limit) = getrlimit(Resource::Nofile).current {
            gauge("baremesh_descriptors_limit", "Descriptors that the agent may have open", limit)?;
        }
        if let Some(Tracked { entries, limit }) = Tracked::read() {
            gauge("baremesh_conntrack_entries", "Connections of this host that the kernel tracks", entries)?;
            gauge(
                "baremesh_conntrack_limit",
                "Connections that the kernel may track, on the whole machine",
                limit,
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used_in(version: Version, files: &[(&str, &str)]) -> Option<Used> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).expect("written");
        }
        let inner = directory.path().join("inner");
        std::fs::create_dir(&inner).expect("made");
        // One without a limit of its own has that of the one above.
        std::fs::write(inner.join("memory.max"), "max\n").expect("written");
        Group { directory: inner, top: directory.path().into(), version }.used()
    }

    #[test]
    fn what_the_kernel_can_take_back_does_not_count() {
        const MIB: u64 = 1 << 20;
        let stat = |prefix: &str| {
            let line = |name: &str, mib: u64| format!("{prefix}{name} {}\n", mib * MIB);
            line("anon", 700)
                + &line("inactive_file", 150)
                + &line("active_file", 100)
                + &line("slab_reclaimable", 40)
        };
        let current = (990 * MIB).to_string();
        let two = |max: &str| {
            let stat = stat("");
            let files = [("memory.max", max), ("memory.current", &*current), ("memory.stat", &*stat)];
            used_in(Version::Two, &files)
        };
        let limit = 1000 * MIB;
        assert_eq!(two(&limit.to_string()), Some(Used { bytes: 700 * MIB, limit }));
        // Far from the limit nobody asks.
        assert_eq!(two(&(10 * limit).to_string()), Some(Used { bytes: 990 * MIB, limit: 10 * limit }));
        assert_eq!(two("max\n"), None);
        assert_eq!(used_in(Version::Two, &[]), None);
        let one = |max: &str| {
            let stat = stat("total_") + "inactive_file 5\n";
            let names = ["memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"];
            let files: Vec<_> = names.into_iter().zip([max, &current, &stat]).collect();
            used_in(Version::One, &files)
        };
        assert_eq!(one(&limit.to_string()), Some(Used { bytes: 700 * MIB, limit }));
        assert_eq!(one("9223372036854771712\n"), None);
    }

    #[test]
    fn the_group_is_found_in_the_hierarchy_that_counts_memory() {
        const TWO: &str = "29 22 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";
        const HYBRID: &str = "30 22 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                              31 22 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let own = "4:memory:/system.slice/baremesh.service\n0::/system.slice/baremesh.service\n";
        let found = |mounts: &str, counts: bool| {
            let group = Group::among(own, mounts, |_| counts)?;
            Some((group.directory.to_str().expect("text").to_owned(), group.version))
        };
        let below = |top: &str| format!("{top}/system.slice/baremesh.service");
        assert_eq!(found(TWO, true), Some((below("/sys/fs/cgroup"), Version::Two)));
        assert_eq!(found(TWO, false), None);
        assert_eq!(found(HYBRID, false), Some((below("/sys/fs/cgroup/memory"), Version::One)));
        let inside = "9 8 0:27 /system.slice /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        assert_eq!(
            found(inside, false),
            Some(("/sys/fs/cgroup/memory/baremesh.service".to_owned(), Version::One))
        );
        let beside = "9 8 0:27 /system.slice/bare /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        assert_eq!(found(beside, false), None, "a name that begins alike is another cgroup");
        let escaped = "9 8 0:26 / /with\\040space rw - cgroup2 cgroup2 rw\n";
        assert_eq!(found(escaped, true), Some((below("/with space"), Version::Two)));
        assert_eq!(found("", false), None);
    }

    #[test]
    fn it_is_short_for_a_while_and_not_now_and_then() {
        let used = |mib: u64| Used { bytes: mib << 20, limit: 100 << 20 };
        assert!(used(85).is_short(false) && !used(84).is_short(false));
        assert!(used(78).is_short(true) && !used(77).is_short(true));
        let barely = Used { bytes: (85 << 20) - YOUNG + 1, limit: 100 << 20 };
        assert!(barely.is_short(false), "nobody else has a place");
    }

    #[test]
    fn young_connections_have_no_more_than_what_is_left() {
        let used = |mib: u64| Used { bytes: mib << 20, limit: 100 << 20 };
        assert_eq!(used(45).places(false, 1000), 1000 + 640);
        assert_eq!(used(84).places(false, 1000), 1000 + 16);
        assert_eq!(used(80).places(true, 1000), 0, "it is short for a while");
        assert_eq!(used(99).places(false, 7), 7);
        assert!(Used { bytes: 0, limit: NO_LIMIT }.places(false, usize::MAX) == usize::MAX);
    }

    #[test]
    fn this_process_has_descriptors() {
        let before = open_descriptors().expect("told");
        let one_more = std::fs::File::open("/dev/null").expect("opened");
        assert!(open_descriptors().expect("told") > 0 && before > 0);
        drop(one_more);
    }
}
