//! Many agents at once.

use super::super::message::Resume;
use super::super::push::{LARGE, MAX_LARGE_PUSHES};
use super::*;

#[tokio::test]
async fn whole_states_go_to_so_many_at_a_time_and_who_waits_is_answered() {
    let directory = tempfile::tempdir().expect("a directory");
    let control = started(directory.path()).await;
    let text = "x".repeat(100);
    let many = (0..=LARGE).map(|n| (format!("Policy/x/p{n}"), json!(text)));
    control.set_resources(MeshConfig::default(), many.collect()).await.expect("resources");
    let hello = frame(&Hello { protocol: 1, subscribe: vec!["*".into()], ..Hello::default() });
    let places = || control.0.large_pushes.available_permits();
    // Agents that take nothing beyond the first message.
    let mut stuck = Vec::new();
    for n in 0..MAX_LARGE_PUSHES {
        let (mut reader, mut writer) = raw(&control, &format!("stuck{n}"));
        writer.send(&hello).await.expect("sent");
        assert!(matches!(read(&mut reader).await, Some(FromControl::Welcome(_))));
        stuck.push((reader, writer));
    }
    until("all places are taken", || (places() == 0).then_some(())).await;
    let (mut reader, mut writer) = raw(&control, "h1");
    writer.send(&hello).await.expect("sent");
    assert!(matches!(read(&mut reader).await, Some(FromControl::Welcome(_))));
    for _ in 0..3 {
        writer.send(&frame(&Renew {})).await.expect("sent");
        assert!(
            matches!(read(&mut reader).await, Some(FromControl::Renewed(_))),
            "it waits, and is answered"
        );
    }
    // One who holds nearly all needs no place.
    let (epoch, newest) = {
        let core = control.0.core();
        (core.state.epoch(), core.state.version())
    };
    let resume = Some(Resume { epoch, version: newest - 1, ..Resume::default() });
    let little = frame(&Hello { protocol: 1, subscribe: vec!["*".into()], resume, ..Hello::default() });
    let (mut other, mut other_writer) = raw(&control, "h2");
    other_writer.send(&little).await.expect("sent");
    assert_eq!(read_complete(&mut other).await.0, 1);
    stuck.pop();
    let (upserts, complete) = read_complete(&mut reader).await;
    assert_eq!((upserts, complete.full), (LARGE + 1, true));
    drop((stuck, reader, writer, other, other_writer));
    until("all places are given back", || (places() == MAX_LARGE_PUSHES).then_some(())).await;
}
