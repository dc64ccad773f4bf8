//! What is written to an agent to bring it to the newest version: whole messages, one behind the other. Agents that hold the
//! same and ask for all share one, as all do that wait for one change.

use std::sync::{Arc, Weak};

use bytes::{BufMut, Bytes, BytesMut};

use super::message::{Complete, Delete, frame};
use super::state::{Change, Held, State};
use super::subscription::Subscription;

/// Changes beyond which a push is a large one.
pub const LARGE: usize = 1000;
/// Large pushes at once: what is not written yet of each is in memory, and many agents that come back together with nothing
/// would each have a whole state there.
pub const MAX_LARGE_PUSHES: usize = 32;
/// Bytes that are encoded in one piece.
const PIECE: usize = 64 << 10;
/// Pushes that are remembered for others, while somebody is still writing them.
const REMEMBERED: usize = 8;

/// One push.
#[derive(Debug)]
pub struct Push {
    /// The messages of the changes with their lengths, in pieces.
    pub pieces: Vec<Bytes>,
    /// The version that they lead to.
    pub version: u64,
    /// What the agent then holds.
    digest: String,
    full: bool,
}

impl Push {
    fn new(state: &State, held: Option<&Held>, wanted: &Subscription) -> Self {
        let difference = state.difference(held, wanted);
        let (mut pieces, mut piece) = (Vec::new(), BytesMut::new());
        for change in &difference.changes {
            match change {
                Change::Upsert(_, sent) => append(&mut piece, sent.frame()),
                Change::Delete(key) => append(&mut piece, &frame(&Delete { key: key.to_string() })),
            }
            if piece.len() >= PIECE {
                pieces.push(piece.split().freeze());
            }
        }
        if !piece.is_empty() {
            pieces.push(piece.freeze());
        }
        let digest = difference.digest.to_string();
        Self { pieces, version: difference.version, digest, full: difference.full }
    }

    /// The message behind them, which puts them in force.
    pub fn complete(&self, subscribed: u64) -> Complete {
        Complete { version: self.version, digest: self.digest.clone(), full: self.full, subscribed }
    }
}

fn append(piece: &mut BytesMut, message: &[u8]) {
    // Resources are bounded when they are applied, far below what the length can say.
    piece.put_u32(u32::try_from(message.len()).expect("a message's length"));
    piece.put_slice(message);
}

/// The pushes that are being written.
#[derive(Debug, Default)]
pub struct Pushes {
    /// Of agents that ask for all: from which version, to which.
    shared: Vec<(Option<u64>, u64, Weak<Push>)>,
}

impl Pushes {
    /// What brings an agent that holds `held` to the newest version of `wanted`.
    pub fn of(&mut self, state: &State, held: Option<&Held>, wanted: &Subscription) -> Arc<Push> {
        let all = Subscription::All;
        if *wanted != all || held.is_some_and(|held| held.subscription != all) {
            return Arc::new(Push::new(state, held, wanted));
        }
        let (from, to) = (held.map(|held| held.version), state.version());
        self.shared.retain(|(.., push)| push.strong_count() > 0);
        let known =
            self.shared.iter().find(|(known_from, known_to, _)| (*known_from, *known_to) == (from, to));
        if let Some(push) = known.and_then(|(.., push)| push.upgrade()) {
            return push;
        }
        let push = Arc::new(Push::new(state, held, wanted));
        if self.shared.len() >= REMEMBERED {
            self.shared.remove(0);
        }
        self.shared.push((from, to, Arc::downgrade(&push)));
        push
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::codec::FrameReader;
    use super::super::message::{FromControl, Unknown};
    use super::super::state::Audience;
    use super::super::subscription::service_key;
    use super::*;

    fn state(entries: usize) -> State {
        let mut state = State::new(1);
        for n in 0..entries {
            let service = service_key("a.x").expect("a service");
            let value = json!({ "n": n, "text": "x".repeat(200) });
            state.set(&format!("WorkloadEntry/x/w{n}"), Audience::CallersOf(service), &value);
        }
        state
    }

    #[tokio::test]
    async fn a_push_is_whole_messages_in_pieces() {
        let mut state = state(1000);
        state.remove("WorkloadEntry/x/w7");
        let held = Held { version: 10, subscription: Subscription::All };
        let push = Pushes::default().of(&state, Some(&held), &Subscription::All);
        assert!(push.pieces.len() > 2 && push.pieces.iter().all(|piece| piece.len() < PIECE + 1024));
        let bytes = push.pieces.concat();
        let mut reader = FrameReader::new(&bytes[..]);
        let (mut upserts, mut deletes) = (0, 0);
        while let Some(message) = reader.next().await.expect("a message") {
            match FromControl::read(&message, &Unknown::default()).expect("a message") {
                Some(FromControl::Upsert(_)) => upserts += 1,
                Some(FromControl::Delete(delete)) if delete.key == "WorkloadEntry/x/w7" => deletes += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((upserts, deletes), (990, 1));
        assert_eq!((push.version, push.complete(3).subscribed, push.complete(3).full), (1001, 3, false));
    }

    #[test]
    fn those_who_hold_the_same_share_one_and_nobody_else_does() {
        let (mut pushes, mut state) = (Pushes::default(), state(3));
        let held = |version| Some(Held { version, subscription: Subscription::All });
        let first = pushes.of(&state, None, &Subscription::All);
        assert!(Arc::ptr_eq(&first, &pushes.of(&state, None, &Subscription::All)));
        assert!(!Arc::ptr_eq(&first, &pushes.of(&state, held(2).as_ref(), &Subscription::All)));
        assert!(!Arc::ptr_eq(&first, &pushes.of(&state, None, &Subscription::default())));
        state.remove("WorkloadEntry/x/w1");
        assert!(!Arc::ptr_eq(&first, &pushes.of(&state, None, &Subscription::All)), "a newer version");
        for version in 0..100 {
            drop(pushes.of(&state, held(version).as_ref(), &Subscription::All));
        }
        assert!(pushes.shared.len() <= 2, "what nobody writes any more is not remembered");
    }
}
