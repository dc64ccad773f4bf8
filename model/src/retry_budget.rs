//! How many of the requests in flight to a service may be retries: a share of them, and at least a few.

use crate::decimal::Decimal;

/// A budget of retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryBudget {
    /// Retries per hundred requests that are in flight or waiting, 0 to 100.
    pub percent: Decimal,
    /// Retries that are allowed however few requests there are.
    pub min_concurrency: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { percent: Decimal::whole(20), min_concurrency: 3 }
    }
}

impl RetryBudget {
    /// Whether one more retry may begin, beside `retries` under way and with `requests` in flight or waiting, the
    /// retries among them.
    pub fn allows(&self, retries: u32, requests: u32) -> bool {
        let share = self.percent.percent_of(u64::from(requests));
        u64::from(retries) < share.max(u64::from(self.min_concurrency))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_and_at_least_a_few() {
        let budget = RetryBudget::default();
        let check = |retries, requests, expected| {
            assert_eq!(budget.allows(retries, requests), expected, "{retries} of {requests}");
        };
        check(0, 1, true);
        check(2, 10, true);
        check(3, 15, false);
        check(3, 20, true);
        check(19, 100, true);
        check(20, 100, false);
        let none = RetryBudget { percent: Decimal::default(), min_concurrency: 0 };
        assert!(!none.allows(0, u32::MAX));
    }
}
