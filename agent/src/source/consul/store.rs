//! Following the key-value store: resources, what is said of trust, virtual addresses.

use std::collections::BTreeMap;
use std::time::Duration;

use baremesh_registry::consul::client::Client;
use baremesh_registry::consul::kv::Pair;
use baremesh_registry::consul::query::{Consistency, Place, Step};
use baremesh_registry::consul::resources::{Following, Next, ResourceStore};
use baremesh_registry::control::client::backoff;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep};

use super::known::News;
use super::{Heard, Part, WAIT};

/// The pause between two answers to one question, so that a store that changes all the time is not asked all the time.
const PACE: Duration = Duration::from_millis(250);
/// A question that was answered so long after the last failure begins with short pauses again.
const STEADY: Duration = Duration::from_secs(30);

/// Pauses between failures.
pub(super) struct Pauses {
    attempt: u32,
    since: Instant,
}

impl Pauses {
    pub(super) fn new() -> Self {
        Self { attempt: 0, since: Instant::now() }
    }

    /// After an answer.
    pub(super) async fn pace(&self) {
        sleep(PACE).await;
    }

    /// After a failure.
    pub(super) async fn after_failure(&mut self) {
        self.attempt = if self.since.elapsed() >= STEADY { 0 } else { self.attempt + 1 };
        self.since = Instant::now();
        sleep(backoff(self.attempt, rand::random())).await;
    }
}

/// Says how a part stands, with what is new and the answer's index. Who listens no more has ended.
pub(super) async fn say(
    tell: &Sender<Heard>,
    part: Part,
    outcome: Result<(Option<News>, Option<u64>), String>,
) {
    let (standing, news) = match outcome {
        Ok((news, index)) => (Heard::Fine(part, index), news),
        Err(reason) => (Heard::Failed(part, reason), None),
    };
    if let Some(news) = news {
        let _ = tell.send(Heard::Known(news)).await;
    }
    let _ = tell.send(standing).await;
}

/// Follows the resources, for ever.
pub(super) async fn resources(client: Client, tell: Sender<Heard>) {
    let mut following = Following::new(ResourceStore::new(client));
    let mut pauses = Pauses::new();
    loop {
        match Box::pin(following.next(WAIT)).await {
            Ok(next) => {
                let news = match next {
                    Next::Set(set) => Some(News::Resources(set)),
                    Next::Nothing => Some(News::NoResources),
                    Next::Same => None,
                };
                say(&tell, Part::Resources, Ok((news, Some(following.index())))).await;
                pauses.pace().await;
            }
            Err(error) => {
                say(&tell, Part::Resources, Err(error.to_string())).await;
                pauses.after_failure().await;
            }
        }
    }
}

/// Follows what is said of trust, for ever.
pub(super) async fn trust(client: Client, tell: Sender<Heard>) {
    let prefix = format!("{}trust/", client.settings().prefix);
    let read = |pairs: Vec<Pair>| News::Trust(read(&prefix, pairs));
    Box::pin(keys(client, &prefix, (&tell, Part::Trust), read)).await;
}

/// Follows the virtual addresses, for ever.
pub(super) async fn addresses(client: Client, tell: Sender<Heard>) {
    let prefix = format!("{}addresses/", client.settings().prefix);
    let read = |pairs: Vec<Pair>| {
        let all = read(&prefix, pairs).into_iter();
        News::Addresses(all.filter_map(|(key, record)| Some((key.parse().ok()?, record))).collect())
    };
    Box::pin(keys(client, &prefix, (&tell, Part::Addresses), read)).await;
}

/// The values below a prefix, by the rest of their keys.
fn read<T: DeserializeOwned>(prefix: &str, pairs: Vec<Pair>) -> BTreeMap<String, T> {
    let one = |pair: Pair| {
        let key = pair.key.strip_prefix(prefix)?.to_owned();
        match serde_json::from_slice(&pair.value) {
            Ok(value) => Some((key, value)),
            Err(error) => {
                tracing::warn!(key = pair.key, %error, "a value in Consul cannot be read, and has no effect");
                None
            }
        }
    };
    pairs.into_iter().filter_map(one).collect()
}

async fn keys(
    client: Client,
    prefix: &str,
    (tell, part): (&Sender<Heard>, Part),
    read: impl Fn(Vec<Pair>) -> News,
) {
    let (mut place, mut pauses) = (Place::default(), Pauses::new());
    loop {
        match client.list(prefix, place.read(Consistency::Leader, WAIT)).await {
            Ok(answer) => {
                let news = match place.advance(answer.index) {
                    Step::Same => None,
                    Step::Changed | Step::Reset => Some(read(answer.value)),
                };
                say(tell, part, Ok((news, Some(place.last())))).await;
                pauses.pace().await;
            }
            Err(error) => {
                place.reset();
                say(tell, part, Err(error.to_string())).await;
                pauses.after_failure().await;
            }
        }
    }
}
