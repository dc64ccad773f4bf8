//! A change that takes itself back. Whoever changes the rules of a distant host may cut off the very connection he
//! does it over; so the way back is written down and a process of its own is started before anything changes. It
//! goes back after the time given unless the change is confirmed. Confirming and going back both begin with renaming
//! one file, which only one of them can: there is no moment at which both happen, or neither.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::CaptureError;
use super::apply::{Applied, Capture, remove_file};
use super::batch::{Batch, write_atomically};
use super::command::{Tools, lasting, leave_session, log, report_ready, wait_until_ready};
use super::plan::CapturePlan;
use crate::privileges::{OF_RULES, keep};

/// How the command line starts the process, after `baremesh capture`.
const USAGE: &str = "revert RUNTIME-DIRECTORY SECONDS";

/// Where the process says what went wrong, in the runtime directory.
const LOG: &str = "revert.log";

/// How long the process may take to start.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it looks whether the change was confirmed.
const LOOK: Duration = Duration::from_millis(250);

/// How often it tries to go back, and the pause between.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_secs(1);

/// The longest time that a change may wait for its confirmation.
pub const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// The files of a pending change, in the runtime directory.
struct Files {
    /// The way back. Its presence under this name is what makes a change pending.
    pending: PathBuf,
    /// The same while it is gone.
    reverting: PathBuf,
    /// The rules for a gone agent as they were.
    gone_before: PathBuf,
    /// The rules for a gone agent as they are.
    gone: PathBuf,
}

impl Files {
    fn of(runtime: &Path, gone: PathBuf) -> Self {
        let file = |name: &str| runtime.join(name);
        let (pending, reverting) = (file("unconfirmed.nft"), file("reverting.nft"));
        Self { pending, reverting, gone_before: file("unconfirmed-gone.nft"), gone }
    }
}

impl Capture {
    /// Applies a plan, to be taken back after `limit` (in whole seconds, 1 at least, `LONGEST` at most) unless
    /// `confirm` comes before. What stood before is what comes back: rules, elements, routes, or nothing at all.
    /// `exe` is the `baremesh` binary. Meant for a command that ends soon, not for the agent: the process that waits
    /// is reaped by init. Fails if another change is still unconfirmed.
    pub fn apply_with_confirm(
        &mut self,
        exe: &Path,
        plan: &CapturePlan,
        limit: Duration,
    ) -> Result<Applied, CaptureError> {
        let files = Files::of(self.runtime(), self.gone_file());
        for path in [&files.pending, &files.reverting] {
            if path.exists() {
                return Err(CaptureError::Unconfirmed { path: path.clone() });
            }
        }
        remember_gone(&files)?;
        self.way_back()?.write(&files.pending)?;
        let seconds = limit.clamp(Duration::from_secs(1), LONGEST).as_secs().to_string();
        let started = start(exe, self.runtime(), &seconds);
        match started.and_then(|()| self.apply(plan)) {
            Ok(applied) => Ok(applied),
            Err(error) => {
                // Half a change is no state to wait in: back now, and the process finds nothing left to do.
                if let Err(second) = go_back(&files) {
                    log(&format!("could not take back the change that failed: {second}"));
                }
                Err(error)
            }
        }
    }

    /// Makes a pending change stay.
    pub fn confirm(&self) -> Result<(), CaptureError> {
        let files = Files::of(self.runtime(), self.gone_file());
        match fs::remove_file(&files.pending) {
            Ok(()) => remove_file(&files.gone_before),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(CaptureError::NothingToConfirm),
            Err(source) => Err(CaptureError::File { action: "remove", path: files.pending, source }),
        }
    }

    /// Whether a change awaits its confirmation.
    pub fn is_unconfirmed(&self) -> bool {
        Files::of(self.runtime(), self.gone_file()).pending.exists()
    }
}

