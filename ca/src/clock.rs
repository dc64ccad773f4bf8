//! Certificates and the ledger count whole seconds since 1970; the rest of the crate uses `SystemTime`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::UnixTime;
use time::OffsetDateTime;

/// Whole seconds since 1970, rounded down; a clock before 1970 counts as 1970.
pub(crate) fn to_unix(at: SystemTime) -> i64 {
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// The reverse of `to_unix`. Times before 1970, which a foreign certificate may carry, become 1970.
pub(crate) fn from_unix(seconds: i64) -> SystemTime {
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH)
}

/// Without its fraction of a second, which a certificate cannot carry.
pub(crate) fn whole_seconds(at: SystemTime) -> SystemTime {
    from_unix(to_unix(at))
}

/// The form in which certificates are written. Times past the year 9999 become 1970, which no check accepts.
pub(crate) fn to_date(at: SystemTime) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(to_unix(at)).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// The form in which certificates are verified.
pub(crate) fn to_verification_time(at: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// A duration as an operator reads it: `2 d 3 h`, `4 min 10 s`.
pub(crate) fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_durations_in_words() {
        for (seconds, words) in
            [(0, "0 s"), (59, "59 s"), (250, "4 min 10 s"), (7_260, "2 h 1 min"), (183_600, "2 d 3 h")]
        {
            assert_eq!(in_words(Duration::from_secs(seconds)), words);
        }
    }
}
