//! What a client sends to the DNS server, and what an upstream sends back. The first byte says which: even bytes make
//! the rest a client's message, odd ones an upstream's answer to the question that stands at its start.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use baremesh_agent::dns::{
    Decision, DnsConfig, Found, Outcome, Ports, Transport, Verdict, Zone, answer, judge,
};
use baremesh_model::name::Domain;

static CONFIG: LazyLock<DnsConfig> = LazyLock::new(|| {
    let ranges = ["240.240.0.0/16", "fd00:ba::/32"].map(|range| range.parse().expect("a range"));
    DnsConfig::new(Domain::new("m.i").expect("a domain"), ranges.to_vec())
});

/// Short names, so that the fuzzer finds them.
static ZONE: LazyLock<Zone> = LazyLock::new(|| {
    let find = |name: &str| match name {
        "a.m.i" | "a" => {
            Found::Service { v4: vec![Ipv4Addr::new(240, 240, 0, 1)], v6: vec![Ipv6Addr::LOCALHOST] }
        }
        "b.m.i" => Found::Service { v4: vec![Ipv4Addr::LOCALHOST; 300], v6: Vec::new() },
        "_p._tcp.a" => Found::Ports(Ports {
            host: "a.m.i".to_owned(),
            ports: vec![1, 2],
            v4: vec![Ipv4Addr::LOCALHOST; 70],
            v6: vec![Ipv6Addr::LOCALHOST],
        }),
        "c" => Found::NoSuchName,
        _ => Found::NotOurs,
    };
    Zone::new(find, |address| (address == IpAddr::from([240, 240, 0, 1])).then(|| "a.m.i".to_owned()))
});

fn client(query: &[u8]) {
    for transport in [Transport::Udp, Transport::Tcp] {
        match answer(query, transport, &ZONE, &CONFIG) {
            Decision::Reply { message, outcome } => {
                assert_eq!(message.get(..2), query.get(..2), "a reply to another question");
                assert!(message[2] & 0x80 != 0, "a reply that is no response");
                assert!(transport == Transport::Tcp || message.len() <= 1232, "larger than the largest");
                if let Outcome::Answered | Outcome::NoSuchName | Outcome::NoData = outcome {
                    let verdict = judge(&message, query, &[]);
                    assert_eq!(
                        verdict,
                        Verdict::Relay(message.len()),
                        "an answer that we would not take ourselves"
                    );
                }
            }
            Decision::Forward(_) => {
                let labels = labels(&query[12..]);
                assert!(!labels.ends_with(&[b"m".to_vec(), b"i".to_vec()]), "a name of the mesh leaks");
            }
            Decision::Drop(_) => {}
        }
    }
}

/// The labels of a name that has been found to be one, in lower case.
fn labels(mut name: &[u8]) -> Vec<Vec<u8>> {
    let mut labels = Vec::new();
    while let Some((&length, rest)) = name.split_first().filter(|(length, _)| **length > 0) {
        let (label, rest) = rest.split_at(length.into());
        labels.push(label.to_ascii_lowercase());
        name = rest;
    }
    labels
}

fn upstream(reply: &[u8]) {
    // The question is the reply's own, so that what comes behind is reached.
    let mut sent = reply.to_vec();
    if let Some(flags) = sent.get_mut(2) {
        *flags &= 0x7f;
    }
    if let Verdict::Relay(length) = judge(reply, &sent, &CONFIG.virtual_ranges) {
        assert!(length <= reply.len());
    }
}

pub fn check(data: &[u8]) {
    match data.split_first() {
        Some((kind, rest)) if kind % 2 == 0 => client(rest),
        Some((_, rest)) => upstream(rest),
        None => {}
    }
}
