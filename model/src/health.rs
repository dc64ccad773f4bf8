//! Whether a workload is fit to be called: what single results come to, and when the next one is due. As Kubernetes has
//! it for readiness, one is not fit until so many results in a row say so, and stays fit until so many say otherwise.
//! Times are since whatever epoch the keeper has, by a clock that nobody sets.

use std::fmt;
use std::time::Duration;

/// Whether a workload is to be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Health {
    /// It is. What has no check is.
    #[default]
    Healthy,
    /// It is not: its check says so, or has not said otherwise yet.
    Unhealthy,
}

impl Health {
    /// The word for it, in resources and reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }

    /// What the word means.
    pub fn of_word(word: &str) -> Option<Self> {
        [Self::Healthy, Self::Unhealthy].into_iter().find(|health| health.word() == word)
    }

    /// Whether it is to be called.
    pub fn is_healthy(self) -> bool {
        self == Self::Healthy
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What one look at a workload came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It answered as it should.
    Passed,
    /// It did not.
    Failed,
}

/// How many results in a row decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Thresholds {
    /// So many that passed make it healthy; at least 1.
    pub success: u32,
    /// So many that failed make it unhealthy; at least 1.
    pub failure: u32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { success: 1, failure: 3 }
    }
}

/// When a workload is looked at. Kubernetes' defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Schedule {
    /// How long after its registration the first look is.
    pub initial_delay: Duration,
    /// How long one look may take.
    pub timeout: Duration,
    /// From the beginning of one look to that of the next.
    pub period: Duration,
}

impl Default for Schedule {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { initial_delay: Duration::ZERO, timeout: seconds(1), period: seconds(10) }
    }
}

/// The first looks at many workloads are spread over this long, or over the period where that is shorter.
pub const START_SPREAD: Duration = Duration::from_secs(1);
/// By how much of a period a look may come late, so that those that began together do not stay together.
pub const JITTER: f64 = 0.1;

impl Schedule {
    /// How long until the first look. `random` is evenly spread over 0 to 1.
    pub fn first(&self, random: f64) -> Duration {
        let spread = START_SPREAD.min(self.period).mul_f64(random.clamp(0.0, 1.0));
        self.initial_delay.saturating_add(spread)
    }

    /// How long until the next look, after one that began at `began`.
    pub fn next(&self, began: Duration, now: Duration, random: f64) -> Duration {
        let late = self.period.mul_f64(JITTER * random.clamp(0.0, 1.0));
        began.saturating_add(self.period).saturating_add(late).saturating_sub(now)
    }
}

/// What the results so far have come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Course {
    /// What it is now.
    pub health: Health,
    /// Since when.
    pub since: Duration,
    /// The last result, and when it came.
    pub last: Option<(Outcome, Duration)>,
    /// Results in a row that speak against what it is.
    against: u32,
}

impl Course {
    /// The beginning: what it is held to be before there is a result.
    pub fn begin(health: Health, now: Duration) -> Self {
        Self { health, since: now, last: None, against: 0 }
    }

    /// After one more result.
    pub fn after(self, outcome: Outcome, thresholds: Thresholds, now: Duration) -> Self {
        let (says, needed) = match outcome {
            Outcome::Passed => (Health::Healthy, thresholds.success),
            Outcome::Failed => (Health::Unhealthy, thresholds.failure),
        };
        let last = Some((outcome, now));
        if says == self.health {
            return Self { last, against: 0, ..self };
        }
        let against = self.against.saturating_add(1);
        if against < needed {
            Self { last, against, ..self }
        } else {
            Self { last, ..Self::begin(says, now) }
        }
    }

    /// After the workload's own word, which holds at once.
    pub fn told(self, outcome: Outcome, now: Duration) -> Self {
        self.after(outcome, Thresholds { success: 1, failure: 1 }, now)
    }

