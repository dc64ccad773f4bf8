//! Services that are told by their units, as systemd itself notes them (`NFTSet=cgroup:…`, systemd 255): it puts the id of a unit's
//! cgroup into a set of ours before the unit's first process runs. So the sets stand in a table of their own, `inet
//! baremesh_units`, that is never replaced while such a service is registered: what systemd put in outlives every change of the
//! rules and the agent itself. What is held then goes by the sets from the first packet on; the rules by path in `inet baremesh`
//! hold what systemd did not note.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};
use baremesh_model::name::Key;

use super::CaptureError;
use super::apply::{Capture, Doubt};
use super::batch::WHERE_IT_IS_KNOWN;
use super::command::Tools;
use super::gone::removal;
use super::held::{passing, refusing};
use super::listing::list;
use super::plan::{CapturePlan, WhenGone};
use super::rules::{FILTER_PRIORITY, NAT_PRIORITY, OPENS_NOT, exempt_destinations, own_socket, redirect};

/// The table of the sets, in the family `inet`.
pub const UNITS_TABLE: &str = "baremesh_units";

/// Characters that systemd takes of a set's name (`nft_identifier_valid`).
const NAME_LEN: usize = 31;

/// Hex digits of a hash that stands for a name that is longer: 96 bits.
const HASH_DIGITS: usize = 24;

/// How deep below the root of cgroups a unit may lie: `system.slice/orders.service` is 2, and each further slice 1 more.
const LEVELS: usize = 6;

/// The services of this host that are told by their units: those that reach the registry alone, with what becomes of them while the
/// agent is gone, and the others.
pub type Units = BTreeMap<Key, Option<WhenGone>>;

/// What this process wrote last.
#[derive(Debug)]
pub(super) struct Written {
    text: String,
    /// As nft lists it, without elements and figures.
    listed: Option<String>,
}

/// The name of a service's set: `unit.NAMESPACE.NAME`, with `_` for `-`, which systemd does not take, and no label has. Where that is
/// too long for systemd, `unit.` and a hash of it.
pub fn set_of(key: &Key) -> String {
    let name = format!("unit.{}.{}", key.namespace, key.name).replace('-', "_");
    if name.len() <= NAME_LEN {
        return name;
    }
    let hash = digest(&SHA256, name.as_bytes());
    let mut short = "unit.".to_owned();
    for byte in &hash.as_ref()[..HASH_DIGITS / 2] {
        let _ = write!(short, "{byte:02x}");
    }
    short
}

/// What a unit's file says so that systemd notes the unit in its service's set.
pub fn nft_set_setting(key: &Key) -> String {
    format!("NFTSet=cgroup:inet:{UNITS_TABLE}:{}", set_of(key))
}

/// What stands beside the plan's rules: one transaction that leaves elements as they are. Without a service that is told by its unit
/// it removes the table.
pub(super) fn render(plan: &CapturePlan) -> String {
    if plan.units.is_empty() {
        return removal(UNITS_TABLE);
    }
    let held: Vec<String> =
        plan.units.iter().filter(|(_, held)| held.is_some()).map(|(key, _)| set_of(key)).collect();
    sets(plan) + &chains(plan, &held, outbound(plan, &held))
}

/// The same for when the agent is gone: nothing is brought to it, and closed services are held alone.
pub(super) fn render_gone(plan: &CapturePlan) -> String {
    if plan.units.is_empty() {
        return removal(UNITS_TABLE);
    }
    let closed = plan.units.iter().filter(|(_, held)| **held == Some(WhenGone::Closed));
    let closed: Vec<String> = closed.map(|(key, _)| set_of(key)).collect();
    format!("{WHERE_IT_IS_KNOWN}{}{}", sets(plan), chains(plan, &closed, Vec::new()))
}

/// The table and its sets, and nothing about who is held.
pub(super) fn sets(plan: &CapturePlan) -> String {
    if plan.units.is_empty() {
        return String::new();
    }
    let mut text =
        format!("add table inet {UNITS_TABLE} {{ comment \"units of services, as systemd notes them\"; }}\n");
    for key in plan.units.keys() {
        let _ = writeln!(text, "add set inet {UNITS_TABLE} {} {{ type cgroupsv2; }}", set_of(key));
    }
    text
}

