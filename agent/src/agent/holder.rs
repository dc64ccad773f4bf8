//! Who has a port that the agent wants: the kernel's list of listeners, and the process that holds the socket where we
//! may look at it.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use super::AgentError;
use crate::attribution::look_up::list_sockets;
use crate::attribution::sock_diag::dump::Listed;

/// So many descriptors of other processes are looked at. A host that has more of them is told the user alone.
const MAX_DESCRIPTORS: usize = 1_000_000;

/// The error of a bind that failed: names who has one of `ports`, where somebody is seen to listen there.
pub fn blame(ports: &[u16]) -> impl FnOnce(io::Error) -> AgentError {
    move |source| match holders(ports).filter(|_| source.kind() == io::ErrorKind::AddrInUse) {
        Some(holders) => AgentError::PortTaken { holders },
        None => AgentError::System { what: "taking the agent's ports".to_owned(), source },
    }
}

/// The listeners on `ports`, in words.
pub fn holders(ports: &[u16]) -> Option<String> {
    let sockets = list_sockets(Listed::Listening).ok()?;
    let taken = sockets.entries.iter().filter(|socket| ports.contains(&socket.local.port()));
    let by_port: BTreeMap<u16, (u32, u32)> =
        taken.map(|socket| (socket.local.port(), (socket.uid.0, socket.inode))).collect();
    let tell = |(port, (uid, inode)): (&u16, &(u32, u32))| match process_with(*inode) {
        Some((pid, name)) => format!("port {port} is taken by process {pid} ({name}) of user {uid}"),
        None => format!("port {port} is taken by a process of user {uid} (`ss -ltnp` as root tells which)"),
    };
    let told: Vec<_> = by_port.iter().map(tell).collect();
    (!told.is_empty()).then(|| told.join("; "))
}

/// The process that holds a socket, and its name.
pub fn process_with(inode: u32) -> Option<(u32, String)> {
    let wanted = format!("socket:[{inode}]");
    let mut left = MAX_DESCRIPTORS;
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // What we may not look at, or is gone already, is somebody else.
        for descriptor in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            left = left.checked_sub(1)?;
            if fs::read_link(descriptor.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str()) {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Some((pid, name.trim().to_owned()));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn names_the_process_that_listens() {
        let listeners = ["127.0.0.1:0", "[::1]:0"].map(|address| TcpListener::bind(address).expect("bound"));
        for listener in &listeners {
            let port = listener.local_addr().expect("an address").port();
            let uid = rustix::process::getuid().as_raw();
            let expected = format!("port {port} is taken by process {} (", std::process::id());
            let told = holders(&[port]).expect("somebody");
            assert!(told.starts_with(&expected) && told.ends_with(&format!(") of user {uid}")), "{told}");
            let error = blame(&[port])(io::ErrorKind::AddrInUse.into()).to_string();
            assert!(error.starts_with(&told) && error.contains("agent.toml"), "{error}");
        }
        assert_eq!(holders(&[]), None);
        let other = blame(&[])(io::ErrorKind::PermissionDenied.into()).to_string();
        assert!(other.starts_with("taking the agent's ports: "), "{other}");
    }
}
