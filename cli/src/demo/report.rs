//! What the demo prints: each step with its evidence as it happens, for people; everything at the end, for programs.

use std::fmt::Display;
use std::io::Write as _;
use std::time::Duration;

use anyhow::Error;
use serde::Serialize;

use super::hosts::Net;
use super::patience::Stopped;
use super::steps::Step;

/// The form of what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Sentences, for people.
    Text,
    /// One JSON value at the end, for programs.
    Json,
}

/// Where the verdict of a step stands.
const VERDICT_COLUMN: usize = 64;
/// How many lines of each log a failure shows.
const TAIL: usize = 8;

const BOLD: &str = "\x1b[1m";
const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[1;31m";
const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// What became of a step.
#[derive(Debug, Serialize)]
pub(crate) struct Check {
    number: usize,
    title: &'static str,
    passed: bool,
    /// The resources that were put in force for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    applied: Option<String>,
    evidence: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
    milliseconds: u128,
    #[serde(skip)]
    hosts: &'static [&'static str],
}

/// Prints as the demo goes on, and keeps what became of each step.
pub(crate) struct Report {
    form: Form,
    checks: Vec<Check>,
}

impl Report {
    pub(crate) fn new(form: Form) -> Self {
        Self { form, checks: Vec::new() }
    }

    /// A line for people. Who no longer reads it is not waited for.
    pub(crate) fn say(&self, line: impl Display) {
        if self.form == Form::Text {
            let _ = writeln!(anstream::stdout(), "{line}");
        }
    }

    /// A line that stands out.
    pub(crate) fn head(&self, line: impl Display) {
        self.say(format_args!("{BOLD}{line}{PLAIN}"));
    }

    /// A line that steps back.
    pub(crate) fn note(&self, line: impl Display) {
        self.say(format_args!("   {DIM}{line}{PLAIN}"));
    }

    /// Notes that a step begins, and prints its title while it goes on.
    pub(crate) fn begin(&self, step: &Step) {
        if self.form == Form::Text {
            let number = self.checks.len() + 1;
            let mut out = anstream::stdout();
            let title = format!("{number}  {}", step.title);
            let _ = write!(out, "{BOLD}{title:VERDICT_COLUMN$}{PLAIN}").and_then(|()| out.flush());
        }
    }

    /// Notes how it ended, and prints what was applied and the evidence.
    pub(crate) fn end(
        &mut self,
        step: &Step,
        applied: Option<String>,
        outcome: Result<Vec<String>, &Error>,
        took: Duration,
    ) {
        let seconds = format!("{:.1} s", took.as_secs_f64());
        match &outcome {
            Ok(evidence) => {
                self.say(format_args!("{GREEN}ok{PLAIN}  {DIM}{seconds:>6}{PLAIN}"));
                self.say_applied(step, applied.as_deref());
                evidence.iter().for_each(|line| self.say(format_args!("   {line}")));
            }
            Err(error) => {
                self.say(format_args!("{RED}FAILED{PLAIN}  {DIM}{seconds}{PLAIN}"));
                self.say_applied(step, applied.as_deref());
                self.say(format_args!("   {error:#}"));
            }
        }
        self.checks.push(Check {
            number: self.checks.len() + 1,
            title: step.title,
            passed: outcome.is_ok(),
            applied,
            failure: outcome.as_ref().err().map(|error| format!("{error:#}")),
            evidence: outcome.unwrap_or_default(),
            milliseconds: took.as_millis(),
            hosts: step.hosts,
        });
    }

    /// The resources that were put in force, without what their file says of them.
    fn say_applied(&self, step: &Step, applied: Option<&str>) {
        let (Some(example), Some(text)) = (step.applies, applied) else { return };
        self.note(format_args!("baremesh apply -f {}", example.file));
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        lines.for_each(|line| self.note(format_args!("│ {line}")));
    }

    /// Notes that the show stopped in the midst of a step, which is neither here nor there.
    pub(crate) fn stop(&self) {
        self.say("stopped");
    }

