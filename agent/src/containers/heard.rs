//! The agent's side of what followers tell. What was told holds for as long as its follower stands by it: a list takes the
//! place of the one before, and with the end of the connection, or of its words, no container is certain to be anybody.
//! Where calls are delivered outlasts that by a moment, so that a follower that is started anew costs no call.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::wire::{Answer, Handed, MAX_LINE, SILENCE, Told};
use super::{Engine, Following, Known, MAX_ENGINES};
use crate::publish::Publisher;

/// How long calls are delivered to a container after its follower has gone.
pub const LINGER: Duration = Duration::from_secs(5);

/// What was told, and who stands by it.
pub struct Heard {
    publisher: Arc<Publisher>,
    state: Mutex<State>,
    /// The streams that are heard, and the waiting for those that should come back.
    tasks: Mutex<JoinSet<()>>,
}

#[derive(Default)]
struct State {
    known: Known,
    /// The connection that speaks for each engine.
    speakers: BTreeMap<String, u64>,
    connections: u64,
}

impl State {
    /// Who speaks for this engine from now on.
    fn speaker(&mut self, engine: String) -> Speaker {
        self.connections += 1;
        self.speakers.insert(engine.clone(), self.connections);
        Speaker { engine, connection: self.connections }
    }
}

/// A connection that spoke for an engine.
struct Speaker {
    engine: String,
    connection: u64,
}

impl Heard {
    /// Nothing yet, for `publisher` to go by.
    pub fn new(publisher: Arc<Publisher>) -> Arc<Self> {
        Arc::new(Self { publisher, state: Mutex::default(), tasks: Mutex::default() })
    }

    /// Runs this until it ends by itself or all are ended.
    pub fn spawn(&self, hearing: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(hearing);
    }

