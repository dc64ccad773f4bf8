//! Messages over sockets and tunnels.

use std::pin::pin;
use std::task::Poll;

use tokio::io::AsyncWriteExt;

use super::super::super::bytes::tests::{carriers, now, sockets};
use super::super::super::bytes::{ByteReader, of_socket};
use super::*;

const KEEP: Hop = Hop { framing: Framing::None, persistence: Persistence::Keep, upgrade: false };

fn reader(bytes: ByteReader) -> Reader {
    Reader::new(bytes, HttpLimits::default())
}

fn head(target: &str) -> RequestHead {
    RequestHead { method: "POST".into(), target: target.into(), authority: "a".into(), ..Default::default() }
}

async fn body(reader: &mut Reader) -> Result<(Vec<u8>, Headers), H1Error> {
    let (mut body, mut trailers) = (Vec::new(), Headers::default());
    while let Some(frame) = reader.body().await? {
        match frame {
            Frame::Data(data) => body.extend_from_slice(&data),
            Frame::Trailers(fields) => trailers = fields,
        }
    }
    Ok((body, trailers))
}

#[tokio::test]
async fn messages_follow_each_other_over_one_connection() {
    for (carrier, (bytes, _kept), (_other, writer)) in carriers().await {
        let (mut reader, mut writer) = (reader(bytes), Writer::new(writer));
        let large = Bytes::from_iter((0..3_000_000_u32).map(|at| (at % 251) as u8));
        let mut sum = Headers::default();
        sum.append("sum", b"1").expect("a field");
        let write = async {
            for (target, framing, data) in [
                ("/none", Framing::None, Bytes::new()),
                ("/length", Framing::Length(5), Bytes::from_static(b"hello")),
                ("/large", Framing::Length(large.len() as u64), large.clone()),
                ("/chunks", Framing::Chunked, large.clone()),
            ] {
                writer.request(&head(target), &Hop { framing, ..KEEP }).expect(carrier);
                let mut rest = data;
                while !rest.is_empty() {
                    let part = rest.split_to(rest.len().min(100_000));
                    writer.data(part).await.expect(carrier);
                }
                writer.finish(Some(&sum)).await.expect(carrier);
                assert!(writer.is_over(), "{carrier}");
            }
            writer.bytes().shutdown().expect(carrier);
        };
        let read = async {
            let mut head = RequestHead::default();
            let mut seen = Vec::new();
            while reader.begins().await.expect(carrier) {
                reader.request(&mut head).await.expect(carrier).expect(carrier);
                let (body, trailers) = body(&mut reader).await.expect(carrier);
                assert!(reader.is_over(), "{carrier}");
                seen.push((head.target.clone(), body, trailers.contains("sum")));
            }
            assert_eq!(reader.request(&mut head).await.expect(carrier), None, "{carrier}");
            seen
        };
        let ((), seen) = tokio::join!(write, read);
        let expected = [
            ("/none".to_owned(), Vec::new(), false),
            ("/length".to_owned(), b"hello".to_vec(), false),
            ("/large".to_owned(), large.to_vec(), false),
            ("/chunks".to_owned(), large.to_vec(), true),
        ];
        assert!(seen == expected, "{carrier}");
    }
}

#[tokio::test]
async fn head_and_body_leave_in_one_write() {
    let (peer, own) = sockets().await;
    let (_reader, bytes) = of_socket(own);
    let mut writer = Writer::new(bytes);
    let response = ResponseHead { status: 200, ..Default::default() };
    writer.response(&response, &Hop { framing: Framing::Chunked, ..KEEP }).expect("queued");
    assert!(!writer.is_over());
    writer.queue(Bytes::from_static(b"small")).expect("queued");
    writer.queue(Bytes::from(vec![b'x'; 2000])).expect("queued");
    writer.finish(None).await.expect("written");
    let mut read = Vec::with_capacity(10_000);
    peer.readable().await.expect("readable");
    peer.try_read_buf(&mut read).expect("read");
    let text = String::from_utf8_lossy(&read);
    assert!(
        text.starts_with("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nsmall\r\n7d0\r\nx"),
        "{text}"
    );
    assert!(text.ends_with("x\r\n0\r\n\r\n"), "{text}");
}

