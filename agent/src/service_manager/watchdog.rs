//! The watchdog (`WatchdogSec=` of systemd.service(5)). It is fed by the data path: each round, every worker answers from
//! the loop that carries its connections, and only when all have is the service manager told that the agent lives. One
//! that has ended, or does not come round, leaves it unfed, and the agent is ended and started anew.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::watch;

/// Rounds in the time after which an agent that was not heard of is taken for dead.
const ROUNDS: u32 = 4;

/// What the service manager wants to hear, and how often; nothing where it does not watch.
pub fn wanted() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// The rounds, and who has come round.
#[derive(Debug)]
pub struct Pulse {
    round: watch::Sender<u64>,
    workers: Vec<AtomicU64>,
}

impl Pulse {
    /// Of so many workers.
    pub fn new(workers: usize) -> Arc<Self> {
        let workers = (0..workers).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { round: watch::Sender::new(0), workers })
    }

    /// Answers for a worker, in its own loop, for as long as `serves` says that it takes connections.
    pub async fn answer(self: Arc<Self>, worker: usize, serves: impl Fn() -> bool) {
        let mut round = self.round.subscribe();
        while round.changed().await.is_ok() && serves() {
            let number = *round.borrow_and_update();
            if let Some(own) = self.workers.get(worker) {
                own.store(number, Ordering::Relaxed);
            }
        }
    }

    /// The workers that have not answered the last round.
    fn missing(&self) -> Vec<usize> {
        let round = *self.round.borrow();
        let late = |worker: &AtomicU64| worker.load(Ordering::Relaxed) != round;
        self.workers.iter().enumerate().filter(|(_, worker)| late(worker)).map(|(index, _)| index).collect()
    }

    /// Feeds the watchdog that wants to hear of the agent once in `within`, until the task is ended.
    pub async fn feed(self: Arc<Self>, within: Duration) {
        self.feed_to(within, || sd_notify::notify(&[NotifyState::Watchdog])).await;
    }

    async fn feed_to(&self, within: Duration, tell: impl Fn() -> io::Result<()>) {
        loop {
            self.round.send_modify(|round| *round += 1);
            tokio::time::sleep(within / ROUNDS).await;
            match &*self.missing() {
                // Who does not hear it takes the agent for dead, which says more than a line here.
                [] => drop(tell()),
                missing => {
                    tracing::error!(workers = ?missing, "workers do not answer: the watchdog is not fed");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn told_in(rounds: u32, pulse: &Pulse) -> u32 {
        let (within, told) = (Duration::from_secs(40), std::cell::Cell::new(0));
        let tell = || {
            told.set(told.get() + 1);
            Ok(())
        };
        // A moment after the last round's end.
        let time = within / ROUNDS * rounds + Duration::from_secs(1);
        let _ = tokio::time::timeout(time, pulse.feed_to(within, tell)).await;
        told.get()
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_fed_only_while_every_worker_comes_round() {
        let pulse = Pulse::new(2);
        let first = tokio::spawn(Arc::clone(&pulse).answer(0, || true));
        assert_eq!(told_in(3, &pulse).await, 0, "the second does not answer");
        let second = tokio::spawn(Arc::clone(&pulse).answer(1, || true));
        tokio::task::yield_now().await;
        assert_eq!(told_in(3, &pulse).await, 3);
        second.abort();
        assert_eq!(told_in(3, &pulse).await, 0, "the second stands still");
        drop(first);
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_no_connections_any_more_does_not_answer() {
        let pulse = Pulse::new(1);
        let serves = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let asked = Arc::clone(&serves);
        tokio::spawn(Arc::clone(&pulse).answer(0, move || asked.load(Ordering::Relaxed)));
        tokio::task::yield_now().await;
        assert_eq!(told_in(2, &pulse).await, 2);
        serves.store(false, Ordering::Relaxed);
        assert_eq!(told_in(2, &pulse).await, 0);
    }
}
