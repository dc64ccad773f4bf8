//! The client of streams: a call in gRPC's form over HTTP/2, whose messages come back one by one.

use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, TE};
use hyper::http::HeaderValue;
use hyper::{HeaderMap, Method, Request, Uri};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::super::DEFAULT_TIMEOUT;
use super::super::connection::Broken;
use super::content::{Feed, Unread, streamed};
use super::dial::{Place, cut, within};
use super::grpc::{Bad, KIND, Messages, STATUS, framed};
use super::request::lists;
use super::{Arguments, message, unknown};

/// How long the connection has to send the end of a stream that was given up.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// The client's options and operand.
#[derive(Clone)]
pub(super) struct Wanted {
    place: Place,
    url: Uri,
    headers: HeaderMap,
    messages: u64,
    /// How long each message is at least.
    bytes: usize,
    pause: Duration,
    /// Whether messages are sent without waiting for those before to come back.
    flood: bool,
    /// After so many messages the stream is given up.
    cancel_after: Option<u64>,
}

impl Wanted {
    /// `[OPTION…] URL`
    pub(super) fn parse(args: &[&str]) -> Result<Self, Broken> {
        let mut arguments = Arguments(args);
        let mut wait = DEFAULT_TIMEOUT;
        let mut headers = HeaderMap::new();
        let (mut messages, mut bytes, mut pause, mut flood) = (1, 0, Duration::ZERO, false);
        let mut cancel_after = None;
        while let Some(option) = arguments.option() {
            match option {
                "messages" => messages = arguments.value(option)?,
                "bytes" => bytes = arguments.value(option)?,
                "pause" => pause = arguments.seconds(option)?,
                "flood" => flood = true,
                "cancel-after" => cancel_after = Some(arguments.value(option)?),
                "timeout" => wait = arguments.seconds(option)?,
                "header" => {
                    let (name, value) = arguments.header(option)?;
                    headers.append(name, value);
                }
                _ => return Err(unknown(option)),
            }
        }
        let url = arguments.operand("URL")?;
        let url: Uri = url.parse().map_err(|error| Broken::Usage(format!("{url}: {error}")))?;
        let place = Place::of(&url, wait)?;
        Ok(Self { place, url, headers, messages, bytes, pause, flood, cancel_after })
    }

    fn message(&self, number: u64) -> String {
        message(number, self.bytes)
    }
}

/// Makes the call, and tells what it came to.
pub(super) async fn run(wanted: Wanted, tell: impl Fn(Value)) -> Result<(), Broken> {
    let mut sender = within(wanted.place.timeout, wanted.place.http2()).await?;
    let (feed, content) = streamed();
    let mut request = Request::new(content);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = wanted.url.clone();
    *request.headers_mut() = wanted.headers.clone();
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(KIND));
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    let started = Instant::now();
    let (mut feed, mut sent) = (Some(feed), 0);
    if wanted.flood {
        tokio::spawn(send_all(wanted.clone(), feed.take()));
    } else if wanted.messages > 0 {
        // A server may wait for the first message before it says anything.
        let _ = send(feed.as_ref(), &wanted, &mut sent).await;
    }
    if sent >= wanted.messages {
        // A call of one message has ended on this side before anything comes.
        feed = None;
    }
    let asked = async { sender.send_request(request).await.map_err(|error| cut(&error)) };
    let response = within(wanted.place.timeout, asked).await?;
    let (head, body) = response.into_parts();
    let mut messages = Messages::of(body);
    let ended = converse(&wanted, &mut messages, feed, sent).await;
    let status = messages.trailers.get(STATUS).or_else(|| head.headers.get(STATUS));
    tell(json!({
        "status": head.status.as_u16(),
        "instance": head.headers.get(super::INSTANCE).and_then(|name| name.to_str().ok()),
        "grpcStatus": status.and_then(|status| status.to_str().ok()),
        "messages": messages.count,
        "headers": lists(&head.headers),
        "trailers": lists(&messages.trailers),
        "error": ended.as_ref().err().map(ToString::to_string),
        "ms": u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    }));
    drop((messages, sender));
    sleep(LAST_WORDS).await;
    ended
}

/// Exchanges messages until the server ends the stream, or it is given up.
async fn converse(
    wanted: &Wanted,
    messages: &mut Messages<Incoming>,
    mut feed: Option<Feed>,
    mut sent: u64,
) -> Result<(), Broken> {
    loop {
        if wanted.cancel_after.is_some_and(|most| messages.count >= most) {
            return Ok(());
        }
        if sent >= wanted.messages {
            // The end of what is sent, which the server's status waits for.
            feed = None;
        }
        let next = async { messages.next().await.map_err(|bad| broken(&bad)) };
        let Some(message) = within(wanted.place.timeout, next).await? else { return Ok(()) };
        let expected = wanted.message(messages.count);
        if message != expected.as_bytes() {
            return Err(Broken::Wrong(format!("{expected:?} came back as {message:?}")));
        }
        if feed.is_some() && sent < wanted.messages {
            sleep(wanted.pause).await;
            // Whoever answers without reading says why in the status.
            let _ = send(feed.as_ref(), wanted, &mut sent).await;
        }
    }
}

fn broken(bad: &Bad) -> Broken {
    match bad {
        Bad::Cut => Broken::Cut(std::io::ErrorKind::UnexpectedEof.into()),
        Bad::TooLong => Broken::Wrong("a message is too long".into()),
    }
}

async fn send(feed: Option<&Feed>, wanted: &Wanted, sent: &mut u64) -> Result<(), Unread> {
    *sent += 1;
    feed.ok_or(Unread)?.data(framed(wanted.message(*sent).as_bytes())).await
}

async fn send_all(wanted: Wanted, feed: Option<Feed>) {
    let mut sent = 0;
    while sent < wanted.messages && send(feed.as_ref(), &wanted, &mut sent).await.is_ok() {}
}
