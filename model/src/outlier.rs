//! Leaving out endpoints that fail: Istio's and Envoy's outlier ejection. An endpoint that fails so many times in a row is
//! left out for a time that grows with each ejection, as long as enough others are left. Everything here is a pure
//! function of small values, so that whoever keeps them may do so in atomics.

use std::time::Duration;

/// When an endpoint is left out, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Failures in a row; 0 switches it off. Connects that fail are among them, unless `split_local`.
    pub consecutive_5xx: u16,
    /// Of those, 502, 503, 504 and failed connects alone; 0 switches it off.
    pub consecutive_gateway: u16,
    /// Failures without an answer are counted apart, and answers alone count above.
    pub split_local: bool,
    /// Failures without an answer in a row, with `split_local`; 0 switches it off.
    pub consecutive_local: u16,
    /// For each such time without an ejection, one ejection is forgotten.
    pub interval: Duration,
    /// How long the first ejection is; the second is twice as long.
    pub base_ejection_time: Duration,
    /// How much of the endpoints may be left out, in per cent.
    pub max_ejection_percent: u8,
    /// While fewer are well, in per cent, nothing is left out; 0 switches it off.
    pub min_health_percent: u8,
}

/// The longest ejection, unless the first one is longer.
pub const MAX_EJECTION_TIME: Duration = Duration::from_secs(300);

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway: 0,
            split_local: false,
            consecutive_local: 5,
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_percent: 10,
            min_health_percent: 0,
        }
    }
}

/// How one connection or request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// An answer that is no server error; for TCP, a connect.
    Success,
    /// A status of 5xx, and not one of the gateway's.
    ServerError,
    /// A status of 502, 503 or 504.
    GatewayError,
    /// No answer: a failed connect, a reset, a time-out.
    LocalFailure,
}

impl Outcome {
    /// What an HTTP status says.
    pub fn of_status(status: u16) -> Self {
        match status {
            502..=504 => Self::GatewayError,
            500..=599 => Self::ServerError,
            _ => Self::Success,
        }
    }
}

/// Failures in a row of one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Streaks {
    five_xx: u16,
    gateway: u16,
    local: u16,
}

/// Why an endpoint is to be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// `consecutive5xxErrors`
    Consecutive5xx,
    /// `consecutiveGatewayErrors`
    ConsecutiveGateway,
    /// `consecutiveLocalOriginFailures`
    ConsecutiveLocal,
}

impl Cause {
    /// The name of the field that says so.
    pub fn name(self) -> &'static str {
        match self {
            Self::Consecutive5xx => "consecutive5xxErrors",
            Self::ConsecutiveGateway => "consecutiveGatewayErrors",
            Self::ConsecutiveLocal => "consecutiveLocalOriginFailures",
        }
    }
}

impl Streaks {
    /// Whether nothing has failed since the last success.
    pub fn is_clean(self) -> bool {
        self == Self::default()
    }

    /// The streaks after one more outcome, and whether one of them is long enough. A streak that is starts anew.
    pub fn after(self, outcome: Outcome, settings: &OutlierDetection) -> (Self, Option<Cause>) {
        let one_more = |streak: u16, counts: bool| if counts { streak.saturating_add(1) } else { 0 };
        let local = outcome == Outcome::LocalFailure;
        let next = if settings.split_local {
            // Any answer at all is a success of the local side; no answer says nothing of the server's.
            let answered = |streak, failed| if local { streak } else { one_more(streak, failed) };
            Self {
                five_xx: answered(
                    self.five_xx,
                    matches!(outcome, Outcome::ServerError | Outcome::GatewayError),
                ),
                gateway: answered(self.gateway, outcome == Outcome::GatewayError),
                local: one_more(self.local, local),
            }
        } else {
            Self {
                five_xx: one_more(self.five_xx, outcome != Outcome::Success),
                gateway: one_more(self.gateway, local || outcome == Outcome::GatewayError),
                local: 0,
            }
        };
        next.judged(settings)
    }

    fn judged(mut self, settings: &OutlierDetection) -> (Self, Option<Cause>) {
        let causes = [
            (&mut self.five_xx, settings.consecutive_5xx, Cause::Consecutive5xx),
            (&mut self.gateway, settings.consecutive_gateway, Cause::ConsecutiveGateway),
            (&mut self.local, settings.consecutive_local, Cause::ConsecutiveLocal),
        ];
        let mut found = None;
        for (streak, limit, cause) in causes {
            if limit > 0 && *streak >= limit {
                *streak = 0;
                found = found.or(Some(cause));
            }
        }
        (self, found)
    }

    /// As one number.
    pub fn pack(self) -> u64 {
        u64::from(self.five_xx) | u64::from(self.gateway) << 16 | u64::from(self.local) << 32
    }

    /// From what `pack` made.
    pub fn unpack(number: u64) -> Self {
        let part = |shift: u32| (number >> shift & u64::from(u16::MAX)) as u16;
        Self { five_xx: part(0), gateway: part(16), local: part(32) }
    }
}

/// The ejections of one endpoint. Times are since whatever epoch the keeper has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Ejections {
    /// How many count towards the next one's length.
    pub count: u32,
    /// Until when the endpoint is left out; in the past, it is not.
    pub until: Duration,
}

