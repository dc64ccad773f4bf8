//! The descriptor store (`FileDescriptorStoreMax=` of systemd.service(5)): listening sockets, with what waits in line at
//! them, stay with the service manager while no agent runs, and the next one is started with them (sd_listen_fds(3)).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use listenfd::ListenFd;
use sd_notify::{NotifyState, notify_with_fds};

/// Under which name they are kept.
const NAME: &str = "baremesh";
/// So many go with one message; the kernel takes 253.
const AT_ONCE: usize = 64;

/// Whether the service manager says that it keeps sockets. Versions before 254 do not say it by themselves; the unit does.
pub fn is_there() -> bool {
    let most = std::env::var("FDSTORE").ok().and_then(|most| most.parse::<u32>().ok());
    most.is_some_and(|most| most > 0) && std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Sockets that this process was started with.
#[derive(Debug, Default)]
pub struct Started {
    /// That may listen.
    pub tcp: Vec<std::net::TcpListener>,
    /// That take datagrams.
    pub udp: Vec<std::net::UdpSocket>,
}

/// Takes those that this process was started with, once: whoever asks again finds none.
pub fn take() -> Started {
    let mut given = ListenFd::from_env();
    let mut started = Started::default();
    for index in 0..given.len() {
        if let Ok(Some(listener)) = given.take_tcp_listener(index) {
            started.tcp.push(listener);
        } else if let Ok(Some(socket)) = given.take_udp_socket(index) {
            started.udp.push(socket);
        }
    }
    started
}

/// Has the service manager keep these, and nothing of before. One that it has already it keeps.
pub fn keep(sockets: &[OwnedFd]) -> io::Result<()> {
    if !is_there() {
        return Ok(());
    }
    sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(NAME)])?;
    for some in sockets.chunks(AT_ONCE) {
        let some: Vec<BorrowedFd<'_>> = some.iter().map(AsFd::as_fd).collect();
        notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(NAME)], &some)?;
    }
    Ok(())
}
