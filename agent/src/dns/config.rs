//! What the DNS server is told: the mesh's domain and virtual ranges, whom to ask about all other names, and the
//! bounds of what it holds.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use baremesh_model::name::Domain;
use ipnet::IpNet;
use socket2::Socket;

use crate::capture::Interface;

/// Seconds for which an answer about a mesh name may be cached. Virtual addresses are stable (one is not used
/// again for 7 days), so that this bounds only how long a removed service's name lives on.
pub const ANSWER_TTL: u32 = 30;

/// Seconds for which "no such name" may be cached: short, since people look a name up, register it, and try again.
pub const NEGATIVE_TTL: u32 = 5;

/// How long one upstream is given for one question. Three attempts end before the five seconds after which a
/// stub resolver asks again.
pub const UPSTREAM_TIMEOUT: Duration = Duration::from_millis(1500);

/// How many times a question is sent upstream before the client is told SERVFAIL. The attempts go round the list of
/// upstreams; a single one is asked again from a new port, as a datagram may be lost.
pub const UPSTREAM_ATTEMPTS: usize = 3;

/// Questions that may wait for upstreams at one time, UDP and TCP together. Each holds one socket.
pub const MAX_FORWARDED: usize = 1024;

/// Clients' TCP connections open at one time.
pub const MAX_CONNECTIONS: usize = 256;

/// Questions of one TCP connection that may wait for their answers; the next is not read before one is answered.
pub const MAX_PIPELINED: usize = 16;

/// How long a TCP client may take to send a whole message, the wait for its first byte included, or to take one
/// (RFC 7766, section 6.2.3, asks for seconds).
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long forwarded UDP questions are given to end when the server stops.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// How often the file that names the upstreams is looked at.
pub const RELOAD_INTERVAL: Duration = Duration::from_secs(3);

/// Name servers taken from a file; those after them are left out with a warning.
pub const MAX_UPSTREAMS: usize = 16;

/// The largest answer about a mesh name that goes out over UDP, whatever the client says it takes, and what clients are
/// told: it passes every network unfragmented (DNS flag day 2020), a container's behind a bridge too.
pub const MAX_UDP_ANSWER: u16 = 1232;

/// Addresses in one answer about a mesh name; more are left out, and the answer is marked truncated. The encoder
/// writes a name of a larger message out in full again, so that its records would differ in length.
pub const MAX_ADDRESSES: usize = 100;

/// All that the DNS server is told.
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// The mesh's domain, `mesh.internal`. No name in it ever goes upstream.
    pub domain: Domain,
    /// The ranges of virtual addresses. No upstream may answer with an address in them, and their reverse names are
    /// answered here.
    pub virtual_ranges: Vec<IpNet>,
    /// What AAAA questions about mesh names are answered with.
    pub ipv6: Ipv6Answers,
    /// Who is asked about all other names.
    pub upstreams: Upstreams,
    /// The mark that takes our own upstream sockets out of the capture of port 53.
    pub mark: SocketMark,
    /// Bridges whose containers are answered.
    pub bridges: Vec<Interface>,
    /// The port that their questions are brought to.
    pub bridge_port: u16,
    /// Bounds; the defaults are this module's constants.
    pub limits: Limits,
}

impl DnsConfig {
    /// The usual configuration for a mesh: upstreams from `/etc/resolv.conf`, no mark, default limits.
    pub fn new(domain: Domain, virtual_ranges: Vec<IpNet>) -> Self {
        Self {
            domain,
            virtual_ranges,
            ipv6: Ipv6Answers::Given,
            upstreams: Upstreams::ResolvConf(PathBuf::from("/etc/resolv.conf")),
            mark: SocketMark(None),
            bridges: Vec::new(),
            bridge_port: 0,
            limits: Limits::default(),
        }
    }
}

/// Whether clients are told IPv6 virtual addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipv6Answers {
    /// AAAA questions are answered with what the service has.
    Given,
    /// The host has no IPv6: the name exists and has no AAAA record, so that clients turn to IPv4 at once.
    Withheld,
}

/// Who is asked about names that are not the mesh's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstreams {
    /// These, in this order.
    Fixed(Vec<SocketAddr>),
    /// The `nameserver` lines of a file in the format of `resolv.conf(5)`, read again when the file changes. Where they
    /// name systemd-resolved's own server (127.0.0.53), the servers that it asks itself take their place.
    ResolvConf(PathBuf),
}

/// The mark (`SO_MARK`) that our own upstream sockets carry, if any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketMark(pub Option<u32>);

impl SocketMark {
    /// Marks a socket.
    ///
    /// # Errors
    /// Where the process has no `CAP_NET_ADMIN`, with a message that says so.
    pub fn apply(self, socket: &Socket) -> io::Result<()> {
        let Some(mark) = self.0 else { return Ok(()) };
        socket.set_mark(mark).map_err(|error| {
            let text = format!(
                "cannot mark the sockets to upstream name servers ({error}): give the agent CAP_NET_ADMIN, or turn the capture of DNS off"
            );
            io::Error::new(error.kind(), text)
        })
    }
}

/// The bounds that a configuration may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// See [`UPSTREAM_TIMEOUT`].
    pub upstream_timeout: Duration,
    /// See [`MAX_FORWARDED`].
    pub forwarded: usize,
    /// See [`MAX_CONNECTIONS`].
    pub connections: usize,
    /// See [`IDLE_TIMEOUT`].
    pub idle_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            upstream_timeout: UPSTREAM_TIMEOUT,
            forwarded: MAX_FORWARDED,
            connections: MAX_CONNECTIONS,
            idle_timeout: IDLE_TIMEOUT,
        }
    }
}
