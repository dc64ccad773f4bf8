//! The rules that a plan comes to. Two chains redirect (what this host opens, what others open towards it), and three
//! chains after them refuse what should have been redirected and was not: connections from before the capture,
//! packets that connection tracking was led around, and connections made straight to the agent's ports. One of the
//! three looks at what this host forwards: a service that is delivered into a container has an address of its own,
//! which other hosts may have a route to.

use std::fmt::Write as _;

use ipnet::IpNet;

use super::bridged::{bridged, from_bridges, never_in_plaintext, spoofed};
use super::gone::{ANCHOR_TABLE, removal};
use super::held::{
    container_jumps, held_check, jumps, no_stranger_speaks_first, no_stranger_speaks_first_to_containers,
};
use super::plan::{AGENT_MARK, CapturePlan, DnsCapture, METADATA_V4, METADATA_V6, Outbound};
use super::sets::{NamedSet, TABLE, loading, sets_of};
use super::units;

/// Our nat chains come just before those at the customary -100, so that a container engine's published ports do not
/// take a registered port first.
pub(super) const NAT_PRIORITY: i32 = -105;

/// Filter chains see packets after address translation.
pub(super) const FILTER_PRIORITY: i32 = 0;

/// A packet that opens a connection. Anything else in a nat chain belongs to a connection from before the capture.
pub(super) const OPENS: &str = "tcp flags & (fin | syn | rst | ack) == syn";
pub(super) const OPENS_NOT: &str = "tcp flags & (fin | syn | rst | ack) != syn";

/// A reset carries nothing and ends a connection. Those for a socket that is gone have neither owner nor mark, and
/// a service that does not hear them goes on sending for a quarter of an hour.
pub(super) const RESETS: &str = "tcp flags & rst == rst return comment \"only ends a connection\"";

/// A whole table: chains with their rules, counters and sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ruleset {
    pub(super) comment: &'static str,
    pub(super) counters: &'static [(&'static str, &'static str)],
    pub(super) sets: Vec<NamedSet>,
    pub(super) chains: Vec<Chain>,
}

/// A chain and its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    /// Where the kernel enters it; `None` for one that others jump to.
    pub(super) hook: Option<Hook>,
    pub(super) rules: Vec<String>,
}

/// A chain's place in the packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hook {
    pub(super) kind: &'static str,
    pub(super) at: &'static str,
    pub(super) priority: i32,
}

impl Hook {
    pub(super) const fn nat(at: &'static str) -> Self {
        Self { kind: "nat", at, priority: NAT_PRIORITY }
    }

    pub(super) const fn filter(at: &'static str) -> Self {
        Self { kind: "filter", at, priority: FILTER_PRIORITY }
    }
}

impl Chain {
    pub(super) fn new<T: Into<String>>(
        name: &'static str,
        hook: Option<Hook>,
        rules: impl IntoIterator<Item = T>,
    ) -> Self {
        Self { name, hook, rules: rules.into_iter().map(Into::into).collect() }
    }

    fn write(&self, text: &mut String) {
        let _ = writeln!(text, "\tchain {} {{", self.name);
        if let Some(Hook { kind, at, priority }) = self.hook {
            let _ = writeln!(text, "\t\ttype {kind} hook {at} priority {priority}; policy accept;");
        }
        for rule in &self.rules {
            let _ = writeln!(text, "\t\t{rule}");
        }
        text.push_str("\t}\n");
    }
}

const COUNTERS: &[(&str, &str)] = &[
    ("outbound_virtual", "connections to virtual addresses, brought to the agent"),
    ("outbound_endpoint", "connections to endpoints of the mesh, brought to the agent"),
    ("outbound_external", "connections to hosts of ServiceEntries, brought to the agent"),
    ("outbound_local", "connections of this host to its own services, brought to the agent"),
    ("outbound_other", "other connections leaving the host, brought to the agent"),
    ("outbound_held", "connections of services that reach the registry alone, brought to the agent"),
    ("dns", "DNS questions brought to the agent"),
    ("bridged", "connections of containers, brought to the agent"),
    ("bridge_spoofed", "connections of containers from addresses of other interfaces' containers, dropped"),
    ("inbound_plain", "connections of other hosts to services here, brought to the agent"),
    ("virtual_stray", "TCP packets to virtual addresses that no connection through the agent owns, refused"),
    ("virtual_protocol", "packets of other protocols to virtual addresses, refused"),
    ("virtual_from_outside", "packets of other hosts to virtual addresses, dropped"),
    ("local_stray", "packets of this host to its own services past the agent, refused"),
    ("endpoint_stray", "connections to endpoints past the agent, refused"),
    ("held_stray", "packets of services that reach the registry alone to anything else, refused"),
    ("held_midstream", "packets of other hosts in connections that nobody here opened, dropped"),
    ("strict_stray", "packets of other hosts to STRICT services past the agent, refused"),
    ("inbound_stray", "connections of other hosts to services past the agent, refused"),
    ("listener_stray", "packets straight to the ports of captured traffic, dropped"),
];

