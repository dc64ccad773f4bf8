//! How fresh an answer must be, and waiting for the next one: blocking queries
//! (<https://developer.hashicorp.com/consul/api-docs/features/blocking>) and consistency modes.

use std::time::Duration;

/// The longest wait that Consul takes.
pub const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// How fresh an answer must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// The leader asks most of the servers whether it is still that: what was written before is seen.
    Consistent,
    /// The leader answers. One that was cut off may for moments not know that there is another.
    Leader,
    /// Any server answers, and one that last heard of the leader longer ago than this is not believed: the leader is
    /// asked then.
    Stale(Duration),
}

/// How something is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// How fresh.
    pub consistency: Consistency,
    /// Answer when there is something newer than this; 0: at once.
    pub index: u64,
    /// Or, unchanged, after so long; `LONGEST_WAIT` at most.
    pub wait: Duration,
}

impl Read {
    /// What there is now, whatever it is.
    pub fn now(consistency: Consistency) -> Self {
        Self { consistency, index: 0, wait: Duration::ZERO }
    }

    /// How long Consul may take for the answer itself: it adds up to a sixteenth to the wait, so that many who wait do
    /// not come back in step.
    pub(super) fn longest(&self) -> Duration {
        if self.index == 0 { Duration::ZERO } else { self.wait.min(LONGEST_WAIT) * 17 / 16 }
    }

    /// The parameters of the query.
    pub(super) fn parameters(&self) -> Vec<(&'static str, String)> {
        let mut all = Vec::new();
        match self.consistency {
            Consistency::Consistent => all.push(("consistent", String::new())),
            Consistency::Leader => {}
            Consistency::Stale(_) => all.push(("stale", String::new())),
        }
        if self.index > 0 {
            all.push(("index", self.index.to_string()));
            all.push(("wait", format!("{}s", self.wait.min(LONGEST_WAIT).as_secs().max(1))));
        }
        all
    }
}

/// What Consul answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<T> {
    /// The value.
    pub value: T,
    /// What to wait beyond next time, as Consul said it; 0 where it said none.
    pub index: u64,
}

/// The place in a sequence of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// What is waited beyond.
    index: u64,
    /// Where the last answer stood, also after it was begun anew.
    last: u64,
}

/// What an answer's index says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// There is something new, or this is the first answer.
    Changed,
    /// The wait ended with nothing new.
    Same,
    /// The index went back, or is none: Consul's state is another than before. It is asked from the beginning next.
    Reset,
}

impl Place {
    /// How to ask from here.
    pub fn read(self, consistency: Consistency, wait: Duration) -> Read {
        Read { consistency, index: self.index, wait }
    }

    /// Moves to where an answer stands.
    pub fn advance(&mut self, index: u64) -> Step {
        let (waited, last) = (self.index, self.last);
        (self.index, self.last) = (index, index);
        if index == 0 || index < last {
            // With an index of 0 the next question would be answered at once, and so would each after it: the pause between
            // questions is the caller's.
            self.index = 0;
            return Step::Reset;
        }
        if index == waited { Step::Same } else { Step::Changed }
    }

    /// Where the last answer stood; 0 before the first.
    pub fn last(self) -> u64 {
        self.last
    }

    /// From the beginning, after a failure. That the index went back meanwhile is noticed all the same.
    pub fn reset(&mut self) {
        self.index = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_goes_back_or_is_none_is_begun_anew() {
        let check = |before: u64, got: u64, expected: Step, next: u64| {
            let mut place = Place { index: before, last: before };
            assert_eq!((place.advance(got), place.index), (expected, next), "{before} -> {got}");
        };
        check(0, 7, Step::Changed, 7);
        check(7, 9, Step::Changed, 9);
        check(7, 7, Step::Same, 7);
        check(7, 6, Step::Reset, 0);
        check(7, 0, Step::Reset, 0);
        check(0, 0, Step::Reset, 0);
        let mut place = Place { index: 7, last: 7 };
        place.reset();
        assert_eq!(place.advance(7), Step::Changed, "asked from the beginning, nothing is the same");
        place.reset();
        assert_eq!(place.advance(3), Step::Reset, "a failure in between hides no new beginning");
    }

    #[test]
    fn asks_no_longer_than_consul_takes_and_waits_longer_than_it_may_take() {
        let read = Read { consistency: Consistency::Leader, index: 3, wait: Duration::from_secs(3600) };
        assert_eq!(read.parameters(), [("index", "3".to_owned()), ("wait", "600s".to_owned())]);
        assert_eq!(read.longest(), Duration::from_millis(637_500));
        let now = Read::now(Consistency::Consistent);
        assert_eq!((now.longest(), now.parameters().len()), (Duration::ZERO, 1));
    }
}
