use std::fs;

use super::super::message::Upsert;
use super::*;

fn raw(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).expect("JSON")
}

fn staged(changes: &[(&str, Option<&str>)]) -> Staged {
    let mut staged = Staged::default();
    for (key, text) in changes {
        match text {
            Some(text) => staged.upsert(Upsert { key: (*key).to_owned(), value: raw(text) }),
            None => staged.delete((*key).to_owned()),
        }
        .expect("small");
    }
    staged
}

fn complete(version: u64, full: bool, entries: &[(&str, &str)]) -> Complete {
    let digests = entries.iter().map(|(key, text)| Digest::of(key, text));
    let digest = digests.fold(Digest::default(), Digest::plus).to_string();
    Complete { version, digest, full, subscribed: 0 }
}

fn example(path: Option<PathBuf>) -> Followed {
    let mut followed = Followed::new(path);
    let first = complete(3, true, &[("a", "1.50"), ("b", "{ }")]);
    let difference = staged(&[("a", Some("1.50")), ("b", Some("{ }"))]);
    followed.apply(difference, &first, 7, &Subscription::All).expect("applied");
    followed
}

#[test]
fn applies_a_difference_whole_or_not_at_all() {
    let mut followed = example(None);
    let changes = [("a", None), ("c", Some("2")), ("none", None)];
    let wrong = complete(4, false, &[("b", "{ }"), ("c", "3")]);
    let error = followed.apply(staged(&changes), &wrong, 7, &Subscription::All).expect_err("the digest");
    assert!(matches!(error, FollowedError::Digest));
    assert_eq!((followed.version(), followed.entries().len()), (3, 2));
    assert_eq!(followed.resume(&Subscription::All), None, "everything is asked for anew");
    let right = complete(4, false, &[("b", "{ }"), ("c", "2")]);
    followed.apply(staged(&changes), &right, 7, &Subscription::All).expect("applied");
    assert_eq!(followed.entries().keys().collect::<Vec<_>>(), ["b", "c"]);
    let full = complete(1, true, &[("d", "4")]);
    followed.apply(staged(&[("d", Some("4"))]), &full, 8, &Subscription::All).expect("applied");
    assert_eq!(followed.entries().keys().collect::<Vec<_>>(), ["d"]);
    let deep = "[".repeat(500) + &"]".repeat(500);
    let unreadable = complete(2, true, &[("e", &deep)]);
    let error = followed.apply(staged(&[("e", Some(&deep))]), &unreadable, 8, &Subscription::All);
    assert!(matches!(error, Err(FollowedError::Value { .. })));
    assert_eq!(followed.entries().keys().collect::<Vec<_>>(), ["d"]);
}

#[test]
fn the_file_holds_what_was_in_force_last() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("state");
    let mut followed = example(Some(path.clone()));
    followed.accepted();
    let changes = [("a", Some("2")), ("b", None), ("c", Some("3"))];
    let second = complete(4, false, &[("a", "2"), ("c", "3")]);
    let former = followed.apply(staged(&changes), &second, 7, &Subscription::default()).expect("applied");
    followed.refused(former);
    let third = complete(1, true, &[("d", "4")]);
    let former = followed.apply(staged(&[("d", Some("4"))]), &third, 8, &Subscription::All).expect("applied");
    followed.refused(former);
    followed.save().expect("a file")().expect("saved");
    let loaded = Followed::load(&path).expect("a state");
    let first = example(None);
    assert_eq!(loaded.entries(), first.entries());
    assert_eq!(loaded.resume(&Subscription::All), first.resume(&Subscription::All));
    followed.accepted();
    followed.save().expect("a file")().expect("saved");
    assert_eq!(Followed::load(&path).expect("a state").entries(), followed.entries());
}

#[test]
fn a_state_has_so_many_entries_and_no_more() {
    let mut followed = Followed::new(None);
    let keys: Vec<String> = (0..=MAX_ENTRIES).map(|n| n.to_string()).collect();
    let apply = |followed: &mut Followed, range: &[String], change: Option<&str>, full: bool| {
        let changes: Vec<(&str, Option<&str>)> = range.iter().map(|key| (&**key, change)).collect();
        let mut digest = if full { Digest::default() } else { followed.digest };
        for key in range {
            let one = Digest::of(key, "1");
            digest = if change.is_some() { digest.plus(one) } else { digest.minus(one) };
        }
        let complete = Complete { version: 1, digest: digest.to_string(), full, subscribed: 0 };
        followed.apply(staged(&changes), &complete, 1, &Subscription::All).map(|_| ())
    };
    apply(&mut followed, &keys[..MAX_ENTRIES], Some("1"), true).expect("as many as there may be");
    let error = apply(&mut followed, &keys[MAX_ENTRIES..], Some("1"), false).expect_err("one more");
    assert!(matches!(error, FollowedError::TooMany) && error.to_string().contains("split the mesh"));
    assert_eq!(followed.entries().len(), MAX_ENTRIES, "what was there stays");
    apply(&mut followed, &keys[..1], None, false).expect("one less");
    apply(&mut followed, &keys[MAX_ENTRIES..], Some("1"), false).expect("as many again");
    assert!(matches!(apply(&mut followed, &keys, Some("1"), true), Err(FollowedError::TooMany)));
}

#[test]
fn loads_what_it_saved() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("state");
    assert_eq!(Followed::load(&path).expect("nothing yet").version(), 0);
    let mut followed = example(Some(path.clone()));
    let (older, newer) = (followed.save().expect("a file"), followed.save().expect("a file"));
    newer().expect("saved");
    fs::write(&path, followed.encode()).expect("the same");
    older().expect("not over the newer one");
    let loaded = Followed::load(&path).expect("a state");
    assert_eq!(loaded.entries(), followed.entries());
    assert_eq!(loaded.resume(&Subscription::All), followed.resume(&Subscription::All));
    assert_eq!(fs::read_dir(directory.path()).expect("a directory").count(), 1);
}

#[test]
fn refuses_a_damaged_file_whatever_is_damaged() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("state");
    let whole = example(None).encode();
    let refused = |bytes: &[u8], what: &str| {
        fs::write(&path, bytes).expect("written");
        assert!(matches!(Followed::load(&path), Err(FollowedError::Damaged { .. })), "{what}");
    };
    for length in 0..whole.len() {
        refused(&whole[..length], &format!("cut at {length}"));
    }
    let start = whole.iter().position(|byte| *byte == b'\n').expect("a first line");
    for at in start + 1..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        refused(&flipped, &format!("flipped at {at}"));
    }
    let text = String::from_utf8(whole).expect("text");
    refused(text.replace("\"format\":1", "\"format\":3").as_bytes(), "a later format");
}
