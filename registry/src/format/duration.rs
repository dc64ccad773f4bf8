//! Lengths of time as Istio writes them: `1h30m`, `10s`, `0.5s`, `25ms`.

use std::time::Duration;

use super::decode::{At, Decoder};
use crate::diagnostic::quote;

/// Units with their nanoseconds, the longer name of two first.
const UNITS: [(&str, f64); 7] =
    [("ms", 1e6), ("us", 1e3), ("µs", 1e3), ("ns", 1.0), ("h", 3.6e12), ("m", 6e10), ("s", 1e9)];

/// The longest that any field takes: 100 years.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Reads a length of time; 0 is one.
pub(super) fn duration(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Duration> {
    let text = d.text(at)?;
    let read = parse(text);
    if read.is_none() {
        let message = format!("{} is not a duration", quote(text));
        d.invalid(at, message, "write such as `10s`, `0.5s`, `1h30m` or `25ms`");
    }
    read
}

/// Reads a length of time that must be at least a millisecond.
pub(super) fn positive(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Duration> {
    let read = duration(d, at)?;
    if read < Duration::from_millis(1) {
        d.invalid(at, "duration must be greater than 1ms", "");
        return None;
    }
    Some(read)
}

/// Reads a length of time; `None` is none.
pub fn parse(text: &str) -> Option<Duration> {
    let (mut rest, mut total) = (text, Duration::ZERO);
    if rest == "0" {
        return Some(total);
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = rest.split_at(end);
        let (name, nanoseconds) = UNITS.iter().find(|(name, _)| unit.starts_with(name))?;
        total = total.checked_add(times(number, *nanoseconds)?).filter(|total| *total <= LONGEST)?;
        rest = &unit[name.len()..];
    }
    (!text.is_empty()).then_some(total)
}

/// A number of units, whole ones exactly.
fn times(number: &str, nanoseconds: f64) -> Option<Duration> {
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && part.is_empty() {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let part: f64 = if part.is_empty() { 0.0 } else { format!("0.{part}").parse().ok()? };
    let exact = u128::from(whole) * (nanoseconds as u128) + (part * nanoseconds).round() as u128;
    u64::try_from(exact).ok().map(Duration::from_nanos)
}

/// A length of time in seconds, as it is read back.
pub fn text(duration: Duration) -> String {
    match duration.subsec_nanos() {
        0 => format!("{}s", duration.as_secs()),
        nanos => {
            let part = format!("{nanos:09}");
            format!("{}.{}s", duration.as_secs(), part.trim_end_matches('0'))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let check = |text: &str, expected: Option<Duration>| assert_eq!(parse(text), expected, "{text}");
        check("10s", Some(Duration::from_secs(10)));
        check("0.5s", Some(Duration::from_millis(500)));
        check(".5s", Some(Duration::from_millis(500)));
        check("1h30m", Some(Duration::from_secs(5400)));
        check("24h", Some(Duration::from_secs(86_400)));
        check("25ms", Some(Duration::from_millis(25)));
        check("1.5us", Some(Duration::from_nanos(1500)));
        check("0s", Some(Duration::ZERO));
        check("0", Some(Duration::ZERO));
        check("5000000000ms", Some(Duration::from_secs(5_000_000)));
        for bad in ["", "5", "s", "-1s", "1d", "1 s", "1s ", "1..5s", ".s", "99999999999h", "1e3s"] {
            check(bad, None);
        }
        for length in [Duration::ZERO, Duration::from_nanos(1), Duration::from_millis(90_500)] {
            check(&text(length), Some(length));
        }
    }
}
