//! A file's text with the places in it, so that every finding and every resource can say where it stands.

use std::sync::Arc;

/// A range of bytes in a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// The first byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

impl Span {
    /// The range from `start` up to `end`.
    pub fn new(start: usize, end: usize) -> Self {
        Self { start, end: end.max(start) }
    }
}

/// A text that resources are read from. Without a text (a message on the wire) it has a name alone.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    file: Arc<str>,
    text: String,
    line_starts: Vec<usize>,
}

impl Source {
    /// A file's text under the name to show.
    pub fn new(file: &str, text: &str) -> Self {
        let starts = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(index, _)| index + 1);
        let line_starts = std::iter::once(0).chain(starts).collect();
        Self { file: file.into(), text: text.to_owned(), line_starts }
    }

    /// The name to show.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The text; empty in a source without one.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Line and column of a byte, both from 1, the column in characters; (0, 0) in a source without text.
    pub fn position(&self, offset: usize) -> (usize, usize) {
        if self.text.is_empty() {
            return (0, 0);
        }
        let line = self.line_of(offset);
        let Some((start, text)) = self.line(line) else { return (line, 1) };
        let within = self.floor(offset).saturating_sub(start).min(text.len());
        (line, text[..within].chars().count() + 1)
    }

    /// The line of a byte, from 1; 0 in a source without text.
    pub fn line_of(&self, offset: usize) -> usize {
        if self.text.is_empty() {
            return 0;
        }
        self.line_starts.partition_point(|start| *start <= offset).max(1)
    }

    /// Where a line starts, and its text without the line break.
    pub fn line(&self, line: usize) -> Option<(usize, &str)> {
        let index = line.checked_sub(1)?;
        let start = *self.line_starts.get(index)?;
        let end = self.line_starts.get(index + 1).copied().unwrap_or(self.text.len());
        Some((start, self.text[start..end].trim_end_matches(['\n', '\r'])))
    }

    /// The span with both ends moved back to character boundaries of the text.
    pub fn clamp(&self, span: Span) -> Span {
        Span::new(self.floor(span.start), self.floor(span.end))
    }

    fn floor(&self, offset: usize) -> usize {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        offset
    }
}

/// Where a resource stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The text.
    pub source: Arc<Source>,
    /// The place in it.
    pub span: Span,
}

impl Origin {
    /// The file as it was named to the reader.
    pub fn file(&self) -> &str {
        self.source.file()
    }

    /// The line, from 1; 0 in a source without text.
    pub fn line(&self) -> usize {
        self.source.line_of(self.span.start)
    }

    /// `file:line`, as messages name another resource's place.
    pub fn place(&self) -> String {
        match self.line() {
            0 => self.file().to_owned(),
            line => format!("{}:{line}", self.file()),
        }
    }
}
