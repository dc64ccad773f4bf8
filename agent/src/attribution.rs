//! Which local process opened a captured connection, as the kernel says: the socket's user and cgroup are read by
//! its addresses and ports, the cgroup leads to the systemd unit, and the registrations say which service that is.
//! Nothing that a process says counts, and what the kernel cannot answer is refused.
//!
//! Modules in reading order.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;

/// The registered services' descriptions of their callers, and the decision.
pub mod callers;
/// Cgroup ids to places in the hierarchy, remembered.
pub mod cgroup;
/// The netlink socket on which the kernel is asked.
pub mod look_up;
/// The ports that connections came from.
mod conntrack;
/// Paths of cgroups and names of units.
pub mod place;
/// The bytes of the kernel's socket diagnosis.
pub mod sock_diag;
/// User names to numbers.
pub mod users;

pub use callers::{Ambiguous, Caller, CallerTable, Matcher, MatcherError};
pub use cgroup::{CgroupError, Cgroups};
pub use conntrack::leftovers::{Forgotten, forget as forget_leftovers};
pub use conntrack::{Tracking, untranslate};
pub use place::{CgroupPath, PlaceError, UnitName};
pub use sock_diag::{LookupError, Uid};
pub use users::{UserError, main_group, uid_of};

use conntrack::{Before, TrackingSocket};
use look_up::DiagSocket;
use sock_diag::{CgroupId, Flow, SocketOwner, canonical};

/// Why nobody can say who opened a connection. Such a connection is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallerUnknown {
    /// The kernel names no owner of the socket.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The owner's cgroup cannot be placed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The kernel does not tell cgroups, but a registration names a unit or a cgroup.
    #[error(
        "this kernel does not tell a socket's cgroup (Linux 5.8 and later do): register services by user"
    )]
    NoCgroup,
    /// Several services are registered for this caller.
    #[error(transparent)]
    Ambiguous(#[from] Ambiguous),
}

impl CallerUnknown {
    /// A short and stable word for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Lookup(LookupError::Gone | LookupError::Orphan | LookupError::NotOpen(_)) => "closed",
            Self::Lookup(LookupError::OtherSocket | LookupError::MixedFamilies { .. }) => "other_socket",
            Self::Lookup(
                LookupError::Refused(_) | LookupError::NoTracking(_) | LookupError::Malformed(_),
            ) => "lookup_failed",
            Self::Cgroup(CgroupError::Removed(_)) => "cgroup_removed",
            Self::Cgroup(_) => "cgroup_unreadable",
            Self::NoCgroup => "no_cgroup",
            Self::Ambiguous(_) => "ambiguous",
        }
    }
}

/// The answer to who opened a connection.
#[derive(Debug)]
pub enum Who<K> {
    /// It is known.
    Known(Caller<K>),
    /// The caller's cgroup has not been seen before; `Pending::resolve` places it.
    Pending(Pending),
}

/// A caller whose cgroup has not been seen before. What the kernel said about the socket stands.
#[derive(Debug)]
pub struct Pending {
    uid: Uid,
    cgroup: CgroupId,
    cgroups: Arc<Cgroups>,
}

impl Pending {
    /// Places the cgroup, by a walk on a blocking thread that many may wait for, and decides.
    pub async fn resolve<K: Clone + PartialEq>(
        self,
        table: &CallerTable<K>,
    ) -> Result<Caller<K>, CallerUnknown> {
        let place = self.cgroups.find(self.cgroup).await?;
        Ok(table.decide(self.uid, Some(&place))?)
    }
}

/// Finds out who opened connections. One a thread: it holds two sockets, each with a buffer.
#[derive(Debug)]
pub struct Attributor {
    kernel: DiagSocket,
    /// Or why there is none, for when a connection comes.
    tracking: Result<TrackingSocket, LookupError>,
    cgroups: Arc<Cgroups>,
}

impl Attributor {
    /// Opens the way to the kernel, for the network namespace of this thread.
    pub fn new(cgroups: Arc<Cgroups>) -> Result<Self, LookupError> {
        Ok(Self { kernel: DiagSocket::open()?, tracking: TrackingSocket::open(), cgroups })
    }

    /// Who opened the connection that was just accepted as `accepted` and was going to `original_destination`.
    /// Takes some microseconds and waits for nothing. To be asked before anything is written to `accepted` or it is
    /// shut down.
    pub fn who<K: Clone + PartialEq>(
        &mut self,
        accepted: impl AsFd,
        original_destination: SocketAddr,
        table: &CallerTable<K>,
    ) -> Result<Who<K>, CallerUnknown> {
        let owner = self.owner(accepted, original_destination)?;
        if !table.needs_place() {
            return Ok(Who::Known(table.decide(owner.uid, None)?));
        }
        let cgroup = owner.cgroup.ok_or(CallerUnknown::NoCgroup)?;
        match self.cgroups.known(cgroup) {
            Some(place) => Ok(Who::Known(table.decide(owner.uid, Some(&*place?))?)),
            None => Ok(Who::Pending(Pending { uid: owner.uid, cgroup, cgroups: Arc::clone(&self.cgroups) })),
        }
    }

    /// The owner of the socket at the other end of `accepted`.
    ///
    /// A client that resets its connection frees its port, and another program may connect from it to the same
    /// place at once; what the first one sent would then be taken for the second one's. So the accepted socket
    /// must still be connected after the look-up: while it is, no other connection has these ends.
    pub fn owner(
        &mut self,
        accepted: impl AsFd,
        original_destination: SocketAddr,
    ) -> Result<SocketOwner, LookupError> {
        let client = peer(&accepted)?;
        let untranslated = self.untranslated(&accepted, client, original_destination)?;
        let owner = self.kernel.owner_of(&Flow::new(untranslated, original_destination)?)?;
        if canonical(peer(&accepted)?) == canonical(client) {
            Ok(owner)
        } else {
            Err(LookupError::OtherSocket)
        }
    }

    /// The client's end as the client knows it. The kernel gave the connection another port when it was brought here where one of
    /// the same port was here already. That port may be another socket's, of whatever program, which came to the same place
    /// and was given another itself: nothing but connection tracking tells the two apart.
    fn untranslated(
        &mut self,
        accepted: impl AsFd,
        client: SocketAddr,
        destination: SocketAddr,
    ) -> Result<SocketAddr, LookupError> {
        let local = rustix::net::getsockname(accepted).map_err(|_| LookupError::Gone)?;
        let local = SocketAddr::try_from(local).map_err(|_| LookupError::Gone)?;
        match self.tracking.as_mut().map_err(|error| *error)?.before_translation(local, client)? {
            Before::Untracked | Before::NotTold => Ok(client),
            Before::Were((from, to))
                if to == canonical(destination) && from.ip() == canonical(client).ip() =>
            {
                let mut untranslated = client;
                untranslated.set_port(from.port());
                Ok(untranslated)
            }
            Before::Were(_) => Err(LookupError::Gone),
        }
    }
}

/// The other end of a connected socket; a socket that was reset has none.
fn peer(accepted: impl AsFd) -> Result<SocketAddr, LookupError> {
    let peer = rustix::net::getpeername(accepted).map_err(|errno| match errno {
        Errno::NOTCONN | Errno::INVAL => LookupError::Gone,
        errno => LookupError::Refused(errno),
    })?;
    peer.and_then(|peer| SocketAddr::try_from(peer).ok()).ok_or(LookupError::Gone)
}

#[cfg(test)]
mod tests;
