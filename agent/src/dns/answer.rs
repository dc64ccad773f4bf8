//! The decision about one message from a client, without I/O: answer it from the mesh's names, send it upstream, or
//! drop it.

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::op::Query;
use hickory_proto::rr::{DNSClass, Name, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use super::config::DnsConfig;
use super::own_reply::own_reply;
use super::reverse::reverse;
use super::wire::{self, Asked, Rcode};
use super::zone::{Found, Ports, Zone};

/// What a message came in on, and an answer goes out on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A datagram: the answer is no larger than the client takes.
    Udp,
    /// A connection: an answer may have 65,535 bytes.
    Tcp,
}

/// What will be done about a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// This goes back to the client.
    Reply {
        /// The whole message.
        message: Vec<u8>,
        /// What it says, for the counters.
        outcome: Outcome,
    },
    /// The question goes upstream as it is, and what comes back to the client.
    Forward(Forward),
    /// Nothing is said.
    Drop(DropReason),
}

/// What a reply of our own says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Records of a mesh name.
    Answered,
    /// The mesh name does not exist.
    NoSuchName,
    /// The mesh name has no such record.
    NoData,
    /// The message is no whole question (FORMERR).
    Malformed,
    /// A well-formed message of a kind that is not served (NOTIMP, REFUSED, BADVERS).
    KindRefused,
    /// The zone gave a name that DNS cannot carry (SERVFAIL).
    Failed,
}

/// A question for an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    pub(super) asked: Asked,
}

/// Why nothing is said to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// It has no whole header, hence no id to answer to.
    NoHeader,
    /// It is a response. To answer one could set two servers talking to each other for ever.
    Response,
}

/// What the mesh says about one of its own names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    Addresses {
        v4: Vec<Ipv4Addr>,
        v6: Vec<Ipv6Addr>,
    },
    Ports(Ports),
    Pointer(String),
    NoSuchName,
    /// The name exists, since there may be names below it, and has no records.
    Empty,
}

/// Decides what to do about a message from a client.
pub fn answer(query: &[u8], transport: Transport, zone: &Zone, config: &DnsConfig) -> Decision {
    let Some(flags) = wire::flags(query) else {
        return Decision::Drop(DropReason::NoHeader);
    };
    if flags & wire::RESPONSE != 0 {
        return Decision::Drop(DropReason::Response);
    }
    if flags & wire::OPCODE != 0 {
        return refuse(query, Rcode::NotImp);
    }
    let Some(asked) = Asked::read(query) else {
        return refuse(query, Rcode::FormErr);
    };
    let Some(question) = read_question(query) else {
        return refuse(query, Rcode::FormErr);
    };
    // A transfer answers one question with many messages, which a relay of single messages cannot pass on. The other
    // classes hold what servers say of themselves (`version.bind`), which is no business of those who ask a relay.
    let transfer = matches!(question.query_type, RecordType::AXFR | RecordType::IXFR);
    if transfer || question.query_class != DNSClass::IN {
        return refuse(query, Rcode::Refused);
    }
    match look_up(&question.name, zone, config) {
        None => Decision::Forward(Forward { asked }),
        Some(content) => own_reply(query, asked, question, (content, transport), config)
            .unwrap_or_else(|| refuse(query, Rcode::ServFail)),
    }
}

fn read_question(query: &[u8]) -> Option<Query> {
    let mut decoder = BinDecoder::new(query).clone(u16::try_from(wire::HEADER).ok()?);
    Query::read(&mut decoder).ok()
}

fn refuse(query: &[u8], code: Rcode) -> Decision {
    let outcome = match code {
        Rcode::FormErr => Outcome::Malformed,
        Rcode::NotImp | Rcode::Refused => Outcome::KindRefused,
        Rcode::ServFail => Outcome::Failed,
    };
    match wire::error_reply(query, code, None) {
        Some(message) => Decision::Reply { message, outcome },
        None => Decision::Drop(DropReason::NoHeader),
    }
}

/// `None`: the name is not ours. A name in the mesh's domain always is, whatever the zone says, so that none leaks.
fn look_up(name: &Name, zone: &Zone, config: &DnsConfig) -> Option<Content> {
    // The root is nobody's service.
    if name.is_root() {
        return None;
    }
    let text = text(name);
    if let Some(content) = reverse(&text, zone, config) {
        return Some(content);
    }
    let domain = config.domain.as_str();
    let content = match zone.find(&text) {
        Found::Service { v4, v6 } => Content::Addresses { v4, v6 },
        Found::Ports(ports) => Content::Ports(ports),
        Found::NoSuchName => Content::NoSuchName,
        Found::NotOurs if is_in(&text, domain) => Content::NoSuchName,
        Found::NotOurs => return None,
    };
    // The domain itself exists as long as there is a mesh.
    let apex = content == Content::NoSuchName && text == domain;
    Some(if apex { Content::Empty } else { content })
}