/// The plan's rules as one transaction for `nft -f`. It replaces whatever stood in our two tables, and leaves in the third what
/// systemd noted there.
pub fn render(plan: &CapturePlan) -> String {
    transaction(&skeleton(&ruleset(plan)), &sets_of(plan)) + &units::render(plan)
}

/// One transaction of a table's skeleton and its elements.
pub(super) fn transaction(skeleton: &str, sets: &[NamedSet]) -> String {
    format!("{skeleton}{}", loading(sets, usize::MAX).concat())
}

/// The ruleset of a plan.
pub(super) fn ruleset(plan: &CapturePlan) -> Ruleset {
    let mut chains = vec![
        Chain::new("outbound", Some(Hook::nat("output")), outbound(plan)),
        Chain::new(
            "outbound_virtual",
            None,
            [redirect("meta l4proto tcp", "outbound_virtual", plan.ports.outbound)],
        ),
        Chain::new("inbound", Some(Hook::nat("prerouting")), inbound(plan)),
        Chain::new("bridged", None, bridged(plan)),
        Chain::new("outbound_check", Some(Hook::filter("output")), outbound_check(plan)),
        Chain::new("virtual_check", None, virtual_check()),
        Chain::new("local_check", None, past_the_agent(plan, "local_stray")),
        Chain::new("endpoint_check", None, past_the_agent(plan, "endpoint_stray")),
        Chain::new("inbound_check", Some(Hook::filter("input")), inbound_check(plan)),
        Chain::new("forward_check", Some(Hook::filter("forward")), forward_check(plan)),
        Chain::new("strict_check", None, [RESETS, "counter name strict_stray reject with tcp reset"]),
        Chain::new("listener_check", None, ["ct status dnat return", "counter name listener_stray drop"]),
    ];
    if !plan.held.is_empty() {
        chains.push(Chain::new("held_check", None, held_check()));
    }
    let comment = "rules of the baremesh agent: replaced as a whole, changes by hand do not last";
    Ruleset { comment, counters: COUNTERS, sets: sets_of(plan), chains }
}

/// A table without its elements and the anchor, both replaced in one transaction.
pub(super) fn skeleton(ruleset: &Ruleset) -> String {
    anchor(&[]) + &table(ruleset)
}

/// The anchor table. Without a nat chain that asks for connection tracking somewhere, removing the other table would
/// leave redirected connections without their translation. Where the routes of virtual ranges stay for the sake of
/// open connections, it refuses new ones: the routes alone would lead them to any local process.
pub(super) fn anchor(ranges: &[IpNet]) -> String {
    let mut text = format!("{}table inet {ANCHOR_TABLE} {{\n", removal(ANCHOR_TABLE));
    text.push_str("\tcomment \"holds connections of the baremesh agent while its rules change\"\n");
    let mut chains = vec![Chain::new("anchor", Some(Hook::nat("output")), ["ct state invalid counter"])];
    if !ranges.is_empty() {
        let to = |range: &IpNet| match range {
            IpNet::V4(range) => format!("ip daddr {range}"),
            IpNet::V6(range) => format!("ip6 daddr {range}"),
        };
        let outbound = ranges.iter().map(|range| format!("{} goto refuse", to(range)));
        let inbound = ranges.iter().map(|range| format!("iifname != \"lo\" {} counter drop", to(range)));
        let refuse = [
            "ct direction reply return",
            "meta l4proto tcp reject with tcp reset",
            "reject with icmpx admin-prohibited",
        ];
        chains.push(Chain::new("outbound_check", Some(Hook::filter("output")), outbound));
        chains.push(Chain::new("inbound_check", Some(Hook::filter("input")), inbound));
        chains.push(Chain::new("refuse", None, refuse));
    }
    chains.iter().for_each(|chain| chain.write(&mut text));
    text + "}\n"
}

