//! The agent's listening sockets in the guard's hands.

use std::os::fd::OwnedFd;

use rustix::net::{Shutdown, shutdown, sockopt};

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
    use std::os::fd::AsFd;

    use super::*;
    use crate::capture::namespace::namespace_test;

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
