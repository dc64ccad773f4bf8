//! Rules are put back at once. Where somebody changes them again and again, such as a second agent, each would otherwise undo
//! the other as fast as it can: the pauses grow. A notice that leads to nothing is followed by a short pause as well.

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
    /// Until when notices wait, because the last one led to nothing.
    heedless_until: Option<Instant>,
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

    /// Somebody was said to have changed the rules, and they were as they should be. Where the kernel's word on who it was
    /// cannot be trusted it may have been this process, whose next look would be noticed like this one.
    pub fn nothing_found(&mut self, now: Instant) {
        self.heedless_until = Some(now + FIRST);
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
        let of_fight =
            self.last.map_or(Duration::ZERO, |last| (last + self.pause).saturating_duration_since(now));
        let of_nothing =
            self.heedless_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        of_fight.max(of_nothing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_that_lead_to_nothing_are_heeded_once_a_second() {
        let start = Instant::now();
        let mut respite = Respite::default();
        respite.nothing_found(start);
        assert!(!respite.is_over(start));
        assert_eq!(respite.bound(QUIET, start), FIRST, "what is changed meanwhile is looked at when it ends");
        assert!(respite.is_over(start + FIRST));
        // It is no fight.
        respite.begin(start + FIRST);
        assert!(respite.is_over(start + FIRST));
    }

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
