//! One host: a network stack, a name and files of its own, and the programs that run there.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, bail};

use super::held::{Enter, Held};
use super::net::Switch;
use super::{Capture, KEEPER, Process, cgroup, tools, view, wait_until};
use crate::demo::shop;

/// The longest host name (RFC 1123 labels).
const MAX_NAME: usize = 63;

/// How much of each log a failing test shows.
const LOG_TAIL: usize = 4096;

/// A host that is plugged into a [`super::Net`]. Dropping it is pulling its plug: what runs there is killed.
pub struct Host {
    name: String,
    index: u8,
    processes: Mutex<Vec<Process>>,
    held: Held,
    switch: Arc<Switch>,
}

impl Host {
    pub(crate) fn plug_into(switch: &Arc<Switch>, name: &str, index: u8) -> Result<Self> {
        check_name(name)?;
        if index == 0 || index == u8::MAX {
            bail!("a host's index is from 1 to 254");
        }
        let mut keeper = switch.held.enter(switch.user(), Enter::Mount, "unshare");
        keeper.args(["--mount", "--net", "--uts", "--"]).arg(&switch.binary);
        keeper.args([KEEPER, "host"]).arg(switch.inside.join(name)).arg(name);
        let held = Held::start(keeper)?;
        let keeper = held.pid();
        switch.ip(&format!(
            "link add p{index} type veth peer name eth0 netns {keeper}\nlink set p{index} master br0 up\n"
        ))?;
        let host = Self {
            name: name.to_owned(),
            index,
            processes: Mutex::default(),
            held,
            switch: Arc::clone(switch),
        };
        // Without `nodad` the address could not be bound before neighbours were asked for a second or more.
        let addresses = format!(
            "link set lo up\nlink set eth0 up\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n",
            host.v4(),
            host.v6()
        );
        let mut ip = host.command("ip");
        ip.args(["-batch", "-"]);
        tools::run(ip, &addresses)?;
        host.wait_for_link()?;
        Ok(host)
    }

    /// The kernel activates a link's queue some time after its carrier comes, and drops what is sent before: the first
    /// packet of a connection would be missed for a second.
    fn wait_for_link(&self) -> Result<()> {
        wait_until("eth0 carries packets", || {
            let mut ip = self.command("ip");
            let shown = ip.args(["-oneline", "link", "show", "eth0"]).stdin(Stdio::null()).output();
            shown.is_ok_and(|shown| String::from_utf8_lossy(&shown.stdout).contains(" state UP "))
        })
    }

