//! What a connection for a service of this host speaks, at a port that does not say it. Here it matters more than where the
//! call is made: a request that passes for something else reaches the program with whatever its sender claims to be. What
//! some server might read as a request therefore is one, and nothing is passed on before that is known.

use std::future::{pending, poll_fn};
use std::io;
use std::pin::pin;
use std::time::Duration;

use baremesh_model::authorization::Hello;
use baremesh_model::service::Protocol;
use bytes::BytesMut;
use h2::RecvStream;
use rustls::server::Acceptor;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{HELLO, LOOK_AGAIN, NEVER, tell};
use crate::proxy::http::downstream::until;
use crate::proxy::http::h1::HEAD_TIMEOUT;
use crate::proxy::relay::h2_error;

/// The most that is read to tell: what is longer, and may be a request still, is one.
const LONGEST: usize = 8 * 1024;
/// How long a caller that has begun may take until it can be told: as long as for the head of a request.
const PATIENCE: Duration = HEAD_TIMEOUT;
/// Bytes of a frame's head in HTTP/2.
const SETTINGS_HEAD: usize = 9;

/// Where a caller's first bytes are seen.
pub enum First<'a> {
    /// They stay in the socket.
    Socket(&'a TcpStream),
    /// They are taken from the stream and kept here; its window is not given back.
    Stream(&'a mut RecvStream, &'a mut BytesMut),
}

/// Whether a connection to `port` speaks HTTP. A caller that says nothing is waited for until the program speaks first:
/// whoever does has said that it is no HTTP server, unless what it says is what servers of HTTP/2 begin with, which some do
/// without waiting. Dropping the future loses nothing.
pub async fn arrives_as_http(first: &mut First<'_>, port: u16, program: &TcpStream) -> io::Result<bool> {
    if NEVER.contains(&port) {
        return Ok(false);
    }
    let mut buffer = Vec::new();
    let mut deadline = None;
    let mut greeted = pin!(greets_as_http(program));
    loop {
        let told = tokio::select! {
            biased;
            // What has not become a request by its end will not become one.
            seen = first.more(&mut buffer, LONGEST, told) => seen?.or_end(false),
            is_http = &mut greeted => return Ok(is_http),
            () = until(deadline) => return Ok(true),
        };
        if let Some(told) = told {
            return Ok(told);
        }
        deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
    }
}

/// The application's own TLS in a connection to a port of this protocol that is carried as bytes. A caller that says nothing
/// is waited for until the program speaks first, where one is behind it: no server of TLS does. What begins otherwise is none at a port that says
/// nothing of it; at one that is said to speak TLS nobody knows what else may hide it, and rules fail closed.
pub async fn hello_of(
    first: &mut First<'_>,
    protocol: Protocol,
    program: Option<&TcpStream>,
) -> io::Result<Hello> {
    let otherwise = if protocol == Protocol::Auto { Hello::Absent } else { Hello::Unread };
    let mut reading = Reading { acceptor: Acceptor::default(), fed: 0, otherwise: otherwise.clone() };
    if let First::Stream(_, taken) = first
        && let Some(told) = reading.told(taken)
    {
        return Ok(told);
    }
    let mut buffer = Vec::new();
    let mut deadline = None;
    let mut spoken = pin!(async {
        match program {
            // However it ended.
            Some(program) => _ = program.peek(&mut [0]).await,
            None => pending().await,
        }
    });
    loop {
        let told = tokio::select! {
            biased;
            seen = first.more(&mut buffer, HELLO, |bytes| reading.told(bytes)) => seen?.or_end(Hello::Unread),
            () = &mut spoken => return Ok(otherwise),
            () = until(deadline) => return Ok(Hello::Unread),
        };
        if let Some(told) = told {
            return Ok(told);
        }
        deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
    }
}

/// The first message of a TLS client, as far as it has come.
struct Reading {
    acceptor: Acceptor,
    /// How much of it the acceptor has had: each byte once, however it is cut.
    fed: usize,
    /// What it is taken for if it is none.
    otherwise: Hello,
}

impl Reading {
    /// What all bytes so far tell; nothing while the message is not whole.
    fn told(&mut self, bytes: &[u8]) -> Option<Hello> {
        /// The content type of a handshake's record (RFC 8446, section 5.1).
        const HANDSHAKE: u8 = 22;
        if *bytes.first()? != HANDSHAKE {
            return Some(self.otherwise.clone());
        }
        let mut fresh = bytes.get(self.fed..).unwrap_or_default();
        self.fed = bytes.len();
        while !fresh.is_empty() {
            if !matches!(self.acceptor.read_tls(&mut fresh), Ok(1..)) {
                return Some(Hello::Unread);
            }
            match self.acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    return Some(accepted.client_hello().server_name().map_or(Hello::Nameless, named));
                }
                Err(_) => return Some(Hello::Unread),
            }
        }
        (bytes.len() >= HELLO).then_some(Hello::Unread)
    }
}

