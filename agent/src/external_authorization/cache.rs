//! Answers that hold for a while, for questions that are the same in all that the provider sees. The key is a digest of that,
//! and of who calls what, so that nobody gets the answer to another's question.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use baremesh_model::external_authorization::CheckAnswer;

/// Answers of one provider that are kept, at most. The oldest go.
pub const MAX_CACHED: usize = 4096;
/// The largest answer that is kept, in bytes.
pub const MAX_CACHED_SIZE: usize = 8 * 1024;

/// A question, by its SHA-256.
pub type QuestionKey = [u8; 32];

/// What a provider said lately.
#[derive(Debug)]
pub struct DecisionCache {
    ttl: Duration,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    /// Until when each holds, and what it says.
    by_key: HashMap<QuestionKey, (Instant, Arc<CheckAnswer>)>,
    /// In the order in which they end: each holds for as long as the others.
    ends: VecDeque<(Instant, QuestionKey)>,
}

impl DecisionCache {
    /// One in which answers hold for so long.
    pub(super) fn new(ttl: Duration) -> Self {
        Self { ttl, entries: Mutex::default() }
    }

    /// What was said of a question, if that holds still.
    pub fn find(&self, key: &QuestionKey, now: Instant) -> Option<Arc<CheckAnswer>> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.by_key.get(key).filter(|(until, _)| now < *until).map(|(_, answer)| Arc::clone(answer))
    }

    /// Keeps an answer, unless it is too large or no answer.
    pub fn keep(&self, key: QuestionKey, answer: &Arc<CheckAnswer>, now: Instant) {
        if !is_kept(answer) {
            return;
        }
        let until = now + self.ttl;
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let Entries { by_key, ends } = &mut *entries;
        while ends.front().is_some_and(|(end, _)| *end <= now || ends.len() >= MAX_CACHED) {
            if let Some((end, oldest)) = ends.pop_front()
                && by_key.get(&oldest).is_some_and(|(until, _)| *until == end)
            {
                by_key.remove(&oldest);
            }
        }
        by_key.insert(key, (until, Arc::clone(answer)));
        ends.push_back((until, key));
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).by_key.len()
    }

    /// Whether none are.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Whether an answer may be given again. One that sets a cookie is for one caller once: a session that it begins would be
/// another's.
fn is_kept(answer: &CheckAnswer) -> bool {
    match answer {
        CheckAnswer::Failed(_) => false,
        CheckAnswer::Allowed(changes) => {
            let sets_cookie =
                changes.answer.iter().any(|field| field.name.eq_ignore_ascii_case("set-cookie"));
            !sets_cookie && changes.size() <= MAX_CACHED_SIZE
        }
        CheckAnswer::Denied(denial) => {
            !denial.headers.contains("set-cookie")
                && denial.body.len() + denial.headers.bytes() <= MAX_CACHED_SIZE
        }
    }
}
