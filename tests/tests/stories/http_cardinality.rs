//! Callers who ask for something else each time: what is kept of it does not grow with what they think of.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::thread;

use baremesh_tests::{Member, WAIT_BOUND, wait_until};

use crate::attack::{growth_of, memory_of};
use crate::pair::virtual_addresses;
use crate::town::{Town, routes, to};

/// Requests, no two of which agree in host, path, method or fields.
const REQUESTS: usize = 100_000;
/// As many of them reach the program.
const CARRIED: usize = 10_000;
/// Connections that they come on, side by side.
const CONNECTIONS: usize = 4;
/// Requests that are sent before the first answer is read.
const PIPELINE: usize = 50;

fn series(member: &Member) -> usize {
    member.metrics().lines().filter(|line| !line.starts_with('#')).count()
}

/// A number spread over 64 bits (splitmix64), the same at every run.
fn spread(number: usize) -> u64 {
    let mut mixed = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ mixed >> 27
}

fn request(number: usize) -> String {
    let random = spread(number);
    let path = if number.is_multiple_of(REQUESTS / CARRIED) { "carried" } else { "told" };
    format!(
        "M{random:X} /{path}/{random:x}?{random} HTTP/1.1\r\nHost: h{random}.example\r\nX-{random}: {random}\r\n\
         User-Agent: {random}\r\nX-Request-Id: {random}\r\n\r\n"
    )
}

/// Sends requests and reads their answers; how many there were.
fn ask(mut stream: TcpStream, numbers: Range<usize>) -> usize {
    stream.set_read_timeout(Some(WAIT_BOUND)).expect("a timeout");
    let (mut answered, mut heard, mut part) = (0, Vec::new(), vec![0; 64 * 1024]);
    let numbers: Vec<_> = numbers.collect();
    for batch in numbers.chunks(PIPELINE) {
        let bytes: String = batch.iter().map(|number| request(*number)).collect();
        stream.write_all(bytes.as_bytes()).expect("it is taken");
        let mut missing = batch.len();
        while missing > 0 {
            let read = stream.read(&mut part).expect("answers come");
            assert!(read > 0, "after {answered}: {}", String::from_utf8_lossy(&heard));
            heard.extend_from_slice(&part[..read]);
            let starts = heard.windows(9).filter(|window| window == b"HTTP/1.1 ").count();
            // The last may be under way, or its start cut in two: what is counted is taken out.
            answered += starts;
            missing -= starts;
            let keep = heard.len().saturating_sub(8);
            heard.drain(..keep);
        }
    }
    answered
}

#[test]
fn a_hundred_thousand_hosts_paths_and_methods_leave_no_trace_but_their_number() {
    let town = Town::new("cardinality", 1);
    let [_v1] = town.open();
    // The rest is answered by the caller's agent itself, which is quicker.
    town.mesh.enforce(&(crate::town::subsets()
        + &routes(&format!(
            "{{ match = [{{ uri = {{ prefix = \"/carried\" }} }}], route = [{}] }}, {{ directResponse = {{ status = 204 }} }}",
            to("v1", 1)
        ))));
    let address = SocketAddr::new(virtual_addresses(&town.web, "reviews")[0], 80);
    // What all later ones have in common is there once.
    let dial = || town.web.host.connect(address).expect("the agent takes it");
    assert_eq!(ask(dial(), 0..1_000), 1_000);
    let agents = [&town.web, &town.hosts[0]];
    wait_until("series have settled", || {
        let before = agents.map(series);
        thread::sleep(std::time::Duration::from_millis(200));
        agents.map(series) == before
    });
    let (series_before, memory_before) = (agents.map(series), agents.map(memory_of));
    let share = REQUESTS / CONNECTIONS;
    let answered: usize = thread::scope(|scope| {
        let askers: Vec<_> = (0..CONNECTIONS)
            .map(|at| {
                let stream = dial();
                scope.spawn(move || ask(stream, 1_000 + at * share..1_000 + (at + 1) * share))
            })
            .collect();
        askers.into_iter().map(|asker| asker.join().expect("all are answered")).sum()
    });
    assert_eq!(answered, REQUESTS);
    let growth = growth_of(agents, memory_before);
    let more: Vec<_> = agents
        .iter()
        .zip(series_before)
        .map(|(agent, before)| series(agent).saturating_sub(before))
        .collect();
    assert!(more.iter().all(|more| *more < 100), "{more:?} series more than {series_before:?}");
    assert!(growth.iter().all(|growth| *growth < 32 << 20), "{growth:?} bytes more");
}
