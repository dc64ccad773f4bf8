//! Where a connection came from before the kernel translated it, asked of its connection tracking (nfnetlink, see
//! linux/netfilter/nfnetlink_conntrack.h). Connections of one port to several places all become connections to the agent:
//! the kernel gives all but the first another port, which may be another program's.

/// What is left of connections from before their destination was captured.
pub mod leftovers;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use rustix::thread::{CapabilitySet, capabilities};

use super::look_up::{MAX_STALE_ANSWERS, receive};
use super::sock_diag::dump::SocketEntry;
use super::sock_diag::{LookupError, NLMSG_ERROR, canonical, kernel_error};

/// `IPCTNL_MSG_CT_NEW` and `_GET` of the subsystem for connection tracking.
const ENTRY: u16 = 1 << 8;
const GET: u16 = 1 << 8 | 1;
const REQUEST: u16 = 1;
const NESTED: u16 = 1 << 15;
/// A netlink header, and the one of nfnetlink.
const HEADER: usize = 16;
const FAMILY: usize = 4;
/// Where the header has the request's number.
const SEQUENCE: std::ops::Range<usize> = 8..12;
/// More than any entry of a TCP connection takes.
const ANSWER: usize = 4096;

/// `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
/// `CTA_TUPLE_IP`, `CTA_TUPLE_PROTO`.
const ADDRESSES: u16 = 1;
const PROTOCOL: u16 = 2;
/// `CTA_PROTO_NUM`, `CTA_PROTO_SRC_PORT`, `CTA_PROTO_DST_PORT`.
const NUMBER: u16 = 1;
const FROM_PORT: u16 = 2;
const TO_PORT: u16 = 3;
const TCP: u8 = 6;

/// The two ends of a connection as its client has them: from where, and to where.
type Ends = (SocketAddr, SocketAddr);

/// What connection tracking knows of a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Before {
    /// Its ends before translation.
    Were(Ends),
    /// It is not tracked, and so not translated.
    Untracked,
    /// This process may not ask. Nor can it have placed the rules that translate.
    NotTold,
}

/// Whether connection tracking can be asked at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tracking {
    /// It answers.
    Answers,
    /// It does not answer a process without `CAP_NET_ADMIN`, which can have placed no rules either.
    NotForUs,
    /// It does not answer although the process has `CAP_NET_ADMIN`.
    Kept,
    /// It cannot be asked: every captured connection of a program of this host is refused.
    Unasked(LookupError),
}

impl Tracking {
    /// Asks about a connection that nobody has: none is from port 0, or to it.
    pub fn look() -> Self {
        let nobodys = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let answer =
            TrackingSocket::open().and_then(|mut kernel| kernel.before_translation(nobodys, nobodys));
        let held = capabilities(None).map_or(CapabilitySet::empty(), |held| held.effective);
        Self::judge(&answer, held)
    }

    fn judge(answer: &Result<Before, LookupError>, held: CapabilitySet) -> Self {
        match answer {
            Ok(Before::Untracked | Before::Were(_)) => Self::Answers,
            Ok(Before::NotTold) if held.contains(CapabilitySet::NET_ADMIN) => Self::Kept,
            Ok(Before::NotTold) => Self::NotForUs,
            Err(error) => Self::Unasked(*error),
        }
    }

    /// What is wrong, and what comes of it.
    pub fn trouble(self) -> Option<String> {
        match self {
            Self::Answers | Self::NotForUs => None,
            Self::Kept => Some(
                "a call of one program may be taken for another's: connection tracking does not answer this process, whose CAP_NET_ADMIN is of another user namespace than its network".to_owned(),
            ),
            Self::Unasked(error) => {
                Some(format!("calls of this host's programs are refused (`caller_unknown`): {error}"))
            }
        }
    }
}

/// A connection to the kernel's connection tracking, of the network namespace in which it was opened.
#[derive(Debug)]
pub struct TrackingSocket {
    socket: OwnedFd,
    sequence: u32,
    answer: Box<[u8; ANSWER]>,
}

