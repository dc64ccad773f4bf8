//! The HTTP server: HTTP/1.0, HTTP/1.1 and HTTP/2 with prior knowledge on the same port. It answers every request with
//! an account of it, writes a line of JSON for each to standard output, and misbehaves as it is told.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::http::request::Parts;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::super::connection::Broken;
use super::super::servers::{ACCEPT_PAUSE, BACKLOG};
use super::super::{LISTENING, say};
use super::behaviour::{Behaviour, Close, Counted};
use super::content::{Content, Fault, Feed, Read, Summed, Unread, streamed, whole};
use super::request::{Place, account, body, target};
use super::socket::{Doom, Doomed};
use super::{CHECKSUM, INSTANCE, grpc, websocket};

/// Where the standing behaviour is set.
const BEHAVE: &str = "/behave";

/// What an HTTP/2 connection begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long half a body has to reach the client before the connection is reset: a reset discards what waits.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_millis(100);

/// One instance.
pub(super) struct Web {
    name: String,
    /// What holds for requests that ask for nothing themselves.
    standing: Mutex<Behaviour>,
    counted: Mutex<Counted>,
    connections: AtomicU64,
}

/// Serves until the process ends.
pub(super) async fn serve(name: &str, addresses: &[SocketAddr]) -> Result<(), Broken> {
    let web = Arc::new(Web::new(name));
    let mut listeners = Vec::new();
    for address in addresses {
        listeners.push(listen(*address).map_err(Broken::Own)?);
    }
    let mut loops = JoinSet::new();
    for listener in listeners {
        say(format_args!("{LISTENING} {}", listener.local_addr().map_err(Broken::Own)?));
        loops.spawn(accept(Arc::clone(&web), listener));
    }
    while loops.join_next().await.is_some() {}
    Ok(())
}

pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let explain =
        |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"));
    let listener = std::net::TcpListener::bind(address).map_err(explain)?;
    rustix::net::listen(&listener, BACKLOG)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Takes connections for ever.
pub(super) async fn accept(web: Arc<Web>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(Arc::clone(&web).converse(stream))),
            Err(error) => {
                say(format_args!("cannot accept: {error}"));
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A request whose client gave up before it had its answer: the line tells that this was noticed.
struct Abandoned(Option<String>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some(target) = &self.0 {
            say(format_args!("abandoned {target}"));
        }
    }
}

impl Web {
    pub(super) fn new(name: &str) -> Self {
        let (standing, counted) = (Mutex::default(), Mutex::default());
        Self { name: name.to_owned(), standing, counted, connections: AtomicU64::new(0) }
    }

    /// One connection to its end.
    async fn converse(self: Arc<Self>, stream: TcpStream) {
        let connection = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        let Ok(speaks_http2) = begins_with_preface(&stream).await else { return };
        let _ = stream.set_nodelay(true);
        let doom = Doom::default();
        let io = TokioIo::new(Doomed::new(stream, doom.clone()));
        let requests = AtomicU64::new(0);
        let service = service_fn(|request| {
            let request_number = requests.fetch_add(1, Ordering::Relaxed) + 1;
            let place = Place { connection, request: request_number };
            Arc::clone(&self).answer(request, place, doom.clone())
        });
        // How it ends is the client's business, or was asked for.
        if speaks_http2 {
            let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await;
        } else {
            let mut builder = http1::Builder::new();
            builder.header_read_timeout(None);
            let _ = builder.serve_connection(io, service).with_upgrades().await;
        }
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        place: Place,
        doom: Doom,
    ) -> Result<Response<Content>, Fault> {
        let mut abandoned = Abandoned(Some(request.uri().to_string()));
        let answer = Box::pin(self.answer_at_length(request, place, doom)).await;
        abandoned.0 = None;
        let mut answer = answer?;
        answer.headers_mut().insert(INSTANCE, self.name.parse()?);
        Ok(answer)
    }

    async fn answer_at_length(
        &self,
        request: Request<Incoming>,
        place: Place,
        doom: Doom,
    ) -> Result<Response<Content>, Fault> {
        if request.uri().path() == BEHAVE && request.method() == Method::POST {
            return self.take_order(request.uri().query().unwrap_or_default());
        }
        let (head, incoming) = request.into_parts();
        let mut told = account(&self.name, &head, place);
        say(Value::Object(told.clone()));
        let behaviour = match self.behaviour(&head) {
            Ok(behaviour) => behaviour,
            Err(why) => return plain(StatusCode::BAD_REQUEST, why),
        };
        if behaviour.hang {
            return std::future::pending().await;
        }
        if websocket::is_asked_for(&head) {
            return websocket::accept(Request::from_parts(head, incoming));
        }
        if grpc::is_asked_for(&head) {
            sleep(behaviour.delay).await;
            break_before_head(&behaviour, &head, &doom)?;
            return grpc::answer(&head, incoming, behaviour.status);
        }
        if behaviour.early {
            // Read all the same: what is not read would make the server close the connection.
            tokio::spawn(Read::all(incoming));
        } else {
            told.insert("body".into(), body(&Read::all(incoming).await?));
        }
        sleep(behaviour.delay).await;
        break_before_head(&behaviour, &head, &doom)?;
        let doom = (head.version != Version::HTTP_2).then_some(doom);
        respond(behaviour, format!("{}\n", Value::Object(told)), doom)
    }

