//! What becomes of requests to a workload `orders` under rules for tokens.

use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::jwt::testing::{Signer, token_of};
use crate::snapshot::tests::mesh;

/// The moment of all tests, in seconds since 1970.
const NOW: u64 = 1_700_000_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

fn compile(text: &str) -> Option<Arc<TokenRules>> {
    let namespace = Label::new("default").expect("a label");
    let labels = Labels::from([("app".into(), "orders".into())]);
    TokenRules::compile(&mesh(text), (&namespace, &labels), &mut TokenKeys::default(), None)
}

/// A RequestAuthentication with one rule, of these further fields.
fn rule(name: &str, issuer: &str, signers: &[&Signer], more: &str) -> String {
    let jwks = Signer::jwks(signers);
    format!(
        "[[RequestAuthentication]]\nname = \"{name}\"\njwtRules = [{{ issuer = \"{issuer}\", jwks = '{jwks}'{more} }}]\n"
    )
}

fn head(target: &str, fields: &[(&str, &str)]) -> RequestHead {
    let mut head = RequestHead { method: "GET".into(), target: target.into(), ..RequestHead::default() };
    for (name, value) in fields {
        head.headers.append(name, value.as_bytes()).expect("a field");
    }
    head
}

fn bearer(token: &str) -> RequestHead {
    head("/", &[("authorization", &format!("Bearer {token}"))])
}

fn enforce(rules: &TokenRules, head: &mut RequestHead) -> Result<Option<String>, Refusal> {
    rules.enforce(head, now()).map(|token| token.map(|token| token.principal()))
}

fn fields(head: &RequestHead) -> Vec<String> {
    head.headers.iter().map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value))).collect()
}

