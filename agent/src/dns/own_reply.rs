//! Answers about the mesh's own names, as messages.

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Edns, Message, Metadata, Query, ResponseCode};
use hickory_proto::op::{MessageType, OpCode};
use hickory_proto::rr::rdata::{A, AAAA, HINFO, PTR, SOA, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::answer::{Content, Decision, Outcome, Transport, is_in, text};
use super::config::{ANSWER_TTL, DnsConfig, Ipv6Answers, MAX_ADDRESSES, MAX_UDP_ANSWER, NEGATIVE_TTL};
use super::wire::{self, Asked};

/// The whole reply, or `None` where a name that the zone gave is none.
pub(super) fn own_reply(
    query: &[u8],
    asked: Asked,
    question: Query,
    (content, transport): (Content, Transport),
    config: &DnsConfig,
) -> Option<Decision> {
    let mut message = Message::new(0, MessageType::Response, OpCode::Query);
    message.metadata = metadata(query)?;
    if let Some(opt) = asked.opt {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP_ANSWER).set_dnssec_ok(opt.dnssec_ok);
        message.set_edns(edns);
    }
    if asked.opt.is_some_and(|opt| opt.version != 0) {
        message.metadata.response_code = ResponseCode::BADVERS;
        message.add_query(question);
        return Some(Decision::Reply { message: message.to_vec().ok()?, outcome: Outcome::KindRefused });
    }

    message.metadata.authoritative = true;
    if let (RecordType::SRV, Content::Ports(ports)) = (question.query_type, &content) {
        message.additionals = addresses(&full_name(&ports.host)?, (&ports.v4, &ports.v6), config);
    }
    let outcome = if content == Content::NoSuchName {
        message.metadata.response_code = ResponseCode::NXDomain;
        Outcome::NoSuchName
    } else {
        message.answers = records(&question, &content, config)?;
        if message.answers.is_empty() { Outcome::NoData } else { Outcome::Answered }
    };
    if outcome != Outcome::Answered {
        message.add_authority(authority(&question.name, &content, config)?);
    }
    message.add_query(question);
    let limit = match transport {
        Transport::Udp => usize::from(asked.payload().min(MAX_UDP_ANSWER)),
        Transport::Tcp => wire::MAX_MESSAGE,
    };
    Some(Decision::Reply { message: encode(message, limit)?, outcome })
}

fn metadata(query: &[u8]) -> Option<Metadata> {
    let flags = wire::flags(query)?;
    let mut metadata = Metadata::new(wire::u16_at(query, 0)?, MessageType::Response, OpCode::Query);
    metadata.recursion_desired = flags & wire::RECURSION_DESIRED != 0;
    metadata.recursion_available = true;
    Some(metadata)
}

/// The records that answer the question; none means NODATA.
fn records(question: &Query, content: &Content, config: &DnsConfig) -> Option<Vec<Record>> {
    let owned = |data: RData| Record::from_rdata(question.name.clone(), ANSWER_TTL, data);
    Some(match (question.query_type, content) {
        // A minimal answer to ANY (RFC 8482, section 4.2): no list of everything for those who ask in bulk.
        (RecordType::ANY, _) => vec![owned(RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new())))],
        (RecordType::SOA, _) => {
            let soa = authority(&question.name, content, config)?;
            if soa.name == question.name { vec![soa] } else { Vec::new() }
        }
        (RecordType::A, Content::Addresses { v4, .. }) => addresses(&question.name, (v4, &[]), config),
        (RecordType::AAAA, Content::Addresses { v6, .. }) => addresses(&question.name, (&[], v6), config),
        // One host behind them all, so that neither priority nor weight tells them apart.
        (RecordType::SRV, Content::Ports(ports)) => {
            let target = full_name(&ports.host)?;
            ports.ports.iter().map(|port| owned(RData::SRV(SRV::new(0, 0, *port, target.clone())))).collect()
        }
        (RecordType::PTR, Content::Pointer(host)) => vec![owned(RData::PTR(PTR(full_name(host)?)))],
        _ => Vec::new(),
    })
}

/// The A and AAAA records of a name.
fn addresses(name: &Name, (v4, v6): (&[Ipv4Addr], &[Ipv6Addr]), config: &DnsConfig) -> Vec<Record> {
    let v6 = if config.ipv6 == Ipv6Answers::Given { v6 } else { &[] };
    let v4 = v4.iter().map(|address| RData::A(A(*address)));
    let data = v4.chain(v6.iter().map(|address| RData::AAAA(AAAA(*address))));
    data.map(|data| Record::from_rdata(name.clone(), ANSWER_TTL, data)).collect()
}

/// The SOA record that negative answers are cached by (RFC 2308). It stands at the mesh's domain for names in it, and
/// otherwise at the name itself, or above it where the name does not exist.
fn authority(name: &Name, content: &Content, config: &DnsConfig) -> Option<Record> {
    let domain = full_name(config.domain.as_str())?;
    let owner = if is_in(&text(name), config.domain.as_str()) {
        domain.clone()
    } else if *content == Content::NoSuchName {
        name.base_name()
    } else {
        name.clone()
    };
    let master = domain.clone();
    // The domain may be so long that no label fits before it; the record then names the domain itself.
    let mailbox = domain.prepend_label("hostmaster").unwrap_or(domain);
    let soa = SOA::new(master, mailbox, 1, 3600, 600, 86_400, NEGATIVE_TTL);
    Some(Record::from_rdata(owner, NEGATIVE_TTL, RData::SOA(soa)))
}

fn full_name(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// Encodes the message in at most `limit` bytes. Answers that do not fit are left out and the message says so: some
/// resolvers never turn to TCP, and are better served with some addresses than with none.
fn encode(mut message: Message, limit: usize) -> Option<Vec<u8>> {
    // Nearly every answer fits as it is.
    if message.answers.len().max(message.additionals.len()) <= MAX_ADDRESSES {
        let bytes = message.to_vec().ok()?;
        if bytes.len() <= limit {
            return Some(bytes);
        }
    }
    let mut answers = std::mem::take(&mut message.answers);
    // What nobody asked for goes out where there is room for all of it, and is no truncation where there is not (RFC
    // 2181, section 9).
    let mut along = std::mem::take(&mut message.additionals);
    along.truncate(MAX_ADDRESSES);
    let base = message.to_vec().ok()?.len();
    let room = match answers.first() {
        None => 0,
        Some(first) => {
            message.answers = vec![first.clone()];
            // All answers have one owner and one type, so that each takes as many bytes as the first.
            let each = (message.to_vec().ok()?.len() - base).max(1);
            (limit.saturating_sub(base) / each).min(MAX_ADDRESSES)
        }
    };
    message.metadata.truncation = answers.len() > room;
    answers.truncate(room);
    message.answers = answers;
    if !along.is_empty() && !message.metadata.truncation {
        message.additionals = along;
        match message.to_vec() {
            Ok(bytes) if bytes.len() <= limit => return Some(bytes),
            _ => message.additionals = Vec::new(),
        }
    }
    let bytes = message.to_vec().ok()?;
    if bytes.len() <= limit { Some(bytes) } else { message.truncate().to_vec().ok() }
}