/// A table's text alone, with the statements that replace it.
pub(super) fn table(ruleset: &Ruleset) -> String {
    let mut text = format!("{}table inet {TABLE} {{\n", removal(TABLE));
    let _ = writeln!(text, "\tcomment \"{}\"", ruleset.comment);
    for (name, comment) in ruleset.counters {
        let _ = writeln!(text, "\tcounter {name} {{ comment \"{comment}\"; }}");
    }
    for set in &ruleset.sets {
        let _ = writeln!(text, "\tset {} {{ type {}; }}", set.name, set.kind);
    }
    ruleset.chains.iter().for_each(|chain| chain.write(&mut text));
    text + "}\n"
}

pub(super) fn redirect(what: &str, counter: &str, port: u16) -> String {
    format!("{what} counter name {counter} redirect to :{port}")
}

/// The agent's own sockets: by mark and uid together, so that neither another program's mark nor another program
/// of the same user is taken for the agent.
pub(super) fn own_socket(plan: &CapturePlan) -> String {
    format!("meta mark {AGENT_MARK:#x} meta skuid {} return comment \"the agent's own\"", plan.agent_uid)
}

/// Matches for the ranges of virtual addresses.
pub(super) fn to_virtual(plan: &CapturePlan) -> impl Iterator<Item = String> + use<> {
    let v6 = plan.virtual_v6.map(|range| format!("ip6 daddr {}", range.trunc()));
    [format!("ip daddr {}", plan.virtual_v4.trunc())].into_iter().chain(v6)
}

/// What is left alone at whatever port.
pub(super) fn exempt_destinations() -> [String; 2] {
    [
        format!("ip daddr {METADATA_V4} return comment \"metadata service\""),
        format!("ip6 daddr {METADATA_V6} return comment \"metadata service\""),
    ]
}

/// What is left alone at whatever address.
pub(super) const EXEMPT: &str =
    "meta l4proto { tcp, udp } th dport @exempt_ports return comment \"SSH, DHCP, NTP\"";

/// What this host opens. Only the first packet of a connection comes here.
fn outbound(plan: &CapturePlan) -> Vec<String> {
    let port = plan.ports.outbound;
    let mut rules = vec![own_socket(plan), EXEMPT.to_owned()];
    rules.extend(exempt_destinations());
    rules.extend(to_virtual(plan).map(|to| format!("{to} goto outbound_virtual")));
    rules.push(format!("{OPENS_NOT} return comment \"from before the capture\""));
    if plan.dns == DnsCapture::Port53 {
        rules.push(redirect("udp dport 53", "dns", plan.ports.dns));
        rules.push(redirect("tcp dport 53", "dns", plan.ports.dns));
    }
    rules.push(redirect("ip daddr . tcp dport @local4", "outbound_local", port));
    rules.push(redirect("ip6 daddr . tcp dport @local6", "outbound_local", port));
    rules.push(redirect("tcp dport @local_ports fib daddr type local", "outbound_local", port));
    rules.push(redirect("ip daddr . tcp dport @endpoints4", "outbound_endpoint", port));
    rules.push(redirect("ip6 daddr . tcp dport @endpoints6", "outbound_endpoint", port));
    rules.push(redirect("ip daddr . tcp dport @external4", "outbound_external", port));
    rules.push(redirect("ip6 daddr . tcp dport @external6", "outbound_external", port));
    for held in plan.held.matches() {
        rules.push(redirect(&format!("{held} oifname != \"lo\" meta l4proto tcp"), "outbound_held", port));
    }
    if plan.outbound == Outbound::All {
        rules.push(redirect("oifname != \"lo\" meta l4proto tcp", "outbound_other", port));
    }
    rules
}

/// What other hosts open towards services of this one.
fn inbound(plan: &CapturePlan) -> Vec<String> {
    let what = format!("tcp dport @inbound_ports {OPENS} fib daddr type local");
    // The exact addresses: those that are not this host's are containers' that it forwards to.
    let forwarded = |family: &str, set: &str| {
        redirect(&format!("{family} daddr . tcp dport @{set} {OPENS}"), "inbound_plain", plan.ports.inbound)
    };
    let mut rules = vec![
        "iifname \"lo\" return".to_owned(),
        EXEMPT.to_owned(),
        format!("tcp dport {} return comment \"HBONE\"", plan.ports.hbone),
    ];
    rules.extend(from_bridges(plan).map(|from| format!("{from} goto bridged")));
    rules.extend([
        redirect(&what, "inbound_plain", plan.ports.inbound),
        forwarded("ip", "local4"),
        forwarded("ip6", "local6"),
    ]);
    rules
}

