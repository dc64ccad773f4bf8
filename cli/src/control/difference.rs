//! What a change did, for the audit: resource by resource, field by field. Values that could be secrets are left out, and
//! no change takes more room than its limit.

use std::collections::{BTreeMap, BTreeSet};

use baremesh_model::mesh::ResourceId;
use baremesh_registry::files::{Change, Effect};
use baremesh_registry::format::{self, Form};
use baremesh_registry::resource::Resource;
use serde_json::Value;

/// Lines that the difference of one change has at most.
const MAX_LINES: usize = 200;
/// Characters of one value that are shown.
const MAX_VALUE: usize = 120;
/// What stands for a value that is left out.
const LEFT_OUT: &str = "(left out)";
/// Parts of a field's name that say that its value may be a secret.
const SECRETS: [&str; 10] = [
    "password",
    "secret",
    "token",
    "authorization",
    "cookie",
    "api-key",
    "apikey",
    "private",
    "jwks",
    "passphrase",
];

/// The difference that changes make.
pub(super) fn of(changes: &[Change]) -> String {
    let mut lines = Vec::new();
    for change in changes.iter().filter(|change| change.effect != Effect::Unchanged) {
        lines.push(format!("{} {}", change.id, word(change.effect)));
        compare(&written(change, &change.before), &written(change, &change.after), &mut lines);
    }
    bounded(lines)
}

/// The difference between two sets: the resources that are not the same with what befell them, and all of it in words.
pub(super) fn between(before: &[Resource], after: &[Resource]) -> (Vec<(ResourceId, Effect)>, String) {
    let by_id = |set: &'_ [Resource]| -> BTreeMap<ResourceId, Value> {
        set.iter().map(|resource| (resource.id(), format::encode(resource))).collect()
    };
    let (before, after) = (by_id(before), by_id(after));
    let ids: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let (mut effects, mut lines) = (Vec::new(), Vec::new());
    for id in ids {
        let effect = match (before.get(id), after.get(id)) {
            (Some(old), Some(new)) if old == new => continue,
            (Some(_), Some(_)) => Effect::Changed,
            (Some(_), None) => Effect::Deleted,
            (None, _) => Effect::Created,
        };
        lines.push(format!("{id} {}", word(effect)));
        compare(&fields(before.get(id)), &fields(after.get(id)), &mut lines);
        effects.push((id.clone(), effect));
    }
    (effects, bounded(lines))
}

fn compare(before: &Fields, after: &Fields, lines: &mut Vec<String>) {
    let paths: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    for path in paths {
        match (before.get(path), after.get(path)) {
            (Some(old), Some(new)) if old.same == new.same => {}
            (Some(old), Some(new)) => lines.push(format!("  {path}: {} -> {}", old.shown, new.shown)),
            (Some(old), None) => lines.push(format!("  - {path}: {}", old.shown)),
            (None, Some(new)) => lines.push(format!("  + {path}: {}", new.shown)),
            (None, None) => {}
        }
    }
}

fn bounded(mut lines: Vec<String>) -> String {
    if lines.len() > MAX_LINES {
        let more = lines.len() - MAX_LINES;
        lines.truncate(MAX_LINES);
        lines.push(format!("(and {more} lines more)"));
    }
    lines.join("\n")
}

/// What befell a resource, in a word.
pub(super) fn word(effect: Effect) -> &'static str {
    match effect {
        Effect::Created => "created",
        Effect::Changed => "changed",
        Effect::Unchanged => "unchanged",
        Effect::Deleted => "deleted",
    }
}

struct Field {
    /// By which values are compared, those that are not shown too.
    same: String,
    shown: String,
}

type Fields = BTreeMap<String, Field>;

/// The fields of the resource in a file's text.
fn written(change: &Change, text: &Option<String>) -> Fields {
    let name = change.file.display().to_string();
    let (Some(text), Some(form)) = (text, Form::of_file(&name)) else { return Fields::new() };
    let parsed = form.parse(text, &name);
    let found = parsed.resources.iter().find(|located| {
        let id = located.value.id();
        // The namespace may be written by another name of the root's.
        id.kind == change.id.kind && id.key.name == change.id.key.name
    });
    fields(found.map(|located| format::encode(&located.value)).as_ref())
}

