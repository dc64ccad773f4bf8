//! How a server is told to misbehave: by parameters of a request's query for that request, or for all that follow by
//! the same parameters at `/behave`.

use std::collections::HashMap;
use std::time::Duration;

use hyper::StatusCode;
use hyper::http::{HeaderName, HeaderValue};

/// How many targets are counted for `fail-first` until the table starts again.
const MAX_COUNTED: usize = 4096;

/// What a server does with a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Behaviour {
    /// `status=503`.
    pub(super) status: Option<StatusCode>,
    /// `delay=2`: seconds before the head.
    pub(super) delay: Duration,
    /// `body-delay=2`: seconds between head and body.
    pub(super) body_delay: Duration,
    /// `size=N`: a body of so many bytes of the pattern, streamed, instead of the account of the request.
    pub(super) size: Option<u64>,
    /// `close=before-head`, `close=mid-body`, `close=refused`.
    pub(super) close: Option<Close>,
    /// `hang`: no answer.
    pub(super) hang: bool,
    /// `header=Name:Value`, as often as needed.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// `trailers`: the checksum of the body follows it.
    pub(super) trailers: bool,
    /// `fail-first=N`: whatever else is asked for as a failure (503 if nothing is) befalls the first N requests of
    /// the same target alone.
    pub(super) fail_first: Option<u64>,
    /// `chunked`: the body's length is not told beforehand.
    pub(super) chunked: bool,
    /// `early`: the answer does not wait for the request's body.
    pub(super) early: bool,
    /// `literal`, in an order: what requests' own queries say means nothing.
    pub(super) literal: bool,
}

/// Where an answer is cut off: a reset of the connection for HTTP/1, of the stream for HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Close {
    BeforeHead,
    MidBody,
    /// With HTTP/2's REFUSED_STREAM: the server says that it did nothing.
    Refused,
}

impl Behaviour {
    /// What a query asks for; `None` if it has nothing to do with behaviour. Parameters that mean nothing here are
    /// left to whoever sent them.
    pub(super) fn of_query(query: &str) -> Result<Option<Self>, String> {
        let mut behaviour = Self::default();
        let mut asked = false;
        for (name, value) in parameters(query) {
            asked |= behaviour.take(&name, &value)?;
        }
        Ok(asked.then_some(behaviour))
    }

    /// What a server is told for all requests that follow: every parameter has to mean something.
    pub(super) fn of_order(query: &str) -> Result<Self, String> {
        let mut behaviour = Self::default();
        for (name, value) in parameters(query) {
            if !behaviour.take(&name, &value)? {
                return Err(format!("there is no parameter {name:?}"));
            }
        }
        Ok(behaviour)
    }

    /// Takes one parameter; false if there is none of that name.
    fn take(&mut self, name: &str, value: &str) -> Result<bool, String> {
        let wrong = || format!("{name} cannot be {value:?}");
        let seconds = || super::seconds(value).ok_or_else(wrong);
        match name {
            "status" => self.status = Some(value.parse().map_err(|_| wrong())?),
            "delay" => self.delay = seconds()?,
            "body-delay" => self.body_delay = seconds()?,
            "size" => self.size = Some(value.parse().map_err(|_| wrong())?),
            "close" => self.close = Some(Close::parse(value).ok_or_else(wrong)?),
            "hang" => self.hang = true,
            "header" => self.headers.push(super::header(value).ok_or_else(wrong)?),
            "trailers" => self.trailers = true,
            "fail-first" => self.fail_first = Some(value.parse().map_err(|_| wrong())?),
            "chunked" => self.chunked = true,
            "early" => self.early = true,
            "literal" => self.literal = true,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What is done with the request that is the `number`th of its target, from 1.
    pub(super) fn at(&self, number: u64) -> Self {
        let Some(failing) = self.fail_first else { return self.clone() };
        let mut behaviour = self.clone();
        let told = self.status.is_some() || self.close.is_some() || self.hang || self.delay > Duration::ZERO;
        if number > failing {
            (behaviour.status, behaviour.close, behaviour.hang) = (None, None, false);
            behaviour.delay = Duration::ZERO;
        } else if !told {
            behaviour.status = Some(StatusCode::SERVICE_UNAVAILABLE);
        }
        behaviour
    }
}

impl Close {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "before-head" => Some(Self::BeforeHead),
            "mid-body" => Some(Self::MidBody),
            "refused" => Some(Self::Refused),
            _ => None,
        }
    }
}

/// How often each target was asked for.
#[derive(Default)]
pub(super) struct Counted(HashMap<String, u64>);

impl Counted {
    /// Counts a request, and returns its number from 1.
    pub(super) fn count(&mut self, target: &str) -> u64 {
        if self.0.len() >= MAX_COUNTED && !self.0.contains_key(target) {
            self.0.clear();
        }
        let number = self.0.entry(target.to_owned()).or_default();
        *number += 1;
        *number
    }

    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

/// The parameters of a query, decoded.
fn parameters(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').filter(|part| !part.is_empty()).map(|part| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        (decoded(name), decoded(value))
    })
}

/// Percent-decoding (RFC 3986, section 2.1) with forms' `+` for a space; what is not encoded properly stays.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        let code = match (first, after) {
            (b'%', [high, low, ..]) => {
                std::str::from_utf8(&[*high, *low]).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok())
            }
            (b'+', _) => Some(b' '),
            _ => None,
        };
        if first == b'%' && code.is_some() {
            rest = &after[2..];
        }
        bytes.push(code.unwrap_or(first));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(query: &str) -> Behaviour {
        Behaviour::of_query(query).expect("sense").expect("a behaviour")
    }

    #[test]
    fn queries_are_read() {
        assert_eq!(Behaviour::of_query("token=&user=jason"), Ok(None));
        assert_eq!(of("status=503&x=1").status, Some(StatusCode::SERVICE_UNAVAILABLE));
        assert_eq!(of("delay=0.5&body-delay=2").delay, Duration::from_millis(500));
        assert_eq!(of("close=mid-body&hang").close, Some(Close::MidBody));
        let headers = of("header=X-A:1&header=x-b%3A%20two+words").headers;
        let headers: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap_or(""))).collect();
        assert_eq!(headers, [("x-a", "1"), ("x-b", "two words")]);
        for bad in ["status=5", "delay=-1", "delay=x", "size=", "close=now", "header=none"] {
            assert!(Behaviour::of_query(bad).is_err(), "{bad}");
        }
        assert!(Behaviour::of_order("hang&token=1").is_err());
        assert_eq!(Behaviour::of_order(""), Ok(Behaviour::default()));
    }

    #[test]
    fn only_the_first_fail() {
        let plain = of("fail-first=2&size=3");
        let status = |number| plain.at(number).status.map(|status| status.as_u16());
        assert_eq!([status(1), status(2), status(3)], [Some(503), Some(503), None]);
        let hanging = of("fail-first=1&hang");
        assert_eq!((hanging.at(1).hang, hanging.at(1).status, hanging.at(2).hang), (true, None, false));
        assert!(of("hang").at(100).hang);
    }

    #[test]
    fn targets_are_counted_apart() {
        let mut counted = Counted::default();
        assert_eq!([counted.count("/a"), counted.count("/b"), counted.count("/a")], [1, 1, 2]);
        counted.forget();
        assert_eq!(counted.count("/a"), 1);
    }

    #[test]
    fn percent_signs_are_decoded_or_left() {
        for (text, expected) in [("a%20b+c", "a b c"), ("%zz%4", "%zz%4"), ("%", "%"), ("%e2%82%ac", "€")] {
            assert_eq!(decoded(text), expected);
        }
    }
}
