//! The numbers of lists of revoked certificates.

use std::sync::Barrier;

use super::*;
use crate::ledger::{Ledger, Which};
use crate::revocation::Revoked;
use crate::testing::MemoryLog;

/// The number of the list as members read it, and how many it names.
fn list(service: &CaService, at: SystemTime) -> (u64, usize) {
    let text = service.revocation_list(at).expect("an answer").expect("a list");
    let read = Revoked::read(&text, &service.roots()).expect("read");
    (read.number(), read.len())
}

fn revoke(service: &CaService, path: &str, at: SystemTime) {
    let which = Which::Identity(identity(path).to_string());
    service.revoke(&which, "op", at).expect("revoked");
}

#[test]
fn a_list_s_number_is_higher_than_that_of_each_before_whatever_the_clock_says_and_whoever_restarts() {
    let place = Place::new();
    let service = place.service();
    let node = joined(&service, "h1", &["*.shop"], now());
    let paths = ["ns/shop/sa/a", "ns/shop/sa/b", "ns/shop/sa/c"];
    assert_eq!(ask(&service, &node, &paths), ["ok", "ok", "ok"]);
    revoke(&service, paths[0], now());
    let first = list(&service, now());
    drop(service);
    // Started again by a clock that went back.
    let service = place.service();
    let back = now() - DAY / 2;
    assert_eq!(list(&service, back), first, "the same list keeps its number");
    revoke(&service, paths[1], back);
    let second = list(&service, back);
    assert!(second.0 > first.0 && second.1 == 2, "{first:?} {second:?}");
    // What was listed and has ended leaves a number behind all the same.
    let later = now() + 2 * DAY;
    assert_eq!(service.revocation_list(later).expect("an answer"), None);
    revoke(&service, paths[2], back);
    assert!(list(&service, back).0 > second.0);
}

#[test]
fn processes_that_share_a_ledger_give_no_number_to_two_lists_however_their_clocks_go() {
    let (log, places) = (Arc::new(MemoryLog::default()), [Place::new(), Place::new()]);
    let [one, other] = places.each_ref().map(|place| place.path("control.db"));
    let ledger = Ledger::open(&one).expect("a ledger");
    ledger.share(&*log).expect("shared");
    drop(ledger);
    Ledger::copy(&one, &other).expect("a copy");
    let both = [one, other].map(|path| {
        let ledger = Ledger::open(&path).expect("a ledger").with_log(log.clone()).expect("a part in the log");
        CaService::new(places[0].authority(), ledger, Settings::default())
    });
    let node = joined(&both[0], "h1", &["*.shop"], now());
    let paths: Vec<_> = (0..40).map(|n| format!("ns/shop/sa/s{n}")).collect();
    assert!(
        ask(&both[0], &node, &paths.iter().map(String::as_str).collect::<Vec<_>>())
            .iter()
            .all(|ok| *ok == "ok")
    );
    let clocks = [now() + DAY / 4, now()];
    let start = Barrier::new(2);
    let signed: Vec<_> = std::thread::scope(|scope| {
        let run = |index: usize| {
            let (service, paths, start) = (&both[index], &paths, &start);
            scope.spawn(move || {
                let mut signed = Vec::new();
                for path in paths.iter().skip(index).step_by(2) {
                    start.wait();
                    revoke(service, path, clocks[index]);
                    signed.push(service.revocation_list(clocks[index]).expect("an answer").expect("a list"));
                }
                signed
            })
        };
        let running = [run(0), run(1)];
        running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let mut by_number = BTreeMap::new();
    for lists in &signed {
        let mut before = 0;
        for text in lists {
            let number = Revoked::read(text, &both[0].roots()).expect("read").number();
            assert!(number >= before, "{number} after {before}");
            before = number;
            let known = by_number.entry(number).or_insert(text);
            assert_eq!(*known, text, "two lists have the number {number}");
        }
    }
    // And the last of them names all, as whoever writes something sees, because it looks first.
    for service in &both {
        token(service, TokenHost::Any, &[], now());
    }
    let last = both.each_ref().map(|service| list(service, now()));
    assert_eq!((last[0], last[0].1), (last[1], paths.len()));
}
