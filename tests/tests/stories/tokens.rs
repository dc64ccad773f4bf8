//! Tokens of requests: taken of those whom a RequestAuthentication trusts, refused of everybody else.

use std::time::Instant;

use aws_lc_rs::hmac;
use baremesh_tests::{Answer, Member, wait_until};

use crate::issuer::{ISSUER, Issuer, KeyServer, part, redirected, seconds_from_now, served};
use crate::town::{REVIEWS, Town, routes, subsets, to};

/// A RequestAuthentication for the first instance of `reviews`, with one rule of these fields.
fn rule(fields: &str) -> String {
    let selector = "selector = { matchLabels = { version = \"v1\" } }";
    format!(
        "[[RequestAuthentication]]\nname = \"reviews\"\n{selector}\njwtRules = [{{ issuer = \"{ISSUER}\", {fields} }}]\n"
    )
}

fn call(member: &Member, token: &str, url: &str) -> Answer {
    member.host.get(&["--header", &format!("Authorization: Bearer {token}")], url)
}

/// A sample of the metrics; 0 while there is none.
fn sample(member: &Member, line: &str) -> u64 {
    let text = member.metrics();
    text.lines().find_map(|said| said.strip_prefix(line)?.trim().parse().ok()).unwrap_or_default()
}

fn counted(member: &Member, outcome: &str) -> u64 {
    sample(member, &format!("baremesh_token_requests_total{{outcome=\"{outcome}\"}} "))
}

#[track_caller]
fn check_refused(answer: &Answer, (status, body): (u16, &str)) {
    assert_eq!((answer.status, &*answer.body), (Some(status), body), "{answer:?}");
    let challenge = answer.header("www-authenticate");
    assert!(challenge.starts_with("Bearer realm=\"http://reviews/"), "{answer:?}");
    assert!(challenge.ends_with("error=\"invalid_token\""), "{answer:?}");
}

