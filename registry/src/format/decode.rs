//! From raw values to checked ones. A `Decoder` reads one resource: it checks each map against the kind's table of
//! fields, and every reading method reports what is wrong and returns nothing, so that all faults of a resource
//! are found at once.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;

use baremesh_model::mesh::Kind;
use baremesh_model::name::{Label, NameError};
use baremesh_model::workload::Labels;

use super::fields::{Field, State, find, suggestion};
use super::findings::Findings;
use super::labels::check_label;
use super::source::Span;
use super::tree::{Entry, Node, Value};
use crate::diagnostic::{Code, cut, quote};

/// Reads one resource.
pub(super) struct Decoder<'f> {
    pub(super) findings: &'f mut Findings,
    pub(super) kind: Kind,
    pub(super) table: &'static [Field],
}

/// A value with the path under which it stands.
#[derive(Debug, Clone)]
pub(super) struct At<'n> {
    pub(super) path: String,
    pub(super) node: &'n Node,
}

impl<'n> At<'n> {
    /// An entry of a map whose keys are free.
    pub(super) fn entry(&self, entry: &'n Entry) -> Self {
        At { path: format!("{}[{}]", self.path, cut(&entry.key)), node: &entry.node }
    }
}

/// The fields of a map that are in force.
#[derive(Debug)]
pub(super) struct Fields<'n> {
    path: String,
    pub(super) span: Span,
    entries: Vec<&'n Entry>,
}

impl<'n> Fields<'n> {
    /// The value of a field, if it is written.
    pub(super) fn take(&self, key: &str) -> Option<At<'n>> {
        let entry = self.entries.iter().find(|entry| &*entry.key == key)?;
        Some(At { path: join(&self.path, key), node: &entry.node })
    }

    /// How many fields in force are written.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether any field in force is written.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

