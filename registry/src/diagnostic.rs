//! Findings about resources. A finding says where (file, line, column), what is wrong, and what to do; it carries
//! its excerpt with it, so that it can be shown long after the file has changed.

use std::fmt;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use baremesh_model::mesh::ResourceId;

use crate::format::source::{Origin, Source, Span};

/// The kinds of findings, with what each is about and what to do.
mod code;

pub use code::{Code, table as code_table};

/// How much a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The set is not taken; of an analysis: what is written does not work.
    Error,
    /// The set is taken; something in it has no effect, or not the one that it seems to have.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "Error",
            Self::Warning => "Warning",
        })
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file as it was named to the reader.
    pub file: Arc<str>,
    /// Line, from 1; 0 where the finding is about the whole file.
    pub line: usize,
    /// Column in characters, from 1; 0 where the finding is about the whole file.
    pub column: usize,
    /// How much it weighs.
    pub severity: Severity,
    /// What kind of finding it is.
    pub code: Code,
    /// The resource that it is about, where that is known.
    pub resource: Option<ResourceId>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    excerpt: Option<Excerpt>,
}

/// The lines that a finding is about, cut to what a terminal can show.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Excerpt {
    text: String,
    first_line: usize,
    mark: std::ops::Range<usize>,
}

/// Characters of a line that an excerpt keeps on either side of the mark.
const EXCERPT_MARGIN: usize = 120;

impl Diagnostic {
    /// A finding about a whole file or directory.
    pub fn about_file(file: &str, code: Code, message: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            line: 0,
            column: 0,
            severity: Severity::Error,
            code,
            resource: None,
            message: printable(&message.into()),
            help: None,
            excerpt: None,
        }
    }

    /// A finding at a place of a source.
    pub fn at(source: &Source, span: Span, code: Code, message: impl Into<String>) -> Self {
        let (line, column) = source.position(span.start);
        let excerpt = excerpt(source, span, line);
        Self { line, column, excerpt, ..Self::about_file(source.file(), code, message) }
    }

    /// A finding at a resource's place.
    pub fn at_origin(origin: &Origin, code: Code, message: impl Into<String>) -> Self {
        Self::at(&origin.source, origin.span, code, message)
    }

    /// The same finding with what to do.
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(printable(&help.into()));
        self
    }

    /// The same finding under another code.
    pub fn with_code(mut self, code: Code) -> Self {
        self.code = code;
        self
    }

    /// The same finding, about a resource.
    pub fn with_resource(mut self, resource: Option<ResourceId>) -> Self {
        self.resource = resource;
        self
    }

    /// The same finding as a warning.
    pub fn into_warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    /// Whether it keeps the set from being taken.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// The first line: `file:line:column: Error [BM0102] (Kind ns/name) message`.
    pub fn headline(&self) -> String {
        let place = match self.line {
            0 => self.file.to_string(),
            line => format!("{}:{line}:{}", self.file, self.column),
        };
        let about = self.resource.as_ref().map(|id| format!("({id}) ")).unwrap_or_default();
        format!("{place}: {} [{}] {about}{}", self.severity, self.code, self.message)
    }

    /// The whole finding for people: headline, excerpt, help. Ends with a line break.
    pub fn render(&self, renderer: &Renderer) -> String {
        let mut text = self.headline();
        text.push('\n');
        if let Some(excerpt) = &self.excerpt {
            let level = if self.is_error() { Level::ERROR } else { Level::WARNING };
            let snippet = Snippet::source(excerpt.text.as_str())
                .line_start(excerpt.first_line)
                .annotation(AnnotationKind::Primary.span(excerpt.mark.clone()));
            text.push_str(&renderer.render(&[Group::with_level(level).element(snippet)]));
            text.push('\n');
        }
        if let Some(help) = &self.help {
            text.push_str(&format!("help: {help}\n"));
        }
        text
    }

    /// The finding for programs.
    pub fn to_json(&self) -> serde_json::Value {
        let resource = self.resource.as_ref().map(|id| {
            serde_json::json!({
                "kind": id.kind.name(),
                "namespace": id.key.namespace.as_str(),
                "name": id.key.name.as_str(),
            })
        });
        serde_json::json!({
            "file": &*self.file,
            "line": self.line,
            "column": self.column,
            "severity": self.severity.to_string().to_lowercase(),
            "code": self.code.as_str(),
            "resource": resource,
            "message": self.message,
            "help": self.help,
        })
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(&Renderer::plain()))
    }
}

/// All findings as one text, a blank line between two.
pub fn render_all(findings: &[Diagnostic], renderer: &Renderer) -> String {
    findings.iter().map(|finding| finding.render(renderer)).collect::<Vec<_>>().join("\n")
}

/// A user's text within a message: quoted, and cut where it is long.
pub(crate) fn quote(text: &str) -> String {
    format!("`{}`", cut(text))
}

/// A user's text, cut where it is long.
pub(crate) fn cut(text: &str) -> std::borrow::Cow<'_, str> {
    const SHOWN: usize = 80;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

/// Control characters written out, so that a file cannot steer the terminal or forge a line of the log.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

fn excerpt(source: &Source, span: Span, line: usize) -> Option<Excerpt> {
    let span = source.clamp(span);
    let (start, text) = source.line(line)?;
    let column = span.start.saturating_sub(start).min(text.len());
    let end = span.end.saturating_sub(start).clamp(column, text.len());
    let mut back = text[..column].char_indices().rev();
    let from = back.nth(EXCERPT_MARGIN).map_or(0, |(index, _)| index);
    let until = text[column..].char_indices().nth(EXCERPT_MARGIN).map_or(text.len(), |(i, _)| column + i);
    let mark = (column - from)..(end.min(until) - from);
    Some(Excerpt { text: text[from..until].to_owned(), first_line: line, mark })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::new("a.toml", text)
    }

    #[test]
    fn shows_place_excerpt_and_help() {
        let source = source("a = 1\nnämes = 2\n");
        let finding = Diagnostic::at(&source, Span::new(6, 12), Code::UnknownField, "there is no `nämes`")
            .with_help("write `names`");
        assert_eq!(
            finding.to_string(),
            "a.toml:2:1: Error [BM0102] there is no `nämes`\n  |\n2 | nämes = 2\n  | ^^^^^\nhelp: write `names`\n"
        );
        assert_eq!(finding.to_json()["line"], 2);
        assert_eq!(finding.to_json()["severity"], "error");
    }

    #[test]
    fn shows_whole_file_findings_without_a_line() {
        let finding = Diagnostic::about_file("x", Code::Unreadable, "bad").into_warning();
        assert_eq!(finding.headline(), "x: Warning [BM0301] bad");
    }

    #[test]
    fn keeps_control_characters_out_and_long_lines_short() {
        let long = format!("a = \"{}\u{1b}[31m\"", "ä".repeat(10_000));
        let source = source(&long);
        let finding = Diagnostic::at(&source, Span::new(5, long.len()), Code::Syntax, "bad \u{1b}[31m\n");
        let text = finding.to_string();
        assert!(text.len() < 2000, "{}", text.len());
        assert!(!text.contains('\u{1b}'));
        assert!(text.contains("bad \\u{1b}[31m\\n"));
    }

    #[test]
    fn survives_spans_of_every_kind() {
        let text = "ab\r\ncdé\n\nx";
        let source = source(text);
        for start in 0..=text.len() + 2 {
            for end in start..=text.len() + 2 {
                Diagnostic::at(&source, Span::new(start, end), Code::Syntax, "m").to_string();
            }
        }
    }
}
