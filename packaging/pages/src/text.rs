//! Help texts are plain text: paragraphs, and blocks whose line ends and columns matter. A man page fills its lines unless
//! it is told not to.

use clap_mangen::roff::{Roff, roman};

/// A paragraph of a help text.
#[derive(Debug, PartialEq, Eq)]
pub enum Paragraph<'a> {
    /// Lines that may be broken anew.
    Filled(Vec<&'a str>),
    /// Lines that stay as they are: commands, and text in columns.
    Kept(Vec<&'a str>),
}

/// The paragraphs of a text. Lines that are indented, or have columns, are kept as they stand.
pub fn paragraphs(text: &str) -> Vec<Paragraph<'_>> {
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.trim_end();
        match (found.last_mut(), is_kept(line)) {
            _ if line.is_empty() => found.push(None),
            (Some(Some(Paragraph::Kept(lines))), true) | (Some(Some(Paragraph::Filled(lines))), false) => {
                lines.push(line);
            }
            (_, true) => found.push(Some(Paragraph::Kept(vec![line]))),
            (_, false) => found.push(Some(Paragraph::Filled(vec![line]))),
        }
    }
    found.into_iter().flatten().collect()
}

fn is_kept(line: &str) -> bool {
    line.starts_with(' ') || line.contains("   ")
}

/// Writes paragraphs, a blank line before each but the first.
pub fn write_paragraphs(roff: &mut Roff, paragraphs: &[Paragraph<'_>]) {
    for (index, paragraph) in paragraphs.iter().enumerate() {
        if index > 0 {
            roff.control("PP", []);
        }
        match paragraph {
            Paragraph::Filled(lines) => {
                roff.text([roman(lines.join(" "))]);
            }
            Paragraph::Kept(lines) => {
                roff.control("nf", []);
                for line in lines {
                    roff.text([roman(*line)]);
                }
                roff.control("fi", []);
            }
        }
    }
}

/// The headed blocks of a text such as `Examples:` followed by indented lines, and whatever else stands in it, in order.
/// What has no heading of its own is under `NOTES`.
pub fn sections(text: &str) -> Vec<(String, Vec<Paragraph<'_>>)> {
    let mut found: Vec<(String, Vec<Paragraph<'_>>)> = Vec::new();
    let mut paragraphs = paragraphs(text).into_iter().peekable();
    while let Some(paragraph) = paragraphs.next() {
        let heading = match (&paragraph, paragraphs.peek()) {
            (Paragraph::Filled(lines), Some(Paragraph::Kept(_))) => heading(lines),
            _ => None,
        };
        match (heading, found.last_mut()) {
            (Some(heading), _) => found.push((heading, paragraphs.next().into_iter().collect())),
            (None, Some((_, rest))) if matches!(paragraph, Paragraph::Kept(_)) => rest.push(paragraph),
            (None, Some((name, rest))) if name == NOTES => rest.push(paragraph),
            (None, _) => found.push((NOTES.to_owned(), vec![paragraph])),
        }
    }
    found
}

const NOTES: &str = "NOTES";

fn heading(lines: &[&str]) -> Option<String> {
    match lines {
        [line] => line.strip_suffix(':').map(str::to_uppercase),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_columns_stays_so() {
        let text = "One line\nand its second.\n\nOn one host:    baremesh init\nOn others:      baremesh join\n\nThe end.";
        let expected = [
            Paragraph::Filled(vec!["One line", "and its second."]),
            Paragraph::Kept(vec!["On one host:    baremesh init", "On others:      baremesh join"]),
            Paragraph::Filled(vec!["The end."]),
        ];
        assert_eq!(paragraphs(text), expected);
    }

    #[test]
    fn headings_become_sections() {
        let text = "Examples:\n  baremesh get\n  baremesh get -o json\n\nMore of it.\n\nAnd more.";
        let expected = [
            ("EXAMPLES".to_owned(), vec![Paragraph::Kept(vec!["  baremesh get", "  baremesh get -o json"])]),
            (
                "NOTES".to_owned(),
                vec![Paragraph::Filled(vec!["More of it."]), Paragraph::Filled(vec!["And more."])],
            ),
        ];
        assert_eq!(sections(text), expected);
    }

    #[test]
    fn lines_that_look_like_requests_are_text() {
        let mut roff = Roff::default();
        write_paragraphs(&mut roff, &paragraphs("  .SH no heading\n  'tis text"));
        let page = roff.render();
        assert!(!page.lines().any(|line| line.starts_with(".SH") || line.starts_with("'tis")), "{page}");
    }
}
