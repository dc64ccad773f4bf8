//! The findings of one source, kept up to a bound. A finding beyond the bound costs nothing: a file of megabytes on one
//! line with a fault in every value must not keep its reader busy.

use std::sync::Arc;

use baremesh_model::mesh::ResourceId;

use super::source::{Source, Span};
use crate::diagnostic::{Code, Diagnostic, Severity};

/// Findings that are kept of one file; a file with more is broken enough.
pub const MAX_FINDINGS: usize = 100;

/// What to do about keys that a kind does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// They are errors: somebody mistyped something.
    Refused,
    /// They are warnings: the sender is newer.
    Ignored,
}

/// The findings of one source.
#[derive(Debug)]
pub(crate) struct Findings {
    pub(crate) source: Arc<Source>,
    /// The resource that is being read.
    pub(crate) about: Option<ResourceId>,
    /// All errors, those beyond the bound included.
    pub(crate) errors: usize,
    unknown: Unknown,
    list: Vec<Diagnostic>,
}

impl Findings {
    pub(crate) fn new(source: Arc<Source>, unknown: Unknown) -> Self {
        Self { source, about: None, errors: 0, unknown, list: Vec::new() }
    }

    /// Reports an error. An empty `help` says nothing.
    pub(crate) fn error(&mut self, span: Span, code: Code, message: impl Into<String>, help: &str) {
        self.errors += 1;
        let finding = || self.finding(span, code, message.into(), help);
        if self.list.len() < MAX_FINDINGS {
            let finding = finding();
            self.list.push(finding);
        } else if self.errors == 1 {
            // The list is full of warnings, and without an error the source would be taken.
            let finding = finding();
            self.list[MAX_FINDINGS - 1] = finding;
        }
    }

    /// Reports what is taken and has no effect, or not the one that it seems to have.
    pub(crate) fn warning(&mut self, span: Span, code: Code, message: impl Into<String>, help: &str) {
        if self.list.len() < MAX_FINDINGS {
            self.list.push(self.finding(span, code, message.into(), help).into_warning());
        }
    }

    /// Reports a key that is not known, or not taken.
    pub(crate) fn unknown_key(&mut self, span: Span, code: Code, message: impl Into<String>, help: &str) {
        match self.unknown {
            Unknown::Refused => self.error(span, code, message, help),
            Unknown::Ignored => self.warning(span, Code::FromNewer, message, "upgrade this host's agent"),
        }
    }

    /// Whether what comes is not kept, so that its wording need not be looked for.
    pub(crate) fn is_full(&self) -> bool {
        self.list.len() >= MAX_FINDINGS
    }

    /// The findings in the order of their places.
    pub(crate) fn into_list(mut self) -> Vec<Diagnostic> {
        self.list.sort_by_key(|finding| (finding.line, finding.column));
        self.list
    }

    fn finding(&self, span: Span, code: Code, message: String, help: &str) -> Diagnostic {
        let finding = Diagnostic::at(&self.source, span, code, message);
        let finding = if help.is_empty() { finding } else { finding.with_help(help) };
        debug_assert_eq!(finding.severity, Severity::Error);
        finding.with_resource(self.about.clone())
    }
}
