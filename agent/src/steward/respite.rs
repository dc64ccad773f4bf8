//! Rules are put back at once. Where somebody changes them again and again, such as a second agent, each would otherwise undo
//! the other as fast as it can: the pauses grow.

use std::time::{Duration, Instant};

/// The pause after the second time in a row; doubled with each, up to the longest.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(30);
/// After so long without a change the next one is the first again.
const QUIET: Duration = Duration::from_secs(60);

/// Until when nobody hurries.
#[derive(Debug, Default)]
pub struct Respite {
    last: Option<Instant>,
    pause: Duration,
}

impl Respite {
    /// The rules were put back at `now`.
    pub fn begin(&mut self, now: Instant) {
        let again = self.last.is_some_and(|last| now.saturating_duration_since(last) < QUIET + self.pause);
        self.pause = match (again, self.pause) {
            (false, _) => Duration::ZERO,
            (true, Duration::ZERO) => FIRST,
            (true, pause) => (pause * 2).min(LONGEST),
        };
        self.last = Some(now);
    }

    /// Whether what is changed now is looked at at once.
    pub fn is_over(&self, now: Instant) -> bool {
        self.left(now).is_zero()
    }

    /// How long to wait for the next look, which is due after `wait` without a pause: what was changed during one is looked at
    /// when it ends.
    pub fn bound(&self, wait: Duration, now: Instant) -> Duration {
        let left = self.left(now);
        if left.is_zero() { wait } else { wait.min(left) }
    }

    fn left(&self, now: Instant) -> Duration {
        self.last.map_or(Duration::ZERO, |last| (last + self.pause).saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_time_is_mended_at_once_and_a_fight_slows_down() {
        let start = Instant::now();
        let mut respite = Respite::default();
        assert!(respite.is_over(start));
        let mut now = start;
        let mut pauses = Vec::new();
        for _ in 0..7 {
            respite.begin(now);
            let left = respite.bound(Duration::from_secs(100), now);
            pauses.push(if respite.is_over(now) { 0 } else { left.as_secs() });
            now += Duration::from_secs(pauses[pauses.len() - 1]);
            assert!(respite.is_over(now));
        }
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 30]);
        respite.begin(now + QUIET + LONGEST);
        assert!(respite.is_over(now + QUIET + LONGEST), "a change long after is the first again");
        assert_eq!(respite.bound(Duration::from_secs(2), now + QUIET + LONGEST), Duration::from_secs(2));
    }
}