    fn take_order(&self, query: &str) -> Result<Response<Content>, Fault> {
        match Behaviour::of_order(query) {
            Ok(behaviour) => {
                say(format_args!("behaves {behaviour:?}"));
                *lock(&self.standing) = behaviour;
                lock(&self.counted).forget();
                plain(StatusCode::OK, format!("{} behaves as told", self.name))
            }
            Err(why) => plain(StatusCode::BAD_REQUEST, why),
        }
    }

    /// What is to be done with a request, which is counted by that.
    fn behaviour(&self, head: &Parts) -> Result<Behaviour, String> {
        let standing = lock(&self.standing).clone();
        let own = match standing.literal {
            true => None,
            false => Behaviour::of_query(head.uri.query().unwrap_or_default())?,
        };
        let (behaviour, target) = match own {
            Some(behaviour) => (behaviour, target(head)),
            None => (standing, ""),
        };
        let number = lock(&self.counted).count(target);
        Ok(behaviour.at(number))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks at the first bytes without taking them.
async fn begins_with_preface(stream: &TcpStream) -> io::Result<bool> {
    let mut seen = [0; PREFACE.len()];
    loop {
        let length = stream.peek(&mut seen).await?;
        if length == 0 || seen[..length] != PREFACE[..length] {
            return Ok(false);
        }
        if length == PREFACE.len() {
            return Ok(true);
        }
        // A peek of what is already there returns at once.
        sleep(ACCEPT_PAUSE).await;
    }
}

/// Fails where the answer is to be cut off before its head.
fn break_before_head(behaviour: &Behaviour, head: &Parts, doom: &Doom) -> Result<(), Fault> {
    let is_http2 = head.version == Version::HTTP_2;
    match behaviour.close {
        Some(Close::BeforeHead | Close::Refused) if !is_http2 => doom.seal(),
        _ => {}
    }
    match behaviour.close {
        Some(Close::BeforeHead) => Err("cut off on purpose".into()),
        Some(Close::Refused) => Err(h2::Error::from(h2::Reason::REFUSED_STREAM).into()),
        Some(Close::MidBody) | None => Ok(()),
    }
}

fn plain(status: StatusCode, text: String) -> Result<Response<Content>, Fault> {
    Ok(Response::builder().status(status).header(CONTENT_TYPE, "text/plain").body(whole(text + "\n"))?)
}

/// The answer as the behaviour wants it; `doom` is the connection's, if the connection is to end with a broken body.
fn respond(behaviour: Behaviour, account: String, doom: Option<Doom>) -> Result<Response<Content>, Fault> {
    let mut head = Response::builder().status(behaviour.status.unwrap_or(StatusCode::OK));
    let kind = if behaviour.size.is_some() { "application/octet-stream" } else { "application/json" };
    head = head.header(CONTENT_TYPE, kind);
    for (name, value) in &behaviour.headers {
        head = head.header(name, value);
    }
    let length = behaviour.size.unwrap_or(account.len() as u64);
    if matches!(behaviour.status, Some(StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)) {
        return Ok(head.body(whole(""))?);
    }
    let is_plain = behaviour.size.is_none() && behaviour.close.is_none() && behaviour.body_delay.is_zero();
    if behaviour.trailers {
        head = head.header("trailer", CHECKSUM);
    } else if !behaviour.chunked {
        if is_plain {
            return Ok(head.body(whole(account))?);
        }
        head = head.header("content-length", length);
    }
    let (feed, content) = streamed();
    tokio::spawn(async move { write(&feed, &behaviour, (account, length), doom).await });
    Ok(head.body(content)?)
}

/// Writes a body: the account, or so many bytes of the pattern.
async fn write(
    feed: &Feed,
    behaviour: &Behaviour,
    (account, length): (String, u64),
    doom: Option<Doom>,
) -> Result<(), Unread> {
    sleep(behaviour.body_delay).await;
    let breaks = behaviour.close == Some(Close::MidBody);
    let length = if breaks { length / 2 } else { length };
    let mut read = Read::default();
    if behaviour.size.is_some() {
        let mut pattern = Summed::new();
        feed.pattern(&mut pattern, length).await?;
        read.sum = pattern.sum;
    } else {
        let bytes = account.as_bytes();
        let bytes = &bytes[..usize::try_from(length).unwrap_or(bytes.len())];
        read.sum.add(bytes);
        feed.data(bytes.to_vec().into()).await?;
    }
    if breaks {
        sleep(LAST_WORDS).await;
        if let Some(doom) = doom {
            doom.seal();
        }
        return feed.break_off().await;
    }
    if behaviour.trailers
        && let Ok(sum) = read.sum.digest().parse()
    {
        feed.trailers([(CHECKSUM, sum)].into_iter().collect()).await?;
    }
    Ok(())
}
