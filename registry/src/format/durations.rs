//! Durations as Istio writes them: Go's texts, such as `10s`, `1h30m` or `1.5s`.

use std::time::Duration;

/// Units and how many nanoseconds each has; of two that begin alike, the longer one first.
const UNITS: [(&str, u64); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// The longest duration that is taken: ten years. Sums of such times fit in every type that they are kept in.
pub(super) const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Reads a duration of at least zero.
pub(super) fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut total) = (text, 0_u128);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let (unit, nanoseconds) = UNITS.iter().find(|(unit, _)| tail.starts_with(unit))?;
        total = total.checked_add(amount(number, *nanoseconds)?)?;
        rest = &tail[unit.len()..];
    }
    let duration = Duration::from_nanos(u64::try_from(total).ok()?);
    (!text.is_empty() && duration <= LONGEST).then_some(duration)
}

/// A decimal number of units in nanoseconds; what is less than one is cut off.
fn amount(number: &str, unit: u64) -> Option<u128> {
    /// More digits than this say nothing more, and do not fit.
    const DIGITS: usize = 18;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.len() <= DIGITS && text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.len() + fraction.len() == 0 || !digits(whole) || !digits(fraction) {
        return None;
    }
    let value = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u128>().ok() };
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    Some(value(whole)? * u128::from(unit) + value(fraction)? * u128::from(unit) / scale)
}

/// A duration as seconds, with as many decimals as it has.
pub(super) fn format(duration: Duration) -> String {
    let nanoseconds = duration.subsec_nanos();
    if nanoseconds == 0 {
        return format!("{}s", duration.as_secs());
    }
    let fraction = format!("{nanoseconds:09}");
    format!("{}.{}s", duration.as_secs(), fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_what_go_does() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(parse(text).map(format).as_deref(), expected, "{text}");
        };
        check("10s", Some("10s"));
        check("1h30m", Some("5400s"));
        check("1.5s", Some("1.5s"));
        check("250ms", Some("0.25s"));
        check("1us", Some("0.000001s"));
        check("0s", Some("0s"));
        check("0", Some("0s"));
        check(".5s", Some("0.5s"));
        for bad in [
            "",
            "10",
            "s",
            "-1s",
            "1 s",
            "1d",
            ".s",
            "1.1.1s",
            "1e3s",
            "99999999999h",
            "9".repeat(40).as_str(),
        ] {
            check(bad, None);
        }
    }
}