    /// Its host name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address 10.77.0.N.
    pub fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.index)
    }

    /// Its address fd77::N, the index in hexadecimal.
    pub fn v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, self.index.into())
    }

    /// `program` on this host, as root of the host, in `/`. The child's id is the program's. `baremesh` is found by
    /// its name.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.held.enter(self.switch.user(), Enter::All, program);
        let mut path = self.bin().into_os_string();
        path.push(":");
        path.push(tools::search_path());
        command.env("PATH", path);
        command
    }

    /// The directory of the host's `baremesh`, as the host sees it.
    fn bin(&self) -> PathBuf {
        self.switch.inside.join(&self.name).join(view::BIN)
    }

    /// A line of shell on this host.
    pub fn sh(&self, line: &str) -> Command {
        let mut command = self.command("sh");
        command.args(["-c", line]);
        command
    }

    /// `program` on this host as user and group `uid`, which needs no entry in `/etc/passwd`.
    ///
    /// # Errors
    /// If there is only one uid, as for ordinary users without `/etc/subuid`.
    pub fn command_as(&self, uid: u32, program: impl AsRef<OsStr>) -> Result<Command> {
        if !self.switch.privilege.has_uids() {
            bail!(
                "uid {uid} does not exist here: run as root, or give yourself a range in /etc/subuid and /etc/subgid"
            );
        }
        let mut command = self.command("setpriv");
        command.args(["--reuid", &uid.to_string(), "--regid", &uid.to_string(), "--clear-groups", "--"]);
        command.arg(program);
        Ok(command)
    }

    /// The same command, started in the cgroup `name` of this host. Set its standard streams after this.
    ///
    /// # Errors
    /// For ordinary users, and where no version 2 hierarchy is mounted.
    pub fn in_cgroup(&self, name: &str, command: &Command) -> Result<Command> {
        cgroup::wrap(&self.switch.binary, &self.cgroup_directory(name)?, command)
    }

    /// The cgroup `name` of this host as `/proc/PID/cgroup` shows it.
    ///
    /// # Errors
    /// As [`Host::in_cgroup`].
    pub fn cgroup(&self, name: &str) -> Result<String> {
        let directory = self.cgroup_directory(name)?;
        let mount = cgroup::mount_point().context("no cgroup version 2 hierarchy is mounted")?;
        let path = directory.strip_prefix(mount).context("the hierarchy has moved")?;
        Ok(format!("/{}", path.display()))
    }

    fn cgroup_directory(&self, name: &str) -> Result<PathBuf> {
        let base = self.switch.cgroup.as_ref();
        let base = base.context("cgroups need root and a mounted version 2 hierarchy")?;
        Ok(base.join(&self.name).join(name))
    }

    /// `baremesh` with `args` on this host.
    pub fn baremesh<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = self.command("baremesh");
        command.args(args);
        command
    }

    /// A role of the [`shop`] on this host.
    pub fn shop<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = self.baremesh([shop::SHOP]);
        command.args(args);
        command
    }

    /// Starts `command` and leaves it running until it ends or the host does. `label` names its log files.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&self, label: &str, command: Command) -> Result<Process> {
        let mut processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        let before = processes.iter().filter(|process| is_run_of(process.label(), label)).count();
        let label = match before {
            0 => label.to_owned(),
            n => format!("{label}.{}", n + 1),
        };
        let process = Process::start(&label, command, &self.logs())?;
        processes.push(process.clone());
        Ok(process)
    }

    /// Starts a server of the [`shop`], and returns when it listens.
    ///
    /// # Errors
    /// If it cannot listen.
    pub fn serve<A: AsRef<OsStr>>(&self, label: &str, args: impl IntoIterator<Item = A>) -> Result<Process> {
        let process = self.spawn(label, self.shop(args))?;
        process.wait_for_output(shop::LISTENING)?;
        Ok(process)
    }

    /// Where a file that this host has for itself (below `/etc`, `/run`, `/var/lib`) is to be found from outside.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        view::own_path(path).map_or_else(|| path.to_owned(), |own| self.directory().join(own))
    }

    /// The host's directory: `log` and its own files.
    pub fn directory(&self) -> PathBuf {
        self.switch.outside.join(&self.name)
    }

    fn logs(&self) -> PathBuf {
        self.directory().join("log")
    }

    /// Makes `server` the host's only resolver.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn set_nameserver(&self, server: IpAddr) -> Result<()> {
        let path = self.path("/etc/resolv.conf");
        fs::write(&path, format!("nameserver {server}\n"))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Adds a line to the host's `/etc/hosts`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn add_to_hosts(&self, name: &str, address: IpAddr) -> Result<()> {
        let path = self.path("/etc/hosts");
        let file = OpenOptions::new().append(true).open(&path);
        let written = file.and_then(|mut file| writeln!(file, "{address} {name}"));
        written.with_context(|| format!("cannot write {}", path.display()))
    }

    /// Pulls the host's network cable: no other host is told, as when a host or its link dies.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn unplug(&self) -> Result<()> {
        self.switch.ip(&format!("link set p{} down\n", self.index))
    }

    /// Puts the cable back, and returns when it carries packets.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn plug_in(&self) -> Result<()> {
        self.switch.ip(&format!("link set p{} up\n", self.index))?;
        self.wait_for_link()
    }

    /// Starts to record all packets of this host, those on its loopback interface included.
    ///
    /// # Errors
    /// If the recorder cannot be started.
    pub fn capture(&self) -> Result<Capture> {
        Capture::start(self.command("baremesh"), &self.logs())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let processes = std::mem::take(&mut *self.processes.lock().unwrap_or_else(PoisonError::into_inner));
        for process in &processes {
            process.end();
        }
        self.held.end();
        // The kernel takes a dead namespace's devices away later; the name has to be free now.
        let _ = self.switch.ip(&format!("link del p{}\n", self.index));
        if thread::panicking() {
            show_logs(&self.name, &processes);
        }
    }
}

/// What a failed test needs most, before the directory goes.
fn show_logs(host: &str, processes: &[Process]) {
    let mut out = std::io::stderr().lock();
    for process in processes {
        for (stream, text) in [("out", process.stdout()), ("err", process.stderr())] {
            let tail = &text.as_bytes()[text.len().saturating_sub(LOG_TAIL)..];
            if !tail.is_empty() {
                let tail = String::from_utf8_lossy(tail);
                let _ = writeln!(out, "--- {host}: {}.{stream}\n{tail}", process.label());
            }
        }
    }
}

fn is_run_of(label: &str, base: &str) -> bool {
    label.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn check_name(name: &str) -> Result<()> {
    let letters = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if name.is_empty() || name.len() > MAX_NAME || !letters || name.starts_with('-') || name.ends_with('-') {
        bail!("{name:?} is no host name: small letters, digits and hyphens, {MAX_NAME} at most");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_labels() {
        for good in ["web", "web-2", "0"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "Web", "a.b", "-a", "a-", "../x", &"x".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_label_counts_its_own_runs_only() {
        assert!(is_run_of("agent", "agent"));
        assert!(is_run_of("agent.2", "agent"));
        assert!(!is_run_of("agents", "agent"));
    }
}
