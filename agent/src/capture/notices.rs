//! The kernel's notices that somebody changed nftables (linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h): one for
//! each object that a transaction made or removed, and one at its end that names the process. Those of others that touch our
//! table are told; our own and those about tables of others are not. Nothing is read from them but that it is time to look.
//!
//! The agent's commands have a name that no other process has, and are told by it: the kernel gives their number in the first
//! PID namespace, which is another than an agent in a container knows them by. Where the name could not be had it is the numbers
//! that they are told by; each change of our own is then one of somebody else's to an agent in a container, and costs one look at the
//! whole table, which finds it as it was meant. The steward heeds the next notice a second later at the earliest, so that a look
//! that itself changes something is not followed by looks without end. What of somebody else has by chance the number of one of ours is
//! not told; the look every 30 s finds it.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::sync::{LazyLock, Mutex, PoisonError};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, sockopt};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::sets::TABLE;

/// Bytes of one notice: elements come up to a page at once.
const NOTICE_LEN: usize = 64 << 10;
/// Bytes of notices that wait to be read. What does not fit is told as one notice of somebody unknown.
const WAITING: usize = 1 << 20;
/// So many of this process's own commands are remembered: those whose notices may not have been read yet.
const OWN: usize = 64;

/// `NFNLGRP_NFTABLES` as a bit.
const GROUP: u32 = 1 << 6;
/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u8 = 10;
/// `NFT_MSG_NEWGEN`: the end of a transaction.
const NEW_GENERATION: u8 = 15;
/// `NFTA_*_TABLE` of every object, and `NFTA_TABLE_NAME`.
const ATTRIBUTE_TABLE: u16 = 1;
/// `NFTA_GEN_PROC_PID`, `NFTA_GEN_PROC_NAME`.
const ATTRIBUTE_PID: u16 = 2;
const ATTRIBUTE_NAME: u16 = 3;
const NLA_TYPE_MASK: u16 = 0x3fff;
/// `struct nlmsghdr`, and `struct nfgenmsg` behind it.
const HEADER_LEN: usize = 16;
const GENERAL_LEN: usize = 4;
/// `NFPROTO_INET`.
const INET: u8 = 1;

/// Commands that this process started: what they change is its own doing.
static STARTED: Mutex<VecDeque<u32>> = Mutex::new(VecDeque::new());

/// What the names of `nft` begin with that are a process's own.
const PREFIX: &str = "nft-";
/// `TASK_COMM_LEN` without the final zero.
const NAME_LEN: usize = 15;
/// The name that this process's `nft` has. Eleven hex digits: nobody has it by chance.
static NAME: LazyLock<String> = LazyLock::new(|| {
    let mut name = format!("{PREFIX}{:016x}", rand::random::<u64>());
    name.truncate(NAME_LEN);
    name
});

/// The name of this process's `nft`: of the link that it is run by.
pub(super) fn name() -> &'static str {
    &NAME
}

/// Whether some process's `nft` may be named so.
pub(super) fn is_a_name(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.len() == NAME_LEN && name.starts_with(PREFIX))
}

/// Notes a command of this process, before it can have changed anything.
pub(super) fn started(pid: u32) {
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    started.truncate(OWN - 1);
    started.push_front(pid);
}

fn is_own(pid: u32) -> bool {
    STARTED.lock().unwrap_or_else(PoisonError::into_inner).contains(&pid)
}

/// Who changed our table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// `nft (process 4711)`; none where notices were lost.
    pub by: Option<String>,
}

/// The notices of this network namespace.
#[derive(Debug)]
pub struct Notices {
    /// A netlink socket: the runtime has no type for those, and waits for any socket alike.
    socket: UdpSocket,
    buffer: Vec<u8>,
    transaction: Transaction,
}

/// What is known of a transaction whose end has not come yet.
#[derive(Debug, Default)]
struct Transaction {
    touches_ours: bool,
}

