//! JSON Schemas for editors, of both written forms, from the tables that the decoder checks against. A field that is
//! refused is not in a schema, one without effect says so; what a single value looks like stands in `shapes`.

use std::collections::BTreeMap;

use baremesh_model::mesh::Kind;
use serde_json::{Map, Value as Json, json};

use super::Form;
use super::document::{VERSIONS, group_of, table_of};
use super::fields::{Field, State};
use crate::resource::KINDS;

/// What values look like.
mod shapes;

use shapes::{REQUIRED, is_map, shape_of, words_of};

/// What taplo, and every editor with the YAML language server, takes.
const DRAFT: &str = "http://json-schema.org/draft-07/schema#";

/// The schema of files of a form, for resources of `kinds`.
pub fn schema(form: Form, kinds: &[Kind]) -> Json {
    let definitions: Map<String, Json> =
        kinds.iter().map(|kind| (kind.name().to_owned(), resource(form, *kind))).collect();
    let root = match form {
        Form::Toml => toml_file(kinds),
        Form::Yaml => yaml_document(kinds),
    };
    let mut schema = Map::new();
    schema.insert("$schema".into(), DRAFT.into());
    schema.insert(
        "title".into(),
        format!("baremesh resources in {}", if form == Form::Toml { "TOML" } else { "YAML" }).into(),
    );
    schema.extend(root);
    schema.insert("definitions".into(), Json::Object(definitions));
    Json::Object(schema)
}

/// The schema of all kinds, as it is published.
pub fn whole_schema(form: Form) -> Json {
    schema(form, &KINDS)
}

fn reference(kind: Kind) -> Json {
    json!({ "$ref": format!("#/definitions/{kind}") })
}

/// A file of arrays of tables, one a kind; a single table is taken as well.
fn toml_file(kinds: &[Kind]) -> Map<String, Json> {
    let property = |kind: &Kind| {
        let one = reference(*kind);
        let several = json!({ "type": "array", "items": one });
        (kind.name().to_owned(), json!({ "anyOf": [several, one] }))
    };
    let properties: Map<String, Json> = kinds.iter().map(property).collect();
    object(Json::Object(properties), &[])
}

/// A document, which may be a list of others.
fn yaml_document(kinds: &[Kind]) -> Map<String, Json> {
    let mut names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
    names.push("List");
    let is = |kind: &str| json!({ "required": ["kind"], "properties": { "kind": { "const": kind } } });
    let mut rules: Vec<Json> =
        kinds.iter().map(|kind| json!({ "if": is(kind.name()), "then": reference(*kind) })).collect();
    let list = json!({
        "required": ["items"],
        "properties": { "apiVersion": { "const": "v1" }, "items": { "type": "array", "items": { "$ref": "#" } } },
    });
    rules.push(json!({ "if": is("List"), "then": list }));
    Map::from_iter([
        ("type".to_owned(), "object".into()),
        ("required".to_owned(), json!(["apiVersion", "kind"])),
        ("properties".to_owned(), json!({ "kind": { "enum": names }, "apiVersion": { "type": "string" } })),
        ("allOf".to_owned(), Json::Array(rules)),
    ])
}

/// One resource of a form.
fn resource(form: Form, kind: Kind) -> Json {
    let mut tree = Tree::default();
    table_of(kind).iter().for_each(|field| tree.insert(field.path, field));
    let (properties, required) = tree.properties(kind, "");
    match form {
        Form::Toml => {
            let mut all = metadata(kind);
            all.extend(properties);
            let named = (kind != Kind::MeshConfig).then_some("name");
            let required: Vec<&str> = named.into_iter().chain(required).collect();
            Json::Object(object(Json::Object(all), &required))
        }
        Form::Yaml => {
            let group = group_of(kind);
            let mut versions: Vec<String> =
                VERSIONS.iter().map(|version| format!("{group}/{version}")).collect();
            if kind == Kind::Service {
                versions.push("v1".to_owned());
            }
            let named: &[&str] = if kind == Kind::MeshConfig { &[] } else { &["name"] };
            let mut meta = metadata(kind);
            meta.extend(
                KEPT_BY_KUBERNETES.iter().map(|key| ((*key).to_owned(), json!({ "description": NOT_READ }))),
            );
            let spec = Json::Object(object(Json::Object(properties), &required));
            let all = json!({
                "apiVersion": { "enum": versions },
                "kind": { "const": kind.name() },
                "metadata": Json::Object(object(Json::Object(meta), named)),
                "spec": spec,
                "status": { "description": NOT_READ },
            });
            let mut needed = vec!["apiVersion", "kind"];
            needed.extend((kind != Kind::MeshConfig).then_some("metadata"));
            needed.extend((!required.is_empty()).then_some("spec"));
            Json::Object(object(all, &needed))
        }
    }
}

