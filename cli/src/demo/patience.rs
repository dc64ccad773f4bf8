//! The bounds of a whole show. Every wait ends when its condition holds, when its own bound is reached, when the time
//! of the show is over, or when the person at the terminal has had enough: then everything is cleaned up in order.

use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::hosts::WAIT_BOUND;

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Why a show stopped before its end. Whatever was being waited for is not to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stopped {
    /// Ctrl-C, or a polite signal.
    #[error("interrupted")]
    Interrupted,
    /// It took too long as a whole.
    #[error("not done after {0} s: is the machine overloaded?")]
    OutOfTime(u64),
}

/// How long the show may go on.
#[derive(Clone, Debug)]
pub(crate) struct Patience {
    interrupted: Arc<AtomicBool>,
    started: Instant,
    limit: Duration,
}

impl Patience {
    /// Starts the clock. Whoever sets `interrupted` ends all waits.
    pub(crate) fn new(interrupted: Arc<AtomicBool>, limit: Duration) -> Self {
        Self { interrupted, started: Instant::now(), limit }
    }

    /// Refuses to go on when there is no time, or no wish.
    pub(crate) fn check(&self) -> Result<(), Stopped> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(Stopped::Interrupted);
        }
        match self.started.elapsed() < self.limit {
            true => Ok(()),
            false => Err(Stopped::OutOfTime(self.limit.as_secs())),
        }
    }

    /// Waits until `condition` holds.
    pub(crate) fn wait(&self, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
        self.wait_for(what, || condition().then_some(()))
    }

    /// Waits until `condition` holds, for as long as the show may go on: where much begins at once, what each part of it
    /// takes on a busy machine nobody knows.
    pub(crate) fn wait_long(&self, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
        self.wait_within(what, self.limit, || condition().then_some(()))
    }

    /// Waits until `find` finds something.
    pub(crate) fn wait_for<T>(&self, what: &str, find: impl FnMut() -> Option<T>) -> Result<T> {
        self.wait_within(what, WAIT_BOUND, find)
    }

    fn wait_within<T>(&self, what: &str, bound: Duration, mut find: impl FnMut() -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + bound;
        loop {
            if let Some(found) = find() {
                return Ok(found);
            }
            self.check().with_context(|| format!("while waiting for this: {what}"))?;
            if Instant::now() >= deadline {
                bail!("waited {} s in vain for this: {what}", bound.as_secs());
            }
            thread::sleep(POLL);
        }
    }

    /// Waits until there is no wish to go on, however long that takes.
    pub(crate) fn wait_for_interruption(&self) {
        while !self.interrupted.load(Ordering::Relaxed) {
            thread::sleep(POLL);
        }
    }

    /// Runs `command` to its end and takes what it wrote. A command that is given up is left to its host's keeper.
    pub(crate) fn output(&self, mut command: Command) -> Result<Output> {
        let program = command.get_program().to_string_lossy().into_owned();
        let started = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let child = started.with_context(|| format!("cannot start {program}"))?;
        let (sender, receiver) = mpsc::channel();
        // Read elsewhere, so that neither a full pipe nor a program that hangs holds the show up.
        let reader = thread::Builder::new().spawn(move || sender.send(child.wait_with_output()));
        reader.context("cannot start a thread")?;
        loop {
            match receiver.recv_timeout(POLL) {
                Ok(output) => return output.with_context(|| format!("cannot read from {program}")),
                Err(RecvTimeoutError::Timeout) => {
                    self.check().with_context(|| format!("while {program} ran"))?;
                }
                Err(RecvTimeoutError::Disconnected) => bail!("lost sight of {program}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patience(limit: Duration) -> (Arc<AtomicBool>, Patience) {
        let flag = Arc::new(AtomicBool::new(false));
        (Arc::clone(&flag), Patience::new(flag, limit))
    }

    #[test]
    fn a_wait_ends_with_its_condition_or_with_the_show() {
        let (interrupted, patience) = patience(Duration::from_secs(3600));
        let mut looks = 0;
        let third = patience.wait_for("the third look", || {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        assert_eq!(third.ok(), Some(3));
        interrupted.store(true, Ordering::Relaxed);
        let stopped = patience.wait("never", || false).expect_err("interrupted");
        assert_eq!(stopped.downcast_ref(), Some(&Stopped::Interrupted));
        let stopped = patience.output(Command::new("cat")).map(drop);
        assert!(stopped.is_ok() || stopped.is_err_and(|error| error.is::<Stopped>()));
    }

    #[test]
    fn a_show_has_an_end() {
        let (_flag, patience) = patience(Duration::ZERO);
        for stopped in [patience.wait("never", || false), patience.wait_long("never", || false)] {
            let stopped = stopped.expect_err("no time");
            assert_eq!(stopped.downcast_ref(), Some(&Stopped::OutOfTime(0)));
        }
    }

    #[test]
    fn output_is_taken_whole() {
        let (_flag, patience) = patience(Duration::from_secs(60));
        let mut command = Command::new("sh");
        command.args(["-c", "head -c 200000 /dev/zero; echo why >&2; exit 3"]);
        let output = patience.output(command).expect("it ran");
        assert_eq!((output.stdout.len(), output.stderr.as_slice()), (200_000, &b"why\n"[..]));
        assert_eq!(output.status.code(), Some(3));
    }
}