    /// When the workload's word runs out, that it is healthy; `None` where it does not say so.
    pub fn runs_out(&self, ttl: Duration) -> Option<Duration> {
        let heard = self.last.map_or(self.since, |(_, at)| at);
        self.health.is_healthy().then(|| heard.saturating_add(ttl))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// `+` passes, `-` fails; a second each. Expected is what it is after each: `h`, `u`.
    fn check(begins: Health, (success, failure): (u32, u32), results: &str, expected: &str) {
        let thresholds = Thresholds { success, failure };
        let mut course = Course::begin(begins, Duration::ZERO);
        let mut found = String::new();
        for (at, result) in (1..).zip(results.chars()) {
            let before = course;
            let outcome = if result == '+' { Outcome::Passed } else { Outcome::Failed };
            course = course.after(outcome, thresholds, seconds(at));
            let since = if course.health == before.health { before.since } else { seconds(at) };
            assert_eq!(
                (course.since, course.last),
                (since, Some((outcome, seconds(at)))),
                "{results} at {at}"
            );
            found.push(if course.health.is_healthy() { 'h' } else { 'u' });
        }
        assert_eq!(found, expected, "{results} from {begins:?} by {thresholds:?}");
    }

    #[test]
    fn so_many_in_a_row_decide() {
        use Health::{Healthy, Unhealthy};
        check(Unhealthy, (1, 3), "+", "h");
        check(Unhealthy, (1, 3), "-+", "uh");
        check(Unhealthy, (3, 3), "++-+++", "uuuuuh");
        check(Healthy, (1, 3), "--+--+---", "hhhhhhhhu");
        check(Healthy, (1, 1), "-+-+", "uhuh");
        // One that is unhealthy does not become so again.
        check(Healthy, (2, 2), "----+-++", "huuuuuuh");
        // A threshold of nothing is taken for one.
        check(Unhealthy, (0, 0), "+-", "hu");
    }

    #[test]
    fn what_a_workload_says_of_itself_holds_until_it_runs_out() {
        let ttl = seconds(30);
        let begun = Course::begin(Health::Unhealthy, seconds(1));
        assert_eq!(begun.runs_out(ttl), None);
        let told = begun.told(Outcome::Passed, seconds(5));
        assert_eq!((told.health, told.runs_out(ttl)), (Health::Healthy, Some(seconds(35))));
        let again = told.told(Outcome::Passed, seconds(20));
        assert_eq!((again.since, again.runs_out(ttl)), (seconds(5), Some(seconds(50))));
        let failing = again.told(Outcome::Failed, seconds(21));
        assert_eq!((failing.health, failing.runs_out(ttl)), (Health::Unhealthy, None));
        // One that is held to be healthy from the beginning has the same time for its first word.
        assert_eq!(Course::begin(Health::Healthy, seconds(1)).runs_out(ttl), Some(seconds(31)));
    }

    #[test]
    fn looks_are_spread_and_never_sooner_than_asked_for() {
        let schedule = Schedule::default();
        for (random, expected) in [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (7.0, 1.0), (-1.0, 0.0)] {
            assert_eq!(schedule.first(random), Duration::from_secs_f64(expected));
        }
        let brief = Schedule { period: seconds(1) / 2, initial_delay: seconds(3), ..schedule };
        assert_eq!(brief.first(1.0), seconds(3) + seconds(1) / 2);
        assert_eq!(schedule.next(seconds(100), seconds(100), 0.0), seconds(10));
        assert_eq!(schedule.next(seconds(100), seconds(101), 1.0), seconds(10));
        // A look that took longer than the period is followed by the next at once.
        assert_eq!(schedule.next(seconds(100), seconds(150), 0.5), Duration::ZERO);
    }

    #[test]
    fn words_are_read_as_they_are_written() {
        for health in [Health::Healthy, Health::Unhealthy] {
            assert_eq!(Health::of_word(health.word()), Some(health));
        }
        assert_eq!(Health::of_word("well"), None);
    }
}
