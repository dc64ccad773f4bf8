//! Tests of all forms together: the round trip of every model value, texts of every kind, the bounds.

use baremesh_model::authorization::{Action, Enforcement, Rule};
use baremesh_model::peer_authentication::MtlsMode;
use baremesh_model::request_authentication::Missing;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use values::any_resource;

/// Any VirtualService.
mod routes;
/// ServiceEntries.
mod service_entries;
/// Any value of the model.
mod values;

fn only(parsed: Parsed, text: &str) -> Resource {
    assert!(parsed.findings.is_empty(), "{text}\n{}", parsed.findings[0]);
    assert_eq!(parsed.resources.len(), 1, "{text}");
    parsed.resources.into_iter().next().expect("one").value
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(400), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_value_survives_every_form(resource in any_resource()) {
        let document = encode(&resource);
        prop_assert_eq!(decode(&document).map_err(|f| f[0].to_string()), Ok(resource.clone()), "{}", document);
        for form in [Form::Toml, Form::Yaml] {
            let text = form.write(&resource);
            prop_assert_eq!(&only(form.parse(&text, "x"), &text), &resource, "{}", text);
            prop_assert_eq!(Form::of_text(&text), form);
        }
        let newer = decode_from_newer(&document).map_err(|f| f[0].to_string());
        prop_assert_eq!(newer.map(|newer| (newer.resource, newer.reports)), Ok((resource, vec![])));
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,200}", bytes in vec(any::<u8>(), 0..200)) {
        for text in [text.as_str(), &String::from_utf8_lossy(&bytes)] {
            for form in [Form::Toml, Form::Yaml] {
                for finding in form.parse(text, "x").findings {
                    finding.to_string();
                }
            }
            Form::of_text(text);
        }
    }

    #[test]
    fn no_mangled_resource_panics(
        resource in any_resource(),
        cuts in vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), "[\\[\\]{}:,&*\"'\n #=-]{0,3}"), 1..4),
    ) {
        for form in [Form::Toml, Form::Yaml] {
            let mut text: Vec<char> = form.write(&resource).chars().collect();
            for (at, length, with) in &cuts {
                let at = at.index(text.len() + 1);
                let end = at + length.index(4).min(text.len() - at);
                text.splice(at..end, with.chars());
            }
            let text: String = text.into_iter().collect();
            for finding in form.parse(&text, "x").findings {
                finding.to_string();
            }
        }
    }
}

#[test]
fn bombs_and_deep_nesting_are_bounded() {
    let refused = |form: Form, text: &str| {
        let parsed = form.parse(text, "x");
        assert!(parsed.failed(), "{}", &text[..40]);
        assert!(parsed.resources.is_empty());
        parsed.findings[0].code
    };
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let alias = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{alias}]\n"));
    }
    assert_eq!(refused(Form::Yaml, &bomb), crate::diagnostic::Code::TooLarge);
    let mut chain = "a0: &a0 [x]\n".to_owned();
    for level in 1..100 {
        chain.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
    }
    refused(Form::Yaml, &chain);
    refused(Form::Yaml, "a: &a [*a]");
    refused(Form::Yaml, &"[".repeat(100_000));
    refused(Form::Yaml, &"- ".repeat(100_000));
    refused(Form::Yaml, &"{a: ".repeat(100_000));
    refused(Form::Toml, &format!("a = {}", "[".repeat(100_000)));
    refused(Form::Toml, &format!("a = {}", "{a=".repeat(100_000)));
    refused(Form::Toml, &format!("a{} = 1", ".a".repeat(100_000)));
    refused(Form::Toml, &format!("[[Service{}]]", ".a".repeat(1_000)));
}

#[test]
fn findings_of_one_file_are_bounded() {
    let text = "[[Servce]]\n".repeat(10_000);
    assert_eq!(toml::parse(&text, "x").findings.len(), MAX_FINDINGS);
}

/// A line of megabytes with faults all over it: to say where each stands would take hours.
#[test]
fn long_lines_full_of_faults_are_read_quickly() {
    let service =
        "{apiVersion: v1, kind: Service, metadata: {name: A, uid: x}, spec: {}, extra: 1}, ".repeat(20_000);
    let parsed = yaml::parse(&format!("{{apiVersion: v1, kind: List, items: [{service}]}}"), "x");
    assert_eq!(parsed.findings.len(), MAX_FINDINGS);
    let keys: String = (0..50_000).map(|n| format!("porst{n} = 1, ")).collect();
    let parsed = toml::parse(&format!("Service = {{ name = \"a\", {keys} z = 1 }}"), "x");
    assert_eq!(parsed.findings.len(), MAX_FINDINGS);
}

#[test]
fn forms_are_told_apart() {
    for (text, expected) in [
        ("", Form::Yaml),
        ("# c\n[[Service]]\n", Form::Toml),
        ("a = 1", Form::Toml),
        ("apiVersion: v1\n", Form::Yaml),
        ("{\"kind\": \"x\"}", Form::Yaml),
        ("---\na: b = c", Form::Yaml),
    ] {
        assert_eq!(Form::of_text(text), expected, "{text}");
    }
}

