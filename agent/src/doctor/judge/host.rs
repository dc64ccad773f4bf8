//! The kernel and tools, and how much is left of what there is a limited amount of.

use crate::admin::report::doctor::DoctorReport;
use crate::attribution::Tracking;
use crate::doctor::code::Code;
use crate::doctor::look::host::{Disk, Host};
use crate::doctor::{Check, Finding};
use crate::headroom::Used;

/// The first kernel that tells a socket's cgroup.
const KERNEL: (u32, u32) = (5, 8);
/// Less room than this on the disk of the state directory is none: the last good state of a large mesh has a few MiB.
const LITTLE_ROOM: u64 = 8 << 20;
/// In hundredths, how much of a limit may be in use.
const NEARLY: u64 = 90;

/// How services are registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callers {
    /// Some by unit or cgroup.
    ByPlace,
    /// None of them.
    ByUser,
}

/// The kernel, `nft` and `ip`, cgroups, connection tracking.
pub fn kernel(host: &Host, callers: Callers) -> Check {
    let mut check = Check::new("kernel");
    let nft = host.nft.as_ref().map_or("no nft".to_owned(), |text| shortened(text));
    let cgroups =
        host.cgroups.as_ref().map_or("no cgroup2".to_owned(), |at| format!("cgroup2 at {}", at.display()));
    check.seen = format!("Linux {}, {nft}, {cgroups}", host.kernel);
    if version(&host.kernel).is_some_and(|version| version < KERNEL) {
        check.found(Code::KernelOld, format!("Linux {}", host.kernel));
    }
    if let Err(error) = &host.nft {
        check.found(Code::ToolMissing, error.to_string());
    }
    if let (Err(error), Callers::ByPlace) = (&host.cgroups, callers) {
        check.found(Code::CgroupMissing, error.clone());
    }
    match host.tracking {
        Tracking::Answers => check.seen.push_str(", connection tracking answers"),
        Tracking::NotForUs => check.unchecked.push("connection tracking: root alone may ask it".to_owned()),
        Tracking::Kept | Tracking::Unasked(_) => check.findings.extend(untold(host.tracking)),
    }
    check
}

fn untold(tracking: Tracking) -> Option<Finding> {
    let finding = Finding::new(Code::ConntrackSilent, tracking.trouble()?);
    Some(match tracking {
        Tracking::Kept => finding.with_remedy(
            "run it in the user namespace that owns the network namespace, not in one of its own",
        ),
        _ => finding,
    })
}

