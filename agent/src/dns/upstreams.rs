//! Who is asked about names that are not the mesh's: a fixed list, or the `nameserver` lines of a file that is watched.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;
use std::{fs, io};

use arc_swap::ArcSwap;

use super::config::{MAX_UPSTREAMS, RELOAD_INTERVAL, Upstreams};
use crate::beat;

/// The largest file of name servers that is read.
const MAX_FILE: u64 = 64 * 1024;

/// Where systemd-resolved keeps a list of the servers that it asks itself.
const UPLINKS: &str = "/run/systemd/resolve/resolv.conf";

/// The addresses at which systemd-resolved answers the programs of its host. To ask it would lead back to us, as it asks us
/// about our names, and as its own questions are captured where port 53 is.
pub const STUBS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54))];

/// The list as it now is. A question loads it once; nothing on its way reads the disk.
#[derive(Debug)]
pub(super) struct UpstreamList {
    source: Upstreams,
    /// See [`UPLINKS`].
    uplinks: PathBuf,
    /// Our own addresses: an upstream that is one of them would ask us for ever.
    own: Vec<SocketAddr>,
    servers: ArcSwap<Vec<SocketAddr>>,
    /// Counts on when an upstream fails, so that later questions start with the next one.
    turn: AtomicUsize,
}

/// What tells that a file was written or replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

impl UpstreamList {
    /// Reads the list. A file that cannot be read yet makes an empty list, since the network may come up after us.
    pub(super) fn load(source: Upstreams, own: Vec<SocketAddr>) -> Self {
        Self::load_with(source, own, UPLINKS.into())
    }

    fn load_with(source: Upstreams, own: Vec<SocketAddr>, uplinks: PathBuf) -> Self {
        let list = Self { source, uplinks, own, servers: ArcSwap::default(), turn: AtomicUsize::new(0) };
        list.read();
        list
    }

    pub(super) fn servers(&self) -> Arc<Vec<SocketAddr>> {
        self.servers.load_full()
    }

    /// Where in the list the next question starts.
    pub(super) fn turn(&self) -> usize {
        self.turn.load(Ordering::Relaxed)
    }

    /// The upstream at this turn failed. Of many questions that find so at one time, one moves the turn.
    pub(super) fn failed(&self, turn: usize) {
        let next = turn.wrapping_add(1);
        let _ = self.turn.compare_exchange(turn, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Reads the file again whenever it has changed. Never ends for a file, ends at once for a fixed list.
    pub(super) async fn watch(self: Arc<Self>) {
        let Upstreams::ResolvConf(path) = &self.source else { return };
        // It is read once more at the start, as it may have changed since it was loaded.
        let mut seen = None;
        loop {
            let stamp = (stamp_of(path).await, stamp_of(&self.uplinks).await);
            if stamp.0.is_some() && Some(&stamp) != seen.as_ref() {
                let list = self.clone();
                // The only error is a panic in there, which the next change of the file gets over.
                let _ = tokio::task::spawn_blocking(move || list.read()).await;
            }
            // A file that is gone for a moment while it is replaced leaves the last list in force.
            seen = Some(stamp);
            beat::next(RELOAD_INTERVAL).await;
        }
    }

    fn read(&self) {
        match &self.source {
            Upstreams::Fixed(servers) => self.publish(servers.clone()),
            Upstreams::ResolvConf(path) => match read_file(path) {
                Ok(text) => self.publish(self.without_stub(name_servers(&text))),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "cannot read the name servers to forward to; the last ones stay");
                }
            },
        }
    }

    /// The servers of a file, and in place of systemd-resolved those that it asks. Where it does not say whom, it is not
    /// asked in their stead: what it asks us would come back to it.
    fn without_stub(&self, servers: Vec<SocketAddr>) -> Vec<SocketAddr> {
        if !servers.iter().any(|server| STUBS.contains(&server.ip())) {
            return servers;
        }
        match read_file(&self.uplinks) {
            Ok(text) => {
                name_servers(&text).into_iter().filter(|server| !STUBS.contains(&server.ip())).collect()
            }
            Err(error) => {
                tracing::warn!(path = %self.uplinks.display(), %error, "systemd-resolved says not whom it asks: names that are not the mesh's are asked of nobody through it");
                servers.into_iter().filter(|server| !STUBS.contains(&server.ip())).collect()
            }
        }
    }

    fn publish(&self, mut servers: Vec<SocketAddr>) {
        servers.retain(|server| {
            let ours = self.own.contains(server);
            if ours {
                tracing::warn!(%server, "this upstream is the agent's own DNS server and is left out");
            }
            !ours
        });
        if servers.len() > MAX_UPSTREAMS {
            tracing::warn!(
                given = servers.len(),
                used = MAX_UPSTREAMS,
                "too many upstreams; the last are left out"
            );
            servers.truncate(MAX_UPSTREAMS);
        }
        if **self.servers.load() != servers {
            tracing::info!(?servers, "names that are not the mesh's are asked of these");
            self.servers.store(Arc::new(servers));
            self.turn.store(0, Ordering::Relaxed);
        }
    }
}

async fn stamp_of(path: &Path) -> Option<Stamp> {
    let metadata = tokio::fs::metadata(path).await.ok()?;
    Some(Stamp { modified: metadata.modified().ok(), length: metadata.len(), inode: metadata.ino() })
}