const COUNTERS: [(&str, &str); 2] = [
    (
        "outbound_unit",
        "connections of units that reach the registry alone, brought to the agent by systemd's word",
    ),
    (
        "unit_stray",
        "packets of units that reach the registry alone to anything else, refused by systemd's word",
    ),
];

/// Chains with their rules. The check comes behind that of the other table: its counter counts what is held by the sets alone.
fn chains(plan: &CapturePlan, held: &[String], outbound: Vec<String>) -> String {
    let check = if held.is_empty() { Vec::new() } else { outbound_check(plan, held) };
    let refuse = if held.is_empty() { Vec::new() } else { refusing("unit_stray").to_vec() };
    let mut text = no_chains();
    for (name, comment) in COUNTERS {
        let _ = writeln!(text, "add counter inet {UNITS_TABLE} {name} {{ comment \"{comment}\"; }}");
    }
    // What is gone to comes before what goes there.
    for ((name, hook), rules) in hooks().into_iter().zip([refuse, check, outbound]) {
        if !rules.is_empty() {
            let _ = writeln!(text, "add chain inet {UNITS_TABLE} {name}{hook}");
        }
        for rule in rules {
            let _ = writeln!(text, "add rule inet {UNITS_TABLE} {name} {rule}");
        }
    }
    text
}

