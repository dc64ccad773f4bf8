//! Processes of the machine, and who listens in this network namespace. What may not be looked at is left open.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::agent::holder::process_with;
use crate::attribution::cgroup::Hierarchy;
use crate::attribution::look_up::list_sockets;
use crate::attribution::place::Place;
use crate::attribution::sock_diag::dump::Listed;
use crate::attribution::{CgroupPath, Uid};

/// So many processes are looked at.
const MAX_PROCESSES: usize = 65_536;

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Whose it is.
    pub uid: Uid,
    /// Its command line.
    pub arguments: Vec<String>,
    /// Where it is among the cgroups.
    pub place: Option<Place>,
    /// Whether it is in this process's network namespace; none where that cannot be seen.
    pub is_here: Option<bool>,
}

impl Process {
    /// Whether it is `baremesh VERB`.
    pub fn is_baremesh(&self, verb: &str) -> bool {
        let program = self.arguments.first().and_then(|first| Path::new(first).file_name());
        program.is_some_and(|name| name == "baremesh")
            && self.arguments.iter().skip(1).any(|argument| argument == verb)
    }
}

/// All processes.
pub fn processes() -> Vec<Process> {
    let own = fs::read_link("/proc/self/ns/net").ok();
    let manager = Hierarchy::find().map(|found| found.manager).ok();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbered = entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        Some((pid, entry.path()))
    });
    let read = |(pid, path): (u32, std::path::PathBuf)| {
        // Threads of the kernel have no command line, and what is gone meanwhile has no files.
        let arguments = fs::read(path.join("cmdline")).ok().filter(|line| !line.is_empty())?;
        let arguments =
            arguments.split(|byte| *byte == 0).map(|one| String::from_utf8_lossy(one).into_owned());
        let cgroup = fs::read_to_string(path.join("cgroup")).unwrap_or_default();
        let cgroup = cgroup.lines().find_map(|line| line.strip_prefix("0::"));
        let cgroup = cgroup.and_then(|path| CgroupPath::new(path).ok());
        Some(Process {
            pid,
            uid: Uid(fs::metadata(&path).ok()?.uid()),
            arguments: arguments.collect(),
            place: cgroup.zip(manager.as_ref()).map(|(path, manager)| Place::new(path, manager)),
            is_here: fs::read_link(path.join("ns/net")).ok().zip(own.as_ref()).map(|(its, own)| its == *own),
        })
    };
    numbered.take(MAX_PROCESSES).filter_map(read).collect()
}

/// A listening socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Where.
    pub at: SocketAddr,
    /// Whose it is.
    pub uid: u32,
    /// The number and the name of a process that holds it, where that can be seen.
    pub process: Option<(u32, String)>,
}

/// The listening sockets, those on `ports` with their processes.
pub fn listeners(ports: &[u16]) -> Result<Vec<Listener>, String> {
    let sockets = list_sockets(Listed::Listening).map_err(|error| error.to_string())?;
    let mut holders: BTreeMap<u32, Option<(u32, String)>> = BTreeMap::new();
    let listener = |socket: &crate::attribution::sock_diag::dump::SocketEntry| {
        let wanted = ports.contains(&socket.local.port());
        let mut holder = || holders.entry(socket.inode).or_insert_with(|| process_with(socket.inode)).clone();
        Listener {
            at: SocketAddr::new(socket.local.ip().to_canonical(), socket.local.port()),
            uid: socket.uid.0,
            process: if wanted { holder() } else { None },
        }
    };
    Ok(sockets.entries.iter().map(listener).collect())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn finds_this_process_and_what_it_listens_at() {
        let own = std::process::id();
        let found = processes().into_iter().find(|process| process.pid == own).expect("this process");
        assert_eq!(found.is_here, Some(true));
        assert!(!found.is_baremesh("agent"));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let at = listener.local_addr().expect("an address");
        let all = listeners(&[at.port()]).expect("listed");
        let found = all.iter().find(|listener| listener.at == at).expect("it listens");
        assert_eq!(found.process.as_ref().map(|(pid, _)| *pid), Some(own));
    }

    #[test]
    fn knows_a_baremesh_by_its_name_and_verb() {
        let of = |line: &str| Process {
            pid: 1,
            uid: Uid(0),
            arguments: line.split(' ').map(str::to_owned).collect(),
            place: None,
            is_here: None,
        };
        assert!(of("/usr/bin/baremesh agent").is_baremesh("agent"));
        assert!(of("baremesh --config-dir /x agent").is_baremesh("agent"));
        assert!(!of("baremesh control").is_baremesh("agent"));
        assert!(!of("vi agent").is_baremesh("agent"));
    }
}
