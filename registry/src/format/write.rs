//! Resources written for people, as TOML and as YAML.

use std::fmt::Write;

use serde_json::{Map, Value as Json};

use super::encode;
use crate::resource::Resource;

/// A resource as an entry of its kind's array of tables.
pub fn to_toml(resource: &Resource) -> String {
    let document = encode(resource);
    let mut out = format!("[[{}]]\n", resource.kind());
    let empty = Map::new();
    let part = |key: &str| document[key].as_object().unwrap_or(&empty);
    for (key, value) in part("metadata").iter().filter(|(key, _)| *key != "annotations") {
        toml_field(&mut out, key, value);
    }
    if document["metadata"].get("annotations").is_some() {
        toml_field(&mut out, "dryRun", &Json::Bool(true));
    }
    for (key, value) in part("spec") {
        toml_field(&mut out, key, value);
    }
    out
}

/// One `key = value`; a list of tables has each on a line of its own.
fn toml_field(out: &mut String, key: &str, value: &Json) {
    out.push_str(&toml_key(key));
    out.push_str(" = ");
    match value {
        Json::Array(items) if items.iter().any(Json::is_object) => {
            out.push_str("[\n");
            for item in items {
                out.push_str("  ");
                toml_value(out, item);
                out.push_str(",\n");
            }
            out.push(']');
        }
        value => toml_value(out, value),
    }
    out.push('\n');
}

fn toml_value(out: &mut String, value: &Json) {
    match value {
        Json::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                toml_value(out, item);
            }
            out.push(']');
        }
        Json::Object(entries) if entries.is_empty() => out.push_str("{}"),
        Json::Object(entries) => {
            for (index, (key, item)) in entries.iter().enumerate() {
                out.push_str(if index == 0 { "{ " } else { ", " });
                out.push_str(&toml_key(key));
                out.push_str(" = ");
                toml_value(out, item);
            }
            out.push_str(" }");
        }
        Json::String(text) => out.push_str(&quoted(text)),
        // Nothing that is encoded is null.
        other => out.push_str(&other.to_string()),
    }
}

fn toml_key(key: &str) -> String {
    let bare = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if !key.is_empty() && key.bytes().all(bare) { key.to_owned() } else { quoted(key) }
}

/// A double-quoted text that TOML and YAML both read: every control character is written as `\uXXXX`, and so are the
/// line separators that YAML would fold.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\u{2028}' | '\u{2029}' | '\u{feff}' => _ = write!(out, "\\u{:04X}", u32::from(c)),
            c if c.is_control() => _ = write!(out, "\\u{:04X}", u32::from(c)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A resource as Istio's YAML.
pub fn to_yaml(resource: &Resource) -> String {
    let mut out = String::new();
    if let Json::Object(document) = encode(resource) {
        yaml_map(&mut out, &document, 0);
    }
    out
}

fn yaml_map(out: &mut String, entries: &Map<String, Json>, indent: usize) {
    for (index, (key, value)) in entries.iter().enumerate() {
        // The first key of a map within a list stands on the dash's line.
        if index > 0 || out.ends_with('\n') || out.is_empty() {
            out.push_str(&" ".repeat(indent));
        }
        out.push_str(&yaml_text(key));
        out.push(':');
        match value {
            Json::Object(inner) if !inner.is_empty() => {
                out.push('\n');
                yaml_map(out, inner, indent + 2);
            }
            Json::Array(items) if !items.is_empty() => {
                out.push('\n');
                yaml_list(out, items, indent);
            }
            scalar => {
                out.push(' ');
                out.push_str(&yaml_scalar(scalar));
                out.push('\n');
            }
        }
    }
}

fn yaml_list(out: &mut String, items: &[Json], indent: usize) {
    for item in items {
        out.push_str(&" ".repeat(indent));
        out.push_str("- ");
        match item {
            Json::Object(inner) if !inner.is_empty() => yaml_map(out, inner, indent + 2),
            scalar => {
                out.push_str(&yaml_scalar(scalar));
                out.push('\n');
            }
        }
    }
}

fn yaml_scalar(value: &Json) -> String {
    match value {
        Json::String(text) => yaml_text(text),
        other => other.to_string(),
    }
}

/// A plain text where no reader of YAML, of whatever version, could take it for something else; otherwise quoted.
fn yaml_text(text: &str) -> String {
    const OTHERS: [&str; 10] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n", "~"];
    let safe = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/');
    let plain = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
        && text.bytes().all(safe)
        && !OTHERS.contains(&text.to_lowercase().as_str());
    if plain { text.to_owned() } else { quoted(text) }
}
