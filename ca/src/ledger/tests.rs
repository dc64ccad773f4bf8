use std::time::SystemTime;

use baremesh_model::name::Label;

use super::records::Outcome;
use super::*;
use crate::testing::{DAY, MINUTE, Place, grants, label, now};

const SECRET_HASH: [u8; 32] = [1; 32];

fn ledger(place: &Place) -> Ledger {
    Ledger::open(&place.path("control.db")).expect("a ledger")
}

fn invite(ledger: &Ledger, id: &str, host: TokenHost) {
    let invitation = Invitation {
        host,
        grants: grants(&[&format!("{id}.shop")]),
        addresses: vec![format!("10.0.0.{}", id.as_bytes()[0]).parse().expect("an address")],
        expires_at: now() + DAY,
    };
    ledger.create_token(id, &SECRET_HASH, &invitation, now()).expect("a token");
}

fn attempt(token: &str, host: &str, key: u8) -> Redemption {
    Redemption { token: token.to_owned(), secret_hash: SECRET_HASH, host: label(host), key: [key; 32] }
}

fn refusal(result: Result<Redeemed, RedeemError>) -> TokenRefusal {
    match result {
        Err(RedeemError::Refused(refusal)) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

fn names(ledger: &Ledger, host: &str) -> Vec<String> {
    let host = ledger.host(&label(host)).expect("read").expect("joined");
    let addresses: Vec<String> = host.addresses.iter().map(ToString::to_string).collect();
    let expected = host.grants.iter().map(|grant| format!("10.0.0.{}", grant.to_string().as_bytes()[0]));
    assert_eq!(addresses, expected.collect::<Vec<_>>(), "addresses go with the services");
    host.grants.iter().map(ToString::to_string).collect()
}

#[test]
fn redeems_once_and_answers_the_same_key_again_for_a_while() {
    let place = Place::new();
    let ledger = ledger(&place);
    invite(&ledger, "t", TokenHost::Any);
    let start = now();
    assert_eq!(ledger.redeem(&attempt("t", "h1", 1), start).expect("redeemed"), Redeemed::ToIssue(0));
    // A crash came before the answer: the same key may still be issued to.
    assert_eq!(ledger.redeem(&attempt("t", "h1", 1), start + MINUTE).expect("again"), Redeemed::ToIssue(0));
    ledger.keep_answer("t", b"chain").expect("kept");
    let answered = Redeemed::Answered(b"chain".to_vec());
    assert_eq!(ledger.redeem(&attempt("t", "h1", 1), start + 9 * MINUTE).expect("again"), answered);
    for (late, host, key) in [(11, "h1", 1), (0, "h1", 2), (0, "h2", 1)] {
        let result = ledger.redeem(&attempt("t", host, key), start + late * MINUTE);
        assert_eq!(refusal(result), TokenRefusal::Used, "{late} {host} {key}");
    }
}

#[test]
fn refuses_unknown_wrong_late_and_foreign_tokens() {
    let place = Place::new();
    let ledger = ledger(&place);
    invite(&ledger, "t", TokenHost::Only(label("h1")));
    assert_eq!(refusal(ledger.redeem(&attempt("x", "h1", 1), now())), TokenRefusal::Unknown);
    let mut wrong = attempt("t", "h1", 1);
    wrong.secret_hash[31] ^= 1;
    assert_eq!(refusal(ledger.redeem(&wrong, now())), TokenRefusal::Unknown);
    let other = TokenRefusal::OtherHost { expected: label("h1"), found: label("h2") };
    assert_eq!(refusal(ledger.redeem(&attempt("t", "h2", 1), now())), other);
    let late = refusal(ledger.redeem(&attempt("t", "h1", 1), now() + 2 * DAY));
    assert!(matches!(late, TokenRefusal::Expired { .. }), "{late}");
    assert!(ledger.host(&label("h1")).expect("read").is_none(), "nobody was let in");
    assert!(ledger.delete_token("t").expect("deleted") && !ledger.delete_token("t").expect("gone"));
}

#[test]
fn a_name_belongs_to_its_first_key_until_rejoined() {
    let place = Place::new();
    let ledger = ledger(&place);
    for (id, host) in [
        ("a", TokenHost::Any),
        ("b", TokenHost::Any),
        ("c", TokenHost::Any),
        ("d", TokenHost::Rejoin(label("h1"))),
        ("e", TokenHost::Any),
        ("f", TokenHost::Rejoin(label("h1"))),
    ] {
        invite(&ledger, id, host);
    }
    ledger.redeem(&attempt("a", "h1", 1), now()).expect("joined");
    let taken = refusal(ledger.redeem(&attempt("b", "h1", 2), now()));
    assert_eq!(taken, TokenRefusal::HostTaken(label("h1")));
    assert!(taken.to_string().contains("--rejoin h1"), "{taken}");
    ledger.redeem(&attempt("c", "h1", 1), now()).expect("its own key");
    assert_eq!(names(&ledger, "h1"), ["a.shop", "c.shop"]);
    ledger.redeem(&attempt("d", "h1", 3), now()).expect("rejoined");
    assert_eq!(names(&ledger, "h1"), ["d.shop"], "the earlier host's grants went with it");

    assert!(ledger.revoke_host(&label("h1")).expect("revoked"));
    assert!(!ledger.revoke_host(&label("h9")).expect("nobody"));
    assert_eq!(refusal(ledger.redeem(&attempt("e", "h1", 3), now())), TokenRefusal::HostRevoked(label("h1")));
    assert_eq!(refusal(ledger.redeem(&attempt("d", "h1", 3), now())), TokenRefusal::HostRevoked(label("h1")));
    ledger.redeem(&attempt("f", "h1", 4), now()).expect("let in again");
    assert!(!ledger.host(&label("h1")).expect("read").expect("joined").revoked);
}

#[test]
fn survives_a_restart_and_lists_what_it_knows() {
    let place = Place::new();
    invite(&ledger(&place), "t", TokenHost::Only(label("h1")));
    ledger(&place).redeem(&attempt("t", "h1", 1), now()).expect("redeemed");
    let ledger = ledger(&place);
    assert_eq!(refusal(ledger.redeem(&attempt("t", "h1", 2), now())), TokenRefusal::Used);
    let tokens = ledger.tokens().expect("tokens");
    assert_eq!(tokens[0].redeemed_by, Some(label("h1")));
    assert_eq!(tokens[0].invitation.host, TokenHost::Only(label("h1")));
    let hosts: Vec<Label> = ledger.hosts().expect("hosts").into_iter().map(|host| host.name).collect();
    assert_eq!(hosts, [label("h1")]);
    assert!(!ledger.delete_token("t").expect("kept"), "a redeemed token stays known");
    let audit = ledger.audit_records(10).expect("audit");
    assert_eq!((audit.len(), audit[0].outcome, audit[0].who.as_str()), (1, Outcome::Granted, "h1"));
}

fn issued(serial: String, not_after: SystemTime) -> IssueRecord {
    let (identity, host) = ("spiffe://mesh.test/ns/shop/sa/orders".to_owned(), "h1".to_owned());
    IssueRecord { serial, identity, host, issued_at: now(), not_after, root: String::new() }
}

#[test]
fn bounds_its_records() {
    let place = Place::new();
    let ledger = ledger(&place);
    let past = now() - ISSUED_KEPT - DAY;
    invite(&ledger, "t", TokenHost::Any);
    ledger.redeem(&attempt("t", "h1", 1), now()).expect("joined");
    ledger.lock().execute("DELETE FROM audit", []).expect("cleared");
    let host = label("h1");
    let both = [issued("1".into(), past), issued("2".into(), now() + DAY)];
    assert!(ledger.record_issued((&host, 0), &both, now()).expect("recorded"));
    let count = |table: &str| -> i64 {
        let sql = format!("SELECT count(*) FROM {table}");
        ledger.lock().query_row(&sql, [], |row| row.get(0)).expect("a count")
    };
    assert_eq!(count("issued"), 1);
    assert_eq!(ledger.issued_to("h1", now()).expect("issued")[0].serial, "2");
    // A serial is recorded once, and a batch is recorded whole or not at all.
    let batch = [issued("3".into(), now() + DAY), issued("2".into(), now() + DAY)];
    assert!(ledger.record_issued((&host, 0), &batch, now()).is_err());
    assert_eq!(count("issued"), 1);

    ledger
        .lock()
        .execute(
            "INSERT INTO audit (id, at, who, what, outcome, reason) VALUES (?1, 0, '', '', '', '')",
            [AUDIT_KEPT],
        )
        .expect("inserted");
    let line = AuditRecord {
        at: now(),
        who: "h1".into(),
        what: "x".into(),
        outcome: Outcome::Refused,
        reason: "y".into(),
    };
    for _ in 0..3 {
        ledger.audit(&line).expect("recorded");
    }
    assert_eq!(count("audit"), 4);
    ledger.lock().execute("UPDATE audit SET id = id - ?1 WHERE id = ?1", [AUDIT_KEPT]).expect("moved");
    ledger.audit(&line).expect("recorded");
    assert_eq!(count("audit"), 4, "the oldest went when the newest came");
}

/// A host that joined, and has certificates with these serial numbers until then.
fn host_with(ledger: &Ledger, host: &str, certificates: &[(&str, SystemTime)]) {
    invite(ledger, host, TokenHost::Any);
    ledger.redeem(&attempt(host, host, 1), now()).expect("joined");
    let of = |(serial, end): &(&str, SystemTime)| IssueRecord {
        host: host.to_owned(),
        ..issued((*serial).to_owned(), *end)
    };
    let records: Vec<_> = certificates.iter().map(of).collect();
    assert!(ledger.record_issued((&label(host), 0), &records, now()).expect("recorded"));
}

#[test]
fn revokes_what_a_host_an_identity_or_a_serial_number_has_until_it_ends() {
    let place = Place::new();
    let ledger = ledger(&place);
    let (soon, later) = (now() + MINUTE, now() + DAY);
    host_with(&ledger, "h1", &[("a", soon), ("b", later), ("c", now() - MINUTE)]);
    host_with(&ledger, "h2", &[("d", later)]);
    let revoke = |which: Which| match ledger.revoke_certificates(&which, now()).expect("revoked") {
        Revocation::Done(records) => records.into_iter().map(|record| record.serial).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(revoke(Which::Serial("b".into())), ["b"]);
    assert_eq!(revoke(Which::Serial("b".into())), [""; 0], "once is enough");
    assert_eq!(revoke(Which::Serial("x".into())), [""; 0]);
    assert_eq!(revoke(Which::Host("h1".into())), ["a"], "what has ended needs no list");
    assert_eq!(revoke(Which::Identity("spiffe://mesh.test/ns/shop/sa/orders".into())), ["d"]);
    let at =
        |time| ledger.revoked(time).expect("a list").into_iter().map(|one| one.serial).collect::<Vec<_>>();
    let mut all = at(now());
    all.sort();
    assert_eq!(all, ["a", "b", "d"]);
    assert!(ledger.is_revoked("a").expect("read") && !ledger.is_revoked("c").expect("read"));
    assert!(!at(now() + 2 * MINUTE).contains(&"a".to_owned()), "its end takes it off the list");
    let count = || -> i64 {
        ledger.lock().query_row("SELECT count(*) FROM revoked", [], |row| row.get(0)).expect("a count")
    };
    ledger.revoke_certificates(&Which::Serial("x".into()), now() + 2 * DAY).expect("swept");
    assert_eq!(count(), 0, "and the next revocation out of the ledger");
}

#[test]
fn more_than_a_list_holds_are_not_revoked_and_nothing_changes() {
    let place = Place::new();
    let ledger = ledger(&place);
    let serials: Vec<String> = (0..=crate::revocation::MAX_REVOKED).map(|n| format!("s{n}")).collect();
    let all: Vec<_> = serials.iter().map(|serial| (serial.as_str(), now() + DAY)).collect();
    host_with(&ledger, "h1", &all);
    let outcome = ledger.revoke_certificates(&Which::Host("h1".into()), now()).expect("asked");
    assert_eq!(outcome, Revocation::TooMany(serials.len()));
    assert!(ledger.revoked(now()).expect("a list").is_empty());
}

#[test]
fn what_is_signed_for_a_host_that_is_shut_out_meanwhile_is_not_recorded() {
    let place = Place::new();
    let ledger = ledger(&place);
    host_with(&ledger, "h1", &[]);
    let record = |serial: &str, generation| {
        let one = [issued(serial.to_owned(), now() + DAY)];
        ledger.record_issued((&label("h1"), generation), &one, now()).expect("asked")
    };
    assert!(record("a", 0) && !record("b", 1));
    ledger.revoke_host(&label("h1")).expect("shut out");
    assert!(!record("c", 0));
    let issued: Vec<_> = ledger.issued_to("h1", now()).expect("a list");
    assert_eq!(issued.len(), 1, "{issued:?}");
}

#[test]
fn brings_the_first_schema_up_to_date() {
    let place = Place::new();
    let first = Connection::open(place.path("control.db")).expect("a file");
    first.execute_batch(schema::STEPS[0]).expect("the first schema");
    first
        .execute_batch(
            "INSERT INTO hosts VALUES ('h1', 'a.shop', zeroblob(32), 1, 0); PRAGMA user_version = 1",
        )
        .expect("a host");
    drop(first);
    let host = ledger(&place).host(&label("h1")).expect("read").expect("kept");
    assert_eq!((host.generation, host.addresses.len(), host.grants.len()), (0, 0, 1));
}

#[test]
fn leaves_a_later_schema_alone() {
    let place = Place::new();
    ledger(&place).lock().pragma_update(None, "user_version", schema::VERSION + 1).expect("set");
    let refused = Ledger::open(&place.path("control.db")).expect_err("refused");
    assert!(matches!(refused, LedgerError::Newer { .. }), "{refused}");
}
