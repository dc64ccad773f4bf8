//! What the socket answers about the capture rules.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::capture::{Applied, Change, State, Status};

/// `GET /capture/status`. The command line makes the same of what it reads itself where no agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureReport {
    /// `in-place`, `missing`, `altered` or `gone`.
    pub state: String,
    /// What an agent does with the rules: `keeps` them, tries them out (`trial`), or nothing (`off`); none where no
    /// agent answers.
    pub agent: Option<String>,
    /// What is altered, in words.
    pub differences: Vec<String>,
    /// Counters by name.
    pub counters: BTreeMap<String, CounterReport>,
    /// How many elements each set has.
    pub elements: BTreeMap<String, usize>,
    /// The local routes of virtual ranges.
    pub routes: Vec<String>,
    /// Whether a change awaits its confirmation.
    pub unconfirmed: bool,
}

/// A counter of the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterReport {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl CaptureReport {
    /// The report of what stands.
    pub fn of(status: &Status, agent: Option<&str>, unconfirmed: bool) -> Self {
        let (state, differences) = match &status.state {
            State::Missing => ("missing", Vec::new()),
            State::InPlace => ("in-place", Vec::new()),
            State::Altered(differences) => ("altered", differences.clone()),
            State::Gone => ("gone", Vec::new()),
        };
        let counters = status.counters.iter().map(|(name, counter)| {
            (name.clone(), CounterReport { packets: counter.packets, bytes: counter.bytes })
        });
        Self {
            state: state.to_owned(),
            agent: agent.map(str::to_owned),
            differences,
            counters: counters.collect(),
            elements: status.elements.clone(),
            routes: status.routes.iter().map(ToString::to_string).collect(),
            unconfirmed,
        }
    }
}

/// `POST /capture/apply`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeReport {
    /// `none`, `elements`, `replaced`, `restored` (somebody else had changed the rules), or `held`: the rules for a gone agent stand, since the mesh is not known yet.
    pub change: String,
    /// Elements of sets that came.
    pub added: usize,
    /// Elements of sets that went.
    pub removed: usize,
    /// Why virtual IPv6 addresses are not reachable, where the mesh has such and the host has no IPv6.
    pub without_ipv6: Option<String>,
    /// After how many seconds the change is taken back unless it is confirmed.
    pub taken_back_after_seconds: Option<u64>,
}

impl ChangeReport {
    /// The report of a change.
    pub fn of(applied: &Applied, taken_back_after_seconds: Option<u64>) -> Self {
        let (change, added, removed) = match applied.change {
            Change::None => ("none", 0, 0),
            Change::Elements { added, removed } => ("elements", added, removed),
            Change::Replaced => ("replaced", 0, 0),
            Change::Restored => ("restored", 0, 0),
            Change::Held => ("held", 0, 0),
        };
        let without_ipv6 = applied.without_ipv6.map(str::to_owned);
        Self { change: change.to_owned(), added, removed, without_ipv6, taken_back_after_seconds }
    }
}

/// `GET /capture/plan`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanReport {
    /// The rules, as `nft -f` takes them.
    pub rules: String,
    /// Open connections from before the capture.
    pub flows: Vec<FlowReport>,
    /// So many more are not listed.
    pub flows_left_out: usize,
    /// Why open connections could not be listed.
    pub flows_unknown: Option<String>,
}

/// An open connection that goes past the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowReport {
    /// `incoming`, `within` this host, or `outgoing`.
    pub direction: String,
    /// `name.namespace` of the service that it leads to.
    pub service: Option<String>,
    /// Who opened it.
    pub from: SocketAddr,
    /// Where it leads.
    pub to: SocketAddr,
    /// The user whose socket it is on this host.
    pub uid: u32,
    /// `ended` with its next packet, or `goes-on` past the agent, in plaintext, until it ends by itself.
    pub under_the_rules: String,
}
