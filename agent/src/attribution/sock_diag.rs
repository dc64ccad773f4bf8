//! What is said to the kernel's socket diagnosis and what it answers, as bytes: one exact request by addresses and
//! ports, one answer with the owner of that socket (linux/inet_diag.h, linux/sock_diag.h, linux/netlink.h). Pure;
//! every length is checked, and an answer that is not about the socket asked for is never taken.

/// Lists of sockets.
pub mod dump;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::io::Errno;

/// Bytes of a request: `struct nlmsghdr` and `struct inet_diag_req_v2`.
pub const REQUEST_LEN: usize = HEADER_LEN + 56;
/// Bytes that an answer may have. A TCP socket's answer without extensions has fewer than 200.
pub const ANSWER_LEN: usize = 1024;

const HEADER_LEN: usize = 16;
/// `struct inet_diag_msg`.
const MESSAGE_LEN: usize = 72;
/// Where `struct inet_diag_sockid` starts, counted from the end of the header, in a request and in an answer.
const REQUEST_ID: usize = 8;
const MESSAGE_ID: usize = 4;

pub(super) const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_CGROUP_ID: u16 = 21;
const NLA_TYPE_MASK: u16 = 0x3fff;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// The loopback device has this index in every network namespace.
const LOOPBACK_INDEX: u32 = 1;

/// A user as the kernel numbers it, seen from the agent's own user namespace (a user that is not mapped into it
/// shows as the overflow user, 65534).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(pub u32);

/// A cgroup's number in the version 2 hierarchy: the inode number of its directory, never given twice between two
/// boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CgroupId(pub u64);

/// One connection as its client sees it, both ends of one address family (mapped IPv4 addresses count as IPv4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    client: SocketAddr,
    destination: SocketAddr,
    interface: u32,
}

impl Flow {
    /// The connection from `client` (the accepted socket's peer) to `destination` (where it was going before it was
    /// captured).
    ///
    /// The interface asked about is the one by which answers reach the client, so that the kernel looks up exactly
    /// as it does when it delivers what is sent to the client. It matters because a client may be bound to a
    /// device, and because two sockets may then hold the same ends, when the older one is bound and the newer is
    /// not.
    pub fn new(client: SocketAddr, destination: SocketAddr) -> Result<Self, LookupError> {
        let interface = [client, destination].into_iter().map(scope).find(|scope| *scope != 0);
        let flow = Self {
            client: canonical(client),
            destination: canonical(destination),
            interface: interface.unwrap_or(LOOPBACK_INDEX),
        };
        if flow.client.is_ipv4() == flow.destination.is_ipv4() {
            Ok(flow)
        } else {
            Err(LookupError::MixedFamilies { client, destination })
        }
    }

    /// The client's end.
    pub fn client(&self) -> SocketAddr {
        self.client
    }

    /// Where the client wanted to go.
    pub fn destination(&self) -> SocketAddr {
        self.destination
    }
}

/// The address with IPv4 written as IPv4, without scope and flow label: what two views of one socket share.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Link-local addresses are bound to an interface; the socket is then found on that interface only.
fn scope(address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(v6) => v6.scope_id(),
    }
}

/// The states in which a client may be when its fresh connection is looked up.
///
/// Not among them: CLOSE_WAIT, since the agent has not closed anything yet, so such a socket is the rest of an
/// older connection; SYN_SENT, since a client is ESTABLISHED before the packet leaves that lets the agent accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketState {
    /// Open in both directions.
    Established,
    /// The client has ended its sending side, which is not acknowledged yet.
    FinWait1,
    /// The client has ended its sending side and still reads.
    FinWait2,
}

/// The socket that a connection was opened with, as the kernel describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketOwner {
    /// The user that created the socket.
    pub uid: Uid,
    /// The socket's inode number, never 0: a process still holds it.
    pub inode: u32,
    /// The cgroup in which the socket was created; kernels before 5.8 do not tell.
    pub cgroup: Option<CgroupId>,
    /// The client's TCP state.
    pub state: SocketState,
}

