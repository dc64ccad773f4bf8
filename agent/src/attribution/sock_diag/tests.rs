//! Requests, answers, and answers that must not be taken.

use proptest::prelude::*;

use super::*;

fn flow(client: &str, destination: &str) -> Flow {
    Flow::new(client.parse().expect("an address"), destination.parse().expect("an address"))
        .expect("one family")
}

/// What the kernel would answer for `about`: state, uid and inode as given, then the attributes.
fn answer(about: &Flow, sequence: u32, (state, uid, inode): (u8, u32, u32), attributes: &[u8]) -> Vec<u8> {
    let request = encode(about, sequence);
    let mut bytes = request[..HEADER_LEN].to_vec();
    bytes.extend([request[HEADER_LEN], state, 0, 0]);
    bytes.extend(&request[HEADER_LEN + REQUEST_ID..]);
    bytes.extend([0; 12]);
    bytes.extend(uid.to_ne_bytes());
    bytes.extend(inode.to_ne_bytes());
    bytes.extend(attributes);
    let length = bytes.len() as u32;
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn error(errno: i32) -> Vec<u8> {
    let mut bytes = vec![20, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0];
    bytes[..4].copy_from_slice(&20u32.to_ne_bytes());
    bytes[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
    bytes[8..12].copy_from_slice(&7u32.to_ne_bytes());
    bytes.extend(errno.to_ne_bytes());
    bytes
}

#[test]
fn a_request_is_laid_out_as_the_kernel_reads_it() {
    let bytes = encode(&flow("127.0.0.1:4660", "240.240.0.5:443"), 7);
    assert_eq!(bytes[16..20], [AF_INET, IPPROTO_TCP, 0, 0]);
    assert_eq!(bytes[24..28], [0x12, 0x34, 0x01, 0xbb]);
    assert_eq!(bytes[28..32], [127, 0, 0, 1]);
    assert_eq!(bytes[44..48], [240, 240, 0, 5]);
    assert_eq!(bytes[60..64], 1u32.to_ne_bytes());
    assert_eq!(bytes[64..], [0xff; 8]);
}

#[test]
fn the_interface_is_loopback_unless_an_address_names_one() {
    let interface = |client: &str| flow(client, "[fe80::2]:80").interface;
    assert_eq!(interface("[fd00::1]:5000"), 1);
    assert_eq!(interface("[fe80::1%7]:5000"), 7);
}

#[test]
fn owners_are_read_from_answers() {
    let id = attribute(INET_DIAG_CGROUP_ID, &0x1234_5678_9abc_u64.to_ne_bytes());
    let before = [attribute(8, &[0]), id, attribute(15, &[0; 4])].concat();
    for about in [
        flow("127.0.0.1:4660", "240.240.0.5:443"),
        flow("[::1]:4660", "[fd00::5]:443"),
        flow("[::ffff:127.0.0.1]:4660", "127.0.0.1:443"),
    ] {
        let owner = decode(&answer(&about, 7, (1, 1000, 99), &before), &about, 7);
        let expected = SocketOwner {
            uid: Uid(1000),
            inode: 99,
            cgroup: Some(CgroupId(0x1234_5678_9abc)),
            state: SocketState::Established,
        };
        assert_eq!(owner, Ok(Some(expected)));
    }
}

#[test]
fn what_does_not_say_whose_it_is_is_refused() {
    let asked = flow("127.0.0.1:4660", "127.0.0.1:443");
    let of = |owner, attributes: &[u8]| answer(&asked, 7, owner, attributes);
    let listener = answer(&flow("127.0.0.1:4660", "0.0.0.0:0"), 7, (10, 0, 5), &[]);
    let mut cut = of((1, 0, 5), &[]);
    cut.pop();
    let mut short = cut.clone();
    short[..4].copy_from_slice(&87u32.to_ne_bytes());
    let mut other_kind = of((1, 0, 5), &[]);
    other_kind[4] ^= 1;
    let malformed = LookupError::Malformed;
    let table = [
        ("listener", listener, LookupError::OtherSocket),
        (
            "swapped",
            answer(&flow("127.0.0.1:443", "127.0.0.1:4660"), 7, (1, 0, 5), &[]),
            LookupError::OtherSocket,
        ),
        ("orphan", of((5, 0, 0), &[]), LookupError::Orphan),
        ("TIME_WAIT", of((6, 0, 0), &[]), LookupError::NotOpen(6)),
        ("CLOSE_WAIT", of((8, 0, 5), &[]), LookupError::NotOpen(8)),
        ("SYN_SENT", of((2, 0, 5), &[]), LookupError::NotOpen(2)),
        ("absent", error(-2), LookupError::Gone),
        ("refused", error(-1), LookupError::Refused(Errno::PERM)),
        ("no error", error(0), malformed("its error number is out of range")),
        ("least error", error(i32::MIN), malformed("its error number is out of range")),
        ("empty", vec![], malformed("it is cut short")),
        ("longer than said", cut, malformed("it is cut short")),
        ("short body", short, malformed("it is cut short")),
        ("other kind", other_kind, malformed("it is of another kind")),
        ("short id", of((1, 0, 5), &attribute(21, &[0; 4])), malformed("the cgroup id is not 8 bytes long")),
        ("length 0", of((1, 0, 5), &[0, 0, 21, 0]), malformed("an attribute is cut short")),
        ("length past the end", of((1, 0, 5), &[12, 0, 21, 0]), malformed("an attribute is cut short")),
    ];
    for (what, bytes, expected) in table {
        assert_eq!(decode(&bytes, &asked, 7), Err(expected), "{what}");
    }
    assert_eq!(decode(&of((1, 0, 5), &[]), &asked, 8), Ok(None), "another sequence number");
}

#[test]
fn ends_of_different_families_are_refused() {
    let [v4, v6] = ["127.0.0.1:1", "[::1]:2"].map(|a| a.parse().expect("an address"));
    assert_eq!(Flow::new(v4, v6), Err(LookupError::MixedFamilies { client: v4, destination: v6 }));
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes, &flow("127.0.0.1:1", "127.0.0.1:2"), 0);
    }

    #[test]
    fn a_damaged_answer_is_never_taken_for_another_socket(
        at in 0usize..100, to in any::<u8>(), keep in 0usize..=100,
    ) {
        let asked = flow("127.0.0.1:4660", "127.0.0.1:443");
        let id = attribute(INET_DIAG_CGROUP_ID, &5u64.to_ne_bytes());
        let mut bytes = answer(&asked, 7, (1, 1000, 99), &id);
        let ports_and_addresses = [20..28, 40..44];
        let damaged = bytes[at] != to;
        bytes[at] = to;
        bytes.truncate(keep);
        if let Ok(Some(_)) = decode(&bytes, &asked, 7) {
            prop_assert!(keep >= HEADER_LEN + MESSAGE_LEN);
            prop_assert!(!damaged || ports_and_addresses.iter().all(|range| !range.contains(&at)));
        }
    }

    #[test]
    fn only_the_flow_asked_for_is_taken(
        a in any::<(u32, u16, u32, u16)>(), b in any::<(u32, u16, u32, u16)>(),
    ) {
        let of = |(ip, port, to, to_port): (u32, u16, u32, u16)| {
            let ends = [(ip, port), (to, to_port)].map(|(ip, port)| (Ipv4Addr::from(ip), port).into());
            Flow::new(ends[0], ends[1]).expect("both are IPv4")
        };
        let taken = decode(&answer(&of(b), 7, (1, 0, 9), &[]), &of(a), 7);
        prop_assert_eq!(taken.is_ok(), a == b);
        prop_assert!(decode(&answer(&of(a), 7, (1, 0, 9), &[]), &of(a), 7).is_ok());
    }
}
