//! Both carriers do the same.

use std::future::Future;
use std::net::Ipv4Addr;
use std::pin::pin;

use http::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// One end of a connection.
pub type End = (ByteReader, ByteWriter);

/// Two sockets that are connected.
pub async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let connecting = TcpStream::connect(listener.local_addr().expect("its address"));
    let (connected, accepted) = tokio::join!(connecting, listener.accept());
    (connected.expect("connected"), accepted.expect("accepted").0)
}

async fn socket_ends() -> (End, End) {
    let (one, other) = sockets().await;
    (of_socket(one), of_socket(other))
}

/// Both ends of a stream in a tunnel, whose connection is driven beside.
async fn tunnel_ends() -> (End, End) {
    let (one, other) = tokio::io::duplex(256 * 1024);
    let serve = async {
        let mut connection = h2::server::handshake(other).await.expect("a server");
        let (request, mut respond) = connection.accept().await.expect("a stream").expect("a request");
        let send = respond.send_response(Response::new(()), false).expect("answered");
        tokio::spawn(async move { while connection.accept().await.is_some() {} });
        of_tunnel(TunnelStream { send, receive: request.into_body() })
    };
    let call = async {
        let (mut sender, connection) = h2::client::handshake(one).await.expect("a client");
        tokio::spawn(connection);
        let (response, send) = sender.send_request(Request::new(()), false).expect("asked");
        let receive = response.await.expect("an answer").into_body();
        (of_tunnel(TunnelStream { send, receive }), sender)
    };
    let ((called, sender), served) = tokio::join!(call, serve);
    // The connection lives as long as one that could ask for more streams.
    tokio::spawn(async move {
        let _sender = sender;
        std::future::pending::<()>().await;
    });
    (called, served)
}

