use std::sync::Arc;

use super::*;
use crate::leaf::{peer_identity, peer_leaf_facts};
use crate::ledger::TokenRefusal;
use crate::testing::{DAY, MINUTE, Place, identity, join_request, joined, label, now, token};
use crate::tls::NODE_GRACE;

/// Lists of revoked certificates have numbers.
mod lists;

fn ask(service: &CaService, node: &LeafFacts, paths: &[&str]) -> Vec<&'static str> {
    let key = PrivateKey::generate().expect("a key");
    let item =
        |path: &&str| IssueItem { identity: identity(path), request: key.request().expect("a request") };
    let request = IssueRequest { items: paths.iter().map(item).collect() };
    let answers = service.issue(node, &request, now()).expect("answers");
    for (answer, path) in answers.iter().zip(paths) {
        if let Ok(signed) = answer {
            assert_eq!(peer_identity(&signed.chain[0]), Ok(identity(path)));
        }
    }
    answers.iter().map(|answer| answer.as_ref().map_or_else(Refusal::code, |_| "ok")).collect()
}

fn whole_refusal(service: &CaService, node: &LeafFacts) -> &'static str {
    let key = PrivateKey::generate().expect("a key").request().expect("a request");
    let items = vec![IssueItem { identity: identity("ns/hosts/sa/h1"), request: key }];
    service.issue(node, &IssueRequest { items }, now()).expect_err("refused").code()
}

#[test]
fn lets_a_host_in_once_and_repeats_the_answer_to_the_same_key() {
    let place = Place::new();
    let service = place.service();
    let token = token(&service, TokenHost::Any, &["orders.shop"], now());
    let key = PrivateKey::generate().expect("a key");
    let request = join_request(&token, "h1", &key);
    let first = service.join(&request, now()).expect("joined");
    assert_eq!(peer_identity(&first.chain[0]), Ok(identity("ns/nodes/sa/h1")));
    assert_eq!(first.trust_domain, service.trust_domain());
    let again = service.join(&request, now() + 9 * MINUTE).expect("again");
    assert_eq!(again, first, "the same answer");
    let late = service.join(&request, now() + 11 * MINUTE).expect_err("too late");
    assert_eq!(late, Refusal::Token(TokenRefusal::Used));
    let other = join_request(&token, "h1", &PrivateKey::generate().expect("a key"));
    assert_eq!(service.join(&other, now()).expect_err("used").code(), "token_used");
    let audit = service.ledger().audit_records(10).expect("audit");
    assert_eq!(audit[0].outcome, Outcome::Refused);
    assert!(audit[0].reason.contains("used already"), "{}", audit[0].reason);
}

#[test]
fn issues_after_a_crash_between_redeeming_and_signing() {
    let place = Place::new();
    let key = PrivateKey::generate().expect("a key");
    let service = place.service();
    let token = token(&service, TokenHost::Any, &[], now());
    let attempt = crate::ledger::Redemption {
        token: token.id().to_owned(),
        secret_hash: token.secret_hash(),
        host: label("h1"),
        key: key.public().fingerprint(),
    };
    service.ledger().redeem(&attempt, now()).expect("redeemed");
    drop(service);

    let restarted = place.service();
    let stranger = join_request(&token, "h1", &PrivateKey::generate().expect("a key"));
    assert_eq!(restarted.join(&stranger, now()).expect_err("used").code(), "token_used");
    let answer = restarted.join(&join_request(&token, "h1", &key), now()).expect("issued after all");
    assert_eq!(peer_identity(&answer.chain[0]), Ok(identity("ns/nodes/sa/h1")));
}

#[test]
fn strangers_are_refused_without_a_write() {
    let place = Place::new();
    let service = place.service();
    let foreign = Token::mint(Fingerprint::from_bytes([0; 32]));
    let key = PrivateKey::generate().expect("a key");
    let before = service.ledger().audit_records(10).expect("audit").len();
    let refused = service.join(&join_request(&foreign, "h1", &key), now()).expect_err("refused");
    assert_eq!((refused.code(), refused.status().as_u16()), ("token_unknown", 403));
    let mut request = join_request(&foreign, "h1", &key);
    request.token = "hello".to_owned();
    assert_eq!(service.join(&request, now()).expect_err("refused").code(), "token_malformed");
    assert_eq!(service.ledger().audit_records(10).expect("audit").len(), before);
    assert!(service.ledger().hosts().expect("hosts").is_empty());
}

