//! The HTTP client. Each answer is a line of JSON, and so is each request that got none; the exit code is that of the
//! first failure.

mod told;
mod wanted;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use hyper::Request;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::super::connection::Broken;
use super::content::{Content, Feed, Read, Summed, Unread, streamed, whole};
use super::dial::{Sender, cut, within};
use told::Told;
use wanted::Payload;
pub(super) use wanted::Wanted;

/// What the workers share.
struct Round {
    wanted: Wanted,
    sent: AtomicU64,
    connections: AtomicU64,
    first_failure: Mutex<Option<Broken>>,
    tell: Box<dyn Fn(Value) + Send + Sync>,
}

/// A connection, and its number from 1.
type Line = (Sender, u64);

/// Sends all that is wanted, and tells a line for each request.
pub(super) async fn run(wanted: Wanted, tell: impl Fn(Value) + Send + Sync + 'static) -> Result<(), Broken> {
    let workers = wanted.parallel;
    let (sent, connections) = (AtomicU64::new(0), AtomicU64::new(0));
    let first_failure = Mutex::default();
    let round = Arc::new(Round { wanted, sent, connections, first_failure, tell: Box::new(tell) });
    // HTTP/2 is for many requests at once: all go over one connection.
    let shared = match round.wanted.is_http2() && round.wanted.keep {
        true => Some(within(round.wanted.place.timeout, round.connect()).await?),
        false => None,
    };
    let mut set = JoinSet::new();
    for _ in 0..workers {
        let line = match &shared {
            Some((Sender::Two(sender), number)) => Some((Sender::Two(sender.clone()), *number)),
            _ => None,
        };
        set.spawn(Arc::clone(&round).work(line));
    }
    set.join_all().await;
    let failure = round.first_failure.lock().unwrap_or_else(PoisonError::into_inner).take();
    failure.map_or(Ok(()), Err)
}

impl Round {
    /// Sends requests until there are no more to send.
    async fn work(self: Arc<Self>, mut line: Option<Line>) {
        while self.is_another_wanted() {
            let started = Instant::now();
            let told = Told::default();
            let ended = within(self.wanted.place.timeout, self.exchange(&mut line, &told)).await;
            if ended.is_err() || !self.wanted.keep {
                line = None;
            }
            (self.tell)(told.line(&self.wanted, ended.as_ref().err(), started.elapsed()));
            if let Err(broken) = ended {
                let mut first = self.first_failure.lock().unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert(broken);
            }
        }
    }

    fn is_another_wanted(&self) -> bool {
        match &self.wanted.until {
            Some(path) => !path.exists(),
            None => self.sent.fetch_add(1, Ordering::Relaxed) < self.wanted.count,
        }
    }

    async fn connect(&self) -> Result<Line, Broken> {
        let sender = match self.wanted.is_http2() {
            true => Sender::Two(self.wanted.place.http2().await?),
            false => Sender::One(self.wanted.place.http1().await?),
        };
        Ok((sender, self.connections.fetch_add(1, Ordering::Relaxed) + 1))
    }

    /// One request and its answer; what was learnt of it is told even if it breaks.
    async fn exchange(&self, line: &mut Option<Line>, told: &Told) -> Result<(), Broken> {
        let is_usable = match line {
            Some((sender, _)) => sender.is_ready().await,
            None => false,
        };
        if !is_usable {
            *line = Some(self.connect().await?);
        }
        let Some((sender, number)) = line else { return Err(Broken::Wrong("no connection".into())) };
        told.connection(*number);
        let response = sender.send(self.request(told)?).await?;
        let (head, body) = response.into_parts();
        told.head(head);
        told.read(Read::all(body).await.map_err(|error| cut(&error))?);
        if self.wanted.expect && !told.was_informed() {
            // The body was never sent: nothing else can follow on this connection.
            *line = None;
        }
        Ok(())
    }

    fn request(&self, told: &Told) -> Result<Request<Content>, Broken> {
        let go_on = Arc::new(Notify::new());
        let content = match &self.wanted.payload {
            Payload::None => whole(""),
            Payload::Text(text) if self.wanted.is_plain() => whole(text.clone()),
            _ => {
                let (feed, content) = streamed();
                tokio::spawn(write(feed, self.wanted.clone(), Arc::clone(&go_on)));
                content
            }
        };
        let mut request = self.wanted.head(content)?;
        let informed = told.informed();
        hyper::ext::on_informational(&mut request, move |answer| {
            informed.lock().unwrap_or_else(PoisonError::into_inner).push(answer.status().as_u16());
            go_on.notify_one();
        });
        Ok(request)
    }
}

/// Writes the body: in two halves if there is to be a pause, and only after an informational answer if one is expected.
async fn write(feed: Feed, wanted: Wanted, go_on: Arc<Notify>) -> Result<(), Unread> {
    if wanted.expect {
        go_on.notified().await;
    }
    match wanted.payload {
        Payload::None => {}
        Payload::Text(text) => {
            let (first, second) = text.as_bytes().split_at(text.len() / 2);
            feed.data(first.to_vec().into()).await?;
            sleep(wanted.body_pause).await;
            feed.data(second.to_vec().into()).await?;
        }
        Payload::Size(bytes) => {
            let mut pattern = Summed::new();
            // The pattern is taken by eights.
            let first = bytes / 2 / 8 * 8;
            feed.pattern(&mut pattern, first).await?;
            sleep(wanted.body_pause).await;
            feed.pattern(&mut pattern, bytes - first).await?;
        }
    }
    match wanted.trailers.is_empty() {
        true => Ok(()),
        false => feed.trailers(wanted.trailers).await,
    }
}
