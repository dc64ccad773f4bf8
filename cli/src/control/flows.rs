//! What hosts tell of the connections that came to their services, kept for an hour in memory. Reports and simulations of
//! policies go by it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use baremesh_agent::flows::KEPT;
use baremesh_ca::service::Refusal;
use baremesh_model::flow::Flow;
use baremesh_model::name::Label;
use baremesh_registry::control::flows::{FlowsTold, MAX_TOLD};
use bytes::Bytes;
use http::Response;
use serde_json::json;

use super::Server;
use super::calls::refused;

/// Flows that are kept of one host: as many as its agent keeps.
const MAX_OF_HOST: usize = baremesh_agent::flows::MAX_FLOWS;
/// Flows that are kept of all hosts.
const MAX_FLOWS: usize = 262_144;

/// A flow as a host tells it.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) flow: Flow,
    pub(super) count: u64,
    pub(super) last: SystemTime,
}

/// The flows of one host.
#[derive(Debug, Default)]
struct OfHost {
    flows: HashMap<Flow, (u64, SystemTime)>,
    missed: u64,
    /// When it last told something.
    told_at: Option<SystemTime>,
}

/// The flows of all hosts.
#[derive(Debug, Default)]
pub(super) struct FlowBook {
    hosts: Mutex<BTreeMap<Label, OfHost>>,
}

/// What is known of flows at a moment.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) flows: Vec<Told>,
    /// The hosts that told something, if only that nobody came.
    pub(super) hosts: BTreeSet<Label>,
    /// Connections whose flows are not known because a table was full.
    pub(super) missed: u64,
}

impl FlowBook {
    /// Takes what a host tells of services that it may have.
    fn take(&self, host: &Label, told: Vec<Told>, missed: u64, now: SystemTime) {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        // Who has fallen silent takes no room from others.
        hosts.retain(|_, of_host| of_host.told_at.is_some_and(|at| is_recent(at, now)));
        let mut total: usize = hosts.values().map(|of_host| of_host.flows.len()).sum();
        let of_host = hosts.entry(host.clone()).or_default();
        let before = of_host.flows.len();
        of_host.flows.retain(|_, (_, last)| is_recent(*last, now));
        total -= before - of_host.flows.len();
        (of_host.missed, of_host.told_at) = (missed, Some(now));
        for Told { flow, count, last } in told {
            let known = of_host.flows.contains_key(&flow);
            if !known && (of_host.flows.len() >= MAX_OF_HOST || total >= MAX_FLOWS) {
                of_host.missed = of_host.missed.saturating_add(count);
                continue;
            }
            total += usize::from(!known);
            of_host.flows.insert(flow, (count, last));
        }
    }

    /// Forgets a host that was shut out.
    pub(super) fn forget(&self, host: &Label) {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).remove(host);
    }

    /// What is known of the last hour.
    pub(super) fn known(&self, now: SystemTime) -> Known {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.retain(|_, of_host| of_host.told_at.is_some_and(|at| is_recent(at, now)));
        let flows = hosts.values().flat_map(|of_host| &of_host.flows);
        let recent = flows.filter(|(_, (_, last))| is_recent(*last, now));
        let told = |(flow, (count, last)): (&Flow, &(u64, SystemTime))| Told {
            flow: flow.clone(),
            count: *count,
            last: *last,
        };
        Known {
            flows: recent.map(told).collect(),
            hosts: hosts.keys().cloned().collect(),
            missed: hosts.values().fold(0, |all, of_host| all.saturating_add(of_host.missed)),
        }
    }
}

fn is_recent(last: SystemTime, now: SystemTime) -> bool {
    now.duration_since(last).unwrap_or_default() < KEPT
}

/// Answers an agent that tells its flows. What it says of services that were not granted to its host is not taken.
pub(super) fn answer(server: &Arc<Server>, host: &Label, body: &[u8]) -> Response<Bytes> {
    let told = serde_json::from_slice(body).ok();
    let Some(told) = told.filter(|told: &FlowsTold| told.flows.len() <= MAX_TOLD) else {
        let refusal = Refusal::Malformed(format!("it tells {MAX_TOLD} flows at most"));
        return refused(refusal.status(), refusal.code(), &refusal.to_string());
    };
    let now = SystemTime::now();
    let taken = told.flows.iter().filter_map(|one| {
        let flow = one.flow().filter(|flow| server.grants.allows(host, &flow.identity))?;
        let last = now.checked_sub(Duration::from_secs(one.age.min(KEPT.as_secs())))?;
        Some(Told { flow, count: one.count, last })
    });
    server.flows.take(host, taken.collect(), told.missed, now);
    Response::new(json!({}).to_string().into())
}

#[cfg(test)]
mod tests {
    use baremesh_model::flow::Way;
    use baremesh_model::identity::Identity;
    use baremesh_model::name::Key;

    use super::*;

    fn told(number: u32, last: SystemTime) -> Told {
        let label = |text: &str| Label::new(text).expect("a label");
        let flow = Flow {
            service: Key::new(label("shop"), label("orders")),
            identity: Identity::parse("spiffe://td/ns/shop/sa/orders").expect("an identity"),
            labels: [].into(),
            destination: ([10, 0, 0, 7], 80).into(),
            source: None,
            source_ip: number.to_be_bytes().into(),
            way: Way::Plaintext,
        };
        Told { flow, count: 1, last }
    }

    #[test]
    fn keeps_an_hour_of_so_many() {
        let (book, now) = (FlowBook::default(), SystemTime::now());
        let host = Label::new("h1").expect("a label");
        let many = (0..MAX_OF_HOST as u32 + 10).map(|number| told(number, now)).collect();
        book.take(&host, many, 3, now);
        let known = book.known(now);
        assert_eq!((known.flows.len(), known.hosts.len(), known.missed), (MAX_OF_HOST, 1, 13));
        // The same again makes no more of them, and an hour later there is room.
        book.take(&host, vec![told(0, now)], 0, now);
        assert_eq!(book.known(now).flows.len(), MAX_OF_HOST);
        let later = book.known(now + KEPT);
        assert!(later.flows.is_empty() && later.hosts.is_empty(), "who is silent for an hour tells nothing");
        book.take(&host, vec![told(u32::MAX, now + KEPT)], 0, now + KEPT);
        assert_eq!(book.known(now + KEPT).flows.len(), 1);
        book.forget(&host);
        assert!(book.known(now + KEPT).hosts.is_empty());
        // What a host says of numbers is its own word.
        let other = Label::new("h2").expect("a label");
        book.take(&host, Vec::new(), u64::MAX, now);
        book.take(&other, Vec::new(), 1, now);
        assert_eq!(book.known(now).missed, u64::MAX);
    }
}
