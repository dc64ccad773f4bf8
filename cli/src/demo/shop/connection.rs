//! A client's way to a server: by name, with a bound on every wait, and with errors that tell how far it came.

use std::io::{self, ErrorKind};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use super::exit;

/// Why a client did not get what it wanted.
#[derive(Debug)]
pub(super) enum Broken {
    /// The arguments make no sense.
    Usage(String),
    /// This end cannot do its part: a server cannot listen, for one.
    Own(io::Error),
    /// The resolver has no address.
    NoName(String, io::Error),
    /// No address could be connected to; the last one's error.
    NoConnection(String, io::Error),
    /// An error on an open connection.
    Cut(io::Error),
    /// The other end said this.
    Wrong(String),
}

impl Broken {
    /// The exit code that stands for it.
    pub(super) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => super::USAGE,
            Self::Own(_) | Self::Wrong(_) => exit::WRONG,
            Self::NoName(..) => exit::NO_NAME,
            Self::NoConnection(..) => exit::NO_CONNECTION,
            Self::Cut(error) if is_timeout(error) => exit::SILENT,
            Self::Cut(_) => exit::CUT,
        }
    }
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Usage(why) | Self::Wrong(why) => f.write_str(why),
            Self::Own(error) => error.fmt(f),
            Self::NoName(name, error) => write!(f, "{name} has no address: {error}"),
            Self::NoConnection(place, error) => write!(f, "{place} cannot be reached: {error}"),
            Self::Cut(error) if is_timeout(error) => f.write_str("nothing came in time"),
            Self::Cut(error) => write!(f, "the connection ended: {error}"),
        }
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Cut(error)
    }
}

/// A blocking socket reports the end of its timeout as either (socket(7)).
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Whom a client calls.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) name: String,
    pub(super) port: u16,
    pub(super) timeout: Duration,
}

impl Client {
    /// `[--timeout SECONDS] NAME PORT` at the head of `args`, and what follows.
    pub(super) fn parse<'a, 'b>(
        args: &'b [&'a str],
        timeout: Duration,
    ) -> Result<(Self, &'b [&'a str]), Broken> {
        match args {
            ["--timeout", seconds, rest @ ..] => {
                Self::parse(rest, Duration::from_secs(super::number(seconds)?))
            }
            [name, port, rest @ ..] => {
                Ok((Self { name: (*name).to_owned(), port: super::number(port)?, timeout }, rest))
            }
            _ => Err(Broken::Usage("a client needs a name and a port".into())),
        }
    }

    /// Resolves the name and tries its addresses in turn.
    pub(super) fn connect(&self) -> Result<TcpStream, Broken> {
        let no_name = |error| Broken::NoName(self.name.clone(), error);
        let mut last = io::Error::from(ErrorKind::AddrNotAvailable);
        for address in (self.name.as_str(), self.port).to_socket_addrs().map_err(no_name)? {
            match TcpStream::connect_timeout(&address, self.timeout) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(self.timeout))?;
                    stream.set_write_timeout(Some(self.timeout))?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(Broken::NoConnection(format!("{}:{}", self.name, self.port), last))
    }
}

/// The longest line that either end of a line protocol takes.
const MAX_LINE: u64 = 64 * 1024;

/// Reads a line without its end; `None` when the other end has nothing more to say.
///
/// # Errors
/// If the connection breaks, or ends within a line.
pub(super) fn read_line(reader: &mut impl io::BufRead) -> io::Result<Option<String>> {
    use io::{BufRead as _, Read as _};
    let mut line = String::new();
    reader.by_ref().take(MAX_LINE).read_line(&mut line)?;
    match line.pop() {
        None => Ok(None),
        Some('\n') => Ok(Some(line)),
        Some(_) => Err(ErrorKind::UnexpectedEof.into()),
    }
}

/// Reads a line that has to come.
pub(super) fn expect_line(reader: &mut impl io::BufRead) -> io::Result<String> {
    read_line(reader)?.ok_or_else(|| ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_or_an_error() {
        let check = |bytes: &[u8], expected: Option<Option<&str>>| {
            let line = read_line(&mut io::Cursor::new(bytes)).ok();
            assert_eq!(line.as_ref().map(Option::as_deref), expected, "{bytes:?}");
        };
        check(b"", Some(None));
        check(b"\n", Some(Some("")));
        check(b"price tea\nmore", Some(Some("price tea")));
        check(b"price", None);
        check(b"\xff\n", None);
        check(&[b'x'; MAX_LINE as usize + 1], None);
    }

    #[test]
    fn clients_are_told_whom_to_call() {
        let parse = |args: &[&str]| {
            Client::parse(args, Duration::from_secs(1))
                .map(|(client, rest)| (client.name, client.port, client.timeout.as_secs(), rest.len()))
        };
        assert_eq!(parse(&["orders", "80", "order tea"]).ok(), Some(("orders".into(), 80, 1, 1)));
        assert_eq!(parse(&["--timeout", "3", "orders", "80"]).ok(), Some(("orders".into(), 80, 3, 0)));
        for bad in [&["orders"][..], &["orders", "port"], &["--timeout", "x", "orders", "80"], &[]] {
            assert!(matches!(parse(bad), Err(Broken::Usage(_))), "{bad:?}");
        }
    }
}