fn fields(document: Option<&Value>) -> Fields {
    let mut fields = Fields::new();
    if let Some(document) = document {
        collect(&document["spec"], "", Secrecy::Open, &mut fields);
    }
    fields
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Secrecy {
    Open,
    Secret,
}

fn collect(value: &Value, path: &str, secrecy: Secrecy, fields: &mut Fields) {
    match value {
        Value::Object(object) => {
            // A condition on a header: what it is compared with may be what only its callers know.
            let on_header =
                object.get("key").and_then(Value::as_str).is_some_and(|key| key.contains("header"));
            for (key, value) in object {
                let hidden = on_header && key != "key" || is_secret(key);
                let secrecy = if hidden { Secrecy::Secret } else { secrecy };
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                collect(value, &path, secrecy, fields);
            }
        }
        Value::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                collect(value, &format!("{path}[{index}]"), secrecy, fields);
            }
        }
        leaf => {
            let same = leaf.to_string();
            let shown = match secrecy {
                Secrecy::Secret => LEFT_OUT.to_owned(),
                Secrecy::Open if same.contains("PRIVATE KEY") => LEFT_OUT.to_owned(),
                Secrecy::Open => shortened(&same),
            };
            fields.insert(path.to_owned(), Field { same, shown });
        }
    }
}

/// Whether what stands below a field of that name may be a secret: headers are set to credentials, and compared with them.
fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    matches!(&*key, "headers" | "withoutheaders") || SECRETS.iter().any(|part| key.contains(part))
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_VALUE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use baremesh_registry::files::ResourceDirectory;

    use super::*;

    #[test]
    fn says_what_changed_and_leaves_secrets_out() {
        let place = tempfile::tempdir().expect("a directory");
        let directory = ResourceDirectory::new(place.path());
        let applied = |text: &str| of(&directory.apply(text, "x.toml").expect("applied").changes);
        let service = "[[Service]]\nname = \"orders\"\nports = [{ port = 80 }]\n";
        let created = applied(service);
        assert!(created.starts_with("Service default/orders created\n"), "{created}");
        assert!(
            created.contains("  + ports[0].number: 80") || created.contains("  + ports[0].port: 80"),
            "{created}"
        );
        let changed = applied(&service.replace("80", "81"));
        assert!(changed.contains(": 80 -> 81"), "{changed}");
        assert_eq!(applied(&service.replace("80", "81")), "");

        let route = "[[VirtualService]]\nname = \"orders\"\nhosts = [\"orders\"]\n\
            http = [{ match = [{ headers = { x-key = { exact = \"s3cret-1\" } } }], \
            headers = { request = { set = { authorization = \"Bearer s3cret-2\" } } }, \
            route = [{ destination = { host = \"orders\" } }] }]\n";
        let created = applied(route);
        assert!(created.contains(LEFT_OUT) && !created.contains("s3cret"), "{created}");
        // That it changed is said all the same.
        let changed = applied(&route.replace("s3cret-2", "s3cret-3"));
        assert!(changed.contains("(left out) -> (left out)") && !changed.contains("s3cret"), "{changed}");
    }

    #[test]
    fn a_large_change_takes_no_more_room_than_its_limit() {
        let place = tempfile::tempdir().expect("a directory");
        let directory = ResourceDirectory::new(place.path());
        let principals: Vec<_> = (0..1000).map(|n| format!("\"{n}{}\"", "x".repeat(500))).collect();
        let text = format!(
            "[[AuthorizationPolicy]]\nname = \"p\"\nrules = [{{ from = [{{ source = {{ principals = [{}] }} }}] }}]\n",
            principals.join(", ")
        );
        let said = of(&directory.apply(&text, "x.toml").expect("applied").changes);
        assert!(said.ends_with("lines more)") && said.len() < MAX_LINES * (MAX_VALUE + 100), "{said}");
    }
}
