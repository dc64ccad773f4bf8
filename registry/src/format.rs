//! The written forms. TOML and YAML are brought to one raw tree with the place of every key and value; one decoder a
//! kind reads that tree, whatever form it came from; the JSON form goes over the control protocol's wire.

use std::sync::Arc;

use crate::diagnostic::Diagnostic;
use crate::resource::{Located, Resource};

/// Raw values to checked ones.
mod decode;
/// What makes up one resource, and which kinds there are.
mod document;
/// Other trust domains.
mod federation;
/// Networks and their gateways.
mod networks;
/// The table of fields.
pub mod fields;
/// The findings of one source.
mod findings;
/// Kinds that are not taken.
mod kinds;
/// The syntax of labels.
mod labels;
/// The raw tree.
pub(crate) mod tree;

/// A text with the places in it.
pub mod source;

/// The TOML form.
pub mod toml;
/// Istio's YAML.
pub mod yaml;

/// The JSON form of the wire, and resources from newer versions.
pub mod json;
/// Resources written as TOML and YAML.
pub mod write;

/// The reference of all kinds and fields.
pub mod reference;
/// JSON Schemas for editors.
pub mod schema;
/// Places within resources.
pub(crate) mod place;

/// Lengths of time.
pub mod duration;

mod authorization_policy;
mod authorization_rule;
mod destination_rule;
mod durations;
mod extension_provider;
mod gateway;
mod host_grant;
mod mesh_config;
mod outbound_policy;
mod peer_authentication;
mod rate_limit;
mod request_authentication;
mod service;
mod service_entry;
mod sidecar;
mod virtual_service;
mod workload_entry;
mod workload_group;

pub use findings::MAX_FINDINGS;
pub use json::{decode, decode_from_newer, encode};
pub use reference::reference;
pub use tree::{MAX_DEPTH, MAX_VALUES};
pub use write::{to_toml, to_yaml};

use document::Document;
use findings::Findings;

/// The fields of a kind.
pub fn fields_of(kind: baremesh_model::mesh::Kind) -> &'static [fields::Field] {
    document::table_of(kind)
}

/// Whether something may be a label of a workload.
pub fn is_label(key: &str, value: &str) -> bool {
    labels::check_label(key, value).is_ok()
}

/// What a text held.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parsed {
    /// The resources that read without an error.
    pub resources: Vec<Located<Resource>>,
    /// Errors and warnings; with an error among them the text is not to be used.
    pub findings: Vec<Diagnostic>,
}

impl Parsed {
    /// Whether the text is not to be used.
    pub fn failed(&self) -> bool {
        self.findings.iter().any(Diagnostic::is_error)
    }
}

/// The form of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// TOML.
    Toml,
    /// YAML, which JSON is as well.
    Yaml,
}

impl Form {
    /// The form that a file's name says.
    pub fn of_file(name: &str) -> Option<Self> {
        match name.rsplit_once('.')?.1 {
            "toml" => Some(Self::Toml),
            "yaml" | "yml" => Some(Self::Yaml),
            _ => None,
        }
    }

    /// The form of a text whose name says nothing, such as standard input: the first line that says something in
    /// TOML is a table's header or a key with `=`.
    pub fn of_text(text: &str) -> Self {
        let mut lines = text.lines().map(str::trim);
        let first = lines.find(|line| !line.is_empty() && !line.starts_with('#')).unwrap_or_default();
        let key = first.split(['=', ':', ' ', '"']).next().unwrap_or_default();
        let assigns = first[key.len()..].trim_start().starts_with('=');
        if first.starts_with('[') || assigns { Self::Toml } else { Self::Yaml }
    }

    /// Reads a text of this form.
    pub fn parse(self, text: &str, file: &str) -> Parsed {
        match self {
            Self::Toml => toml::parse(text, file),
            Self::Yaml => yaml::parse(text, file),
        }
    }

    /// Writes a resource in this form.
    pub fn write(self, resource: &Resource) -> String {
        match self {
            Self::Toml => to_toml(resource),
            Self::Yaml => to_yaml(resource),
        }
    }

    /// The ending of files that are written in this form.
    pub fn ending(self) -> &'static str {
        match self {
            Self::Toml => "toml",
            Self::Yaml => "yaml",
        }
    }
}

/// Decodes what a text's form was read to.
fn finish(documents: Vec<Document>, mut findings: Findings) -> Parsed {
    let mut resources = Vec::new();
    for document in documents {
        let origin = source::Origin { source: Arc::clone(&findings.source), span: document.span };
        if let Some(value) = document::decode(&document, &mut findings) {
            resources.push(Located { value, origin });
        }
    }
    Parsed { resources, findings: findings.into_list() }
}

#[cfg(test)]
mod tests;
