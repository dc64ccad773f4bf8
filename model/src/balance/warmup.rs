//! The growing share of new endpoints, as Envoy's slow start has it.

use std::time::Duration;

use super::FULL;
use crate::destination_rule::Warmup;

impl Warmup {
    /// The share, in thousandths, of an endpoint that is known for so long.
    pub fn warmth(&self, age: Duration) -> u32 {
        if age >= self.duration {
            return FULL;
        }
        // In the first second it is as if that were over: a share of nothing would last for ever under no load.
        let passed = age.max(Duration::from_secs(1)).as_secs_f64() / self.duration.as_secs_f64();
        let grown = passed.min(1.0).powf(1.0 / self.aggression.to_f64().max(f64::EPSILON));
        let share = grown.max(self.minimum_percent.to_f64() / 100.0).min(1.0);
        ((share * f64::from(FULL)) as u32).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decimal::Decimal;

    #[test]
    fn grows_from_the_least_to_all() {
        let check = |minimum, aggression: &str, age, expected| {
            let aggression = aggression.parse().expect("a number");
            let minimum_percent = Decimal::whole(minimum);
            let warmup = Warmup { duration: Duration::from_secs(100), minimum_percent, aggression };
            assert_eq!(warmup.warmth(Duration::from_secs(age)), expected, "{minimum} {aggression} {age}");
        };
        check(10, "1", 0, 100);
        check(10, "1", 50, 500);
        check(10, "1", 99, 990);
        check(10, "1", 100, 1000);
        check(0, "1", 0, 10);
        check(0, "2", 25, 500);
        check(0, "0.5", 50, 250);
        check(100, "1", 0, 1000);
        check(0, "0", 50, 1);
    }
}
