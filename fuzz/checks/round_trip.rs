//! What holds for every text of resources, whatever its form.

use baremesh_registry::format::{Form, MAX_FINDINGS, Parsed, decode, decode_from_newer, encode};

/// Every finding can be shown, and what was taken means the same in every form that it can be written in.
pub fn check(parsed: Parsed) {
    assert!(parsed.findings.len() <= MAX_FINDINGS, "findings without a bound");
    for finding in &parsed.findings {
        assert!(!finding.to_string().is_empty(), "a finding that says nothing");
        finding.to_json();
    }
    for resource in parsed.resources.into_iter().map(|located| located.value) {
        let document = encode(&resource);
        assert_eq!(decode(&document).ok().as_ref(), Some(&resource), "{document}");
        let newer = decode_from_newer(&document).ok().map(|newer| (newer.resource, newer.reports.len()));
        assert_eq!(newer, Some((resource.clone(), 0)), "{document}");
        for form in [Form::Toml, Form::Yaml] {
            let text = form.write(&resource);
            assert_eq!(Form::of_text(&text), form, "{text}");
            let again = form.parse(&text, "again");
            assert!(again.findings.is_empty(), "{}\n{text}", again.findings[0]);
            let again: Vec<_> = again.resources.into_iter().map(|located| located.value).collect();
            assert_eq!(again, std::slice::from_ref(&resource), "{text}");
        }
    }
}
