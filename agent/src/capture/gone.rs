//! The rules for when the agent is gone. They are rendered with every plan and kept in a file, so that whoever
//! finds the agent dead (the guard, the service manager) needs nothing but that file: services that are `open` are
//! released, `closed` ones are refused to everybody, and a host that has one opens no connection to endpoints of the
//! mesh either, which would leave it in plaintext. Nothing is redirected any more, so a process that takes one of the
//! agent's ports receives nothing.

use std::collections::BTreeSet;
use std::path::Path;

use super::CaptureError;
use super::batch::{Batch, IF_IT_IS_THERE, Routes, UNLESS_KEPT};
use super::bridged::never_in_plaintext;
use super::command::Tools;
use super::held::{container_jumps, held_check};
use super::link;
use super::plan::{CapturePlan, LocalService, WhenGone};
use super::rules::{
    Chain, EXEMPT, Hook, RESETS, Ruleset, exempt_destinations, own_socket, table, to_virtual, transaction,
    virtual_check,
};
use super::sets::{NamedSet, TABLE, endpoints, inbound_ports, loading, local_addresses};
use super::units;

/// The table that keeps address translation going while ours changes.
pub(super) const ANCHOR_TABLE: &str = "baremesh_anchor";

/// A set that only the rules for a gone agent have: by it they are told from the others.
pub(super) const MARK_OF_GONE: &str = "closed_ports";

const COUNTERS: &[(&str, &str)] = &[
    ("closed", "packets to services that are closed while the agent is gone, refused"),
    (
        "held_stray",
        "packets of closed services that reach the registry alone to anything but this host, refused",
    ),
    ("listener_closed", "packets to the ports of the agent that is gone, refused"),
    ("virtual_stray", "TCP packets to virtual addresses, refused"),
    ("virtual_protocol", "packets of other protocols to virtual addresses, refused"),
    ("virtual_from_outside", "packets of other hosts to virtual addresses, dropped"),
];

/// What `nft -f` applies when the agent is gone, as one text. Without a closed service it removes our tables.
pub fn render_gone(plan: &CapturePlan) -> String {
    batch_of_gone(plan).to_string()
}

/// What becomes of connections that wait in line at the sockets of an agent that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// They are reset: nobody will take them.
    Reset,
    /// The service manager keeps the sockets, or another agent has them: they keep their translation of addresses until they are
    /// taken.
    Kept,
}

/// Applies the rules for a gone agent from the file that every `Capture::apply` writes. A file that is not there
/// means that no rules were put in place, or that they were removed in good order: nothing is done to them. What
/// systemd-resolved was told goes in any case: nobody answers any more.
pub fn apply_gone(file: &Path, waiting: Waiting) -> Result<(), CaptureError> {
    let (mut batch, tools) = (Batch::read(file)?, Tools::find()?);
    if let (Some(batch), Waiting::Kept) = (&mut batch, waiting) {
        batch.transactions.retain(|transaction| !transaction.starts_with(UNLESS_KEPT));
    }
    // The rules first, and whatever becomes of the link.
    let applied = batch.map_or(Ok(()), |batch| batch.run(&tools));
    applied.and(link::withdraw(&tools))
}

pub(super) fn batch_of_gone(plan: &CapturePlan) -> Batch {
    let closed = closed_services(plan);
    let anchor = format!("{UNLESS_KEPT}{}", removal(ANCHOR_TABLE));
    let units = units::render_gone(plan);
    if closed.is_empty() {
        return Batch { routes: Routes::Withdraw, transactions: vec![removal(TABLE), anchor, units] };
    }
    let ruleset = ruleset_of_gone(plan, &closed);
    // The routes stay: with them a virtual address is refused at once, and does not wander off to a router.
    let whole = transaction(&table(&ruleset), &ruleset.sets);
    let (outbound, inbound, hbone) = (plan.ports.outbound, plan.ports.inbound, plan.ports.hbone);
    let listeners = format!(
        "{UNLESS_KEPT}insert rule inet {TABLE} inbound_check tcp dport {{ {outbound}, {inbound}, {hbone} }} counter name listener_closed reject with tcp reset\n"
    );
    // A cgroup that is not there would refuse the whole transaction, at the next start of the host for one.
    let cgroups = plan.held_when_gone.cgroups.iter().map(|cgroup| {
        let (to_match, comment) = (cgroup.to_match(), cgroup.comment());
        format!(
            "{IF_IT_IS_THERE}insert rule inet {TABLE} outbound_check {to_match} jump held_check {comment}\n"
        )
    });
    Batch {
        routes: Routes::Keep,
        transactions: [whole, units, anchor, listeners].into_iter().chain(cgroups).collect(),
    }
}

