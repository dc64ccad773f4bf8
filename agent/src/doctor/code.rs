//! The kinds of findings of `baremesh doctor`: a stable code each, how bad it is, why it matters and what to do. The table in
//! docs/troubleshooting.md is written from here.

use std::fmt;
use std::fmt::Write;

use super::Severity;

/// What kind of finding it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // The table below says what each is.
pub enum Code {
    ConfigInvalid,
    NotJoined,
    AgentDown,
    NotReady,
    KernelOld,
    ToolMissing,
    CgroupMissing,
    ConntrackSilent,
    PortTaken,
    TwoAgents,
    RulesMissing,
    RulesAltered,
    RulesGone,
    RulesOff,
    RulesRestored,
    RouteMissing,
    ForeignRedirect,
    FirewallDrops,
    ControlName,
    ControlRoute,
    ControlPort,
    ControlSilent,
    ControlHandshake,
    ControlIdentity,
    ControlAnswer,
    ControlRefuses,
    LargePacketsLost,
    ClockSkew,
    RegistryAway,
    RegistryBehind,
    StateRefused,
    StateNotKept,
    CertificateEnded,
    CertificateEarly,
    CertificateNearEnd,
    CertificateMissing,
    NotGranted,
    RenewalFails,
    NodeEnded,
    NamesBypassed,
    NotListening,
    NoProcess,
    ServiceUnhealthy,
    PlaintextRefused,
    ContainersUnfollowed,
    ContainerContested,
    AddressElsewhere,
    PeerUnreachable,
    ConntrackFull,
    DescriptorsLow,
    MemoryLow,
    DiskFull,
    StateUnwritable,
    ResourcesRefused,
    RegistrationHeld,
    HostRefuses,
    ControlAlarm,
    ControlDown,
}

/// A code's text, how bad it is, what is so, why it matters, and what to do.
struct Row(Code, &'static str, Severity, &'static str, &'static str, &'static str);

use Severity::{Error, Warning};