#[tokio::test]
async fn what_ends_early_is_no_body() {
    for (head, sent) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", "hello"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "5\r\nhello\r\n"),
    ] {
        for (carrier, (bytes, _kept), (_other, mut writer)) in carriers().await {
            let mut reader = reader(bytes);
            writer.write_all(&mut [head.into(), sent.into()]).await.expect(carrier);
            writer.shutdown().expect(carrier);
            reader.response(&mut ResponseHead::default(), Asked::Other).await.expect(carrier);
            assert!(matches!(body(&mut reader).await, Err(H1Error::Truncated)), "{carrier} {head}");
            assert!(!reader.is_over(), "{carrier} {head}");
        }
    }
    // A body that the connection's end ends is whole if it ends, and not if it breaks.
    for (carrier, (bytes, _kept), (other, mut writer)) in carriers().await {
        let mut reader = reader(bytes);
        writer.write_all(&mut ["HTTP/1.1 200 OK\r\n\r\nhello".into()]).await.expect(carrier);
        reader.response(&mut ResponseHead::default(), Asked::Other).await.expect(carrier);
        assert!(matches!(reader.body().await, Ok(Some(Frame::Data(data))) if data == "hello"), "{carrier}");
        writer.reset();
        drop((other, writer));
        assert!(matches!(reader.body().await, Err(H1Error::Io(_))), "{carrier}");
    }
    // No answer at all is another thing than an empty one.
    for (carrier, (bytes, _kept), (_other, mut writer)) in carriers().await {
        writer.shutdown().expect(carrier);
        let answer = reader(bytes).response(&mut ResponseHead::default(), Asked::Other).await;
        assert!(matches!(answer, Err(H1Error::Truncated)), "{carrier}");
    }
}

#[tokio::test]
async fn futures_that_are_dropped_lose_nothing() {
    let (mut peer, own) = sockets().await;
    let (bytes, _kept) = of_socket(own);
    let mut reader = reader(bytes);
    let text = "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";
    let mut rest = text.bytes();
    let mut request = RequestHead::default();
    let (mut read, mut hop) = (Vec::new(), None);
    loop {
        // Each future is polled once and given up.
        if hop.is_none() {
            if let Poll::Ready(taken) = now(pin!(reader.request(&mut request))) {
                hop = taken.expect("sound");
            }
        } else if let Poll::Ready(frame) = now(pin!(reader.body())) {
            match frame.expect("sound") {
                Some(Frame::Data(data)) => read.extend_from_slice(&data),
                _ => break,
            }
        }
        if let Some(byte) = rest.next() {
            peer.write_all(&[byte]).await.expect("sent");
        }
        tokio::task::yield_now().await;
    }
    assert_eq!((&*request.target, &read[..]), ("/x", &b"hello world"[..]));
}

#[tokio::test]
async fn bytes_behind_an_upgrade_wait_until_it_is_granted() {
    for (carrier, (bytes, _kept), (_other, mut writer)) in carriers().await {
        let mut reader = reader(bytes);
        let request =
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n\x01\x02";
        writer.write_all(&mut [request.into()]).await.expect(carrier);
        let mut head = RequestHead::default();
        let hop = reader.request(&mut head).await.expect(carrier).expect(carrier);
        assert!(hop.upgrade, "{carrier}");
        assert_eq!(reader.body().await.expect(carrier), None, "{carrier}: none of it is a body");
        reader.upgrade();
        writer.write_all(&mut ["\x03".into()]).await.expect(carrier);
        writer.shutdown().expect(carrier);
        let (raw, _) = body(&mut reader).await.expect(carrier);
        assert_eq!(raw, b"\x01\x02\x03", "{carrier}");
    }
}

#[tokio::test]
async fn what_is_at_hand_is_told_from_what_is_to_be_waited_for() {
    let (mut peer, own) = sockets().await;
    let (bytes, _kept) = of_socket(own);
    let mut reader = reader(bytes);
    peer.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n")
        .await
        .expect("sent");
    reader.response(&mut ResponseHead::default(), Asked::Other).await.expect("a response");
    for expected in ["a", "b"] {
        let frame = reader.body_now().expect("sound");
        assert_eq!(frame, Poll::Ready(Some(Frame::Data(expected.into()))));
    }
    assert_eq!(reader.body_now().expect("sound"), Poll::Pending);
    peer.write_all(b"0\r\n\r\n").await.expect("sent");
    assert_eq!(reader.body().await.expect("its end"), None);
    assert_eq!(reader.body_now().expect("sound"), Poll::Ready(None));
    assert!(reader.is_quiet());
}

#[tokio::test]
async fn a_connection_whose_write_was_given_up_takes_nothing_more() {
    for (carrier, _one, (_other, writer)) in carriers().await {
        let mut writer = Writer::new(writer);
        writer.request(&head("/"), &Hop { framing: Framing::Chunked, ..KEEP }).expect(carrier);
        let mut given_up = false;
        for _ in 0..10_000 {
            given_up = now(pin!(writer.data(Bytes::from(vec![0; 64 * 1024])))).is_pending();
            if given_up {
                break;
            }
        }
        assert!(given_up, "{carrier}: nothing holds the writer back");
        assert!(writer.data(Bytes::from_static(b"x")).await.is_err(), "{carrier}");
        assert!(!writer.is_over(), "{carrier}");
    }
}
