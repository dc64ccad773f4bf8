//! The schemas against an independent validator, and against the reader.

use std::path::{Path, PathBuf};

use jsonschema::Validator;

use super::super::tree::{Node, Value};
use super::super::yaml;
use super::*;

const FORMS: [(Form, &str); 2] =
    [(Form::Toml, "baremesh.toml.schema.json"), (Form::Yaml, "baremesh.yaml.schema.json")];

fn validator(form: Form) -> Validator {
    jsonschema::validator_for(&whole_schema(form)).expect("a schema")
}

/// `UPDATE_GOLDEN=1` writes them anew.
#[test]
fn the_schemas_in_docs_are_those_of_the_program() {
    for (form, name) in FORMS {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schema").join(name);
        let text = format!("{:#}\n", whole_schema(form));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &text).expect("the schema can be written");
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == text, "docs/schema/{name} is stale: run with UPDATE_GOLDEN=1");
    }
}

/// The documents of a text as a program without places sees them.
fn documents(form: Form, text: &str) -> Vec<Json> {
    fn plain(node: &Node) -> Json {
        match &node.value {
            Value::Null => Json::Null,
            Value::Bool(value) => (*value).into(),
            Value::Integer(number) => (*number).into(),
            Value::Other(text) => text.parse::<f64>().map_or_else(|_| (&**text).into(), Into::into),
            Value::Text(text) => (&**text).into(),
            Value::List(items) => items.iter().map(plain).collect(),
            Value::Map(entries) => Json::Object(
                entries.iter().map(|entry| (entry.key.to_string(), plain(&entry.node))).collect(),
            ),
        }
    }
    match form {
        Form::Toml => vec![::toml::from_str(text).expect("TOML")],
        Form::Yaml => yaml::roots(text).iter().map(plain).collect(),
    }
}

fn faults(validator: &Validator, form: Form, text: &str) -> Vec<String> {
    let documents = documents(form, text);
    let of_one =
        |document| validator.iter_errors(document).map(|fault| fault.to_string()).collect::<Vec<_>>();
    documents.iter().flat_map(of_one).collect()
}

fn examples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let paths = std::fs::read_dir(folder).expect("examples").map(|entry| entry.expect("an entry").path());
    // The agent's own, and what is for Prometheus.
    let others = ["agent.toml", "alerts.yaml", "prometheus.yaml"];
    let is_resources = |path: &PathBuf| {
        path.is_file()
            && !others.iter().any(|other| path.ends_with(other))
            && Form::of_file(&path.display().to_string()).is_some()
    };
    paths.filter(is_resources).collect()
}

/// What the reader takes without a word a schema takes, as it stands and as it is written in either form.
#[test]
fn examples_are_valid_in_both_forms() {
    let validators = FORMS.map(|(form, _)| (form, validator(form)));
    let mut resources = 0;
    for path in examples() {
        let name = path.display().to_string();
        let form = Form::of_file(&name).expect("a known ending");
        let text = std::fs::read_to_string(&path).expect("an example");
        let parsed = form.parse(&text, &name);
        assert!(parsed.findings.is_empty(), "{name}: {:?}", parsed.findings);
        for (of, validator) in &validators {
            if *of == form {
                assert_eq!(faults(validator, form, &text), Vec::<String>::new(), "{name}");
            }
            for located in &parsed.resources {
                let written = of.write(&located.value);
                assert_eq!(faults(validator, *of, &written), Vec::<String>::new(), "{name}:\n{written}");
            }
        }
        resources += parsed.resources.len();
    }
    assert!(resources > 15, "only {resources} resources in the examples");
}

/// What is written wrongly is refused by the schema, and by the reader.
#[test]
fn what_is_wrong_is_refused_by_both() {
    let check = |form: Form, text: &str| {
        let found = faults(&validator(form), form, text);
        assert!(!found.is_empty(), "the schema takes:\n{text}");
        assert!(form.parse(text, "a").failed(), "the reader takes:\n{text}");
    };
    for text in [
        "[[Servise]]\nname = \"a\"\n",
        "[[Service]]\nports = [{ port = 80 }]\n",
        "[[Service]]\nname = \"a\"\n",
        "[[Service]]\nname = \"A_\"\nports = [{ port = 80 }]\n",
        "[[Service]]\nname = \"a\"\nports = [{ port = 0 }]\n",
        "[[Service]]\nname = \"a\"\nports = [{ port = \"80\" }]\n",
        "[[Service]]\nname = \"a\"\nprts = []\n",
        "[[WorkloadEntry]]\nname = \"a\"\n",
        "[[PeerAuthentication]]\nname = \"a\"\nmtls = { mode = \"strict\" }\n",
        "[[DestinationRule]]\nname = \"a\"\nhost = \"a\"\ntrafficPolicy = { connectionPool = { tcp = { connectTimeout = \"2 s\" } } }\n",
        "[[DestinationRule]]\nname = \"a\"\nhost = \"a\"\ntrafficPolicy = { outlierDetection = { maxEjectionPercent = 101 } }\n",
        "[[VirtualService]]\nname = \"a\"\nhosts = \"a\"\nhttp = [{ redirect = { uri = \"/\" } }]\n",
        "[[VirtualService]]\nname = \"a\"\nhosts = [\"a\"]\nhttp = [{ match = [{ uri = { exakt = \"/\" } }], redirect = { uri = \"/\" } }]\n",
        "[[AuthorizationPolicy]]\nname = \"a\"\naction = \"PERMIT\"\n",
        // Refused by name: not in the schema.
        "[[AuthorizationPolicy]]\nname = \"a\"\ntargetRef = { kind = \"Service\", name = \"a\" }\n",
        "[[MeshConfig]]\nnamespace = \"a\"\n",
    ] {
        check(Form::Toml, text);
    }
    let of = |api: &str, kind: &str, spec: &str| {
        format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: a}}\nspec: {spec}\n")
    };
    for text in [
        of("networking.istio.io/v1", "Gatewey", "{}"),
        of("networking.istio.io/v2", "VirtualService", "{hosts: [a], http: [{redirect: {uri: /}}]}"),
        of("security.istio.io/v1", "VirtualService", "{hosts: [a], http: [{redirect: {uri: /}}]}"),
        of("networking.istio.io/v1", "DestinationRule", "{}"),
        of("networking.istio.io/v1", "DestinationRule", "{host: a, subsets: [{labels: {a: b}}]}"),
        of("security.istio.io/v1", "PeerAuthentication", "{portLevelMtls: {80: {mode: YES}}, selector: {matchLabels: {a: b}}}"),
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: a}\n  spec: {}\n".to_owned(),
        "apiVersion: v1\nkind: Service\nmetadata: {nam: a}\nspec: {ports: [{port: 80}]}\n".to_owned(),
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\nspecs: {}\n".to_owned(),
    ] {
        check(Form::Yaml, &text);
    }
}

