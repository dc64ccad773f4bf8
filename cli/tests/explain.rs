//! `baremesh explain` by files: the answers beside this file, each with its command line and exit code above it, word for word.
//! `BAREMESH_UPDATE_GOLDEN=1` writes the answers anew; the command lines are read from the files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/explain")
}

/// Runs `explain` with arguments as a shell would read them, quoted with `'` alone.
fn explain(arguments: &str) -> Output {
    let words = arguments.split('\'').enumerate().flat_map(|(index, part)| {
        let quoted = index % 2 == 1;
        let words: Vec<&str> = if quoted { vec![part] } else { part.split_whitespace().collect() };
        words
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_baremesh"));
    command.current_dir(cases()).arg("explain").args(words).env("NO_COLOR", "1");
    command.output().expect("baremesh runs")
}

/// The whole of a case: its command line, what it ends with, and what it says.
fn told(line: &str) -> String {
    let output = explain(line.trim_start_matches("$ baremesh explain"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code().expect("it ends by itself");
    format!("{line}\n[{code}]\n{}{}", text(&output.stdout), text(&output.stderr))
}

#[test]
fn says_what_the_golden_files_say() {
    let files = fs::read_dir(cases()).expect("the cases").map(|file| file.expect("an entry").path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "txt")).collect();
    files.sort();
    assert!(files.len() > 20, "the cases are there");
    for file in files {
        let expected = fs::read_to_string(&file).expect("a case");
        let line = expected.lines().next().expect("a case begins with its command line");
        let told = told(line);
        if std::env::var_os("BAREMESH_UPDATE_GOLDEN").is_some() {
            fs::write(&file, told).expect("the case is written");
        } else {
            assert!(expected == told, "{} differs; what is said now:\n{told}", file.display());
        }
    }
}

/// The JSON has the fields that `docs/explain.md` names, and no others.
#[test]
fn the_fields_of_the_json_are_documented() {
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/explain.md");
    let manual = fs::read_to_string(manual).expect("the manual");
    let mut told = Vec::new();
    for line in ["http://reviews:9080/api", "http://details:9080/ -H 'x-user: a'", "http://reviews:9080/v1/x"]
    {
        let output = explain(&format!("{line} -f mesh.toml --from productpage -o json"));
        told.push(serde_json::from_slice::<Value>(&output.stdout).expect("JSON"));
    }
    fn fields<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Array(all) => all.iter().for_each(|value| fields(value, found)),
            Value::Object(all) => {
                found.extend(all.keys().map(String::as_str));
                all.values().for_each(|value| fields(value, found));
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    told.iter().for_each(|value| fields(value, &mut found));
    assert!(found.contains(&"matched_rule") && found.contains(&"ejected_for"), "{found:?}");
    for field in found {
        assert!(manual.contains(&format!("`{field}`")), "docs/explain.md does not say what `{field}` is");
    }
}
