//! What a connection speaks to a port whose protocol is `auto`: its first bytes tell, and are left where they are.

use std::time::Duration;

use tokio::net::TcpStream;

/// How long a caller may take for its first bytes; one that waits for the server to speak first is carried as bytes.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks at a caller that has begun, and has not said enough.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
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
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.unwrap_or(false)
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
