//! What is kept, by whom, and for whom it is given up.

use std::convert::Infallible;
use std::net::Ipv4Addr;

use bytes::{Bytes, BytesMut};
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::TcpStream;

use super::*;
use crate::proxy::http::bytes::tests::sockets;
use crate::proxy::http::bytes::{Joined, of_socket};
use crate::snapshot::Snapshot;
use crate::snapshot::endpoint::Agent;
use crate::snapshot::tests::{host, mesh};

const HOUR: Duration = Duration::from_secs(3600);

fn key() -> UpstreamKey {
    let identity = |name: &str| Identity::parse(&format!("spiffe://mesh/ns/a/sa/{name}")).expect("one");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
    let via = Via::Socket(None);
    UpstreamKey { source: identity("web"), destination: identity("orders"), address, via }
}

/// A cluster under a rule with this pool of connections.
fn cluster(pool: &str) -> Arc<Cluster> {
    let rule = match pool {
        "" => String::new(),
        pool => format!(
            "[[DestinationRule]]\nname = \"web\"\nhost = \"web\"\ntrafficPolicy = {{ connectionPool = {pool} }}\n"
        ),
    };
    let text = format!("[[Service]]\nname = \"web\"\nports = [{{ port = 80, protocol = \"http\" }}]\n{rule}");
    let snapshot = Snapshot::build(&mesh(&text), &[], &host(), 15008, None).expect("a snapshot");
    let mut services = snapshot.services();
    Arc::clone(services.next().expect("web").cluster(None, 0, None).expect("a cluster"))
}

async fn connection(held: Option<Held>) -> (Connection, TcpStream) {
    let (ours, theirs) = sockets().await;
    let (reader, writer) = of_socket(ours);
    (Connection::new(reader, writer, (None, held)), theirs)
}

/// Whether the other end of a connection has been closed.
async fn is_closed(stream: &TcpStream) -> bool {
    let closed = async {
        let mut byte = [0; 1];
        matches!(stream.peek(&mut byte).await, Ok(0) | Err(_))
    };
    tokio::time::timeout(Duration::from_millis(200), closed).await.unwrap_or(false)
}

#[tokio::test]
async fn what_one_worker_keeps_makes_room_for_another() {
    let cluster = cluster("{ tcp = { maxConnections = 1 } }");
    let (here, there) = (Upstreams::default(), Upstreams::default());
    let (kept, theirs) = connection(Some(cluster.connection().expect("the only place"))).await;
    assert!(cluster.connection().is_err(), "it is in use");
    let freed = cluster.freed();
    tokio::pin!(freed);
    freed.as_mut().enable();
    here.keep(key(), kept, &Terms::of(&cluster, HOUR), 0);
    // Who waits on another worker hears of it.
    freed.await;
    assert!(there.take(&key()).is_none());
    let place = cluster.connection().expect("the place of what is kept elsewhere");
    assert!(is_closed(&theirs).await);
    assert!(here.take(&key()).is_none(), "it was given up");
    assert!(cluster.connection().is_err(), "there is one place still");
    drop(place);
    assert!(cluster.connection().is_ok());
}

#[tokio::test]
async fn what_is_in_use_again_is_not_given_up() {
    let cluster = cluster("{ tcp = { maxConnections = 1 } }");
    let upstreams = Upstreams::default();
    let (kept, theirs) = connection(Some(cluster.connection().expect("the only place"))).await;
    upstreams.keep(key(), kept, &Terms::of(&cluster, HOUR), 0);
    let used = upstreams.take(&key()).expect("the kept one");
    assert!(cluster.connection().is_err() && !is_closed(&theirs).await);
    drop(used);
    assert!(cluster.connection().is_ok());
}

