use std::sync::atomic::Ordering;
use std::sync::{Barrier, Mutex};
use std::time::SystemTime;

use super::*;
use crate::ledger::{Invitation, IssueRecord, Recorded, RedeemError, Redeemed, Redemption, TokenHost, Which};
use crate::testing::{
    ANSWER_LOST, ANSWER_LOST_THEN_AWAY, AWAY, DAY, MemoryLog, Place, WELL, grants, label, now,
};

const SECRET_HASH: [u8; 32] = [1; 32];

/// A log's entries by their positions.
type Entries = std::collections::BTreeMap<u64, Vec<u8>>;

/// Two processes that share a ledger, and the log.
struct Two {
    log: Arc<MemoryLog>,
    places: [Place; 2],
    both: [Ledger; 2],
}

impl Two {
    fn new() -> Self {
        let (log, places) = (Arc::new(MemoryLog::default()), [Place::new(), Place::new()]);
        let [one, other] = places.each_ref().map(|place| place.path("control.db"));
        let first = Ledger::open(&one).expect("a ledger");
        invite(&first, "before");
        first.share(&*log).expect("shared");
        drop(first);
        Ledger::copy(&one, &other).expect("a copy");
        let both = [one, other].map(|path| part(&path, &log));
        Self { log, places, both }
    }

    fn fault(&self, fault: u8) {
        self.log.fault.store(fault, Ordering::SeqCst);
        // What was noticed before is forgotten: no test waits for time to pass.
        for ledger in &self.both {
            if let Some(sharing) = &mut ledger.inside().sharing {
                (sharing.confirmed, sharing.away) = (None, None);
            }
        }
    }

    /// Everything that is shared, as both files have it once they have looked.
    fn agree(&self) {
        let dump = |ledger: &Ledger| {
            ledger.inside().catch_up().expect("caught up");
            let held = ledger.lock().expect("read");
            let mut dump = Vec::new();
            for table in ["tokens", "hosts", "issued", "audit", "revoked", "revocation_list", "operators"] {
                let mut statement =
                    held.prepare(&format!("SELECT * FROM {table} ORDER BY 1")).expect("a table");
                let count = statement.column_count();
                let rows = statement.query_map([], |row| {
                    (0..count)
                        .map(|index| row.get::<_, rusqlite::types::Value>(index))
                        .collect::<Result<Vec<_>, _>>()
                });
                dump.extend(rows.expect("rows").map(|row| format!("{table} {:?}", row.expect("a row"))));
            }
            dump
        };
        let [one, other] = self.both.each_ref().map(dump);
        assert!(!one.is_empty());
        assert_eq!(one, other);
    }
}

fn part(path: &std::path::Path, log: &Arc<MemoryLog>) -> Ledger {
    Ledger::open(path).expect("a ledger").with_log(log.clone()).expect("a part in the log")
}

fn invite(ledger: &Ledger, id: &str) {
    let invitation = Invitation {
        host: TokenHost::Any,
        grants: grants(&["orders.shop"]),
        addresses: Vec::new(),
        expires_at: now() + DAY,
    };
    ledger.create_token(id, &SECRET_HASH, &invitation, now()).expect("a token");
}

fn redeem(ledger: &Ledger, token: &str, host: &str, key: u8) -> Result<Redeemed, RedeemError> {
    let attempt =
        Redemption { token: token.to_owned(), secret_hash: SECRET_HASH, host: label(host), key: [key; 32] };
    ledger.redeem(&attempt, now())
}

fn issued(serial: &str, host: &str) -> IssueRecord {
    let identity = "spiffe://mesh.test/ns/shop/sa/orders".to_owned();
    let (serial, host) = (serial.to_owned(), host.to_owned());
    IssueRecord { serial, identity, host, issued_at: now(), not_after: now() + DAY, root: String::new() }
}

fn record(ledger: &Ledger, serial: &str, host: &str) -> Result<Recorded, LedgerError> {
    ledger.record_issued((&label(host), 0), &[issued(serial, host)], now())
}

