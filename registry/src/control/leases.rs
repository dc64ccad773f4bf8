//! Leases: who is there. A host renews every third of a period; one that stays silent for a whole period has
//! expired and its endpoints go. When many fall silent together, the fault is more likely here, a network, a
//! clock, an overloaded server, than with all of them: then nothing goes, and an alarm asks an operator.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use baremesh_model::name::Label;

use super::client::LONGEST_PAUSE;

/// A lease's length unless configured.
pub const LEASE: Duration = Duration::from_secs(15);
/// How long the hosts that are known have after a restart of the server, at least, however short a lease is: an agent
/// that was connecting while the server was away waits for that, pauses for the longest time, connects and shows its
/// addresses before it is there.
pub const RETURN_WAIT: Duration = Duration::from_secs(30);
const _: () =
    assert!(RETURN_WAIT.as_secs() >= 2 * LONGEST_PAUSE.as_secs() + 10, "agents could not be back in time");
/// Renewals in a period.
pub const RENEWALS: u32 = 3;
/// The share of hosts, in percent, above which silence is taken for our own fault.
pub const ALARM_PERCENT: usize = 20;
/// The fewest silent hosts that raise the alarm, so that in a small mesh one host can still go.
pub const ALARM_HOSTS: usize = 3;

/// Many hosts fell silent at once; their endpoints are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// Hosts that have missed renewals.
    pub silent: usize,
    /// Hosts with a lease.
    pub hosts: usize,
    /// Since when.
    pub since: Instant,
}

/// One lease a host, in memory only.
#[derive(Debug)]
pub struct Leases {
    period: Duration,
    ends: BTreeMap<Label, Instant>,
    alarm: Option<Alarm>,
}

impl Leases {
    /// No leases yet, each to last for `period`.
    pub fn new(period: Duration) -> Self {
        Self { period, ends: BTreeMap::new(), alarm: None }
    }

    /// A lease's length.
    pub fn period(&self) -> Duration {
        self.period
    }

    /// Starts a host's lease, or a full period anew.
    pub fn renew(&mut self, host: &Label, now: Instant) {
        self.ends.insert(host.clone(), now + self.period);
    }

    /// Gives a host that is known from before a restart the time to come back.
    pub fn take_up(&mut self, host: &Label, now: Instant) {
        self.ends.insert(host.clone(), now + self.period.max(RETURN_WAIT));
    }

    /// Ends a host's lease. True when it had one.
    pub fn end(&mut self, host: &Label) -> bool {
        self.ends.remove(host).is_some()
    }

    /// How long a host's lease still runs; zero when it is kept beyond its end by an alarm.
    pub fn remaining(&self, host: &Label, now: Instant) -> Option<Duration> {
        self.ends.get(host).map(|end| end.saturating_duration_since(now))
    }

    /// The alarm in force.
    pub fn alarm(&self) -> Option<&Alarm> {
        self.alarm.as_ref()
    }

    /// Ends the leases that have run out and returns their hosts, unless too many fell silent at once.
    ///
    /// Whoever has missed a renewal counts as silent: hosts renew at different moments, so those of one failure
    /// expire one after another, and the first would be gone before the share showed.
    pub fn sweep(&mut self, now: Instant) -> Vec<Label> {
        let missed = now + self.period / RENEWALS;
        let silent = self.ends.values().filter(|end| **end <= missed).count();
        let many = silent >= ALARM_HOSTS && silent * 100 > self.ends.len() * ALARM_PERCENT;
        let expired = self.ends.values().any(|end| *end <= now);
        if many && (expired || self.alarm.is_some()) {
            let since = self.alarm.as_ref().map_or(now, |alarm| alarm.since);
            self.alarm = Some(Alarm { silent, hosts: self.ends.len(), since });
            return Vec::new();
        }
        self.alarm = None;
        self.clear(now)
    }

