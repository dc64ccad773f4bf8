//! A host's question whether the control server is there: what its clock says, which state is the newest, and as many bytes
//! back as the question had, so that a network is found out which carries small packets and loses large ones.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The path of the call.
pub const REACH_PATH: &str = "/v1/reach";
/// Bytes that a question or an answer may be longer by: several packets of any network.
pub const MAX_PADDING: usize = 16 * 1024;

/// What a host asks. Fields that are not known are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReachAsked {
    /// Says nothing; what comes back is as long, up to `MAX_PADDING`.
    #[serde(default)]
    pub padding: String,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReachTold {
    /// The server's clock, in milliseconds since 1970.
    pub milliseconds: u64,
    /// The version of the newest state; none before the first.
    pub version: Option<u64>,
    /// As long as what was asked with.
    #[serde(default)]
    pub padding: String,
}

impl ReachTold {
    /// The answer to a question at `now`.
    pub fn to(asked: &ReachAsked, version: Option<u64>, now: SystemTime) -> Self {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            milliseconds: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            version,
            padding: "x".repeat(asked.padding.len().min(MAX_PADDING)),
        }
    }

    /// How far the server's clock is ahead of one that said `began` when the question was sent and `ended` when the answer
    /// came, in milliseconds; negative where it is behind. It is off by half of what lies between the two at most.
    pub fn skew(&self, began: SystemTime, ended: SystemTime) -> i64 {
        let half = ended.duration_since(began).unwrap_or(Duration::ZERO) / 2;
        let own = (began + half).duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let ahead = i128::from(self.milliseconds) - i128::try_from(own).unwrap_or(i128::MAX);
        i64::try_from(ahead).unwrap_or(if ahead < 0 { i64::MIN } else { i64::MAX })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_how_far_the_clocks_are_apart() {
        let at = |milliseconds| UNIX_EPOCH + Duration::from_millis(milliseconds);
        let check = |server: u64, (began, ended): (u64, u64), expected: i64| {
            let told = ReachTold::to(&ReachAsked::default(), None, at(server));
            assert_eq!(told.skew(at(began), at(ended)), expected, "{server} {began} {ended}");
        };
        check(1_000_100, (1_000_000, 1_000_200), 0);
        check(1_060_100, (1_000_000, 1_000_200), 60_000);
        check(940_100, (1_000_000, 1_000_200), -60_000);
        // The own clock was set back meanwhile.
        check(1_000_000, (1_000_000, 900_000), 0);
    }

    #[test]
    fn as_much_comes_back_as_was_sent_and_no_more_than_may() {
        for (sent, expected) in [(0, 0), (4_000, 4_000), (MAX_PADDING + 1, MAX_PADDING)] {
            let asked = ReachAsked { padding: " ".repeat(sent) };
            assert_eq!(ReachTold::to(&asked, Some(7), SystemTime::now()).padding.len(), expected);
        }
    }
}