#[test]
fn expired_tokens_and_signing_requests_of_another_kind_let_nobody_in() {
    let place = Place::new();
    let service = place.service();
    let token = token(&service, TokenHost::Any, &[], now() - 61 * MINUTE);
    let key = PrivateKey::generate().expect("a key");
    let refused = service.join(&join_request(&token, "h1", &key), now()).expect_err("refused");
    assert_eq!(refused.code(), "token_expired");
    let rsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("a key");
    let request = rcgen::CertificateParams::default().serialize_request(&rsa).expect("a request");
    let mut asked = join_request(&token, "h1", &key);
    asked.request = request.der().to_vec();
    let refused = service.join(&asked, now()).expect_err("refused");
    assert_eq!(refused.code(), "request_refused");
    assert!(refused.to_string().contains("P-256"), "{refused}");
}

#[test]
fn issues_what_token_and_resources_grant_and_records_the_rest() {
    let place = Place::new();
    let service = place.service();
    let node = joined(&service, "h1", &["orders.shop", "web-*.shop"], now());
    let wanted = [
        "ns/shop/sa/orders",
        "ns/shop/sa/web-1",
        "ns/hosts/sa/h1",
        "ns/nodes/sa/h1",
        "ns/shop/sa/payments",
        "ns/hosts/sa/h2",
        "ns/nodes/sa/h2",
        "ns/control/sa/control",
    ];
    let (ok, no) = ("ok", "reserved");
    assert_eq!(ask(&service, &node, &wanted), [ok, ok, ok, ok, "not_granted", no, no, no]);
    let audit = service.ledger().audit_records(4).expect("audit");
    assert!(audit.iter().all(|line| line.outcome == Outcome::Refused && line.who == "h1"));
    assert!(audit[3].what.contains("payments") && audit[3].reason.contains("--service payments.shop"));
    let issued = service.ledger().issued_to("h1", now()).expect("issued");
    assert_eq!(issued.len(), 5, "four now, and the node credential at joining");

    service.set_grants(BTreeMap::from([(label("h1"), crate::testing::grants(&["*.*"]))]));
    assert_eq!(ask(&service, &node, &["ns/shop/sa/payments", "ns/control/sa/control"]), ["ok", "reserved"]);
    service.set_grants(BTreeMap::new());
    assert_eq!(ask(&service, &node, &["ns/shop/sa/payments", "ns/shop/sa/orders"]), ["not_granted", "ok"]);
}

#[test]
fn what_is_granted_no_longer_is_taken_back_and_nothing_else() {
    let place = Place::new();
    let service = place.service();
    let (h1, h2) =
        (joined(&service, "h1", &["orders.shop"], now()), joined(&service, "h2", &["payments.shop"], now()));
    let own = ["ns/shop/sa/orders", "ns/hosts/sa/h1", "ns/nodes/sa/h1"];
    let payments = "ns/shop/sa/payments";
    service.set_grants(BTreeMap::from([(label("h1"), crate::testing::grants(&["payments.shop"]))]));
    assert_eq!(ask(&service, &h1, &own), ["ok"; 3]);
    assert_eq!(ask(&service, &h1, &[payments, payments]), ["ok"; 2]);
    assert_eq!(ask(&service, &h2, &[payments]), ["ok"]);
    let sweep = || service.revoke_ungranted(("HostGrants", ", why"), now()).expect("swept");
    assert_eq!(sweep(), 0, "all of it is granted");
    service.set_grants(BTreeMap::new());
    assert_eq!(sweep(), 2);
    assert_eq!(sweep(), 0, "once");
    let revoked = service.ledger().revoked(now()).expect("revoked");
    let of_h1 = identity(payments).to_string();
    assert!(revoked.iter().all(|one| one.host == "h1" && one.identity == of_h1), "{revoked:?}");
    let audit = service.ledger().audit_records(1).expect("audit").remove(0);
    assert_eq!((&*audit.who, audit.outcome), ("HostGrants", Outcome::Granted));
    assert_eq!(audit.what, format!("revoke {of_h1} of host h1: 2 certificates, why"));
    let listed = service.revocation_list(now()).expect("a list").expect("not empty");
    assert_eq!(crate::revocation::Revoked::read(&listed, &service.roots()).expect("read").len(), 2);
    // A grant that comes back gives others, and not the former.
    service.set_grants(BTreeMap::from([(label("h1"), crate::testing::grants(&["*.shop"]))]));
    assert_eq!(ask(&service, &h1, &[payments]), ["ok"]);
    assert_eq!((sweep(), service.ledger().revoked(now()).expect("revoked").len()), (0, 2));
    // A host that was shut out is none of it, and what has ended needs no list.
    service.set_grants(BTreeMap::new());
    assert_eq!(service.revoke_ungranted(("", ""), now() + 2 * DAY).expect("swept"), 0);
    service.ledger().revoke_host(&label("h1")).expect("shut out");
    assert_eq!(sweep(), 0);
}