impl TrackingSocket {
    /// Opens it. It is connected to the kernel, so that no process can send anything to it.
    pub fn open() -> Result<Self, LookupError> {
        let (flags, protocol) = (SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, Some(netlink::NETFILTER));
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)
            .map_err(LookupError::NoTracking)?;
        rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0)).map_err(LookupError::NoTracking)?;
        Ok(Self { socket, sequence: 0, answer: Box::new([0; ANSWER]) })
    }

    /// What is known of the connection whose accepted socket has these ends. Answered within the sending system call.
    ///
    /// # Errors
    /// The kernel cannot be asked, which is [`LookupError::NoTracking`] where it has no `nf_conntrack_netlink`.
    pub fn before_translation(&mut self, local: SocketAddr, peer: SocketAddr) -> Result<Before, LookupError> {
        self.ask(|number| encode((canonical(local), canonical(peer)), number), decode)
    }

    /// Sends a request, which has the number that it is made with.
    fn send(&mut self, make: impl FnOnce(u32) -> Vec<u8>) -> Result<(), LookupError> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = make(self.sequence);
        retry_on_intr(|| rustix::net::send(&self.socket, &request, SendFlags::empty()))
            .map_err(LookupError::Refused)?;
        Ok(())
    }

    /// Sends a request, and reads the answer to it: `read` finds none in what answers an earlier one.
    fn ask<T>(
        &mut self,
        make: impl FnOnce(u32) -> Vec<u8>,
        read: impl Fn(&[u8], u32) -> Result<Option<T>, LookupError>,
    ) -> Result<T, LookupError> {
        self.send(make)?;
        for _ in 0..=MAX_STALE_ANSWERS {
            let length = receive(&self.socket, &mut self.answer[..])?;
            if let Some(answer) = read(&self.answer[..length], self.sequence)? {
                return Ok(answer);
            }
        }
        Err(LookupError::Malformed("only answers to earlier requests came"))
    }
}

/// Has accepted sockets show the port that their client has, where the kernel gave the connection another. A few
/// microseconds for each; where connection tracking does not know one, it stays as it is.
pub fn untranslate<'a>(accepted: impl Iterator<Item = &'a mut SocketEntry>) {
    let Ok(mut kernel) = TrackingSocket::open() else { return };
    for socket in accepted {
        if let Ok(Before::Were((from, _))) = kernel.before_translation(socket.local, socket.peer) {
            socket.peer.set_port(from.port());
        }
    }
}

/// Asks for the entry whose answers go from `local` to `peer`.
fn encode((local, peer): Ends, sequence: u32) -> Vec<u8> {
    let mut addresses = Vec::new();
    let (family, kinds) = if local.is_ipv4() { (2, [1, 2]) } else { (10, [3, 4]) };
    for (kind, end) in kinds.into_iter().zip([local, peer]) {
        match end.ip() {
            IpAddr::V4(address) => put(&mut addresses, kind, &address.octets()),
            IpAddr::V6(address) => put(&mut addresses, kind, &address.octets()),
        }
    }
    let mut protocol = Vec::new();
    put(&mut protocol, NUMBER, &[TCP]);
    put(&mut protocol, FROM_PORT, &local.port().to_be_bytes());
    put(&mut protocol, TO_PORT, &peer.port().to_be_bytes());
    let mut tuple = Vec::new();
    put(&mut tuple, ADDRESSES | NESTED, &addresses);
    put(&mut tuple, PROTOCOL | NESTED, &protocol);
    let mut body = Vec::new();
    put(&mut body, REPLY | NESTED, &tuple);
    message((GET, 0), family, sequence, &body)
}

