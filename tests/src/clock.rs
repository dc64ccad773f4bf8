//! Clocks that run fast, for stories in which much time passes.

use std::process::Command;
use std::time::SystemTime;

use crate::run;

/// A clock that has run fast since it was made. All programs that go by it agree on the time, whenever they start. What is
/// faked is all that a program asks the C library for: the time of day, the monotonic clock, and the waits by which a
/// runtime sleeps, so that its timers run fast too.
pub struct FastClock {
    began: SystemTime,
    rate: u32,
}

impl FastClock {
    /// `rate` seconds in each second from now on.
    pub fn new(rate: u32) -> Self {
        Self { began: SystemTime::now(), rate }
    }

    /// Lets `command`, which is to be started at once, go by this clock.
    #[track_caller]
    pub fn apply(&self, command: &mut Command) {
        // The library counts from the program's own start: what has passed before is added.
        let passed = self.began.elapsed().unwrap_or_default().as_secs_f64() * f64::from(self.rate - 1);
        command.env("LD_PRELOAD", library()).env("FAKETIME", format!("+{passed:.3} x{}", self.rate));
    }
}

/// The library that gives a program another clock (Debian's `libfaketime`), for programs of several threads.
#[track_caller]
pub fn library() -> String {
    let mut list = Command::new("sh");
    list.args(["-c", "ls /usr/lib/*/faketime/libfaketimeMT.so.1"]);
    let found = run(list);
    let found = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    assert!(!found.is_empty(), "the package libfaketime is not installed");
    found
}
