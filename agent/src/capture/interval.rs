//! The time between an agent that stops to be started anew and the next one: the rules stay as they are, and what
//! they bring waits in line at sockets that the service manager keeps. A file says so to whoever finds the agent gone. The time is
//! short, and the service manager looks at its end whether an agent has come: if none has, the rules for a gone agent are placed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::CaptureError;
use super::command::Tools;
use super::gone::{Waiting, apply_gone};

/// How long the next agent may take until its rules stand.
const PATIENCE: Duration = Duration::from_secs(10);

/// The time from one agent to the next, by the rules for when there is none.
#[derive(Debug, Clone)]
pub struct Interval {
    gone_file: PathBuf,
    file: PathBuf,
}

impl Interval {
    /// With the rules for a gone agent in this file.
    pub fn before(gone_file: &Path) -> Self {
        Self { gone_file: gone_file.to_owned(), file: gone_file.with_file_name("starts-anew") }
    }

    /// Begins it, and has the service manager look at its end, with this process's own binary. Blocks.
    ///
    /// # Errors
    /// The service manager cannot be had for it; then it has not begun.
    pub fn begin(&self) -> Result<(), CaptureError> {
        let failed = |source| CaptureError::Run { command: "systemd-run".to_owned(), source };
        let exe = std::env::current_exe().map_err(failed)?;
        let not_text = || failed(io::Error::other("a path is no text"));
        let (exe, gone_file) =
            (exe.to_str().ok_or_else(not_text)?, self.gone_file.to_str().ok_or_else(not_text)?);
        // The binary may have been replaced since this process began.
        let exe = exe.strip_suffix(" (deleted)").unwrap_or(exe);
        let after = format!("--on-active={}s", PATIENCE.as_secs() + 1);
        let run = ["--quiet", "--collect", &after, "--timer-property=AccuracySec=100ms", "--"];
        let command = [exe, "capture", "gone", "--unless-followed", "--file", gone_file];
        Tools::find()?.systemd_run(&[&run[..], &command].concat())?;
        let end = now() + PATIENCE;
        std::fs::write(&self.file, format!("{}\n", end.as_secs())).map_err(failed)
    }

    /// Ends it: the next agent's rules stand.
    pub fn end(&self) {
        // It is not there where the agent before stopped, or died.
        let _ = std::fs::remove_file(&self.file);
    }

    /// Whether the next agent is still waited for.
    pub fn lasts(&self) -> bool {
        let end = std::fs::read_to_string(&self.file).ok().and_then(|text| text.trim().parse().ok());
        end.map(Duration::from_secs).is_some_and(|end| (now()..=now() + PATIENCE).contains(&end))
    }

    /// Places the rules for a gone agent where none has come in time. Says whether it did.
    pub fn settle(&self) -> Result<bool, CaptureError> {
        if !self.file.exists() || self.lasts() {
            return Ok(false);
        }
        apply_gone(&self.gone_file, Waiting::Reset)?;
        self.end();
        Ok(true)
    }
}

/// Since the boot: nobody sets this clock.
fn now() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or_default(),
        u32::try_from(now.tv_nsec).unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_by_itself() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let interval = Interval::before(&directory.path().join("gone.nft"));
        assert!(!interval.lasts());
        let ends =
            |at: Duration| std::fs::write(&interval.file, format!("{}\n", at.as_secs())).expect("written");
        ends(now() + PATIENCE);
        assert!(interval.lasts());
        assert!(!interval.settle().expect("nothing to do"), "the next agent is waited for");
        interval.end();
        assert!(!interval.lasts());
        assert!(!interval.settle().expect("nothing to do"), "the next agent has come");
        for not_now in [now() - Duration::from_secs(1), now() + 2 * PATIENCE] {
            ends(not_now);
            assert!(!interval.lasts(), "{not_now:?}");
        }
        std::fs::write(&interval.file, "soon").expect("written");
        assert!(!interval.lasts());
    }
}