impl Notices {
    /// Listens from here on. It takes CAP_NET_ADMIN, and a runtime.
    pub fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = Some(netlink::NETFILTER);
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol)?;
        // More than the system's own bound is not had without asking for it by force, and is not needed.
        sockopt::set_socket_recv_buffer_size(&socket, WAITING)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUP))?;
        let transaction = Transaction::default();
        let socket = UdpSocket::from_std(std::net::UdpSocket::from(socket))?;
        Ok(Self { socket, buffer: vec![0; NOTICE_LEN], transaction })
    }

    /// Waits until somebody else has changed our table. What was noticed is kept when it is dropped half way.
    pub async fn changed(&mut self) -> io::Result<Changed> {
        loop {
            self.socket.readable().await?;
            let (socket, buffer) = (&self.socket, &mut self.buffer);
            match socket.try_io(Interest::READABLE, || receive(socket, buffer).map_err(io::Error::from)) {
                Ok(length) => {
                    let mut changed = None;
                    self.transaction.take(&self.buffer[..length], &mut |who| changed = Some(who));
                    if let Some(changed) = changed {
                        return Ok(changed);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // What did not fit is lost: somebody changed something.
                Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {
                    return Ok(Changed { by: None });
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Receives a notice; of those that are not the kernel's, nothing.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Result<usize, Errno> {
    let (_, length, sender) = retry_on_intr(|| {
        rustix::net::recvfrom(socket, &mut *buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC)
    })?;
    let sender = sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok());
    let is_kernel = sender.is_some_and(|sender| sender.pid() == 0);
    Ok(if is_kernel { length.min(buffer.len()) } else { 0 })
}

impl Transaction {
    /// Reads notices and tells of each transaction of somebody else that touched our table.
    fn take(&mut self, mut bytes: &[u8], tell: &mut impl FnMut(Changed)) {
        while let Some(message) = length_of(bytes).and_then(|length| bytes.get(..length)) {
            self.one(message, tell);
            bytes = bytes.get(message.len().next_multiple_of(4)..).unwrap_or_default();
        }
    }

    fn one(&mut self, message: &[u8], tell: &mut impl FnMut(Changed)) {
        let (Some(kind), Some(subsystem), Some(family)) =
            (message.get(4), message.get(5), message.get(HEADER_LEN))
        else {
            return;
        };
        if *subsystem != SUBSYSTEM {
            return;
        }
        let attributes = message.get(HEADER_LEN + GENERAL_LEN..).unwrap_or_default();
        if *kind != NEW_GENERATION {
            let table = attribute(attributes, ATTRIBUTE_TABLE).and_then(|name| name.strip_suffix(b"\0"));
            self.touches_ours |= *family == INET && table == Some(TABLE.as_bytes());
            return;
        }
        if !std::mem::take(&mut self.touches_ours) {
            return;
        }
        let pid =
            attribute(attributes, ATTRIBUTE_PID).and_then(|pid| pid.try_into().ok()).map(u32::from_be_bytes);
        let name = String::from_utf8_lossy(attribute(attributes, ATTRIBUTE_NAME).unwrap_or_default());
        let name = name.trim_end_matches('\0');
        if name != *NAME && !pid.is_some_and(is_own) {
            tell(Changed { by: pid.map(|pid| format!("{name} (process {pid})")) });
        }
    }
}

/// The length of the first message, header included.
fn length_of(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    (length >= HEADER_LEN).then_some(length)
}

/// The first attribute of a kind (`struct nlattr`, padded to 4 bytes).
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let number = |at: usize| Some(u16::from_ne_bytes(attributes.get(at..at + 2)?.try_into().ok()?));
        let (length, kind) = (usize::from(number(0)?), number(2)? & NLA_TYPE_MASK);
        let value = attributes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute_of(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).expect("short");
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(kind: u8, family: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
        let body = [vec![family, 0, 0, 0], attributes.concat()].concat();
        let length = u32::try_from(HEADER_LEN + body.len()).expect("short");
        [&length.to_ne_bytes()[..], &[kind, SUBSYSTEM], &[0; 10], &body].concat()
    }

    fn object(table: &str, family: u8) -> Vec<u8> {
        message(7, family, &[attribute_of(ATTRIBUTE_TABLE, format!("{table}\0").as_bytes())])
    }

    fn end(pid: u32) -> Vec<u8> {
        end_by(pid, "nft")
    }

    fn end_by(pid: u32, name: &str) -> Vec<u8> {
        let id = attribute_of(1, &7_u32.to_be_bytes());
        let pid = attribute_of(ATTRIBUTE_PID, &pid.to_be_bytes());
        let name = attribute_of(ATTRIBUTE_NAME, format!("{name}\0").as_bytes());
        message(NEW_GENERATION, 0, &[id, pid, name])
    }

    fn check(notices: &[Vec<u8>], expected: &[&str]) {
        let (mut transaction, mut told) = (Transaction::default(), Vec::new());
        // Whatever the kernel puts into one message of the socket.
        for notice in notices {
            transaction.take(notice, &mut |changed| told.extend(changed.by));
        }
        assert_eq!(told, expected);
        let (mut transaction, mut at_once) = (Transaction::default(), Vec::new());
        transaction.take(&notices.concat(), &mut |changed| at_once.extend(changed.by));
        assert_eq!(at_once, expected);
    }

    #[test]
    fn tells_who_touched_our_table_and_of_nobody_else() {
        started(4_000_001);
        check(&[object("baremesh", INET), end(4711)], &["nft (process 4711)"]);
        check(
            &[object("filter", 2), object("baremesh", INET), object("nat", 2), end(4711)],
            &["nft (process 4711)"],
        );
        check(&[object("filter", 2), end(4711)], &[]);
        check(&[object("baremesh", 2), end(4711)], &[]);
        check(&[object("baremesh_anchor", INET), end(4711)], &[]);
        check(&[object("baremesh", INET), end(4_000_001)], &[]);
        check(&[object("baremesh", INET), end_by(4711, name())], &[]);
        check(&[object("baremesh", INET), end_by(4711, "nft-0")], &["nft-0 (process 4711)"]);
        check(
            &[object("baremesh", INET), end(4_000_001), object("baremesh", INET), end(1)],
            &["nft (process 1)"],
        );
        check(&[object("baremesh", INET), end(1), object("filter", 2), end(2)], &["nft (process 1)"]);
    }

    #[test]
    fn no_mangled_notice_panics() {
        let whole = [object("baremesh", INET), end(4711)].concat();
        for cut in 0..whole.len() {
            Transaction::default().take(&whole[..cut], &mut |_| {});
            let mut mangled = whole.clone();
            mangled[cut] ^= 0xff;
            Transaction::default().take(&mangled, &mut |_| {});
        }
    }
}
