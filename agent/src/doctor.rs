//! What is wrong with a host: `baremesh doctor`. Small readers look (`look`), pure functions judge what they saw (`judge`),
//! and every finding has a stable code (`code`), figures, why it matters and what to do. What could not be looked at is named,
//! and never taken to be well.

/// The kinds of findings.
pub mod code;
/// From what was seen to what is wrong.
pub mod judge;
/// What is seen of this host.
pub mod look;

use serde::Serialize;

use self::code::Code;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something does not work.
    Error,
    /// Something will not, or does not as it is meant.
    Warning,
}

impl Severity {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What kind of thing.
    pub code: Code,
    /// What was seen, with figures.
    pub seen: String,
    /// What to do, where more can be said than the code says.
    pub remedy: Option<String>,
}

impl Finding {
    /// A finding with the remedy of its code.
    pub fn new(code: Code, seen: impl Into<String>) -> Self {
        Self { code, seen: seen.into(), remedy: None }
    }

    /// The same with a remedy of its own.
    pub fn with_remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }

    /// What to do.
    pub fn remedy(&self) -> &str {
        self.remedy.as_deref().unwrap_or(self.code.remedy())
    }
}

/// What came of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// What was seen, in a few words, whether or not something is wrong.
    pub seen: String,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What could not be looked at, and why.
    pub unchecked: Vec<String>,
}

impl Check {
    /// A check that has found nothing yet.
    pub fn new(name: &'static str) -> Self {
        Self { name, seen: String::new(), findings: Vec::new(), unchecked: Vec::new() }
    }

    /// A check that could not be made.
    pub fn unchecked(name: &'static str, why: impl Into<String>) -> Self {
        Self { unchecked: vec![why.into()], ..Self::new(name) }
    }

    /// Notes a finding.
    pub fn found(&mut self, code: Code, seen: impl Into<String>) {
        self.findings.push(Finding::new(code, seen));
    }
}
