//! The guard: a process that does nothing while the agent lives, and applies the rules for a gone agent when it
//! dies without having said goodbye. It holds the agent twice, by a pidfd and by a pipe that the kernel closes with
//! the agent, and it is handed the agent's listening sockets: until the new rules stand, nobody else can bind the
//! ports that the old ones redirect to. Nobody accepts from them either, so the first thing that it does is to have
//! them reset what waits in line, while the old rules still lead the answer back. A service manager that ends the whole
//! group of processes at once may end the guard first; for that case the unit applies the same file after the agent has
//! stopped.
//!
//! Where somebody else has the same sockets, the service manager that keeps them or another agent that takes over, they are not
//! shut: what waits in line there is answered by the next agent.

/// The agent's listening sockets in the guard's hands.
mod held;

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::CaptureError;
use super::command::{ended, lasting, leave_session, log, report_ready, wait_until_ready};
use super::gone::{Waiting, apply_gone};
use crate::descriptors;
use crate::privileges::{OF_RULES, keep};

pub use held::refuse_all;

/// How the command line starts a guard, after `baremesh capture`.
const USAGE: &str = "guard AGENT-PID FILE LISTENERS";

/// What the agent writes when it leaves in good order.
const GOODBYE: u8 = b'q';
/// What it writes when somebody else has its listening sockets too.
const SHARED: u8 = b's';

/// How long the guard may take to start, and to leave when it is dismissed.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often the guard tries to apply the rules, and how long it waits after the first failure, doubled each time.
const ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// A running guard, as the agent holds it. Dropped without `dismiss`, it does its duty as if the agent had died.
#[derive(Debug)]
pub struct Guard {
    process: Child,
    goodbye: Option<UnixStream>,
}

impl Guard {
    /// Starts a guard over this process and waits until it is on its post. `exe` is the `baremesh` binary,
    /// `gone_file` what `Capture::gone_file` names, and `listeners` every socket whose port must not change hands.
    pub fn spawn(exe: &Path, gone_file: &Path, listeners: &[BorrowedFd<'_>]) -> Result<Self, CaptureError> {
        let failed = |source| CaptureError::Run { command: "baremesh capture guard".to_owned(), source };
        let (agent, count) = (std::process::id().to_string(), listeners.len().to_string());
        let arguments = ["guard", &agent].map(OsStr::new).into_iter();
        let arguments: Vec<_> = arguments.chain([gone_file.as_os_str(), OsStr::new(&count)]).collect();
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let mut command = lasting(exe, &arguments);
        command.stdin(Stdio::from(OwnedFd::from(theirs)));
        let process = command.spawn().map_err(failed)?;
        // The guard must hold the only copy of its end.
        drop(command);
        let given = descriptors::give(&ours, listeners);
        let mut guard = Self { process, goodbye: Some(ours) };
        // A guard that does not start says more about it than the broken pipe to it.
        let ready = wait_until_ready("guard", &mut guard.process, PATIENCE);
        match ready.and(given.map_err(failed)) {
            Ok(()) => Ok(guard),
            Err(error) => {
                let _ = guard.process.kill();
                let _ = guard.process.wait();
                Err(error)
            }
        }
    }

    /// Whether the guard has ended though nobody dismissed it: then a new one is due.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.process.try_wait()
    }

    /// The guard's process, readable as a pidfd when it ends.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Tells it that somebody else has the listening sockets too.
    pub fn share(&mut self) -> io::Result<()> {
        self.goodbye.as_mut().map_or(Ok(()), |pipe| pipe.write_all(&[SHARED]))
    }

    /// Says goodbye and waits until the guard has left, so that its copies of the listeners are closed. The rules
    /// stay as they are. Blocks for some milliseconds, ten seconds at most.
    pub fn dismiss(mut self) -> io::Result<()> {
        if let Some(mut pipe) = self.goodbye.take() {
            // A guard that is dead already cannot be told; what counts is that it is gone.
            let _ = pipe.write_all(&[GOODBYE]);
            if !ended(&self.process, PATIENCE)? {
                self.process.kill()?;
            }
        }
        self.process.wait().map(drop)
    }
}

/// How a guard's duty ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The agent said goodbye.
    Dismissed,
    /// The agent died, and the rules for that stand.
    Applied,
}

/// What became of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// It said goodbye.
    Goodbye,
    /// It has died; `shared` where somebody else has its sockets too.
    Dead { shared: bool },
}