#[test]
fn a_token_that_two_processes_are_shown_at_once_is_redeemed_by_one_of_them() {
    let two = Two::new();
    for round in 0..20_u8 {
        let token = format!("t{round}");
        invite(&two.both[usize::from(round % 2)], &token);
        let (start, outcomes) = (Barrier::new(2), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for (index, ledger) in two.both.iter().enumerate() {
                let (token, start, outcomes) = (&token, &start, &outcomes);
                scope.spawn(move || {
                    start.wait();
                    let host = format!("h{round}-{index}");
                    let outcome = redeem(ledger, token, &host, index as u8);
                    outcomes.lock().expect("no panic before").push(outcome);
                });
            }
        });
        let outcomes = outcomes.into_inner().expect("no panic before");
        let let_in = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Redeemed::ToIssue(0)))).count();
        let used = |outcome: &&Result<_, _>| {
            matches!(outcome, Err(RedeemError::Refused(crate::ledger::TokenRefusal::Used)))
        };
        assert_eq!((let_in, outcomes.iter().filter(used).count()), (1, 1), "{outcomes:?}");
    }
    two.agree();
    assert_eq!(two.both[0].hosts().expect("hosts").len(), 20);
}

#[test]
fn who_joined_at_one_is_a_member_at_the_other_until_one_shuts_it_out() {
    let two = Two::new();
    let [one, other] = &two.both;
    assert_eq!(redeem(one, "before", "h1", 1).expect("let in"), Redeemed::ToIssue(0));
    one.keep_answer("before", b"chain").expect("kept");
    // The answer of one is given again by the other.
    assert_eq!(redeem(other, "before", "h1", 1).expect("again"), Redeemed::Answered(b"chain".to_vec()));
    assert_eq!(record(other, "a", "h1").expect("recorded"), Recorded::All);
    other.renew_node(&label("h1"), &[9; 32], 0).expect("renewed");
    assert!(one.revoke_host(&label("h1")).expect("shut out"));
    assert_eq!(record(other, "b", "h1").expect("asked"), Recorded::NoMember);
    let revoked = one.revoke_certificates(&Which::Host("h1".into()), now()).expect("revoked");
    assert!(
        matches!(revoked, crate::ledger::Revocation::Done(all) if all.len() == 1 && all[0].serial == "a")
    );
    other.inside().catch_up().expect("caught up");
    assert!(other.is_revoked("a").expect("read"));
    assert_eq!(one.issued_to("h1", SystemTime::now()).expect("a list").len(), 1);
    two.agree();
}

#[test]
fn many_changes_at_once_leave_both_with_the_same() {
    let two = Two::new();
    std::thread::scope(|scope| {
        for (index, ledger) in two.both.iter().enumerate() {
            scope.spawn(move || {
                for round in 0..25 {
                    let name = format!("p{index}-{round}");
                    invite(ledger, &name);
                    redeem(ledger, &name, &name, 1).expect("let in");
                    assert_eq!(record(ledger, &name, &name).expect("recorded"), Recorded::All);
                    if round % 3 == 0 {
                        ledger.revoke_certificates(&Which::Serial(name), now()).expect("revoked");
                    }
                }
            });
        }
    });
    two.agree();
    assert_eq!(two.both[1].hosts().expect("hosts").len(), 50);
    assert_eq!(two.both[0].revoked(now()).expect("a list").len(), 18);
}

#[test]
fn while_the_store_is_away_nothing_is_decided_and_nothing_changes() {
    let two = Two::new();
    let [one, other] = &two.both;
    redeem(one, "before", "h1", 1).expect("let in");
    invite(one, "t");
    two.fault(AWAY);
    let refused = redeem(one, "t", "h2", 2).expect_err("refused");
    assert!(matches!(refused, RedeemError::Ledger(LedgerError::Away(_))), "{refused}");
    assert!(matches!(record(other, "a", "h1"), Err(LedgerError::Away(_))));
    assert!(
        matches!(other.host(&label("h1")), Err(LedgerError::Away(_))),
        "who only reads is not told what may be old"
    );
    two.fault(WELL);
    assert_eq!(redeem(other, "t", "h2", 2).expect("let in"), Redeemed::ToIssue(0));
    two.agree();
}