/// Every code, in the order in which it is declared.
#[rustfmt::skip]
const TABLE: [Row; 58] = [
    Row(Code::ConfigInvalid, "config_invalid", Error, "agent.toml or a registration cannot be read", "the agent does not start with it, and does not reload", "correct the line that is named, then `systemctl restart baremesh`"),
    Row(Code::NotJoined, "not_joined", Error, "the host has joined no mesh", "the agent has nobody to ask for certificates and state", "`baremesh token create --host NAME` on the control host, and `baremesh join ADDRESS --token TOKEN` here"),
    Row(Code::AgentDown, "agent_down", Error, "no agent answers on this host", "closed services are refused, names of the mesh do not resolve, nothing is encrypted", "`systemctl start baremesh`; `journalctl -u baremesh` says why it ended"),
    Row(Code::NotReady, "not_ready", Error, "the agent runs, and something that serving needs is missing", "what needs it is refused", "the other findings say what to do; `baremesh status` shows it as it changes"),
    Row(Code::KernelOld, "kernel_old", Error, "the kernel is older than 5.8", "it does not tell the cgroup of a socket: callers registered by unit or cgroup are refused", "install a newer kernel, or register services by `--user`"),
    Row(Code::ToolMissing, "tool_missing", Error, "`nft` or `ip` is not installed", "the capture rules cannot be put in place", "`apt install nftables iproute2`"),
    Row(Code::CgroupMissing, "cgroup_missing", Error, "no cgroup hierarchy of version 2 is mounted, and services are registered by unit or cgroup", "their calls are refused, since nobody can say whose they are", "mount it (`mount -t cgroup2 none /sys/fs/cgroup/unified`), or register services by `--user`"),
    Row(Code::ConntrackSilent, "conntrack_silent", Error, "the kernel's connection tracking cannot be asked", "the kernel gives some connections another port: without it nobody can say whose a call is, and every call of this host's programs is refused (`caller_unknown`)", "`modprobe nf_conntrack_netlink`; where modules cannot be loaded later (`kernel.modules_disabled`), name it in a file of `/etc/modules-load.d` and boot; a kernel that was built without it has to be another"),
    Row(Code::PortTaken, "port_taken", Error, "another program has a port of the agent's", "the agent does not start", "end that program, or set `[ports]` in agent.toml on every host"),
    Row(Code::TwoAgents, "two_agents", Error, "two agents run on one host", "each takes the other's rules away", "stop one of the two: the finding names the process that does not answer at this host's socket"),
    Row(Code::RulesMissing, "rules_missing", Error, "the capture rules are not in place", "calls go past the agent: in plaintext, with no identity and under no policy", "`baremesh capture apply`"),
    Row(Code::RulesAltered, "rules_altered", Error, "the capture rules are not those that the agent put in place", "some connections go past the agent", "`baremesh capture apply`, and find out who changes the table `inet baremesh` (`nft monitor`)"),
    Row(Code::RulesGone, "rules_gone", Error, "the rules for a gone agent stand", "closed services are refused", "`systemctl restart baremesh`; until the state of the mesh is known they stand on purpose"),
    Row(Code::RulesOff, "rules_off", Warning, "capture is switched off, or on trial", "what is not captured goes past the agent", "`baremesh capture apply`, or `baremesh capture confirm` for rules on trial"),
    Row(Code::RulesRestored, "rules_restored", Warning, "somebody else changed or removed the capture rules, and the agent put them back", "until it had, connections went past the agent", "find out who: a restart of nftables.service or a firewall tool that flushes everything; have it leave the table `inet baremesh` alone"),
    Row(Code::RouteMissing, "route_missing", Error, "the local route of the virtual addresses is missing", "calls to names of the mesh lead nowhere", "`baremesh capture apply`, and find out who removes routes of protocol 151"),
    Row(Code::ForeignRedirect, "foreign_redirect", Error, "rules of somebody else redirect connections before the agent's", "those connections never come to the agent", "remove the rule that is named, or give its chain a priority above -105"),
    Row(Code::FirewallDrops, "firewall_drops", Error, "a firewall of this host keeps tunnels out, or in", "other hosts cannot call services here, or this host cannot call theirs", "let TCP port 15008 pass between the hosts of the mesh"),
    Row(Code::ControlName, "control_name", Error, "the control server's name has no address", "no new state and no new certificate", "correct the name server or `/etc/hosts`; the name stands in `node/mesh.toml` of the state directory"),
    Row(Code::ControlRoute, "control_route", Error, "there is no route to the control server", "no new state and no new certificate", "`ip route get ADDRESS` with the address that is named: is the interface up, is there a default route?"),
    Row(Code::ControlPort, "control_port", Error, "nobody listens at the control server's port", "no new state and no new certificate; what is in force stays", "`systemctl start baremesh-control` on the control host"),
    Row(Code::ControlSilent, "control_silent", Error, "the control server's port does not answer", "no new state and no new certificate; what is in force stays", "a firewall between the hosts drops TCP port 15012, or the control host is down"),
    Row(Code::ControlHandshake, "control_handshake", Error, "TLS with the control server fails", "no new state and no new certificate", "the finding has its reason; `journalctl -u baremesh-control` on the control host has the other side's"),
    Row(Code::ControlIdentity, "control_identity", Error, "somebody else answers at the control server's address", "nothing is taken from it: no new state and no new certificate", "does the address lead to the control server of another mesh, or was this one made anew? Then join again: `baremesh join ADDRESS --token TOKEN --force`"),
    Row(Code::ControlAnswer, "control_answer", Error, "the control server does not answer as it should", "no new state and no new certificate", "`journalctl -u baremesh-control` on the control host"),
    Row(Code::ControlRefuses, "control_refuses", Error, "the control server refuses this host", "it was revoked, or somebody joined under its name since", "`baremesh token create --rejoin NAME` on the control host, and `baremesh join ADDRESS --token TOKEN --force` here"),
    Row(Code::LargePacketsLost, "large_packets_lost", Error, "small packets reach the control server, and large ones do not", "states and certificates do not arrive, large requests and answers hang", "lower the MTU of the interface to what the path carries (`tracepath ADDRESS`), or let ICMP \"fragmentation needed\" pass"),
    Row(Code::ClockSkew, "clock_skew", Error, "this host's clock and the control server's are more than a minute apart", "certificates and tokens are refused, here or elsewhere", "`timedatectl` on both hosts; `timedatectl set-ntp true`"),
    Row(Code::RegistryAway, "registry_away", Warning, "the agent is not connected to its source of resources", "the last state stays in force, and no change reaches this host", "see the finding about the control server; `systemctl status baremesh-control` on the control host"),
    Row(Code::RegistryBehind, "registry_behind", Warning, "the state in force here is older than the newest", "this host does not go by what was applied last", "wait some seconds and look again; if it stays, `baremesh status` says whether the state was refused"),
    Row(Code::StateRefused, "state_refused", Error, "the last state of the mesh, or of this host's registrations, was refused by this host", "the one before it stays in force", "the finding has the reason; `baremesh analyze` on the control host, or `baremesh service list` here and `systemctl reload baremesh`"),
    Row(Code::StateNotKept, "state_not_kept", Warning, "the last good state is not on the disk", "after a restart without the control server this host knows nothing", "see that the state directory can be written to; the next change of the state is kept again"),
    Row(Code::CertificateEnded, "certificate_ended", Error, "a certificate has ended", "calls of and to that service fail", "see the finding about the control server and the clock: the agent renews it as soon as it can"),
    Row(Code::CertificateEarly, "certificate_early", Error, "a certificate is not valid yet", "calls of and to that service fail: a clock is wrong", "`timedatectl` here and on the control host"),
    Row(Code::CertificateNearEnd, "certificate_near_end", Warning, "a certificate is near its end and ought to have been renewed", "calls of and to that service will fail", "see the finding about the control server: the agent renews it as soon as it can"),
    Row(Code::CertificateMissing, "certificate_missing", Error, "a service of this host has no certificate", "calls of and to it fail", "the finding has the reason; `baremesh certs` shows what is held"),
    Row(Code::NotGranted, "not_granted", Error, "this host was not granted a service that is registered here", "it gets no certificate for it, and nobody is told that it runs here", "a HostGrant for this host (`baremesh apply -f`), or `baremesh service deregister NAME` here"),
    Row(Code::RenewalFails, "renewal_fails", Warning, "a certificate is held, and its renewal fails", "calls go well until it ends", "the finding has the reason; see the one about the control server"),
    Row(Code::NodeEnded, "node_ended", Error, "the node credential has ended", "it opens the control server for its own renewal alone, for 7 days", "see that the control server is in reach; after 7 days `baremesh token create --rejoin NAME` there, and `baremesh join … --force` here"),
    Row(Code::NamesBypassed, "names_bypassed", Error, "names of the mesh are not answered by the agent", "programs do not find services by name", "see `[dns]` of agent.toml: with `mode = \"capture\"` every resolver that asks port 53 is answered; with `\"nameserver\"`, /etc/resolv.conf has to lead to the agent"),
    Row(Code::NotListening, "not_listening", Warning, "nothing listens where a service of this host is delivered", "calls to it fail with `delivery_failed`", "start the program, or register it again with the port and `--deliver` address at which it listens (`ss -ltn`). One that only calls others can be left so"),
    Row(Code::NoProcess, "no_process", Warning, "no process belongs to a service of this host", "what it calls, it calls under no identity of its own, once it runs elsewhere than registered", "compare the registration with `systemctl status UNIT` and `ps -eo user,cgroup,args`"),
    Row(Code::ServiceUnhealthy, "service_unhealthy", Warning, "the check of a service of this host fails", "nobody calls it here", "the finding has what the check found; `baremesh service list`"),
    Row(Code::PlaintextRefused, "plaintext_refused", Warning, "callers come to a STRICT service in plaintext, and are refused", "their hosts have no agent, or do not capture", "join that host, or a PERMISSIVE PeerAuthentication for the service while it moves"),
    Row(Code::ContainersUnfollowed, "containers_unfollowed", Error, "a service is told by a container's labels, and nobody follows the container engine", "no container is certain to be it: its calls are refused, and none is delivered to it", "`systemctl enable --now baremesh-containers`; `journalctl -u baremesh-containers` says why it does not follow"),
    Row(Code::ContainerContested, "container_contested", Error, "one container is two services by what is registered", "it is neither: its calls are refused, and none is delivered to it by label", "change the labels of the container, or `baremesh service register` one of the two anew"),
    Row(Code::AddressElsewhere, "address_elsewhere", Warning, "an address that this host announces is on none of its interfaces", "others cannot reach it there, unless it is translated to this host", "set `addresses` in agent.toml, or `--address` of the registration"),
    Row(Code::PeerUnreachable, "peer_unreachable", Error, "the agent of another host cannot be reached", "calls to its endpoints fail with `connect_failed`", "is its agent running, and does every firewall between let TCP port 15008 pass? `baremesh doctor` there"),
    Row(Code::ConntrackFull, "conntrack_full", Error, "the kernel's table of tracked connections is nearly full", "new connections of the whole host are dropped without a word", "raise `net.netfilter.nf_conntrack_max`, or find out who opens so many"),
    Row(Code::DescriptorsLow, "descriptors_low", Warning, "the agent has few descriptors, or few are left", "fewer connections are taken at once than `max_connections`; beyond, they are refused", "raise `LimitNOFILE` of the unit (`systemctl edit baremesh`), or lower `max_connections`"),
    Row(Code::MemoryLow, "memory_low", Warning, "the agent's cgroup is near its limit of memory", "it takes no new connections, so that the kernel does not kill it", "raise `MemoryMax` of the unit, or lower `max_connections`"),
    Row(Code::DiskFull, "disk_full", Error, "there is no room in the state directory", "certificates and the last good state are not kept: after a restart without the control server they are missing", "make room on that file system"),
    Row(Code::StateUnwritable, "state_unwritable", Error, "the state directory cannot be written to", "certificates and the last good state are not kept", "mount it writable, and see that it belongs to the agent's user"),
    Row(Code::ResourcesRefused, "resources_refused", Error, "the control server refuses the resource files as they are", "no change of them is in force", "`baremesh analyze /etc/baremesh/registry` shows the line"),
    Row(Code::RegistrationHeld, "registration_held", Error, "the control server does not publish what a host registered", "nobody calls the service there", "the finding has the reason: usually a grant that is missing (`baremesh apply -f` a HostGrant)"),
    Row(Code::HostRefuses, "host_refuses", Error, "a host refuses the newest state", "the one before it stays in force there", "the finding has its reason; update that host's agent, or take the change back (`baremesh rollback`)"),
    Row(Code::ControlAlarm, "control_alarm", Error, "many hosts fell silent at once", "their endpoints are kept, whether they are there or not", "look at the control host's network; `baremesh alarm clear` if they are really gone"),
    Row(Code::ControlDown, "control_down", Error, "the control server of this host does not answer", "no new state and no new certificate in the whole mesh", "`systemctl start baremesh-control`; `journalctl -u baremesh-control` says why it ended"),
];