#[test]
fn refuses_identities_of_another_trust_domain_and_requests_that_prove_nothing() {
    let place = Place::new();
    let service = place.service();
    let node = joined(&service, "h1", &["*.*"], now());
    let key = PrivateKey::generate().expect("a key").request().expect("a request");
    let foreign = Identity::parse("spiffe://other.test/ns/hosts/sa/h1").expect("an identity");
    let mut forged = key.clone();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let items = vec![
        IssueItem { identity: foreign, request: key },
        IssueItem { identity: identity("ns/shop/sa/orders"), request: forged },
    ];
    let answers = service.issue(&node, &IssueRequest { items }, now()).expect("answers");
    let codes: Vec<_> = answers.iter().map(|answer| answer.as_ref().err().map(Refusal::code)).collect();
    assert_eq!(codes, [Some("other_trust_domain"), Some("request_refused")]);
    for size in [0, MAX_BATCH + 1] {
        let item = IssueItem { identity: identity("ns/hosts/sa/h1"), request: Vec::new() };
        let refused = service.issue(&node, &IssueRequest { items: vec![item; size] }, now());
        assert_eq!(refused.expect_err("refused"), Refusal::BatchSize(size));
    }
}

#[test]
fn only_the_current_node_credential_of_a_joined_host_counts() {
    let place = Place::new();
    let service = place.service();
    let old = joined(&service, "h1", &["*.shop"], now() - 10 * MINUTE);
    assert_eq!(ask(&service, &old, &["ns/shop/sa/orders"]), ["ok"]);
    for (path, code) in [
        ("ns/shop/sa/orders", "not_a_node"),
        ("ns/hosts/sa/h1", "not_a_node"),
        ("ns/control/sa/control", "not_a_node"),
        ("ns/nodes/sa/h2", "host_unknown"),
    ] {
        assert_eq!(whole_refusal(&service, &LeafFacts { identity: identity(path), ..old.clone() }), code);
    }
    let again = token(&service, TokenHost::Rejoin(label("h1")), &["*.web"], now());
    let key = PrivateKey::generate().expect("a key");
    let answer = service.join(&join_request(&again, "h1", &key), now()).expect("rejoined");
    let new = peer_leaf_facts(&answer.chain[0]).expect("facts");
    assert_eq!(whole_refusal(&service, &old), "superseded");
    assert_eq!(ask(&service, &new, &["ns/shop/sa/orders", "ns/web/sa/front"]), ["not_granted", "ok"]);
    service.ledger().revoke_host(&label("h1")).expect("revoked");
    assert_eq!(whole_refusal(&service, &new), "host_revoked");
    assert_eq!(service.check_node(&new), Err(Refusal::HostRevoked(label("h1"))));
}

/// What a renewal of the node credential by `node` comes to.
fn renewed(service: &CaService, node: &LeafFacts, at: SystemTime) -> LeafFacts {
    let key = PrivateKey::generate().expect("a key").request().expect("a request");
    let items = vec![IssueItem { identity: node.identity.clone(), request: key }];
    let answers = service.issue(node, &IssueRequest { items }, at).expect("answers");
    peer_leaf_facts(&answers[0].as_ref().expect("issued").chain[0]).expect("facts")
}

fn rejoined(service: &CaService, host: &str, at: SystemTime) -> LeafFacts {
    let token = token(service, TokenHost::Rejoin(label(host)), &[], at);
    let key = PrivateKey::generate().expect("a key");
    let answer = service.join(&join_request(&token, host, &key), at).expect("rejoined");
    peer_leaf_facts(&answer.chain[0]).expect("facts")
}

