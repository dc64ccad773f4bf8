//! The TOML form: one array of tables a kind, `name`, `namespace` and `labels` beside the spec's fields.

use std::sync::Arc;

use ::toml::Spanned;
use ::toml::de::{DeTable, DeValue};

use super::document::{Dialect, Document};
use super::findings::{Findings, Unknown};
use super::source::{Source, Span};
use super::tree::{Entry, MAX_DEPTH, MAX_VALUES, Node, Value};
use super::{Parsed, finish};
use crate::diagnostic::{Code, quote};

/// Reads a TOML text. `file` is the name that findings show.
pub fn parse(text: &str, file: &str) -> Parsed {
    let mut findings = Findings::new(Arc::new(Source::new(file, text)), Unknown::Refused);
    let documents = documents(text, &mut findings);
    finish(documents, findings)
}

/// The resources of a text as they are written.
pub(super) fn documents(text: &str, findings: &mut Findings) -> Vec<Document> {
    let table = match DeTable::parse(text) {
        Ok(table) => table,
        Err(error) => {
            let span = error.span().map_or(Span::default(), |span| Span::new(span.start, span.end));
            findings.error(span, Code::Syntax, format!("not valid TOML: {}", error.message()), "");
            return Vec::new();
        }
    };
    let mut budget = MAX_VALUES;
    let Some(kinds) = entries(table.into_inner(), &mut budget, 0) else {
        let message = format!("more than {MAX_VALUES} values, or nested deeper than {MAX_DEPTH} levels");
        findings.error(Span::default(), Code::TooLarge, message, "");
        return Vec::new();
    };
    let mut documents = Vec::new();
    for Entry { key, key_span, node } in kinds {
        let tables = match node.value {
            Value::List(items) => items,
            Value::Map(_) => vec![node],
            _ => {
                let message = format!("{} stands outside of any resource", quote(&key));
                findings.error(key_span, Code::Syntax, message, "");
                continue;
            }
        };
        for table in tables {
            match document(&key, key_span, table) {
                Ok(document) => documents.push(document),
                Err(span) => {
                    let message = format!("{} is not a table: write `[[{key}]]`", quote(&key));
                    findings.error(span, Code::Syntax, message, "");
                }
            }
        }
    }
    // The table gives its keys in alphabetical order; resources are taken in the order of the file.
    documents.sort_by_key(|document| document.span.start);
    documents
}

/// Splits a table into what names the resource and what it says.
fn document(kind: &Arc<str>, kind_span: Span, table: Node) -> Result<Document, Span> {
    let Value::Map(entries) = table.value else { return Err(table.span) };
    let is_metadata = |entry: &Entry| matches!(&*entry.key, "name" | "namespace" | "labels" | "annotations");
    let (metadata, spec): (Vec<_>, Vec<_>) = entries.into_iter().partition(is_metadata);
    // An implicit table has no place of its own.
    let span = if table.span.end == 0 { kind_span } else { table.span };
    Ok(Document {
        kind: kind.clone(),
        kind_span,
        dialect: Dialect::Native,
        metadata: Node::map(span, metadata),
        spec: Some(Node::map(span, spec)),
        span,
    })
}

fn entries(table: DeTable<'_>, budget: &mut usize, depth: usize) -> Option<Vec<Entry>> {
    let mut entries = Vec::with_capacity(table.len().min(*budget));
    for (key, value) in table {
        let key_span = span(&key);
        let key = Arc::from(&**key.get_ref());
        entries.push(Entry { key, key_span, node: node(value, budget, depth + 1)? });
    }
    entries.sort_by_key(|entry| entry.key_span.start);
    Some(entries)
}

fn node(value: Spanned<DeValue<'_>>, budget: &mut usize, depth: usize) -> Option<Node> {
    *budget = budget.checked_sub(1)?;
    if depth > MAX_DEPTH {
        return None;
    }
    let span = span(&value);
    let value = match value.into_inner() {
        DeValue::String(text) => Value::Text(Arc::from(&*text)),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::Other(number.as_str().into()),
        },
        DeValue::Float(number) => Value::Other(number.as_str().into()),
        DeValue::Boolean(value) => Value::Bool(value),
        DeValue::Datetime(date) => Value::Other(date.to_string().into()),
        DeValue::Array(items) => {
            let items = items.into_iter().map(|item| node(item, budget, depth + 1));
            Value::List(items.collect::<Option<_>>()?)
        }
        DeValue::Table(table) => Value::Map(entries(table, budget, depth)?),
    };
    Some(Node { span, value })
}

fn span<T>(spanned: &Spanned<T>) -> Span {
    Span::new(spanned.span().start, spanned.span().end)
}
