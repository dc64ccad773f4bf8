//! Places within resources. What is found after reading is about one field of a resource, and the text of the resource's
//! source still says where that stands: it is read again, once for each source in which something was found.

use std::collections::HashMap;
use std::sync::Arc;

use super::document::Document;
use super::findings::{Findings, Unknown};
use super::source::{Origin, Source, Span};
use super::tree::{Node, Value};
use super::{Form, toml, yaml};

/// One step from a resource towards a value of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The resource's name, which stands beside its fields. The first step, or none.
    Name,
    /// A field.
    Field(&'static str),
    /// An item of a list.
    Item(usize),
    /// The item of `portLevelSettings` for this port.
    OfPort(u16),
    /// A route's mirror, `mirror` and `mirrors` counted together.
    Mirror(usize),
}

/// The resources of sources as they were written, by source.
#[derive(Debug, Default)]
pub(crate) struct Texts(HashMap<*const Source, Vec<Document>>);

impl Texts {
    /// All keys of a resource's fields by their paths, in which lists are `[]`.
    pub(crate) fn keys(&mut self, origin: &Origin) -> Vec<(String, Span)> {
        let mut keys = Vec::new();
        if let Some(spec) = self.document(origin).and_then(|document| document.spec.as_ref()) {
            collect_keys(spec, "", &mut keys);
        }
        keys
    }

    /// The resource that stands at `origin`; none where the source has no text.
    fn document(&mut self, origin: &Origin) -> Option<&Document> {
        let documents = self.0.entry(Arc::as_ptr(&origin.source)).or_insert_with(|| read(&origin.source));
        documents.iter().find(|document| document.span == origin.span)
    }

    /// Where the value stands that the steps lead to; where one leads nowhere, the last that does not.
    pub(crate) fn span(&mut self, origin: &Origin, steps: &[Step]) -> Span {
        self.document(origin).and_then(|document| span(document, steps)).unwrap_or(origin.span)
    }
}

fn read(source: &Arc<Source>) -> Vec<Document> {
    let text = source.text();
    let form = Form::of_file(source.file()).unwrap_or_else(|| Form::of_text(text));
    // What is wrong with it was said when it was read first.
    let mut findings = Findings::new(Arc::clone(source), Unknown::Ignored);
    match form {
        Form::Toml => toml::documents(text, &mut findings),
        Form::Yaml => yaml::documents(text, &mut findings),
    }
}

/// The nesting is bounded by what the forms take.
fn collect_keys(node: &Node, path: &str, keys: &mut Vec<(String, Span)>) {
    match &node.value {
        Value::Map(entries) => {
            for entry in entries {
                let path =
                    if path.is_empty() { entry.key.to_string() } else { format!("{path}.{}", entry.key) };
                collect_keys(&entry.node, &path, keys);
                keys.push((path, entry.key_span));
            }
        }
        Value::List(items) => items.iter().for_each(|item| collect_keys(item, &format!("{path}[]"), keys)),
        _ => {}
    }
}

fn span(document: &Document, steps: &[Step]) -> Option<Span> {
    if let [Step::Name, ..] = steps {
        return Some(document.metadata.entry("name")?.node.span);
    }
    let mut node = document.spec.as_ref()?;
    let mut place = None;
    for step in steps {
        let Some((next, span)) = follow(node, *step) else { break };
        (node, place) = (next, Some(span));
    }
    place
}

/// The value that a step leads to, and the place to show of it: a single value itself, of all else the key.
fn follow(node: &Node, step: Step) -> Option<(&Node, Span)> {
    let field = |node: &'_ Node, key: &str| -> Option<(usize, Span)> {
        let Value::Map(entries) = &node.value else { return None };
        let index = entries.iter().position(|entry| &*entry.key == key)?;
        let entry = &entries[index];
        let single = !matches!(entry.node.value, Value::Map(_) | Value::List(_));
        Some((index, if single { entry.node.span } else { entry.key_span }))
    };
    match step {
        Step::Name => None,
        Step::Field(key) => {
            let (index, span) = field(node, key)?;
            let Value::Map(entries) = &node.value else { return None };
            Some((&entries[index].node, span))
        }
        Step::Item(index) => {
            let Value::List(items) = &node.value else { return None };
            items.get(index).map(|item| (item, first_line(item)))
        }
        Step::OfPort(port) => {
            let Value::List(items) = &node.value else { return None };
            let number = |item: &Node| match item.entry("port")?.node.entry("number")?.node.value {
                Value::Integer(number) => Some(number),
                _ => None,
            };
            items
                .iter()
                .find(|item| number(item) == Some(i64::from(port)))
                .map(|item| (item, first_line(item)))
        }
        Step::Mirror(index) => {
            let one = node.entry("mirror").filter(|entry| entry.node.value != Value::Null);
            match (one, index) {
                (Some(entry), 0) => Some((&entry.node, entry.key_span)),
                (one, index) => {
                    let entry = node.entry("mirrors")?;
                    let Value::List(items) = &entry.node.value else { return None };
                    let destination = items.get(index - usize::from(one.is_some()))?.entry("destination")?;
                    Some((&destination.node, destination.key_span))
                }
            }
        }
    }
}

/// An item of several lines is shown by its first key.
fn first_line(item: &Node) -> Span {
    match &item.value {
        Value::Map(entries) => entries.first().map_or(item.span, |entry| entry.key_span),
        _ => item.span,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOML: &str = "\
[[VirtualService]]
name = \"a\"
http = [{ route = [{ destination = { host = \"x\" } }], mirror = { host = \"m\" }, mirrors = [{ destination = { host = \"n\" } }] }]
[[DestinationRule]]
name = \"b\"
host = \"x\"
[[DestinationRule.trafficPolicy.portLevelSettings]]
port = { number = 81 }
[[DestinationRule.trafficPolicy.portLevelSettings]]
port = { number = 80 }
tls = { mode = \"SIMPLE\" }
";

    const YAML: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: a
spec:
  http:
  - route:
    - destination:
        host: x
";

    fn check(text: &str, resource: usize, steps: &[Step], expected: &str) {
        let form = Form::of_text(text);
        let parsed = form.parse(text, "a");
        let origin = &parsed.resources[resource].origin;
        let span = Texts::default().span(origin, steps);
        let line = origin.source.line_of(span.start);
        assert_eq!(format!("{line}: {}", &text[span.start..span.end]), expected, "{steps:?}");
    }

    #[test]
    fn finds_values_and_what_is_nearest_to_those_that_are_not_there() {
        use Step::{Field, Item, Mirror, Name, OfPort};
        let host = [Field("http"), Item(0), Field("route"), Item(0), Field("destination"), Field("host")];
        check(TOML, 0, &host, "3: \"x\"");
        check(YAML, 0, &host, "9: x");
        check(YAML, 0, &[Name], "4: a");
        check(TOML, 0, &[Name], "2: \"a\"");
        check(TOML, 0, &[Field("http"), Item(0), Mirror(0), Field("host")], "3: \"m\"");
        check(TOML, 0, &[Field("http"), Item(0), Mirror(1), Field("host")], "3: \"n\"");
        let tls = [Field("trafficPolicy"), Field("portLevelSettings"), OfPort(80), Field("tls")];
        check(TOML, 1, &[&tls[..], &[Field("caCertificates")]].concat(), "11: tls");
        check(
            TOML,
            1,
            &[Field("trafficPolicy"), Field("portLevelSettings"), OfPort(82)],
            "7: portLevelSettings",
        );
    }
}