#[test]
fn an_answer_that_is_lost_is_looked_for_and_what_was_done_is_done_once() {
    let two = Two::new();
    let [one, other] = &two.both;
    two.fault(ANSWER_LOST);
    assert_eq!(redeem(one, "before", "h1", 1).expect("found"), Redeemed::ToIssue(0));
    two.fault(WELL);
    invite(one, "t");
    two.fault(ANSWER_LOST_THEN_AWAY);
    assert!(matches!(redeem(one, "t", "h2", 2), Err(RedeemError::Ledger(LedgerError::Away(_)))));
    two.fault(WELL);
    // It stands in the log: nobody else gets in by it, and the same key gets on, at the other process too.
    assert!(matches!(redeem(other, "t", "h3", 3), Err(RedeemError::Refused(_))));
    assert_eq!(redeem(other, "t", "h2", 2).expect("on"), Redeemed::ToIssue(0));
    two.agree();
}

#[test]
fn entries_that_no_control_process_wrote_stop_everything_and_change_nothing() {
    let forge = |what: &dyn Fn(&mut Entries, u64)| {
        let two = Two::new();
        redeem(&two.both[0], "before", "h1", 1).expect("let in");
        two.agree();
        let position = two.both[0].position().expect("a position");
        what(&mut two.log.entries.lock().expect("no panic before"), position + 1);
        let refused = redeem(&two.both[1], "t", "h9", 9).expect_err("refused");
        assert!(
            matches!(refused, RedeemError::Ledger(LedgerError::Forged { position: at }) if at == position + 1),
            "{refused}"
        );
        assert!(matches!(record(&two.both[0], "a", "h1"), Err(LedgerError::Forged { .. })));
        let count: i64 = two.both[1]
            .inside()
            .connection
            .query_row("SELECT count(*) FROM hosts", [], |row| row.get(0))
            .expect("a count");
        assert_eq!(count, 1);
    };
    // Somebody who can write, and does not know the secret.
    let host = r#"{"once":"","changes":[{"put":["hosts",{"name":"evil"}]}]}"#;
    forge(&|entries, next| _ = entries.insert(next, format!("{}\n{host}", "0".repeat(64)).into_bytes()));
    forge(&|entries, next| _ = entries.insert(next, Sealed::first(&[7; 32]).bytes));
    forge(&|entries, next| _ = entries.insert(next, b"no entry".to_vec()));
    forge(&|entries, next| _ = entries.insert(next, Vec::new()));
    // What was written once does not count again.
    forge(&|entries, next| {
        let last = entries[&(next - 1)].clone();
        entries.insert(next, last);
    });
    // One letter of a good entry.
    forge(&|entries, next| {
        let mut last = entries[&(next - 1)].clone();
        let middle = last.len() / 2;
        last[middle] ^= 1;
        entries.insert(next, last);
    });
}

#[test]
fn a_log_that_was_set_back_or_forgotten_is_not_followed() {
    let lose = |lose: &dyn Fn(&mut Entries)| {
        let two = Two::new();
        for token in ["a", "b", "c"] {
            invite(&two.both[0], token);
        }
        lose(&mut two.log.entries.lock().expect("no panic before"));
        let refused = redeem(&two.both[0], "a", "h1", 1).expect_err("refused");
        assert!(matches!(refused, RedeemError::Ledger(LedgerError::OtherLog { .. })), "{refused}");
        assert!(refused.to_string().contains("baremesh restore"), "{refused}");
    };
    lose(&|entries| _ = entries.pop_last());
    lose(&|entries| entries.clear());
}

/// Deletes the newest entry, as whoever can write to the store may; the head names the one before, or stays as it is.
fn delete_newest(log: &MemoryLog, older_head: bool) {
    let mut entries = log.entries.lock().expect("no panic before");
    entries.pop_last();
    if older_head {
        let (position, bytes) = entries.last_key_value().expect("an entry");
        log.write_head(&entry::head(*position, &entry::seal_of(bytes).expect("a seal")));
    }
}

#[test]
fn a_log_whose_newest_entry_was_deleted_is_followed_by_nobody_and_forks_nowhere() {
    for older_head in [false, true] {
        // A token that was used at one, and a host that one shut out: the other has not seen it.
        let two = Two::new();
        let [one, other] = &two.both;
        invite(one, "t");
        redeem(one, "t", "h1", 1).expect("let in");
        two.agree();
        redeem(one, "before", "h2", 2).expect("let in");
        delete_newest(&two.log, older_head);
        for (ledger, host) in [(other, "h3"), (one, "h4")] {
            let refused = redeem(ledger, "before", host, 3).expect_err("refused");
            assert!(matches!(refused, RedeemError::Ledger(LedgerError::OtherLog { .. })), "{refused}");
            assert!(refused.to_string().contains("Nothing is signed"), "{refused}");
        }
        let two = Two::new();
        let [one, other] = &two.both;
        redeem(one, "before", "h1", 1).expect("let in");
        two.agree();
        assert!(one.revoke_host(&label("h1")).expect("shut out"));
        delete_newest(&two.log, older_head);
        assert!(matches!(record(other, "a", "h1"), Err(LedgerError::OtherLog { .. })));
        // Nor after a start, nor by a copy of its file.
        let place = Place::new();
        Ledger::copy(&two.places[1].path("control.db"), &place.path("control.db")).expect("a copy");
        let copy = Ledger::open(&place.path("control.db")).expect("a ledger");
        assert!(matches!(copy.with_log(two.log.clone()), Err(LedgerError::OtherLog { .. })));
    }
}

