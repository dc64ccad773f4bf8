//! The far end of a keeper: sets its namespaces up, waits for the end of its standard input, and then leaves nothing
//! behind. It cleans up for a caller that could not: one that panicked, was interrupted or was killed.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

use super::held::READY;
use super::{cgroup, tools, view};

/// How long a keeper tries to end what runs in its namespace, and to remove what they wrote.
const CLEANUP_BOUND: Duration = Duration::from_secs(10);

/// The pause between two attempts.
const CLEANUP_PAUSE: Duration = Duration::from_millis(10);

/// `demo-keeper switch DIRECTORY|- CGROUP|-` and `demo-keeper host DIRECTORY NAME`.
pub(crate) fn keep(args: &[OsString]) -> Result<()> {
    match args {
        [role, directory, cgroup] if role == "switch" => keep_switch(given(directory), given(cgroup)),
        [role, directory, name] if role == "host" => {
            let name = name.to_str().context("a host name is ASCII")?;
            keep_host(Path::new(directory), name)
        }
        _ => bail!("this verb is for the demo's own use"),
    }
}

fn given(arg: &OsString) -> Option<&Path> {
    (arg != "-").then(|| Path::new(arg))
}

fn keep_switch(directory: Option<&Path>, cgroup: Option<&Path>) -> Result<()> {
    let mut ip = tools::tool("ip");
    ip.args(["-batch", "-"]);
    // Without the forward delay of spanning trees a new port carries traffic at once; promiscuous, so that a capture
    // sees what only passes through.
    let bridge = "link set lo up\n\
                  link add br0 type bridge forward_delay 0 mcast_snooping 0\n\
                  link set br0 up promisc on\n";
    tools::run(ip, bridge).context("no bridge can be made: is the kernel module `bridge` there?")?;
    match directory {
        Some(_) => wait_for_the_end(Path::new(""))?,
        None => wait_for_the_end(&view::mount_scratch()?)?,
    }
    end_the_others();
    if let Some(directory) = directory {
        persist(|| fs::remove_dir_all(directory));
    }
    if let Some(cgroup) = cgroup {
        persist(|| cgroup::remove(cgroup));
    }
    Ok(())
}

fn keep_host(directory: &Path, name: &str) -> Result<()> {
    rustix::system::sethostname(name.as_bytes()).context("cannot set a host name")?;
    view::dress(directory, name)?;
    // Services on demo hosts listen where real ones do, under whatever uid.
    fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")
        .context("cannot write below /proc/sys/net: is it read-only, as in a container?")?;
    for which in ["all", "default"] {
        fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "0")
            .context("the kernel has no IPv6, which demo hosts need")?;
    }
    wait_for_the_end(Path::new(""))?;
    end_the_others();
    Ok(())
}

/// Says that all is ready, and returns when the other end is gone.
fn wait_for_the_end(place: &Path) -> Result<()> {
    writeln!(io::stdout(), "{READY} {}", place.display()).context("nobody waits for this keeper")?;
    let mut nothing = [0];
    loop {
        match io::stdin().read(&mut nothing) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("cannot wait for the end of standard input"),
        }
    }
}

/// Kills every other process in this network namespace, grandchildren and daemons included: all of them were started
/// on this host, because the namespace was made for it.
fn end_the_others() {
    let Ok(ours) = fs::read_link("/proc/self/ns/net") else { return };
    let deadline = Instant::now() + CLEANUP_BOUND;
    loop {
        let others: Vec<Pid> = processes().filter(|pid| *pid != getpid() && is_in(*pid, &ours)).collect();
        if others.is_empty() || Instant::now() >= deadline {
            return;
        }
        for pid in others {
            // The descriptor comes first and the question after it, so that a reused id is never hit.
            if let Ok(process) = pidfd_open(pid, PidfdFlags::empty())
                && is_in(pid, &ours)
            {
                let _ = pidfd_send_signal(&process, Signal::KILL);
            }
        }
        thread::sleep(CLEANUP_PAUSE);
    }
}

fn processes() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
}

/// False for zombies, which have left their namespaces, and for processes that are none of ours to look at.
fn is_in(pid: Pid, namespace: &Path) -> bool {
    fs::read_link(format!("/proc/{}/ns/net", pid.as_raw_nonzero())).is_ok_and(|link| link == namespace)
}

/// Repeats what can fail while dying processes still write or linger; gives up in silence, as nobody listens.
fn persist(mut removal: impl FnMut() -> io::Result<()>) {
    let deadline = Instant::now() + CLEANUP_BOUND;
    while let Err(error) = removal() {
        if error.kind() == io::ErrorKind::NotFound || Instant::now() >= deadline {
            return;
        }
        thread::sleep(CLEANUP_PAUSE);
    }
}
