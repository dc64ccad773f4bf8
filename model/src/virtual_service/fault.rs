//! Faults on purpose: a part of the requests is delayed, a part is answered with a failure. The two are drawn apart.

use std::time::Duration;

use super::percentage::Percentage;
use crate::grpc::GrpcStatus;

/// What a route does to some of its requests. At least one of the two is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Requests that are held back before anything else.
    pub delay: Option<Delay>,
    /// Requests that are answered instead of sent, after the delay.
    pub abort: Option<Abort>,
}

/// A delay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delay {
    /// For how long; at least a millisecond.
    pub fixed: Duration,
    /// Of how many requests.
    pub percentage: Percentage,
}

/// An answer in place of the service's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Abort {
    /// The answer.
    pub status: AbortStatus,
    /// To how many requests.
    pub percentage: Percentage,
}

/// With what a request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortStatus {
    /// An HTTP status, 200 to 599.
    Http(u16),
    /// A gRPC status.
    Grpc(GrpcStatus),
}

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FaultDecision {
    /// For how long it is held back.
    pub delay: Option<Duration>,
    /// With what it is answered.
    pub abort: Option<AbortStatus>,
}

impl Fault {
    /// What happens to a request, by two draws that are independent of each other.
    pub fn decide(&self, random_delay: u64, random_abort: u64) -> FaultDecision {
        let delay = self.delay.as_ref().filter(|delay| delay.percentage.takes(random_delay));
        let abort = self.abort.as_ref().filter(|abort| abort.percentage.takes(random_abort));
        FaultDecision { delay: delay.map(|delay| delay.fixed), abort: abort.map(|abort| abort.status) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delay_and_abort_are_drawn_apart() {
        let half = Percentage::new(50.0).expect("a share");
        let second = Duration::from_secs(1);
        let fault = Fault {
            delay: Some(Delay { fixed: second, percentage: half }),
            abort: Some(Abort { status: AbortStatus::Http(503), percentage: half }),
        };
        let (hit, miss) = (0, 999_999);
        for (draws, expected) in [
            ((hit, hit), (Some(second), Some(AbortStatus::Http(503)))),
            ((hit, miss), (Some(second), None)),
            ((miss, hit), (None, Some(AbortStatus::Http(503)))),
            ((miss, miss), (None, None)),
        ] {
            let decision = fault.decide(draws.0, draws.1);
            assert_eq!((decision.delay, decision.abort), expected, "{draws:?}");
        }
    }
}
