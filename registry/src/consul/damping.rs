//! Losses of many at once, which are not believed at once. When a fifth of what the catalog knew is gone within half a
//! minute, or the catalog began anew, the fault is more likely Consul's than everybody's: what was known stays in force
//! for an hour, and an alarm says so. Endpoints that are really gone are left out meanwhile by whoever fails to reach them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::catalog::Instance;
use super::instance::{Standing, standing};
use crate::control::leases::{ALARM_HOSTS, ALARM_PERCENT};

/// Losses within so long count as one.
pub const WINDOW: Duration = Duration::from_secs(30);
/// How long a catalog that began anew, was away, or is seen for the first time since the agent started, is not believed in what
/// it lacks: others may not have registered again.
pub const BEGINNING: Duration = Duration::from_secs(60);
/// How long what was lost with many others stays in force, unless it comes back.
pub const HELD: Duration = Duration::from_secs(3600);

/// The service's name in Consul, the node's, and the registration's ID.
pub type At = (String, String, String);

/// What is known of the instances in the catalog.
#[derive(Debug, Default)]
pub struct Damper {
    present: BTreeMap<At, Instance>,
    recent: BTreeMap<At, (Instance, Instant)>,
    held: BTreeMap<At, (Instance, Instant)>,
    doubted_until: Option<Instant>,
}

impl Damper {
    /// Knows what was in force last.
    pub fn new(known: BTreeMap<At, Instance>, now: Instant) -> Self {
        Self { present: known, doubted_until: Some(now + BEGINNING), ..Self::default() }
    }

    /// The catalog is another than before, or was away: what it lacks is not believed for a while.
    pub fn doubt(&mut self, now: Instant) {
        self.doubted_until = Some(now + BEGINNING);
    }

    /// How many instances are held that the catalog lacks.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// What to go by, where the catalog has `seen`.
    pub fn take(&mut self, seen: BTreeMap<At, Instance>, now: Instant) -> BTreeMap<At, Instance> {
        let is_there = |at: &At| seen.get(at).is_some_and(|instance| standing(instance) != Standing::Silent);
        let before = std::mem::take(&mut self.present);
        let lost = before.into_iter().filter(|(at, _)| !is_there(at));
        self.recent.extend(lost.map(|(at, instance)| (at, (instance, now))));
        self.recent.retain(|at, (_, since)| !is_there(at) && now.saturating_duration_since(*since) < WINDOW);
        self.held.retain(|at, (_, since)| !is_there(at) && now.saturating_duration_since(*since) < HELD);
        let there = seen.iter().filter(|(at, _)| is_there(at));
        self.present = there.map(|(at, instance)| (at.clone(), instance.clone())).collect();
        if self.is_doubtful(now) {
            self.held.append(&mut self.recent);
        }
        let mut all = seen;
        all.extend(self.held.iter().map(|(at, (instance, _))| (at.clone(), instance.clone())));
        all
    }

    fn is_doubtful(&self, now: Instant) -> bool {
        let lost = self.recent.len();
        let all = self.present.len() + lost + self.held.len();
        let many = lost >= ALARM_HOSTS && lost * 100 > all * ALARM_PERCENT;
        let everything = lost > 1 && self.present.is_empty();
        many || everything || !self.held.is_empty() || self.doubted_until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn seen(numbers: impl IntoIterator<Item = usize>, silent: &[usize]) -> BTreeMap<At, Instance> {
        let one = |n: usize| {
            let status = if silent.contains(&n) { "critical" } else { "passing" };
            let instance = json!({
                "Node": { "Node": format!("n{n}"), "Address": "10.0.0.1" },
                "Service": { "ID": "s", "Service": "s", "Port": 1 },
                "Checks": [{ "CheckID": "serfHealth", "Status": status }],
            });
            let at = ("s".to_owned(), format!("n{n}"), "s".to_owned());
            (at, serde_json::from_value(instance).expect("an instance"))
        };
        numbers.into_iter().map(one).collect()
    }

    /// A damper that believes, with `count` instances.
    fn knowing(count: usize) -> (Damper, Instant) {
        let now = Instant::now();
        let mut damper = Damper::default();
        damper.take(seen(0..count, &[]), now);
        (damper, now)
    }

    fn well(all: &BTreeMap<At, Instance>) -> usize {
        all.values().filter(|instance| standing(instance) == Standing::Well).count()
    }

    #[test]
    fn a_few_may_go_and_many_at_once_are_kept() {
        let check = |count: usize, left: usize, silent: &[usize], expected: usize| {
            let (mut damper, now) = knowing(count);
            let all = damper.take(seen(0..left, silent), now);
            assert_eq!(well(&all), expected, "{left} of {count}, {silent:?} silent");
            assert_eq!(damper.held() > 0, expected == count && left - silent.len() < count);
        };
        check(1, 0, &[], 0);
        check(2, 1, &[], 1);
        check(2, 0, &[], 2);
        check(10, 8, &[], 8);
        check(10, 7, &[], 10);
        check(10, 10, &[1, 2, 3], 10);
        check(10, 10, &[1, 2], 8);
        check(100, 80, &[], 80);
        check(100, 79, &[], 100);
        check(3, 0, &[], 3);
    }

    #[test]
    fn what_goes_one_after_the_other_within_the_window_is_one_loss() {
        let (mut damper, now) = knowing(10);
        for (step, left) in [(1, 9), (2, 8), (3, 7)] {
            let all = damper.take(seen(0..left, &[]), now + Duration::from_secs(step));
            assert_eq!(well(&all), if left == 7 { 10 } else { left });
        }
        let (mut damper, now) = knowing(10);
        for step in 1..8 {
            let all =
                damper.take(seen(0..10 - step, &[]), now + WINDOW * u32::try_from(step).expect("small"));
            assert_eq!(well(&all), 10 - step);
        }
    }

    #[test]
    fn what_is_held_comes_back_or_goes_after_an_hour_and_what_is_new_counts_at_once() {
        let (mut damper, now) = knowing(4);
        assert_eq!(well(&damper.take(seen([7], &[]), now)), 5);
        assert_eq!((damper.held(), well(&damper.take(seen([0, 1, 7], &[]), now))), (4, 5));
        assert_eq!(damper.held(), 2);
        assert_eq!(well(&damper.take(seen([0, 1, 7], &[]), now + HELD)), 3);
        assert_eq!(damper.held(), 0);
        assert_eq!(well(&damper.take(seen([0, 1], &[]), now + HELD)), 2, "it believes again");
    }

    #[test]
    fn a_catalog_that_began_anew_is_not_believed_in_what_it_lacks() {
        let (mut damper, now) = knowing(1);
        damper.doubt(now);
        assert_eq!(well(&damper.take(seen([], &[]), now)), 1);
        let mut started = Damper::new(seen([0], &[]), now);
        assert_eq!(
            well(&started.take(seen([], &[]), now)),
            1,
            "an agent that started knows what was in force"
        );
        assert_eq!(well(&started.take(seen([0], &[]), now + BEGINNING)), 1);
        assert_eq!(well(&started.take(seen([], &[]), now + BEGINNING)), 0);
    }
}