#[test]
fn a_head_that_somebody_wrote_or_took_away_stops_everything() {
    for bytes in [Some(&b"7\nno seal"[..]), None] {
        let two = Two::new();
        redeem(&two.both[0], "before", "h1", 1).expect("let in");
        two.agree();
        match bytes {
            Some(bytes) => two.log.write_head(bytes),
            None => two.log.head.lock().expect("no panic before").0 = None,
        }
        for ledger in &two.both {
            assert!(matches!(record(ledger, "a", "h1"), Err(LedgerError::OtherLog { .. })));
        }
    }
}

#[test]
fn a_process_that_ended_before_it_knew_the_head_goes_on() {
    let two = Two::new();
    redeem(&two.both[0], "before", "h1", 1).expect("let in");
    two.agree();
    for (ledger, serial) in two.both.iter().zip(["a", "b"]) {
        ledger.inside().connection.execute("UPDATE shared SET head = 0", []).expect("forgotten");
        assert_eq!(record(ledger, serial, "h1").expect("recorded"), Recorded::All);
        let head = Standing::read(&ledger.inside().connection).expect("read").expect("shared").head;
        assert_eq!(Some(head), two.log.head().expect("a head").map(|head| head.modified));
    }
}

#[test]
fn a_file_that_is_shared_is_changed_through_the_log_alone() {
    let two = Two::new();
    let alone = Ledger::open(&two.places[0].path("control.db")).expect("opened");
    assert!(matches!(redeem(&alone, "before", "h1", 1), Err(RedeemError::Ledger(LedgerError::Detached))));
    assert!(matches!(alone.share(&MemoryLog::default()), Err(LedgerError::SharedAlready)));
    let place = Place::new();
    let stranger = Ledger::open(&place.path("control.db")).expect("opened");
    assert!(matches!(stranger.share(&*two.log), Err(LedgerError::LogTaken)));
    invite(&stranger, "its-own");
    assert!(matches!(stranger.with_log(two.log), Err(LedgerError::NotShared)));
    alone.leave_log().expect("left");
    redeem(&alone, "before", "h1", 1).expect("a ledger of its own again");
}

#[test]
fn sharing_that_was_cut_short_is_done_again() {
    let (place, log) = (Place::new(), Arc::new(MemoryLog::default()));
    let ledger = Ledger::open(&place.path("control.db")).expect("opened");
    log.fault.store(ANSWER_LOST, Ordering::SeqCst);
    assert!(matches!(ledger.share(&*log), Err(LedgerError::Away(_))));
    log.fault.store(WELL, Ordering::SeqCst);
    ledger.share(&*log).expect("shared");
    invite(&ledger.with_log(log).expect("a part"), "t");
}

#[test]
fn the_log_keeps_so_many_entries() {
    let log = MemoryLog::default();
    for position in 1..=200 {
        let before = log.head().expect("a head").map_or(0, |head| head.modified);
        log.append(position, b"x", b"head", before).expect("appended");
    }
    let left = |position| {
        forget(&log, position);
        log.entries.lock().expect("no panic before").first_key_value().map(|(first, _)| *first)
    };
    assert_eq!(left(ENTRIES_KEPT + FORGOTTEN_AT_ONCE - 1), Some(1));
    assert_eq!(left(ENTRIES_KEPT + FORGOTTEN_AT_ONCE), Some(FORGOTTEN_AT_ONCE));
    assert_eq!(left(ENTRIES_KEPT + 2 * FORGOTTEN_AT_ONCE), Some(2 * FORGOTTEN_AT_ONCE));
}
