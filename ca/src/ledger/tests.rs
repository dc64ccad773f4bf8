use std::cell::RefCell;
use std::sync::Arc;
use std::time::SystemTime;

use baremesh_model::name::Label;

use super::records::Outcome;
use super::*;
use crate::testing::{DAY, MINUTE, MemoryLog, Place, grants, label, now};
use crate::tls::NODE_GRACE;

const SECRET_HASH: [u8; 32] = [1; 32];

thread_local! {
    /// The log that this thread's ledgers share, where they do.
    static LOG: RefCell<Option<Arc<MemoryLog>>> = const { RefCell::new(None) };
}

fn ledger(place: &Place) -> Ledger {
    let ledger = Ledger::open(&place.path("control.db")).expect("a ledger");
    match LOG.with_borrow(Clone::clone) {
        None => ledger,
        Some(log) => {
            match ledger.share(&*log) {
                Ok(()) | Err(LedgerError::SharedAlready) => {}
                Err(error) => panic!("{error}"),
            }
            ledger.with_log(log).expect("a part in the log")
        }
    }
}

/// What holds for a ledger of one process holds for one that takes part in a log.
mod when_shared {
    use super::*;

    fn run(test: fn()) {
        LOG.set(Some(Arc::default()));
        test();
        let entries = LOG.take().expect("a log").entries.lock().expect("no panic before").len();
        assert!(entries > 1, "nothing went through the log");
    }

