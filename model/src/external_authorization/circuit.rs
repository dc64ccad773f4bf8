//! When a provider is asked no more: one that gave no answer so many times in a row is left alone for a moment, so that
//! callers are told at once what they would be told after its timeout.

use std::time::{Duration, Instant};

/// Checks without an answer, one after the other, after which a provider is left alone.
pub const FAILURES: u32 = 16;
/// How long it is left alone. Then one check is made in each such time, until one is answered.
pub const PAUSE: Duration = Duration::from_secs(1);

/// How a provider did so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Circuit {
    failures: u32,
    until: Option<Instant>,
}

impl Circuit {
    /// Whether the provider is asked now.
    pub fn may_ask(&mut self, now: Instant) -> bool {
        if self.failures < FAILURES {
            return true;
        }
        if self.until.is_some_and(|until| now < until) {
            return false;
        }
        self.until = Some(now + PAUSE);
        true
    }

    /// It answered, whatever it said.
    pub fn answered(&mut self) {
        *self = Self::default();
    }

    /// It could not be reached, or did not answer in time.
    pub fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES {
            self.until = Some(now + PAUSE);
        }
    }

    /// Whether it is left alone.
    pub fn is_open(&self) -> bool {
        self.failures >= FAILURES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_answer_is_left_alone_and_asked_again_once_in_a_while() {
        let (mut circuit, start) = (Circuit::default(), Instant::now());
        for _ in 0..FAILURES - 1 {
            circuit.failed(start);
        }
        assert!(circuit.may_ask(start) && !circuit.is_open());
        circuit.failed(start);
        assert!(circuit.is_open() && !circuit.may_ask(start));
        assert!(!circuit.may_ask(start + PAUSE / 2));
        let later = start + PAUSE;
        assert!(circuit.may_ask(later), "one is let through");
        assert!(!circuit.may_ask(later), "and no second one at once");
        circuit.failed(later);
        assert!(!circuit.may_ask(later + PAUSE / 2) && circuit.may_ask(later + PAUSE));
        circuit.answered();
        assert!(circuit.may_ask(later) && !circuit.is_open());
    }

    #[test]
    fn an_answer_in_between_starts_the_count_anew() {
        let (mut circuit, now) = (Circuit::default(), Instant::now());
        for _ in 0..10 * FAILURES {
            circuit.failed(now);
            circuit.failed(now);
            circuit.answered();
        }
        assert!(circuit.may_ask(now));
    }
}
