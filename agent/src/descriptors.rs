//! Sockets handed from process to process, over a Unix socket (`unix(7)`, `SCM_RIGHTS`): no other process that is started
//! meanwhile inherits them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// So many sockets go with one message; the kernel takes 253.
const AT_ONCE: usize = 64;
/// So many can be handed over: a worker has six.
pub const MOST: usize = 4_096;
/// A message has to have a byte of its own.
const CARRIER: u8 = b'l';

/// Hands sockets over, in messages of a byte each.
pub fn give(channel: impl AsFd, listeners: &[BorrowedFd<'_>]) -> io::Result<()> {
    for some in listeners.chunks(AT_ONCE) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(some)) {
            return Err(io::Error::other("too many listeners for one message"));
        }
        retry_on_intr(|| {
            sendmsg(&channel, &[IoSlice::new(&[CARRIER])], &mut ancillary, SendFlags::NOSIGNAL)
        })?;
    }
    Ok(())
}

/// Takes `count` sockets; fewer where the other process ends before it has given them all.
pub fn take(channel: impl AsFd, count: usize) -> io::Result<Vec<OwnedFd>> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let mut bytes = [IoSliceMut::new(&mut byte)];
        let received =
            retry_on_intr(|| recvmsg(&channel, &mut bytes, &mut ancillary, RecvFlags::CMSG_CLOEXEC))?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(sockets) = message {
                taken.extend(sockets);
            }
        }
        if received.bytes == 0 {
            break;
        }
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn all_listeners_arrive() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let listeners: Vec<_> =
            (0..AT_ONCE + 3).map(|_| TcpListener::bind("127.0.0.1:0").expect("bound")).collect();
        let borrowed: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
        give(&ours, &borrowed).expect("given");
        let taken = take(&theirs, listeners.len()).expect("taken");
        let address = |socket: &OwnedFd| {
            TcpListener::from(socket.try_clone().expect("cloned")).local_addr().expect("an address")
        };
        let expected: Vec<_> = listeners.iter().map(|l| l.local_addr().expect("an address")).collect();
        assert_eq!(taken.iter().map(address).collect::<Vec<_>>(), expected);
        drop(ours);
        assert_eq!(take(&theirs, 1).expect("an end").len(), 0);
    }
}