    macro_rules! tests {
        ($($name:ident)*) => { $(#[test] fn $name() { run(super::$name); })* };
    }

    tests! {
        redeems_once_and_answers_the_same_key_again_for_a_while
        refuses_unknown_wrong_late_and_foreign_tokens
        a_name_belongs_to_its_first_key_until_rejoined
        survives_a_restart_and_lists_what_it_knows
        keeps_records_of_certificates_for_so_long
        changes_have_versions_and_keep_their_files_for_so_long
        revokes_what_a_host_an_identity_or_a_serial_number_has_until_it_ends
        more_than_a_list_holds_are_not_revoked_and_nothing_changes
        a_host_has_no_more_valid_certificates_than_a_revocation_can_take
        a_revoked_node_credential_stays_revoked_for_as_long_as_it_could_renew_itself
        the_audit_keeps_so_much_of_what_somebody_asks_for
        what_is_signed_for_a_host_that_is_shut_out_meanwhile_is_not_recorded
    }
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
fn keeps_records_of_certificates_for_so_long() {
    let place = Place::new();
    let ledger = ledger(&place);
    let past = now() - ISSUED_KEPT - DAY;
    invite(&ledger, "t", TokenHost::Any);
    ledger.redeem(&attempt("t", "h1", 1), now()).expect("joined");
    ledger.lock().expect("read").execute("DELETE FROM audit", []).expect("cleared");
    let host = label("h1");
    let both = [issued("1".into(), past), issued("2".into(), now() + DAY)];
    assert_eq!(ledger.record_issued((&host, 0), &both, now()).expect("recorded"), Recorded::All);
    let count = |table: &str| -> i64 {
        let sql = format!("SELECT count(*) FROM {table}");
        ledger.lock().expect("read").query_row(&sql, [], |row| row.get(0)).expect("a count")
    };
    assert_eq!(count("issued"), 1);
    assert_eq!(ledger.issued_to("h1", now()).expect("issued")[0].serial, "2");
    // A serial is recorded once, and a batch is recorded whole or not at all.
    let batch = [issued("3".into(), now() + DAY), issued("2".into(), now() + DAY)];
    assert!(ledger.record_issued((&host, 0), &batch, now()).is_err());
    assert_eq!(count("issued"), 1);
}

fn line(what: &str, outcome: Outcome) -> AuditRecord {
    AuditRecord { at: now(), who: "h1".into(), what: what.into(), outcome, reason: String::new() }
}

#[test]
fn refusals_push_out_no_record_of_what_was_done() {
    let place = Place::new();
    let ledger = ledger(&place);
    ledger.audit(&line("apply", Outcome::Granted)).expect("recorded");
    // As many as make the next record's number one of those at which the audit is cleared.
    let many = (REFUSALS_KEPT / 256 + 2) * 256 - 2;
    ledger
        .lock()
        .expect("read")
        .execute(
            "INSERT INTO audit (at, who, what, outcome, reason)
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
             SELECT i, 'h1', 'x', 'refused', '' FROM n",
            [many],
        )
        .expect("inserted");
    ledger.audit(&line("the last", Outcome::Refused)).expect("recorded");
    let count: i64 = ledger
        .lock()
        .expect("read")
        .query_row("SELECT count(*) FROM audit", [], |row| row.get(0))
        .expect("a count");
    assert_eq!(count, REFUSALS_KEPT + 1);
    assert_eq!(ledger.audit_records(1).expect("records")[0].what, "the last");
    let first: String = ledger
        .lock()
        .expect("read")
        .query_row("SELECT what FROM audit ORDER BY id LIMIT 1", [], |row| row.get(0))
        .expect("a record");
    assert_eq!(first, "apply");
}

#[test]
fn changes_have_versions_and_keep_their_files_for_so_long() {
    let place = Place::new();
    let ledger = ledger(&place);
    let files = |text: &str| {
        let after = Some(text.to_owned());
        [FileChange { file: "a.toml".into(), before: None, after }]
    };
    let done = line("apply a", Outcome::Granted);
    assert_eq!(
        ledger.record_change(&done, "Service shop/a created", &files("1"), None).expect("recorded"),
        1
    );
    ledger.audit(&line("delete token x", Outcome::Granted)).expect("recorded");
    assert_eq!(
        ledger.record_change(&done, "Service shop/a changed", &files("2"), None).expect("recorded"),
        2
    );
    let changes = ledger.changes_since(1).expect("changes");
    assert_eq!(changes.iter().map(|change| change.version).collect::<Vec<_>>(), [2, 1]);
    assert_eq!((changes[0].who.as_str(), changes[0].files.as_deref()), ("h1", Some(&files("2")[..])));
    invite(&ledger, "t", TokenHost::Any);
    ledger.redeem(&attempt("t", "h1", 1), now()).expect("joined");
    let one = [issued("7".into(), now() + DAY)];
    assert_eq!(ledger.record_issued((&label("h1"), 0), &one, now()).expect("recorded"), Recorded::All);
    let all = AuditFilter { since: SystemTime::UNIX_EPOCH, limit: MAX_READ };
    let entries = ledger.audit_entries(all).expect("the audit");
    let versions: Vec<_> = entries.iter().map(|entry| entry.version).collect();
    assert_eq!(versions.iter().flatten().collect::<Vec<_>>(), [&2, &1]);
    assert!(entries.iter().any(|entry| entry.record.what.contains("serial 7")), "{entries:?}");
    assert!(entries.iter().any(|entry| entry.difference == "Service shop/a created"));
    let later = AuditFilter { since: now() + DAY, ..all };
    assert!(ledger.audit_entries(later).expect("the audit").is_empty());
    assert_eq!(ledger.audit_entries(AuditFilter { limit: 2, ..all }).expect("the audit").len(), 2);

    // Neither many versions nor large ones keep their files for ever; what they did stays readable.
    let insert = "INSERT INTO changes (version, audit, difference, files)
                  SELECT ?1, 1, 'large', json_array(json_object('file', 'b', 'before', NULL, 'after', printf('%.*c', ?2, 'x')))";
    for version in [3, 4] {
        ledger
            .lock()
            .expect("read")
            .execute(insert, rusqlite::params![version, VERSION_BYTES_KEPT / 2])
            .expect("inserted");
    }
    assert_eq!(ledger.record_change(&done, "one more", &files("3"), None).expect("recorded"), 5);
    let kept = |version: i64| {
        let changes = ledger.changes_since(version).expect("changes");
        changes.last().expect("a change").files.is_some()
    };
    assert_eq!([1, 2, 3, 4, 5].map(kept), [false, false, false, true, true]);
    ledger
        .lock()
        .expect("read")
        .execute("UPDATE sqlite_sequence SET seq = ?1 WHERE name = 'changes'", [VERSIONS_KEPT + 4])
        .expect("moved");
    let last = ledger.record_change(&done, "much later", &files("4"), None).expect("recorded");
    assert_eq!((last, kept(5), kept(last)), (VERSIONS_KEPT + 5, false, true));
    assert_eq!(ledger.changes(100).expect("changes").len(), 6);
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
    for some in records.chunks(MAX_VALID_OF_HOST) {
        assert_eq!(ledger.record_issued((&label(host), 0), some, now()).expect("recorded"), Recorded::All);
    }
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
        ledger
            .lock()
            .expect("read")
            .query_row("SELECT count(*) FROM revoked", [], |row| row.get(0))
            .expect("a count")
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
    for (number, some) in all.chunks(MAX_VALID_OF_HOST).enumerate() {
        host_with(&ledger, &format!("h{number}"), some);
    }
    let identity = issued(String::new(), now()).identity;
    let outcome = ledger.revoke_certificates(&Which::Identity(identity), now()).expect("asked");
    assert_eq!(outcome, Revocation::TooMany(serials.len()));
    assert!(ledger.revoked(now()).expect("a list").is_empty());
}

#[test]
fn a_host_has_no_more_valid_certificates_than_a_revocation_can_take() {
    let place = Place::new();
    let ledger = ledger(&place);
    let serials: Vec<String> = (0..MAX_VALID_OF_HOST - 1).map(|n| format!("s{n}")).collect();
    let all: Vec<_> = serials.iter().map(|serial| (serial.as_str(), now() + DAY)).collect();
    host_with(&ledger, "h1", &all);
    let record = |serials: &[&str], at| {
        let records: Vec<_> = serials.iter().map(|serial| issued((*serial).to_owned(), at + DAY)).collect();
        ledger.record_issued((&label("h1"), 0), &records, at).expect("asked")
    };
    assert_eq!(record(&["a", "b"], now()), Recorded::TooMany);
    assert_eq!(record(&["a"], now()), Recorded::All, "none of a batch that is too much was recorded");
    assert_eq!(record(&["b"], now()), Recorded::TooMany);
    assert_eq!(record(&["b"], now() + 2 * DAY), Recorded::All, "what has ended does not count");
}

#[test]
fn a_revoked_node_credential_stays_revoked_for_as_long_as_it_could_renew_itself() {
    let place = Place::new();
    let ledger = ledger(&place);
    host_with(&ledger, "h1", &[]);
    let node = |serial: &str| IssueRecord {
        identity: "spiffe://mesh.test/ns/nodes/sa/h1".to_owned(),
        ..issued(serial.to_owned(), now() + DAY)
    };
    let recorded = ledger.record_issued((&label("h1"), 0), &[node("a"), node("b")], now());
    assert_eq!(recorded.expect("recorded"), Recorded::All);
    let revoke = |serial: &str, at| match ledger.revoke_certificates(&Which::Serial(serial.into()), at) {
        Ok(Revocation::Done(records)) => records.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!(revoke("a", now()), 1);
    // The next revocation sweeps; within the grace it leaves the first alone, and takes one that has ended.
    let within = now() + DAY + NODE_GRACE - MINUTE;
    assert_eq!(revoke("b", within), 1);
    assert!(ledger.is_revoked("a").expect("read") && ledger.is_revoked("b").expect("read"));
    revoke("x", now() + DAY + NODE_GRACE + MINUTE);
    assert!(!ledger.is_revoked("a").expect("read"));
}

#[test]
fn the_audit_keeps_so_much_of_what_somebody_asks_for() {
    let place = Place::new();
    let ledger = ledger(&place);
    let long = "ä".repeat(10_000);
    let record = AuditRecord { reason: long.clone(), ..line(&long, Outcome::Refused) };
    ledger.audit(&record).expect("recorded");
    let kept = &ledger.audit_records(1).expect("read")[0];
    assert_eq!((kept.what.len(), kept.reason.len()), (4_096, 4_096));
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
    assert_eq!((record("a", 0), record("b", 1)), (Recorded::All, Recorded::NoMember));
    ledger.revoke_host(&label("h1")).expect("shut out");
    assert_eq!(record("c", 0), Recorded::NoMember);
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
    ledger(&place)
        .lock()
        .expect("read")
        .pragma_update(None, "user_version", schema::VERSION + 1)
        .expect("set");
    let refused = Ledger::open(&place.path("control.db")).expect_err("refused");
    assert!(matches!(refused, LedgerError::Newer { .. }), "{refused}");
}