/// A client's server name as rules write it: in lower case, and without the dot at the end of a name from the root, which
/// is the same name to most servers though RFC 6066, section 3, has none.
fn named(name: &str) -> Hello {
    Hello::Named(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase().into())
}

/// Whether a program that speaks first begins as a server of HTTP does. Ends when it has said enough, or has ended or broken
/// off: readiness alone may be said of one that is quiet.
async fn greets_as_http(program: &TcpStream) -> bool {
    let mut said = [0; SETTINGS_HEAD];
    loop {
        let Ok(length @ 1..) = program.peek(&mut said).await else { return false };
        match greeting(&said[..length]) {
            Some(told) => return told,
            None => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

/// Whether a program's first bytes are the head of a SETTINGS frame (RFC 9113, section 6.5), or an answer that nobody has
/// asked for; nothing while they may become either.
fn greeting(bytes: &[u8]) -> Option<bool> {
    const ANSWER: &[u8] = b"HTTP/";
    if bytes.starts_with(ANSWER) {
        return Some(true);
    }
    let fits = |at: usize, wanted: u8| bytes.get(at).is_none_or(|byte| *byte == wanted);
    let is_settings = fits(3, 4) && (5..SETTINGS_HEAD).all(|at| fits(at, 0));
    let whole_entries =
        |length: &[u8; 3]| u32::from_be_bytes([0, length[0], length[1], length[2]]).is_multiple_of(6);
    let may_be_settings = is_settings && bytes.first_chunk().is_none_or(whole_entries);
    match may_be_settings {
        true if bytes.len() >= SETTINGS_HEAD => Some(true),
        true => None,
        false if ANSWER.starts_with(bytes) => None,
        false => Some(false),
    }
}

/// What came of waiting for more.
enum More<T> {
    /// All that came so far tells this, or nothing yet.
    Told(Option<T>),
    /// Nothing more comes.
    End,
}

impl<T> More<T> {
    fn or_end(self, end: T) -> Option<T> {
        match self {
            Self::Told(told) => told,
            Self::End => Some(end),
        }
    }
}

impl First<'_> {
    /// Waits for more than was seen before, and says what all of it tells, or as much as `most` bytes.
    async fn more<T>(
        &mut self,
        seen: &mut Vec<u8>,
        most: usize,
        mut look: impl FnMut(&[u8]) -> Option<T>,
    ) -> io::Result<More<T>> {
        match self {
            Self::Socket(socket) => loop {
                let before = seen.len();
                let ready = socket.ready(Interest::READABLE).await?;
                seen.resize(most, 0);
                let length = socket.peek(seen).await?;
                seen.truncate(length);
                if length > before {
                    return Ok(More::Told(look(seen)));
                }
                if ready.is_read_closed() {
                    return Ok(More::End);
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            },
            Self::Stream(stream, taken) => match poll_fn(|cx| stream.poll_data(cx)).await {
                Some(Ok(data)) => {
                    taken.extend_from_slice(&data);
                    Ok(More::Told(look(taken)))
                }
                Some(Err(error)) => Err(h2_error(error)),
                None => Ok(More::End),
            },
        }
    }
}

/// What first bytes tell; nothing while they may become either.
fn told(bytes: &[u8]) -> Option<bool> {
    let undecided = (bytes.len() >= LONGEST).then_some(true);
    // Servers overlook empty lines before a request (RFC 9112, section 2.2), and some overlook more.
    let Some(start) = bytes.iter().position(|byte| !byte.is_ascii_whitespace()) else { return undecided };
    let text = &bytes[start..];
    if tell(text) == Some(true) {
        return Some(true);
    }
    let method = text.iter().take_while(|byte| is_of_token(**byte)).count();
    match text.get(method) {
        None => return undecided,
        Some(behind) if method == 0 || !behind.is_ascii_whitespace() => return Some(false),
        Some(_) => {}
    }
    let end = text.iter().position(|byte| *byte == b'\n');
    let line = &text[..end.unwrap_or(text.len())];
    if line.windows(5).any(|part| part.eq_ignore_ascii_case(b"HTTP/")) {
        return Some(true);
    }
    let is_text = |byte: &u8| !byte.is_ascii_control() || byte.is_ascii_whitespace();
    if end.is_some() || !line.iter().all(is_text) { Some(false) } else { undecided }
}

/// What a method is made of (RFC 9110, section 5.6.2).
fn is_of_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[test]
    fn a_server_of_http2_may_speak_first_and_others_that_do_speak_something_else() {
        for (said, expected) in [
            (&[0, 0, 18, 4, 0, 0, 0, 0, 0][..], Some(true)),
            (&[0, 0, 0, 4, 0, 0, 0, 0, 0], Some(true)),
            (&[0, 0, 18], None),
            (&[0, 0, 17], Some(false)),
            (&[0, 0, 18, 4, 0, 0, 0, 0], None),
            (&[0, 0, 18, 4, 0, 0, 0, 0, 1], Some(false)),
            (&[0, 0, 18, 0], Some(false)),
            // A database's greeting, a mail server's, a shell's.
            (&[74, 0, 0, 0, 10, 56, 46, 48, 46], Some(false)),
            (b"220 mail", Some(false)),
            (b"SSH-2.0-", Some(false)),
            (b"HTT", None),
            (b"HTTP/1.1 ", Some(true)),
        ] {
            assert_eq!(greeting(said), expected, "{said:?}");
        }
    }

    #[test]
    fn a_name_from_the_root_is_the_name_that_rules_have() {
        let hello = |wanted: &'static str, sent: &str| {
            let roots = rustls::RootCertStore::empty();
            let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let config = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_root_certificates(roots)
                .with_no_client_auth();
            let name = wanted.try_into().expect("a server name");
            let mut client = rustls::ClientConnection::new(config.into(), name).expect("a client");
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).expect("a hello");
            // A client that leaves the dot out cannot be told to send one.
            let at =
                bytes.windows(wanted.len()).position(|part| part == wanted.as_bytes()).expect("its name");
            bytes[at..at + sent.len()].copy_from_slice(sent.as_bytes());
            let mut reading = Reading { acceptor: Acceptor::default(), fed: 0, otherwise: Hello::Absent };
            reading.told(&bytes)
        };
        assert_eq!(hello("bank.example", "bank.example"), Some(Hello::Named("bank.example".into())));
        assert_eq!(hello("bank.examplex", "Bank.Example."), Some(Hello::Named("bank.example".into())));
        assert_ne!(hello("bank.examplexx", "bank.example.."), Some(Hello::Named("bank.example".into())));
    }

    use crate::proxy::http::bytes::tests::sockets;

    #[test]
    fn whatever_a_server_might_take_for_a_request_is_one() {
        let check = |bytes: &[u8], expected| {
            assert_eq!(told(bytes), expected, "{}", String::from_utf8_lossy(bytes));
        };
        for request in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\r\n\r\nGET / HTTP/1.1\r\n",
            b"  \n GET / HTTP/1.1\n",
            b"get / http/1.1\r\n",
            b"GET  / HTTP/1.1\r\n",
            b"GET\t/\tHTTP/1.1\r\n",
            b"X / HTTP/1.0\r\n",
            b"GET HTTP://web/ HTTP/1.1\r\n",
            b"CONNECT web:80 HTTP/1.1\r\n",
            b"m-search * HTTP/1.1\r\n",
            b"GET web HTTP/1.1\rX-Forwarded-Client-Cert: me\r",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ] {
            check(request, Some(true));
            // Byte for byte it is never taken for something else meanwhile.
            for length in 0..request.len() {
                assert_ne!(told(&request[..length]), Some(false), "{length} of {request:?}");
            }
        }
        check(&[b'\n'; LONGEST], Some(true));
        check(&[&b"get /"[..], &[b'a'; LONGEST]].concat(), Some(true));
        check(b"SET key value\r\n", Some(false));
        check(b"*1\r\n$4\r\nPING\r\n", Some(false));
        check(b"PING\r\n", Some(false));
        check(b"\x16\x03\x01\x02\x00", Some(false));
        check(b"{\"id\": 1}", Some(false));
        check(b"SSH-2.0-OpenSSH_9.2\r\n", Some(false));
        check(b"login \x00\x01", Some(false));
        check(b"SET key", None);
        check(b"", None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_not_taken_for_something_else() {
        let (mut caller, arrived) = sockets().await;
        let (mut server, program) = sockets().await;
        let looked = async |arrived: &TcpStream, program: &TcpStream| {
            arrives_as_http(&mut First::Socket(arrived), 8080, program).await.expect("it stands")
        };
        // Nothing is said for long, and then a request comes after all.
        let late = async {
            tokio::time::sleep(Duration::from_secs(600)).await;
            caller.write_all(b"\r\nGET ").await.expect("written");
            tokio::time::sleep(Duration::from_secs(5)).await;
            caller.write_all(b"/ HTTP/1.1\r\n").await.expect("written");
        };
        let (is_http, ()) = tokio::join!(looked(&arrived, &program), late);
        assert!(is_http);
        assert!(!arrives_as_http(&mut First::Socket(&arrived), 25, &program).await.expect("it stands"));
        let (mut caller, arrived) = sockets().await;
        caller.write_all(b"G").await.expect("written");
        assert!(looked(&arrived, &program).await, "who begins and goes no further is answered as HTTP is");
        let (mut caller, arrived) = sockets().await;
        caller.write_all(b"QUIT").await.expect("written");
        drop(caller);
        assert!(!looked(&arrived, &program).await, "it will not become a request any more");
        let (_caller, arrived) = sockets().await;
        server.write_all(b"220 ready\r\n").await.expect("written");
        assert!(!looked(&arrived, &program).await, "the server spoke first");
    }
}
