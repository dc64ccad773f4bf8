//! Looking names up for the agent itself, of the same upstreams that questions of the host's programs go to.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_proto::op::Message;
use hickory_proto::rr::RData;

use super::answer::Transport;
use super::config::DnsConfig;
use super::counters::{DnsCounters, LogGate};
use super::forward::Forwarder;
use super::upstreams::UpstreamList;
use super::wire::{self, Asked};

/// What DNS says of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// Its addresses, in the order of the answer, IPv4's first.
    pub addresses: Vec<IpAddr>,
    /// For how long they hold.
    pub ttl: Duration,
}

/// Why there are no addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LookUpError {
    /// DNS cannot carry the name.
    #[error("it is no name that DNS can carry")]
    NoName,
    /// There is none of that name.
    #[error("DNS has no such name")]
    NoSuchName,
    /// It has no address that may be connected to.
    #[error("it has no address that may be connected to")]
    NoAddress,
    /// No upstream answers.
    #[error("no upstream name server answers: `baremesh status` shows which are asked")]
    NoAnswer,
    /// Too many look-ups at once.
    #[error("too many names are being looked up at this moment")]
    Busy,
}

/// Asks the upstreams.
#[derive(Debug)]
pub struct Resolver {
    forwarder: Forwarder,
}

impl Resolver {
    /// A resolver by the same configuration as the server; `own` are the addresses at which that listens.
    pub fn new(config: &DnsConfig, own: Vec<SocketAddr>) -> Self {
        let forwarder = Forwarder {
            upstreams: Arc::new(UpstreamList::load(config.upstreams.clone(), own)),
            // What lies in them is left out by who asks, which counts it.
            ranges: ArcSwap::from_pointee(Vec::new()),
            mark: config.mark,
            limits: config.limits,
            counters: Arc::new(DnsCounters::default()),
            log: LogGate::new(),
        };
        Self { forwarder }
    }

    /// Follows the list of upstreams. Never ends for a file, ends at once for a fixed list.
    pub async fn watch(&self) {
        Arc::clone(&self.forwarder.upstreams).watch().await;
    }

    /// The addresses of a name.
    pub async fn look_up(&self, name: &str) -> Result<Addresses, LookUpError> {
        let (v4, v6) = tokio::join!(self.ask(name, wire::TYPE_A), self.ask(name, wire::TYPE_AAAA));
        // A server that does not do IPv6 says nothing against the name.
        let (mut found, more) = match (v4, v6) {
            (Ok(v4), v6) => (v4, v6.unwrap_or_default()),
            (Err(_), Ok(v6)) if !v6.is_empty() => (Vec::new(), v6),
            (Err(error), _) => return Err(error),
        };
        found.extend(more);
        let ttl = found.iter().map(|(_, ttl)| *ttl).min().ok_or(LookUpError::NoAddress)?;
        let addresses = found.into_iter().map(|(address, _)| address).collect();
        Ok(Addresses { addresses, ttl: Duration::from_secs(ttl.into()) })
    }

    /// The addresses of one family with their TTLs; none where the name has none.
    async fn ask(&self, name: &str, kind: u16) -> Result<Vec<(IpAddr, u32)>, LookUpError> {
        let query = question(name, kind).ok_or(LookUpError::NoName)?;
        let asked = Asked::read(&query).ok_or(LookUpError::NoName)?;
        let mut reply = self.forwarder.forward(&query, asked, Transport::Udp).await;
        if wire::flags(&reply).unwrap_or_default() & wire::TRUNCATED != 0 {
            reply = self.forwarder.forward(&query, asked, Transport::Tcp).await;
        }
        match wire::flags(&reply).ok_or(LookUpError::NoAnswer)? & wire::RCODE {
            0 => {}
            3 => return Err(LookUpError::NoSuchName),
            _ => return Err(LookUpError::NoAnswer),
        }
        let message = Message::from_vec(&reply).map_err(|_| LookUpError::NoAnswer)?;
        // Whatever aliases lead there: the records of an answer are one chain.
        let addresses = message.answers.iter().filter_map(|record| match &record.data {
            RData::A(address) => Some((IpAddr::V4(address.0), record.ttl)),
            RData::AAAA(address) => Some((IpAddr::V6(address.0), record.ttl)),
            _ => None,
        });
        Ok(addresses.collect())
    }
}

/// The largest answer that fits into one packet everywhere.
const PAYLOAD: u16 = 1232;

/// A question that wants recursion.
fn question(name: &str, kind: u16) -> Option<Vec<u8>> {
    let mut query = vec![0, 0];
    query.extend(wire::RECURSION_DESIRED.to_be_bytes());
    query.extend([0, 1, 0, 0, 0, 0, 0, 1]);
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        query.push(length);
        query.extend(label.as_bytes());
    }
    query.push(0);
    query.extend(kind.to_be_bytes());
    query.extend([0, 1]);
    // EDNS (RFC 6891): answers of many addresses come in one datagram.
    query.push(0);
    query.extend(wire::TYPE_OPT.to_be_bytes());
    query.extend(PAYLOAD.to_be_bytes());
    query.extend([0; 6]);
    // A random id: what comes back is held against it.
    wire::set_id(&mut query, rand::random());
    Some(query)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_whole_and_names_that_dns_cannot_carry_have_none() {
        let query = question("api.example.com", wire::TYPE_A).expect("a question");
        assert!(Asked::read(&query).is_some());
        let message = Message::from_vec(&query).expect("a message");
        assert_eq!(message.queries[0].name.to_string(), "api.example.com.");
        for bad in ["", "a..b", &"a".repeat(64), &["a"; 200].join(".")] {
            let asked = question(bad, wire::TYPE_A).and_then(|query| Asked::read(&query));
            assert!(asked.is_none(), "{bad}");
        }
    }
}
