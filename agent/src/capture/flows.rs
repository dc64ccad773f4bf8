//! Connections from before the capture. Rules look at what opens from now on; what is open already goes past the
//! agent, and is either ended by the rules or goes on as it is. Whoever plans the capture of a host that works wants
//! to know both beforehand. Told from the host's own sockets: what it only forwards, to containers, shows in none.

use std::collections::HashSet;
use std::net::SocketAddr;

use baremesh_model::name::Key;

use super::plan::{AGENT_MARK, CapturePlan, LocalService, Strictness};
use super::sets::plain;
use crate::attribution;
use crate::attribution::sock_diag::dump::SocketEntry;

/// An open connection that the agent does not carry, though it would carry a new one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpenFlow {
    /// Which way it goes.
    pub direction: Direction,
    /// The host's own service that it leads to.
    pub service: Option<Key>,
    /// Who opened it.
    pub from: SocketAddr,
    /// Where it leads.
    pub to: SocketAddr,
    /// The user whose socket it is on this host: the caller's, or the service's where it comes from elsewhere.
    pub uid: u32,
    /// What becomes of it.
    pub fate: Fate,
}

/// Which way an open connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// From another host to a service here.
    Incoming,
    /// From a program of this host to a service here.
    Within,
    /// From this host to an endpoint of the mesh.
    Outgoing,
}

/// What becomes of an open connection under the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It is reset with its next packet.
    Ended,
    /// It goes on past the agent, in plaintext, until it ends by itself.
    GoesOn,
}

/// Has the agent's sockets among them show the ports that their callers have, for [`from_before`] to tell whose they are.
pub fn untranslated(plan: &CapturePlan, mut sockets: Vec<SocketEntry>) -> Vec<SocketEntry> {
    attribution::untranslate(sockets.iter_mut().filter(|socket| is_agents_port(plan, socket.local.port())));
    sockets
}

fn is_agents_port(plan: &CapturePlan, port: u16) -> bool {
    [plan.ports.outbound, plan.ports.inbound].contains(&port)
}

/// Every connection among `sockets` that the rules of `plan` would have brought to the agent and that is not there.
pub fn from_before(plan: &CapturePlan, sockets: &[SocketEntry]) -> Vec<OpenFlow> {
    let ends: HashSet<_> = sockets.iter().map(|socket| (socket.local, socket.peer)).collect();
    // The agent's accepted sockets: their other ends are connections that come through it.
    let through: HashSet<_> =
        sockets.iter().filter(|s| is_agents_port(plan, s.local.port())).map(|s| s.peer).collect();
    let is_agents = |s: &SocketEntry| {
        is_agents_port(plan, s.local.port()) || (s.mark == Some(AGENT_MARK) && s.uid.0 == plan.agent_uid)
    };
    let judge = |socket: &SocketEntry| {
        let (here, other_end) = (socket.local, ends.contains(&(socket.peer, socket.local)));
        let is_local = other_end || socket.peer.ip().is_loopback() || socket.peer.ip() == here.ip();
        let of = |direction, service: Option<&LocalService>, (from, to), fate| {
            let service = service.map(|service| service.name.clone());
            Some(OpenFlow { direction, service, from, to, uid: socket.uid.0, fate })
        };
        if let Some(service) = called_within(plan, socket.peer, is_local) {
            return of(Direction::Within, Some(service), (here, socket.peer), Fate::Ended);
        }
        if plan.endpoints.contains(&socket.peer) && plan.capturable(socket.peer.ip(), socket.peer.port()) {
            return of(Direction::Outgoing, None, (here, socket.peer), Fate::GoesOn);
        }
        // A connection within the host is told by its caller's socket.
        let service = called_from_elsewhere(plan, here).filter(|_| !other_end)?;
        let ended = is_local || service.strictness == Strictness::Strict;
        let direction = if is_local { Direction::Within } else { Direction::Incoming };
        of(direction, Some(service), (socket.peer, here), if ended { Fate::Ended } else { Fate::GoesOn })
    };
    let candidates = sockets.iter().filter(|s| s.inode != 0 && !is_agents(s) && !through.contains(&s.local));
    let mut flows: Vec<_> = candidates.filter_map(judge).collect();
    flows.sort();
    flows
}

/// The service that programs of this host reach at `to`, by its port at any of the host's addresses or exactly.
fn called_within(plan: &CapturePlan, to: SocketAddr, is_local: bool) -> Option<&LocalService> {
    let reached = |service: &&LocalService| {
        service.addresses.iter().any(|address| plain(*address) == to)
            || (is_local && service.ports.contains(&to.port()))
    };
    plan.local.iter().filter(|_| plan.capturable(to.ip(), to.port())).find(reached)
}

