//! When a request is tried again, and after how long. What an outcome is and which of them are retried are Envoy's terms,
//! which Istio's `retryOn` names.

use std::time::Duration;

use super::retry_on::{RetryConditions, RetryOn};
use crate::http::ResponseHead;

/// How failures are retried. The default is what holds for a route without a `retries` block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries after the first. 0 turns retries off.
    pub attempts: u32,
    /// How long one try may take; none: the route's whole timeout.
    pub per_try_timeout: Option<Duration>,
    /// What is retried.
    pub conditions: RetryConditions,
    /// The interval that back-off starts with, more than 0.
    pub backoff: Duration,
    /// Whether a retry avoids the endpoints that were tried; none: yes, unless a consistent hash chooses the endpoint.
    pub ignore_previous_hosts: Option<bool>,
    /// Whether a retry goes to other localities.
    pub remote_localities: bool,
}

/// The interval that back-off starts with unless it is set.
pub const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);
/// How many times its base the back-off grows to at most.
const BACKOFF_GROWTH: u32 = 10;
/// Retries unless they are set.
pub const DEFAULT_ATTEMPTS: u32 = 2;

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: DEFAULT_ATTEMPTS,
            per_try_timeout: None,
            conditions: RetryConditions::default(),
            backoff: DEFAULT_BACKOFF,
            ignore_previous_hosts: None,
            remote_localities: false,
        }
    }
}

/// How one try ended.
#[derive(Debug, Clone, Copy)]
pub enum TryOutcome<'a> {
    /// No connection was had: refused, timed out, no TLS. Nothing of the request was sent.
    NotConnected,
    /// The peer said that it did nothing with the request (HTTP/2's REFUSED_STREAM, or a GOAWAY below its number).
    RefusedStream,
    /// The connection or stream ended without an answer.
    Reset(Sent),
    /// The try took longer than `perTryTimeout`.
    TimedOut,
    /// A limit of the mesh's own was reached. Never retried: it would make it worse.
    Overflow,
    /// An answer's head came. gRPC's status counts where it stands in the head.
    Answered(&'a ResponseHead),
}

/// How much of a request had been sent when its try failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Nothing.
    Nothing,
    /// Something: the peer may have seen it.
    Something,
}

impl RetryPolicy {
    /// Whether a try that ended so is worth another. Attempts, budget, replay buffer and timeouts are the caller's to see to.
    pub fn retries_on(&self, outcome: TryOutcome<'_>) -> bool {
        use RetryOn::{ConnectFailure, GatewayError, RefusedStream, Reset, ResetBeforeRequest, ServerError};
        if self.attempts == 0 {
            return false;
        }
        let conditions = &self.conditions;
        // No answer is what the caller would be told as a 503 or 504.
        let unanswered = conditions.any(&[ServerError, GatewayError, Reset]);
        match outcome {
            TryOutcome::Overflow => false,
            TryOutcome::Answered(head) => conditions.retry_answer(head),
            TryOutcome::NotConnected => unanswered || conditions.any(&[ConnectFailure, ResetBeforeRequest]),
            TryOutcome::RefusedStream => unanswered || conditions.has(RefusedStream),
            TryOutcome::Reset(Sent::Nothing) => unanswered || conditions.has(ResetBeforeRequest),
            TryOutcome::Reset(Sent::Something) | TryOutcome::TimedOut => unanswered,
        }
    }

    /// How long to wait before retry number `retry`, from 1: anything up to the base doubled with each, at most ten times
    /// the base. `random` is evenly spread.
    pub fn backoff(&self, retry: u32, random: u64) -> Duration {
        let doubled = 2_u32.saturating_pow(retry.saturating_sub(1)).min(BACKOFF_GROWTH);
        let most = u64::try_from(self.backoff.saturating_mul(doubled).as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(random % most.max(1))
    }

    /// Whether a retry avoids the endpoints that were tried, where the endpoint is chosen by a hash or not.
    pub fn ignores_previous_hosts(&self, choice: EndpointChoice) -> bool {
        self.ignore_previous_hosts.unwrap_or(choice == EndpointChoice::Free)
    }
}

/// How endpoints are chosen, as far as retries look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointChoice {
    /// Any of them will do.
    Free,
    /// A consistent hash says which one.
    Hashed,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(retry_on: &str) -> RetryPolicy {
        let conditions = RetryConditions::parse(retry_on).expect("conditions");
        RetryPolicy { conditions, ..RetryPolicy::default() }
    }

    fn answer(status: u16, field: Option<(&str, &str)>) -> ResponseHead {
        let mut head = ResponseHead { status, ..ResponseHead::default() };
        if let Some((name, value)) = field {
            head.headers.append(name, value.as_bytes()).expect("a field");
        }
        head
    }