fn hooks() -> [(&'static str, String); 3] {
    let hook = |kind, priority| format!(" {{ type {kind} hook output priority {priority}; policy accept; }}");
    [
        ("refuse", String::new()),
        ("outbound_check", hook("filter", FILTER_PRIORITY + 1)),
        ("outbound", hook("nat", NAT_PRIORITY + 1)),
    ]
}

/// Removes the chains, there or not.
fn no_chains() -> String {
    let mut text = String::new();
    for (name, hook) in hooks() {
        let _ = writeln!(text, "add chain inet {UNITS_TABLE} {name}{hook}");
    }
    for verb in ["flush", "delete"] {
        for (name, _) in hooks() {
            let _ = writeln!(text, "{verb} chain inet {UNITS_TABLE} {name}");
        }
    }
    text
}

/// What the units open, as `held` in the other table has it for those that the agent has found.
fn outbound(plan: &CapturePlan, held: &[String]) -> Vec<String> {
    if held.is_empty() {
        return Vec::new();
    }
    let exempt: Vec<String> = plan.exempt_ports().iter().map(ToString::to_string).collect();
    let mut rules = vec![
        "meta l4proto != tcp return".to_owned(),
        "oifname \"lo\" return".to_owned(),
        own_socket(plan),
        format!("tcp dport {{ {} }} return comment \"SSH, DHCP, NTP\"", exempt.join(", ")),
    ];
    rules.extend(exempt_destinations());
    rules.push(format!("{OPENS_NOT} return comment \"from before the capture\""));
    rules.extend(
        matches(held)
            .map(|of| redirect(&format!("{of} meta l4proto tcp"), "outbound_unit", plan.ports.outbound)),
    );
    rules
}

/// What passes for everybody comes first: most packets are such, and looking for a cgroup costs more.
fn outbound_check(plan: &CapturePlan, held: &[String]) -> Vec<String> {
    let mut rules = vec![own_socket(plan)];
    rules.extend(passing());
    rules.extend(matches(held).map(|of| format!("{of} goto refuse")));
    rules
}

fn matches(held: &[String]) -> impl Iterator<Item = String> {
    held.iter().flat_map(|set| (1..=LEVELS).map(move |level| format!("socket cgroupv2 level {level} @{set}")))
}

impl Capture {
    /// Makes the table what the plan says. What cannot be done is told once, and tried again when the rules are looked at: nothing
    /// else goes by it, and a kernel or an nft that does not know such sets holds units by their paths as before.
    pub(super) fn place_units(&mut self, plan: &CapturePlan, doubt: Doubt) {
        let failed = self.write_units(plan, doubt).err().map(|error| error.to_string());
        if let Some(error) = failed.as_ref().filter(|_| self.units_failed != failed) {
            tracing::warn!(
                error,
                "the sets of units cannot be placed: a unit that reaches the registry alone is held from when the agent has found it"
            );
        }
        self.units_failed = failed;
    }

    fn write_units(&mut self, plan: &CapturePlan, doubt: Doubt) -> Result<(), CaptureError> {
        let text = render(plan);
        if let Some(before) = self.units.take().filter(|before| before.text == text) {
            // Where no unit is registered nothing could be missing.
            let stands = doubt == Doubt::None || plan.units.is_empty() || read(&self.tools)? == before.listed;
            if stands {
                self.units = Some(before);
                return Ok(());
            }
            tracing::error!(
                "the table {UNITS_TABLE} was changed by somebody else, and is put back: what systemd had noted there may be lost"
            );
        }
        let stale = stale(read(&self.tools)?.as_deref(), plan);
        self.tools.apply(&(text.clone() + &stale))?;
        self.units = Some(Written { text, listed: read(&self.tools)? });
        Ok(())
    }

    /// What brings back the chains that stand now. Sets stay as they are.
    pub(super) fn units_way_back(&self) -> Result<String, CaptureError> {
        let Some(listed) = read(&self.tools)? else { return Ok(removal(UNITS_TABLE)) };
        Ok(format!("{WHERE_IT_IS_KNOWN}add table inet {UNITS_TABLE}\n{}{listed}", no_chains()))
    }
}

/// The table without elements and figures; `None` if it does not stand.
pub(super) fn read(tools: &Tools) -> Result<Option<String>, CaptureError> {
    list(tools, &["-s", "-t", "list", "table", "inet", UNITS_TABLE])
}

/// Removes the sets of services that are not told by a unit any more.
fn stale(listed: Option<&str>, plan: &CapturePlan) -> String {
    if plan.units.is_empty() {
        return String::new();
    }
    let wanted: Vec<String> = plan.units.keys().map(set_of).collect();
    let stale = listed.map(|listed| names(listed, "set")).into_iter().flatten();
    stale
        .filter(|set| !wanted.iter().any(|wanted| wanted == set))
        .map(|set| format!("delete set inet {UNITS_TABLE} {set}\n"))
        .collect()
}

/// The names of the objects of a kind in a table's text.
fn names<'a>(listed: &'a str, kind: &'a str) -> impl Iterator<Item = &'a str> {
    let of_kind = move |line: &'a str| line.trim().strip_prefix(kind)?.strip_prefix(' ')?.strip_suffix(" {");
    listed.lines().filter_map(of_kind)
}

#[cfg(test)]
mod tests {
    use baremesh_model::name::Label;

    use super::*;

    fn key(namespace: &str, name: &str) -> Key {
        let label = |text: &str| Label::new(text).expect("a label");
        Key::new(label(namespace), label(name))
    }

    #[test]
    fn a_set_s_name_is_one_that_systemd_and_nft_take() {
        let check = |namespace: &str, name: &str, expected: &str| {
            let set = set_of(&key(namespace, name));
            assert_eq!(set, expected);
            // systemd's `nft_identifier_valid`, and what nft takes for a string.
            assert!(set.len() <= 31 && set.starts_with(|first: char| first.is_ascii_alphabetic()));
            assert!(set.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.".contains(&b)), "{set}");
        };
        check("default", "orders", "unit.default.orders");
        check("my-shop", "a-b", "unit.my_shop.a_b");
        check("9", "0-1", "unit.9.0_1");
        check("default", "eighteen-letters-x", "unit.default.eighteen_letters_x");
        check("default", "nineteen-letters-xx", "unit.ce0feab09200ce7bb54979fb");
        assert_ne!(set_of(&key("default", &"a".repeat(63))), set_of(&key("default", &"a".repeat(62))));
    }
}