/// Why the kernel's answer does not say who opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// No such socket.
    #[error(
        "the connection's socket is gone: its program has reset it, or it is no program of this host and network namespace (if every connection is refused so, load the kernel module tcp_diag)"
    )]
    Gone,
    /// The socket exists, but no process holds it any more.
    #[error("the connection's program closed it at once, so nobody can say whose it was")]
    Orphan,
    /// The socket is in a TCP state that a fresh connection cannot have.
    #[error("the connection's socket is in state {}, not in one of a fresh connection", state_name(*.0))]
    NotOpen(u8),
    /// The kernel answered with another socket: a listener on the client's port stands in for a closed one.
    #[error("the kernel answered for another socket than the connection's: the connection is closed")]
    OtherSocket,
    /// One end is IPv4, the other IPv6: no TCP connection is so.
    #[error("no connection goes from {client} to {destination}: the address families differ")]
    MixedFamilies {
        /// The client's end.
        client: SocketAddr,
        /// Where it was said to go.
        destination: SocketAddr,
    },
    /// The kernel refused the request or the netlink socket.
    #[error(
        "the kernel refused to look up a socket ({0}): no capability is needed for that, so check that the unit's RestrictAddressFamilies= names AF_NETLINK and that no system call filter stops it"
    )]
    Refused(Errno),
    /// Whether the kernel gave the connection another port is not known.
    #[error(
        "connection tracking cannot be asked from which port the connection came ({0}), and it may look like another program's: load the kernel module nf_conntrack_netlink"
    )]
    NoTracking(Errno),
    /// The answer did not come, or not from the kernel, or makes no sense.
    #[error("the kernel's answer about a socket cannot be read: {0}")]
    Malformed(&'static str),
}

fn state_name(state: u8) -> &'static str {
    const NAMES: [&str; 13] = [
        "unknown",
        "ESTABLISHED",
        "SYN_SENT",
        "SYN_RECV",
        "FIN_WAIT1",
        "FIN_WAIT2",
        "TIME_WAIT",
        "CLOSE",
        "CLOSE_WAIT",
        "LAST_ACK",
        "LISTEN",
        "CLOSING",
        "NEW_SYN_RECV",
    ];
    NAMES.get(usize::from(state)).copied().unwrap_or(NAMES[0])
}

