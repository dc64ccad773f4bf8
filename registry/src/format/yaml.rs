//! Istio's YAML: `apiVersion`, `kind`, `metadata`, `spec`; several documents a file; `kind: List`. The tree is built
//! from the parser's events, so that every key and value has its place, and aliases cannot make it grow beyond
//! its bound.

use std::collections::{HashMap, HashSet};
use std::net::Ipv6Addr;
use std::sync::Arc;

use granit_parser::{Event, Options, Parser, ScalarStyle, Tag};

use super::document::{Document, from_manifest};
use super::findings::{Findings, Unknown};
use super::source::{Source, Span};
use super::tree::{Entry, MAX_DEPTH, MAX_VALUES, Node, Value};
use super::{Parsed, finish};
use crate::diagnostic::{Code, quote};

/// Reads a YAML text (JSON is YAML as well). `file` is the name that findings show.
pub fn parse(text: &str, file: &str) -> Parsed {
    let mut findings = Findings::new(Arc::new(Source::new(file, text)), Unknown::Refused);
    let documents = documents(text, &mut findings);
    finish(documents, findings)
}

/// The resources of a text as they are written.
pub(super) fn documents(text: &str, findings: &mut Findings) -> Vec<Document> {
    let mut documents = Vec::new();
    match Builder::new(text).roots() {
        Ok(roots) => {
            for root in roots {
                from_manifest(root, findings, &mut documents);
            }
        }
        Err(fault) => findings.error(fault.span, fault.code, fault.message, ""),
    }
    documents
}

/// What the documents of a text hold.
#[cfg(test)]
pub(super) fn roots(text: &str) -> Vec<Node> {
    Builder::new(text).roots().unwrap_or_default()
}

struct Fault {
    span: Span,
    code: Code,
    message: String,
}

fn syntax(span: Span, message: impl Into<String>) -> Fault {
    Fault { span, code: Code::Syntax, message: message.into() }
}

struct Builder<'t> {
    parser: Parser<'t, granit_parser::StrInput<'t>>,
    /// Anchored values by the parser's number for them, with their size, so that an alias costs what it repeats.
    anchors: HashMap<usize, (Node, usize, usize)>,
    budget: usize,
}

impl<'t> Builder<'t> {
    fn new(text: &'t str) -> Self {
        let mut options = Options::default();
        options.set_emit_comments(false);
        options.flow_nesting_limit = MAX_DEPTH;
        options.block_nesting_limit = MAX_DEPTH;
        let parser = Parser::new_from_str_with_options(text, options);
        Self { parser, anchors: HashMap::new(), budget: MAX_VALUES }
    }

    /// The roots of all documents that hold something.
    fn roots(mut self) -> Result<Vec<Node>, Fault> {
        let mut roots = Vec::new();
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(roots),
                Event::StreamStart | Event::DocumentEnd => {}
                Event::DocumentStart(..) => self.anchors.clear(),
                event => {
                    let root = self.node(event, span, 1)?;
                    if root.value != Value::Null {
                        roots.push(root);
                    }
                }
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'t>, Span), Fault> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => {
                let range = span.byte_range().unwrap_or_default();
                Ok((event, Span::new(range.start, range.end)))
            }
            Some(Err(error)) => {
                let at = error.marker().byte_offset().unwrap_or_default();
                Err(syntax(Span::new(at, at + 1), format!("not valid YAML: {}", error.info())))
            }
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn spend(&mut self, values: usize, span: Span) -> Result<(), Fault> {
        let rest = self.budget.checked_sub(values);
        self.budget = rest.ok_or_else(|| Fault {
            span,
            code: Code::TooLarge,
            message: format!("more than {MAX_VALUES} values, counted with what aliases repeat"),
        })?;
        Ok(())
    }

