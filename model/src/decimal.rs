//! Numbers with a fraction, as resources write them: percentages and exponents. They compare and hash exactly, which
//! a float does not.

use std::fmt;
use std::str::FromStr;

/// Millionths in one.
const SCALE: u64 = 1_000_000;

/// A number of at least 0 with six decimals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Decimal(u64);

/// A text that is not a number of at least 0.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a number of at least 0 with at most six decimals")]
pub struct NotADecimal(pub String);

impl Decimal {
    /// A whole number.
    pub const fn whole(number: u32) -> Self {
        Self(number as u64 * SCALE)
    }

    /// As a float, for arithmetic.
    pub fn to_f64(self) -> f64 {
        // Below 2^53 for everything that `from_str` takes.
        self.0 as f64 / SCALE as f64
    }

    /// The share of `count` that a percentage of this size is, rounded down.
    pub fn percent_of(self, count: u64) -> u64 {
        let share = u128::from(self.0) * u128::from(count) / u128::from(100 * SCALE);
        u64::try_from(share).unwrap_or(u64::MAX)
    }
}

impl FromStr for Decimal {
    type Err = NotADecimal;
    fn from_str(text: &str) -> Result<Self, NotADecimal> {
        let refused = || NotADecimal(text.to_owned());
        let number: f64 = text.parse().map_err(|_| refused())?;
        let millionths = (number * SCALE as f64).round();
        // Twelve digits before the point are more than any setting has, and far within what a float holds exactly.
        let exact = (millionths / SCALE as f64 - number).abs() <= f64::EPSILON * number.abs().max(1.0);
        if (0.0..1e15).contains(&millionths) && exact { Ok(Self(millionths as u64)) } else { Err(refused()) }
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / SCALE, self.0 % SCALE);
        if rest == 0 {
            return write!(f, "{whole}");
        }
        let digits = format!("{rest:06}");
        write!(f, "{whole}.{}", digits.trim_end_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_exactly() {
        let check = |text: &str, expected: Option<&str>| {
            let found = text.parse::<Decimal>().ok().map(|number| number.to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        };
        check("5.0", Some("5"));
        check("0.1", Some("0.1"));
        check("12.345678", Some("12.345678"));
        check("1e2", Some("100"));
        check("0", Some("0"));
        check("-0.1", None);
        check("0.0000001", None);
        check("1e300", None);
        check("nan", None);
        check("x", None);
    }

    #[test]
    fn percentages_round_down() {
        assert_eq!(Decimal::whole(20).percent_of(14), 2);
        assert_eq!("12.5".parse::<Decimal>().expect("a number").percent_of(8), 1);
        assert_eq!(Decimal::whole(100).percent_of(u64::MAX), u64::MAX);
    }
}