/// What comes from a cluster is taken by both.
#[test]
fn manifests_of_a_cluster_are_valid() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata:\n    name: a\n    uid: x\n    \
        labels: {app: a}\n  spec:\n    type: ClusterIP\n    ports: [{port: 80, name: http, protocol: TCP, targetPort: 8080, nodePort: 30000}]\n  \
        status: {loadBalancer: {}}\n";
    assert_eq!(faults(&validator(Form::Yaml), Form::Yaml, text), Vec::<String>::new());
    assert!(!Form::Yaml.parse(text, "a").failed());
}

/// Every single value in force has a shape, so that an editor is never silent about one.
#[test]
fn every_field_in_force_has_a_shape() {
    let mut without = Vec::new();
    for kind in KINDS {
        for path in leaves(kind) {
            if shape_of(kind, path).is_none() {
                without.push(format!("{kind} {path}"));
            }
        }
    }
    assert!(without.is_empty(), "write in shapes.rs what these look like: {without:#?}");
}

/// The fields in force without fields below them.
fn leaves(kind: Kind) -> Vec<&'static str> {
    let table = table_of(kind);
    let below = |path: &str| {
        let (inner, items) = (format!("{path}."), format!("{path}[]"));
        table.iter().any(|field| field.path.starts_with(&inner) || field.path.starts_with(&items))
    };
    let leaf = |field: &&Field| field.state == State::Enforced && !below(field.path);
    table.iter().filter(leaf).map(|field| field.path).collect()
}

/// A value of another shape than a field has is refused by the reader with the field's name: the shapes are the reader's.
#[test]
fn the_reader_refuses_what_has_another_shape() {
    let mut taken = Vec::new();
    for kind in KINDS {
        for path in leaves(kind) {
            let Some(shape) = shape_of(kind, path) else { continue };
            let wrong = match shape {
                shapes::Shape::Text
                | shapes::Shape::Like(_)
                | shapes::Shape::Duration
                | shapes::Shape::Boolean => json!([7]),
                shapes::Shape::Integer(..) | shapes::Shape::Number(_) | shapes::Shape::PortOrName => {
                    json!([7])
                }
                shapes::Shape::Choice(_) => json!("no such word"),
                shapes::Shape::Texts
                | shapes::Shape::TextLists
                | shapes::Shape::Labels
                | shapes::Shape::Integers(..) => json!(7),
            };
            if !is_refused(kind, path, wrong) {
                taken.push(format!("{kind} {path}"));
            }
        }
    }
    assert!(taken.is_empty(), "the reader takes another shape: {taken:#?}");
}

/// Whether the reader says of a resource with one value that it is at fault, by its path.
fn is_refused(kind: Kind, path: &str, value: Json) -> bool {
    let mut spec = value;
    let mut said = String::new();
    for part in path.split('.').collect::<Vec<_>>().into_iter().rev() {
        let name = part.trim_end_matches("[]");
        spec = match (name.len() < part.len(), is_map(name)) {
            (true, true) => json!({ name: { "80": spec } }),
            (true, false) => json!({ name: [spec] }),
            (false, _) => json!({ name: spec }),
        };
    }
    for part in path.split('.') {
        let name = part.trim_end_matches("[]");
        let index = match (name.len() < part.len(), is_map(name)) {
            (true, true) => "[80]",
            (true, false) => "[0]",
            (false, _) => "",
        };
        said.push_str(&format!("{}{name}{index}", if said.is_empty() { "" } else { "." }));
    }
    // What is read before these, and without which they are not read.
    if kind == Kind::VirtualService && path.contains("delegate") {
        spec["hosts"] = json!(["a"]);
    }
    if path == "rules[].when[].key" {
        spec["rules"][0]["when"][0]["values"] = json!(["a"]);
    } else if path.starts_with("rules[].when[].") {
        spec["rules"][0]["when"][0]["key"] = "source.namespace".into();
    }
    let document = json!({
        "apiVersion": format!("{}/v1", group_of(kind)),
        "kind": kind.name(),
        "metadata": { "name": "a" },
        "spec": spec,
    });
    let parsed = yaml::parse(&document.to_string(), "a");
    parsed.findings.iter().any(|finding| finding.is_error() && finding.message.contains(&said))
}