    /// An operator's word that the silent hosts are gone: ends the leases that have run out, however many, and
    /// returns their hosts.
    pub fn clear(&mut self, now: Instant) -> Vec<Label> {
        self.alarm = None;
        let mut expired = Vec::new();
        self.ends.retain(|host, end| {
            let lives = *end > now;
            if !lives {
                expired.push(host.clone());
            }
            lives
        });
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(n: usize) -> Label {
        Label::new(&format!("h{n}")).expect("a label")
    }

    /// `hosts` hosts that renewed at second 0, of which `alive` did again later.
    fn leases(hosts: usize, alive: usize) -> (Leases, Instant) {
        let start = Instant::now();
        let mut leases = Leases::new(LEASE);
        (0..hosts).for_each(|n| leases.renew(&host(n), start));
        (0..alive).for_each(|n| leases.renew(&host(n), start + Duration::from_secs(12)));
        (leases, start)
    }

    fn check(hosts: usize, alive: usize, after: u64, gone: usize, alarm: bool) {
        let (mut leases, start) = leases(hosts, alive);
        let expired = leases.sweep(start + Duration::from_secs(after));
        assert_eq!(expired.len(), gone, "{alive} of {hosts} alive after {after} s");
        assert_eq!(leases.alarm().is_some(), alarm, "{alive} of {hosts} alive after {after} s");
    }

    #[test]
    fn removes_the_silent_unless_they_are_many() {
        check(1, 0, 14, 0, false);
        check(1, 0, 15, 1, false);
        check(3, 1, 15, 2, false);
        check(3, 0, 15, 0, true);
        check(10, 8, 15, 2, false);
        check(10, 7, 15, 0, true);
        check(15, 12, 15, 3, false);
        check(16, 12, 15, 0, true);
        check(100, 80, 15, 20, false);
        check(100, 79, 15, 0, true);
    }

    #[test]
    fn counts_those_that_fall_silent_one_after_another() {
        let start = Instant::now();
        let mut leases = Leases::new(LEASE);
        // Each renewed at its own moment of the same five seconds, then all stopped.
        (0..50).for_each(|n| leases.renew(&host(n), start + Duration::from_millis(100 * n as u64)));
        for tick in 0..60 {
            let gone = leases.sweep(start + Duration::from_secs(tick));
            assert_eq!(gone, [], "after {tick} s");
        }
        assert_eq!(leases.alarm().map(|alarm| (alarm.silent, alarm.hosts)), Some((50, 50)));
    }

    #[test]
    fn the_alarm_ends_when_hosts_return() {
        let (mut leases, start) = leases(10, 5);
        let later = start + Duration::from_secs(16);
        assert_eq!(leases.sweep(later), []);
        (5..8).for_each(|n| leases.renew(&host(n), later));
        (0..5).for_each(|n| leases.renew(&host(n), later));
        assert_eq!(leases.sweep(later), [host(8), host(9)]);
        assert_eq!(leases.alarm(), None);
    }

    #[test]
    fn an_operator_ends_the_alarm() {
        let (mut leases, start) = leases(10, 5);
        let later = start + Duration::from_secs(16);
        assert_eq!(leases.sweep(later), []);
        assert_eq!(leases.clear(later), [5, 6, 7, 8, 9].map(host));
        assert_eq!(leases.sweep(later), []);
        assert_eq!(leases.alarm(), None);
    }

    #[test]
    fn after_a_restart_a_short_lease_outlasts_the_longest_way_back() {
        for (period, kept) in [(1, RETURN_WAIT.as_secs()), (15, RETURN_WAIT.as_secs()), (60, 60)] {
            let (mut leases, start) = (Leases::new(Duration::from_secs(period)), Instant::now());
            leases.take_up(&host(1), start);
            assert_eq!(leases.sweep(start + Duration::from_secs(kept) - Duration::from_millis(1)), []);
            assert!(leases.remaining(&host(1), start).is_some_and(|left| left >= LONGEST_PAUSE * 2));
            // From its return on, its lease is as short as any.
            leases.renew(&host(1), start);
            assert_eq!(leases.sweep(start + Duration::from_secs(period)), [host(1)]);
        }
    }

    #[test]
    fn a_goodbye_needs_no_waiting() {
        let (mut leases, start) = leases(3, 3);
        assert!(leases.end(&host(0)));
        assert!(!leases.end(&host(0)));
        assert_eq!(leases.remaining(&host(0), start), None);
        assert_eq!(leases.remaining(&host(1), start + Duration::from_secs(60)), Some(Duration::ZERO));
    }
}
