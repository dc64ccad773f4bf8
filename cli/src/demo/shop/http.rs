//! The shop's programs that speak HTTP: a server that answers with what it was asked and misbehaves as it is told, and
//! clients that print one line of JSON for each answer. Both use one thread and plain sockets.

mod behaviour;
mod content;
mod dial;
mod get;
mod grpc;
mod request;
mod socket;
mod stream;
mod web;
mod websocket;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::str::FromStr;
use std::time::Duration;

use hyper::http::{HeaderName, HeaderValue};

use super::connection::Broken;
use super::say;

/// The header with the server's name in every answer, so that it is known of answers without a body too.
pub(super) const INSTANCE: &str = "x-instance";

/// The trailer with the checksum of the body before it.
const CHECKSUM: HeaderName = HeaderName::from_static("x-checksum");

/// `web NAME ADDRESS…`
pub(super) fn serve(args: &[&str]) -> Result<(), Broken> {
    let Some((name, addresses)) = args.split_first() else {
        return Err(Broken::Usage("a server needs a name and an address".into()));
    };
    let addresses = super::addresses(addresses)?;
    block_on(web::serve(name, &addresses))
}

/// `get …`
pub(super) fn get(args: &[&str]) -> Result<(), Broken> {
    block_on(get::run(get::Wanted::parse(args)?, say))
}

/// `stream …`
pub(super) fn stream(args: &[&str]) -> Result<(), Broken> {
    block_on(stream::run(stream::Wanted::parse(args)?, say))
}

/// `websocket …`
pub(super) fn websocket(args: &[&str]) -> Result<(), Broken> {
    block_on(websocket::run(websocket::Wanted::parse(args)?, say))
}

fn block_on(work: impl Future<Output = Result<(), Broken>>) -> Result<(), Broken> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Broken::Own)?;
    runtime.block_on(work)
}

/// The arguments of a client, taken one by one.
struct Arguments<'a, 'b>(&'b [&'a str]);

impl<'a> Arguments<'a, '_> {
    /// The next option, without its hyphens; none where the operands begin.
    fn option(&mut self) -> Option<&'a str> {
        let (first, rest) = self.0.split_first()?;
        let name = first.strip_prefix("--")?;
        self.0 = rest;
        Some(name)
    }

    /// The value of the option `name`.
    fn text(&mut self, name: &str) -> Result<&'a str, Broken> {
        let (first, rest) =
            self.0.split_first().ok_or_else(|| Broken::Usage(format!("--{name} needs a value")))?;
        self.0 = rest;
        Ok(first)
    }

    fn value<T: FromStr>(&mut self, name: &str) -> Result<T, Broken> {
        let text = self.text(name)?;
        text.parse().map_err(|_| Broken::Usage(format!("--{name} cannot be {text:?}")))
    }

    fn seconds(&mut self, name: &str) -> Result<Duration, Broken> {
        let text = self.text(name)?;
        seconds(text).ok_or_else(|| Broken::Usage(format!("--{name} cannot be {text:?}")))
    }

    /// A value `Name: value`.
    fn header(&mut self, name: &str) -> Result<(HeaderName, HeaderValue), Broken> {
        let text = self.text(name)?;
        header(text).ok_or_else(|| Broken::Usage(format!("--{name} takes `Name: value`, not {text:?}")))
    }

    /// The one operand that is left.
    fn operand(&self, what: &str) -> Result<&'a str, Broken> {
        match self.0 {
            [one] => Ok(one),
            _ => Err(Broken::Usage(format!("one {what} is needed, and not {:?}", self.0))),
        }
    }
}

/// An option that a client does not have.
fn unknown(option: &str) -> Broken {
    Broken::Usage(format!("there is no option --{option}"))
}

/// Seconds with or without a fraction.
fn seconds(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.parse().ok()?).ok()
}

/// `Name: value`, or `Name:value`.
fn header(text: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = text.split_once(':')?;
    Some((name.trim().parse().ok()?, value.trim().parse().ok()?))
}

/// The message of that number, of so many bytes at least.
fn message(number: u64, bytes: usize) -> String {
    let mut text = format!("message {number}");
    text.extend(std::iter::repeat_n(' ', bytes.saturating_sub(text.len())));
    text
}
