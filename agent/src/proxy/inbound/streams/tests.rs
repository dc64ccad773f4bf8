//! Tunnels over a pipe in memory, with the clock in the test's hand.

use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};

use h2::Reason;
use h2::client::{ResponseFuture, SendRequest};
use http::{Method, Response};
use tokio::io::{AsyncWriteExt as _, DuplexStream};
use tokio::task::JoinHandle;

use super::*;
use crate::proxy::flood::{Starts, Watched};
use crate::proxy::inbound::builder;

/// What a tunnel's peer sees of it.
struct Peer {
    sender: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
    served: JoinHandle<Result<(), End>>,
    /// Streams that were taken so far.
    taken: Arc<AtomicUsize>,
    phase: watch::Sender<Phase>,
}

/// Answers every stream with 200 and keeps it until the peer resets it.
async fn hold(taken: Arc<AtomicUsize>, mut respond: SendResponse<Bytes>) -> Ended {
    let Ok(mut stream) = respond.send_response(Response::new(()), false) else { return Ended::GivenUp };
    taken.fetch_add(1, Ordering::Relaxed);
    let _ = poll_fn(|cx| stream.poll_reset(cx)).await;
    Ended::GivenUp
}

/// Serves a tunnel that is held open until `expiry`.
fn served(
    far: DuplexStream,
    expiry: Duration,
    taken: &Arc<AtomicUsize>,
    phase: watch::Receiver<Phase>,
) -> JoinHandle<Result<(), End>> {
    let life = Life { expiry: Instant::now() + expiry, phase, revoked: std::future::pending() };
    let counter = Arc::clone(taken);
    tokio::spawn(async move {
        let (far, alarm) = Watched::new(far, Starts::Peer);
        let connection = builder().handshake(far).await.expect("a handshake");
        serve((connection, alarm), life, move |_, respond| hold(Arc::clone(&counter), respond)).await
    })
}

impl Peer {
    async fn new(expiry: Duration) -> Self {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let phase = watch::Sender::new(Phase::Running);
        let taken = Arc::default();
        let served = served(far, expiry, &taken, phase.subscribe());
        let (sender, connection) = h2::client::handshake(near).await.expect("a handshake");
        Self { sender, connection: tokio::spawn(connection), served, taken, phase }
    }

    /// Opens a stream, and waits for its 200.
    async fn open(&mut self) -> Result<(ResponseFuture, h2::SendStream<Bytes>), h2::Error> {
        let request = Request::builder().method(Method::CONNECT).uri("10.0.0.1:80").body(());
        let mut sender = self.sender.clone().ready().await?;
        let (mut response, stream) = sender.send_request(request.expect("a request"), false)?;
        let answer = (&mut response).await?;
        assert_eq!(answer.status(), 200);
        Ok((response, stream))
    }

    /// Opens streams and resets each once it was answered, until the tunnel ends; says how many those were.
    async fn flood(&mut self, most: usize) -> usize {
        for opened in 0..most {
            let Ok((_, mut stream)) = self.open().await else { return opened };
            stream.send_reset(Reason::CANCEL);
        }
        most
    }
}

#[tokio::test(start_paused = true)]
async fn who_opens_and_resets_without_end_loses_its_tunnel() {
    let mut peer = Peer::new(Duration::from_secs(86_400)).await;
    let opened = peer.flood(10_000).await;
    assert!((MAX_GIVEN_UP_IN_TUNNEL as usize..1_000).contains(&opened), "{opened}");
    assert_eq!(peer.served.await.expect("no panic"), Err(End::Flooded(Flooded::GIVEN_UP)));
    let told = peer.connection.await.expect("no panic").expect_err("an error").reason();
    assert_eq!(told, Some(Reason::ENHANCE_YOUR_CALM));
}

#[tokio::test(start_paused = true)]
async fn streams_that_are_given_up_in_one_burst_are_counted_like_those_of_many() {
    let head = |length: usize, kind: u8, flags: u8, stream: u32| {
        let length = u32::try_from(length).expect("short").to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat()
    };
    // `:method: CONNECT` and `:authority: a:80`, as literals.
    let request = b"\x02\x07CONNECT\x01\x04a:80";
    let given_up = |stream| {
        let opened = [head(request.len(), 1, 4, stream), request.to_vec()].concat();
        [opened, head(4, 3, 0, stream), 8_u32.to_be_bytes().to_vec()].concat()
    };
    for (count, lives) in [(3 * hbone::MAX_STREAMS, true), (1_000, false)] {
        let (mut near, far) = tokio::io::duplex(256 * 1024);
        let phase = watch::Sender::new(Phase::Running);
        let served = served(far, Duration::from_secs(86_400), &Arc::default(), phase.subscribe());
        let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), head(0, 4, 0, 0)].concat();
        near.write_all(&preface).await.expect("there is room");
        let burst: Vec<u8> = (0..count).flat_map(|number| given_up(2 * number + 1)).collect();
        near.write_all(&burst).await.expect("there is room");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(!served.is_finished(), lives, "{count}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_given_up_now_and_then_is_forgiven() {
    let mut peer = Peer::new(Duration::from_secs(86_400)).await;
    for _ in 0..50 {
        assert_eq!(peer.flood(100).await, 100);
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    assert_eq!(peer.taken.load(Ordering::Relaxed), 5_000);
    assert!(!peer.served.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_nobody_uses_is_closed_and_one_in_use_is_not() {
    let mut peer = Peer::new(Duration::from_secs(86_400)).await;
    let held = peer.open().await.expect("a stream");
    tokio::time::sleep(IDLE * 3).await;
    assert!(!peer.served.is_finished(), "a stream is open, though nothing moves on it");
    drop(held);
    tokio::time::sleep(IDLE / 2).await;
    assert!(!peer.served.is_finished(), "it was used a moment ago");
    tokio::time::sleep(IDLE).await;
    assert!(peer.served.is_finished());
    assert_eq!(peer.served.await.expect("no panic"), Ok(()));
    peer.connection.await.expect("no panic").expect("told in good order");
}

#[tokio::test(start_paused = true)]
async fn the_drain_and_a_certificates_end_leave_open_streams_alone() {
    for (expiry, phase) in [(10, Phase::Running), (86_400, Phase::Draining)] {
        let mut peer = Peer::new(Duration::from_secs(expiry)).await;
        let (response, mut held) = peer.open().await.expect("a stream");
        peer.phase.send_replace(phase);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!peer.served.is_finished() && peer.open().await.is_err(), "{phase:?}: no new ones");
        held.send_reset(Reason::CANCEL);
        drop((response, held));
        assert_eq!(peer.served.await.expect("no panic"), Ok(()), "{phase:?}");
    }
}
