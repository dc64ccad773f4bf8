//! Questions over UDP.

use hickory_proto::op::{Edns, ResponseCode};

use super::upstream::Upstream;
use super::*;

fn said(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[tokio::test]
async fn relays_other_names_byte_by_byte() {
    let upstream = Upstream::start(|query| vec![reply_to(query, &["192.0.2.1"])]).await;
    let dns = run_with(&[upstream.address]);
    let query = question("wWw.ExAmPlE.com.", RecordType::A);
    assert_eq!(dns.ask(&query).await, reply_to(&query, &["192.0.2.1"]));
    let seen = upstream.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0][2..], query[2..]);
    assert_eq!(said(&dns.counters.forwarded), 1);
}

#[tokio::test]
async fn mesh_names_never_reach_an_upstream() {
    let upstream = Upstream::start(|query| vec![reply_to(query, &["192.0.2.1"])]).await;
    let dns = run_with(&[upstream.address]);
    for name in
        ["orders.shop.mesh.internal.", "nobody.MESH.internal.", "mesh.internal.", "x\\.y.mesh.internal."]
    {
        for kind in [RecordType::A, RecordType::AAAA, RecordType::HTTPS, RecordType::ANY, RecordType::TXT] {
            let reply = parsed(&dns.ask(&question(name, kind)).await);
            assert!(reply.metadata.authoritative, "{name} {kind}");
        }
    }
    dns.ask(&question("example.com.", RecordType::A)).await;
    assert_eq!(upstream.seen().len(), 1);
    let counters = &dns.counters;
    assert_eq!(said(&counters.answered) + said(&counters.nodata) + said(&counters.nxdomain), 20);
}

