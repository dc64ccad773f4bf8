//! A pool against peers that do as a test wants.

use http::Response;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;
use crate::credentials::Listening;
use crate::proxy::tls::tests::{credentials, identity};
use crate::proxy::tls::{TlsStream, accept};

/// No settings, and GOAWAY before the first stream, without an error.
const GOES: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// As an agent whose last moment has come: the stream is not taken up.
async fn goes(mut tls: TlsStream) {
    tls.write_all(GOES).await.expect("written");
    tls.flush().await.expect("flushed");
    // Until the other side has gone as well.
    while tls.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {}
}

/// Answers every stream with 200.
async fn serves(tls: TlsStream) {
    let mut connection = h2::server::handshake(tls).await.expect("a handshake");
    let mut streams = Vec::new();
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        streams.push(respond.send_response(Response::new(()), false).expect("sent"));
    }
}

/// Opens a stream in a new pool. Of the tunnels that are made for it the peer ends so many before it takes the stream up.
async fn opened(ending: usize) -> Result<(), ProxyError> {
    let credentials = credentials();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let agent = Agent::direct(listener.local_addr().expect("bound"));
    let listening = credentials.listener(&Listening::default());
    let peer: JoinHandle<()> = tokio::spawn(async move {
        for number in 0.. {
            let (socket, _) = listener.accept().await.expect("connected");
            let (tls, _) = accept(&listening, socket).await.expect("a handshake");
            match number < ending {
                true => drop(tokio::spawn(goes(tls))),
                false => drop(tokio::spawn(serves(tls))),
            }
        }
    });
    let trust = watch::Sender::new(Arc::clone(credentials.bundle()));
    let pool = Pool::new(Mark(None), Duration::from_secs(60), trust.subscribe());
    let source = credentials.of(&identity("web"), SystemTime::now()).expect("a certificate");
    let destination = &identity("orders");
    let asked = Peer { credentials: &credentials, source, destination, agent: &agent };
    let opened = pool.open(asked, agent.address, None).await;
    peer.abort();
    opened.map(drop)
}

#[tokio::test]
async fn a_tunnel_that_ends_as_it_is_made_has_the_stream_go_through_the_next_one() {
    opened(0).await.expect("taken up");
    opened(1).await.expect("taken up by the next");
    // A peer that is always about to go is none.
    let refused = opened(usize::MAX).await.expect_err("never taken up");
    assert!(matches!(refused, ProxyError::Tunnel { .. }), "{refused}");
}