fn read_file(path: &Path) -> io::Result<String> {
    use io::Read;
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

/// The name servers of a `resolv.conf(5)`; lines that are none, or whose address is none, are passed over as libc does.
pub fn name_servers(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == "nameserver").then(|| words.next())?
        })
        .filter_map(server)
        .collect()
}

fn server(text: &str) -> Option<SocketAddr> {
    const DNS_PORT: u16 = 53;
    let Some((address, scope)) = text.split_once('%') else {
        return Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, DNS_PORT));
    };
    let address: Ipv6Addr = address.parse().ok()?;
    Some(SocketAddrV6::new(address, DNS_PORT, 0, scope_id(scope)?).into())
}

/// The interface of a link-local address, by number or by name.
fn scope_id(scope: &str) -> Option<u32> {
    if let Ok(number) = scope.parse() {
        return Some(number);
    }
    if scope.contains('/') || scope.starts_with('.') {
        return None;
    }
    fs::read_to_string(format!("/sys/class/net/{scope}/ifindex")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        let found: Vec<_> = name_servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{text:?}");
    }

    #[test]
    fn reads_name_servers() {
        check("", &[]);
        check("# nameserver 10.0.0.1\nsearch a b\nnameserver 10.0.0.2 # two\n", &["10.0.0.2:53"]);
        check("nameserver\t::1\n  nameserver 10.0.0.3", &["[::1]:53", "10.0.0.3:53"]);
        check("nameserver\nnameserver x\nnameservers 10.0.0.4\noptions ndots:2", &[]);
        check("nameserver fe80::1%7\nnameserver fe80::2%../x\nnameserver 10.0.0.5%7", &["[fe80::1%7]:53"]);
    }

    #[test]
    fn our_own_address_is_no_upstream_and_the_list_is_bounded() {
        let own: SocketAddr = "127.0.0.1:53".parse().expect("an address");
        let other: SocketAddr = "127.0.0.53:53".parse().expect("an address");
        let list = UpstreamList::load(Upstreams::Fixed(vec![own, other]), vec![own]);
        assert_eq!(*list.servers(), [other]);
        let list = UpstreamList::load(Upstreams::Fixed(vec![other; 40]), vec![own]);
        assert_eq!(list.servers().len(), MAX_UPSTREAMS);
    }

    #[test]
    fn one_failure_moves_the_turn_once() {
        let list = UpstreamList::load(Upstreams::Fixed(Vec::new()), Vec::new());
        let turn = list.turn();
        list.failed(turn);
        list.failed(turn);
        assert_eq!(list.turn(), turn + 1);
    }

    #[test]
    fn a_file_that_cannot_be_read_leaves_the_last_list() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("resolv.conf");
        fs::write(&path, "nameserver 10.0.0.1\n").expect("writable");
        let list = UpstreamList::load(Upstreams::ResolvConf(path.clone()), Vec::new());
        assert_eq!(list.servers().len(), 1);
        fs::remove_file(&path).expect("there");
        list.read();
        assert_eq!(list.servers().len(), 1);
        fs::write(&path, "").expect("writable");
        list.read();
        assert_eq!(list.servers().len(), 0);
    }

    #[test]
    fn the_servers_behind_systemd_resolved_are_asked_and_never_itself() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, uplinks) = (dir.path().join("resolv.conf"), dir.path().join("uplinks"));
        let servers = |text: &str| {
            fs::write(&path, text).expect("writable");
            let source = Upstreams::ResolvConf(path.clone());
            let list = UpstreamList::load_with(source, Vec::new(), uplinks.clone());
            list.servers().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let none: [&str; 0] = [];
        assert_eq!(servers("nameserver 127.0.0.53\n"), none, "it is not said who else");
        assert_eq!(servers("nameserver 127.0.0.53\nnameserver 10.0.0.9\n"), ["10.0.0.9:53"]);
        fs::write(&uplinks, "nameserver 10.0.0.1\nnameserver 127.0.0.53\nnameserver fd00::1\n")
            .expect("writable");
        assert_eq!(servers("nameserver 127.0.0.53\n"), ["10.0.0.1:53", "[fd00::1]:53"]);
        assert_eq!(servers("nameserver 10.0.0.9\n"), ["10.0.0.9:53"]);
    }

    #[tokio::test]
    async fn a_changed_or_replaced_file_is_read_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("resolv.conf");
        let list = Arc::new(UpstreamList::load(Upstreams::ResolvConf(path.clone()), Vec::new()));
        let watching = tokio::spawn(list.clone().watch());
        let becomes = async |expected: &str| {
            let there = async {
                while list.servers().first().map(ToString::to_string).as_deref() != Some(expected) {
                    tokio::time::sleep(RELOAD_INTERVAL / 100).await;
                }
            };
            tokio::time::timeout(RELOAD_INTERVAL * 60, there).await.expect("it is read");
        };
        fs::write(&path, "nameserver 10.0.0.1\n").expect("writable");
        becomes("10.0.0.1:53").await;
        // Another file of the same length takes its place.
        let aside = dir.path().join("resolv.conf.new");
        fs::write(&aside, "nameserver 10.0.0.2\n").expect("writable");
        fs::rename(&aside, &path).expect("renamed");
        becomes("10.0.0.2:53").await;
        watching.abort();
    }
}
