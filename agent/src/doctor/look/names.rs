//! What a name leads to, asked as programs ask: through the system's resolver, whatever that is.

use std::fs;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// How long the system's resolver may take. Its own first repetition comes after 5 s.
const PATIENCE: Duration = Duration::from_secs(12);
/// So many name servers are shown.
const MAX_SERVERS: usize = 3;

/// What came of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looked {
    /// The name.
    pub name: String,
    /// The addresses, or what was said.
    pub answer: Result<Vec<IpAddr>, String>,
    /// The name servers of /etc/resolv.conf.
    pub servers: Vec<String>,
    /// The line `hosts:` of /etc/nsswitch.conf.
    pub switch: Option<String>,
}

/// Asks for a name.
pub fn look_up(name: &str) -> Looked {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let switch = fs::read_to_string("/etc/nsswitch.conf").unwrap_or_default();
    let switch = switch.lines().find(|line| line.trim_start().starts_with("hosts:"));
    Looked {
        name: name.to_owned(),
        answer: addresses_of(name),
        servers: servers.map(|server| server.trim().to_owned()).take(MAX_SERVERS).collect(),
        switch: switch.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")),
    }
}

/// The resolver cannot be interrupted: a thread that waits for it is left behind.
fn addresses_of(name: &str) -> Result<Vec<IpAddr>, String> {
    let (tell, told) = mpsc::channel();
    let asked = name.to_owned();
    let thread = thread::Builder::new().name("resolver".to_owned());
    let started = thread.spawn(move || {
        let found = (asked.as_str(), 0).to_socket_addrs();
        // Whoever waited may have gone.
        let _ = tell.send(found.map(|found| found.map(|address| address.ip()).collect::<Vec<_>>()));
    });
    started.map_err(|error| error.to_string())?;
    match told.recv_timeout(PATIENCE) {
        Ok(found) => found.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}
