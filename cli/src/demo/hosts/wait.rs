//! Waiting for a condition, with one generous bound and no guessed sleeps.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long a condition may take to come true before something is taken to be broken; far above what a loaded
/// machine needs.
pub const WAIT_BOUND: Duration = Duration::from_secs(30);

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Waits until `condition` holds.
///
/// # Errors
/// After [`WAIT_BOUND`], naming `what` was waited for.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + WAIT_BOUND;
    while !condition() {
        if Instant::now() >= deadline {
            bail!("waited {} s in vain for this: {what}", WAIT_BOUND.as_secs());
        }
        thread::sleep(POLL);
    }
    Ok(())
}
