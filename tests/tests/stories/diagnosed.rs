//! What `baremesh doctor` says of a host, and `baremesh explain` of a call from there, and waiting for it.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::LazyLock;

use baremesh_tests::{Host, run, wait_until};
use serde_json::Value;

/// The documented codes, with how bad each is.
pub static CODES: LazyLock<BTreeMap<&'static str, &'static str>> = LazyLock::new(|| {
    let table = include_str!("../../../docs/troubleshooting.md").lines();
    let rows = table.filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    rows.filter_map(|(code, rest)| Some((code, rest.split_once(" | ")?.0))).collect()
});

/// What is said of a host. Its exit code goes with it.
#[track_caller]
pub fn diagnosed(host: &Host, arguments: &[&str]) -> Value {
    said_by(host.baremesh(["doctor", "-o", "json"].iter().chain(arguments)))
}

/// The same of a doctor that is started in a way of its own.
#[track_caller]
pub fn said_by(doctor: Command) -> Value {
    let output = run(doctor);
    let said: Value = match serde_json::from_slice(&output.stdout) {
        Ok(said) => said,
        Err(error) => panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)),
    };
    let is_wrong = said["errors"].as_u64() != Some(0);
    assert_eq!(output.status.code(), Some(i32::from(is_wrong)), "{said:#}");
    said
}

/// The findings with a code.
pub fn findings_of(said: &Value, code: &str) -> Vec<Value> {
    let findings = said["findings"].as_array().cloned().unwrap_or_default();
    findings.into_iter().filter(|finding| finding["code"] == code).collect()
}

/// Waits until a fault is named, with what to do about it, and returns the finding.
#[track_caller]
pub fn named(host: &Host, code: &str, arguments: &[&str]) -> Value {
    named_by(code, || diagnosed(host, arguments))
}

/// The same, of whatever looks.
#[track_caller]
pub fn named_by(code: &str, look: impl Fn() -> Value) -> Value {
    let mut found = None;
    wait_until(&format!("{code} is named"), || {
        let last = look();
        found = findings_of(&last, code).into_iter().next();
        if found.is_none() {
            eprintln!("{code} is not among {}", last["findings"]);
        }
        found.is_some()
    });
    let found = found.expect("it was there a moment ago");
    assert_eq!(found["severity"], CODES[code], "{found:#}");
    for part in ["seen", "why", "do"] {
        assert!(found[part].as_str().is_some_and(|text| text.len() > 3), "{part}: {found:#}");
    }
    found
}

/// Waits until none of the faults is named any more.
#[track_caller]
pub fn over(host: &Host, codes: &[&str]) {
    wait_until(&format!("{} are over", codes.join(", ")), || {
        let said = diagnosed(host, &[]);
        codes.iter().all(|code| {
            let found = findings_of(&said, code);
            if !found.is_empty() {
                eprintln!("still {found:#?}");
            }
            found.is_empty()
        })
    });
}

/// Waits until nothing is wrong.
#[track_caller]
pub fn well(host: &Host, arguments: &[&str]) {
    wait_until("nothing is wrong", || {
        let said = diagnosed(host, arguments);
        let findings = said["findings"].as_array().cloned().unwrap_or_default();
        if !findings.is_empty() {
            eprintln!("still {findings:#?}");
        }
        findings.is_empty()
    });
}

/// What a finding says was seen.
pub fn seen(finding: &Value) -> &str {
    finding["seen"].as_str().unwrap_or_default()
}

/// Waits until a call from a host is explained with some words, to people, and returns all that is said.
#[track_caller]
pub fn explains(host: &Host, question: &[&str], words: &str) -> String {
    let mut said = String::new();
    wait_until(&format!("{question:?} is explained by {words:?}"), || {
        let output = run(host.baremesh(["explain"].iter().chain(question)));
        said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !said.contains(words) {
            eprintln!("{said}{}", String::from_utf8_lossy(&output.stderr));
        }
        said.contains(words)
    });
    said
}