/// Whether a name in lower case is the domain or in it.
pub(super) fn is_in(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The name in lower case without the final dot. Bytes that a host name has not are written `\DDD` (RFC 1035,
/// section 5.1), so that each dot separates two labels and no two names share a text.
pub(super) fn text(name: &Name) -> String {
    let mut text = String::with_capacity(name.len());
    for label in name {
        if !text.is_empty() {
            text.push('.');
        }
        for &byte in label {
            match byte {
                b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => text.push(char::from(byte)),
                b'A'..=b'Z' => text.push(char::from(byte.to_ascii_lowercase())),
                _ => text.push_str(&format!("\\{byte:03}")),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
    use proptest::prelude::*;

    use super::super::config::Ipv6Answers;
    use super::super::tests::{config, large_zone, question, zone};
    use super::*;

    fn decide(query: &[u8]) -> Decision {
        answer(query, Transport::Udp, &zone(), &config())
    }

    fn reply(decision: Decision) -> (Message, Outcome) {
        let Decision::Reply { message, outcome } = decision else { panic!("{decision:?} is no reply") };
        (Message::from_vec(&message).expect("a whole message"), outcome)
    }

    /// `expected`: the response code, then the answers' data, or with none the owner of the SOA record.
    fn check(name: &str, kind: RecordType, expected: &str) {
        let query = question(name, kind);
        let (message, _) = reply(decide(&query));
        let data: Vec<_> = message.answers.iter().map(|record| record.data.to_string()).collect();
        let owners = message.authorities.iter().map(|record| record.name.to_string());
        let said = if data.is_empty() { owners.collect() } else { data };
        assert_eq!(
            format!("{:?} {}", message.metadata.response_code, said.join(" ")),
            expected,
            "{name} {kind}"
        );
        assert!(message.answers.iter().all(|record| record.name.eq_case(&message.queries[0].name)));
        assert!(message.metadata.authoritative && message.metadata.recursion_available);
        assert_eq!(message.metadata.id, wire::u16_at(&query, 0).expect("an id"));
    }

    #[test]
    fn answers_for_the_meshs_names() {
        use RecordType::{A, AAAA, ANY, MX, PTR, SOA, SRV, TXT, Unknown};
        check("orders.shop.mesh.internal.", A, "NoError 240.240.0.1 240.240.0.2");
        check("ORDERS.shop.Mesh.internal.", A, "NoError 240.240.0.1 240.240.0.2");
        check("orders.shop.mesh.internal.", AAAA, "NoError fd00:ba::1");
        check("orders.shop.", A, "NoError 240.240.0.1 240.240.0.2");
        check("orders.shop.mesh.internal.", MX, "NoError mesh.internal.");
        check("orders.shop.", MX, "NoError orders.shop.");
        check("orders.shop.mesh.internal.", TXT, "NoError mesh.internal.");
        check("orders.shop.mesh.internal.", Unknown(65_280), "NoError mesh.internal.");
        check("orders.shop.mesh.internal.", SRV, "NoError mesh.internal.");
        check(
            "_http._TCP.orders.shop.mesh.internal.",
            SRV,
            "NoError 0 0 8080 orders.shop.mesh.internal. 0 0 8081 orders.shop.mesh.internal.",
        );
        check("_http._tcp.orders.shop.mesh.internal.", A, "NoError mesh.internal.");
        check("_https._tcp.orders.shop.mesh.internal.", SRV, "NXDomain mesh.internal.");
        check(
            "_http._tcp.orders.shop.",
            SRV,
            "NoError 0 0 8080 orders.shop.mesh.internal. 0 0 8081 orders.shop.mesh.internal.",
        );
        check("orders.shop.mesh.internal.", ANY, "NoError RFC8482 ");
        check("shop.mesh.internal.", A, "NoError mesh.internal.");
        check("gone.shop.mesh.internal.", A, "NXDomain mesh.internal.");
        check("gone.shop.mesh.internal.", ANY, "NXDomain mesh.internal.");
        check("unknown.mesh.internal.", AAAA, "NXDomain mesh.internal.");
        check("gone.shop.", A, "NXDomain shop.");
        check("a\\.b.mesh.internal.", A, "NXDomain mesh.internal.");
        check("a\\_.mesh.internal.", A, "NXDomain mesh.internal.");
        check("mesh.internal.", A, "NoError mesh.internal.");
        check("mesh.internal.", SOA, "NoError mesh.internal. hostmaster.mesh.internal. 1 3600 600 86400 5");
        check("1.0.240.240.in-addr.arpa.", PTR, "NoError orders.shop.mesh.internal.");
        check("1.0.240.240.in-addr.arpa.", A, "NoError 1.0.240.240.in-addr.arpa.");
        check("9.0.240.240.in-addr.arpa.", PTR, "NXDomain 0.240.240.in-addr.arpa.");
        check("240.240.in-addr.arpa.", PTR, "NoError 240.240.in-addr.arpa.");
        check("b.1.0.240.240.in-addr.arpa.", PTR, "NXDomain 1.0.240.240.in-addr.arpa.");
    }

    #[test]
    fn without_ipv6_the_name_exists_and_has_no_aaaa() {
        let config = DnsConfig { ipv6: Ipv6Answers::Withheld, ..config() };
        let query = question("orders.shop.mesh.internal.", RecordType::AAAA);
        let (message, outcome) = reply(answer(&query, Transport::Udp, &zone(), &config));
        assert_eq!((message.metadata.response_code, outcome), (ResponseCode::NoError, Outcome::NoData));
        assert!(message.answers.is_empty());
    }

    #[test]
    fn forwards_what_is_not_the_meshs() {
        let names = [
            "example.com.",
            "orders.shop.mesh.internal.example.com.",
            "notmesh.internal.",
            "internal.",
            "orders\\.shop.",
            "a.b\\.mesh.internal.",
            "1.0.0.10.in-addr.arpa.",
            "240.in-addr.arpa.",
            ".",
        ];
        for name in names {
            let decision = decide(&question(name, RecordType::A));
            assert!(matches!(decision, Decision::Forward(_)), "{name}: {decision:?}");
        }
    }

    #[test]
    fn refuses_what_is_no_question_for_it() {
        let query = question("orders.shop.", RecordType::A);
        assert_eq!(decide(&query[..11]), Decision::Drop(DropReason::NoHeader));
        let patched = |at: usize, byte: u8| {
            let mut patched = query.clone();
            patched[at] = byte;
            decide(&patched)
        };
        assert_eq!(patched(2, 0x80), Decision::Drop(DropReason::Response));
        for (flags, code) in [(0x28, OpCode::Update), (0x20, OpCode::Notify), (0x10, OpCode::Status)] {
            let (message, outcome) = reply(patched(2, flags));
            let said = (message.metadata.response_code, outcome);
            assert_eq!(said, (ResponseCode::NotImp, Outcome::KindRefused), "{code:?}");
            assert_eq!(message.metadata.op_code, code);
        }
        for (at, byte) in [(5, 0), (5, 2), (7, 1), (11, 1), (12, 0xc0), (12, 0x40)] {
            let (message, outcome) = reply(patched(at, byte));
            assert_eq!(
                (message.metadata.response_code, outcome),
                (ResponseCode::FormErr, Outcome::Malformed)
            );
        }
        for name in ["orders.shop.", "example.com.", "version.bind."] {
            let (message, _) = reply(decide(&question(name, RecordType::AXFR)));
            assert_eq!(message.metadata.response_code, ResponseCode::Refused);
            // CHAOS, HESIOD and "any class".
            for class in [3, 4, 255] {
                let mut query = question(name, RecordType::A);
                if let Some(last) = query.last_mut() {
                    *last = class;
                }
                let (message, outcome) = reply(decide(&query));
                let said = (message.metadata.response_code, outcome);
                assert_eq!(said, (ResponseCode::Refused, Outcome::KindRefused), "{name} {class}");
            }
        }
    }

    fn with_edns(name: &str, version: u8, payload: u16) -> Vec<u8> {
        let mut message = Message::from_vec(&question(name, RecordType::A)).expect("a question");
        let mut edns = Edns::new();
        edns.set_version(version).set_max_payload(payload).set_dnssec_ok(true);
        message.set_edns(edns);
        message.to_vec().expect("encodes")
    }

    #[test]
    fn echoes_edns_and_refuses_other_versions() {
        let (message, _) = reply(decide(&with_edns("orders.shop.", 0, 1232)));
        let edns = message.edns.expect("echoed");
        assert!(edns.flags().dnssec_ok && edns.version() == 0);
        let (message, outcome) = reply(decide(&with_edns("orders.shop.", 1, 1232)));
        // Code 16 has two names.
        assert_eq!((u16::from(message.metadata.response_code), outcome), (16, Outcome::KindRefused));
        let (message, _) = reply(decide(&question("orders.shop.", RecordType::A)));
        assert_eq!(message.edns, None);
    }

    #[test]
    fn answers_are_no_larger_than_the_client_takes() {
        let length = |query: &[u8], transport| {
            let Decision::Reply { message, .. } = answer(query, transport, &large_zone(), &config()) else {
                panic!("not answered");
            };
            let parsed = Message::from_vec(&message).expect("a whole message");
            (message.len(), parsed.answers.len(), parsed.metadata.truncation, parsed.edns.is_some())
        };
        let plain = question("big.shop.", RecordType::A);
        assert_eq!(length(&plain, Transport::Udp), (506, 30, true, false));
        assert_eq!(length(&plain, Transport::Tcp), (26 + 100 * 16, 100, true, false));
        assert_eq!(length(&with_edns("big.shop.", 0, 1232), Transport::Udp), (1221, 74, true, true));
        // A payload below 512 means 512, and one beyond what we send means that.
        assert_eq!(length(&with_edns("big.shop.", 0, 0), Transport::Udp), (501, 29, true, true));
        assert_eq!(length(&with_edns("big.shop.", 0, 65_535), Transport::Udp), (1221, 74, true, true));
    }

    #[test]
    fn a_port_brings_its_service_s_addresses_along_where_they_fit() {
        let query = question("_http._tcp.orders.shop.", RecordType::SRV);
        let (message, outcome) = reply(decide(&query));
        let along: Vec<_> = message.additionals.iter().map(|record| record.data.to_string()).collect();
        assert_eq!(along, ["240.240.0.1", "240.240.0.2", "fd00:ba::1"]);
        assert!(
            message.additionals.iter().all(|record| record.name.to_string() == "orders.shop.mesh.internal.")
        );
        assert_eq!(outcome, Outcome::Answered);

        let addresses: Vec<_> = (0..100_u32).map(|number| Ipv4Addr::from(0xf0f0_0000 + number)).collect();
        let ports =
            Ports { host: "a.b.mesh.internal".to_owned(), ports: vec![80], v4: addresses, v6: Vec::new() };
        let many = Zone::new(move |_| Found::Ports(ports.clone()), |_| None);
        let (message, _) = reply(answer(&query, Transport::Udp, &many, &config()));
        assert_eq!((message.answers.len(), message.additionals.len()), (1, 0));
        assert!(!message.metadata.truncation, "what was asked for is all there");
        let (message, _) = reply(answer(&query, Transport::Tcp, &many, &config()));
        assert_eq!((message.answers.len(), message.additionals.len()), (1, 100));
    }

    proptest! {
        #[test]
        fn never_panics_and_always_answers_in_whole_messages(
            mut query in proptest::collection::vec(any::<u8>(), 0..600),
            shape in 0..3_u8,
        ) {
            // Bytes at random seldom get past the header, so that some are given a good one.
            if shape > 0 && query.len() > 12 {
                query[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, shape - 1]);
            }
            for transport in [Transport::Udp, Transport::Tcp] {
                if let Decision::Reply { message, .. } = answer(&query, transport, &zone(), &config()) {
                    let parsed = Message::from_vec(&message).expect("a whole message");
                    prop_assert_eq!(parsed.metadata.message_type, MessageType::Response);
                    prop_assert_eq!(message.get(..2), query.get(..2));
                }
            }
        }

        #[test]
        fn no_name_in_the_domain_is_forwarded(
            labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 0..6),
            kind in any::<u16>(),
            class in any::<u16>(),
        ) {
            let mut query = b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
            for label in labels.iter().map(Vec::as_slice).chain([&b"mEsh"[..], b"InternaL"]) {
                query.push(u8::try_from(label.len()).expect("short"));
                query.extend_from_slice(label);
            }
            query.push(0);
            query.extend_from_slice(&kind.to_be_bytes());
            query.extend_from_slice(&class.to_be_bytes());
            prop_assert!(!matches!(decide(&query), Decision::Forward(_)));
        }
    }
}