const NOT_READ: &str = "No effect: it is what a Kubernetes API server keeps for itself.";

/// What stands in the metadata of resources that were read from a cluster.
const KEPT_BY_KUBERNETES: [&str; 9] = [
    "creationTimestamp",
    "generation",
    "resourceVersion",
    "uid",
    "managedFields",
    "selfLink",
    "ownerReferences",
    "finalizers",
    "generateName",
];

/// What stands beside a resource's fields in TOML, and in the metadata in YAML.
fn metadata(kind: Kind) -> Map<String, Json> {
    let label = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$";
    let texts = |description: &str| json!({ "type": "object", "additionalProperties": { "type": "string" }, "description": description });
    let labels = match kind {
        Kind::WorkloadEntry => "labels of the workload, for selectors and subsets",
        _ => "No effect: nothing selects by them.",
    };
    let mut all = Map::new();
    all.insert(
        "name".into(),
        json!({ "type": "string", "pattern": label, "description": "unique in its namespace and kind" }),
    );
    all.insert("labels".into(), texts(labels));
    all.insert(
        "annotations".into(),
        texts("`istio.io/dry-run` of an AuthorizationPolicy; the others have no effect"),
    );
    // A mesh has one MeshConfig, which is in no namespace.
    if kind != Kind::MeshConfig {
        all.insert(
            "namespace".into(),
            json!({ "type": "string", "pattern": label, "description": "`default` without" }),
        );
    }
    all
}

/// An object of these properties and no others.
fn object(properties: Json, required: &[&str]) -> Map<String, Json> {
    let mut out = Map::new();
    out.insert("type".into(), "object".into());
    out.insert("properties".into(), properties);
    if !required.is_empty() {
        out.insert("required".into(), json!(required));
    }
    out.insert("additionalProperties".into(), false.into());
    out
}

/// A kind's fields as a tree.
#[derive(Default)]
struct Tree {
    field: Option<&'static Field>,
    below: BTreeMap<&'static str, Tree>,
    items: Option<Box<Tree>>,
}

impl Tree {
    fn insert(&mut self, path: &'static str, field: &'static Field) {
        let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
        let name = first.trim_end_matches("[]");
        let mut tree = self.below.entry(name).or_default();
        if name.len() < first.len() {
            tree = tree.items.get_or_insert_default();
        }
        match rest {
            Some(rest) => tree.insert(rest, field),
            None => tree.field = Some(field),
        }
    }

    /// The properties below `path`, and which of them are required.
    fn properties(&self, kind: Kind, path: &str) -> (Map<String, Json>, Vec<&'static str>) {
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for (name, tree) in &self.below {
            let path = if path.is_empty() { (*name).to_owned() } else { format!("{path}.{name}") };
            if tree.field.is_some_and(|field| field.state == State::Refused) {
                continue;
            }
            properties.insert((*name).to_owned(), tree.value(kind, &path));
            if REQUIRED.iter().any(|(of, at)| *of == kind && *at == path) {
                required.push(*name);
            }
        }
        (properties, required)
    }

    fn value(&self, kind: Kind, path: &str) -> Json {
        let mut out = match self.field.map(|field| field.state) {
            Some(State::NoEffect) => Map::new(),
            _ => self.form_of_value(kind, path),
        };
        if let Some(field) = self.field {
            let note = match field.state {
                State::NoEffect => format!("No effect: {}.", field.note),
                State::Enforced | State::Refused => field.note.to_owned(),
            };
            out.insert("description".into(), note.into());
        }
        Json::Object(out)
    }

    fn form_of_value(&self, kind: Kind, path: &str) -> Map<String, Json> {
        let with = |key: &str, value: Json, of: &str| {
            Map::from_iter([("type".to_owned(), of.into()), (key.to_owned(), value)])
        };
        if let Some(items) = &self.items {
            let (properties, required) = items.properties(kind, &format!("{path}[]"));
            let item = Json::Object(object(Json::Object(properties), &required));
            let item = match words_of(kind, path) {
                Some(words) => json!({ "anyOf": [{ "enum": words }, item] }),
                None => item,
            };
            return match is_map(path) {
                true => with("additionalProperties", item, "object"),
                false => with("items", item, "array"),
            };
        }
        if self.below.is_empty() {
            let shape = shape_of(kind, path).map(|shape| shape.schema());
            return shape.as_ref().and_then(Json::as_object).cloned().unwrap_or_default();
        }
        let (properties, required) = self.properties(kind, path);
        object(Json::Object(properties), &required)
    }
}

#[cfg(test)]
mod tests;
