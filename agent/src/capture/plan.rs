//! What is to be captured, as a value. It is built elsewhere, from the configuration, the registrations and the
//! mesh's endpoints; the rules are rendered from it and from nothing else. Whatever reaches a rule is a number, an
//! address, a name made of labels or a cgroup's path of harmless letters, so that no text from a registration can say anything to nft.

use baremesh_ca::client::CONTROL_PORT;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use baremesh_model::name::Key;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::bridged::Containers;
use super::held::Held;
use super::units::Units;

/// The mark (`SO_MARK`) on every socket that the agent opens towards peers, local services and name servers.
/// Together with the agent's uid it exempts them from capture. It keeps clear of the bits that other programs test
/// (0x4000 and 0x8000 of kube-proxy, 0x0f00 of Cilium, the upper half of Calico and Tailscale).
pub const AGENT_MARK: u32 = 0x10bd;

/// The port of SSH, exempt on every host whatever the configuration says, so that nobody locks himself out.
pub const SSH_PORT: u16 = 22;

/// Ports that are exempt besides SSH's: DHCP (67, 68, 546, 547) and NTP (123).
pub const EXEMPT_PORTS: [u16; 5] = [67, 68, 123, 546, 547];

/// The clouds' metadata service over IPv4: it hands out credentials, and is exempt.
pub const METADATA_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// The metadata service over IPv6.
pub const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Everything that the capture rules are rendered from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapturePlan {
    /// The range of the mesh's virtual IPv4 addresses.
    pub virtual_v4: Ipv4Net,
    /// The range of its virtual IPv6 addresses, if it has any.
    pub virtual_v6: Option<Ipv6Net>,
    /// The real address and port of every remote endpoint that is reached over HBONE.
    pub endpoints: BTreeSet<SocketAddr>,
    /// Addresses and blocks outside the mesh, each with a port, by which hosts of ServiceEntries are reached.
    pub external: BTreeSet<(IpNet, u16)>,
    /// The services registered on this host.
    pub local: Vec<LocalService>,
    /// The uid that the agent runs as, as seen in the network namespace's user namespace.
    pub agent_uid: u32,
    /// The agent's listening ports.
    pub ports: AgentPorts,
    /// Whether DNS questions are brought to the agent.
    pub dns: DnsCapture,
    /// How much of the outbound TCP traffic is captured.
    pub outbound: Outbound,
    /// The ports that sshd is configured for, besides 22. They are exempt as 22 is.
    pub ssh_ports: BTreeSet<u16>,
    /// Whose packets go to the agent, to this host itself or nowhere.
    pub held: Held,
    /// The same of services that are closed while the agent is gone.
    pub held_when_gone: Held,
    /// The services that are told by their units.
    pub units: Units,
    /// The bridges whose containers are captured, each with the addresses there that registrations name.
    pub bridges: Containers,
    /// Containers that registrations name on other interfaces, from which nothing is captured.
    pub uncaptured: Containers,
}

/// A service registered on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalService {
    /// Its name, which the set elements carry as a comment.
    pub name: Key,
    /// Ports that belong to the service at whatever address of this host they are called: every 127.0.0.0/8
    /// address, ::1 and every interface's, those that appear later among them. This is the rule for a service that
    /// was registered by port.
    pub ports: BTreeSet<u16>,
    /// Exact addresses besides: a delivery address that is not this host's (a container), or one of several
    /// addresses that share a port. From other hosts their ports are captured at any address of this host, because
    /// a program that listens on the wildcard address would otherwise be reached past the agent, and so is what this
    /// host forwards to them.
    pub addresses: BTreeSet<SocketAddr>,
    /// Whether plaintext from other hosts may still flow.
    pub strictness: Strictness,
    /// What becomes of it when the agent is gone.
    pub when_gone: WhenGone,
}

