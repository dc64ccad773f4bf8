//! Running `nft`, `ip` and `resolvectl`: where they are, what they said, and a limit to how long they may take.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{CaptureError, notices};

/// How long one command may take. The largest load seen, 20,000 elements, takes half a second.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// So much of a command's complaint goes into the error: nft repeats the whole statement that it refuses.
const COMPLAINT_LIMIT: usize = 600;

/// Where the commands are when PATH, as a service or a user has it, does not name them.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/bin"];

/// The commands that capture needs, found once.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    nft: PathBuf,
    /// A link to it with a name of this process alone, where that is wanted and to be had.
    named: Option<PathBuf>,
    ip: PathBuf,
    /// What ends a command with the process that started it, where that is wanted and to be had.
    setpriv: Option<PathBuf>,
}

impl Tools {
    /// Finds both, or says which package brings the one that is missing.
    pub(crate) fn find() -> Result<Self, CaptureError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let find = |tool, package| find_in(&path, tool).ok_or(CaptureError::MissingTool { tool, package });
        Ok(Self { nft: find("nft", "nftables")?, named: None, ip: find("ip", "iproute2")?, setpriv: None })
    }

    /// Has both end when this process does. Of an agent that is killed none is left that would put its rules or routes in
    /// place once more, over what stands for a gone agent. Without `setpriv` (util-linux) it is not so.
    pub(crate) fn ending_with_us(self) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        Self { setpriv: find_in(&path, "setpriv"), ..self }
    }

    /// Has `nft` run by a name of this process alone, a link in `directory`: the kernel names whoever changed the rules by it.
    /// Links that processes before this one left there are removed; one that is still wanted is made again when it is.
    pub(super) fn naming_nft(self, directory: &Path) -> io::Result<Self> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_symlink() && notices::is_a_name(&entry.file_name()) {
                fs::remove_file(entry.path())?;
            }
        }
        let link = directory.join(notices::name());
        symlink(&self.nft, &link)?;
        Ok(Self { named: Some(link), ..self })
    }

    /// Applies nft text as one transaction.
    pub(super) fn apply(&self, text: &str) -> Result<(), CaptureError> {
        self.nft(&["-f", "-"], text).map(drop)
    }

    /// Runs `nft` and returns what it wrote.
    pub(super) fn nft(&self, arguments: &[&str], input: &str) -> Result<String, CaptureError> {
        let is_there = |link: &&PathBuf| link.is_symlink() || symlink(&self.nft, link).is_ok();
        self.run(self.named.as_ref().filter(is_there).unwrap_or(&self.nft), arguments, input)
    }

    /// Runs `resolvectl` and returns what it wrote. It is looked for each time: few hosts need it, and it may be installed
    /// while the agent runs.
    pub(crate) fn resolvectl(&self, arguments: &[&str]) -> Result<String, CaptureError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let missing = CaptureError::MissingTool { tool: "resolvectl", package: "systemd-resolved" };
        self.run(&find_in(&path, "resolvectl").ok_or(missing)?, arguments, "")
    }

    /// The same of `systemctl`, which is where systemd is.
    pub(crate) fn systemctl(&self, arguments: &[&str]) -> Result<String, CaptureError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let missing = CaptureError::MissingTool { tool: "systemctl", package: "systemd" };
        self.run(&find_in(&path, "systemctl").ok_or(missing)?, arguments, "")
    }

    /// The same of `systemd-run`.
    pub(super) fn systemd_run(&self, arguments: &[&str]) -> Result<String, CaptureError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let missing = CaptureError::MissingTool { tool: "systemd-run", package: "systemd" };
        self.run(&find_in(&path, "systemd-run").ok_or(missing)?, arguments, "")
    }

    /// Runs `ip` and returns what it wrote.
    pub(super) fn ip(&self, arguments: &[&str]) -> Result<String, CaptureError> {
        self.run(&self.ip, arguments, "")
    }

    fn run(&self, tool: &Path, arguments: &[&str], input: &str) -> Result<String, CaptureError> {
        match &self.setpriv {
            Some(setpriv) => {
                let tool = tool.to_string_lossy();
                run(setpriv, &[&["--pdeathsig", "KILL", "--", &tool], arguments].concat(), input)
            }
            None => run(tool, arguments, input),
        }
    }
}

fn find_in(path: &OsStr, tool: &str) -> Option<PathBuf> {
    let system = SYSTEM_DIRECTORIES.iter().map(PathBuf::from);
    // A relative entry of PATH would let the current directory decide what runs with our privileges.
    let directories = std::env::split_paths(path).filter(|directory| directory.is_absolute()).chain(system);
    directories.map(|directory| directory.join(tool)).find(|file| file.is_file())
}

fn run(program: &Path, arguments: &[&str], input: &str) -> Result<String, CaptureError> {
    let line = || format!("{} {}", program.display(), arguments.join(" "));
    let failed = |source| CaptureError::Run { command: line(), source };
    let mut command = Command::new(program);
    // Messages are told apart by their English text.
    command.args(arguments).env("LC_ALL", "C");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    notices::started(child.id());
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        // Three pipes at once, as a full one would stop the command while we wait at another. A command that ends
        // without reading all of its input says why on its standard error.
        scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(input.as_bytes())));
        let stdout = scope.spawn(move || read(stdout));
        let stderr = scope.spawn(move || read(stderr));
        if !ended(&child, TIME_LIMIT).map_err(failed)? {
            let _ = child.kill();
            let _ = child.wait();
            return Err(CaptureError::TimedOut { command: line(), seconds: TIME_LIMIT.as_secs() });
        }
        let status = child.wait().map_err(failed)?;
        let stdout = stdout.join().unwrap_or_default();
        let stderr = stderr.join().unwrap_or_default();
        if status.success() {
            return Ok(stdout);
        }
        let stderr = if stderr.trim().is_empty() { status.to_string() } else { shortened(&stderr) };
        Err(CaptureError::Refused { command: line(), stderr })
    })
}