    #[test]
    fn without_a_block_only_what_nobody_saw_is_retried() {
        let default = RetryPolicy::default();
        let check = |outcome: TryOutcome<'_>, expected| {
            assert_eq!(default.retries_on(outcome), expected, "{outcome:?}");
        };
        check(TryOutcome::NotConnected, true);
        check(TryOutcome::RefusedStream, true);
        check(TryOutcome::Reset(Sent::Nothing), false);
        check(TryOutcome::Reset(Sent::Something), false);
        check(TryOutcome::TimedOut, false);
        check(TryOutcome::Overflow, false);
        check(TryOutcome::Answered(&answer(503, None)), false);
        check(TryOutcome::Answered(&answer(200, Some(("grpc-status", "14")))), true);
        check(TryOutcome::Answered(&answer(200, Some(("grpc-status", "1")))), true);
        check(TryOutcome::Answered(&answer(200, Some(("grpc-status", "4")))), false);
    }

    #[test]
    fn answers_are_retried_by_every_word() {
        let check = |retry_on: &str, status, field: Option<(&str, &str)>, expected| {
            let outcome = answer(status, field);
            let found = policy(retry_on).retries_on(TryOutcome::Answered(&outcome));
            assert_eq!(found, expected, "{retry_on} on {status} {field:?}");
        };
        check("5xx", 500, None, true);
        check("5xx", 404, None, false);
        check("gateway-error", 500, None, false);
        check("gateway-error", 504, None, true);
        check("retriable-4xx", 409, None, true);
        check("retriable-4xx", 404, None, false);
        check("404,gateway-error", 404, None, true);
        check("retriable-status-codes,418", 418, None, true);
        check("retriable-status-codes", 503, None, false);
        check("reset,connect-failure", 503, None, false);
        for (word, code) in [
            ("cancelled", "1"),
            ("deadline-exceeded", "4"),
            ("resource-exhausted", "8"),
            ("internal", "13"),
            ("unavailable", "14"),
        ] {
            check(word, 200, Some(("grpc-status", code)), true);
            check(word, 200, Some(("grpc-status", "2")), false);
        }
        check("5xx", 503, Some(("x-envoy-overloaded", "true")), false);
        check("5xx", 503, Some(("x-envoy-ratelimited", "true")), false);
        check("envoy-ratelimited", 429, Some(("x-envoy-ratelimited", "true")), true);
    }

    #[test]
    fn failures_are_retried_by_every_word() {
        let (sent, unsent) = (TryOutcome::Reset(Sent::Something), TryOutcome::Reset(Sent::Nothing));
        let all = [TryOutcome::NotConnected, TryOutcome::RefusedStream, unsent, sent, TryOutcome::TimedOut];
        let check = |retry_on: &str, expected: [bool; 5]| {
            let found = all.map(|outcome| policy(retry_on).retries_on(outcome));
            assert_eq!(found, expected, "{retry_on}");
            assert!(!policy(retry_on).retries_on(TryOutcome::Overflow), "{retry_on}");
        };
        check("5xx", [true; 5]);
        check("gateway-error", [true; 5]);
        check("reset", [true; 5]);
        check("connect-failure", [true, false, false, false, false]);
        check("reset-before-request", [true, false, true, false, false]);
        check("refused-stream", [false, true, false, false, false]);
        check("503", [false; 5]);
        let off = RetryPolicy { attempts: 0, ..policy("5xx") };
        assert!(all.iter().all(|outcome| !off.retries_on(*outcome)));
    }

    #[test]
    fn waits_between_nothing_and_ten_times_the_base() {
        let policy = RetryPolicy::default();
        let longest = |retry| {
            let at = |random| policy.backoff(retry, random);
            (0..1_000_000_u64).step_by(997).map(|step| at(step * 1_000)).max().unwrap_or_default()
        };
        for (retry, most) in [(1, 25), (2, 50), (3, 100), (4, 200), (5, 250), (99, 250)] {
            let most = Duration::from_millis(most);
            let found = longest(retry);
            assert!(found < most && found > most * 9 / 10, "retry {retry}: {found:?}");
        }
        assert_eq!(policy.backoff(0, 0), Duration::ZERO);
    }

    #[test]
    fn previous_hosts_are_avoided_unless_a_hash_chooses() {
        let mut policy = RetryPolicy::default();
        assert!(policy.ignores_previous_hosts(EndpointChoice::Free));
        assert!(!policy.ignores_previous_hosts(EndpointChoice::Hashed));
        policy.ignore_previous_hosts = Some(true);
        assert!(policy.ignores_previous_hosts(EndpointChoice::Hashed));
    }
}