/// `nftables v1.0.6 (Lester Gooch #5)` without its name.
fn shortened(version: &str) -> String {
    version.split(" (").next().unwrap_or(version).to_owned()
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// Connection tracking, descriptors, memory, disk. `agent` is what the agent says; none where it does not answer.
pub fn limits(host: &Host, agent: Option<&DoctorReport>) -> Check {
    let mut check = Check::new("limits");
    let mut seen = Vec::new();
    match host.tracked {
        None => check.unchecked.push("tracked connections: this kernel tells of none".to_owned()),
        Some(tracked) => {
            seen.push(format!("{} of {} connections tracked", tracked.entries, tracked.limit));
            if tracked.is_nearly_full() {
                check.found(Code::ConntrackFull, format!("{} of {}", tracked.entries, tracked.limit));
            }
        }
    }
    match agent {
        None => check.unchecked.push("descriptors and memory of the agent: it does not answer".to_owned()),
        Some(agent) => {
            let found = agent.descriptors;
            seen.push(format!("{} of {} descriptors", found.open, found.limit));
            check.findings.extend(descriptors(agent));
            if let Some(memory) = agent.memory {
                seen.push(format!("{} of {} MiB", memory.used >> 20, memory.limit >> 20));
                if (Used { bytes: memory.used, limit: memory.limit }).is_nearly_all() {
                    let said = format!("{} of {} MiB", memory.used >> 20, memory.limit >> 20);
                    check.found(Code::MemoryLow, said);
                }
            }
        }
    }
    let unwritable = agent.and_then(|agent| agent.state_unwritable.as_deref());
    match &host.disk {
        Err(error) => check.unchecked.push(format!("the disk: {error}")),
        Ok(disk) => {
            seen.push(format!("{} MiB free", disk.free >> 20));
            check.findings.extend(room(disk, unwritable));
        }
    }
    check.seen = seen.join(", ");
    check
}

fn descriptors(agent: &DoctorReport) -> Option<Finding> {
    let found = agent.descriptors;
    // Each connection takes two.
    let few = found.limit / 2 < found.max_connections;
    let used = found.open >= found.limit / 100 * NEARLY;
    let said = format!(
        "{} of {} descriptors are open; max_connections is {}",
        found.open, found.limit, found.max_connections
    );
    (few || used).then(|| Finding::new(Code::DescriptorsLow, said))
}

/// The more exact word comes first: a full disk cannot be written to either.
fn room(disk: &Disk, unwritable: Option<&str>) -> Option<Finding> {
    let at = disk.path.display();
    if disk.read_only {
        return Some(Finding::new(Code::StateUnwritable, format!("{at} is mounted read-only")));
    }
    if disk.free < LITTLE_ROOM {
        return Some(Finding::new(Code::DiskFull, format!("{} KiB free at {at}", disk.free >> 10)));
    }
    if disk.free_files == Some(0) {
        return Some(Finding::new(
            Code::DiskFull,
            format!("no file can be made at {at}: its inodes are used up"),
        ));
    }
    unwritable.map(|reason| Finding::new(Code::StateUnwritable, reason))
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;
    use crate::admin::report::doctor::{DescriptorsReport, MemoryReport};
    use crate::attribution::LookupError;
    use crate::capture::CaptureError;
    use crate::capture::conntrack::Tracked;

    fn host() -> Host {
        Host {
            kernel: "6.1.0-18-amd64".to_owned(),
            nft: Ok("nftables v1.0.6 (Lester Gooch #5)".to_owned()),
            cgroups: Ok("/sys/fs/cgroup".into()),
            tracking: Tracking::Answers,
            tracked: Some(Tracked { entries: 10, limit: 1000 }),
            disk: Ok(Disk { path: "/var".into(), free: 1 << 30, free_files: Some(7), read_only: false }),
            addresses: None,
        }
    }

    fn agent() -> DoctorReport {
        let descriptors = DescriptorsReport { open: 10, limit: 1_048_576, max_connections: 100_000 };
        let memory = Some(MemoryReport { used: 10 << 20, limit: 100 << 20 });
        DoctorReport { descriptors, memory, ..DoctorReport::default() }
    }

    fn codes(check: &Check) -> Vec<Code> {
        check.findings.iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn what_the_host_lacks_is_named() {
        let check = |change: &dyn Fn(&mut Host), callers, expected: &[Code]| {
            let mut host = host();
            change(&mut host);
            assert_eq!(codes(&kernel(&host, callers)), expected, "{host:?}");
        };
        check(&|_| {}, Callers::ByPlace, &[]);
        check(&|host| host.kernel = "5.8.0".to_owned(), Callers::ByPlace, &[]);
        check(&|host| host.kernel = "5.7.19-amd64".to_owned(), Callers::ByPlace, &[Code::KernelOld]);
        check(&|host| host.kernel = "4.19.0".to_owned(), Callers::ByUser, &[Code::KernelOld]);
        check(&|host| host.kernel = "strange".to_owned(), Callers::ByUser, &[]);
        let missing = || CaptureError::MissingTool { tool: "nft", package: "nftables" };
        check(&|host| host.nft = Err(missing()), Callers::ByUser, &[Code::ToolMissing]);
        check(&|host| host.cgroups = Err("none".to_owned()), Callers::ByUser, &[]);
        check(&|host| host.cgroups = Err("none".to_owned()), Callers::ByPlace, &[Code::CgroupMissing]);
        check(&|host| host.tracking = Tracking::NotForUs, Callers::ByUser, &[]);
        check(&|host| host.tracking = Tracking::Kept, Callers::ByUser, &[Code::ConntrackSilent]);
        let unasked = Tracking::Unasked(LookupError::NoTracking(Errno::INVAL));
        check(&|host| host.tracking = unasked, Callers::ByUser, &[Code::ConntrackSilent]);
    }

    #[test]
    fn what_is_nearly_used_up_is_named() {
        type Change<'a> = &'a dyn Fn(&mut Host, &mut DoctorReport);
        let check = |change: Change<'_>, expected: &[Code]| {
            let (mut host, mut agent) = (host(), agent());
            change(&mut host, &mut agent);
            assert_eq!(codes(&limits(&host, Some(&agent))), expected, "{host:?} {agent:?}");
        };
        check(&|_, _| {}, &[]);
        check(&|host, _| host.tracked = Some(Tracked { entries: 950, limit: 1000 }), &[Code::ConntrackFull]);
        check(&|_, agent| agent.descriptors.limit = 1024, &[Code::DescriptorsLow]);
        check(&|_, agent| agent.descriptors.open = 1_000_000, &[Code::DescriptorsLow]);
        check(&|_, agent| agent.memory = Some(MemoryReport { used: 95, limit: 100 }), &[Code::MemoryLow]);
        let disk =
            |free, free_files, read_only| Ok(Disk { path: "/var".into(), free, free_files, read_only });
        check(&|host, _| host.disk = disk(0, Some(7), false), &[Code::DiskFull]);
        check(&|host, _| host.disk = disk(1 << 30, Some(0), false), &[Code::DiskFull]);
        check(&|host, _| host.disk = disk(1 << 30, None, false), &[]);
        check(&|host, _| host.disk = disk(1 << 30, None, true), &[Code::StateUnwritable]);
        check(&|_, agent| agent.state_unwritable = Some("denied".to_owned()), &[Code::StateUnwritable]);
    }

    #[test]
    fn what_cannot_be_seen_is_not_said_to_be_well() {
        let mut host = host();
        (host.tracked, host.disk, host.tracking) = (None, Err("not there".to_owned()), Tracking::NotForUs);
        assert_eq!(kernel(&host, Callers::ByUser).unchecked.len(), 1);
        let check = limits(&host, None);
        assert!(
            check.findings.is_empty() && check.unchecked.len() == 3 && check.seen.is_empty(),
            "{check:?}"
        );
    }
}
