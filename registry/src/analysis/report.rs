//! Findings with their places.

use std::collections::BTreeMap;

use baremesh_model::mesh::{Kind, ResourceId};
use baremesh_model::name::Key;

use crate::diagnostic::{Code, Diagnostic};
use crate::format::place::{Step, Texts};
use crate::format::source::{Origin, Span};
use crate::set::MAX_SET_FINDINGS;

/// A field of a resource.
#[derive(Debug, Clone)]
pub(super) struct Place {
    id: ResourceId,
    steps: Vec<Step>,
}

impl Place {
    /// The resource itself.
    pub(super) fn of(kind: Kind, key: &Key) -> Self {
        Self { id: ResourceId { kind, key: key.clone() }, steps: Vec::new() }
    }

    /// A field of it, or of the value that the place is.
    pub(super) fn field(&self, name: &'static str) -> Self {
        self.step(Step::Field(name))
    }

    /// An item of the list that the place is.
    pub(super) fn item(&self, index: usize) -> Self {
        self.step(Step::Item(index))
    }

    pub(super) fn step(&self, step: Step) -> Self {
        let mut place = self.clone();
        place.steps.push(step);
        place
    }

    /// The resource's name.
    pub(super) fn name(&self) -> Self {
        Self { id: self.id.clone(), steps: vec![Step::Name] }
    }
}

/// What was found.
pub(super) struct Report<'s> {
    origins: &'s BTreeMap<ResourceId, Origin>,
    texts: Texts,
    findings: Vec<Diagnostic>,
}

impl<'s> Report<'s> {
    pub(super) fn new(origins: &'s BTreeMap<ResourceId, Origin>) -> Self {
        Self { origins, texts: Texts::default(), findings: Vec::new() }
    }

    /// Something does not work.
    pub(super) fn error(&mut self, place: &Place, code: Code, message: String, help: &str) {
        let finding = self.finding(place, code, message);
        self.push(finding, help);
    }

    /// Something has no effect, or not the one that it seems to have.
    pub(super) fn warning(&mut self, place: &Place, code: Code, message: String, help: &str) {
        let finding = self.finding(place, code, message).into_warning();
        self.push(finding, help);
    }

    /// `file:line` of a resource, or its name where it has no place.
    pub(super) fn place_of(&self, kind: Kind, key: &Key) -> String {
        let id = ResourceId { kind, key: key.clone() };
        match self.origins.get(&id) {
            Some(origin) if origin.line() > 0 => {
                format!("{}/{} ({})", key.namespace, key.name, origin.place())
            }
            _ => format!("{}/{}", key.namespace, key.name),
        }
    }

    /// All keys of a resource as it is written, by their paths as tables of fields have them; none without a text.
    pub(super) fn keys_of(&mut self, kind: Kind, key: &Key) -> Vec<(String, Span)> {
        let id = ResourceId { kind, key: key.clone() };
        let Some(origin) = self.origins.get(&id) else { return Vec::new() };
        self.texts.keys(origin)
    }

    /// A warning at a place that was found in the text itself.
    pub(super) fn warning_at(
        &mut self,
        (kind, key): (Kind, &Key),
        span: Span,
        (code, message, help): (Code, String, &str),
    ) {
        let id = ResourceId { kind, key: key.clone() };
        let Some(origin) = self.origins.get(&id) else { return };
        let finding = Diagnostic::at(&origin.source, span, code, message).with_resource(Some(id));
        self.push(finding.into_warning(), help);
    }

    fn finding(&mut self, place: &Place, code: Code, message: String) -> Diagnostic {
        let finding = match self.origins.get(&place.id) {
            Some(origin) => {
                let span = self.texts.span(origin, &place.steps);
                Diagnostic::at(&origin.source, span, code, message)
            }
            None => Diagnostic::about_file("", code, message),
        };
        finding.with_resource(Some(place.id.clone()))
    }

    fn push(&mut self, finding: Diagnostic, help: &str) {
        // Twice the bound, so that errors that come late are among those that are kept.
        if self.findings.len() < 2 * MAX_SET_FINDINGS {
            self.findings.push(if help.is_empty() { finding } else { finding.with_help(help) });
        }
    }

    pub(super) fn into_findings(self) -> Vec<Diagnostic> {
        self.findings
    }
}