impl Ejections {
    /// Whether the endpoint is left out.
    pub fn is_ejected(self, now: Duration) -> bool {
        now < self.until
    }

    /// One more ejection. It is as long as the base time as often as ejections count; for each interval that passed
    /// since the endpoint came back, one is forgotten.
    pub fn another(self, settings: &OutlierDetection, now: Duration) -> Self {
        let quiet = now.saturating_sub(self.until).as_nanos() / settings.interval.as_nanos().max(1);
        let remembered = self.count.saturating_sub(u32::try_from(quiet).unwrap_or(u32::MAX));
        let count = remembered.saturating_add(1);
        let most = MAX_EJECTION_TIME.max(settings.base_ejection_time);
        let length = settings.base_ejection_time.saturating_mul(count).min(most);
        Self { count, until: now.saturating_add(length) }
    }
}

impl OutlierDetection {
    /// Whether one more of `total` endpoints may be left out beside `ejected` that are.
    pub fn has_room(&self, ejected: usize, total: usize) -> bool {
        (ejected + 1).saturating_mul(100) <= usize::from(self.max_ejection_percent).saturating_mul(total)
    }

    /// Whether so few are well that nothing is left out.
    pub fn is_panic(&self, healthy: usize, total: usize) -> bool {
        healthy.saturating_mul(100) < usize::from(self.min_health_percent).saturating_mul(total)
    }
}

#[cfg(test)]
mod tests {
    use super::Outcome::*;
    use super::*;

    fn check(settings: &OutlierDetection, outcomes: &[Outcome], expected: Option<Cause>) {
        let mut streaks = Streaks::default();
        let mut cause = None;
        for (index, outcome) in outcomes.iter().enumerate() {
            assert_eq!(cause, None, "before outcome {index} of {outcomes:?}");
            // Through the packed form, as it is kept.
            (streaks, cause) = Streaks::unpack(streaks.pack()).after(*outcome, settings);
        }
        assert_eq!(cause, expected, "{outcomes:?}");
    }

    #[test]
    fn failures_in_a_row_eject() {
        let settings = OutlierDetection { consecutive_5xx: 3, ..OutlierDetection::default() };
        check(&settings, &[ServerError, GatewayError, LocalFailure], Some(Cause::Consecutive5xx));
        check(&settings, &[ServerError, ServerError, Success, ServerError, ServerError], None);
        check(&OutlierDetection { consecutive_5xx: 0, ..settings }, &[ServerError; 20], None);
    }

    #[test]
    fn gateway_errors_have_a_count_of_their_own() {
        let settings = OutlierDetection { consecutive_gateway: 2, ..OutlierDetection::default() };
        check(&settings, &[GatewayError, LocalFailure], Some(Cause::ConsecutiveGateway));
        check(&settings, &[GatewayError, ServerError, GatewayError, ServerError], None);
        check(
            &settings,
            &[ServerError, ServerError, ServerError, ServerError, ServerError],
            Some(Cause::Consecutive5xx),
        );
    }

    #[test]
    fn split_counts_answers_and_their_absence_apart() {
        let settings = OutlierDetection {
            split_local: true,
            consecutive_5xx: 2,
            consecutive_local: 2,
            ..OutlierDetection::default()
        };
        check(&settings, &[ServerError, LocalFailure, ServerError], Some(Cause::Consecutive5xx));
        check(&settings, &[LocalFailure, LocalFailure], Some(Cause::ConsecutiveLocal));
        check(&settings, &[LocalFailure, ServerError, LocalFailure], None);
    }

    #[test]
    fn ejections_grow_and_are_forgotten() {
        let settings = OutlierDetection::default();
        let at = Duration::from_secs;
        let first = Ejections::default().another(&settings, at(1000));
        assert_eq!(first, Ejections { count: 1, until: at(1030) });
        assert!(first.is_ejected(at(1029)) && !first.is_ejected(at(1030)));
        let second = first.another(&settings, at(1035));
        assert_eq!(second, Ejections { count: 2, until: at(1095) });
        assert_eq!(second.another(&settings, at(1107)), Ejections { count: 2, until: at(1167) });
        assert_eq!(second.another(&settings, at(9000)).count, 1);
        let many = Ejections { count: 100, until: at(2000) };
        assert_eq!(many.another(&settings, at(2000)).until, at(2300));
        let long = OutlierDetection { base_ejection_time: at(3600), ..settings };
        assert_eq!(many.another(&long, at(2000)).until, at(5600));
    }

    #[test]
    fn no_more_than_the_share_is_ejected() {
        let settings = OutlierDetection::default();
        let check = |percent, ejected, total, expected| {
            let settings = OutlierDetection { max_ejection_percent: percent, ..settings };
            assert_eq!(settings.has_room(ejected, total), expected, "{percent} {ejected} {total}");
        };
        check(10, 0, 9, false);
        check(10, 0, 10, true);
        check(10, 1, 10, false);
        check(50, 0, 2, true);
        check(100, 2, 3, true);
        check(100, 3, 3, false);
        check(0, 0, 1000, false);
    }

    #[test]
    fn few_that_are_well_mean_panic() {
        let settings = OutlierDetection { min_health_percent: 50, ..OutlierDetection::default() };
        assert!(settings.is_panic(1, 3));
        assert!(!settings.is_panic(2, 4));
        assert!(!OutlierDetection::default().is_panic(0, 3));
    }
}
