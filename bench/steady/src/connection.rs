//! One kept connection: at most one request is under way on it, and its answer is read as far as it has come.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer that is read, head and body.
const MAX_ANSWER: usize = 64 * 1024;
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// A connection, and what it is waited for on it.
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    request: Vec<u8>,
    received: Vec<u8>,
    /// The request that is under way.
    pub(crate) under_way: Option<u64>,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)
            .with_context(|| format!("no connection to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\n\r\n").into_bytes();
        Ok(Self { stream, request, received: Vec::with_capacity(MAX_ANSWER), under_way: None })
    }

    /// Sends the request of this number.
    pub(crate) fn send(&mut self, number: u64) -> Result<()> {
        let sent = (&self.stream).write(&self.request).context("a request cannot be sent")?;
        // Some hundred bytes into an empty socket buffer.
        ensure!(sent == self.request.len(), "only {sent} bytes of a request could be sent");
        self.under_way = Some(number);
        Ok(())
    }

    /// Reads what has come, and returns the number of the request if that was the rest of its answer.
    pub(crate) fn receive(&mut self) -> Result<Option<u64>> {
        let mut buffer = [0; 4096];
        loop {
            match (&self.stream).read(&mut buffer) {
                Ok(0) => bail!("a connection was closed"),
                Ok(length) => self.received.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("a connection broke"),
            }
            if is_whole(&self.received)? {
                self.received.clear();
                return self.under_way.take().map(Some).context("an answer came that nobody asked for");
            }
        }
    }
}

/// Whether this is an answer to its end; an error if it is none that can be measured.
fn is_whole(received: &[u8]) -> Result<bool> {
    ensure!(received.len() <= MAX_ANSWER, "an answer is longer than {MAX_ANSWER} bytes");
    let Some(end) = received.windows(END_OF_HEAD.len()).position(|window| window == END_OF_HEAD) else {
        return Ok(false);
    };
    let head = String::from_utf8_lossy(&received[..end]);
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    ensure!(status.starts_with("HTTP/1.1 200"), "an answer begins with {status:?}");
    let mut fields = lines.filter_map(|line| line.split_once(':'));
    let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let (_, length) = length.context("an answer says no Content-Length")?;
    let length: usize = length.trim().parse().context("an answer's Content-Length is no number")?;
    let whole = end + END_OF_HEAD.len() + length;
    ensure!(received.len() <= whole, "more came than was asked for");
    Ok(received.len() == whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(received: &str, expected: Option<bool>) {
        assert_eq!(is_whole(received.as_bytes()).ok(), expected, "{received:?}");
    }

    #[test]
    fn answers_are_told_from_parts_of_them() {
        for part in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na"] {
            check(part, Some(false));
        }
        check("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx: y\r\n\r\nab", Some(true));
        check("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Some(true));
        for bad in [
            "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
        ] {
            check(bad, None);
        }
    }
}
