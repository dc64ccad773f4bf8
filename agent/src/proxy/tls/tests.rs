//! The stream between two of ours, and between one of ours and a rustls connection that does its own records.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use baremesh_ca::authority::Authority;
use baremesh_ca::local::LocalIssuer;
use baremesh_ca::tls::describe_io;
use baremesh_model::grant::Grant;
use baremesh_model::identity::Identity;
use baremesh_model::name::{Label, TrustDomain};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::credentials::{Credential, Credentials, Listening};

/// A mesh of two identities, `web` and `orders`.
pub(in crate::proxy) fn credentials() -> Arc<Credentials> {
    let directory = tempfile::tempdir().expect("a directory");
    let domain = TrustDomain::new("td").expect("a domain");
    let authority =
        Authority::create(directory.path().join("ca"), &domain, SystemTime::now()).expect("an authority");
    let bundle = Arc::new(authority.bundle().expect("a bundle"));
    let grants = vec![Grant::parse("*.*").expect("a grant")];
    let host = Label::new("h1").expect("a label");
    let issuer = LocalIssuer::new(authority, host, grants, Duration::from_secs(3600));
    let issued = issuer.issue(&[identity("web"), identity("orders")], SystemTime::now());
    let held = issued
        .iter()
        .map(|issued| Arc::new(Credential::new(issued.as_ref().expect("issued")).expect("a credential")));
    Arc::new(Credentials::new(bundle, held))
}

pub(in crate::proxy) fn identity(account: &str) -> Identity {
    Identity::parse(&format!("spiffe://td/ns/default/sa/{account}")).expect("an identity")
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let caller = TcpStream::connect(listener.local_addr().expect("an address"));
    let (caller, accepted) = tokio::join!(caller, listener.accept());
    (caller.expect("connected"), accepted.expect("accepted").0)
}

fn name() -> ServerName<'static> {
    ServerName::try_from(identity("orders").server_name()).expect("a name")
}

fn caller(credentials: &Credentials, callee: &str) -> rustls::ClientConfig {
    let web = credentials.of(&identity("web"), SystemTime::now()).expect("a certificate");
    credentials.caller(web, &identity(callee))
}

/// Sends what the peer sends back, and checks it; sizes around those of records and buffers.
async fn exchange(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), seed: u8) {
    for size in [1, 100, 16 * 1024 - 1, 16 * 1024, 16 * 1024 + 1, 70_000, 300_000] {
        let data: Vec<u8> = (0..size).map(|at| (at % 251) as u8 ^ seed).collect();
        stream.write_all(&data).await.expect("written");
        stream.flush().await.expect("flushed");
        let mut back = vec![0; size];
        stream.read_exact(&mut back).await.expect("read");
        assert_eq!(back, data, "{size} bytes");
    }
}

async fn echo(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin)) {
    let mut buffer = vec![0; 10_000];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => {
                stream.write_all(&buffer[..read]).await.expect("written");
                stream.flush().await.expect("flushed");
            }
        }
    }
}

#[tokio::test]
async fn carries_data_both_ways_through_key_updates() {
    let credentials = credentials();
    let (client, server) = sockets().await;
    let listener = credentials.listener(&Listening::default());
    let serving = tokio::spawn(async move {
        let (mut stream, session) = accept(&listener, server).await.expect("accepted");
        assert_eq!(session.server_name.as_deref(), Some("orders.default.td"));
        echo(&mut stream).await;
    });
    let (mut stream, _) = connect(caller(&credentials, "orders"), name(), client).await.expect("connected");
    exchange(&mut stream, 1).await;
    for seed in 2..5 {
        stream.replace_sealer_for_test();
        exchange(&mut stream, seed).await;
    }
    stream.shutdown().await.expect("closed");
    let mut rest = Vec::new();
    // The other side ends at our word, without one of its own.
    assert!(stream.read_to_end(&mut rest).await.is_err() && rest.is_empty());
    serving.await.expect("served");
}

#[tokio::test]
async fn speaks_with_rustls_as_caller_and_as_callee() {
    let credentials = credentials();
    let (client, server) = sockets().await;
    let acceptor = tokio_rustls::TlsAcceptor::from(credentials.listener(&Listening::default()));
    tokio::spawn(async move { echo(&mut acceptor.accept(server).await.expect("accepted")).await });
    let (mut stream, session) =
        connect(caller(&credentials, "orders"), name(), client).await.expect("connected");
    assert_eq!(baremesh_ca::tls::peer_identity(&session.peer).expect("an identity"), identity("orders"));
    exchange(&mut stream, 7).await;

    let (client, server) = sockets().await;
    let listener = credentials.listener(&Listening::default());
    tokio::spawn(async move { echo(&mut accept(&listener, server).await.expect("accepted").0).await });
    let connector = tokio_rustls::TlsConnector::from(Arc::new(caller(&credentials, "orders")));
    let mut stream = connector.connect(name(), client).await.expect("connected");
    exchange(&mut stream, 9).await;
    stream.shutdown().await.expect("closed");
}

#[tokio::test]
async fn an_end_without_a_word_is_an_error_and_one_with_a_word_is_not() {
    let credentials = credentials();
    for orderly in [true, false] {
        let (client, server) = sockets().await;
        let listener = credentials.listener(&Listening::default());
        let serving = tokio::spawn(async move { accept(&listener, server).await.expect("accepted").0 });
        let (mut ours, _) = connect(caller(&credentials, "orders"), name(), client).await.expect("connected");
        let mut theirs = serving.await.expect("served");
        ours.write_all(b"last").await.expect("written");
        ours.flush().await.expect("flushed");
        if orderly {
            ours.shutdown().await.expect("closed");
        }
        drop(ours);
        let mut read = Vec::new();
        assert_eq!(theirs.read_to_end(&mut read).await.is_ok(), orderly);
        assert_eq!(read, b"last");
    }
}

#[tokio::test]
async fn a_peer_of_another_identity_is_refused_and_told_why() {
    let credentials = credentials();
    let (client, server) = sockets().await;
    let listener = credentials.listener(&Listening::default());
    let serving = tokio::spawn(async move { accept(&listener, server).await.err().expect("refused") });
    // The name leads to `orders`, and the caller takes `web` alone.
    let refused = connect(caller(&credentials, "web"), name(), client).await.err().expect("refused");
    assert!(describe_io(&refused).contains("orders"), "{}", describe_io(&refused));
    let told = describe_io(&serving.await.expect("served"));
    assert!(!told.is_empty() && !told.contains("closed the connection"), "{told}");
}

#[tokio::test]
async fn garbage_is_refused_without_a_wait() {
    let credentials = credentials();
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[22, 3, 1, 0xff, 0xff, 0], &[0; 64], &[22, 3, 3, 0, 1, 0]]
    {
        let (mut client, server) = sockets().await;
        let listener = credentials.listener(&Listening::default());
        let serving = tokio::spawn(async move { accept(&listener, server).await.is_err() });
        client.write_all(garbage).await.expect("written");
        client.shutdown().await.expect("closed");
        assert!(serving.await.expect("served"), "{garbage:?}");
    }
}
