//! What gRPC puts into HTTP heads: status codes and the caller's deadline.

use std::fmt;
use std::time::Duration;

use crate::http::{Headers, RequestHead};

/// A gRPC status code, 0 to 16 (grpc.io, "Status codes and their use in gRPC").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrpcStatus(u8);

const NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

impl GrpcStatus {
    /// `CANCELLED`
    pub const CANCELLED: Self = Self(1);
    /// `DEADLINE_EXCEEDED`
    pub const DEADLINE_EXCEEDED: Self = Self(4);
    /// `RESOURCE_EXHAUSTED`
    pub const RESOURCE_EXHAUSTED: Self = Self(8);
    /// `INTERNAL`
    pub const INTERNAL: Self = Self(13);
    /// `UNAVAILABLE`
    pub const UNAVAILABLE: Self = Self(14);

    /// The status of a code.
    pub fn new(code: u8) -> Option<Self> {
        (usize::from(code) < NAMES.len()).then_some(Self(code))
    }

    /// The status of a name as written in resources.
    pub fn named(name: &str) -> Option<Self> {
        let index = NAMES.iter().position(|known| *known == name)?;
        u8::try_from(index).ok().map(Self)
    }

    /// The code as `grpc-status` carries it.
    pub fn code(self) -> u8 {
        self.0
    }

    /// The name.
    pub fn name(self) -> &'static str {
        NAMES[usize::from(self.0)]
    }

    /// The status in `grpc-status` of a head or of trailers.
    pub fn of(headers: &Headers) -> Option<Self> {
        std::str::from_utf8(headers.get("grpc-status")?).ok()?.parse().ok().and_then(Self::new)
    }
}

impl fmt::Display for GrpcStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The caller's deadline: `grpc-timeout`, at most eight digits and a unit. `None` without one, or where it cannot be read.
pub fn timeout_of(head: &RequestHead) -> Option<Duration> {
    let text = std::str::from_utf8(head.headers.get("grpc-timeout")?).ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_read_as_written() {
        let check = |text: &str, expected: Option<Duration>| {
            let mut head = RequestHead::default();
            head.headers.append("grpc-timeout", text.as_bytes()).expect("a field");
            assert_eq!(timeout_of(&head), expected, "{text}");
        };
        check("1H", Some(Duration::from_secs(3600)));
        check("99999999m", Some(Duration::from_millis(99_999_999)));
        check("20u", Some(Duration::from_micros(20)));
        for bad in ["", "5", "S", "100000000S", "-1S", "1s", "1ä"] {
            check(bad, None);
        }
        assert_eq!(timeout_of(&RequestHead::default()), None);
    }

    #[test]
    fn statuses_have_names_and_codes() {
        assert_eq!(GrpcStatus::named("UNAVAILABLE"), Some(GrpcStatus::UNAVAILABLE));
        assert_eq!(GrpcStatus::named("unavailable"), None);
        assert_eq!(GrpcStatus::new(16).map(GrpcStatus::name), Some("UNAUTHENTICATED"));
        assert_eq!(GrpcStatus::new(17), None);
        let mut trailers = Headers::default();
        trailers.append("grpc-status", b"14").expect("a field");
        assert_eq!(GrpcStatus::of(&trailers), Some(GrpcStatus::UNAVAILABLE));
    }
}