/// Certificates and the ledger count whole seconds, and all of this is within one.
#[test]
fn a_thief_s_renewal_counts_for_nothing_after_a_rejoin_however_close_in_time() {
    let place = Place::new();
    let service = place.service();
    let mut stolen = joined(&service, "h1", &[], now());
    for (rejoin, minutes_later) in [(1, 0), (2, 0), (3, 30)] {
        // The thief's clock matters as little as the authority's, which is set back here by up to half an hour.
        let (thief_s, ours) = (now() + minutes_later * MINUTE, now());
        let renewal = renewed(&service, &stolen, thief_s);
        let host = rejoined(&service, "h1", ours);
        assert_eq!(service.check_node(&renewal), Err(Refusal::Superseded(label("h1"))), "rejoin {rejoin}");
        assert_eq!(service.check_node(&stolen), Err(Refusal::Superseded(label("h1"))), "rejoin {rejoin}");
        assert_eq!(service.check_node(&host), Ok(label("h1")), "rejoin {rejoin}");
        stolen = renewed(&service, &host, ours);
        assert_eq!(service.check_node(&stolen), Ok(label("h1")), "a renewal of its own counts");
    }
}

#[test]
fn a_renewal_that_was_checked_before_a_rejoin_and_signed_after_counts_for_nothing() {
    let place = Place::new();
    let service = place.service();
    let stolen = joined(&service, "h1", &[], now());
    let checked = service.node(&stolen).expect("a member");
    let host = rejoined(&service, "h1", now());
    let key = PrivateKey::generate().expect("a key").public();
    let signed = service.sign_node(&key, &checked.name, checked.generation, now()).expect("signed");
    service.ledger().renew_node(&checked.name, &key.fingerprint(), checked.generation).expect("noted");
    let facts = peer_leaf_facts(&signed.chain[0]).expect("facts");
    assert_eq!(service.check_node(&facts), Err(Refusal::Superseded(label("h1"))));
    assert_eq!(service.check_node(&host), Ok(label("h1")));
    let record = service.ledger().host(&label("h1")).expect("read").expect("joined");
    assert_ne!(record.key, key.fingerprint(), "the successor's key stays");
}

#[test]
fn a_token_that_was_cut_off_while_joining_is_not_taken_up_after_another_took_the_name() {
    let place = Place::new();
    let service = place.service();
    let token = token(&service, TokenHost::Any, &[], now());
    let key = PrivateKey::generate().expect("a key");
    let attempt = crate::ledger::Redemption {
        token: token.id().to_owned(),
        secret_hash: token.secret_hash(),
        host: label("h1"),
        key: key.public().fingerprint(),
    };
    service.ledger().redeem(&attempt, now()).expect("redeemed, and nothing signed");
    rejoined(&service, "h1", now());
    let refused = service.join(&join_request(&token, "h1", &key), now()).expect_err("refused");
    assert_eq!(refused, Refusal::Token(TokenRefusal::Used));
}

#[test]
fn renewed_node_credentials_outlast_workloads() {
    let place = Place::new();
    let service = place.service();
    let node = joined(&service, "h1", &["*.shop"], now());
    assert!(node.not_after > now() + 29 * DAY);
    let key = PrivateKey::generate().expect("a key");
    let item = |path| IssueItem { identity: identity(path), request: key.request().expect("a request") };
    let items = vec![item("ns/nodes/sa/h1"), item("ns/shop/sa/orders")];
    let answers = service.issue(&node, &IssueRequest { items }, now()).expect("answers");
    let ends: Vec<_> = answers.into_iter().map(|answer| answer.expect("issued").not_after).collect();
    assert!(ends[0] > now() + 29 * DAY && ends[1] <= now() + DAY);
    let host = service.ledger().host(&label("h1")).expect("read").expect("joined");
    assert_eq!(host.key, key.public().fingerprint());
}

#[test]
fn tokens_cannot_outlast_their_limit() {
    let place = Place::new();
    let service = place.service();
    for lifetime in [Duration::ZERO, MAX_TOKEN_LIFETIME + MINUTE] {
        let request = TokenRequest {
            host: TokenHost::Any,
            grants: Vec::new(),
            addresses: Vec::new(),
            lifetime,
            who: "x".into(),
        };
        assert_eq!(service.create_token(request, now()).expect_err("refused"), Refusal::TokenLifetime);
    }
}

