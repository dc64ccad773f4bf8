//! What a connection speaks to a port whose protocol is `auto`: its first bytes tell, and are left where they are.

/// What arrives at services of this host.
mod arriving;

use std::time::Duration;

use rustls::server::Acceptor;
use tokio::net::TcpStream;

pub use arriving::{First, arrives_as_http, hello_of};

/// How long a caller may take for its first bytes; one that waits for the server to speak first is carried as bytes.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between the first two looks at a caller that has begun, and has not said enough. What it says meanwhile wakes nobody,
/// since what it said before is left where it is; each further look comes twice as late as the one before, so that who
/// says little for long costs little.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// The longest between two looks.
const LOOK_AT_LEAST: Duration = Duration::from_millis(128);
/// Ports on which servers speak first (SMTP, DNS, MySQL, MongoDB): waiting would only delay them.
const NEVER: [u16; 4] = [25, 53, 3306, 27017];
/// The longest method that is taken for one, and its space.
const LONGEST_METHOD: usize = 17;
/// The start of every HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";

/// Whether a connection to `port` begins as HTTP does.
pub async fn is_http(client: &TcpStream, port: u16) -> bool {
    if NEVER.contains(&port) {
        return false;
    }
    let told = async {
        let mut first = [0; 32];
        let mut pause = LOOK_AGAIN;
        loop {
            // Nothing is taken: the bytes are read by whoever carries them.
            match client.peek(&mut first).await {
                Ok(0) | Err(_) => return false,
                Ok(length) => {
                    if let Some(told) = tell(&first[..length]) {
                        return told;
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(LOOK_AT_LEAST);
        }
    };
    tokio::time::timeout(PATIENCE, told).await.unwrap_or(false)
}

/// How much of a TLS client's first message is looked at.
const HELLO: usize = 16 * 1024;

/// The name that a TLS client asks for in its first message (RFC 6066, section 3), in lower case.
pub async fn server_name(client: &TcpStream) -> Option<String> {
    let told = async {
        let mut first = vec![0; HELLO];
        let (mut before, mut pause) = (0, LOOK_AGAIN);
        loop {
            match client.peek(&mut first).await {
                Ok(0) | Err(_) => return None,
                Ok(length) if length > before => {
                    before = length;
                    if let Some(told) = hello(&first[..length]) {
                        return told;
                    }
                }
                Ok(HELLO) => return None,
                Ok(_) => {}
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(LOOK_AT_LEAST);
        }
    };
    tokio::time::timeout(PATIENCE, told).await.ok().flatten()
}

/// How much of a request's head is looked at.
const HEAD: usize = 8 * 1024;

/// The host that the first request of HTTP/1 names, without a port, in lower case; nothing of HTTP/2, whose fields are not
/// to be read in passing.
pub async fn host(client: &TcpStream) -> Option<String> {
    let told = async {
        let mut first = vec![0; HEAD];
        let (mut before, mut pause) = (0, LOOK_AGAIN);
        loop {
            match client.peek(&mut first).await {
                Ok(0) | Err(_) => return None,
                Ok(length) if length > before => {
                    before = length;
                    if let Some(told) = host_of(&first[..length]) {
                        return told;
                    }
                }
                Ok(HEAD) => return None,
                Ok(_) => {}
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(LOOK_AT_LEAST);
        }
    };
    tokio::time::timeout(PATIENCE, told).await.ok().flatten()
}

/// The host in a request's first bytes; nothing while they are not enough. What is made of the request itself is decided
/// when it is read in full.
fn host_of(bytes: &[u8]) -> Option<Option<String>> {
    if bytes.starts_with(PREFACE) {
        return Some(None);
    }
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').skip(1);
    loop {
        let line = lines.next()?;
        let line = line.strip_suffix(b"\n")?;
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            return Some(None);
        }
        let Some((name, value)) = line.split_at_checked(5) else { continue };
        if name.eq_ignore_ascii_case(b"host:") {
            let value = str::from_utf8(value).ok().map(str::trim).unwrap_or_default();
            let host = value.rsplit_once(':').map_or(value, |(host, _)| host);
            return Some((!host.is_empty()).then(|| host.to_ascii_lowercase()));
        }
    }
}

/// The name in a TLS client's first message; nothing while it is not whole.
fn hello(mut bytes: &[u8]) -> Option<Option<String>> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        if acceptor.read_tls(&mut bytes).is_err() {
            return Some(None);
        }
    }
    match acceptor.accept() {
        Ok(None) => None,
        Ok(Some(accepted)) => Some(accepted.client_hello().server_name().map(str::to_ascii_lowercase)),
        Err(_) => Some(None),
    }
}

/// What first bytes tell; nothing while they may become either. A method in capitals, and a target after it.
fn tell(bytes: &[u8]) -> Option<bool> {
    if bytes.starts_with(PREFACE) {
        return Some(true);
    }
    if PREFACE.starts_with(bytes) {
        return None;
    }
    let method = bytes.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
    match bytes.get(method) {
        None if method < LONGEST_METHOD => None,
        Some(b' ') if method >= 3 => bytes.get(method + 1).map(|first| matches!(first, b'/' | b'*' | b'h')),
        _ => Some(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_read_from_a_whole_first_message() {
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = "Orders.Example".try_into().expect("a name");
        let mut client = rustls::ClientConnection::new(config.into(), name).expect("a client");
        let mut first = Vec::new();
        client.write_tls(&mut first).expect("written");
        assert_eq!(hello(&first), Some(Some("orders.example".to_owned())));
        assert_eq!(hello(&first[..first.len() - 1]), None);
        assert_eq!(hello(b"GET / HTTP/1.1\r\n\r\n"), Some(None));
    }

    #[test]
    fn the_host_is_read_from_a_head_that_goes_so_far() {
        let check = |bytes: &[u8], expected: Option<Option<&str>>| {
            let found = host_of(bytes);
            assert_eq!(
                found.as_ref().map(|host| host.as_deref()),
                expected,
                "{}",
                String::from_utf8_lossy(bytes)
            );
        };
        check(b"GET / HTTP/1.1\r\nHost: API.example.com:8080\r\n\r\n", Some(Some("api.example.com")));
        check(b"GET / HTTP/1.1\r\nA: b\r\nhost:a.b\r\n", Some(Some("a.b")));
        check(b"GET / HTTP/1.1\r\nHost: api.exam", None);
        check(b"GET / HTTP/1.1\r\nA: b\r\n\r\n", Some(None));
        check(b"GET / HTTP/1.1\r\nHost:\r\n\r\n", Some(None));
        check(PREFACE, Some(None));
    }

    #[test]
    fn first_bytes_tell() {
        let check = |bytes: &[u8], expected| {
            assert_eq!(tell(bytes), expected, "{}", String::from_utf8_lossy(bytes));
        };
        check(b"GET / HTTP/1.1", Some(true));
        check(b"OPTIONS *", Some(true));
        check(b"GET http://a/", Some(true));
        check(b"PRI * HTTP/2.0\r\n\r\nSM", Some(true));
        check(b"PRI * HT", None);
        check(b"GE", None);
        check(b"GET ", None);
        check(b"HELO there", Some(false));
        check(b"SET key value", Some(false));
        check(b"get / HTTP/1.1", Some(false));
        check(b"\x16\x03\x01", Some(false));
        check(b"A /", Some(false));
        check(&[b'A'; 20], Some(false));
    }
}
