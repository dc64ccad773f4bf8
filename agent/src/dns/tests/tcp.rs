//! Questions over TCP.

use std::collections::HashSet;
use std::io;

use hickory_proto::op::ResponseCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::framing::{read_message, write_message};
use super::upstream::Upstream;
use super::*;

async fn connect(dns: &Running) -> TcpStream {
    TcpStream::connect(dns.address).await.expect("connects")
}

async fn next(stream: &mut TcpStream) -> Vec<u8> {
    let message = timeout(PATIENCE, read_message(stream)).await.expect("an answer");
    message.expect("readable").expect("open")
}

/// Waits for the server to close the connection; a reset is as good.
async fn closes(stream: &mut TcpStream) {
    let read = timeout(PATIENCE, stream.read(&mut [0; 16])).await.expect("it closes");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

#[tokio::test]
async fn pipelined_questions_are_all_answered_before_a_half_closed_connection_ends() {
    let upstream = Upstream::start(|query| vec![reply_to(query, &["192.0.2.1"])]).await;
    let dns = run_with(&[upstream.address]);
    let mut stream = connect(&dns).await;
    let mut asked = HashSet::new();
    for number in 0..3 * MAX_PIPELINED {
        let name = if number % 3 == 0 { "orders.shop." } else { "example.com." };
        let query = question(name, RecordType::A);
        asked.insert(parsed(&query).metadata.id);
        write_message(&mut stream, &query).await.expect("sends");
    }
    stream.shutdown().await.expect("half closed");
    for _ in 0..3 * MAX_PIPELINED {
        let reply = parsed(&next(&mut stream).await);
        assert!(!reply.answers.is_empty() && asked.remove(&reply.metadata.id));
    }
    closes(&mut stream).await;
}

#[tokio::test]
async fn answers_of_64_kilobytes_pass() {
    let large = |query: &[u8]| reply_to(query, &vec!["192.0.2.1"; 4000]);
    let upstream = Upstream::start(move |query| vec![large(query)]).await;
    let dns = run_with(&[upstream.address]);
    let mut stream = connect(&dns).await;
    let query = question("big.example.", RecordType::A);
    write_message(&mut stream, &query).await.expect("sends");
    let reply = next(&mut stream).await;
    assert!(reply.len() > 64_000);
    assert_eq!(reply, large(&query));
}

#[tokio::test]
async fn a_forged_answer_over_tcp_is_no_answer() {
    let forging = |query: &[u8]| {
        let mut reply = reply_to(query, &["192.0.2.66"]);
        reply[0] ^= 1;
        vec![reply]
    };
    let forger = Upstream::start(forging).await;
    let honest = Upstream::start(|query| vec![reply_to(query, &["192.0.2.1"])]).await;
    let dns = run_with(&[forger.address, honest.address]);
    let mut stream = connect(&dns).await;
    let query = question("example.com.", RecordType::A);
    write_message(&mut stream, &query).await.expect("sends");
    assert_eq!(next(&mut stream).await, reply_to(&query, &["192.0.2.1"]));
    assert_eq!(dns.counters.spoofed_ignored.load(Ordering::Relaxed), 1);

    let dns = run_with(&[forger.address]);
    let mut stream = connect(&dns).await;
    write_message(&mut stream, &query).await.expect("sends");
    assert_eq!(parsed(&next(&mut stream).await).metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn connections_that_speak_no_dns_are_cut() {
    let dns = run_with(&[]);
    for (number, garbage) in
        [&b"\x00\x00"[..], b"\x00\x0bshorter", b"\x01\x00then nothing more"].iter().enumerate()
    {
        let mut stream = connect(&dns).await;
        stream.write_all(garbage).await.expect("sends");
        stream.shutdown().await.expect("half closed");
        closes(&mut stream).await;
        reaches(&dns.counters.connections_cut, number as u64 + 1).await;
    }
    let mut stream = connect(&dns).await;
    write_message(&mut stream, b"fourteen bytes").await.expect("sends");
    assert_eq!(parsed(&next(&mut stream).await).metadata.response_code, ResponseCode::NotImp);
}

#[tokio::test]
async fn idle_and_slow_connections_are_cut() {
    let limits = Limits { idle_timeout: Duration::from_millis(20), ..Limits::default() };
    let dns = run(DnsConfig { limits, ..config() });
    let mut idle = connect(&dns).await;
    let mut slow = connect(&dns).await;
    slow.write_all(b"\x00").await.expect("sends");
    closes(&mut idle).await;
    closes(&mut slow).await;
    assert_eq!(dns.counters.connections_cut.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn connections_are_bounded() {
    let limits = Limits { connections: 1, ..Limits::default() };
    let dns = run(DnsConfig { limits, ..config() });
    let mut first = connect(&dns).await;
    write_message(&mut first, &question("orders.shop.", RecordType::A)).await.expect("sends");
    next(&mut first).await;
    closes(&mut connect(&dns).await).await;
    assert_eq!(dns.counters.connections_refused.load(Ordering::Relaxed), 1);
    drop(first);
    let again = async {
        loop {
            let mut stream = connect(&dns).await;
            let query = question("orders.shop.", RecordType::A);
            if write_message(&mut stream, &query).await.is_ok()
                && let Ok(Some(_)) = read_message(&mut stream).await
            {
                return io::Result::Ok(());
            }
        }
    };
    timeout(PATIENCE, again).await.expect("the place is free again").expect("answered");
}

#[tokio::test]
async fn the_stop_closes_connections() {
    let mut dns = run_with(&[]);
    let mut stream = connect(&dns).await;
    write_message(&mut stream, &question("orders.shop.", RecordType::A)).await.expect("sends");
    next(&mut stream).await;
    drop(dns.stop.take());
    closes(&mut stream).await;
    timeout(PATIENCE, dns.serving).await.expect("it ends").expect("no panic");
}
