//! What the fuzzer starts from, and what it once found, through the checks that it makes.

// Both targets share the round trip, and each of their files stands alone for the fuzzer.
#![allow(clippy::duplicate_mod)]

use std::fs;
use std::path::Path;

#[path = "../../fuzz/checks/resources_toml.rs"]
mod resources_toml;
#[path = "../../fuzz/checks/resources_yaml.rs"]
mod resources_yaml;

fn replay(target: &str, check: fn(&[u8])) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
    let mut count = 0;
    for entry in fs::read_dir(&seeds).expect("the target has seeds") {
        let path = entry.expect("an entry").path();
        // Shown only when the check fails.
        eprintln!("{}", path.display());
        check(&fs::read(&path).expect("a seed"));
        count += 1;
    }
    assert!(count >= 5, "only {count} seeds in {}", seeds.display());
}

#[test]
fn seeds_of_toml_hold() {
    replay("resources_toml", resources_toml::check);
}

#[test]
fn seeds_of_yaml_hold() {
    replay("resources_yaml", resources_yaml::check);
}
