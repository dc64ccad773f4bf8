//! The near end of a keeper: the pipe whose closing ends it, and the way into its namespaces.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::tools;

/// The line with which a keeper says that its namespaces are in order, a path after it where it has to name one.
pub(crate) const READY: &str = "ready";

/// A running keeper. Dropping it ends it, and everything in its network namespace with it.
pub(crate) struct Held {
    child: Child,
    said: String,
}

/// Which of a keeper's namespaces a command enters, apart from the user namespace.
#[derive(Clone, Copy)]
pub(crate) enum Enter {
    /// Files only: where a further keeper is made.
    Mount,
    /// Network, files and host name.
    All,
}

impl Held {
    /// Starts `command`, which becomes a keeper, and waits until it is ready.
    pub(crate) fn start(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C in a terminal is for the caller; the keeper cleans up after it.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", tools::describe(&command)))?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).context("cannot read from a keeper")?;
        }
        if let Some(said) = line.strip_prefix(READY) {
            return Ok(Self { child, said: said.trim().to_owned() });
        }
        let mut why = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            let _ = stderr.read_to_string(&mut why);
        }
        let status = child.wait().context("cannot wait for a keeper")?;
        bail!("a namespace could not be made ({status}): {}", why.trim())
    }

    /// The keeper's process id, by which its namespaces are found.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the keeper said with its being ready.
    pub(crate) fn said(&self) -> &str {
        &self.said
    }

    /// A command that runs `program` in this keeper's namespaces. `user` is the keeper that holds the user namespace.
    pub(crate) fn enter(&self, user: Option<u32>, what: Enter, program: impl AsRef<OsStr>) -> Command {
        let mut command = tools::tool("nsenter");
        if let Some(user) = user {
            command.arg(format!("--user=/proc/{user}/ns/user")).arg("--preserve-credentials");
        }
        let kinds: &[(&str, &str)] = match what {
            Enter::Mount => &[("mount", "mnt")],
            Enter::All => &[("net", "net"), ("mount", "mnt"), ("uts", "uts")],
        };
        for (option, file) in kinds {
            command.arg(format!("--{option}=/proc/{}/ns/{file}", self.pid()));
        }
        command.arg("--").arg(program);
        command
    }
}

impl Held {
    /// Ends the keeper and everything in its network namespace.
    pub(crate) fn end(&mut self) {
        drop(self.child.stdin.take());
        // The keeper's own work is bounded, so this wait is.
        let _ = self.child.wait();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.end();
    }
}