#[test]
fn a_token_is_taken_of_its_issuer_in_its_time_for_its_audience() {
    let (signer, other) = (Signer::es256("a"), Signer::es256("a"));
    let rules = compile(&rule("a", "i", &[&signer], ", audiences = [\"orders\", \"shop\"]")).expect("rules");
    let check = |token: &str, expected: Result<Option<&str>, Refusal>| {
        let found = enforce(&rules, &mut bearer(token));
        assert_eq!(found, expected.map(|principal| principal.map(str::to_owned)), "{token}");
    };
    let good = r#"{"iss":"i","sub":"jason","aud":["x","shop"]}"#;
    check(&signer.sign(good), Ok(Some("i/jason")));
    check(&other.sign(good), Err(Refusal::BadSignature));
    check(&signer.sign(r#"{"iss":"i","aud":"orders"}"#), Ok(Some("i/")));
    check(&signer.sign(r#"{"iss":"i","aud":"order"}"#), Err(Refusal::WrongAudience));
    check(&signer.sign(r#"{"iss":"i"}"#), Err(Refusal::WrongAudience));
    check(&other.sign(r#"{"iss":"i","aud":"order"}"#), Err(Refusal::BadSignature));
    for issuer in ["I", "i/", "", "https://i"] {
        check(&signer.sign(&format!(r#"{{"iss":"{issuer}","aud":"shop"}}"#)), Err(Refusal::UnknownIssuer));
    }
    check(&signer.sign(r#"{"aud":"shop"}"#), Err(Refusal::UnknownIssuer));
    let at = |claim: &str, time: u64| signer.sign(&format!(r#"{{"iss":"i","aud":"shop","{claim}":{time}}}"#));
    check(&at("exp", NOW - 30), Ok(Some("i/")));
    check(&at("exp", NOW - 60), Err(Refusal::Expired));
    check(&at("nbf", NOW + 60), Ok(Some("i/")));
    check(&at("nbf", NOW + 61), Err(Refusal::NotYetValid));
    check(&signer.sign(r#"{"iss":"i","aud":"shop","exp":"9999999999"}"#), Err(Refusal::BadPayload));
    check(&token_of(r#"{"alg":"none"}"#, good, b""), Err(Refusal::BadAlgorithm));
    check("", Ok(None));
    check("nonsense", Err(Refusal::BadFormat));
    check(&"a".repeat(MAX_TOKEN + 1), Err(Refusal::BadFormat));
    assert_eq!(enforce(&rules, &mut head("/", &[("authorization", "Basic a")])), Ok(None));
}

#[test]
fn a_public_key_is_no_secret_that_tokens_are_signed_with() {
    use aws_lc_rs::hmac;
    let signer = Signer::rs256("a");
    let rules = compile(&rule("a", "i", &[&signer], "")).expect("rules");
    let payload = r#"{"iss":"i","sub":"admin"}"#;
    assert_eq!(enforce(&rules, &mut bearer(&signer.sign(payload))), Ok(Some("i/admin".to_owned())));
    for algorithm in ["HS256", "hs256", "none", "RS384"] {
        let header = format!(r#"{{"alg":"{algorithm}","kid":"a"}}"#);
        let unsigned = token_of(&header, payload, b"");
        let key = hmac::Key::new(hmac::HMAC_SHA256, signer.jwk().as_bytes());
        let mac = hmac::sign(&key, unsigned.trim_end_matches('.').as_bytes());
        let refused = enforce(&rules, &mut bearer(&token_of(&header, payload, mac.as_ref())));
        assert!(
            matches!(refused, Err(Refusal::BadAlgorithm | Refusal::BadSignature)),
            "{algorithm} {refused:?}"
        );
    }
    let edwards = Signer::eddsa("e");
    let rules = compile(&rule("a", "i", &[&edwards], "")).expect("rules");
    assert_eq!(enforce(&rules, &mut bearer(&edwards.sign(payload))), Ok(Some("i/admin".to_owned())));
}

#[test]
fn every_token_that_is_found_must_be_good_and_the_first_says_who_asks() {
    let (a, b) = (Signer::es256("a"), Signer::es256("b"));
    let of_b = rule("b", "j", &[&b], ", fromHeaders = [{ name = \"x-jwt\" }], fromCookies = [\"t\"]");
    let rules = compile(&(rule("a", "i", &[&a], "") + &of_b)).expect("rules");
    let (of_a, of_b) = (a.sign(r#"{"iss":"i","sub":"1"}"#), b.sign(r#"{"iss":"j","sub":"2"}"#));
    let check = |target: &str, fields: &[(&str, &str)], expected: Result<Option<&str>, Refusal>| {
        let found = enforce(&rules, &mut head(target, fields));
        assert_eq!(found, expected.map(|principal| principal.map(str::to_owned)), "{target} {fields:?}");
    };
    let bearer = |token: &str| format!("Bearer {token}");
    check("/", &[("authorization", &bearer(&of_a)), ("x-jwt", &of_b)], Ok(Some("i/1")));
    check("/", &[("x-jwt", &of_b)], Ok(Some("j/2")));
    check("/", &[("cookie", &format!("x=1; t={of_b}"))], Ok(Some("j/2")));
    check(&format!("/?access_token={of_a}"), &[], Ok(Some("i/1")));
    check("/", &[("authorization", &bearer(&of_a)), ("x-jwt", "junk")], Err(Refusal::BadFormat));
    check("/?access_token=junk", &[("authorization", &bearer(&of_a))], Err(Refusal::BadFormat));
    // A token of one issuer where another's are looked for.
    check("/", &[("authorization", &bearer(&of_b))], Err(Refusal::UnknownIssuer));
    check("/", &[("x-jwt", &of_a)], Err(Refusal::UnknownIssuer));
    let many: Vec<String> =
        (0..=MAX_TOKENS).map(|sub| a.sign(&format!(r#"{{"iss":"i","sub":"{sub}"}}"#))).collect();
    let query: Vec<String> = many.iter().map(|token| format!("access_token={token}")).collect();
    check(&format!("/?{}", query.join("&")), &[], Err(Refusal::TooMany));
    let same = vec![query[0].clone(); 100];
    check(&format!("/?{}", same.join("&")), &[], Ok(Some("i/0")));
}

#[test]
fn several_rules_for_an_issuer_are_alternatives() {
    let (a, b) = (Signer::es256("a"), Signer::es256("b"));
    let rules = rule("a", "i", &[&a], ", audiences = [\"x\"]") + &rule("b", "i", &[&b], "");
    let rules = compile(&rules).expect("rules");
    assert!(enforce(&rules, &mut bearer(&a.sign(r#"{"iss":"i","aud":"x"}"#))).is_ok());
    assert!(enforce(&rules, &mut bearer(&b.sign(r#"{"iss":"i"}"#))).is_ok());
    let refused = enforce(&rules, &mut bearer(&a.sign(r#"{"iss":"i","aud":"y"}"#)));
    assert_eq!(refused, Err(Refusal::WrongAudience), "its signature was good");
    let scope =
        |name: &str, more: &str| rule(name, "i", &[&a], "").replace("jwtRules", &format!("{more}\njwtRules"));
    assert!(compile(&scope("c", "selector = { matchLabels = { app = \"other\" } }")).is_none());
    assert!(compile(&scope("c", "namespace = \"shop\"")).is_none());
    assert!(compile(&scope("c", "namespace = \"mesh-system\"")).is_some());
}

#[test]
fn the_program_is_told_by_the_agent_and_by_nobody_else() {
    let signer = Signer::es256("a");
    let outputs = r#", outputPayloadToHeader = "x-payload", outputClaimToHeaders = [{ header = "x-sub", claim = "sub" },
        { header = "X_Group", claim = "realm.group" }, { header = "x-list", claim = "list" }]"#;
    let rules = compile(&rule("a", "i", &[&signer], &outputs.replace('\n', " "))).expect("rules");
    let claimed =
        [("x-payload", "p"), ("x_sub", "admin"), ("X-Sub", "admin"), ("x-group", "admin"), ("x-list", "a")];
    let mut without = head("/", &claimed);
    assert_eq!(enforce(&rules, &mut without), Ok(None));
    assert_eq!(fields(&without), [""; 0]);
    // Behind a body they would be read as if they stood before it.
    let mut behind = head("/", &claimed);
    behind.headers.append("x-sum", b"7").expect("a field");
    rules.strip_trailers(&mut behind.headers);
    assert_eq!(fields(&behind), ["x-sum: 7"]);
    let payload = r#"{"iss":"i","sub":"jason","realm":{"group":7},"list":["a"],"evil":"a\r\nb"}"#;
    let token = signer.sign(payload);
    let mut request = bearer(&token);
    for (name, value) in claimed {
        request.headers.append(name, value.as_bytes()).expect("a field");
    }
    assert_eq!(enforce(&rules, &mut request), Ok(Some("i/jason".to_owned())));
    let part = token.split('.').nth(1).expect("a payload");
    assert_eq!(fields(&request), [&*format!("x-payload: {part}"), "x-sub: jason", "x_group: 7"]);
    let evil = compile(&rule(
        "a",
        "i",
        &[&signer],
        r#", outputClaimToHeaders = [{ header = "x-evil", claim = "evil" }]"#,
    ));
    let mut request = bearer(&token);
    assert!(enforce(&evil.expect("rules"), &mut request).is_ok());
    assert_eq!(fields(&request), [""; 0], "a claim ends no line");
}

#[test]
fn the_token_is_the_program_s_to_see_where_the_rule_says_so() {
    let signer = Signer::es256("a");
    let token = signer.sign(r#"{"iss":"i","scope":"read write","groups":"a b"}"#);
    let send = |more: &str| {
        let rules = compile(&rule("a", "i", &[&signer], more)).expect("rules");
        let mut request =
            head(&format!("/a?b=1&access_token={token}"), &[("authorization", &format!("Bearer {token}"))]);
        let read = rules.enforce(&mut request, now()).expect("taken").expect("a token");
        (request, read)
    };
    let (request, read) = send(", spaceDelimitedClaims = [\"groups\"]");
    assert_eq!((&*request.target, request.headers.len()), ("/a?b=1", 0));
    for (claim, one) in [("scope", "write"), ("groups", "b")] {
        assert!(read.claims[claim].any_text(|text| text == one), "{claim}");
    }
    let (request, read) = send(", forwardOriginalToken = true");
    assert!(request.target.contains(&token) && request.headers.contains("authorization"));
    assert!(read.claims["groups"].any_text(|text| text == "a b"));
}

#[test]
fn a_browser_s_question_passes_and_tells_nothing() {
    let signer = Signer::es256("a");
    let rules =
        compile(&rule("a", "i", &[&signer], ", outputPayloadToHeader = \"x-payload\"")).expect("rules");
    let question = [("origin", "https://shop"), ("access-control-request-method", "PUT")];
    let mut preflight =
        head("/?access_token=junk", &[("authorization", "Bearer junk"), ("x-payload", "claimed")]);
    for (name, value) in question {
        preflight.headers.append(name, value.as_bytes()).expect("a field");
    }
    assert_eq!(
        enforce(&rules, &mut preflight.clone()),
        Err(Refusal::BadFormat),
        "another method is no question"
    );
    preflight.method = "OPTIONS".into();
    assert_eq!(enforce(&rules, &mut preflight), Ok(None));
    assert!(!preflight.headers.contains("x-payload"));
    assert!(!preflight.headers.contains("authorization"), "nobody has looked at it");
}

#[test]
fn a_token_may_be_asked_for_and_what_is_not_understood_takes_none() {
    let signer = Signer::es256("a");
    let asked = rule("a", "i", &[&signer], "").replace("jwtRules", "requireToken = true\njwtRules");
    let rules = compile(&asked).expect("rules");
    assert_eq!(enforce(&rules, &mut head("/", &[])), Err(Refusal::Missing));
    assert_eq!(enforce(&rules, &mut head("/", &[("authorization", "Basic a")])), Err(Refusal::Missing));
    assert!(enforce(&rules, &mut bearer(&signer.sign(r#"{"iss":"i"}"#))).is_ok());
    let closed =
        compile("[[RequestAuthentication]]\nname = \"closed\"\nrequireToken = true\n").expect("rules");
    assert_eq!(enforce(&closed, &mut bearer(&signer.sign(r#"{"iss":"i"}"#))), Err(Refusal::Missing));
    assert!(compile("[[RequestAuthentication]]\nname = \"nothing\"\n").is_none());
    // Of each policy that asks for one, whatever others take.
    let beside = |name: &str| {
        rule(name, "i", &[&signer], "") + "[[RequestAuthentication]]\nname = \"c\"\nrequireToken = true\n"
    };
    for name in ["a", "z"] {
        let closed = compile(&beside(name)).expect("rules");
        assert_eq!(
            enforce(&closed, &mut bearer(&signer.sign(r#"{"iss":"i"}"#))),
            Err(Refusal::Missing),
            "{name}"
        );
    }
    let both = compile(&(rule("0", "i", &[&signer], "") + &asked)).expect("rules");
    assert!(enforce(&both, &mut bearer(&signer.sign(r#"{"iss":"i"}"#))).is_ok(), "one token may be both's");
}

#[test]
fn keys_outlive_a_change_and_none_at_hand_refuses() {
    let signer = Signer::es256("a");
    let text = "[[RequestAuthentication]]\nname = \"a\"\njwtRules = [{ issuer = \"i\", jwksUri = \"https://i/keys\" }]\n";
    let namespace = Label::new("default").expect("a label");
    let compile = |previous: Option<&TokenKeys>| {
        let mut keys = TokenKeys::new(previous);
        let rules = TokenRules::compile(&mesh(text), (&namespace, &Labels::new()), &mut keys, previous);
        (rules.expect("rules"), keys)
    };
    let (rules, keys) = compile(None);
    let token = signer.sign(r#"{"iss":"i"}"#);
    assert_eq!(enforce(&rules, &mut bearer(&token)), Err(Refusal::NoKeys));
    let slot = Arc::clone(keys.all().next().expect("a slot").0);
    assert!(slot.take_asked(), "keys that are not there are asked for");
    let set = |signer: &Signer| super::super::keys::KeySet::parse(&Signer::jwks(&[signer])).expect("a set");
    slot.put(Some(Arc::new(set(&signer))));
    assert!(enforce(&rules, &mut bearer(&token)).is_ok());
    let (again, _) = compile(Some(&keys));
    assert!(enforce(&again, &mut bearer(&token)).is_ok());
    assert!(!slot.is_asked());
    let unknown = signer.sign_with(r#"{"alg":"ES256","kid":"new"}"#, r#"{"iss":"i"}"#);
    assert_eq!(enforce(&again, &mut bearer(&unknown)), Err(Refusal::NoSuchKey));
    assert!(slot.take_asked() && !slot.is_asked(), "newer keys are asked for");
    slot.put(None);
    assert_eq!(enforce(&again, &mut bearer(&token)), Err(Refusal::NoKeys));
}

#[test]
fn of_two_tokens_policies_and_the_program_are_told_of_the_first() {
    let signer = Signer::es256("a");
    let rules = compile(&rule(
        "a",
        "i",
        &[&signer],
        ", outputClaimToHeaders = [{ header = \"x-user\", claim = \"sub\" }]",
    ))
    .expect("rules");
    let (first, second) =
        (signer.sign(r#"{"iss":"i","sub":"me"}"#), signer.sign(r#"{"iss":"i","sub":"other"}"#));
    let mut both =
        head(&format!("/?access_token={second}"), &[("authorization", &format!("Bearer {first}"))]);
    assert_eq!(enforce(&rules, &mut both), Ok(Some("i/me".to_owned())));
    assert_eq!(fields(&both), ["x-user: me"]);
    assert!(!both.target.contains("access_token"), "{}", both.target);
}

#[test]
fn a_request_under_way_is_held_to_the_rules_of_now() {
    let signer = Signer::es256("a");
    let before = compile(&rule("a", "i", &[&signer], "")).expect("rules");
    let mut request = bearer(&signer.sign(r#"{"iss":"i","aud":"shop"}"#));
    let token = before.enforce(&mut request, now()).expect("taken").expect("a token");
    let reason = |text: &str, token| compile(text).expect("rules").no_longer_taken(&request, token).is_some();
    for (rules, ended) in [
        (rule("a", "i", &[&signer], ""), false),
        (rule("a", "i", &[&signer], ", audiences = [\"shop\"]"), false),
        (rule("a", "i", &[&signer], ", audiences = [\"other\"]"), true),
        (rule("a", "j", &[&signer], ""), true),
    ] {
        assert_eq!(reason(&rules, Some(&token)), ended, "{rules}");
        assert!(!reason(&rules, None), "nobody asks for one");
    }
    let asks = format!("{}requireToken = true\n", rule("a", "i", &[&signer], ""));
    assert!(reason(&asks, None) && !reason(&asks, Some(&token)));
}
