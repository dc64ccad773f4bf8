//! What `examples/` shows of a host's own files is read as the agent reads it. Resources are `baremesh analyze`'s.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use baremesh_agent::config::{AgentConfig, Directories};
use baremesh_agent::registration::file::{self, Terms};
use baremesh_model::name::Key;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

fn parse(text: &str) -> AgentConfig {
    match AgentConfig::parse(text, Directories::default(), Path::new("agent.toml")) {
        Ok(config) => config,
        Err(error) => panic!("{error}:\n{text}"),
    }
}

/// The example with its comments that are a key and a value in force.
fn uncommented(text: &str) -> String {
    let key = |line: &str| {
        let rest = line.strip_prefix("# ")?;
        let (key, _) = rest.split_once(" = ")?;
        key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_').then(|| rest.to_owned())
    };
    text.lines().map(|line| key(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

#[test]
fn agent_toml_shows_every_key_at_its_default() {
    let text = fs::read_to_string(examples().join("agent.toml")).expect("the example");
    assert_eq!(parse(&text), parse(""), "not the defaults");
    let whole = uncommented(&text);
    parse(&whole);
    // The table of docs/operating.md has the same keys.
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operating.md");
    let document = fs::read_to_string(document).expect("the document");
    let section =
        document.split("\n## ").find(|section| section.starts_with("agent.toml")).expect("a section");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let documented: BTreeSet<&str> = rows
        .flat_map(|row| row.split('|').next().unwrap_or_default().split(", "))
        .map(|key| key.trim().trim_matches('`'))
        .collect();
    let shown: BTreeSet<&str> = whole
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| Some(line.split_once(" = ")?.0))
        .collect();
    assert_eq!(shown, documented);
}

#[test]
fn registrations_are_taken_each_and_together() {
    let directory = examples().join("registrations");
    let all = file::read_all(&directory, &Terms::default()).expect("they hold together");
    assert_eq!(all.len(), fs::read_dir(&directory).expect("a directory").count());
    for service in all {
        let Key { namespace, name } = &service.key;
        let path = directory.join(format!("{namespace}.{name}.toml"));
        assert!(path.is_file(), "{} is not where `baremesh service` would write it", service.key);
    }
}