/// Whether plaintext is taken, as the mode of PeerAuthentication that holds for the service has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// What does not come through the agent is refused, connections from before the capture too.
    Strict,
    /// New connections come through the agent; those from before the capture go on.
    Permissive,
}

/// What becomes of a service when the agent is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenGone {
    /// It is reachable as if there were no mesh.
    Open,
    /// It is reachable by nobody until the agent is back.
    Closed,
}

/// Whether DNS questions are brought to the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsCapture {
    /// They are left alone.
    Off,
    /// Those of containers on the plan's bridges alone.
    Bridges,
    /// UDP and TCP to port 53 of any address, loopback included, goes to the agent's DNS port on 127.0.0.1 and ::1.
    Port53,
}

/// How much of the outbound TCP traffic is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outbound {
    /// Virtual addresses, endpoints of the mesh and services of this host.
    Registered,
    /// Everything that leaves the host as well.
    All,
}

/// The agent's listening ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentPorts {
    /// Takes what local processes open towards the mesh.
    pub outbound: u16,
    /// Takes captured plaintext from other hosts.
    pub inbound: u16,
    /// Takes HBONE. Never redirected.
    pub hbone: u16,
    /// Answers DNS.
    pub dns: u16,
}

impl Default for AgentPorts {
    fn default() -> Self {
        Self { outbound: 15001, inbound: 15006, hbone: 15008, dns: 15053 }
    }
}

impl CapturePlan {
    /// Every port that is never captured: SSH's, DHCP's, NTP's.
    pub fn exempt_ports(&self) -> BTreeSet<u16> {
        self.ssh_ports.iter().copied().chain([SSH_PORT]).chain(EXEMPT_PORTS).collect()
    }

    /// Whether a destination may stand in a set of captured ones. Exempt destinations and the agent's own listeners
    /// may not, though the rules let them pass earlier as well: a mistake in one place alone locks nobody out.
    pub(super) fn capturable(&self, address: IpAddr, port: u16) -> bool {
        self.capturable_port(port) && address != METADATA_V4 && address != METADATA_V6
    }

    /// The same for a port that is captured at every address.
    pub(super) fn capturable_port(&self, port: u16) -> bool {
        let AgentPorts { outbound, inbound, hbone, dns } = self.ports;
        let exempt = port == SSH_PORT || EXEMPT_PORTS.contains(&port) || self.ssh_ports.contains(&port);
        port != 0 && !exempt && ![outbound, inbound, hbone, dns, CONTROL_PORT].contains(&port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> CapturePlan {
        CapturePlan {
            virtual_v4: "240.240.0.0/16".parse().expect("a range"),
            virtual_v6: None,
            endpoints: BTreeSet::new(),
            external: BTreeSet::new(),
            local: Vec::new(),
            agent_uid: 990,
            ports: AgentPorts::default(),
            dns: DnsCapture::Off,
            outbound: Outbound::Registered,
            ssh_ports: BTreeSet::from([2222]),
            held: Held::default(),
            held_when_gone: Held::default(),
            units: Units::new(),
            bridges: Containers::new(),
            uncaptured: Containers::new(),
        }
    }

    #[test]
    fn exempt_destinations_are_never_captured() {
        let check = |address: &str, expected: bool| {
            let address: SocketAddr = address.parse().expect("an address");
            assert_eq!(plan().capturable(address.ip(), address.port()), expected, "{address}");
        };
        check("10.0.0.1:8080", true);
        check("[fd00::1]:8080", true);
        for port in [22, 2222, 67, 68, 123, 546, 547, 15001, 15006, 15008, 15053, 0] {
            check(&format!("10.0.0.1:{port}"), false);
        }
        check("169.254.169.254:80", false);
        check("[fd00:ec2::254]:80", false);
    }

    #[test]
    fn the_mark_keeps_clear_of_other_programs() {
        assert_eq!(AGENT_MARK & 0xffff_cf00, 0x0000_0000, "bits of kube-proxy, Cilium, Calico and Tailscale");
    }
}
