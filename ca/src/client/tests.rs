use std::convert::Infallible;
use std::sync::Mutex;

use http::Response;
use hyper::body::Incoming;
use hyper::service::service_fn;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::ledger::TokenHost;
use crate::protocol::{self, Call, MAX_BODY};
use crate::service::CaService;
use crate::testing::{DAY, Forger, Place, identity, issue, label, now, token};
use crate::tls::{control_server_config, peer_leaf_facts, single_certificate};

/// A control server in this process, on loopback.
struct Served {
    service: Arc<CaService>,
    address: String,
    last_body: Arc<Mutex<Bytes>>,
}

async fn serve(service: CaService, shown: &Issued) -> Served {
    let service = Arc::new(service);
    let trust = Arc::new(service.bundle().expect("a bundle"));
    let config = control_server_config(single_certificate(shown.certified_key().expect("a key")), trust);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let last_body = Arc::new(Mutex::new(Bytes::new()));
    let (served, seen) = (service.clone(), last_body.clone());
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, service, seen) = (acceptor.clone(), served.clone(), seen.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let chain = stream.get_ref().1.peer_certificates();
                let peer = chain.and_then(|chain| peer_leaf_facts(&chain[0]).ok());
                let answer = service_fn(move |request: Request<Incoming>| {
                    answer(service.clone(), peer.clone(), request, seen.clone())
                });
                let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = http.serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
    Served { service, address, last_body }
}

async fn answer(
    service: Arc<CaService>,
    peer: Option<crate::leaf::LeafFacts>,
    request: Request<Incoming>,
    seen: Arc<Mutex<Bytes>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, MAX_BODY).collect().await.expect("a body").to_bytes();
    *seen.lock().expect("not poisoned") = body.clone();
    let work = move || {
        let call = Call { method: &head.method, path: head.uri.path(), peer: peer.as_ref(), body: &body };
        protocol::answer(&service, call, now())
    };
    let response = tokio::task::spawn_blocking(work).await.expect("answered");
    Ok(response.map(Full::new))
}

async fn control(place: &Place) -> Served {
    let service = place.service();
    let shown = service.control_certificate(now()).expect("a certificate");
    serve(service, &shown).await
}

fn client(served: &Served, node: &Issued, bundle: TrustBundle) -> Client {
    let credential = single_certificate(node.certified_key().expect("a key"));
    Client::new(served.address.clone(), watch::channel(Arc::new(bundle)).1, credential)
}

#[tokio::test]
async fn a_host_joins_and_gets_its_certificates() {
    let place = Place::new();
    let served = control(&place).await;
    let token = token(&served.service, TokenHost::Any, &["orders.shop"], now());
    let key = PrivateKey::generate().expect("a key");
    let joined = join(&served.address, &token, &label("h1"), &key).await.expect("joined");
    assert_eq!(joined.node.identity, identity("ns/nodes/sa/h1"));
    let again = join(&served.address, &token, &label("h1"), &key).await.expect("the same key again");
    assert_eq!(again.node.serial, joined.node.serial);

    let client = client(&served, &joined.node, joined.bundle);
    let wanted = ["ns/shop/sa/orders", "ns/hosts/sa/h1", "ns/shop/sa/payments", "ns/nodes/sa/h1"];
    let answers = client.issue(&wanted.map(identity)).await.expect("answers");
    for (answer, path) in answers.iter().zip(wanted) {
        match answer {
            Ok(issued) => {
                assert_eq!(issued.identity, identity(path));
                let again = Issued::from_pem(&issued.to_pem()).expect("readable");
                assert_eq!(again.serial, issued.serial);
                assert!(!format!("{issued:?}").contains("key"));
            }
            Err(refused) => {
                assert_eq!((refused.code.as_str(), path), ("not_granted", "ns/shop/sa/payments"));
            }
        }
    }
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 3);
}

#[tokio::test]
async fn a_full_batch_fits_the_limits_of_the_wire() {
    let place = Place::new();
    let served = control(&place).await;
    let token = token(&served.service, TokenHost::Any, &["*.*"], now());
    let key = PrivateKey::generate().expect("a key");
    let joined = join(&served.address, &token, &label("h1"), &key).await.expect("joined");
    let client = client(&served, &joined.node, joined.bundle);
    let longest = |n: usize| format!("ns/{}/sa/{n}{}", "n".repeat(63), "s".repeat(61));
    let wanted: Vec<_> = (10..10 + MAX_BATCH).map(|n| identity(&longest(n))).collect();
    let answers = client.issue(&wanted).await.expect("answers");
    assert!(answers.len() == MAX_BATCH && answers.iter().all(Result::is_ok));
    let sent = served.last_body.lock().expect("not poisoned").len();
    assert!(sent <= MAX_BODY, "{sent}");
    assert!(matches!(client.issue(&[]).await, Err(ClientError::BatchSize(0))));
}