#[test]
fn two_hosts_racing_for_one_token_let_one_in() {
    let place = Place::new();
    let service = Arc::new(place.service());
    let token = token(&service, TokenHost::Any, &[], now());
    let racers: Vec<_> = (0..8)
        .map(|n| {
            let (service, token) = (service.clone(), token.clone());
            std::thread::spawn(move || {
                let key = PrivateKey::generate().expect("a key");
                service.join(&join_request(&token, &format!("h{n}"), &key), now()).is_ok()
            })
        })
        .collect();
    let won: Vec<_> = racers.into_iter().map(|racer| racer.join().expect("ran")).filter(|won| *won).collect();
    assert_eq!(won.len(), 1);
    assert_eq!(service.ledger().hosts().expect("hosts").len(), 1);
}

#[test]
fn the_ledger_files_hold_no_secret_and_are_nobody_elses() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let service = place.service();
    let text = token(&service, TokenHost::Any, &[], now()).reveal();
    let part = text.split('.').nth(2).expect("a secret");
    let secret = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, part);
    let secret = secret.expect("base64");
    for name in ["control.db", "control.db-wal"] {
        let stored = std::fs::read(place.path(name)).expect("read");
        for kept in [secret.as_slice(), part.as_bytes()] {
            assert!(!stored.windows(kept.len()).any(|window| window == kept), "{name}");
        }
        let mode = std::fs::metadata(place.path(name)).expect("a file").permissions().mode() & 0o7777;
        assert_eq!(mode, 0o600, "{name}");
    }
}

/// Looking after the authority is due once an hour of the clock on the wall, and after that clock was set back.
#[test]
fn a_clock_set_back_does_not_put_off_looking_after_the_authority() {
    let place = Place::new();
    let service = place.service();
    let ahead = now() + 400 * DAY;
    joined(&service, "h1", &[], ahead);
    let issued = || joined(&service, "h2", &[], now());
    let node = issued();
    let (chain, bundle) = (service.control_certificate(now()).expect("issued").chain, service.bundle());
    let verifier = crate::tls::PeerVerifier::new(Arc::new(bundle.expect("a bundle")));
    let verified = verifier.verify(&chain[0], &chain[1..], crate::tls::Purpose::Server, now());
    assert!(verified.is_ok(), "the intermediate that was made too early is replaced: {verified:?}");
    assert_eq!(service.check_node(&node), Ok(label("h2")));
}

/// A token is good for its time by the clock of the authority, whatever that does, and never for two hosts.
#[test]
fn a_clock_that_jumps_lets_no_second_host_in() {
    let place = Place::new();
    let service = place.service();
    let token = token(&service, TokenHost::Any, &[], now());
    let (key, other) = (PrivateKey::generate().expect("a key"), PrivateKey::generate().expect("a key"));
    let at = |host: &str, key: &PrivateKey, when| {
        let joined = service.join(&join_request(&token, host, key), when);
        joined.map(|_| "ok").unwrap_or_else(|refusal| refusal.code())
    };
    assert_eq!(at("h1", &key, now() + 2 * DAY), "token_expired", "ahead");
    assert_eq!(at("h1", &key, now() - 2 * DAY), "ok", "behind: it lasts longer, by as much as the clock is");
    for when in [now() - 3 * DAY, now(), now() + 2 * DAY] {
        assert_eq!(at("h2", &other, when), "token_used");
        assert_eq!(at("h1", &other, when), "token_used");
    }
    assert_eq!(at("h1", &key, now() - 3 * DAY), "ok", "the same key gets the same answer");
}

#[test]
fn a_clock_set_back_does_not_lock_hosts_out() {
    let place = Place::new();
    let service = place.service();
    let ahead = joined(&service, "h1", &[], now() + DAY);
    let key = PrivateKey::generate().expect("a key").request().expect("a request");
    let items = vec![IssueItem { identity: identity("ns/nodes/sa/h1"), request: key }];
    let request = IssueRequest { items };
    let answers = service.issue(&ahead, &request, now()).expect("answers");
    let renewed = peer_leaf_facts(&answers[0].as_ref().expect("issued").chain[0]).expect("facts");
    assert_eq!(service.check_node(&renewed), Ok(label("h1")));
}

