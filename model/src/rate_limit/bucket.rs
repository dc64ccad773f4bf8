//! One count: a token bucket in the form of the generic cell rate algorithm (ITU-T I.371), whose whole state is one number,
//! the moment from which the bucket is full. A request moves that moment on by the time that one token takes to come
//! back; where it would lie further off than all tokens take, the request is one too many.

use std::num::NonZeroU32;
use std::time::Duration;

/// The most requests a second. More is no limit, and the time between two could not be told in nanoseconds.
pub const MAX_RATE: u32 = 1_000_000;
/// The longest that an empty bucket takes to be full again. Moments fit into their number for as long as hosts are up.
pub const MAX_REFILL: Duration = Duration::from_secs(366 * 24 * 3600);

/// How many requests are let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    requests: NonZeroU32,
    per: Duration,
    burst: NonZeroU32,
}

/// Why numbers are no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// A number is zero.
    #[error("a limit of nothing refuses everything: use AuthorizationPolicy for that")]
    Zero,
    /// Over `MAX_RATE`.
    #[error("more than {MAX_RATE} requests a second are no limit")]
    TooFast,
    /// Over `MAX_REFILL`.
    #[error("`burst` requests would take more than {} days to come back", MAX_REFILL.as_secs() / 86_400)]
    TooSlow,
}

impl Limit {
    /// So many `requests` in each time `per`, and `burst` at once at most.
    pub fn new(requests: u32, per: Duration, burst: u32) -> Result<Self, LimitError> {
        let (Some(requests), Some(burst)) = (NonZeroU32::new(requests), NonZeroU32::new(burst)) else {
            return Err(LimitError::Zero);
        };
        if per.is_zero() {
            return Err(LimitError::Zero);
        }
        let (rate, seconds) = (u128::from(requests.get()) * 1_000_000_000, per.as_nanos());
        if rate > seconds * u128::from(MAX_RATE) {
            return Err(LimitError::TooFast);
        }
        let limit = Self { requests, per, burst };
        let refill = limit.interval().checked_mul(u128::from(burst.get()));
        match refill {
            Some(refill) if refill <= MAX_REFILL.as_nanos() => Ok(limit),
            _ => Err(LimitError::TooSlow),
        }
    }

    /// The requests of one period.
    pub fn requests(&self) -> u32 {
        self.requests.get()
    }

    /// The period.
    pub fn per(&self) -> Duration {
        self.per
    }

    /// The most at once.
    pub fn burst(&self) -> u32 {
        self.burst.get()
    }

    /// Nanoseconds until one token is back, rounded up: never more than was written is let through.
    fn interval(&self) -> u128 {
        self.per.as_nanos().div_ceil(u128::from(self.requests.get()))
    }

    /// Its arithmetic.
    pub fn bucket(&self) -> Bucket {
        // At most `MAX_REFILL`, which fits.
        let interval = u64::try_from(self.interval()).unwrap_or(u64::MAX);
        Bucket { interval, capacity: interval.saturating_mul(u64::from(self.burst.get())) }
    }
}

/// The arithmetic of one limit, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// Until one token is back.
    interval: u64,
    /// Until an empty bucket is full.
    capacity: u64,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on, and so many more would.
    Allowed {
        /// Whole tokens that are left.
        left: u64,
    },
    /// It does not, and one would after this time, if nothing else came before it.
    Refused {
        /// More than zero.
        wait: Duration,
    },
}

impl Verdict {
    /// Whether the request goes on.
    pub fn allows(&self) -> bool {
        matches!(self, Self::Allowed { .. })
    }
}

impl Bucket {
    /// Takes a token from a bucket that is full from `full_at` on; returns from when on it is full after that. 0 is a
    /// bucket that was never used.
    pub fn take(&self, full_at: u64, now: u64) -> (u64, Verdict) {
        let after = full_at.max(now).saturating_add(self.interval);
        let missing = after - now;
        match missing.checked_sub(self.capacity) {
            None | Some(0) => (after, Verdict::Allowed { left: (self.capacity - missing) / self.interval }),
            Some(wait) => (full_at, Verdict::Refused { wait: Duration::from_nanos(wait) }),
        }
    }

    /// Puts back a token that was taken for a request that something else refused.
    pub fn give_back(&self, full_at: u64) -> u64 {
        full_at.saturating_sub(self.interval)
    }