#[test]
fn newer_policies_shut_what_they_select() {
    let check = |mut document: serde_json::Value, change: &dyn Fn(&mut serde_json::Value)| {
        change(&mut document);
        decode_from_newer(&document)
    };
    let policy = serde_json::json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": { "name": "p", "namespace": "shop" },
        "spec": { "selector": { "matchLabels": { "app": "orders" } }, "action": "ALLOW",
                  "rules": [{ "from": [{ "source": { "namespaces": ["web"] } }] }] },
    });
    let changes: [&dyn Fn(&mut serde_json::Value); 6] = [
        &|d| d["spec"]["rules"][0]["from"][0]["source"]["moon"] = "full".into(),
        &|d| d["spec"]["rules"][0]["to"] = serde_json::json!([{ "operation": { "moons": ["full"] } }]),
        &|d| d["spec"]["action"] = "ASK".into(),
        &|d| d["spec"]["expires"] = "tomorrow".into(),
        &|d| d["also"] = "this".into(),
        &|d| d["metadata"]["also"] = "this".into(),
    ];
    for change in changes {
        let newer = check(policy.clone(), change).expect("a policy");
        assert!(!newer.reports.is_empty());
        assert!(newer.reports.iter().all(|report| !report.is_error()));
        let Resource::AuthorizationPolicy(closed) = newer.resource else { panic!("another kind") };
        assert_eq!((closed.action, &closed.rules), (Action::Deny, &vec![Rule::default()]));
        assert_eq!(closed.selector, Some([("app".into(), "orders".into())].into()));
    }
    let wider = check(policy, &|d| d["spec"]["selector"] = serde_json::json!({ "matchMoon": "full" }));
    let Resource::AuthorizationPolicy(closed) = wider.expect("a policy").resource else {
        panic!("another kind")
    };
    assert_eq!(closed.selector, None);

    let mut dry = closed;
    dry.enforcement = Enforcement::DryRun;
    let mut document = encode(&Resource::AuthorizationPolicy(dry.clone()));
    document["spec"]["moon"] = "full".into();
    let Resource::AuthorizationPolicy(closed) = decode_from_newer(&document).expect("a policy").resource
    else {
        panic!("another kind")
    };
    assert_eq!(closed, dry, "a dry run decides nothing");

    let peer = serde_json::json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": { "name": "p" },
        "spec": { "mtls": { "mode": "PERMISSIVE", "unless": "rain" } },
    });
    let newer = decode_from_newer(&peer).expect("a policy");
    let Resource::PeerAuthentication(closed) = newer.resource else { panic!("another kind") };
    assert_eq!(closed.mode, Some(MtlsMode::Strict));

    let tokens = serde_json::json!({
        "apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication", "metadata": { "name": "t" },
        "spec": { "jwtRules": [{ "issuer": "i", "jwksFile": "/k", "presence": "REQUIRED" }] },
    });
    let newer = decode_from_newer(&tokens).expect("a policy");
    let Resource::RequestAuthentication(closed) = &newer.resource else { panic!("another kind") };
    assert_eq!((closed.rules.len(), closed.missing), (0, Missing::Refused), "with a token or without");
    assert_eq!(decode(&encode(&newer.resource)).as_ref(), Ok(&newer.resource));

    let service = serde_json::json!({
        "apiVersion": "baremesh.io/v1", "kind": "Service", "metadata": { "name": "s" },
        "spec": { "ports": [{ "port": 80, "speed": "fast" }], "colour": "red" },
    });
    let newer = decode_from_newer(&service).expect("a service");
    assert_eq!(newer.reports.len(), 2);
    assert!(decode(&service).is_err());
    assert!(decode_from_newer(&serde_json::json!({ "kind": "Moon" })).is_err());
}

#[test]
fn newer_routes_never_take_more_than_was_meant() {
    let route = serde_json::json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": { "name": "v" },
        "spec": { "hosts": ["reviews"], "http": [
            { "match": [{ "headers": { "user": { "exact": "jason" } } }], "redirect": { "uri": "/a" } },
        ] },
    });
    let check = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut document = route.clone();
        change(&mut document);
        decode_from_newer(&document)
    };
    let newer = check(&|d| d["spec"]["http"][0]["colour"] = "red".into()).expect("what is known of it");
    assert_eq!(newer.reports.len(), 1);
    assert!(matches!(newer.resource, Resource::VirtualService(_)));
    // A part of a match that is not known: without it, everybody would be taken for Jason.
    assert!(check(&|d| d["spec"]["http"][0]["match"][0]["moon"] = "full".into()).is_err());
    let suffix = serde_json::json!({ "suffix": "jason" });
    assert!(check(&|d| d["spec"]["http"][0]["match"][0]["headers"]["user"] = suffix.clone()).is_err());
}

#[test]
fn the_reference_in_the_repository_is_the_one_that_is_written() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/resources.md");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, reference()).expect("docs/resources.md can be written");
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(written == reference(), "docs/resources.md is stale: run this test with UPDATE_GOLDEN=1");
}
