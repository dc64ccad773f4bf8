//! Frames made by hand, in and out of order.

use std::time::Duration;

use super::*;
use crate::demo::hosts::Pcap;

fn tcp(port: u16, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(port.to_be_bytes());
    header.extend(80u16.to_be_bytes());
    header.extend(sequence.to_be_bytes());
    header.extend([0; 4]);
    header.extend([5 << 4, flags, 0, 0, 0, 0, 0, 0]);
    header.extend(payload);
    header
}

fn over_ipv4(protocol: u8, transport: &[u8]) -> Packet {
    let mut frame = vec![2; 12];
    frame.extend(ETHERTYPE_IPV4.to_be_bytes());
    frame.extend([0x45, 0]);
    frame.extend((20 + transport.len() as u16).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, protocol, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2]);
    frame.extend(transport);
    // What Ethernet pads with is not payload.
    frame.extend(b"padding");
    Packet { at: Duration::ZERO, frame }
}

fn over_ipv6(transport: &[u8]) -> Packet {
    let mut frame = vec![2; 12];
    frame.extend(ETHERTYPE_IPV6.to_be_bytes());
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((8 + transport.len() as u16).to_be_bytes());
    frame.extend([HOP_BY_HOP, 64]);
    for last in [1, 2] {
        frame.extend(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, last).octets());
    }
    frame.extend([TCP, 0, 1, 4, 0, 0, 0, 0]);
    frame.extend(transport);
    Packet { at: Duration::ZERO, frame }
}

fn pieces(packets: &[Packet]) -> Vec<Vec<String>> {
    let text = |piece: &Vec<u8>| String::from_utf8_lossy(piece).into_owned();
    streams(packets).iter().map(|stream| stream.pieces.iter().map(text).collect()).collect()
}

#[test]
fn streams_are_put_in_order() {
    let check = |segments: &[(u32, u8, &str)], expected: &[&[&str]]| {
        for wrap in [over_ipv6, |transport: &[u8]| over_ipv4(TCP, transport)] {
            let packets: Vec<_> = segments
                .iter()
                .map(|(seq, flags, text)| wrap(&tcp(4000, *seq, *flags, text.as_bytes())))
                .collect();
            assert_eq!(pieces(&packets), expected, "{segments:?}");
        }
    };
    check(&[(9, SYN, ""), (10, 0, "pass"), (14, 0, "word")], &[&["password"]]);
    check(&[(9, SYN, ""), (14, 0, "word"), (10, 0, "pass")], &[&["password"]]);
    // Seen on three interfaces, and sent twice with another cut.
    check(
        &[(9, SYN, ""), (9, SYN, ""), (10, 0, "pas"), (10, 0, "passw"), (13, 0, "sword")],
        &[&["password"]],
    );
    check(&[(9, SYN, ""), (10, 0, "pass"), (15, 0, "ord")], &[&["pass", "ord"]]);
    check(&[(u32::MAX - 2, SYN, ""), (u32::MAX - 1, 0, "pass"), (2, 0, "word")], &[&["password"]]);
    // Recorded from the middle on, with a keep-alive probe before what is known.
    check(&[(10, 0, "pass"), (9, 0, "x"), (14, 0, "word")], &[&["password"]]);
    // The port is used again.
    check(&[(9, SYN, ""), (10, 0, "pass"), (99, SYN, ""), (100, 0, "word")], &[&["pass"], &["word"]]);
}

#[test]
fn spread_bytes_are_found_and_named() {
    let check = |frames: &[Vec<u8>], wanted: &str, expected: Option<&str>| {
        let mut file = Vec::new();
        super::super::pcap::write_header(&mut file).expect("a vector takes all");
        for frame in frames {
            super::super::pcap::write_packet(&mut file, Duration::ZERO, frame).expect("a vector takes all");
        }
        let path = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(path.path(), file).expect("it can be written");
        let found = Pcap::read(path.path()).expect("it is complete").find(wanted);
        assert_eq!(found.map(|found| found.to_string()).as_deref(), expected, "{wanted}");
    };
    let split =
        [over_ipv4(TCP, &tcp(4000, 10, 0, b"pass")).frame, over_ipv4(TCP, &tcp(4000, 14, 0, b"word")).frame];
    check(&split, "password", Some("tcp 10.77.0.1:4000 > 10.77.0.2:80, spread over packets"));
    check(&split, "word", Some("tcp 10.77.0.1:4000 > 10.77.0.2:80, in one packet"));
    check(&split, "wordpass", None);
    // Two connections do not make one text.
    let apart =
        [over_ipv4(TCP, &tcp(4000, 10, 0, b"pass")).frame, over_ipv4(TCP, &tcp(4001, 14, 0, b"word")).frame];
    check(&apart, "password", None);
    let udp = over_ipv4(UDP, b"\x0f\xa0\x00\x50\x00\x0c\x00\x00word").frame;
    check(&[udp], "word", Some("udp 10.77.0.1:4000 > 10.77.0.2:80, in one packet"));
    check(&[b"who knows".to_vec()], "knows", Some("a frame that is neither TCP nor UDP, in one packet"));
}

#[test]
fn no_frame_is_too_short_to_look_at() {
    let whole = over_ipv6(&tcp(4000, 10, 0, b"pass")).frame;
    for length in 0..whole.len() {
        let _ = segment(&whole[..length]);
    }
    let whole = over_ipv4(TCP, &tcp(4000, 10, 0, b"pass")).frame;
    for length in 0..whole.len() {
        let _ = segment(&whole[..length]);
    }
}