impl Decoder<'_> {
    /// What an endpoint is in the kind that is read.
    pub(super) fn endpoint_noun(&self) -> &'static str {
        match self.kind {
            Kind::ServiceEntry => "endpoint",
            _ => "WorkloadEntry",
        }
    }

    /// Reports a value that is not valid.
    pub(super) fn invalid(&mut self, at: &At<'_>, message: impl AsRef<str>, help: &str) {
        let message = format!("`{}`: {}", at.path, message.as_ref());
        self.findings.error(at.node.span, Code::InvalidValue, message, help);
    }

    /// The fields of a map, each checked against the table.
    pub(super) fn fields<'n>(&mut self, at: &At<'n>) -> Option<Fields<'n>> {
        let entries = self.map(at)?;
        let known = entries.iter().filter(|entry| self.check(&join(&at.path, &entry.key), entry));
        Some(Fields { path: at.path.clone(), span: at.node.span, entries: known.collect() })
    }

    /// Whether a field is in force; reports it if not.
    fn check(&mut self, path: &str, entry: &Entry) -> bool {
        let field = find(self.table, path);
        match field.map(|field| (field.state, field.note)) {
            Some((State::Enforced, _)) => return true,
            Some((State::NoEffect, why)) => {
                if entry.node.value != Value::Null {
                    let message = format!("{} is accepted and has no effect", quote(path));
                    self.findings.warning(entry.key_span, Code::NoEffect, message, why);
                }
            }
            Some((State::Refused, why)) => {
                let message = format!("{} is refused: the mesh does not enforce it", quote(path));
                self.findings.unknown_key(entry.key_span, Code::RefusedField, message, why);
            }
            None => {
                let message = format!("{} has no field {}", self.kind, quote(path));
                let help = if self.findings.is_full() { None } else { suggestion(self.table, path) };
                let help = help.as_deref().unwrap_or("remove it: `baremesh reference` lists the fields");
                self.findings.unknown_key(entry.key_span, Code::UnknownField, message, help);
            }
        }
        false
    }

    /// A field that must be written.
    pub(super) fn required<'n>(&mut self, fields: &Fields<'n>, key: &str) -> Option<At<'n>> {
        let found = fields.take(key);
        if found.is_none() {
            let message = format!("`{}` is required", join(&fields.path, key));
            let note = find(self.table, &join(&fields.path, key)).map_or("", |field| field.note);
            self.findings.error(fields.span, Code::InvalidValue, message, note);
        }
        found
    }

    fn wrong_type<T>(&mut self, at: &At<'_>, wanted: &str) -> Option<T> {
        let help = match (&at.node.value, wanted) {
            (Value::Null, _) => "give it a value or remove the key",
            (Value::Integer(_) | Value::Bool(_) | Value::Other(_), "a text") => "put it in quotes",
            (Value::Text(_), "an integer") => "write it without quotes",
            _ => "",
        };
        self.invalid(at, format!("expected {wanted}, found {}", at.node.type_name()), help);
        None
    }

    /// A map's entries as they are.
    pub(super) fn map<'n>(&mut self, at: &At<'n>) -> Option<&'n [Entry]> {
        match &at.node.value {
            Value::Map(entries) => Some(entries),
            _ => self.wrong_type(at, "a map"),
        }
    }

    /// A list's items.
    pub(super) fn list<'n>(&mut self, at: &At<'n>) -> Option<Vec<At<'n>>> {
        let Value::List(items) = &at.node.value else { return self.wrong_type(at, "a list") };
        let item = |(index, node)| At { path: format!("{}[{index}]", at.path), node };
        Some(items.iter().enumerate().map(item).collect())
    }

    /// A text that is not empty.
    pub(super) fn text<'n>(&mut self, at: &At<'n>) -> Option<&'n str> {
        match &at.node.value {
            Value::Text(text) if text.is_empty() => {
                self.invalid(at, "must not be empty", "");
                None
            }
            Value::Text(text) => Some(text),
            _ => self.wrong_type(at, "a text"),
        }
    }

    /// A text, which may be empty.
    pub(super) fn any_text<'n>(&mut self, at: &At<'n>) -> Option<&'n str> {
        match &at.node.value {
            Value::Text(text) => Some(text),
            _ => self.wrong_type(at, "a text"),
        }
    }

    /// A number, whole or not.
    pub(super) fn number(&mut self, at: &At<'_>) -> Option<f64> {
        match &at.node.value {
            Value::Integer(number) => Some(*number as f64),
            Value::Other(text) => match text.replace('_', "").parse::<f64>() {
                Ok(number) if number.is_finite() => Some(number),
                _ => self.wrong_type(at, "a number"),
            },
            _ => self.wrong_type(at, "a number"),
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, at: &At<'_>) -> Option<bool> {
        match at.node.value {
            Value::Bool(value) => Some(value),
            _ => self.wrong_type(at, "true or false"),
        }
    }

    /// A whole number.
    pub(super) fn integer(&mut self, at: &At<'_>) -> Option<i64> {
        match at.node.value {
            Value::Integer(number) => Some(number),
            _ => self.wrong_type(at, "an integer"),
        }
    }

    /// A port number written as a number.
    pub(super) fn port(&mut self, at: &At<'_>) -> Option<NonZeroU16> {
        let number = self.integer(at)?;
        let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
        if port.is_none() {
            self.invalid(at, format!("{number} is not a port: a port must be between 1 and 65535"), "");
        }
        port
    }

    /// A port number written as a text, as map keys and policies have it.
    pub(super) fn port_text(&mut self, at: &At<'_>, text: &str) -> Option<u16> {
        let plain = !text.starts_with(['0', '+']);
        let port = text.parse().ok().filter(|port| plain && *port > 0);
        if port.is_none() {
            let message = format!("{} is not a port: a port must be between 1 and 65535", quote(text));
            self.invalid(at, message, "");
        }
        port
    }

    /// One RFC 1123 label.
    pub(super) fn label(&mut self, at: &At<'_>) -> Option<Label> {
        let text = self.text(at)?;
        self.named(at, Label::new(text))
    }

    /// A name that the model has checked.
    pub(super) fn named<T>(&mut self, at: &At<'_>, result: Result<T, NameError>) -> Option<T> {
        result.map_err(|error| self.invalid(at, error.to_string(), "")).ok()
    }

    /// An IP address.
    pub(super) fn address(&mut self, at: &At<'_>) -> Option<IpAddr> {
        let text = self.text(at)?;
        let address = text.parse::<IpAddr>().ok().map(|address| address.to_canonical());
        if address.is_none() {
            self.invalid(
                at,
                format!("{} is not an IP address", quote(text)),
                "write an IPv4 or IPv6 address",
            );
        }
        address
    }

    /// Labels that a workload has or that a selector asks for.
    pub(super) fn labels(&mut self, at: &At<'_>) -> Option<Labels> {
        let entries = self.map(at)?;
        let mut labels = BTreeMap::new();
        for entry in entries {
            let at = at.entry(entry);
            let value: &str = match &entry.node.value {
                Value::Text(text) => text,
                _ => self.wrong_type(&at, "a text")?,
            };
            if let Err(fault) = check_label(&entry.key, value) {
                self.invalid(&at, fault.to_string(), "");
                return None;
            }
            labels.insert(entry.key.clone(), value.into());
        }
        Some(labels)
    }

    /// `selector.matchLabels` of a policy. One without labels is for all workloads, like none.
    pub(super) fn selector(&mut self, fields: &Fields<'_>) -> Option<Option<Labels>> {
        let Some(at) = fields.take("selector") else { return Some(None) };
        let Some(labels) = self.fields(&at)?.take("matchLabels") else { return Some(None) };
        let labels = self.labels(&labels)?;
        Some((!labels.is_empty()).then_some(labels))
    }

    /// Reads every item of a list; nothing if one of them does not read.
    pub(super) fn each<T>(
        &mut self,
        at: &At<'_>,
        mut read: impl FnMut(&mut Self, &At<'_>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let items = self.list(at)?;
        // Every item is read before the first fault ends it, so that all faults are reported.
        let read: Vec<Option<T>> = items.iter().map(|item| read(self, item)).collect();
        read.into_iter().collect()
    }
}

/// The outcome of an optional field: not written is the default, written wrongly is nothing.
pub(super) fn optional<'n, T>(
    at: Option<At<'n>>,
    read: impl FnOnce(At<'n>) -> Option<T>,
) -> Option<Option<T>> {
    match at {
        Some(at) => read(at).map(Some),
        None => Some(None),
    }
}