/// The request for the one socket of `flow`.
pub fn encode(flow: &Flow, sequence: u32) -> [u8; REQUEST_LEN] {
    let mut bytes = [0; REQUEST_LEN];
    put(&mut bytes, 0, &(REQUEST_LEN as u32).to_ne_bytes());
    put(&mut bytes, 4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(&mut bytes, 6, &NLM_F_REQUEST.to_ne_bytes());
    put(&mut bytes, 8, &sequence.to_ne_bytes());
    let family = if flow.client.is_ipv4() { AF_INET } else { AF_INET6 };
    put(&mut bytes, HEADER_LEN, &[family, IPPROTO_TCP]);
    put(&mut bytes, HEADER_LEN + 4, &u32::MAX.to_ne_bytes()); // all states
    let id = HEADER_LEN + REQUEST_ID;
    put(&mut bytes, id, &flow.client.port().to_be_bytes());
    put(&mut bytes, id + 2, &flow.destination.port().to_be_bytes());
    put_ip(&mut bytes, id + 4, flow.client.ip());
    put_ip(&mut bytes, id + 20, flow.destination.ip());
    put(&mut bytes, id + 36, &flow.interface.to_ne_bytes());
    put(&mut bytes, id + 40, &[0xff; 8]); // INET_DIAG_NOCOOKIE
    bytes
}

fn put(bytes: &mut [u8; REQUEST_LEN], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn put_ip(bytes: &mut [u8; REQUEST_LEN], at: usize, ip: IpAddr) {
    match ip {
        IpAddr::V4(v4) => put(bytes, at, &v4.octets()),
        IpAddr::V6(v6) => put(bytes, at, &v6.octets()),
    }
}

/// Reads the answer to the request for `flow` with that sequence number. `None`: it answers another request.
pub fn decode(answer: &[u8], flow: &Flow, sequence: u32) -> Result<Option<SocketOwner>, LookupError> {
    const SHORT: LookupError = LookupError::Malformed("it is cut short");
    let length = u32_at(answer, 0).ok_or(SHORT)? as usize;
    let message = answer.get(..length).ok_or(SHORT)?;
    if u32_at(message, 8).ok_or(SHORT)? != sequence {
        return Ok(None);
    }
    let body = message.get(HEADER_LEN..).ok_or(SHORT)?;
    match u16_at(message, 4).ok_or(SHORT)? {
        SOCK_DIAG_BY_FAMILY => {}
        NLMSG_ERROR => return Err(kernel_error(u32_at(body, 0).ok_or(SHORT)?)),
        _ => return Err(LookupError::Malformed("it is of another kind")),
    }
    if body.len() < MESSAGE_LEN {
        return Err(SHORT);
    }
    let client = end(body, MESSAGE_ID, MESSAGE_ID + 4).ok_or(SHORT)?;
    let destination = end(body, MESSAGE_ID + 2, MESSAGE_ID + 20).ok_or(SHORT)?;
    if (client, destination) != (flow.client, flow.destination) {
        return Err(LookupError::OtherSocket);
    }
    let state = match body[1] {
        1 => SocketState::Established,
        4 => SocketState::FinWait1,
        5 => SocketState::FinWait2,
        other => return Err(LookupError::NotOpen(other)),
    };
    let uid = Uid(u32_at(body, 64).ok_or(SHORT)?);
    let inode = u32_at(body, 68).ok_or(SHORT)?;
    if inode == 0 {
        return Err(LookupError::Orphan);
    }
    Ok(Some(SocketOwner { uid, inode, cgroup: cgroup_id(&body[MESSAGE_LEN..])?, state }))
}

/// What an `NLMSG_ERROR` with this number means.
pub(super) fn kernel_error(raw: u32) -> LookupError {
    match raw.cast_signed().checked_neg().filter(|errno| (1..4096).contains(errno)) {
        Some(errno) if Errno::from_raw_os_error(errno) == Errno::NOENT => LookupError::Gone,
        Some(errno) => LookupError::Refused(Errno::from_raw_os_error(errno)),
        None => LookupError::Malformed("its error number is out of range"),
    }
}

/// One end of the socket: its port and address at the given places of an `inet_diag_msg`.
fn end(body: &[u8], port: usize, ip: usize) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(array_at(body, port)?);
    let ip = match *body.first()? {
        AF_INET => IpAddr::V4(Ipv4Addr::from(array_at::<4>(body, ip)?)),
        AF_INET6 => IpAddr::V6(Ipv6Addr::from(array_at::<16>(body, ip)?)).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// The cgroup's id among the attributes.
fn cgroup_id(attributes: &[u8]) -> Result<Option<CgroupId>, LookupError> {
    let Some(value) = attribute(attributes, INET_DIAG_CGROUP_ID)? else { return Ok(None) };
    let id = value.try_into().map_err(|_| LookupError::Malformed("the cgroup id is not 8 bytes long"))?;
    Ok(Some(CgroupId(u64::from_ne_bytes(id))))
}

/// The first attribute of a kind (`struct nlattr`, padded to 4 bytes).
fn attribute(mut attributes: &[u8], wanted: u16) -> Result<Option<&[u8]>, LookupError> {
    const BAD: LookupError = LookupError::Malformed("an attribute is cut short");
    while !attributes.is_empty() {
        let length = usize::from(u16_at(attributes, 0).ok_or(BAD)?);
        let kind = u16_at(attributes, 2).ok_or(BAD)? & NLA_TYPE_MASK;
        let value = attributes.get(4..length).ok_or(BAD)?;
        if kind == wanted {
            return Ok(Some(value));
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(None)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array_at(bytes, at).map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests;
