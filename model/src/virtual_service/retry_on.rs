//! What `retryOn` says: words and status codes, and which answers they mean.

use crate::grpc::GrpcStatus;
use crate::http::ResponseHead;

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

    pub(super) fn any(&self, words: &[RetryOn]) -> bool {
        words.iter().any(|on| self.has(*on))
    }
}

impl RetryConditions {
    /// Whether an answer is retried, by its head alone.
    pub(super) fn retry_answer(&self, head: &ResponseHead) -> bool {
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
}
