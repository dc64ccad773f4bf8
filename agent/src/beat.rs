//! Looks that are taken again and again, all at the same moments: an idle host wakes once for many of them.

use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The moment that beats are counted from.
static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Waits for the next whole multiple of `period` since this process began: a moment, and `period` at most. A period of none
/// is over at once.
pub async fn next(period: Duration) {
    let began = *BEGAN;
    sleep_until(began + until_next(began.elapsed(), period)).await;
}

/// When the first beat behind `elapsed` is.
fn until_next(elapsed: Duration, period: Duration) -> Duration {
    let beats = elapsed.as_nanos().checked_div(period.as_nanos()).unwrap_or_default() + 1;
    period.saturating_mul(u32::try_from(beats).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_of_one_second_and_of_two_are_at_the_same_moments() {
        let beats = |period: u64, after: u64| {
            let (period, mut now) = (Duration::from_secs(period), Duration::from_millis(after));
            std::iter::repeat_with(move || {
                now = until_next(now, period);
                now.as_millis()
            })
        };
        assert!(beats(1, 10).take(4).eq([1000, 2000, 3000, 4000]));
        assert!(beats(2, 1990).take(3).eq([2000, 4000, 6000]));
        assert!(beats(2, 2000).take(2).eq([4000, 6000]), "a beat that is now is over");
        assert_eq!(until_next(Duration::from_secs(7), Duration::ZERO), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_beat_is_waited_for_as_long_as_the_period_at_most() {
        let period = Duration::from_secs(3);
        next(period).await;
        for _ in 0..3 {
            let began = Instant::now();
            next(period).await;
            // The clock that is waited on counts whole milliseconds.
            assert!(began.elapsed() <= period + Duration::from_millis(1), "{:?}", began.elapsed());
            assert!(began.elapsed() > period / 2, "{:?}", began.elapsed());
        }
    }
}
