//! Hosts made of namespaces, joined by a bridge, as root and as an ordinary user.
//!
//! Nothing here enters a namespace itself. A [`Net`] and each [`Host`] are held by a keeper: this binary, started by
//! `unshare`, waiting for the end of its standard input. Programs run on a host through `nsenter` with the keeper's
//! namespaces. An ordinary user's keepers live below one user namespace, which every `nsenter` joins too, so the
//! calling process stays as it is: threads, test runners and debuggers work in both cases alike.
//!
//! There is no PID namespace, and therefore a `Child`'s id is the program's own. When the calling process ends, by
//! whatever signal, the kernel closes the keepers' standard inputs; a keeper then kills everything that is left in
//! its network namespace, and the one of the `Net` removes directories and cgroups as well.
//!
//! Needed are `ip`, `nft`, `unshare`, `nsenter`, and for another uid `setpriv`: no repository, no `/etc/subuid`, no
//! writable home.

mod capture;
mod cgroup;
mod flows;
mod held;
mod host;
mod keeper;
mod net;
mod pcap;
mod privilege;
mod process;
mod sockets;
mod tools;
mod view;
mod wait;

pub use capture::Capture;
pub use flows::Flow;
pub use host::Host;
pub use net::Net;
pub use pcap::{Packet, Pcap, Sighting};
pub use privilege::Privilege;
pub use process::Process;
pub use wait::{WAIT_BOUND, wait_until};

pub(crate) use capture::capture_into;
pub(crate) use cgroup::enter_cgroup;
pub(crate) use keeper::keep;
pub(crate) use sockets::make_socket;

/// Holds a switch's or a host's namespaces.
pub(crate) const KEEPER: &str = "demo-keeper";
/// Writes packets to a pcap file.
pub(crate) const CAPTURE: &str = "demo-capture";
/// Makes a socket in a host's network and hands it out.
pub(crate) const SOCKET: &str = "demo-socket";
/// Joins a cgroup, then becomes another program.
pub(crate) const INTO_CGROUP: &str = "demo-into-cgroup";
