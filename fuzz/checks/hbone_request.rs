//! What a peer with a certificate of the mesh sends through its tunnel. The first byte says which: even bytes make the
//! rest a request's method and, after a line's end, its target; odd ones frames of HTTP/2, after a client's preface, sent
//! to a server with the settings that the agent uses.

use std::sync::LazyLock;
use std::task::{Context, Waker};

use baremesh_agent::proxy::hbone::{MAX_STREAMS, Target, read_request};
use baremesh_agent::proxy::inbound;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri};
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::runtime::Runtime;

pub fn check(data: &[u8]) {
    match data.split_first() {
        Some((kind, rest)) if kind % 2 == 0 => head(rest),
        Some((_, rest)) => RUNTIME.block_on(frames(rest)),
        None => {}
    }
}

fn head(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (method, target) = (&data[..end], data.get(end + 1..).unwrap_or_default());
    let method = if method.is_empty() { Ok(Method::CONNECT) } else { Method::from_bytes(method) };
    let (Ok(method), Ok(target)) = (method, Uri::try_from(target)) else { return };
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = target;
    judge(&request);
}

/// What is read is a target without ambiguity: written and read again, it is the same.
fn judge<B>(request: &Request<B>) -> StatusCode {
    let Ok(target) = read_request(request) else { return StatusCode::BAD_REQUEST };
    assert_eq!(request.method(), Method::CONNECT, "another method passes");
    assert!(request.uri().scheme().is_none(), "a scheme passes");
    match &target {
        Target::Address(address) => assert_ne!(address.port(), 0, "port 0 passes"),
        Target::Host(host, port) => {
            assert_ne!(*port, 0, "port 0 passes");
            assert!(!host.is_empty() && !host.contains('@'), "{host:?} passes");
            assert_eq!(*host, host.to_ascii_lowercase(), "two spellings of one host");
        }
    }
    let written = target.to_string().parse().expect("a target that cannot be written");
    let mut again = Request::new(());
    *again.method_mut() = Method::CONNECT;
    *again.uri_mut() = written;
    assert_eq!(read_request(&again).as_ref(), Ok(&target), "another target when written");
    StatusCode::OK
}

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime"));

/// More than an input and all that a server has to say to it.
const BUFFER: usize = 1024 * 1024;
/// So that a stream can be opened without finding the preface and the settings first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// The connection ends when the peer has no more to say, however it was said.
async fn frames(data: &[u8]) {
    let (mut client, server) = tokio::io::duplex(BUFFER);
    client.write_all(PREFACE).await.expect("the buffer holds it");
    client.write_all(data).await.expect("the buffer holds it");
    client.shutdown().await.expect("the server is there");
    let drained = async move { tokio::io::copy(&mut client, &mut tokio::io::sink()).await };
    let (_, _) = tokio::join!(serve(server), drained);
}

async fn serve(server: DuplexStream) {
    let Ok(mut connection) = inbound::builder().handshake::<_, Bytes>(server).await else { return };
    let mut context = Context::from_waker(Waker::noop());
    let mut open = Vec::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let mut response = Response::new(());
        *response.status_mut() = judge(&request);
        // A stream that is refused is over; one that is taken stays open until the tunnel ends.
        let end = response.status() != StatusCode::OK;
        open.extend(respond.send_response(response, end).ok().map(|send| (request.into_body(), send)));
        open.retain_mut(|(_, send)| send.poll_reset(&mut context).is_pending());
        assert!(open.len() <= MAX_STREAMS as usize, "more streams than are allowed");
    }
}
