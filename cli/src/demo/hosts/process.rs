//! A program that runs on a host until it ends or the host does, with its output in the host's log directory.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::{tools, wait_until};

/// A handle to a program that a host tracks. Dropping the handle leaves the program running; it ends with its host.
#[derive(Clone)]
pub struct Process {
    tracked: Arc<Tracked>,
}

struct Tracked {
    label: String,
    child: Mutex<Child>,
    pid: u32,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts `command` in a process group of its own, its output going to `LABEL.out` and `LABEL.err` in `log`.
    pub(crate) fn start(label: &str, mut command: Command, log: &Path) -> Result<Self> {
        let stdout = log.join(format!("{label}.out"));
        let stderr = log.join(format!("{label}.err"));
        let open =
            |path: &Path| File::create(path).with_context(|| format!("cannot write {}", path.display()));
        command.stdin(Stdio::null()).stdout(open(&stdout)?).stderr(open(&stderr)?).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {}", tools::describe(&command)))?;
        let pid = child.id();
        let tracked = Tracked { label: label.to_owned(), child: Mutex::new(child), pid, stdout, stderr };
        Ok(Self { tracked: Arc::new(tracked) })
    }

    /// Its process id, which is the same on the host and outside.
    pub fn pid(&self) -> u32 {
        self.tracked.pid
    }

    /// How it ended; `None` while it runs.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.child().try_wait().ok().flatten()
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        self.exit_status().is_none()
    }

    /// Sends `signal` to the program alone, not to what it started; nothing happens if it has ended.
    pub fn signal(&self, signal: Signal) {
        let mut child = self.child();
        // An id is not given to anybody else before its process has been waited for.
        if let (Ok(None), Some(pid)) = (child.try_wait(), self.as_pid()) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Asks it to end, with SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends it as a crash would, with SIGKILL: what it started goes on.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it still runs after [`super::WAIT_BOUND`].
    pub fn wait(&self) -> Result<ExitStatus> {
        let mut status = None;
        wait_until(&format!("{} ends", self.tracked.label), || {
            status = self.exit_status();
            status.is_some()
        })?;
        status.context("a process that ended has a status")
    }

    /// Waits until `text` is somewhere in its output.
    ///
    /// # Errors
    /// If it ends without that, or after [`super::WAIT_BOUND`]; the message holds what it wrote instead.
    pub fn wait_for_output(&self, text: &str) -> Result<()> {
        let label = &self.tracked.label;
        let mut over = false;
        wait_until(&format!("{label} writes {text:?}"), || {
            // First the end, then the output: what it wrote last is then in sight.
            let ended = !self.is_running();
            let said = self.has_said(text);
            over = ended && !said;
            said || ended
        })
        .with_context(|| format!("{label} wrote: {}{}", self.stdout(), self.stderr()))?;
        match over {
            true => {
                anyhow::bail!("{label} ended without writing {text:?}: {}{}", self.stdout(), self.stderr())
            }
            false => Ok(()),
        }
    }

    /// Whether `text` is somewhere in its output so far.
    pub fn has_said(&self, text: &str) -> bool {
        self.stdout().contains(text) || self.stderr().contains(text)
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        read(&self.tracked.stdout)
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        read(&self.tracked.stderr)
    }

    /// The name of its log files.
    pub(crate) fn label(&self) -> &str {
        &self.tracked.label
    }

    /// Kills its process group and waits for it. What has left the group is left to the host's keeper.
    pub(crate) fn end(&self) {
        let mut child = self.child();
        if let (Ok(None), Some(pid)) = (child.try_wait(), self.as_pid()) {
            let _ = kill_process_group(pid, Signal::KILL);
            let _ = child.wait();
        }
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.tracked.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn as_pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.tracked.pid).ok()?)
    }
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
