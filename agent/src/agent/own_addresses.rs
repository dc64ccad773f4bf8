//! The host's addresses followed while the agent runs, where the configuration does not say them: a lease that is another one,
//! an interface that comes late, a family that is gone.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::prepare::resolve;
use crate::addresses;
use crate::beat;
use crate::publish::Publisher;

/// What has changed counts when it was seen twice, so long apart: an address that is replaced is gone for a moment.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is looked although the kernel has said nothing.
const LOOK_IN_ANY_CASE: Duration = Duration::from_secs(30);
/// Bytes that are read of a notice: nothing is read from it but that it is time to look.
const NOTICE_LEN: usize = 1 << 10;
/// `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR` (linux/rtnetlink.h).
const GROUPS: u32 = 0x10 | 0x100;

/// What the interfaces have, and what was made of it last.
#[derive(Debug, Default)]
struct Seen {
    last: BTreeSet<IpAddr>,
    taken: BTreeSet<IpAddr>,
}

impl Seen {
    /// Whether what is there `now` is what was there before.
    fn rests(&mut self, now: BTreeSet<IpAddr>) -> bool {
        std::mem::replace(&mut self.last, now) == self.last
    }

    /// Whether what has come to rest was not taken yet. A host without any address keeps what it has: it is cut off, and will
    /// come back.
    fn is_news(&mut self) -> bool {
        let is_news = self.last != self.taken && !self.last.is_empty();
        if is_news {
            self.taken.clone_from(&self.last);
        }
        is_news
    }
}

/// The kernel's notices that an interface of this network namespace has got or lost an address.
struct Notices(UdpSocket);

impl Notices {
    /// Listens from here on. It takes a runtime, and no privilege.
    fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Protocol 0 is `NETLINK_ROUTE`.
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        // The runtime has no type for these, and waits for any socket alike.
        Ok(Self(UdpSocket::from_std(std::net::UdpSocket::from(socket))?))
    }

    /// Waits for one, and takes all that are there.
    async fn changed(&self) -> io::Result<()> {
        self.0.readable().await?;
        let mut buffer = [0; NOTICE_LEN];
        loop {
            match self.0.try_recv(&mut buffer) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // Some were lost for want of room: there were many.
                Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Follows them for ever, as those of the interface that leads to `control`.
pub(super) async fn follow(publisher: Arc<Publisher>, control: Option<String>) {
    let mut notices = Notices::open();
    // What was found at the start may be old already.
    let mut seen = Seen::default();
    loop {
        while !addresses::own().is_ok_and(|now| seen.rests(now.into_iter().collect())) {
            beat::next(LOOK).await;
        }
        if seen.is_news() {
            take(&publisher, control.as_deref()).await;
        }
        match &notices {
            Ok(heard) => {
                if let Ok(Err(error)) = timeout(LOOK_IN_ANY_CASE, heard.changed()).await {
                    notices = Err(error);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the kernel does not tell of addresses: they are looked at");
                beat::next(LOOK).await;
            }
        }
    }
}

/// Takes what leads to `control` now.
async fn take(publisher: &Publisher, control: Option<&str>) {
    let control = control.map(str::to_owned);
    let looking = move || addresses::detect(control.as_deref().and_then(resolve));
    let detected = match tokio::task::spawn_blocking(looking).await {
        Ok(Ok(detected)) if !detected.addresses.is_empty() => detected,
        _ => return,
    };
    match publisher.take_addresses(detected.addresses.clone(), &detected.why) {
        Ok(false) => {}
        Ok(true) => {
            tracing::warn!(addresses = ?detected.addresses, why = detected.why, "this host has other addresses: its services are announced there from now on");
        }
        Err(reason) => {
            tracing::error!(addresses = ?detected.addresses, reason, "this host has other addresses, and its services cannot be announced there");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_come_to_rest_is_news_once_and_nothing_is_none() {
        let of = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("an address")).collect();
        let mut seen = Seen { last: of(&["10.0.0.1"]), taken: of(&["10.0.0.1"]) };
        let mut is_news = |texts: &[&str]| seen.rests(of(texts)) && seen.is_news();
        assert!(!is_news(&["10.0.0.1"]));
        assert!(!is_news(&[]) && !is_news(&[]), "it is cut off");
        assert!(!is_news(&["10.0.0.1"]) && !is_news(&["10.0.0.1"]), "and is back as it was");
        assert!(!is_news(&["10.0.0.2"]), "it may change yet");
        assert!(is_news(&["10.0.0.2"]));
        assert!(!is_news(&["10.0.0.2"]));
    }
}
