//! Shares of requests, in millionths, as Envoy counts them.

use std::fmt;

/// A share of 0 to 100 percent in steps of 0.0001.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percentage(u32);

const WHOLE: u32 = 1_000_000;

impl Percentage {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Everything.
    pub const ALL: Self = Self(WHOLE);

    /// A share in percent; `None` outside of 0 to 100. What is finer than 0.0001 is cut off.
    pub fn new(percent: f64) -> Option<Self> {
        // Half a step of the float's own error must not cost a whole step of ours.
        let millionths = percent * 10_000.0 + 1e-6;
        (0.0..=100.0).contains(&percent).then_some(Self(millionths as u32))
    }

    /// Whether a draw falls into the share. `random` is evenly spread.
    pub fn takes(self, random: u64) -> bool {
        random % u64::from(WHOLE) < u64::from(self.0)
    }

    /// The share in percent.
    pub fn percent(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }
}

impl fmt::Display for Percentage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.percent())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_in_millionths() {
        for (percent, expected) in [
            (0.0, Some(0)),
            (100.0, Some(1_000_000)),
            (0.1, Some(1000)),
            (33.3, Some(333_000)),
            (0.000_01, Some(0)),
            (100.1, None),
            (-0.1, None),
            (f64::NAN, None),
        ] {
            assert_eq!(Percentage::new(percent).map(|share| share.0), expected, "{percent}");
        }
        assert!(!Percentage::NONE.takes(0) && Percentage::ALL.takes(999_999));
        let tenth = Percentage::new(10.0).expect("a share");
        assert!(tenth.takes(99_999) && !tenth.takes(100_000) && tenth.takes(1_000_000));
    }
}