/// The serial numbers of the list, and whether members take it.
fn listed(service: &CaService, at: SystemTime) -> Option<usize> {
    let list = service.revocation_list(at).expect("an answer")?;
    let bundle = service.bundle().expect("a bundle");
    Some(crate::revocation::Revoked::read(&list, bundle.roots()).expect("a list").len())
}

#[test]
fn a_revocation_is_listed_kept_and_dropped_with_the_end_of_what_it_covers() {
    let place = Place::new();
    let service = place.service();
    let node = joined(&service, "h1", &["*.shop"], now());
    assert_eq!(ask(&service, &node, &["ns/shop/sa/a", "ns/shop/sa/b"]), ["ok", "ok"]);
    assert_eq!(listed(&service, now()), None, "nothing is revoked, and there is no list");
    service.ledger().revoke_host(&label("h1")).expect("shut out");
    let which = crate::ledger::Which::Host("h1".to_owned());
    let revoked = service.revoke(&which, "op", now()).expect("revoked");
    assert_eq!(revoked.len(), 3, "both, and the node credential");
    assert_eq!(listed(&service, now()), Some(2), "which no member is shown");
    assert_eq!(whole_refusal(&service, &node), "host_revoked");
    // The same list after a restart: nobody has to be told anew.
    let first = service.revocation_list(now()).expect("a list");
    let again = place.service();
    assert_eq!(again.revocation_list(now() + MINUTE).expect("a list"), first);
    assert_eq!(listed(&again, now() + 2 * DAY), None, "what has ended is on no list");
    let audit = service.ledger().audit_records(20).expect("audit");
    assert!(audit.iter().any(|line| line.who == "op" && line.what.contains("3 certificates")), "{audit:?}");
}

#[test]
fn a_revoked_node_credential_opens_nothing_and_unknown_ones_are_said_to_be() {
    let place = Place::new();
    let service = place.service();
    let node = joined(&service, "h1", &["*.shop"], now());
    let serial = crate::ledger::Which::Serial(node.serial.clone());
    service.revoke(&serial, "op", now()).expect("revoked");
    assert_eq!(whole_refusal(&service, &node), "credential_revoked");
    let unknown = crate::ledger::Which::Identity("spiffe://mesh.test/ns/shop/sa/none".to_owned());
    let refused = service.revoke(&unknown, "op", now()).expect_err("refused");
    assert_eq!(refused.code(), "nothing_to_revoke");
}

/// A host that was off for longer than its credential lasts renews it with its own key, and gets nothing else for it.
#[test]
fn an_ended_node_credential_renews_itself_within_the_grace_and_is_good_for_nothing_else() {
    let place = Place::new();
    let service = place.service();
    let node = joined(&service, "h1", &["*.shop"], now());
    let key = PrivateKey::generate().expect("a key");
    let item =
        |path: &str| IssueItem { identity: identity(path), request: key.request().expect("a request") };
    let ask = |items: Vec<IssueItem>, at| {
        let answers = service.issue(&node, &IssueRequest { items }, at);
        answers.map(|answers| answers.len()).map_err(|refusal| refusal.code())
    };
    let (end, own) = (node.not_after, || item("ns/nodes/sa/h1"));
    assert_eq!(ask(vec![own()], end + MINUTE), Ok(1));
    assert_eq!(ask(vec![own()], end + NODE_GRACE - MINUTE), Ok(1));
    for (items, at) in [
        (vec![own()], end + NODE_GRACE + MINUTE),
        (vec![item("ns/shop/sa/a")], end + MINUTE),
        (vec![item("ns/hosts/sa/h1")], end + MINUTE),
        (vec![own(), item("ns/shop/sa/a")], end + MINUTE),
    ] {
        assert_eq!(ask(items, at), Err("credential_expired"), "{at:?}");
    }
    let ended = LeafFacts { not_after: now() - MINUTE, ..node.clone() };
    assert_eq!(service.check_node(&ended).expect_err("no state").code(), "credential_expired");
    service.ledger().revoke_host(&label("h1")).expect("shut out");
    assert_eq!(ask(vec![own()], end + MINUTE), Err("host_revoked"), "who was shut out stays out");
}
