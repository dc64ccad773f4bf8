//! WebSocket (RFC 6455), as much as an echo and its client need.

mod frame;

use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::http::HeaderValue;
use hyper::http::request::Parts;
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::super::connection::Broken;
use super::super::{DEFAULT_TIMEOUT, say};
use super::content::{Content, Fault, whole};
use super::dial::{Place, cut, within};
use super::{Arguments, INSTANCE, message, unknown};
use frame::{Frame, Kind, Mask};

/// What the key is joined with before it is hashed (RFC 6455, section 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The example's key: nobody is to be kept from guessing it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// Whether a request asks for an upgrade.
pub(super) fn is_asked_for(head: &Parts) -> bool {
    head.headers.get(UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Switches protocols and echoes, or says what is wrong with the request.
pub(super) fn accept(mut request: Request<Incoming>) -> Result<Response<Content>, Fault> {
    let headers = request.headers();
    let connection = headers.get(CONNECTION).map(HeaderValue::as_bytes).unwrap_or_default();
    let is_hop =
        connection.split(|byte| *byte == b',').any(|word| word.trim_ascii().eq_ignore_ascii_case(b"upgrade"));
    let is_13 = headers.get(SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13");
    let Some(key) = headers.get(SEC_WEBSOCKET_KEY).filter(|_| is_hop && is_13) else {
        return Ok(Response::builder()
            .status(StatusCode::BAD_REQUEST)
            .body(whole("no upgrade to WebSocket\n"))?);
    };
    let accepted = accept_value(key.as_bytes());
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let mut echoed = 0;
        let ended = echo(TokioIo::new(upgraded), &mut echoed).await;
        say(format_args!("websocket ended after {echoed} messages: {ended:?}"));
    });
    let answer = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
    let answer = answer.header(UPGRADE, "websocket").header(CONNECTION, "Upgrade");
    Ok(answer.header(SEC_WEBSOCKET_ACCEPT, accepted).body(whole(""))?)
}

fn accept_value(key: &[u8]) -> String {
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID.as_bytes()].concat()))
}

/// Sends back what comes, until the client closes.
async fn echo(mut stream: TokioIo<Upgraded>, echoed: &mut u64) -> std::io::Result<()> {
    while let Some(mut frame) = Frame::read(&mut stream).await? {
        match frame.kind {
            Kind::Ping => frame.kind = Kind::Pong,
            Kind::Pong => continue,
            _ => {}
        }
        frame.write(&mut stream, Mask::None).await?;
        if frame.kind == Kind::Close {
            return Ok(());
        }
        *echoed += u64::from(frame.kind != Kind::Pong);
    }
    Ok(())
}

/// The client's options and operand.
pub(super) struct Wanted {
    place: Place,
    url: Uri,
    messages: u64,
    bytes: usize,
    pause: Duration,
}

impl Wanted {
    /// `[OPTION…] URL`
    pub(super) fn parse(args: &[&str]) -> Result<Self, Broken> {
        let mut arguments = Arguments(args);
        let (mut messages, mut bytes, mut pause, mut wait) = (1, 0, Duration::ZERO, DEFAULT_TIMEOUT);
        while let Some(option) = arguments.option() {
            match option {
                "messages" => messages = arguments.value(option)?,
                "bytes" => bytes = arguments.value(option)?,
                "pause" => pause = arguments.seconds(option)?,
                "timeout" => wait = arguments.seconds(option)?,
                _ => return Err(unknown(option)),
            }
        }
        let url = arguments.operand("URL")?;
        let url: Uri = url.parse().map_err(|error| Broken::Usage(format!("{url}: {error}")))?;
        Ok(Self { place: Place::of(&url, wait)?, url, messages, bytes, pause })
    }
}

/// Upgrades, exchanges messages one by one, closes, and tells what it came to.
pub(super) async fn run(wanted: Wanted, tell: impl Fn(Value)) -> Result<(), Broken> {
    let started = Instant::now();
    let response = within(wanted.place.timeout, ask(&wanted)).await?;
    let status = response.status();
    let instance = response.headers().get(INSTANCE).and_then(|name| name.to_str().ok()).map(str::to_owned);
    let accepted = response.headers().get(SEC_WEBSOCKET_ACCEPT).cloned();
    let mut exchanged = 0;
    let ended = if status != StatusCode::SWITCHING_PROTOCOLS {
        Err(Broken::Wrong(format!("no upgrade: {status}")))
    } else if accepted.is_none_or(|accepted| accepted != accept_value(KEY.as_bytes())) {
        Err(Broken::Wrong("the key was not taken".into()))
    } else {
        converse(&wanted, response, &mut exchanged).await
    };
    tell(json!({
        "status": status.as_u16(),
        "instance": instance,
        "messages": exchanged,
        "error": ended.as_ref().err().map(ToString::to_string),
        "ms": u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    }));
    ended
}

async fn ask(wanted: &Wanted) -> Result<Response<Incoming>, Broken> {
    let authority = wanted.url.authority().map(ToString::to_string).unwrap_or_default();
    let request = Request::get(wanted.url.path_and_query().map_or("/", |target| target.as_str()));
    let request = request.header(HOST, authority).header(UPGRADE, "websocket").header(CONNECTION, "Upgrade");
    let request = request.header(SEC_WEBSOCKET_VERSION, "13").header(SEC_WEBSOCKET_KEY, KEY);
    let request = request.body(whole("")).map_err(|error| Broken::Usage(error.to_string()))?;
    let mut sender = wanted.place.http1().await?;
    sender.send_request(request).await.map_err(|error| cut(&error))
}

async fn converse(wanted: &Wanted, response: Response<Incoming>, exchanged: &mut u64) -> Result<(), Broken> {
    let upgraded = hyper::upgrade::on(response).await.map_err(|error| cut(&error))?;
    let mut stream = TokioIo::new(upgraded);
    for number in 1..=wanted.messages {
        let text = message(number, wanted.bytes);
        exchange(wanted, &mut stream, &Frame::new(Kind::Text, text)).await?;
        *exchanged = number;
        sleep(wanted.pause).await;
    }
    exchange(wanted, &mut stream, &Frame::new(Kind::Close, "")).await
}

async fn exchange(wanted: &Wanted, stream: &mut TokioIo<Upgraded>, frame: &Frame) -> Result<(), Broken> {
    let echoed = async {
        frame.write(stream, Mask::Random).await?;
        Ok(Frame::read(stream).await?)
    };
    match within(wanted.place.timeout, echoed).await? {
        Some(echoed) if echoed == *frame => Ok(()),
        Some(echoed) => Err(Broken::Wrong(format!("{frame:?} came back as {echoed:?}"))),
        None => Err(Broken::Cut(std::io::ErrorKind::UnexpectedEof.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_the_specification_is_answered_as_there() {
        assert_eq!(accept_value(KEY.as_bytes()), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
