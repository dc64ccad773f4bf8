use std::net::IpAddr;

use baremesh_model::external_authorization::{FieldAction, FieldChange};
use baremesh_model::http::RequestHead;
use tokio::io::AsyncWriteExt as _;

use super::*;
use crate::external_authorization::{MAX_HELD, MAX_HELD_OF_HOST, Room};
use crate::proxy::http::bytes::of_socket;
use crate::proxy::http::bytes::tests::sockets;
use crate::proxy::http::h1::{HttpLimits, Reader};

const HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

/// A request of which all has come, and its sender.
async fn sent(text: &str) -> (Reader, Hop, tokio::net::TcpStream) {
    let (mut sender, receiver) = sockets().await;
    sender.write_all(text.as_bytes()).await.expect("it is taken");
    let mut reader = Reader::new(of_socket(receiver).0, HttpLimits::default());
    let hop = reader.request(&mut RequestHead::default()).await.expect("a request").expect("one came");
    (reader, hop, sender)
}

#[tokio::test]
async fn what_is_read_ahead_holds_its_room_until_it_was_taken() {
    let text = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    let room = Room::default();
    let all = || room.take(HOST, MAX_HELD_OF_HOST).is_some();
    let (mut reader, hop, _sender) = sent(text).await;
    let mut upload = Upload::new(Source::Http1(&mut reader), hop);
    assert!(all(), "what has not been read holds nothing");
    let place = RoomAhead { room: &room, host: HOST, times: 1 };
    upload.read_ahead(9, place).await.expect("it is read");
    let (shown, is_cut) = upload.start(9);
    assert_eq!((&*shown, is_cut), (&b"hello"[..], false));
    drop(shown);
    assert!(!all(), "the upload has it still");
    assert!(matches!(upload.ahead.next(), Some(Some(Frame::Data(data))) if *data == *b"hello"));
    assert!(!all(), "it is on its way");
    assert!(matches!(upload.ahead.next(), Some(None)));
    assert!(all(), "it was taken");
    // One that cannot be held is not read.
    let _taken =
        [1, 2].map(|last| room.take(IpAddr::from([10, 0, 1, last]), MAX_HELD / 2).expect("there is room"));
    let (mut reader, hop, _sender) = sent(text).await;
    let mut upload = Upload::new(Source::Http1(&mut reader), hop);
    assert!(matches!(upload.read_ahead(9, place).await, Err(UnreadAhead::NoRoom)));
}

#[test]
fn trailers_lose_what_providers_say_in_the_attempt_that_they_said_it_in() {
    let mut upload = Upload::own(Bytes::from_static(b"abc"));
    let mut trailers = Headers::default();
    for name in ["x_user", "x-role", "x-sum"] {
        trailers.append(name, b"1").expect("a field");
    }
    upload.trailers = Some(trailers);
    assert_eq!(upload.stripped_trailers(), None);
    let change = FieldChange { action: FieldAction::Append, name: "X-User".into(), value: b"eve"[..].into() };
    let changes = Changes { request: vec![change], ..Changes::default() };
    upload.vouched_for(&[Pattern::new("x-role")], &changes);
    let left = upload.stripped_trailers().expect("they change");
    assert_eq!(left.iter().collect::<Vec<_>>(), [("x-sum", &b"1"[..])]);
    upload.hold_to(None);
    assert_eq!(upload.stripped_trailers(), None, "another attempt may go elsewhere");
}