    fn node(&mut self, event: Event<'t>, span: Span, depth: usize) -> Result<Node, Fault> {
        let too_deep = || Fault {
            span,
            code: Code::TooLarge,
            message: format!("nested deeper than {MAX_DEPTH} levels"),
        };
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        let anchor = event.anchor_id();
        let node = match event {
            Event::Alias(id) => {
                let (node, size, height) =
                    self.anchors.get(&id).ok_or_else(|| syntax(span, "an alias of what contains it"))?;
                let (node, size, height) = (node.clone(), *size, *height);
                self.spend(size, span)?;
                if depth + height > MAX_DEPTH {
                    return Err(too_deep());
                }
                return Ok(Node { span, ..node });
            }
            Event::Scalar(text, style, _, tag) => {
                Node { span, value: scalar(&text, style, tag.as_deref()).map_err(|m| syntax(span, m))? }
            }
            Event::SequenceStart(_, _, tag) => {
                no_tag(tag.as_deref(), span)?;
                self.list(span, depth)?
            }
            Event::MappingStart(_, _, tag) => {
                no_tag(tag.as_deref(), span)?;
                self.map(span, depth)?
            }
            _ => return Err(syntax(span, "a value is missing")),
        };
        self.spend(1, span)?;
        if let Some(id) = anchor {
            let (size, height) = (node.count(), node.depth());
            // The copy that is kept costs like a use of it.
            self.spend(size, span)?;
            self.anchors.insert(id, (node.clone(), size, height));
        }
        Ok(node)
    }

    fn list(&mut self, span: Span, depth: usize) -> Result<Node, Fault> {
        let mut items = Vec::new();
        loop {
            let (event, at) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                let span = Span::new(span.start, span.end.max(at.end));
                return Ok(Node { span, value: Value::List(items) });
            }
            let item = self.node(event, at, depth + 1)?;
            items.push(address_with_colons(&item).unwrap_or(item));
        }
    }

    fn map(&mut self, span: Span, depth: usize) -> Result<Node, Fault> {
        let mut entries = Vec::new();
        let mut seen = HashSet::new();
        let mut end = span.end;
        loop {
            let (event, key_span) = self.next()?;
            let key: Arc<str> = match event {
                Event::MappingEnd => {
                    return Ok(Node::map(Span::new(span.start, end), entries));
                }
                Event::Scalar(text, ..) => Arc::from(&*text),
                _ => return Err(syntax(key_span, "a key must be a plain text")),
            };
            if &*key == "<<" {
                return Err(syntax(key_span, "merge keys (`<<`) are not read: write the fields out"));
            }
            if !seen.insert(key.clone()) {
                return Err(syntax(key_span, format!("the key {} stands here twice", quote(&key))));
            }
            let (event, at) = self.next()?;
            let node = self.node(event, at, depth + 1)?;
            end = end.max(node.span.end);
            entries.push(Entry { key, key_span, node });
        }
    }
}

/// An IPv6 address that ends in `::`, as an item of a list: to YAML it is a key without a value.
fn address_with_colons(item: &Node) -> Option<Node> {
    let Value::Map(entries) = &item.value else { return None };
    let [Entry { key, node: Node { value: Value::Null, .. }, .. }] = &**entries else { return None };
    let text = format!("{key}:");
    text.parse::<Ipv6Addr>().ok()?;
    Some(Node { span: item.span, value: Value::Text(text.into()) })
}

fn no_tag(tag: Option<&Tag>, span: Span) -> Result<(), Fault> {
    match tag {
        Some(tag) if !matches!(tag.core_suffix(), Some("map" | "seq")) => {
            Err(syntax(span, format!("the tag {} is not read: remove it", quote(&tag.original()))))
        }
        _ => Ok(()),
    }
}

/// A scalar by the core schema of YAML 1.2: `yes` and `on` are texts.
fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    match tag.map(|tag| (tag, tag.core_suffix())) {
        Some((_, Some("str"))) => return Ok(Value::Text(text.into())),
        Some((_, Some("int" | "bool" | "null" | "float"))) | None => {}
        Some((tag, _)) => return Err(format!("the tag {} is not read: remove it", quote(&tag.original()))),
    }
    if style != ScalarStyle::Plain {
        return Ok(Value::Text(text.into()));
    }
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => number(text).unwrap_or_else(|| Value::Text(text.into())),
    })
}

fn number(text: &str) -> Option<Value> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if let Some(hex) = text.strip_prefix("0x") {
        return i64::from_str_radix(hex, 16)
            .ok()
            .filter(|_| !hex.starts_with(['+', '-']))
            .map(Value::Integer);
    }
    if let Some(octal) = text.strip_prefix("0o") {
        return i64::from_str_radix(octal, 8)
            .ok()
            .filter(|_| !octal.starts_with(['+', '-']))
            .map(Value::Integer);
    }
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return Some(text.parse().map_or_else(|_| Value::Other(text.into()), Value::Integer));
    }
    let numeric = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    let plain = digits.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'-' | b'+'));
    (numeric && plain && text.parse::<f64>().is_ok()).then(|| Value::Other(text.into()))
}