/// A request of this kind, with further flags.
fn message((kind, flags): (u16, u16), family: u8, sequence: u32, attributes: &[u8]) -> Vec<u8> {
    let length = HEADER + FAMILY + attributes.len();
    let mut message = Vec::with_capacity(length);
    // Some hundred bytes at most.
    message.extend((length as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((REQUEST | flags).to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend([0; 4]);
    message.extend([family, 0, 0, 0]);
    message.extend(attributes);
    message
}

fn put(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend((4 + value.len() as u16).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Reads the answer to the request with that number. `None`: it answers another request.
fn decode(answer: &[u8], sequence: u32) -> Result<Option<Before>, LookupError> {
    const SHORT: LookupError = LookupError::Malformed("it is cut short");
    let word = |at: std::ops::Range<usize>| answer.get(at)?.try_into().ok().map(u32::from_ne_bytes);
    let length = word(0..4).ok_or(SHORT)? as usize;
    let message = answer.get(..length).ok_or(SHORT)?;
    if word(SEQUENCE).ok_or(SHORT)? != sequence {
        return Ok(None);
    }
    match message.get(4..6).ok_or(SHORT)?.try_into().map(u16::from_ne_bytes) {
        Ok(ENTRY) => match ends(message.get(HEADER + FAMILY..).ok_or(SHORT)?) {
            Some(ends) => Ok(Some(Before::Were(ends))),
            None => Err(LookupError::Malformed("an entry without the ends of a TCP connection")),
        },
        Ok(NLMSG_ERROR) => match kernel_error(word(HEADER..HEADER + 4).ok_or(SHORT)?) {
            LookupError::Gone => Ok(Some(Before::Untracked)),
            LookupError::Refused(Errno::PERM) => Ok(Some(Before::NotTold)),
            LookupError::Refused(errno) => Err(LookupError::NoTracking(errno)),
            error => Err(error),
        },
        _ => Err(LookupError::Malformed("it is of another kind")),
    }
}

/// The original ends of an entry.
fn ends(entry: &[u8]) -> Option<Ends> {
    let tuple = find(entry, ORIGINAL)?;
    let (addresses, protocol) = (find(tuple, ADDRESSES)?, find(tuple, PROTOCOL)?);
    if find(protocol, NUMBER)? != [TCP] {
        return None;
    }
    let port = |kind| Some(u16::from_be_bytes(find(protocol, kind)?.try_into().ok()?));
    let address = |v4, v6| {
        let of_v4 = find(addresses, v4).and_then(|octets| <[u8; 4]>::try_from(octets).ok()).map(IpAddr::from);
        of_v4.or_else(|| Some(IpAddr::from(<[u8; 16]>::try_from(find(addresses, v6)?).ok()?)))
    };
    Some((SocketAddr::new(address(1, 3)?, port(FROM_PORT)?), SocketAddr::new(address(2, 4)?, port(TO_PORT)?)))
}

/// The value of the first attribute of that kind.
fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?));
        let found = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?) & !NESTED;
        let value = attributes.get(4..length)?;
        if found == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBER_OF_REQUEST: u32 = 7;

    pub(super) fn entry(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
        // The request for it, as if it were the entry itself.
        let mut message = encode((from, to), NUMBER_OF_REQUEST);
        message[4..6].copy_from_slice(&ENTRY.to_ne_bytes());
        message[HEADER + FAMILY + 2..HEADER + FAMILY + 4].copy_from_slice(&(ORIGINAL | NESTED).to_ne_bytes());
        message
    }

    #[test]
    fn the_ends_before_translation_are_read_and_nothing_else_is() {
        for (from, to) in [("10.0.0.1:40000", "240.240.0.1:80"), ("[fd00::1]:40000", "[fd00::2]:80")] {
            let (from, to) = (from.parse().expect("an address"), to.parse().expect("an address"));
            let message = entry(from, to);
            assert_eq!(decode(&message, NUMBER_OF_REQUEST), Ok(Some(Before::Were((from, to)))));
            assert_eq!(decode(&message, NUMBER_OF_REQUEST + 1), Ok(None), "it answers another request");
            for length in 0..message.len() {
                assert!(decode(&message[..length], NUMBER_OF_REQUEST).is_err(), "cut after {length}");
            }
            for byte in 0..message.len() {
                let mut damaged = message.clone();
                damaged[byte] ^= 0xff;
                let _ = decode(&damaged, NUMBER_OF_REQUEST);
            }
        }
    }

    #[test]
    fn an_error_is_no_entry() {
        let check = |errno: Errno, expected: Result<Before, LookupError>| {
            let mut message =
                [20_u32.to_ne_bytes(), [0; 4], NUMBER_OF_REQUEST.to_ne_bytes(), [0; 4]].concat();
            message[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
            message.extend((-errno.raw_os_error()).to_ne_bytes());
            assert_eq!(decode(&message, NUMBER_OF_REQUEST), expected.map(Some), "{errno}");
        };
        check(Errno::NOENT, Ok(Before::Untracked));
        check(Errno::PERM, Ok(Before::NotTold));
        // As a kernel without the module says.
        check(Errno::INVAL, Err(LookupError::NoTracking(Errno::INVAL)));
    }

    #[test]
    fn a_kernel_that_does_not_answer_is_noticed() {
        let check = |answer, held, expected: Tracking, is_trouble| {
            let judged = Tracking::judge(&answer, held);
            assert_eq!((judged, judged.trouble().is_some()), (expected, is_trouble), "{judged:?}");
        };
        let (none, all) = (CapabilitySet::empty(), CapabilitySet::NET_ADMIN);
        check(Ok(Before::Untracked), all, Tracking::Answers, false);
        check(Ok(Before::NotTold), none, Tracking::NotForUs, false);
        check(Ok(Before::NotTold), all, Tracking::Kept, true);
        for held in [none, all] {
            for error in [LookupError::NoTracking(Errno::INVAL), LookupError::Refused(Errno::NOBUFS)] {
                check(Err(error), held, Tracking::Unasked(error), true);
            }
        }
        let said = Tracking::Unasked(LookupError::NoTracking(Errno::INVAL)).trouble().unwrap_or_default();
        assert!(said.contains("caller_unknown") && said.contains("nf_conntrack_netlink"), "{said}");
        assert_eq!(Tracking::look().trouble(), None, "of this machine");
    }
}
