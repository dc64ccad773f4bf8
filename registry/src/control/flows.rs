//! What hosts tell of the connections that came to their services: who came to what, how often and when last. One call, of
//! so many flows at once; what is gone since is simply not told again.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use baremesh_model::flow::{Flow, Way};
use baremesh_model::identity::Identity;
use baremesh_model::name::{Key, Label};
use serde::{Deserialize, Serialize};

/// The path of the call.
pub const FLOWS_PATH: &str = "/v1/flows";
/// Flows that one call tells at most.
pub const MAX_TOLD: usize = 64;
/// Bytes of a workload's labels that are taken.
const MAX_LABELS: usize = 2_048;

/// What a host tells. Fields that are not known are ignored.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct FlowsTold {
    /// The flows.
    pub flows: Vec<FlowTold>,
    /// Connections that were not kept because the host's table was full.
    #[serde(default)]
    pub missed: u64,
}

/// One flow as it is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FlowTold {
    /// `name.namespace`.
    service: String,
    identity: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    destination: SocketAddr,
    #[serde(default)]
    source: Option<String>,
    source_ip: IpAddr,
    way: String,
    /// Connections within the time that the host remembers.
    pub count: u64,
    /// Seconds since the last one.
    pub age: u64,
}

impl FlowTold {
    /// A flow with its connections.
    pub fn new(flow: &Flow, count: u64, age: u64) -> Self {
        let labels = flow.labels.iter().map(|(key, value)| (key.to_string(), value.to_string()));
        Self {
            service: flow.service.to_string(),
            identity: flow.identity.to_string(),
            labels: labels.collect(),
            destination: flow.destination,
            source: flow.source.as_ref().map(Identity::to_string),
            source_ip: flow.source_ip,
            way: flow.way.name().to_owned(),
            count,
            age,
        }
    }

    /// The flow, where what is told makes sense.
    pub fn flow(&self) -> Option<Flow> {
        let (name, namespace) = self.service.split_once('.')?;
        let service = Key::new(Label::new(namespace).ok()?, Label::new(name).ok()?);
        if self.labels.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > MAX_LABELS {
            return None;
        }
        let labels = self.labels.iter().map(|(key, value)| (Arc::from(&**key), Arc::from(&**value)));
        let source = self.source.as_deref().map(Identity::parse).transpose().ok()?;
        let way = Way::of_name(&self.way)?;
        let identity = Identity::parse(&self.identity).ok()?;
        // Nobody is known over plaintext, and everybody otherwise; a service is of its identity's namespace.
        let holds = (way == Way::Plaintext) == source.is_none() && *identity.namespace() == service.namespace;
        holds.then(|| Flow {
            service,
            identity,
            labels: labels.collect(),
            destination: self.destination,
            source,
            source_ip: self.source_ip.to_canonical(),
            way,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(change: impl FnOnce(&mut FlowTold)) -> FlowTold {
        let mut told = FlowTold {
            service: "orders.shop".to_owned(),
            identity: "spiffe://td/ns/shop/sa/orders".to_owned(),
            labels: [("app".to_owned(), "orders".to_owned())].into(),
            destination: "10.0.0.7:80".parse().expect("an address"),
            source: Some("spiffe://td/ns/shop/sa/web".to_owned()),
            source_ip: "10.0.0.9".parse().expect("an address"),
            way: "mutual_tls".to_owned(),
            count: 3,
            age: 7,
        };
        change(&mut told);
        told
    }

    #[test]
    fn reads_what_it_tells_and_nothing_that_makes_no_sense() {
        let good = told(|_| {});
        let flow = good.flow().expect("a flow");
        let again = FlowTold::new(&flow, good.count, good.age);
        let text = serde_json::to_string(&again).expect("JSON");
        let read: FlowTold = serde_json::from_str(&text).expect("what was told");
        assert_eq!(read.flow().as_ref(), Some(&flow));
        assert!(
            told(|told| (told.way, told.source) = ("plaintext".to_owned(), None)).flow().is_some(),
            "plaintext has no source"
        );
        let bad: [fn(&mut FlowTold); 7] = [
            |told| told.service = "orders".to_owned(),
            |told| told.identity = "spiffe://td/ns/billing/sa/orders".to_owned(),
            |told| told.source = Some("web".to_owned()),
            |told| told.source = None,
            |told| told.way = "plaintext".to_owned(),
            |told| told.way = "magic".to_owned(),
            |told| told.labels = (0..100).map(|n| (n.to_string(), "x".repeat(30))).collect(),
        ];
        for change in bad {
            let told = told(change);
            assert!(told.flow().is_none(), "{told:?}");
        }
    }
}
