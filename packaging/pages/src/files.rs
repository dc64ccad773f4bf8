//! Pages of files, made from the manual's own tables, so that there is one place that says what a key means.

use anyhow::Context;
use clap_mangen::roff::{Roff, bold, roman};

use crate::text::{Paragraph, write_paragraphs};

const MANUAL: &str = include_str!("../../../docs/operating.md");
const EXAMPLE: &str = include_str!("../../../examples/agent.toml");

/// `baremesh-agent.toml(5)`: the section of the manual, and the example with every key.
///
/// # Errors
/// When the manual has no such section.
pub fn agent_toml(date: &str) -> anyhow::Result<Vec<u8>> {
    let section = section(MANUAL, "agent.toml").context("docs/operating.md has no section agent.toml")?;
    let mut roff = Roff::default();
    let source = format!("baremesh {}", env!("CARGO_PKG_VERSION"));
    roff.control("TH", ["baremesh-agent.toml", "5", date, &source, "baremesh manual"]);
    roff.control("SH", ["NAME"]);
    roff.text([roman("baremesh-agent.toml - configuration of the baremesh agent")]);
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([roman("/etc/baremesh/agent.toml")]);
    roff.control("SH", ["DESCRIPTION"]);
    write_markdown(&mut roff, section);
    roff.control("SH", ["EXAMPLE"]);
    write_paragraphs(&mut roff, &[Paragraph::Kept(EXAMPLE.lines().collect())]);
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman("baremesh-agent(1), baremesh(1)")]);
    Ok(roff.render().into_bytes())
}

/// What stands below a heading of the second level, until the next.
fn section<'a>(text: &'a str, heading: &str) -> Option<&'a str> {
    let start = format!("\n## {heading}\n");
    let rest = &text[text.find(&start)? + start.len()..];
    Some(rest.find("\n## ").map_or(rest, |end| &rest[..end]))
}

/// Paragraphs, and tables of three columns: what is set, its default, what it means. A row of bold type begins a part.
fn write_markdown(roff: &mut Roff, text: &str) {
    let mut begins = false;
    for line in text.lines() {
        let cells = line.strip_prefix('|').and_then(|line| line.strip_suffix('|'));
        let Some(cells) = cells else {
            if line.is_empty() {
                begins = true;
            } else {
                if std::mem::take(&mut begins) {
                    roff.control("PP", []);
                }
                roff.text([roman(plain(line))]);
            }
            continue;
        };
        let mut cells = cells.split('|').map(|cell| plain(cell.trim()));
        let (key, default, meaning) = (cells.next(), cells.next(), cells.next());
        match (key.as_deref(), default.as_deref()) {
            (Some("key" | "---"), _) | (None, _) => {}
            (Some(part), Some("")) if part.starts_with('[') => {
                roff.control("SS", [part]);
                roff.text([roman(meaning.unwrap_or_default())]);
            }
            (Some(key), default) => {
                roff.control("TP", []);
                match default.filter(|default| !default.is_empty()) {
                    Some(default) => roff.text([bold(key), roman(format!(" (default: {default})"))]),
                    None => roff.text([bold(key)]),
                };
                roff.text([roman(meaning.unwrap_or_default())]);
            }
        }
    }
}

/// Markdown's marks taken away: `code`, **bold**, and links, of which the text stays.
fn plain(text: &str) -> String {
    let text = text.replace("**", "").replace('`', "");
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(middle) = rest.find("](") {
        let Some(open) = rest[..middle].rfind('[') else { break };
        let Some(end) = rest[middle..].find(')') else { break };
        plain.push_str(&rest[..open]);
        plain.push_str(&rest[open + 1..middle]);
        rest = &rest[middle + end + 1..];
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_becomes_plain() {
        for (given, expected) in [
            ("`host`", "host"),
            ("**`[network]`**", "[network]"),
            ("see [dns.md](dns.md#short-names), or [that](a.md).", "see dns.md, or that."),
            ("no link (at all)", "no link (at all)"),
        ] {
            assert_eq!(plain(given), expected);
        }
    }

    #[test]
    fn every_key_of_the_example_is_explained() {
        let page = String::from_utf8(agent_toml("2026-11-29").expect("it is rendered")).expect("UTF-8");
        let explained = page.split(".SH EXAMPLE").next().expect("what comes before").replace('\\', "");
        let keys = EXAMPLE.lines().filter_map(|line| line.trim_start_matches("# ").split_once(" = "));
        for (key, _) in keys {
            assert!(explained.contains(key), "{key}");
        }
    }
}
