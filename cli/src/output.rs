//! What is printed, and what the command ends with. Answers go to the standard output, as tables for people or as
//! JSON for programs; everything else goes to the standard error.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use baremesh_agent::admin::client::SocketError;
use baremesh_ca::client::ClientError;
use clap::ValueEnum;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The form of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// Tables and sentences, for people.
    #[default]
    Table,
    /// JSON, for programs.
    Json,
    /// Istio's YAML: `get` alone.
    Yaml,
    /// TOML: `get` alone.
    Toml,
}

/// What the command ends with, as the root's help documents it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It was refused, or it failed.
    Refused = 1,
    /// The command line, or a file that it names, cannot be understood.
    Usage = 2,
    /// Nothing answers: the agent or the control server is not in reach.
    NothingAnswers = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The command line asks for what does not go together, or names what cannot be read.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A usage error as `anyhow` carries it.
pub fn usage(message: impl Into<String>) -> anyhow::Error {
    Usage(message.into()).into()
}

/// What was asked for is not so, and all of it has been printed already.
#[derive(Debug)]
pub struct Said(pub Exit);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("see above")
    }
}

impl std::error::Error for Said {}

/// Prints an error that ended a verb, and says what the command ends with.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    if let Some(Said(exit)) = error.downcast_ref() {
        return (*exit).into();
    }
    if is_closed_pipe(error) {
        // Whoever read the output has seen enough.
        return ExitCode::SUCCESS;
    }
    // A closed standard error must not turn into a panic.
    let _ = writeln!(io::stderr(), "error: {}", in_full(error));
    exit_of(error).into()
}

/// An error with its causes. Many name their cause in their own text already: that is not said twice.
pub fn in_full(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn exit_of(error: &anyhow::Error) -> Exit {
    for cause in error.chain() {
        if cause.is::<Usage>() {
            return Exit::Usage;
        }
        match cause.downcast_ref::<ClientError>() {
            Some(ClientError::Unreachable { .. }) => return Exit::NothingAnswers,
            Some(ClientError::Address { .. }) => return Exit::Usage,
            _ => {}
        }
        if let Some(SocketError::Connect { .. } | SocketError::Silent { .. }) = cause.downcast_ref() {
            return Exit::NothingAnswers;
        }
    }
    Exit::Refused
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let closed = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.downcast_ref::<io::Error>().is_some_and(closed)
}

/// Prints text to the standard output.
pub fn say(text: impl fmt::Display) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    let text = text.to_string();
    stdout.write_all(text.as_bytes())?;
    if !text.ends_with('\n') && !text.is_empty() {
        stdout.write_all(b"\n")?;
    }
    Ok(stdout.flush()?)
}

/// Prints a value as JSON to the standard output.
pub fn say_json(value: &impl Serialize) -> anyhow::Result<()> {
    say(serde_json::to_string_pretty(value).context("the answer cannot be written as JSON")?)
}

/// Prints a remark to the standard error: it is no part of the answer.
pub fn remark(text: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A table with a header, or `empty` where it has no rows.
pub fn table(header: &[&str], rows: Vec<Vec<String>>, empty: &str) -> String {
    if rows.is_empty() {
        return empty.to_owned();
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)).collect::<Vec<_>>());
    }
    // The first column starts at the edge, as in other tools' lists.
    table.trim_fmt().lines().map(|line| line.strip_prefix(' ').unwrap_or(line)).collect::<Vec<_>>().join("\n")
}

/// Texts of hosts and files may hold anything: none of it may steer the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// Seconds since 1970.
pub fn to_unix(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A moment, in seconds since 1970, as RFC 3339 writes it.
pub fn when(at: u64) -> String {
    let moment = i64::try_from(at).ok().and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
    moment.and_then(|moment| moment.format(&Rfc3339).ok()).unwrap_or_else(|| at.to_string())
}

/// How far a moment, in seconds since 1970, lies ahead of or behind `now`: `in 2 h 5 min`, `3 min 10 s ago`.
pub fn relative(at: u64, now: SystemTime) -> String {
    let now = to_unix(now);
    match at.checked_sub(now) {
        Some(ahead) => format!("in {}", in_words(Duration::from_secs(ahead))),
        None => format!("{} ago", in_words(Duration::from_secs(now - at))),
    }
}

/// A duration as people read it.
pub fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn tells_scripts_what_happened() {
        let connect = SocketError::Connect {
            path: PathBuf::from("/run/x.sock"),
            program: "baremesh agent",
            source: io::ErrorKind::NotFound.into(),
        };
        let silent = SocketError::Silent {
            path: PathBuf::from("/run/x.sock"),
            program: "baremesh agent",
            limit: Duration::from_secs(10),
        };
        let unreachable = ClientError::Unreachable { address: "h:1".into(), reason: "refused".into() };
        let unresolved = ClientError::Address { address: "?".into(), reason: "no such name".into() };
        for (error, exit) in [
            (anyhow::Error::new(connect), Exit::NothingAnswers),
            (anyhow::Error::new(silent), Exit::NothingAnswers),
            (anyhow::Error::new(unreachable).context("joining"), Exit::NothingAnswers),
            (unresolved.into(), Exit::Usage),
            (usage("no"), Exit::Usage),
            (usage("no").context("more"), Exit::Usage),
            (anyhow::anyhow!("other"), Exit::Refused),
        ] {
            assert_eq!(exit_of(&error), exit, "{error:#}");
        }
    }

    #[test]
    fn says_each_cause_once() {
        let connect = SocketError::Connect {
            path: PathBuf::from("/run/x.sock"),
            program: "baremesh agent",
            source: io::ErrorKind::NotFound.into(),
        };
        let text = in_full(&anyhow::Error::new(connect).context("reloading"));
        assert_eq!(text.matches("entity not found").count(), 1, "{text}");
        assert!(text.starts_with("reloading: nothing answers"), "{text}");
    }

    #[test]
    fn tables_line_up_and_carry_no_control_characters() {
        let rows =
            vec![vec!["a".to_owned(), "b\u{1b}[31m".to_owned()], vec!["long".to_owned(), "c".to_owned()]];
        let text = table(&["ONE", "TWO"], rows, "none");
        assert!(!text.contains('\u{1b}'), "{text:?}");
        let columns: Vec<_> = text.lines().map(|line| line.find(['T', 'b', 'c'])).collect();
        assert_eq!(columns, [columns[0]; 3], "{text}");
        assert!(text.starts_with("ONE"), "{text:?}");
        assert_eq!(table(&["ONE"], Vec::new(), "none"), "none");
    }

    #[test]
    fn says_how_far_away_a_moment_is() {
        let now = UNIX_EPOCH + Duration::from_secs(100_000);
        for (at, expected) in [
            (100_000, "in 0 s"),
            (100_070, "in 1 min 10 s"),
            (92_740, "2 h 1 min ago"),
            (300_000, "in 2 d 7 h"),
        ] {
            assert_eq!(relative(at, now), expected);
        }
    }
}