#[tokio::test]
async fn refusals_arrive_with_code_and_advice() {
    let place = Place::new();
    let served = control(&place).await;
    let token = token(&served.service, TokenHost::Any, &[], now());
    let key = PrivateKey::generate().expect("a key");
    let joined = join(&served.address, &token, &label("h1"), &key).await.expect("joined");
    let other = PrivateKey::generate().expect("a key");
    let refused = join(&served.address, &token, &label("h2"), &other).await.expect_err("used");
    assert!(matches!(&refused, ClientError::Refused(refused) if refused.code == "token_used"), "{refused}");

    // A workload's certificate is no node credential, and no certificate is none at all.
    let authority = place.authority();
    let web = issue(&authority, &identity("ns/shop/sa/web"), now());
    let asked = client(&served, &web, joined.bundle.clone()).issue(&[identity("ns/shop/sa/web")]).await;
    assert!(matches!(asked, Err(ClientError::Refused(refused)) if refused.code == "not_a_node"));
    let unknown = issue(&authority, &identity("ns/nodes/sa/h9"), now());
    let asked = client(&served, &unknown, joined.bundle).issue(&[identity("ns/hosts/sa/h9")]).await;
    assert!(matches!(asked, Err(ClientError::Refused(refused)) if refused.code == "host_unknown"));
}

#[tokio::test]
async fn nobody_else_is_taken_for_the_control_server() {
    let place = Place::new();
    let authority = place.authority();
    let mut member = issue(&authority, &identity("ns/shop/sa/orders"), now());
    member.chain.push(authority.root().clone());
    let served = serve(place.service(), &member).await;
    let token = token(&served.service, TokenHost::Any, &[], now());
    let key = PrivateKey::generate().expect("a key");
    let refused = join(&served.address, &token, &label("h1"), &key).await.expect_err("refused");
    assert!(matches!(refused, ClientError::Handshake { .. }), "{refused}");
    let node = issue(&authority, &identity("ns/nodes/sa/h1"), now());
    let trust = authority.bundle().expect("a bundle");
    let refused =
        client(&served, &node, trust).issue(&[identity("ns/hosts/sa/h1")]).await.expect_err("refused");
    assert!(matches!(refused, ClientError::Handshake { .. }), "{refused}");
    assert!(served.last_body.lock().expect("not poisoned").is_empty(), "the token's secret was not sent");
}

#[tokio::test]
async fn unreachable_servers_are_named_with_advice() {
    let token = Token::mint(crate::tls::Fingerprint::from_bytes([0; 32]));
    let key = PrivateKey::generate().expect("a key");
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let refused = join(&closed.to_string(), &token, &label("h1"), &key).await.expect_err("nobody there");
    let text = refused.to_string();
    assert!(
        text.contains("is `baremesh control` running there") && text.contains(&closed.to_string()),
        "{text}"
    );
    let refused = join("not an address", &token, &label("h1"), &key).await.expect_err("no address");
    assert!(matches!(refused, ClientError::Address { .. }), "{refused}");
}

#[test]
fn takes_a_certificate_only_if_it_is_what_was_asked_for() {
    let place = Place::new();
    let authority = place.authority();
    let trust = crate::testing::bundle(&authority);
    let (key, wanted) = (PrivateKey::generate().expect("a key"), identity("ns/shop/sa/orders"));
    let sign = |key: &PrivateKey, identity, at| {
        authority.sign(&key.public(), identity, DAY, at).expect("signed").chain
    };
    assert!(accept(&trust, &wanted, sign(&key, &wanted, now()), &key).is_ok());
    let another = PrivateKey::generate().expect("a key");
    let forged = Forger::new("root", rcgen::BasicConstraints::Unconstrained);
    for (chain, reason) in [
        (sign(&another, &wanted, now()), "another key"),
        (sign(&key, &identity("ns/shop/sa/web"), now()), "not for"),
        (sign(&key, &wanted, now() - 2 * DAY), "expired"),
        (forged.leaf(&["spiffe://mesh.test/ns/shop/sa/orders"], |_| {}).chain, "another key"),
        (Vec::new(), "cannot be read"),
    ] {
        let refused = accept(&trust, &wanted, chain, &key).expect_err("refused").to_string();
        assert!(refused.contains(reason), "{refused}");
    }
}

#[test]
fn adds_the_port_where_none_is_written() {
    for (written, meant) in [
        ("control", "control:15012"),
        ("control:1", "control:1"),
        ("10.0.0.1", "10.0.0.1:15012"),
        ("fd00::1", "[fd00::1]:15012"),
        ("[fd00::1]:1", "[fd00::1]:1"),
        ("[fd00::1]", "[fd00::1]:15012"),
    ] {
        assert_eq!(with_port(written), meant);
    }
}

/// What opens the connection may mark it, so that it is nobody else's to carry.
#[tokio::test]
async fn connections_are_opened_as_the_caller_says() {
    let refused: Arc<Dial> = Arc::new(|_| Box::pin(async { Err(io::Error::other("not by me")) }));
    let place = Place::new();
    let service = place.service();
    let bundle = Arc::new(service.bundle().expect("a bundle"));
    let node = issue(&place.authority(), &identity("ns/nodes/sa/h1"), now());
    let credential = single_certificate(node.certified_key().expect("a key"));
    let client = Client::new("127.0.0.1:1".to_owned(), watch::channel(bundle).1, credential).dialing(refused);
    let error = client.issue(&[identity("ns/hosts/sa/h1")]).await.expect_err("refused").to_string();
    assert!(error.contains("not by me") && error.contains("127.0.0.1:1"), "{error}");
}
