//! The load: when each request falls due is known beforehand, and nothing that happens changes it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::set_current_timer_slack;

use crate::connection::Connection;

/// How many requests may have fallen due with every connection busy: more, and the rate is none that can be had.
const MAX_WAITING: usize = 10_000;
/// How long nothing at all may come of what is under way.
const MAX_SILENCE: Duration = Duration::from_secs(10);
/// The kernel wakes ordinary processes up to 50 µs late to save power, unless they ask for better (nanoseconds).
const TIMER_SLACK: NonZeroU64 = NonZeroU64::MIN;
/// Timers of virtual machines come some 50 µs late all the same: the loader sleeps until so long before a request falls
/// due, and looks at the clock for the rest.
const EARLY: Duration = Duration::from_micros(70);

/// What is to be sent.
pub(crate) struct Plan {
    pub(crate) address: SocketAddr,
    /// Requests a second.
    pub(crate) rate: NonZeroU32,
    /// What is sent in this time does not count.
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
    pub(crate) connections: usize,
}

/// What was measured, of requests that count.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    /// From when each fell due to the end of its answer.
    pub(crate) latencies: Vec<Duration>,
    /// How late each was sent for which a connection was free: the loader's own error.
    pub(crate) lateness: Vec<Duration>,
    /// How many found every connection busy. Their wait is the peer's doing, and in their latency.
    pub(crate) waited: usize,
}

/// A request that has fallen due and is not sent yet.
struct Waiting {
    number: u64,
    found_all_busy: bool,
}

/// Sends all of it, and waits for the last answer.
pub(crate) fn run(plan: &Plan) -> Result<Measured> {
    set_current_timer_slack(Some(TIMER_SLACK)).context("the timer's slack cannot be set")?;
    let opened: Result<Vec<_>> = (0..plan.connections).map(|_| Connection::open(plan.address)).collect();
    let mut connections = opened?;
    let mut idle: VecDeque<usize> = (0..connections.len()).collect();
    let mut waiting: VecDeque<Waiting> = VecDeque::new();
    let mut measured = Measured::default();
    let (warm_up, total) = (plan.requests_in(plan.warm_up), plan.requests_in(plan.warm_up + plan.measured));
    let (mut fallen_due, mut answered) = (0, 0);
    let (began, mut last_answer) = (Instant::now(), Instant::now());
    let due = |number| began + plan.until(number);
    while answered < total {
        let now = Instant::now();
        while fallen_due < total && due(fallen_due) <= now {
            waiting.push_back(Waiting { number: fallen_due, found_all_busy: false });
            fallen_due += 1;
        }
        while let (Some(first), Some(index)) = (waiting.front(), idle.front()) {
            if first.number >= warm_up && !first.found_all_busy {
                measured.lateness.push(due(first.number).elapsed());
            }
            connections[*index].send(first.number)?;
            waiting.pop_front();
            idle.pop_front();
        }
        for request in waiting.iter_mut().filter(|request| !request.found_all_busy) {
            request.found_all_busy = true;
            measured.waited += usize::from(request.number >= warm_up);
        }
        ensure!(waiting.len() <= MAX_WAITING, "the peer does not keep up: {} requests wait", waiting.len());
        let next = if fallen_due < total { due(fallen_due) } else { last_answer + MAX_SILENCE };
        for index in readable(&connections, next)? {
            let Some(number) = connections[index].receive()? else { continue };
            last_answer = Instant::now();
            answered += 1;
            idle.push_back(index);
            if number >= warm_up {
                measured.latencies.push(last_answer.duration_since(due(number)));
            }
        }
        ensure!(last_answer.elapsed() < MAX_SILENCE, "no answer for {} s", MAX_SILENCE.as_secs());
    }
    Ok(measured)
}

impl Plan {
    /// When a request falls due, from the beginning.
    fn until(&self, number: u64) -> Duration {
        Duration::from_nanos(number * 1_000_000_000 / u64::from(self.rate.get()))
    }

    fn requests_in(&self, time: Duration) -> u64 {
        time.as_secs() * u64::from(self.rate.get())
    }
}

/// Waits until shortly before then for answers, and returns the connections on which there is something to read.
fn readable(connections: &[Connection], until: Instant) -> Result<Vec<usize>> {
    let busy = || connections.iter().enumerate().filter(|(_, connection)| connection.under_way.is_some());
    let mut polled: Vec<_> =
        busy().map(|(_, connection)| PollFd::new(&connection.stream, PollFlags::IN)).collect();
    let timeout: Timespec =
        until.saturating_duration_since(Instant::now()).saturating_sub(EARLY).try_into()?;
    match poll(&mut polled, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error).context("poll"),
    }
    let indices = busy().map(|(index, _)| index).zip(&polled);
    Ok(indices.filter(|(_, polled)| !polled.revents().is_empty()).map(|(index, _)| index).collect())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

    /// Serves connections one after the other, each in a thread; `before` is done before each of its answers.
    fn serve(before: impl Fn(u32) + Copy + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let answer = move |mut stream: TcpStream| {
            let mut buffer = [0; 1024];
            for number in 0.. {
                if !stream.read(&mut buffer).is_ok_and(|length| length > 0) {
                    break;
                }
                before(number);
                if stream.write_all(ANSWER).is_err() {
                    break;
                }
            }
        };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || answer(stream));
            }
        });
        address
    }

    fn plan(address: SocketAddr, connections: usize) -> Plan {
        let rate = NonZeroU32::new(100).expect("not 0");
        let (warm_up, measured) = (Duration::ZERO, Duration::from_secs(1));
        Plan { address, rate, warm_up, measured, connections }
    }

    #[test]
    fn all_that_counts_is_measured() {
        let address = serve(|_| {});
        let measured = run(&Plan { warm_up: Duration::from_secs(1), ..plan(address, 4) }).expect("answers");
        assert_eq!(measured.latencies.len(), 100);
        assert_eq!(measured.lateness.len() + measured.waited, 100);
    }

    #[test]
    fn a_late_answer_shows_in_all_requests_behind_it() {
        let pause = Duration::from_millis(500);
        let address = serve(move |number| {
            if number == 10 {
                thread::sleep(pause);
            }
        });
        let measured = run(&plan(address, 1)).expect("answers");
        // Fifty fall due in the pause, and each waits for what is left of it.
        let late = measured.latencies.iter().filter(|latency| **latency > pause / 5).count();
        assert!(late >= 35 && measured.waited >= 35, "{late} {measured:?}");
        assert!(measured.latencies.iter().any(|latency| *latency >= pause));
    }

    #[test]
    fn who_does_not_answer_is_told_of() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let closing = thread::spawn(move || listener.accept().map(drop));
        let failed = run(&plan(address, 1)).map(drop).expect_err("nobody answers");
        assert!(format!("{failed:#}").contains("connection"), "{failed:#}");
        closing.join().expect("it ends").expect("it took the connection");
    }
}