fn start(exe: &Path, runtime: &Path, seconds: &str) -> Result<(), CaptureError> {
    let mut command = lasting(exe, &[OsStr::new("revert"), runtime.as_os_str(), OsStr::new(seconds)]);
    let failed = |source| CaptureError::Run { command: "baremesh capture revert".to_owned(), source };
    // Not our standard error: a remote shell would wait for the process to close it.
    let log = File::options().create(true).append(true).open(runtime.join(LOG)).map_err(failed)?;
    command.stdin(Stdio::null()).stderr(log);
    let mut process = command.spawn().map_err(failed)?;
    // It outlives us on purpose; init reaps it.
    wait_until_ready("revert", &mut process, PATIENCE)
}

/// The life of the process, for `baremesh capture revert`; `arguments` are those after `revert`. Returns whether
/// the change was taken back.
pub fn run(arguments: &[OsString]) -> Result<Reverted, CaptureError> {
    let (runtime, limit) = parse(arguments).ok_or(CaptureError::Arguments { usage: USAGE })?;
    let capture = Capture::new(&runtime)?;
    let files = Files::of(&runtime, capture.gone_file());
    leave_session();
    keep(OF_RULES).map_err(|source| CaptureError::Run { command: "capture revert".to_owned(), source })?;
    // Counted from before the change, so that the promise to whoever waits at a dead terminal is kept.
    let deadline = Instant::now() + limit;
    report_ready().map_err(|source| CaptureError::Run { command: "capture revert".to_owned(), source })?;
    while Instant::now() < deadline {
        if !files.pending.exists() {
            return Ok(Reverted::No);
        }
        sleep(LOOK.min(deadline.saturating_duration_since(Instant::now())));
    }
    go_back(&files)
}

/// Whether a change was taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reverted {
    /// It was.
    Yes,
    /// It was confirmed before.
    No,
}

fn parse(arguments: &[OsString]) -> Option<(PathBuf, Duration)> {
    let [runtime, seconds] = arguments else { return None };
    Some((PathBuf::from(runtime), Duration::from_secs(seconds.to_str()?.parse().ok()?).min(LONGEST)))
}

/// Goes back, unless somebody else decided first.
fn go_back(files: &Files) -> Result<Reverted, CaptureError> {
    match fs::rename(&files.pending, &files.reverting) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Reverted::No),
        Err(source) => {
            return Err(CaptureError::File { action: "rename", path: files.pending.clone(), source });
        }
    }
    let mut attempt = 1;
    loop {
        match take_back(files) {
            Ok(()) => break,
            Err(error) if attempt == ATTEMPTS => return Err(error),
            Err(error) => log(&format!("taking the change back, attempt {attempt} of {ATTEMPTS}: {error}")),
        }
        attempt += 1;
        sleep(PAUSE);
    }
    remove_file(&files.reverting)?;
    Ok(Reverted::Yes)
}

fn take_back(files: &Files) -> Result<(), CaptureError> {
    if let Some(batch) = Batch::read(&files.reverting)? {
        batch.run(&Tools::find()?)?;
    }
    match fs::rename(&files.gone_before, &files.gone) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => remove_file(&files.gone),
        Err(source) => Err(CaptureError::File { action: "restore", path: files.gone.clone(), source }),
        Ok(()) => Ok(()),
    }
}

fn remember_gone(files: &Files) -> Result<(), CaptureError> {
    let failed = |source| CaptureError::File { action: "save", path: files.gone_before.clone(), source };
    match fs::read_to_string(&files.gone) {
        Ok(text) => write_atomically(&files.gone_before, &text).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => remove_file(&files.gone_before),
        Err(source) => Err(failed(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_a_directory_and_seconds() {
        let check = |arguments: &[&str], expected: Option<u64>| {
            let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
            assert_eq!(parse(&arguments).map(|(_, limit)| limit.as_secs()), expected, "{arguments:?}");
        };
        check(&["/run/baremesh", "60"], Some(60));
        check(&["/run/baremesh", "999999999"], Some(LONGEST.as_secs()));
        check(&["/run/baremesh", "-1"], None);
        check(&["/run/baremesh"], None);
    }
}
