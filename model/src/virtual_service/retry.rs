//! When a request is tried again, and after how long. What an outcome is and which of them are retried are Envoy's terms,
//! which Istio's `retryOn` names.

use std::time::Duration;

use crate::grpc::GrpcStatus;
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

/// One word of `retryOn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RetryOn {
    /// `5xx`: any 5xx, and no answer at all.
    ServerError,
    /// `gateway-error`: 502, 503, 504, and no answer at all.
    GatewayError,
    /// `reset`: no answer at all.
    Reset,
    /// `reset-before-request`: no answer, and nothing of the request was sent.
    ResetBeforeRequest,
    /// `connect-failure`: no connection was had.
    ConnectFailure,
    /// `envoy-ratelimited`: the answer says `x-envoy-ratelimited`.
    RateLimited,
    /// `retriable-4xx`: 409.
    Retriable4xx,
    /// `refused-stream`: the peer says that it did nothing with the request.
    RefusedStream,
    /// `retriable-status-codes`: the codes that stand in `retryOn` as numbers.
    StatusCodes,
    /// `cancelled` of gRPC.
    Cancelled,
    /// `deadline-exceeded` of gRPC.
    DeadlineExceeded,
    /// `internal` of gRPC.
    Internal,
    /// `resource-exhausted` of gRPC.
    ResourceExhausted,
    /// `unavailable` of gRPC.
    Unavailable,
}

/// All words, as written.
const WORDS: [(&str, RetryOn); 14] = [
    ("5xx", RetryOn::ServerError),
    ("gateway-error", RetryOn::GatewayError),
    ("reset", RetryOn::Reset),
    ("reset-before-request", RetryOn::ResetBeforeRequest),
    ("connect-failure", RetryOn::ConnectFailure),
    ("envoy-ratelimited", RetryOn::RateLimited),
    ("retriable-4xx", RetryOn::Retriable4xx),
    ("refused-stream", RetryOn::RefusedStream),
    ("retriable-status-codes", RetryOn::StatusCodes),
    ("cancelled", RetryOn::Cancelled),
    ("deadline-exceeded", RetryOn::DeadlineExceeded),
    ("internal", RetryOn::Internal),
    ("resource-exhausted", RetryOn::ResourceExhausted),
    ("unavailable", RetryOn::Unavailable),
];

impl RetryOn {
    /// The word as written.
    pub fn word(self) -> &'static str {
        WORDS.iter().find(|(_, on)| *on == self).map_or("", |(word, _)| word)
    }
}

/// What is retried: words, and status codes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryConditions {
    words: Vec<RetryOn>,
    statuses: Vec<u16>,
}

impl Default for RetryConditions {
    /// What may be retried without having been seen by anybody, and gRPC's answers that say so. The list of codes is empty,
    /// so that a plain 503 is not retried.
    fn default() -> Self {
        let words = [
            RetryOn::ConnectFailure,
            RetryOn::RefusedStream,
            RetryOn::Unavailable,
            RetryOn::Cancelled,
            RetryOn::StatusCodes,
        ];
        Self { words: words.to_vec(), statuses: Vec::new() }
    }
}

/// Why a `retryOn` was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RetryOnError {
    /// A word that there is not.
    #[error("`{0}` is not a valid retryOn policy")]
    UnknownWord(String),
    /// A number that is no status code.
    #[error("{0} is not an HTTP status code to retry on: use 100 to 599")]
    Status(String),
    /// No word at all.
    #[error("`retryOn` names nothing")]
    Empty,
}

impl RetryConditions {
    /// Reads words and status codes with commas between them. A code turns `retriable-status-codes` on.
    pub fn parse(text: &str) -> Result<Self, RetryOnError> {
        let mut conditions = Self { words: Vec::new(), statuses: Vec::new() };
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            if part.bytes().all(|b| b.is_ascii_digit()) {
                let status = part.parse().ok().filter(|status| (100..600).contains(status));
                conditions.statuses.push(status.ok_or_else(|| RetryOnError::Status(part.to_owned()))?);
            } else {
                let word = WORDS.iter().find(|(word, _)| *word == part);
                let (_, on) = word.ok_or_else(|| RetryOnError::UnknownWord(part.to_owned()))?;
                conditions.words.push(*on);
            }
        }
        if !conditions.statuses.is_empty() && !conditions.has(RetryOn::StatusCodes) {
            conditions.words.push(RetryOn::StatusCodes);
        }
        if conditions.words.is_empty() { Err(RetryOnError::Empty) } else { Ok(conditions) }
    }

    /// Whether a word is among them.
    pub fn has(&self, on: RetryOn) -> bool {
        self.words.contains(&on)
    }

    /// As written, with commas.
    pub fn text(&self) -> String {
        let words = self.words.iter().map(|on| on.word().to_owned());
        let all: Vec<String> = words.chain(self.statuses.iter().map(u16::to_string)).collect();
        all.join(",")
    }

    fn any(&self, words: &[RetryOn]) -> bool {
        words.iter().any(|on| self.has(*on))
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

impl RetryConditions {
    fn retry_answer(&self, head: &ResponseHead) -> bool {
        if head.headers.contains("x-envoy-overloaded") {
            return false;
        }
        if head.headers.contains("x-envoy-ratelimited") {
            return self.has(RetryOn::RateLimited);
        }
        let by_status = match head.status {
            502..=504 if self.any(&[RetryOn::GatewayError, RetryOn::ServerError]) => true,
            500..=599 if self.has(RetryOn::ServerError) => true,
            409 if self.has(RetryOn::Retriable4xx) => true,
            status => self.has(RetryOn::StatusCodes) && self.statuses.contains(&status),
        };
        by_status || GrpcStatus::of(&head.headers).is_some_and(|status| self.retry_grpc(status))
    }

    fn retry_grpc(&self, status: GrpcStatus) -> bool {
        match status {
            GrpcStatus::CANCELLED => self.has(RetryOn::Cancelled),
            GrpcStatus::DEADLINE_EXCEEDED => self.has(RetryOn::DeadlineExceeded),
            GrpcStatus::INTERNAL => self.has(RetryOn::Internal),
            GrpcStatus::RESOURCE_EXHAUSTED => self.has(RetryOn::ResourceExhausted),
            GrpcStatus::UNAVAILABLE => self.has(RetryOn::Unavailable),
            _ => false,
        }
    }
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
    fn words_are_read_and_written() {
        let check = |text: &str, expected: Result<&str, RetryOnError>| {
            let found = RetryConditions::parse(text).map(|conditions| conditions.text());
            assert_eq!(found, expected.map(str::to_owned), "{text}");
        };
        check("5xx, reset", Ok("5xx,reset"));
        check("503", Ok("retriable-status-codes,503"));
        check("5xxx", Err(RetryOnError::UnknownWord("5xxx".into())));
        check("5xx,700", Err(RetryOnError::Status("700".into())));
        check(" , ", Err(RetryOnError::Empty));
        for (word, on) in WORDS {
            assert_eq!(on.word(), word);
        }
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