/// The guard's life, for `baremesh capture guard`; `arguments` are those after `guard`. It returns when its duty is
/// done. Only then may the process end, because with it end its copies of the listeners.
pub fn run(arguments: &[OsString]) -> Result<Outcome, CaptureError> {
    let (agent, gone_file, count) = parse(arguments).ok_or(CaptureError::Arguments { usage: USAGE })?;
    leave_session();
    keep(OF_RULES).map_err(|source| CaptureError::Run { command: "capture guard".to_owned(), source })?;
    let failed = |source: io::Error| CaptureError::Run { command: "capture guard".to_owned(), source };
    let pidfd = match pidfd_open(agent, PidfdFlags::empty()) {
        Ok(pidfd) => Some(pidfd),
        // It died while we started; the pipe says the same.
        Err(Errno::SRCH) => None,
        Err(errno) => return Err(failed(errno.into())),
    };
    let listeners = descriptors::take(io::stdin(), count).map_err(failed)?;
    // The pidfd is the agent's, and not that of a process that got its number since: had the agent died before, the
    // pipe would be closed, and that is looked at first.
    report_ready().map_err(failed)?;
    let Seen::Dead { shared } = pidfd.as_ref().map_or(Seen::Dead { shared: false }, watch) else {
        return Ok(Outcome::Dismissed);
    };
    log(&format!(
        "the agent (process {}) has died: applying {}",
        agent.as_raw_nonzero(),
        gone_file.display()
    ));
    if !shared {
        refuse_all(&listeners);
    }
    let waiting = if shared { Waiting::Kept } else { Waiting::Reset };
    apply_with_retries(|| apply_gone(&gone_file, waiting))?;
    Ok(Outcome::Applied)
}

fn parse(arguments: &[OsString]) -> Option<(Pid, PathBuf, usize)> {
    let [agent, gone_file, count] = arguments else { return None };
    let agent = Pid::from_raw(agent.to_str()?.parse().ok().filter(|pid| *pid > 0)?)?;
    let count = count.to_str()?.parse().ok().filter(|count| *count <= descriptors::MOST)?;
    Some((agent, PathBuf::from(gone_file), count))
}

/// Waits for the agent's goodbye or for its end.
fn watch(pidfd: &OwnedFd) -> Seen {
    let stdin = io::stdin();
    let mut shared = false;
    loop {
        let mut events =
            [PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN), PollFd::new(pidfd, PollFlags::IN)];
        match poll(&mut events, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            // Out of memory: no reason to take a living agent for dead.
            Err(_) => sleep(FIRST_PAUSE),
        }
        let (pipe, process) = (events[0].revents(), events[1].revents());
        // The pipe first: an agent that says goodbye and ends at once has said goodbye.
        if !pipe.is_empty() {
            let mut byte = [0];
            match rustix::io::read(&stdin, &mut byte) {
                Ok(1) if byte[0] == GOODBYE => return Seen::Goodbye,
                Ok(1) => {
                    shared |= byte[0] == SHARED;
                    continue;
                }
                Err(Errno::INTR) => continue,
                _ => return Seen::Dead { shared },
            }
        }
        if !process.is_empty() {
            return Seen::Dead { shared };
        }
    }
}

fn apply_with_retries(apply: impl Fn() -> Result<(), CaptureError>) -> Result<(), CaptureError> {
    let mut pause = FIRST_PAUSE;
    for attempt in 1..ATTEMPTS {
        match apply() {
            Ok(()) => return Ok(()),
            Err(error) => log(&format!("attempt {attempt} of {ATTEMPTS}: {error}")),
        }
        sleep(pause);
        pause *= 2;
    }
    apply()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_a_process_a_file_and_a_number() {
        let check = |arguments: &[&str], expected: bool| {
            let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
            assert_eq!(parse(&arguments).is_some(), expected, "{arguments:?}");
        };
        check(&["7", "/run/gone", "12"], true);
        check(&["7", "/run/gone", "0"], true);
        check(&["0", "/run/gone", "12"], false);
        check(&["-7", "/run/gone", "12"], false);
        check(&["7", "/run/gone"], false);
        check(&["7", "/run/gone", "more"], false);
        check(&["7", "/run/gone", "4097"], false);
        check(&["7", "/run/gone", "12", "more"], false);
    }
}