#[test]
fn every_forged_token_is_refused_with_its_reason_before_the_program_sees_a_byte() {
    let town = Town::new("forged", 1);
    let [v1] = town.open();
    let (issuer, other) = (Issuer::rsa("k1"), Issuer::rsa("k1"));
    let outputs = r#"outputPayloadToHeader = "x-payload", outputClaimToHeaders = [{ header = "x-sub", claim = "sub" }]"#;
    town.mesh.enforce(&rule(&format!("jwks = '{}', audiences = [\"reviews\"], {outputs}", issuer.jwks())));
    let claims = r#","aud":"reviews","sub":"jason""#;
    let payload = |issuer: &str, more: &str| {
        let exp = seconds_from_now(3600);
        format!(r#"{{"iss":"{issuer}","aud":"reviews","sub":"admin","exp":{exp}{more}}}"#)
    };
    let good = payload(ISSUER, "");
    let confused = {
        let message = format!("{}.{}", part(br#"{"alg":"HS256","kid":"k1"}"#), part(good.as_bytes()));
        let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, issuer.jwk().as_bytes()), message.as_bytes());
        format!("{message}.{}", part(mac.as_ref()))
    };
    let none = format!("{}.{}.", part(br#"{"alg":"none"}"#), part(good.as_bytes()));
    let tampered = {
        let token = issuer.token(claims);
        let parts: Vec<&str> = token.split('.').collect();
        format!("{}.{}.{}", parts[0], part(good.as_bytes()), parts[2])
    };
    let with = |header: &str, by: &Issuer| by.sign_with(header, &good);
    let embedded = with(&format!(r#"{{"alg":"RS256","jwk":{}}}"#, other.jwk()), &other);
    let elsewhere = with(r#"{"alg":"RS256","kid":"k1","jku":"http://10.77.0.9/keys"}"#, &other);
    let at = |claim: &str, seconds: i64| {
        let time = seconds_from_now(seconds);
        issuer.sign(&format!(r#"{{"iss":"{ISSUER}","aud":"reviews","{claim}":{time}}}"#))
    };
    const ALGORITHM: (u16, &str) = (401, "Jwt header [alg] is not supported");
    const SIGNATURE: (u16, &str) = (401, "Jwt verification fails");
    const KEY: (u16, &str) = (401, "Jwks doesn't have key to match kid or alg from Jwt");
    const OWN_KEY: (u16, &str) =
        (401, "Jwt header names its own key or an extension that must be understood");
    let cases = [
        ("confused", confused, ALGORITHM, "algorithm"),
        ("none", none, ALGORITHM, "algorithm"),
        ("other", other.token(claims), SIGNATURE, "signature"),
        ("tampered", tampered, SIGNATURE, "signature"),
        ("embedded", embedded, OWN_KEY, "own_key"),
        ("elsewhere", elsewhere, OWN_KEY, "own_key"),
        ("crit", with(r#"{"alg":"RS256","kid":"k1","crit":["exp"]}"#, &issuer), OWN_KEY, "own_key"),
        ("kid-path", with(r#"{"alg":"RS256","kid":"../../../../etc/passwd"}"#, &other), KEY, "no_such_key"),
        ("kid-sql", with(r#"{"alg":"RS256","kid":"k1' UNION SELECT 'x"}"#, &other), KEY, "no_such_key"),
        (
            "kid-type",
            with(r#"{"alg":"RS256","kid":{"k1":1}}"#, &issuer),
            (401, "Jwt header [kid] field is not a string"),
            "key_id",
        ),
        ("family", with(r#"{"alg":"ES256","kid":"k1"}"#, &issuer), KEY, "no_such_key"),
        (
            "issuer",
            issuer.sign(&payload("https://evil.example", "")),
            (401, "Jwt issuer is not configured"),
            "issuer",
        ),
        (
            "audience",
            issuer.token(r#","aud":["web","Reviews"]"#),
            (403, "Audiences in Jwt are not allowed"),
            "audience",
        ),
        ("expired", at("exp", -3600), (401, "Jwt is expired"), "expired"),
        ("future", at("nbf", 3600), (401, "Jwt not yet valid"), "not_yet_valid"),
        (
            "exp-type",
            issuer.sign(&payload(ISSUER, r#","nbf":"0""#)),
            (401, "Jwt payload is an invalid JSON"),
            "payload",
        ),
        (
            "twice",
            issuer.sign(&payload(ISSUER, r#","sub":"jason""#)),
            (401, "Jwt payload is an invalid JSON"),
            "payload",
        ),
        (
            "junk",
            "junk".to_owned(),
            (401, "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"),
            "format",
        ),
        (
            "long",
            "a".repeat(16 * 1024 + 1),
            (401, "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"),
            "format",
        ),
    ];
    for (path, token, expected, outcome) in &cases {
        let before = counted(&town.hosts[0], outcome);
        let answer = call(&town.web, token, &format!("{REVIEWS}/{path}"));
        check_refused(&answer, *expected);
        let line = town.hosts[0].wait_for_log(path, |line| line["path"] == format!("/{path}"));
        let details = format!("jwt_authn_access_denied{{{}}}", expected.1.replace(' ', "_"));
        assert_eq!(
            (&line["response_code_details"], &line["response_flags"]),
            (&details.into(), &"UAEX".into()),
            "{line}"
        );
        wait_until(path, || counted(&town.hosts[0], outcome) == before + 1);
        assert_eq!(v1.seen(&format!("/{path}")), 0, "{path}");
    }
    // A good one, and what the program is told by the agent alone.
    let token = issuer.token(claims);
    let claimed = ["--header", "x-sub: admin", "--header", "x_sub: admin", "--header", "x-payload: claimed"];
    let bearer = format!("Authorization: Bearer {token}");
    let answer =
        town.web.host.get(&[&["--header", &bearer][..], &claimed].concat(), &format!("{REVIEWS}/good"));
    assert!(answer.is_ok(), "{answer:?}");
    let headers = &answer.account()["headers"];
    assert_eq!(headers["x-sub"][0], "jason", "{headers}");
    assert_eq!(headers["x-payload"][0], token.split('.').nth(1).expect("a payload"), "{headers}");
    assert!(headers["authorization"].is_null() && headers["x_sub"].is_null(), "{headers}");
    // One that may stand in the query is written down nowhere.
    let answer = town.web.host.get(&[], &format!("{REVIEWS}/query?a=b&access_token={token}"));
    assert!(answer.is_ok(), "{answer:?}");
    town.hosts[0].wait_for_log("the token is not in it", |line| line["path"] == "/query?a=b");
    let all = town.web.log().into_iter().chain(town.hosts[0].log());
    assert!(all.map(|line| line.to_string()).all(|line| !line.contains(&token)));
    // Without a token it passes; what the caller says of itself does not.
    let answer = town.web.host.get(&claimed, &format!("{REVIEWS}/without"));
    assert!(answer.is_ok() && answer.account()["headers"]["x-sub"].is_null(), "{answer:?}");
    let grpc = [
        "--method",
        "POST",
        "--header",
        "content-type: application/grpc",
        "--header",
        "Authorization: Bearer junk",
    ];
    let answer = town.web.host.get(&grpc, &format!("{REVIEWS}/grpc"));
    assert_eq!((answer.status, &*answer.header("grpc-status")), (Some(200), "16"), "{answer:?}");
}

#[test]
fn programs_of_the_service_s_own_host_are_held_to_tokens_however_they_call() {
    let town = Town::new("tokens-within", 1);
    let [v1] = town.open();
    let issuer = Issuer::p256("k1");
    town.mesh.enforce(&rule(&format!("jwks = '{}'", issuer.jwks())));
    let host = &town.hosts[0];
    let (good, bad) = (issuer.token(""), Issuer::p256("k1").token(""));
    let real = format!("http://{}:8080", host.host.v4());
    for (at, url) in [("named", "http://reviews"), ("local", "http://127.0.0.1:8080"), ("real", &real)] {
        assert!(call(host, &good, &format!("{url}/good-{at}")).is_ok(), "{url}");
        let answer = call(host, &bad, &format!("{url}/bad-{at}"));
        assert_eq!((answer.status, &*answer.body), (Some(401), "Jwt verification fails"), "{url}");
        assert_eq!((v1.seen(&format!("/good-{at}")), v1.seen(&format!("/bad-{at}"))), (1, 0), "{url}");
        host.wait_for_log("the refusal", |line| {
            line["path"] == format!("/bad-{at}")
                && line["response_code_details"] == "jwt_authn_access_denied{Jwt_verification_fails}"
        });
    }
    // Who brings none passes until one is asked for.
    assert!(town.web.host.get(&[], REVIEWS).is_ok());
    town.mesh.enforce(&(rule(&format!("jwks = '{}'", issuer.jwks())) + "requireToken = true\n"));
    for answer in [town.web.host.get(&[], REVIEWS), host.host.get(&[], "http://127.0.0.1:8080")] {
        assert_eq!((answer.status, &*answer.body), (Some(401), "Jwt is missing"), "{answer:?}");
        assert!(!answer.header("www-authenticate").contains("error"), "{answer:?}");
    }
    assert!(call(host, &good, REVIEWS).is_ok());
}

#[test]
fn keys_come_from_a_server_outlive_it_and_follow_it() {
    let town = Town::new("keys", 1);
    let [_v1] = town.open();
    let keys = town.mesh.net.host("keys", 9);
    let (first, second) = (Issuer::rsa("first"), Issuer::p256("second"));
    let server = KeyServer::start(&keys, 8888, served(&first.jwks()));
    town.mesh.enforce(&rule(&format!("jwksUri = \"http://{}:8888/keys\"", keys.v4())));
    wait_until("the first key has come", || call(&town.web, &first.token(""), REVIEWS).is_ok());
    assert_eq!(call(&town.web, &second.token(""), REVIEWS).status, Some(401));
    // A token with a key that is not known has the server asked again, and not at will.
    let both = format!(r#"{{"keys":[{},{}]}}"#, first.jwk(), second.jwk());
    server.answers(served(&both));
    wait_until("the second key has come", || call(&town.web, &second.token(""), REVIEWS).is_ok());
    let (asked, began) = (server.asked(), Instant::now());
    let unknown = Issuer::p256("third").token("");
    assert!((0..50).all(|_| call(&town.web, &unknown, REVIEWS).status == Some(401)));
    // One in ten seconds at most (`LEAST_BETWEEN`), on a machine on which fifty calls may take longer.
    let most = 2 + usize::try_from(began.elapsed().as_secs() / 10).expect("a few");
    assert!(server.asked() <= asked + most, "fifty unknown tokens are few questions");
    // Without the server what is known stays in force, over a restart as well.
    server.goes_down();
    let host = &town.hosts[0];
    host.stop_agent();
    host.start();
    town.web.wait_for_endpoints("reviews.default", 1);
    let failed = "baremesh_token_key_fetches_total{outcome=\"http\"} ";
    wait_until("the server is found to be down", || sample(host, failed) > 0);
    for issuer in [&first, &second] {
        wait_until("a token is taken", || call(&town.web, &issuer.token(""), REVIEWS).is_ok());
    }
    assert_eq!(call(&town.web, &Issuer::rsa("first").token(""), REVIEWS).status, Some(401), "no other key");
}

#[test]
fn key_servers_that_are_down_huge_redirecting_or_within_give_no_keys() {
    let town = Town::new("key-servers", 1);
    let [v1] = town.open();
    let keys = town.mesh.net.host("keys", 9);
    let host = &town.hosts[0];
    let issuer = Issuer::p256("k1");
    // On the host itself: a server that would give the right keys, if it were asked.
    let within = KeyServer::start(&host.host, 9999, served(&issuer.jwks()));
    let _huge = KeyServer::start(&keys, 8801, served(&" ".repeat(2 << 20)));
    let _metadata = KeyServer::start(&keys, 8802, redirected("http://169.254.169.254/latest/meta-data"));
    let _loopback = KeyServer::start(&keys, 8803, redirected("http://127.0.0.1:9999/keys"));
    let _around = KeyServer::start(&keys, 8804, redirected("/again"));
    let _secret = KeyServer::start(&keys, 8805, served("root:x:0:0:root:/root:/bin/bash"));
    let at = |port: u16| format!("http://{}:{port}/keys", keys.v4());
    let urls = [
        (at(8800), "connect"),
        (at(8801), "too_large"),
        (at(8802), "blocked_address"),
        (at(8803), "blocked_address"),
        (at(8804), "redirect"),
        (at(8805), "no_keys"),
        ("http://127.0.0.1:9999/keys".to_owned(), "blocked_address"),
        ("http://[::ffff:127.0.0.1]:9999/keys".to_owned(), "blocked_address"),
        ("http://169.254.169.254/latest".to_owned(), "blocked_address"),
        ("http://240.240.0.9/keys".to_owned(), "blocked_address"),
    ];
    let rules: Vec<String> = (0..)
        .zip(&urls)
        .map(|(number, (url, _))| format!("{{ issuer = \"{ISSUER}/{number}\", jwksUri = \"{url}\" }}"))
        .collect();
    let selector = "selector = { matchLabels = { version = \"v1\" } }";
    town.mesh.enforce(&format!(
        "[[RequestAuthentication]]\nname = \"reviews\"\n{selector}\njwtRules = [{}]\n",
        rules.join(", ")
    ));
    let fetched =
        |outcome: &str| sample(host, &format!("baremesh_token_key_fetches_total{{outcome=\"{outcome}\"}} "));
    for outcome in ["connect", "too_large", "blocked_address", "redirect", "no_keys"] {
        wait_until(outcome, || fetched(outcome) > 0);
    }
    for number in 0..urls.len() {
        let exp = seconds_from_now(3600);
        let token = issuer.sign(&format!(r#"{{"iss":"{ISSUER}/{number}","exp":{exp}}}"#));
        let answer = call(&town.web, &token, &format!("{REVIEWS}/{number}"));
        check_refused(&answer, (401, "Jwks remote fetch is failed"));
        assert_eq!(v1.seen(&format!("/{number}")), 0);
    }
    let without = "baremesh_token_key_sources_without_keys ";
    wait_until("every source is counted", || sample(host, without) == urls.len() as u64);
    assert_eq!(fetched("ok"), 0);
    assert_eq!(within.asked(), 0, "nothing of the host itself was connected to");
    let said = std::fs::read_to_string(host.host.directory().join("log/agent.err")).unwrap_or_default();
    assert!(said.contains("jwks.allow") && !said.contains("root:x"), "{said}");
    // Where the host's own configuration allows it, it is.
    host.configure("jwks = { allow = [\"127.0.0.1/32\"] }\n");
    host.stop_agent();
    host.start();
    town.web.wait_for_endpoints("reviews.default", 1);
    let exp = seconds_from_now(3600);
    let token = issuer.sign(&format!(r#"{{"iss":"{ISSUER}/6","exp":{exp}}}"#));
    wait_until("keys of the host itself are taken", || call(&town.web, &token, REVIEWS).is_ok());
}

#[test]
fn routes_and_limits_go_by_claims_that_were_verified() {
    let town = Town::new("claims", 2);
    let [v1, v2] = town.open();
    let issuer = Issuer::p256("k1");
    let tokens = format!(
        "[[RequestAuthentication]]\nname = \"all\"\njwtRules = [{{ issuer = \"{ISSUER}\", jwks = '{}' }}]\n",
        issuer.jwks()
    );
    let beta = r#"match = [{ headers = { "@request.auth.claims.realm.group" = { exact = "beta" } } }]"#;
    let routes = routes(&format!("{{ {beta}, route = [{}] }}, {{ route = [{}] }}", to("v2", 1), to("v1", 1)));
    let limit = "[[RateLimit]]\nname = \"tenant\"\nselector = { matchLabels = { version = \"v1\" } }\n\
                 key = [{ claim = \"tenant\" }]\nlimit = { requests = 2, per = \"1h\" }\n";
    town.mesh.enforce(&(tokens + &subsets() + &routes + limit));
    let token = |claims: &str| issuer.token(claims);
    let instance = |answer: &Answer| answer.instance.clone().unwrap_or_default();
    let in_beta = token(r#","realm":{"group":["alpha","beta"]}"#);
    assert_eq!(instance(&call(&town.web, &in_beta, &format!("{REVIEWS}/beta"))), "v2");
    let (red, blue) = (token(r#","tenant":"red""#), token(r#","tenant":"blue""#));
    for _ in 0..2 {
        assert_eq!(instance(&call(&town.web, &red, REVIEWS)), "v1");
    }
    assert_eq!(call(&town.web, &red, REVIEWS).status, Some(429));
    assert_eq!(instance(&call(&town.web, &blue, REVIEWS)), "v1", "another tenant");
    // What nobody verified routes nothing and counts as nothing.
    let forged = Issuer::p256("k1").token(r#","realm":{"group":"beta"},"tenant":"green""#);
    let answer = call(&town.web, &forged, &format!("{REVIEWS}/forged"));
    assert_eq!((answer.status, &*answer.body), (Some(401), "Jwt verification fails"), "{answer:?}");
    assert_eq!((v1.seen("/forged"), v2.seen("/forged")), (0, 0));
    let claimed = ["--header", "realm: beta", "--header", "request.auth.claims.realm.group: beta"];
    assert_eq!(instance(&town.web.host.get(&claimed, REVIEWS)), "v1");
}