#[tokio::test]
async fn offers_of_what_is_gone_do_not_pile_up() {
    let cluster = cluster("{ tcp = { maxConnections = 2 } }");
    let upstreams = Upstreams::default();
    let (mut connection, _theirs) = connection(Some(cluster.connection().expect("a place"))).await;
    for _ in 0..10_000 {
        upstreams.keep(key(), connection, &Terms::of(&cluster, HOUR), 0);
        connection = upstreams.take(&key()).expect("the kept one");
    }
    let debug = format!("{:?}", cluster.offer().expect("a limit"));
    let offered = debug.split("offered: ").nth(1).and_then(|rest| rest.split([',', ' ']).next());
    let offered: usize = offered.and_then(|number| number.parse().ok()).expect("a number");
    assert!((1..=66).contains(&offered), "{offered}");
}

#[tokio::test]
async fn sockets_that_are_kept_are_counted_and_no_more_than_may_be() {
    let cluster = cluster("");
    let gauge = Gauge::default();
    let kept = Arc::new(KeptSockets::new(1, gauge.clone()));
    let (here, there) = (Upstreams::new(Arc::clone(&kept)), Upstreams::new(kept));
    let terms = Terms::of(&cluster, HOUR);
    let (first, _a) = connection(None).await;
    let (second, b) = connection(None).await;
    here.keep(key(), first, &terms, 0);
    there.keep(key(), second, &terms, 0);
    assert_eq!(gauge.get(), 1);
    assert!(is_closed(&b).await && there.take(&key()).is_none());
    assert!(here.take(&key()).is_some());
    assert_eq!(gauge.get(), 0);
}

#[tokio::test]
async fn a_rule_says_how_long_one_is_kept() {
    let upstreams = Upstreams::default();
    for (pool, is_kept) in [("{ http = { idleTimeout = \"1ms\" } }", false), ("{ http = {} }", true)] {
        let cluster = cluster(pool);
        let (connection, _theirs) = connection(None).await;
        upstreams.keep(key(), connection, &Terms::of(&cluster, HOUR), 0);
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(upstreams.take(&key()).is_some(), is_kept, "{pool}");
    }
}

#[tokio::test]
async fn what_is_reached_otherwise_or_by_another_is_another_connection() {
    let upstreams = Upstreams::default();
    let (connection, _theirs) = connection(None).await;
    upstreams.keep(key(), connection, &Terms::plain(HOUR), 0);
    let elsewhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 81));
    let source = Identity::parse("spiffe://mesh/ns/a/sa/other").expect("one");
    for other in [
        UpstreamKey { via: Via::Socket(Some((ClientTls::Disable, "a".into()))), ..key() },
        UpstreamKey { via: Via::Local(key().address), ..key() },
        UpstreamKey { via: Via::Local(elsewhere), ..key() },
        UpstreamKey { via: Via::Tunnel(Agent::direct(elsewhere)), ..key() },
        UpstreamKey { address: elsewhere, ..key() },
        UpstreamKey { source, ..key() },
    ] {
        assert!(upstreams.take(&other).is_none(), "{other:?}");
    }
    assert!(upstreams.take(&key()).is_some());
}

#[test]
fn a_place_goes_where_requests_wait() {
    let of_a_hundred = |here, all| (0..100).filter(|random| is_for_others(here, all, *random)).count();
    assert_eq!(of_a_hundred(0, 5), 100);
    assert_eq!(of_a_hundred(5, 5), 0);
    assert_eq!(of_a_hundred(1, 4), 75);
    // The counts are not of one moment.
    assert_eq!(of_a_hundred(3, 2), 0);
}

/// A server of HTTP/2 that takes requests and does not answer them, and its connection as one that a share is had on.
async fn served() -> Joined {
    let (ours, theirs) = sockets().await;
    tokio::spawn(async move {
        let mut server = h2::server::handshake(theirs).await.expect("a client");
        let mut open = Vec::new();
        while let Some(Ok(request)) = server.accept().await {
            open.push(request);
        }
    });
    let (reader, writer) = of_socket(ours);
    Joined::new(reader, writer, BytesMut::new())
}