    /// Ends every stream, so that the followers look for the agent anew: another one takes this one's place, and is handed
    /// [`Self::last`] then. What was told is stood by for as long as when a follower falls silent.
    pub fn end_all(self: &Arc<Self>) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        let mut state = self.lock();
        let engines: Vec<_> =
            state.known.engines.iter().map(|(name, of)| (name.clone(), of.following)).collect();
        let waiting: Vec<_> =
            engines.into_iter().map(|(name, following)| (state.speaker(name), following)).collect();
        drop(state);
        waiting.into_iter().for_each(|(own, following)| self.await_follower(own, following));
    }

    /// What was told last, for the agent that takes this one's place. It is whole once all streams have been ended.
    pub fn last(&self) -> serde_json::Value {
        serde_json::to_value(Handed::new(&self.lock().known)).unwrap_or_default()
    }

    /// Stands by what another agent was told, until its followers have come back, and for as long as when one falls
    /// silent. What followers have told this agent already stays. The error says what is wrong with `last`: nothing of it
    /// is taken then.
    pub fn resume(self: &Arc<Self>, last: &serde_json::Value) -> Result<(), String> {
        let handed = Handed::read(last)?;
        let mut state = self.lock();
        let mut waiting = Vec::new();
        for (name, engine) in handed.engines {
            if state.known.engines.contains_key(&name) || state.known.engines.len() >= MAX_ENGINES {
                continue;
            }
            waiting.push((state.speaker(name.clone()), engine.following));
            state.known.engines.insert(name, engine);
        }
        state.known.settle();
        let published = self.publisher.take_containers(state.known.clone());
        drop(state);
        waiting.into_iter().for_each(|(own, following)| self.await_follower(own, following));
        published
    }

    /// Takes the engine to be followed no longer unless a follower speaks for it soon.
    fn await_follower(self: &Arc<Self>, own: Speaker, following: Following) {
        let heard = Arc::clone(self);
        self.spawn(async move {
            match following {
                Following::Followed => tokio::time::sleep(SILENCE).await,
                Following::Lingering => {}
                Following::Lost => return,
            }
            let reason = format!("its follower has not come back within {} s", SILENCE.as_secs());
            heard.lapse(&own, &reason).await;
        });
    }

    /// Hears a follower out, to the end of its connection.
    pub async fn hear(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Send) {
        let (reader, mut writer) = tokio::io::split(stream);
        let mut reader = BufReader::new(Box::pin(reader));
        let mut speaker = None;
        let reason = loop {
            let line = match timeout(SILENCE, read_line(&mut reader, MAX_LINE)).await {
                Ok(Ok(Some(line))) => line,
                Ok(Ok(None)) => break "its connection ended".to_owned(),
                Ok(Err(error)) => break error.to_string(),
                Err(_) => break format!("nothing was heard of it for {} s", SILENCE.as_secs()),
            };
            let taken = match line.is_empty() {
                true if speaker.as_ref().is_none_or(|own| self.speaks(own)) => continue,
                true => Err("another follower speaks for this engine".to_owned()),
                false => self.take(&line, &mut speaker),
            };
            let mut answer = serde_json::to_vec(&Answer { refused: taken.clone().err() }).unwrap_or_default();
            answer.push(b'\n');
            let answered = timeout(SILENCE, writer.write_all(&answer)).await;
            match (taken, answered) {
                (Ok(()), Ok(Ok(()))) => {}
                (Err(reason), _) => break reason,
                (Ok(()), _) => break "it takes no answer".to_owned(),
            }
        };
        if let Some(own) = speaker {
            self.lapse(&own, &reason).await;
        }
    }

    fn take(&self, line: &[u8], speaker: &mut Option<Speaker>) -> Result<(), String> {
        let (engine, containers) = Told::read(line)?;
        let mut state = self.lock();
        match speaker {
            None => {
                if !state.known.engines.contains_key(&engine) && state.known.engines.len() >= MAX_ENGINES {
                    return Err(format!(
                        "more than {MAX_ENGINES} engines: an agent that restarts forgets those of before"
                    ));
                }
                // One that still spoke for it hears so at its next word.
                *speaker = Some(state.speaker(engine.clone()));
                tracing::info!(engine, containers = containers.len(), "a container engine is followed");
            }
            Some(own) if own.engine != engine => {
                return Err("one connection speaks for one engine".to_owned());
            }
            Some(own) if state.speakers.get(&own.engine) != Some(&own.connection) => {
                return Err("another follower speaks for this engine".to_owned());
            }
            Some(_) => {}
        }
        state.known.engines.insert(engine, Engine { containers, following: Following::Followed });
        state.known.settle();
        self.publisher.take_containers(state.known.clone())
    }

    fn speaks(&self, own: &Speaker) -> bool {
        self.lock().speakers.get(&own.engine) == Some(&own.connection)
    }

    /// What it told is certain no longer, and after a moment nothing is delivered by it.
    async fn lapse(&self, own: &Speaker, reason: &str) {
        if self.demote(own, Following::Lingering) {
            tracing::warn!(engine = own.engine, reason, "a container engine is followed no longer");
            tokio::time::sleep(LINGER).await;
            self.demote(own, Following::Lost);
        }
    }

    /// Whether it was still the one that spoke for its engine.
    fn demote(&self, own: &Speaker, following: Following) -> bool {
        let mut state = self.lock();
        if state.speakers.get(&own.engine) != Some(&own.connection) {
            return false;
        }
        if let Some(engine) = state.known.engines.get_mut(&own.engine) {
            engine.following = following;
        }
        state.known.settle();
        if let Err(error) = self.publisher.take_containers(state.known.clone()) {
            tracing::error!(error, "containers that nobody stands by are still in force");
        }
        true
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next line, without its end, of up to `limit` bytes; none after the last.
pub(super) async fn read_line(
    reader: &mut (impl AsyncBufRead + Unpin),
    limit: usize,
) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    loop {
        let read = reader.fill_buf().await?;
        if read.is_empty() {
            // What has no end was cut off.
            return Ok(None);
        }
        let end = read.iter().position(|byte| *byte == b'\n');
        let taken = &read[..end.unwrap_or(read.len())];
        if line.len() + taken.len() > limit {
            return Err(std::io::Error::other(format!("a line of more than {limit} bytes")));
        }
        line.extend_from_slice(taken);
        let used = taken.len() + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            return Ok(Some(line));
        }
    }
}

#[cfg(test)]
mod tests;