#[tokio::test]
async fn forgeries_and_garbage_are_ignored_until_the_answer_comes() {
    let says = |query: &[u8]| {
        let truth = reply_to(query, &["192.0.2.1"]);
        let forged = reply_to(query, &["192.0.2.66"]);
        let patched = |at: usize, byte: u8| {
            let mut patched = forged.clone();
            patched[at] = byte;
            patched
        };
        let other = reply_to(&question("other.example.", RecordType::A), &["192.0.2.66"]);
        let mut other_question = other.clone();
        other_question[..2].copy_from_slice(&query[..2]);
        vec![
            // Forgeries: the id twice, the question twice, a query, another case.
            patched(0, forged[0] ^ 1),
            patched(1, forged[1] ^ 0x80),
            other,
            other_question,
            query.to_vec(),
            patched(13, b'W'),
            // Garbage: nothing, less than a header, a name that points at itself, a record cut off.
            Vec::new(),
            forged[..11].to_vec(),
            patched(query.len() + 1, query.len() as u8),
            forged[..forged.len() - 1].to_vec(),
            truth,
        ]
    };
    let upstream = Upstream::start(says).await;
    let dns = run_with(&[upstream.address]);
    let query = question("www.example.com.", RecordType::A);
    assert_eq!(dns.ask(&query).await, reply_to(&query, &["192.0.2.1"]));
    assert_eq!(said(&dns.counters.spoofed_ignored), 6);
    assert_eq!(said(&dns.counters.malformed_ignored), 4);
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn what_comes_from_another_port_is_not_seen() {
    let upstream = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    let dns = run_with(&[upstream.local_addr().expect("bound")]);
    let query = question("www.example.com.", RecordType::A);
    let client = dns.client().await;
    let (mut ports, mut ids) = (Vec::new(), Vec::new());
    for _ in 0..8 {
        client.send(&query).await.expect("sends");
        let mut buffer = vec![0; 512];
        let (length, asker) =
            timeout(PATIENCE, upstream.recv_from(&mut buffer)).await.expect("asked").expect("received");
        let asked = &buffer[..length];
        let forger = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
        forger.send_to(&reply_to(asked, &["192.0.2.66"]), asker).await.expect("sends");
        upstream.send_to(&reply_to(asked, &["192.0.2.1"]), asker).await.expect("sends");
        assert_eq!(receive(&client).await, reply_to(&query, &["192.0.2.1"]));
        ports.push(asker.port());
        ids.push(asked[..2].to_vec());
    }
    for seen in [ids.len(), ports.len()] {
        assert_eq!(seen, 8);
    }
    ids.sort();
    ids.dedup();
    ports.sort_unstable();
    ports.dedup();
    assert!(ids.len() > 4 && ports.len() > 4, "ids {ids:?} and ports {ports:?} hardly change");
}

fn padded(query: &[u8], addresses: usize) -> Vec<u8> {
    reply_to(query, &vec!["192.0.2.1"; addresses])
}

#[tokio::test]
async fn truncation_and_large_answers_pass() {
    // 4 KB for who takes it; a small, truncated answer for who does not.
    let says = |query: &[u8]| {
        let whole = padded(query, 250);
        let takes = parsed(query).edns.is_some_and(|edns| edns.max_payload() >= 4096);
        let mut short = reply_to(query, &[]);
        short[2] |= 2;
        vec![if takes { whole } else { short }]
    };
    let upstream = Upstream::start(says).await;
    let dns = run_with(&[upstream.address]);
    let reply = parsed(&dns.ask(&question("big.example.", RecordType::A)).await);
    assert!(reply.metadata.truncation && reply.answers.is_empty());

    let mut query = parsed(&question("big.example.", RecordType::A));
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    query.set_edns(edns);
    let query = query.to_vec().expect("encodes");
    let reply = dns.ask(&query).await;
    assert_eq!(reply, padded(&query, 250));
    assert!(reply.len() > 4000);
}

#[tokio::test]
async fn an_answer_larger_than_the_client_takes_goes_out_truncated() {
    let upstream = Upstream::start(|query| vec![padded(query, 100)]).await;
    let dns = run_with(&[upstream.address]);
    let reply = dns.ask(&question("big.example.", RecordType::A)).await;
    assert!(parsed(&reply).metadata.truncation && reply.len() <= 512);
    assert_eq!(said(&dns.counters.truncated), 1);
}

#[tokio::test]
async fn upstream_addresses_in_a_virtual_range_are_dropped() {
    let upstream = Upstream::start(|query| vec![reply_to(query, &["192.0.2.1", "240.240.0.1"])]).await;
    let dns = run_with(&[upstream.address]);
    let reply = parsed(&dns.ask(&question("rebind.example.", RecordType::A)).await);
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert!(reply.answers.is_empty());
    assert_eq!(said(&dns.counters.dropped_in_virtual_range), 1);
}

#[tokio::test]
async fn without_an_upstream_mesh_names_still_resolve() {
    let dns = run_with(&[]);
    let reply = parsed(&dns.ask(&question("example.com.", RecordType::A)).await);
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    let reply = parsed(&dns.ask(&question("orders.shop.", RecordType::A)).await);
    assert_eq!(reply.answers.len(), 2);
    assert_eq!(said(&dns.counters.servfail), 1);
}

#[tokio::test]
async fn the_next_upstream_is_asked_and_then_first() {
    // Nothing listens on a discard port that the kernel gives to nobody, so that it answers "unreachable".
    let closed = "127.0.0.2:9".parse().expect("an address");
    let upstream = Upstream::start(|query| vec![reply_to(query, &["192.0.2.1"])]).await;
    let dns = run_with(&[closed, upstream.address]);
    for _ in 0..3 {
        let reply = parsed(&dns.ask(&question("example.com.", RecordType::A)).await);
        assert_eq!(reply.answers.len(), 1);
    }
    assert_eq!(said(&dns.counters.upstream_errors), 1);
    assert_eq!(upstream.seen().len(), 3);
}

#[tokio::test]
async fn a_refusal_is_passed_on_only_if_nobody_knows_better() {
    let refusing = |query: &[u8]| {
        let mut refusal = reply_to(query, &[]);
        refusal[3] |= 5;
        vec![refusal]
    };
    let first = Upstream::start(refusing).await;
    let second = Upstream::start(|query| vec![reply_to(query, &["192.0.2.1"])]).await;
    let dns = run_with(&[first.address, second.address]);
    let reply = parsed(&dns.ask(&question("example.com.", RecordType::A)).await);
    assert_eq!(reply.answers.len(), 1);

    let dns = run_with(&[first.address]);
    let reply = parsed(&dns.ask(&question("example.com.", RecordType::A)).await);
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    assert_eq!(first.seen().len(), 2);
}

#[tokio::test]
async fn a_silent_upstream_ends_in_servfail() {
    let upstream = Upstream::start(|_| Vec::new()).await;
    let limits = Limits { upstream_timeout: Duration::from_millis(20), ..Limits::default() };
    let dns = run(DnsConfig { upstreams: Upstreams::Fixed(vec![upstream.address]), limits, ..config() });
    let reply = parsed(&dns.ask(&question("example.com.", RecordType::A)).await);
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(said(&dns.counters.upstream_timeouts), UPSTREAM_ATTEMPTS as u64);
}

#[tokio::test]
async fn waiting_questions_are_bounded() {
    let upstream = Upstream::start(|_| Vec::new()).await;
    let limits = Limits { forwarded: 2, upstream_timeout: PATIENCE, ..Limits::default() };
    let dns = run(DnsConfig { upstreams: Upstreams::Fixed(vec![upstream.address]), limits, ..config() });
    let waiting = dns.client().await;
    for _ in 0..2 {
        waiting.send(&question("slow.example.", RecordType::A)).await.expect("sends");
    }
    reaches(&dns.counters.forwarded, 2).await;
    let reply = parsed(&dns.ask(&question("example.com.", RecordType::A)).await);
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(said(&dns.counters.over_limit), 1);
    // The mesh's names do not wait behind them.
    assert_eq!(parsed(&dns.ask(&question("orders.shop.", RecordType::A)).await).answers.len(), 2);
}

#[tokio::test]
async fn responses_are_not_answered() {
    let dns = run_with(&[]);
    let client = dns.client().await;
    let query = question("orders.shop.", RecordType::A);
    for message in [&reply_to(&query, &["192.0.2.1"]), &b"short"[..], &query] {
        client.send(message).await.expect("sends");
    }
    assert_eq!(parsed(&receive(&client).await).answers.len(), 2);
    assert_eq!(said(&dns.counters.dropped_responses), 1);
    assert_eq!(said(&dns.counters.refused_malformed), 1);
}

#[tokio::test]
async fn questions_on_their_way_are_answered_at_the_stop() {
    let upstream = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    let mut dns = run_with(&[upstream.local_addr().expect("bound")]);
    let (client, query) = (dns.client().await, question("example.com.", RecordType::A));
    client.send(&query).await.expect("sends");
    let mut buffer = vec![0; 512];
    let (length, asker) =
        timeout(PATIENCE, upstream.recv_from(&mut buffer)).await.expect("asked").expect("received");
    drop(dns.stop.take());
    upstream.send_to(&reply_to(&buffer[..length], &["192.0.2.1"]), asker).await.expect("sends");
    assert_eq!(receive(&client).await, reply_to(&query, &["192.0.2.1"]));
    timeout(PATIENCE, dns.serving).await.expect("it ends").expect("no panic");
}

#[tokio::test]
async fn a_loop_through_a_local_resolver_ends_in_servfail() {
    // A resolver whose own questions come back to us, as when its port 53 traffic is captured too.
    let resolver = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("binds"));
    let limits = Limits { forwarded: 8, upstream_timeout: PATIENCE, ..Limits::default() };
    let upstreams = Upstreams::Fixed(vec![resolver.local_addr().expect("bound")]);
    let dns = run(DnsConfig { upstreams, limits, ..config() });
    let us = dns.address;
    tokio::spawn(async move {
        let mut buffer = vec![0; 512];
        while let Ok((length, asker)) = resolver.recv_from(&mut buffer).await {
            let (resolver, query) = (resolver.clone(), buffer[..length].to_vec());
            tokio::spawn(async move {
                let client = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
                client.send_to(&query, us).await.expect("sends");
                resolver.send_to(&receive(&client).await, asker).await.expect("sends");
            });
        }
    });
    let reply = parsed(&dns.ask(&question("example.com.", RecordType::A)).await);
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert_eq!((said(&dns.counters.forwarded), said(&dns.counters.over_limit)), (8, 1));
}