/// The same of a server that takes one request, holds it, and says then that it takes no more.
async fn leaves_after_one() -> Joined {
    let (ours, theirs) = sockets().await;
    tokio::spawn(async move {
        let mut server = h2::server::handshake(theirs).await.expect("a client");
        let held = server.accept().await;
        server.graceful_shutdown();
        while server.accept().await.is_some() {}
        drop(held);
    });
    let (reader, writer) = of_socket(ours);
    Joined::new(reader, writer, BytesMut::new())
}

async fn leaving(upstreams: &Upstreams) -> Result<Lent, ShareError<Infallible>> {
    let connect = async |_| Ok((leaves_after_one().await, (None, None)));
    upstreams.share(&key(), Terms::plain(HOUR), connect).await
}

/// A request on a connection whose peer holds it, and has said that it takes no more.
async fn sent_and_told_to_go(
    upstreams: &Upstreams,
) -> Result<(Lent, h2::client::ResponseFuture, h2::SendStream<Bytes>), ShareError<Infallible>> {
    let mut lent = leaving(upstreams).await?;
    let request = http::Request::get("http://shop/").body(()).expect("a request");
    let (answer, body) = lent.sender.send_request(request, false).expect("sent");
    while !lent.retire_if_told_to() {
        tokio::task::yield_now().await;
    }
    Ok((lent, answer, body))
}

#[tokio::test]
async fn a_shared_connection_whose_peer_takes_no_more_is_left_to_what_is_on_it() {
    let upstreams = Upstreams::default();
    let (_first, mut answer, _body) = sent_and_told_to_go(&upstreams).await.expect("a connection");
    let mut second = leaving(&upstreams).await.expect("another connection");
    assert!(!second.retire_if_told_to() && second.served() == 1, "nothing was sent on it");
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let waiting = std::pin::Pin::new(&mut answer).poll(&mut context);
    assert!(waiting.is_pending(), "what was sent on the first goes on: {waiting:?}");
}

#[tokio::test]
async fn a_peer_that_lets_every_connection_go_with_a_stream_on_it_has_so_many_and_no_more() {
    let upstreams = Upstreams::default();
    let mut held = Vec::new();
    let refused = loop {
        match sent_and_told_to_go(&upstreams).await {
            Ok(sent) => held.push(sent),
            Err(refused) => break refused,
        }
    };
    assert!(matches!(refused, ShareError::Full) && held.len() == 256, "{refused:?} after {}", held.len());
    held.pop();
    assert!(leaving(&upstreams).await.is_ok(), "one has ended");
}

/// A place on a connection of HTTP/2.
async fn open(upstreams: &Upstreams, cluster: &Cluster) -> Result<Lent, ShareError<Option<Infallible>>> {
    let connect = async |need| {
        let held = match need {
            Need::First => cluster.first_connection(),
            Need::Further => cluster.connection().map_err(|_| None)?,
        };
        Ok((served().await, (None, Some(held))))
    };
    upstreams.share(&key(), Terms::of(cluster, HOUR), connect).await
}

#[tokio::test]
async fn a_shared_connection_that_nobody_uses_makes_room_too() {
    let cluster = cluster("{ tcp = { maxConnections = 1 }, http = { maxConcurrentStreams = 2 } }");
    let (here, there) = (Upstreams::default(), Upstreams::default());
    let one = open(&here, &cluster).await.expect("the first");
    let two = open(&here, &cluster).await.expect("a second stream on it");
    assert!(
        matches!(open(&here, &cluster).await, Err(ShareError::Connect(None))),
        "full, and no further place"
    );
    assert!(open(&there, &cluster).await.is_ok(), "a worker's first is never refused");
    drop(one);
    assert!(cluster.connection().is_err(), "one is used still");
    drop(two);
    let places = (cluster.connection().ok(), cluster.connection().ok());
    assert!(places.0.is_some() && places.1.is_none(), "one place, of those that nobody uses");
    assert!(open(&here, &cluster).await.is_ok(), "and what gave its place up is not used again");
}