fn read(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    // What came until then is what there is to show.
    let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

fn shortened(complaint: &str) -> String {
    let complaint = complaint.trim();
    let end = complaint.char_indices().nth(COMPLAINT_LIMIT).map_or(complaint.len(), |(end, _)| end);
    complaint[..end].to_owned()
}

/// Whether a child ends within `limit`; it is not reaped.
pub(super) fn ended(child: &Child, limit: Duration) -> io::Result<bool> {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let deadline = std::time::Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
        }
    }
}

/// A process of our own that must not die of what ends its parent: `baremesh capture …`, with SIGTERM, SIGINT and
/// SIGHUP ignored. A shell sets that, because ignored signals stay ignored across `exec`, while setting them in
/// Rust takes unsafe code. The process makes itself a session of its own once it runs.
pub(super) fn lasting(exe: &Path, arguments: &[&OsStr]) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "trap '' HUP INT TERM; exec \"$@\"", "baremesh"])
        .arg(exe)
        .arg("capture")
        .args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// Leaves the parent's session and process group: no terminal and no signal to the group reaches it any more.
pub(super) fn leave_session() {
    // Refused only where the process leads a group already, and then it has left.
    let _ = rustix::process::setsid();
}

/// The byte that a lasting process writes when it is on its post.
const READY: u8 = 0x06;

/// Reports to the parent that this process is on its post.
pub(super) fn report_ready() -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(&[READY])?;
    stdout.flush()
}

/// Waits until a lasting process is on its post.
pub(super) fn wait_until_ready(
    process: &'static str,
    child: &mut Child,
    limit: Duration,
) -> Result<(), CaptureError> {
    let refused = |detail: String| CaptureError::NotReady { process, detail };
    let mut stdout = child.stdout.take().ok_or_else(|| refused("it has no standard output".to_owned()))?;
    let timeout = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() };
    let mut byte = [0];
    loop {
        match poll(&mut [PollFd::new(&stdout, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Err(refused(format!("it said nothing for {} s", limit.as_secs()))),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(refused(error.to_string())),
        }
        match stdout.read(&mut byte) {
            Ok(0) => return Err(refused("it ended; its own messages say why".to_owned())),
            Ok(_) if byte[0] == READY => return Ok(()),
            // Whatever else it prints before it is ready is not for us.
            Ok(_) => {}
            Err(error) => return Err(refused(error.to_string())),
        }
    }
}

/// Writes a line to the standard error. A terminal that is gone must not end a process that stays for its sake.
pub(super) fn log(line: &str) {
    let _ = writeln!(io::stderr(), "baremesh capture: {line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_a_command_complained_about() {
        let error = run(Path::new("/bin/sh"), &["-c", "cat; echo no such thing >&2; exit 3"], "input");
        let Err(CaptureError::Refused { command, stderr }) = error else { panic!("{error:?}") };
        assert_eq!((command.contains("/bin/sh -c"), stderr.as_str()), (true, "no such thing"));
    }

    #[test]
    fn carries_input_and_output_larger_than_a_pipe() {
        let input = "x".repeat(1 << 20);
        assert_eq!(run(Path::new("/bin/cat"), &[], &input).expect("cat copies"), input);
        assert!(run(Path::new("/bin/true"), &[], &input).is_ok(), "input that nobody reads is no failure");
    }

    #[test]
    fn finds_commands_in_absolute_directories_only() {
        let find = |path: &str| find_in(OsStr::new(path), "sh");
        assert_eq!(find("relative:/bin"), Some(PathBuf::from("/bin/sh")));
        assert_eq!(find_in(OsStr::new(""), "no-such-command"), None);
    }

    #[test]
    fn nft_runs_by_a_name_of_our_own() {
        let directory = tempfile::tempdir().expect("a directory");
        let stale = directory.path().join("nft-0123456789a");
        symlink("/bin/sh", &stale).expect("a link");
        let cat = PathBuf::from("/bin/cat");
        let tools = Tools { nft: cat.clone(), named: None, ip: cat, setpriv: None };
        let named = tools.naming_nft(directory.path()).expect("a directory of ours");
        let name = || named.nft(&["/proc/self/comm"], "").expect("cat copies");
        assert_eq!((name().trim_end(), stale.is_symlink()), (notices::name(), false));
        fs::remove_file(directory.path().join(notices::name())).expect("it is there");
        assert_eq!(name().trim_end(), notices::name(), "it is made again");
        drop(directory);
        assert_eq!(name().trim_end(), "cat", "it goes on by the other name");
    }

    #[test]
    fn a_child_that_goes_on_has_not_ended() {
        let mut child = Command::new("/bin/cat").stdin(Stdio::piped()).spawn().expect("cat starts");
        assert!(!ended(&child, Duration::ZERO).expect("a pidfd"));
        drop(child.stdin.take());
        assert!(ended(&child, TIME_LIMIT).expect("a pidfd"));
        child.wait().expect("it is reaped");
    }
}