/// The service that other hosts reach at `here`, an address of this host.
fn called_from_elsewhere(plan: &CapturePlan, here: SocketAddr) -> Option<&LocalService> {
    let port = here.port();
    let reached = |service: &&LocalService| {
        service.ports.contains(&port) || service.addresses.iter().any(|address| address.port() == port)
    };
    plan.local.iter().filter(|_| plan.capturable_port(port)).find(reached)
}

#[cfg(test)]
mod tests {
    use super::super::namespace::{addresses, plan, service};
    use super::super::{Strictness, WhenGone};
    use super::*;
    use crate::attribution::Uid;

    fn socket(local: &str, peer: &str) -> SocketEntry {
        let address = |text: &str| text.parse().expect("an address");
        SocketEntry { local: address(local), peer: address(peer), uid: Uid(7), inode: 1, mark: None }
    }

    fn check(sockets: &[SocketEntry], expected: &[(Direction, &str, &str, Fate)]) {
        let mut container = service("carts", 9090, Strictness::Permissive, WhenGone::Open);
        container.addresses = addresses(&["172.17.0.2:80"]);
        let plan = CapturePlan {
            local: vec![service("orders", 8080, Strictness::Strict, WhenGone::Closed), container],
            endpoints: addresses(&["10.0.0.7:8080", "10.0.0.7:22"]),
            ..plan()
        };
        let flows = from_before(&plan, sockets);
        let found: Vec<_> =
            flows.iter().map(|f| (f.direction, f.from.to_string(), f.to.to_string(), f.fate)).collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|(d, from, to, fate)| (*d, (*from).to_owned(), (*to).to_owned(), *fate))
            .collect();
        assert_eq!(found, expected, "{sockets:?}");
    }

    #[test]
    fn connections_past_the_agent_are_found() {
        use Direction::{Incoming, Outgoing, Within};
        use Fate::{Ended, GoesOn};
        check(
            &[socket("10.0.0.1:8080", "10.0.0.9:4000")],
            &[(Incoming, "10.0.0.9:4000", "10.0.0.1:8080", Ended)],
        );
        check(
            &[socket("10.0.0.1:9090", "10.0.0.9:4000")],
            &[(Incoming, "10.0.0.9:4000", "10.0.0.1:9090", GoesOn)],
        );
        check(
            &[socket("10.0.0.1:4000", "10.0.0.7:8080")],
            &[(Outgoing, "10.0.0.1:4000", "10.0.0.7:8080", GoesOn)],
        );
        check(
            &[socket("172.17.0.1:4000", "172.17.0.2:80")],
            &[(Within, "172.17.0.1:4000", "172.17.0.2:80", Ended)],
        );
        // Both ends are this host's: one connection.
        let both = [socket("127.0.0.1:8080", "127.0.0.1:4000"), socket("127.0.0.1:4000", "127.0.0.1:8080")];
        check(&both, &[(Within, "127.0.0.1:4000", "127.0.0.1:8080", Ended)]);
        let both = [socket("10.0.0.1:8080", "10.0.1.1:4000"), socket("10.0.1.1:4000", "10.0.0.1:8080")];
        check(&both, &[(Within, "10.0.1.1:4000", "10.0.0.1:8080", Ended)]);
        // Its caller has been told of the end, the service not yet.
        check(&both[..1], &[(Incoming, "10.0.1.1:4000", "10.0.0.1:8080", Ended)]);
        check(
            &[socket("127.0.0.1:8080", "127.0.0.1:4000")],
            &[(Within, "127.0.0.1:4000", "127.0.0.1:8080", Ended)],
        );
    }

    #[test]
    fn what_comes_through_the_agent_or_is_none_of_the_meshs_is_not() {
        check(&[socket("10.0.0.1:4000", "10.0.0.7:9999"), socket("10.0.0.1:7777", "10.0.0.9:4000")], &[]);
        // SSH is exempt, whatever was registered.
        check(&[socket("10.0.0.1:4000", "10.0.0.7:22"), socket("10.0.0.1:22", "10.0.0.9:4000")], &[]);
        // A redirected connection keeps its destination; the agent's end shows its caller.
        check(&[socket("10.0.0.1:4000", "10.0.0.7:8080"), socket("127.0.0.1:15001", "10.0.0.1:4000")], &[]);
        // What the agent delivers.
        let mut own = socket("127.0.0.1:4000", "127.0.0.1:8080");
        (own.mark, own.uid) = (Some(AGENT_MARK), Uid(0));
        check(&[own, socket("127.0.0.1:8080", "127.0.0.1:4000")], &[]);
        // The mark of somebody else does not make it the agent's.
        own.uid = Uid(7);
        check(&[own], &[(Direction::Within, "127.0.0.1:4000", "127.0.0.1:8080", Fate::Ended)]);
        let mut orphan = socket("10.0.0.1:8080", "10.0.0.9:4000");
        orphan.inode = 0;
        check(&[orphan], &[]);
    }
}