/// What `plan` adds to rules for a gone agent that stand: its closed services, which may have been registered since.
pub(super) fn additions_of_gone(plan: &CapturePlan) -> String {
    loading(&ruleset_of_gone(plan, &closed_services(plan)).sets, usize::MAX).concat()
}

fn closed_services(plan: &CapturePlan) -> Vec<&LocalService> {
    plan.local.iter().filter(|service| service.when_gone == WhenGone::Closed).collect()
}

/// Removes one of our tables, there or not.
pub(super) fn removal(table: &str) -> String {
    format!("table inet {table}\ndelete table inet {table}\n")
}

fn ruleset_of_gone(plan: &CapturePlan, closed: &[&LocalService]) -> Ruleset {
    let services = || closed.iter().copied();
    let by_port: BTreeSet<u16> = services().flat_map(|s| s.ports.iter().copied()).collect();
    let mut sets = vec![
        NamedSet::of_ports("exempt_ports", plan.exempt_ports()),
        NamedSet::of_ports(MARK_OF_GONE, by_port.into_iter().filter(|port| plan.capturable_port(*port))),
        NamedSet::of_ports("closed_inbound", inbound_ports(plan, services())),
    ];
    sets.extend(NamedSet::of_sockets("closed", &local_addresses(plan, services())));
    sets.extend(endpoints(plan));
    sets.extend(plan.held_when_gone.set());
    let mut chains = vec![
        Chain::new("outbound_check", Some(Hook::filter("output")), outbound_check(plan)),
        Chain::new("virtual_check", None, virtual_check()),
        Chain::new("inbound_check", Some(Hook::filter("input")), inbound_check(plan)),
        Chain::new("forward_check", Some(Hook::filter("forward")), forward_check(plan)),
        Chain::new("closed_check", None, [RESETS, "counter name closed reject with tcp reset"]),
    ];
    if !plan.held_when_gone.is_empty() {
        chains.push(Chain::new("held_check", None, held_check()));
    }
    let comment = "the baremesh agent is gone: its closed services are refused until it is back";
    Ruleset { comment, counters: COUNTERS, sets, chains }
}

const REFUSE: &str = "goto closed_check";

fn outbound_check(plan: &CapturePlan) -> Vec<String> {
    let mut rules: Vec<String> = to_virtual(plan).map(|to| format!("{to} goto virtual_check")).collect();
    if let Some(users) = plan.held_when_gone.users_match() {
        // An agent that starts anew asks its control server while these rules stand.
        rules.push(own_socket(plan));
        rules.push(format!("{users} jump held_check"));
    }
    rules.push(EXEMPT.to_owned());
    rules.extend(exempt_destinations());
    rules.push(format!("ip daddr . tcp dport @closed4 {REFUSE}"));
    rules.push(format!("ip6 daddr . tcp dport @closed6 {REFUSE}"));
    rules.push(format!("tcp dport @{MARK_OF_GONE} fib daddr type local {REFUSE}"));
    rules.push(format!("ip daddr . tcp dport @endpoints4 {REFUSE}"));
    rules.push(format!("ip6 daddr . tcp dport @endpoints6 {REFUSE}"));
    rules
}

fn inbound_check(plan: &CapturePlan) -> Vec<String> {
    let mut rules = vec!["iifname \"lo\" return".to_owned()];
    rules.extend(to_virtual(plan).map(|to| format!("{to} counter name virtual_from_outside drop")));
    rules.push(EXEMPT.to_owned());
    rules.push(format!("tcp dport @closed_inbound fib daddr type local {REFUSE}"));
    rules
}

/// What this host forwards to a closed service that is delivered into a container, and for containers.
fn forward_check(plan: &CapturePlan) -> Vec<String> {
    let mut rules = container_jumps(&plan.held_when_gone);
    rules.extend([
        EXEMPT.to_owned(),
        format!("ip daddr . tcp dport @closed4 {REFUSE}"),
        format!("ip6 daddr . tcp dport @closed6 {REFUSE}"),
    ]);
    // Nor does a container of a captured bridge go to endpoints in plaintext.
    for (of, from) in never_in_plaintext(plan) {
        for (family, set) in [("ip", "endpoints4"), ("ip6", "endpoints6")] {
            if of.is_none_or(|of| of == family) {
                rules.push(format!("{from} {family} daddr . tcp dport @{set} {REFUSE}"));
            }
        }
    }
    rules
}
