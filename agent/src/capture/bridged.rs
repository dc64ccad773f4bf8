//! The rules for containers on bridges. A container is told by its bridge and its address there, and by nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::interface::Interface;
use super::plan::{CapturePlan, DnsCapture, Outbound};
use super::rules::{OPENS_NOT, exempt_destinations, redirect, to_virtual};

/// Addresses on interfaces.
pub type Containers = BTreeMap<Interface, BTreeSet<IpAddr>>;

/// Which end of a packet a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It sends.
    Source,
    /// It is sent to.
    Destination,
}

/// Matches for these containers, one for each interface and family, with the family's word.
pub(super) fn matches(containers: &Containers, end: End) -> Vec<(&'static str, String)> {
    let (interface_is, address_is) = match end {
        End::Source => ("iifname", "saddr"),
        End::Destination => ("oifname", "daddr"),
    };
    let of = |(name, addresses): (&Interface, &BTreeSet<IpAddr>)| {
        let listed = lists(addresses.iter());
        listed.map(|(family, list)| {
            list.map(|list| (family, format!("{interface_is} \"{name}\" {family} {address_is} {{ {list} }}")))
        })
    };
    containers.iter().flat_map(of).flatten().collect()
}

/// The addresses of each family as nft takes them; none of a family that has none.
fn lists<'a>(addresses: impl Iterator<Item = &'a IpAddr>) -> [(&'static str, Option<String>); 2] {
    let (v4, v6): (BTreeSet<&IpAddr>, BTreeSet<&IpAddr>) = addresses.partition(|address| address.is_ipv4());
    [("ip", v4), ("ip6", v6)].map(|(family, addresses)| {
        let list = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        (family, (!list.is_empty()).then_some(list))
    })
}

/// What containers open, whose packets come from a bridge: as what this host opens, but that a container's sockets are not
/// of this host, and that it may be asked for any name.
pub(super) fn bridged(plan: &CapturePlan) -> Vec<String> {
    if plan.bridges.is_empty() {
        return Vec::new();
    }
    let captured = |what: String| redirect(&what, "bridged", plan.ports.outbound);
    let mut rules = exempt_destinations().to_vec();
    if plan.dns != DnsCapture::Off {
        rules.push(redirect("udp dport 53", "dns", plan.ports.dns));
        rules.push(redirect("tcp dport 53", "dns", plan.ports.dns));
    }
    rules.extend(to_virtual(plan).map(|to| captured(format!("{to} meta l4proto tcp"))));
    rules.push(format!("{OPENS_NOT} return comment \"from before the capture\""));
    rules.push(captured("ip daddr . tcp dport @local4".to_owned()));
    rules.push(captured("ip6 daddr . tcp dport @local6".to_owned()));
    rules.push(captured("tcp dport @inbound_ports fib daddr type local".to_owned()));
    rules.push(captured("ip daddr . tcp dport @endpoints4".to_owned()));
    rules.push(captured("ip6 daddr . tcp dport @endpoints6".to_owned()));
    // A container that no registration names is nobody to the agent: it keeps its way out of the mesh.
    for (family, from) in matches(&plan.bridges, End::Source) {
        let set = if family == "ip" { "external4" } else { "external6" };
        rules.push(captured(format!("{from} {family} daddr . tcp dport @{set}")));
    }
    let of_captured = plan.held.containers.iter().filter(|(name, _)| plan.bridges.contains_key(*name));
    let held: Containers = of_captured.map(|(name, held)| (name.clone(), held.clone())).collect();
    for (_, from) in matches(&held, End::Source) {
        rules.push(captured(format!("{from} fib daddr type != local meta l4proto tcp")));
    }
    if plan.outbound == Outbound::All {
        rules.push(captured("fib daddr type != local meta l4proto tcp".to_owned()));
    }
    rules
}

/// Matches for the bridges, one or none.
pub(super) fn from_bridges(plan: &CapturePlan) -> Option<String> {
    let names: Vec<_> = plan.bridges.keys().map(|name| format!("\"{name}\"")).collect();
    (!names.is_empty()).then(|| format!("iifname {{ {} }}", names.join(", ")))
}

/// Matches for those that go to endpoints of the mesh through the agent or not at all, with the family of each where it
/// has one: the captured bridges, and containers on others that are registered.
pub(super) fn never_in_plaintext(plan: &CapturePlan) -> Vec<(Option<&'static str>, String)> {
    let registered = matches(&plan.uncaptured, End::Source);
    let bridges = from_bridges(plan).into_iter().map(|from| (None, from));
    bridges.chain(registered.into_iter().map(|(family, from)| (Some(family), from))).collect()
}

/// A container has the address that its registration names, and on the interface that it names: what comes from a bridge
/// with another one's is dropped before the agent takes it for the service. Nothing here tells two containers of one
/// bridge apart.
pub(super) fn spoofed(plan: &CapturePlan) -> Vec<String> {
    let mut rules = Vec::new();
    for name in plan.bridges.keys() {
        let all = plan.bridges.iter().chain(&plan.uncaptured);
        let others = all.filter(|(other, _)| *other != name).flat_map(|(_, addresses)| addresses);
        for (family, list) in lists(others) {
            rules.extend(list.map(|list| {
                format!("iifname \"{name}\" {family} saddr {{ {list} }} counter name bridge_spoofed drop")
            }));
        }
    }
    rules
}