    /// The moment under other numbers: as many requests stay used as were before, at most all.
    pub fn converted(&self, full_at: u64, now: u64, before: &Self) -> u64 {
        let missing = u128::from(full_at.saturating_sub(now));
        let same = missing * u128::from(self.interval) / u128::from(before.interval);
        let missing = u64::try_from(same).unwrap_or(u64::MAX).min(self.capacity);
        now.saturating_add(missing)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn limit(requests: u32, per: Duration, burst: u32) -> Limit {
        Limit::new(requests, per, burst).expect("a limit")
    }

    #[test]
    fn numbers_that_are_no_limit() {
        let check = |requests, per, burst, expected| {
            assert_eq!(Limit::new(requests, per, burst).err(), expected, "{requests} {per:?} {burst}");
        };
        let second = Duration::from_secs(1);
        check(1, second, 1, None);
        check(0, second, 1, Some(LimitError::Zero));
        check(1, second, 0, Some(LimitError::Zero));
        check(1, Duration::ZERO, 1, Some(LimitError::Zero));
        check(MAX_RATE, second, 1, None);
        check(MAX_RATE + 1, second, 1, Some(LimitError::TooFast));
        check(u32::MAX, Duration::from_nanos(1), u32::MAX, Some(LimitError::TooFast));
        check(1, MAX_REFILL, 1, None);
        check(1, MAX_REFILL, 2, Some(LimitError::TooSlow));
        check(1, Duration::MAX, u32::MAX, Some(LimitError::TooSlow));
        check(366 * 86_400, MAX_REFILL, u32::MAX, Some(LimitError::TooSlow));
    }

    #[test]
    fn lets_the_burst_through_and_then_the_rate() {
        let bucket = limit(5, Duration::from_secs(10), 3).bucket();
        let (mut full_at, now) = (0, 7 * SECOND);
        let mut take = |now| {
            let (after, verdict) = bucket.take(full_at, now);
            full_at = after;
            verdict
        };
        for left in [2, 1, 0] {
            assert_eq!(take(now), Verdict::Allowed { left });
        }
        let refused = |seconds| Verdict::Refused { wait: Duration::from_millis(seconds) };
        assert_eq!(take(now), refused(2000));
        assert_eq!(take(now + SECOND / 2), refused(1500), "a refusal costs nothing");
        assert_eq!(take(now + 2 * SECOND), Verdict::Allowed { left: 0 });
        assert_eq!(take(now + 3 * SECOND), refused(1000));
        assert_eq!(
            take(now + 1000 * SECOND),
            Verdict::Allowed { left: 2 },
            "no more than the burst comes together"
        );
        // A clock of another thread may be a little behind.
        assert_eq!(take(now + 999 * SECOND), Verdict::Allowed { left: 0 });
    }

    #[test]
    fn what_is_given_back_can_be_taken() {
        let bucket = limit(1, Duration::from_secs(1), 1).bucket();
        let (after, verdict) = bucket.take(0, SECOND);
        assert!(verdict.allows() && !bucket.take(after, SECOND).1.allows());
        assert!(bucket.take(bucket.give_back(after), SECOND).1.allows());
    }

    #[test]
    fn used_requests_stay_used_under_other_numbers() {
        let check = |before: Limit, after: Limit, used: u32, left: Option<u64>| {
            let (mut full_at, now) = (0, 100 * SECOND);
            for _ in 0..used {
                full_at = before.bucket().take(full_at, now).0;
            }
            let converted = after.bucket().converted(full_at, now, &before.bucket());
            let verdict = after.bucket().take(converted, now).1;
            let expected = left.map(|left| Verdict::Allowed { left });
            assert_eq!(Some(verdict).filter(Verdict::allows), expected, "{before:?} {after:?} {used}");
        };
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        check(limit(5, minute, 5), limit(10, second, 10), 3, Some(6));
        check(limit(10, second, 10), limit(5, minute, 5), 3, Some(1));
        check(limit(10, second, 10), limit(5, minute, 5), 8, None);
        check(limit(10, second, 10), limit(10, second, 10), 0, Some(9));
    }

    /// A bucket with tokens in it, counted in parts that come back one a nanosecond: another way to say the same.
    struct Tokens {
        level: u64,
        at: u64,
    }

    impl Tokens {
        fn take(&mut self, bucket: &Bucket, now: u64) -> bool {
            let came = now - self.at;
            (self.level, self.at) = (self.level.saturating_add(came).min(bucket.capacity), now);
            let allows = self.level >= bucket.interval;
            self.level -= if allows { bucket.interval } else { 0 };
            allows
        }
    }

    proptest! {
        #[test]
        fn decides_as_a_bucket_of_tokens_does(
            requests in 1..2000_u32,
            per in 2..100_000_u64,
            burst in 1..50_u32,
            steps in vec(0..2_000_000_u64, 1..200),
        ) {
            let bucket = limit(requests, Duration::from_millis(per), burst).bucket();
            let (mut full_at, mut now) = (0, SECOND);
            let mut tokens = Tokens { level: bucket.capacity, at: now };
            for step in steps {
                // Shares of what one token takes, often less, sometimes far more.
                now += step * bucket.interval / 400_000;
                let (after, verdict) = bucket.take(full_at, now);
                prop_assert_eq!(verdict.allows(), tokens.take(&bucket, now));
                match verdict {
                    Verdict::Allowed { left } => prop_assert_eq!(left, tokens.level / bucket.interval),
                    Verdict::Refused { wait } => {
                        let then = now + u64::try_from(wait.as_nanos()).expect("short");
                        prop_assert!(bucket.take(after, then).1.allows(), "one goes on after the wait");
                        prop_assert!(!bucket.take(after, then - 1).1.allows(), "and not before");
                    }
                }
                full_at = after;
            }
        }

        #[test]
        fn in_no_time_goes_more_through_than_was_written(
            requests in 1..100_u32,
            per in 1..10_000_u64,
            burst in 1..20_u32,
            steps in vec(0..50_000_000_u64, 1..300),
        ) {
            let per = Duration::from_millis(per);
            let bucket = limit(requests, per, burst).bucket();
            let (mut full_at, mut now, mut through) = (0, SECOND, Vec::new());
            for step in steps {
                now += step;
                let (after, verdict) = bucket.take(full_at, now);
                full_at = after;
                if verdict.allows() {
                    through.push(now);
                }
            }
            for (index, from) in through.iter().enumerate() {
                for (further, to) in through[index..].iter().enumerate() {
                    let most = u128::from(burst) + u128::from(to - from) * u128::from(requests) / per.as_nanos();
                    prop_assert!((further as u128) < most, "{} in {} ns", further + 1, to - from);
                }
            }
        }

        #[test]
        fn no_number_overflows(full_at in any::<u64>(), now in any::<u64>(), burst in any::<u32>(), per in any::<u64>()) {
            if let Ok(limit) = Limit::new(1, Duration::from_nanos(per), burst) {
                let bucket = limit.bucket();
                let (after, _) = bucket.take(full_at, now);
                bucket.give_back(after);
                bucket.converted(after, now, &Limit::new(1, Duration::from_secs(1), 1).expect("one").bucket());
            }
        }
    }
}