/// What leaves a local socket after translation: nothing captured should be left.
fn outbound_check(plan: &CapturePlan) -> Vec<String> {
    let mut rules: Vec<String> = to_virtual(plan).map(|to| format!("{to} goto virtual_check")).collect();
    rules.push(own_socket(plan));
    rules.extend(jumps(&plan.held));
    rules.push(EXEMPT.to_owned());
    rules.extend(exempt_destinations());
    rules.push("ip daddr . tcp dport @local4 goto local_check".to_owned());
    rules.push("ip6 daddr . tcp dport @local6 goto local_check".to_owned());
    rules.push("tcp dport @local_ports fib daddr type local goto local_check".to_owned());
    rules.push(format!("{OPENS} ip daddr . tcp dport @endpoints4 goto endpoint_check"));
    rules.push(format!("{OPENS} ip6 daddr . tcp dport @endpoints6 goto endpoint_check"));
    rules
}

/// A client of a virtual address may have one as its own address too, so the agent's answers to it pass.
pub(super) fn virtual_check() -> [&'static str; 3] {
    [
        "ct direction reply return",
        "meta l4proto tcp counter name virtual_stray reject with tcp reset",
        "counter name virtual_protocol reject with icmpx admin-prohibited",
    ]
}

/// Refuses what is not the agent's. A closed socket has no owner any more, and its last packets (data not yet
/// acknowledged, the FIN) match no uid: they are told by the mark alone, which a socket keeps. A socket of another
/// user with the agent's mark is refused by its uid from its first packet on, and so never has last ones.
fn past_the_agent(plan: &CapturePlan, counter: &str) -> [String; 3] {
    let refuse = format!("counter name {counter} reject with tcp reset");
    [
        RESETS.to_owned(),
        format!("meta mark != {AGENT_MARK:#x} {refuse}"),
        format!("meta skuid != {} {refuse}", plan.agent_uid),
    ]
}

/// What arrives at a local socket.
fn inbound_check(plan: &CapturePlan) -> Vec<String> {
    let (outbound, inbound) = (plan.ports.outbound, plan.ports.inbound);
    let mut rules: Vec<String> =
        spoofed(plan).into_iter().map(|rule| format!("tcp dport {outbound} {rule}")).collect();
    rules.push(format!("tcp dport {{ {outbound}, {inbound} }} goto listener_check"));
    rules.push("iifname \"lo\" return".to_owned());
    rules.extend(to_virtual(plan).map(|to| format!("{to} counter name virtual_from_outside drop")));
    rules.push(EXEMPT.to_owned());
    rules.extend(no_stranger_speaks_first(plan));
    rules.push("tcp dport @strict_ports fib daddr type local goto strict_check".to_owned());
    // A connection from before the capture goes on in PERMISSIVE mode. But a stray packet sent ahead can make
    // connection tracking take a new one for such, and it would pass untranslated: it ends here.
    rules.push(format!("tcp dport @inbound_ports {OPENS} fib daddr type local counter name inbound_stray reject with tcp reset"));
    rules
}

/// What this host forwards to a service that is delivered into a container, by the rules of what arrives at a local
/// socket.
fn forward_check(plan: &CapturePlan) -> Vec<String> {
    let mut rules = container_jumps(&plan.held);
    rules.extend(no_stranger_speaks_first_to_containers(&plan.held));
    rules.push(EXEMPT.to_owned());
    for (of, from) in never_in_plaintext(plan) {
        for (family, set) in [("ip", "endpoints4"), ("ip6", "endpoints6")] {
            if of.is_none_or(|of| of == family) {
                rules.push(format!(
                    "{from} {OPENS} {family} daddr . tcp dport @{set} counter name endpoint_stray reject with tcp reset"
                ));
            }
        }
    }
    rules.push("ip daddr . tcp dport @strict4 goto strict_check".to_owned());
    rules.push("ip6 daddr . tcp dport @strict6 goto strict_check".to_owned());
    for (family, set) in [("ip", "local4"), ("ip6", "local6")] {
        rules.push(format!(
            "{OPENS} {family} daddr . tcp dport @{set} counter name inbound_stray reject with tcp reset"
        ));
    }
    rules
}