    /// The steps that failed.
    pub(crate) fn failed(&self) -> Vec<&Check> {
        self.checks.iter().filter(|check| !check.passed).collect()
    }

    /// The verdict: a sentence, and the ends of the logs that tell more, or all of it as JSON.
    pub(crate) fn conclude(&self, net: &Net, steps: usize) -> anyhow::Result<()> {
        let failed = self.failed();
        let passed = failed.is_empty() && self.checks.len() == steps;
        if self.form == Form::Json {
            crate::output::say_json(&serde_json::json!({ "passed": passed, "checks": self.checks }))?;
        }
        match failed.is_empty() {
            true => self.say(format_args!("\n{GREEN}All {} checks passed.{PLAIN}", self.checks.len())),
            false => {
                let mut hosts: Vec<&str> = failed.iter().flat_map(|check| check.hosts).copied().collect();
                hosts.sort_unstable();
                hosts.dedup();
                show_logs(net, &hosts);
                for check in failed {
                    self.say(format_args!("{RED}FAILED{PLAIN}: {}  {}", check.number, check.title));
                }
            }
        }
        Ok(())
    }
}

/// Prints the ends of the logs of `hosts`; of all of them, where none is named. They go to the standard error: for
/// programs, too, a failure has to leave something to look at.
pub(crate) fn show_logs(net: &Net, hosts: &[&str]) {
    let mut files: Vec<_> =
        list(net.directory()).into_iter().flat_map(|host| list(&host.join("log"))).collect();
    files.sort();
    for file in files {
        let host = file.ancestors().nth(2).and_then(|host| host.file_name()).unwrap_or_default();
        let wanted = hosts.is_empty() || hosts.iter().any(|wanted| host == *wanted);
        let is_log = file.extension().is_some_and(|extension| extension == "out" || extension == "err");
        let text = match wanted && is_log {
            true => std::fs::read(&file).unwrap_or_default(),
            false => continue,
        };
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        if lines.is_empty() {
            continue;
        }
        let name = file.file_name().unwrap_or_default();
        let mut err = anstream::stderr();
        let _ = writeln!(err, "\n{DIM}--- {}: {}{PLAIN}", host.display(), name.display());
        for line in &lines[lines.len().saturating_sub(TAIL)..] {
            let _ = writeln!(err, "{line}");
        }
    }
}

fn list(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Why the whole show stopped, if `error` says that it did.
pub(crate) fn stopped(error: &Error) -> Option<Stopped> {
    error.chain().find_map(|cause| cause.downcast_ref::<Stopped>()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::steps::STEPS;

    #[test]
    fn what_failed_is_kept_for_programs() {
        let mut report = Report::new(Form::Json);
        report.end(
            &STEPS[0],
            Some("weight".to_owned()),
            Ok(vec!["seen".to_owned()]),
            Duration::from_millis(7),
        );
        report.end(&STEPS[1], None, Err(&anyhow::anyhow!("inner").context("outer")), Duration::ZERO);
        let checks = serde_json::to_value(&report.checks).expect("JSON");
        assert_eq!(checks[0]["passed"], true);
        assert_eq!((&checks[0]["evidence"][0], &checks[0]["milliseconds"]), (&"seen".into(), &7.into()));
        assert_eq!((&checks[0]["applied"], checks[1].get("applied")), (&"weight".into(), None));
        assert_eq!((&checks[1]["number"], &checks[1]["failure"]), (&2.into(), &"outer: inner".into()));
        assert_eq!(report.failed().len(), 1);
    }

    #[test]
    fn titles_leave_room_for_the_verdict() {
        for step in &STEPS {
            assert!(step.title.len() + 4 < VERDICT_COLUMN, "{}", step.title);
        }
    }

    #[test]
    fn a_stop_is_told_from_a_failure() {
        let error = Error::from(Stopped::Interrupted).context("while waiting").context("step");
        assert_eq!(stopped(&error), Some(Stopped::Interrupted));
        assert_eq!(stopped(&anyhow::anyhow!("no")), None);
    }
}