/// Connected ends over each carrier.
pub async fn carriers() -> [(&'static str, End, End); 2] {
    let (one, other) = socket_ends().await;
    let (called, served) = tunnel_ends().await;
    [("socket", one, other), ("tunnel", called, served)]
}

/// Polls once.
pub fn now<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Reads until nothing more comes.
pub async fn all(reader: &mut ByteReader) -> io::Result<Vec<u8>> {
    let mut buffer = BytesMut::new();
    while reader.read_some(&mut buffer, 1000).await? > 0 {}
    Ok(buffer.to_vec())
}

fn text(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[tokio::test]
async fn what_is_written_arrives_and_then_the_end() {
    for (carrier, (mut reader, _), (_, mut writer)) in carriers().await {
        let long = Bytes::from(vec![b'x'; 20_000]);
        let mut parts: Vec<_> = (0..40).map(|_| text("part ")).collect();
        parts.push(long.clone());
        writer.write_all(&mut parts).await.expect(carrier);
        writer.write_all(&mut [text("a"), text("b")]).await.expect(carrier);
        writer.shutdown().expect(carrier);
        let expected = [b"part ".repeat(40), long.to_vec(), b"ab".to_vec()].concat();
        assert_eq!(all(&mut reader).await.expect(carrier), expected, "{carrier}");
        assert_eq!(all(&mut reader).await.expect(carrier), b"", "{carrier}: it ends again");
        let rest = reader.read_bytes(&mut BytesMut::new(), 10).await.expect(carrier);
        assert!(rest.is_empty(), "{carrier}");
    }
}

#[tokio::test]
async fn reads_take_no_more_than_they_ask_for() {
    for (carrier, (mut reader, _), (_, mut writer)) in carriers().await {
        writer.write_all(&mut [text("hello world")]).await.expect(carrier);
        let mut buffer = BytesMut::from("> ");
        assert_eq!(reader.read_some(&mut buffer, 5).await.expect(carrier), 5, "{carrier}");
        assert_eq!(&buffer[..], b"> hello", "{carrier}");
        let rest = reader.read_bytes(&mut BytesMut::new(), 3).await.expect(carrier);
        assert_eq!(&rest[..], b" wo", "{carrier}");
    }
}

#[tokio::test]
async fn a_break_is_no_end() {
    for (carrier, (mut reader, _kept), (other, mut writer)) in carriers().await {
        writer.write_all(&mut [text("half of")]).await.expect(carrier);
        let mut buffer = BytesMut::new();
        reader.read_some(&mut buffer, 100).await.expect(carrier);
        writer.reset();
        drop((other, writer));
        assert!(all(&mut reader).await.is_err(), "{carrier}");
    }
    // Nor is one that nobody said anything about, such as that of a task that was given up.
    let ((mut reader, _kept), other) = socket_ends().await;
    drop(other);
    assert!(all(&mut reader).await.is_err());
    let ((mut reader, _kept), (other, writer)) = socket_ends().await;
    writer.settle();
    drop((other, writer));
    assert_eq!(all(&mut reader).await.expect("an end"), b"");
}

#[tokio::test]
async fn a_connection_is_quiet_until_something_comes() {
    for (carrier, (mut reader, _kept), (_other, mut writer)) in carriers().await {
        let mut buffer = BytesMut::new();
        assert!(reader.is_quiet(&mut buffer), "{carrier}");
        writer.write_all(&mut [text("HTTP/1.1 408")]).await.expect(carrier);
        while reader.is_quiet(&mut buffer) {
            tokio::task::yield_now().await;
        }
        assert_eq!(&buffer[..], b"HTTP/1.1 408", "{carrier}");
        assert!(!reader.is_quiet(&mut buffer), "{carrier}: what came is still there");
    }
    for (carrier, (mut reader, _kept), (_other, mut writer)) in carriers().await {
        writer.shutdown().expect(carrier);
        while reader.is_quiet(&mut BytesMut::new()) {
            tokio::task::yield_now().await;
        }
        assert!(!reader.is_quiet(&mut BytesMut::new()), "{carrier}: its end is not forgotten");
    }
}

#[tokio::test]
async fn a_peer_that_goes_is_noticed_and_nothing_of_it_is_lost() {
    for (carrier, (mut reader, _kept), (_other, mut writer)) in carriers().await {
        let mut buffer = BytesMut::from("GET ");
        writer.write_all(&mut [text("/ HTTP/1.1")]).await.expect(carrier);
        {
            let mut closed = pin!(reader.closed(&mut buffer));
            assert!(now(closed.as_mut()).is_pending(), "{carrier}");
            writer.shutdown().expect(carrier);
            closed.await.expect(carrier);
        }
        assert_eq!(&buffer[..], b"GET / HTTP/1.1", "{carrier}");
    }
    for (carrier, (mut reader, _kept), (other, mut writer)) in carriers().await {
        writer.reset();
        drop((other, writer));
        assert!(reader.closed(&mut BytesMut::new()).await.is_err(), "{carrier}");
    }
}

#[tokio::test]
async fn the_end_of_a_socket_is_noticed_behind_more_than_is_read_ahead() {
    let ((mut reader, _kept), (_other, mut writer)) = {
        let (one, other) = sockets().await;
        (of_socket(one), of_socket(other))
    };
    let mut buffer = BytesMut::new();
    writer.write_all(&mut [Bytes::from(vec![7; 3 * READ_AHEAD])]).await.expect("taken");
    let waited = tokio::time::timeout(Duration::from_millis(50), reader.closed(&mut buffer)).await;
    assert!(waited.is_err() && buffer.len() == READ_AHEAD, "it is there: {} bytes", buffer.len());
    writer.shutdown().expect("it stands");
    reader.closed(&mut buffer).await.expect("an end in good order");
    let rest = all(&mut reader).await.expect("it stands");
    assert_eq!(buffer.len() + rest.len(), 3 * READ_AHEAD, "nothing is lost");
}

#[tokio::test]
async fn a_peer_that_sends_on_is_not_read_without_bound() {
    for (carrier, (mut reader, _kept), (_other, mut writer)) in carriers().await {
        let mut buffer = BytesMut::new();
        let mut sent = 0;
        // As much as there is room for on the way, and then no more.
        let mut refused = 0;
        while refused < 1000 {
            assert!(sent < 64 * 1024 * 1024, "{carrier}: nothing holds the writer back");
            let mut parts = [Bytes::from(vec![0; 32 * 1024])];
            let mut write = pin!(writer.write_all(&mut parts));
            while refused < 1000 {
                assert!(now(pin!(reader.closed(&mut buffer))).is_pending(), "{carrier}");
                match now(write.as_mut()) {
                    Poll::Ready(written) => {
                        written.expect(carrier);
                        sent += 32 * 1024;
                        break;
                    }
                    Poll::Pending => refused += 1,
                }
                tokio::task::yield_now().await;
            }
        }
        assert!(buffer.len() <= READ_AHEAD, "{carrier}: {}", buffer.len());
    }
}

#[tokio::test]
async fn who_waits_holds_no_buffer() {
    let ((mut reader, _kept), (_other, mut writer)) = socket_ends().await;
    let mut buffer = BytesMut::with_capacity(4096);
    assert!(now(pin!(reader.read_some(&mut buffer, 4096))).is_pending());
    assert_eq!(buffer.capacity(), 0);
    writer.write_all(&mut [text("x")]).await.expect("written");
    assert_eq!(reader.read_some(&mut buffer, 4096).await.expect("read"), 1);
    assert!(now(pin!(reader.read_some(&mut buffer, 4096))).is_pending());
    assert_eq!(&buffer[..], b"x", "what is there stays");
}

#[tokio::test]
async fn an_answer_reaches_a_peer_that_was_still_sending() {
    let (mut peer, own) = sockets().await;
    let (mut reader, mut writer) = of_socket(own);
    peer.write_all(&[0; 100_000]).await.expect("room for it");
    writer.write_all(&mut [text("HTTP/1.1 413")]).await.expect("written");
    let closing = async move { linger(&mut reader, &mut writer).await };
    let reading = async {
        let mut answer = Vec::new();
        peer.read_to_end(&mut answer).await.expect("an end, and no reset");
        drop(peer);
        answer
    };
    let ((), answer) = tokio::join!(closing, reading);
    assert_eq!(answer, b"HTTP/1.1 413");
}

#[tokio::test]
async fn joined_halves_carry_another_protocol() {
    for (carrier, (reader, writer), (other_reader, other_writer)) in carriers().await {
        let client = Joined::new(reader, writer, BytesMut::new());
        let server = Joined::new(other_reader, other_writer, BytesMut::new());
        let serve = async {
            let mut connection = h2::server::handshake(server).await.expect(carrier);
            let (request, mut respond) = connection.accept().await.expect(carrier).expect(carrier);
            let mut send = respond.send_response(Response::new(()), false).expect(carrier);
            tokio::spawn(async move { while connection.accept().await.is_some() {} });
            let mut body = request.into_body();
            while let Some(data) = body.data().await {
                let data = data.expect(carrier);
                body.flow_control().release_capacity(data.len()).expect(carrier);
                relay::send_all(&mut send, data).await.expect(carrier);
            }
            send.send_data(Bytes::new(), true).expect(carrier);
        };
        let call = async {
            let (mut sender, connection) = h2::client::handshake(client).await.expect(carrier);
            tokio::spawn(connection);
            let (response, mut send) = sender.send_request(Request::new(()), false).expect(carrier);
            let sending = async {
                for _ in 0..20 {
                    relay::send_all(&mut send, Bytes::from(vec![b'x'; 50_000])).await.expect(carrier);
                }
                send.send_data(Bytes::new(), true).expect(carrier);
            };
            let receiving = async {
                let mut body = response.await.expect(carrier).into_body();
                let mut received = 0;
                while let Some(data) = body.data().await {
                    let data = data.expect(carrier);
                    body.flow_control().release_capacity(data.len()).expect(carrier);
                    received += data.len();
                }
                received
            };
            tokio::join!(sending, receiving).1
        };
        let (received, ()) = tokio::join!(call, serve);
        assert_eq!(received, 1_000_000, "{carrier}");
    }
}

#[tokio::test]
async fn joined_halves_start_with_what_was_read() {
    for (carrier, (reader, writer), (_other, mut peer)) in carriers().await {
        peer.write_all(&mut [text(" world")]).await.expect(carrier);
        peer.shutdown().expect(carrier);
        let mut joined = Joined::new(reader, writer, BytesMut::from("hello"));
        let mut all = String::new();
        joined.read_to_string(&mut all).await.expect(carrier);
        assert_eq!(all, "hello world", "{carrier}");
    }
}
