//! Handing the agent's listening sockets to the guard, over the socket that is the guard's standard input (`unix(7)`,
//! `SCM_RIGHTS`): no other process that the agent starts meanwhile inherits them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, Shutdown, recvmsg, sendmsg, shutdown, sockopt,
};

/// So many sockets go with one message; the kernel takes 253.
const AT_ONCE: usize = 64;
/// So many can be handed over: a worker has six.
pub(super) const MOST: usize = 4_096;
/// A message has to have a byte of its own.
const CARRIER: u8 = b'l';

/// Hands `listeners` over.
pub(super) fn give(channel: impl AsFd, listeners: &[BorrowedFd<'_>]) -> io::Result<()> {
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

/// Takes `count` listeners; fewer where the agent ends before it has given them all.
pub(super) fn take(channel: impl AsFd, count: usize) -> io::Result<Vec<OwnedFd>> {
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

/// Has listeners take nothing any more, while their ports stay theirs: what waits in line is reset, and so is what comes.
/// It is for the time before the rules change: a reset of a redirected connection finds its way back by them.
pub fn refuse_all(listeners: &[OwnedFd]) {
    for listener in listeners {
        // A socket that listens no more but may share its port would share it with any other that is so made.
        let _ = sockopt::set_socket_reuseaddr(listener, false);
        // Not every socket that is held listens.
        let _ = shutdown(listener, Shutdown::Read);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::capture::namespace::namespace_test;

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

    namespace_test! {
        fn who_waits_in_line_is_told_and_the_port_stays_taken() {
            let bind = || TcpListener::bind("[::]:15001");
            let listener = bind().expect("bound");
            let dial = || TcpStream::connect("127.0.0.1:15001");
            let mut waiting = dial().expect("it waits in line");
            refuse_all(&[listener.as_fd().try_clone_to_owned().expect("cloned")]);
            assert_eq!(waiting.read(&mut [0]).expect_err("reset").kind(), ErrorKind::ConnectionReset);
            assert_eq!(dial().expect_err("refused").kind(), ErrorKind::ConnectionRefused);
            // The standard library lets a listener share its port with sockets that do not listen.
            assert_eq!(bind().expect_err("taken").kind(), ErrorKind::AddrInUse);
            drop(listener);
            bind().expect("free again");
        }
    }
}