impl Code {
    fn row(self) -> &'static Row {
        TABLE.iter().find(|row| row.0 == self).expect("a test holds every code against the table")
    }

    /// The stable text.
    pub fn as_str(self) -> &'static str {
        self.row().1
    }

    /// How bad it is.
    pub fn severity(self) -> Severity {
        self.row().2
    }

    /// Why it matters.
    pub fn why(self) -> &'static str {
        self.row().4
    }

    /// What to do.
    pub fn remedy(self) -> &'static str {
        self.row().5
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The table of all codes, as Markdown.
pub fn table() -> String {
    let mut table =
        "| code | | what is so | why it matters | what to do |\n|---|---|---|---|---|\n".to_owned();
    for Row(_, code, severity, what, why, remedy) in &TABLE {
        let _ = writeln!(table, "| `{code}` | {} | {what} | {why} | {remedy} |", severity.word());
    }
    table
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_code_of_the_doctor_is_in_the_table_once() {
        for (index, Row(code, text, _, what, why, remedy)) in TABLE.iter().enumerate() {
            assert_eq!(*code as usize, index, "{text}");
            assert!(!what.is_empty() && !why.is_empty() && !remedy.is_empty(), "{text}");
            assert!(text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{text}");
        }
        assert_eq!(TABLE.iter().map(|row| row.1).collect::<BTreeSet<_>>().len(), TABLE.len());
        assert_eq!(TABLE.last().map(|row| row.0), Some(Code::ControlDown), "the last that is declared");
    }

    #[test]
    fn the_table_of_the_doctor_is_the_documented_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/troubleshooting.md");
        let text = std::fs::read_to_string(path).expect("docs/troubleshooting.md");
        let start = text.find("| code |").expect("a table of codes");
        let end = text[start..].find("\n\n").map_or(text.len(), |end| start + end + 1);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            let anew = format!("{}{}{}", &text[..start], table(), &text[end..]);
            std::fs::write(path, anew).expect("the table can be written");
            return;
        }
        assert!(
            text[start..end] == table(),
            "docs/troubleshooting.md: run with UPDATE_GOLDEN=1:\n{}",
            table()
        );
    }
}
