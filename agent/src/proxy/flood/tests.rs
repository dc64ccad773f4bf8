//! Frames by their heads, and who is borne with.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::frames::{ALLOWANCE, Allowance};
use super::*;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &[0, 0, 0, 1], payload].concat()
}

/// What comes out of `bytes` as they are read in parts of `cut`: as many as were let through, and whether the alarm rang.
async fn read(bytes: &[u8], cut: usize) -> (usize, bool) {
    let (near, mut far) = tokio::io::duplex(bytes.len());
    far.write_all(bytes).await.expect("there is room");
    far.shutdown().await.expect("a pipe");
    let (mut watched, alarm) = Watched::new(near, Starts::Peer);
    let (mut part, mut through) = (vec![0; cut], 0);
    loop {
        tokio::select! {
            biased;
            read = watched.read(&mut part) => match read.expect("a pipe") {
                0 => return (through, false),
                read => through += read,
            },
            () = alarm.flooded() => return (through, true),
        }
    }
}

/// The number of frames of a kind after which the connection is given up; nothing where it is not.
async fn check(frames: &[Vec<u8>], expected: Option<usize>) {
    let bytes = [PREFACE, &frames.concat()].concat();
    let (whole, rang) = read(&bytes, bytes.len()).await;
    assert_eq!(rang, expected.is_some(), "{:?}", frames.first());
    // All of what one read brought is kept back.
    assert_eq!(whole, if rang { 0 } else { bytes.len() });
    let limit =
        frames.iter().take(expected.unwrap_or(frames.len())).map(Vec::len).sum::<usize>() + PREFACE.len();
    for cut in [1, 7, 9, 100] {
        let (through, rang) = read(&bytes, cut).await;
        assert_eq!(rang, expected.is_some(), "cut {cut}");
        // Up to the head of the frame that was too much.
        let slack = frames[0].len() + cut;
        let fits = through <= limit + slack && (!rang || through + slack >= limit);
        assert!(fits, "cut {cut}: {through} of {limit}");
    }
}

#[tokio::test(start_paused = true)]
async fn frames_without_content_are_counted_however_they_are_cut() {
    let all = ALLOWANCE as usize;
    let ping = frame(PING, 0, &[0; 8]);
    check(&vec![ping.clone(); all], None).await;
    check(&vec![ping.clone(); all + 10], Some(all)).await;
    // DATA in their form, and content that looks like frames, is none of them.
    let data = frame(DATA, 0, &ping.repeat(20));
    check(&vec![data.clone(); 2 * all], None).await;
    check(&vec![frame(DATA, 0, &[]); all + 10], Some(all)).await;
    // The end of a body, and what the codec alone can tell.
    check(&vec![frame(DATA, 1, &[]); 2 * all], None).await;
    check(&vec![frame(DATA, 8, &[0]); 2 * all], None).await;
    check(&vec![frame(200, 0, b"a kind that nobody knows"); all + 10], Some(all)).await;
    // What traffic explains.
    let window = frame(WINDOW_UPDATE, 0, &[0, 0, 0, 1]);
    let exchange = [data, window.clone(), window.clone()].concat();
    check(&vec![exchange; all], None).await;
    let reset = [frame(HEADERS, 4, b"x"), frame(RST_STREAM, 0, &[0, 0, 0, 8])].concat();
    check(&vec![reset; 2 * all], None).await;
    // Five for one are more than it explains.
    let five = [frame(DATA, 0, b"x"), window.repeat(5)].concat();
    check(&vec![five; all + 10], Some(all)).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_explains_windows_that_come_back() {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let (mut watched, alarm) = Watched::new(near, Starts::Peer);
    far.write_all(PREFACE).await.expect("there is room");
    let mut part = [0; 64];
    for _ in 0..5 * ALLOWANCE {
        watched.write_all(&frame(DATA, 0, b"x")).await.expect("there is room");
        far.read_exact(&mut part[..10]).await.expect("it comes");
        far.write_all(&frame(WINDOW_UPDATE, 0, &[0, 0, 0, 1]).repeat(2)).await.expect("there is room");
        tokio::select! {
            biased;
            read = watched.read(&mut part) => assert!(read.expect("a pipe") > 0),
            () = alarm.flooded() => panic!("windows are what an honest peer gives back"),
        }
    }
}

#[tokio::test]
async fn resets_that_are_sent_are_counted_however_they_are_cut() {
    let (near, _far) = tokio::io::duplex(1 << 20);
    let (mut watched, alarm) = Watched::new(near, Starts::We);
    let reset = frame(RST_STREAM, 0, &[0, 0, 0, 8]);
    let bytes = [PREFACE, &[reset.clone(), frame(DATA, 0, &reset)].concat().repeat(10)].concat();
    for part in bytes.chunks(7) {
        watched.write_all(part).await.expect("there is room");
    }
    assert_eq!(alarm.resets_sent(), 10, "and not those that are content");
}

#[test]
fn allowances_come_back_with_time() {
    let start = Instant::now();
    let at = |milliseconds| move || start + Duration::from_millis(milliseconds);
    let mut allowance = Allowance::new(start);
    let burst = |allowance: &mut Allowance, now: u64| (0..).take_while(|_| allowance.take(at(now))).count();
    assert_eq!(burst(&mut allowance, 0), ALLOWANCE as usize);
    assert_eq!(burst(&mut allowance, 100), 10);
    assert_eq!(burst(&mut allowance, 100), 0);
    assert_eq!(burst(&mut allowance, 3_600_000), ALLOWANCE as usize, "no more than all is forgiven");
}

#[test]
fn forgiveness_goes_by_the_time_that_passed_and_by_what_ended_well() {
    let start = Instant::now();
    let given_up = GivenUp::new(start, MAX_GIVEN_UP);
    let burst =
        |given_up: &GivenUp, now| (1..=1_000).find(|_| given_up.count(Ended::GivenUp, now) == Patience::Over);
    assert_eq!(burst(&given_up, start), Some(MAX_GIVEN_UP + 1));
    assert_eq!(burst(&given_up, start + FORGIVEN_EVERY * 11), Some(11), "the eleventh is too many again");
    let later = start + Duration::from_secs(3600);
    assert_eq!(burst(&given_up, later), Some(MAX_GIVEN_UP + 1), "no more than all is forgiven");
    let steady = GivenUp::new(start, MAX_GIVEN_UP);
    let at = |step: u32| start + FORGIVEN_EVERY * step;
    assert!((0..100_000).all(|step| steady.count(Ended::GivenUp, at(step)) == Patience::Left));
    let mixed = GivenUp::new(start, MAX_GIVEN_UP);
    let both = [Ended::GivenUp, Ended::Normally];
    assert!((0..10_000).all(|number| mixed.count(both[number % 2], start) == Patience::Left));
    assert_eq!(burst(&mixed, start), Some(MAX_GIVEN_UP + 1), "nothing is saved up");
}
