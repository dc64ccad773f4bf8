//! What the client is asked to send.

use std::path::PathBuf;
use std::time::Duration;

use hyper::header::{CONTENT_LENGTH, EXPECT, HOST, TRAILER};
use hyper::http::HeaderValue;
use hyper::{HeaderMap, Method, Request, Uri, Version};

use super::super::super::DEFAULT_TIMEOUT;
use super::super::super::connection::Broken;
use super::super::content::Content;
use super::super::dial::Place;
use super::super::{Arguments, unknown};

/// The client's options and operand.
#[derive(Clone)]
pub(in super::super) struct Wanted {
    pub(super) place: Place,
    version: Version,
    method: Option<Method>,
    url: Uri,
    headers: HeaderMap,
    pub(super) payload: Payload,
    pub(super) trailers: HeaderMap,
    chunked: bool,
    /// Whether the body waits for `100 Continue`.
    pub(super) expect: bool,
    /// The pause in the middle of the body.
    pub(super) body_pause: Duration,
    pub(super) count: u64,
    /// Goes on until this file is there, instead of counting.
    pub(super) until: Option<PathBuf>,
    /// Whether a worker keeps its connection for its next request.
    pub(super) keep: bool,
    pub(super) parallel: usize,
    /// Whether the lines leave out headers and body.
    pub(super) brief: bool,
}

/// A request's body.
#[derive(Clone)]
pub(super) enum Payload {
    None,
    Text(String),
    /// So many bytes of the pattern.
    Size(u64),
}

impl Wanted {
    /// `[OPTION…] URL`
    pub(in super::super) fn parse(args: &[&str]) -> Result<Self, Broken> {
        let place = Place { host: String::new(), port: 0, timeout: DEFAULT_TIMEOUT };
        let mut wanted = Self {
            place,
            version: Version::HTTP_11,
            method: None,
            url: Uri::default(),
            headers: HeaderMap::new(),
            payload: Payload::None,
            trailers: HeaderMap::new(),
            chunked: false,
            expect: false,
            body_pause: Duration::ZERO,
            count: 1,
            until: None,
            keep: false,
            parallel: 1,
            brief: false,
        };
        let mut arguments = Arguments(args);
        let mut dialled = None;
        while let Some(option) = arguments.option() {
            match option {
                "connect" => dialled = Some(arguments.value::<Uri>(option)?),
                _ => wanted.take(option, &mut arguments)?,
            }
        }
        let url = arguments.operand("URL")?;
        wanted.url = url.parse().map_err(|error| Broken::Usage(format!("{url}: {error}")))?;
        if wanted.url.scheme_str() != Some("http") {
            return Err(Broken::Usage(format!("{url} does not begin with http://")));
        }
        wanted.place = Place::of(dialled.as_ref().unwrap_or(&wanted.url), wanted.place.timeout)?;
        Ok(wanted)
    }

    fn take(&mut self, option: &str, arguments: &mut Arguments<'_, '_>) -> Result<(), Broken> {
        match option {
            "http2" => self.version = Version::HTTP_2,
            "http1.0" => self.version = Version::HTTP_10,
            "method" => self.method = Some(arguments.value(option)?),
            "header" => {
                let (name, value) = arguments.header(option)?;
                self.headers.append(name, value);
            }
            "data" => self.payload = Payload::Text(arguments.text(option)?.to_owned()),
            "size" => self.payload = Payload::Size(arguments.value(option)?),
            "trailer" => {
                let (name, value) = arguments.header(option)?;
                self.trailers.append(name, value);
            }
            "chunked" => self.chunked = true,
            "expect" => self.expect = true,
            "body-pause" => self.body_pause = arguments.seconds(option)?,
            "count" => self.count = arguments.value(option)?,
            "until" => self.until = Some(arguments.value(option)?),
            "keep" => self.keep = true,
            "parallel" => self.parallel = arguments.value(option)?,
            "timeout" => self.place.timeout = arguments.seconds(option)?,
            "brief" => self.brief = true,
            _ => return Err(unknown(option)),
        }
        Ok(())
    }

    pub(super) fn is_http2(&self) -> bool {
        self.version == Version::HTTP_2
    }

    /// Whether the body can be sent with the head, and its length in there.
    pub(super) fn is_plain(&self) -> bool {
        !self.chunked && !self.expect && self.trailers.is_empty() && self.body_pause.is_zero()
    }

    /// A request with this content.
    pub(super) fn head(&self, content: Content) -> Result<Request<Content>, Broken> {
        let bad = |error: &dyn std::fmt::Display| Broken::Usage(format!("no request: {error}"));
        let mut headers = self.headers.clone();
        let given = headers.remove(HOST);
        let authority = given.as_ref().map(HeaderValue::as_bytes);
        let authority =
            authority.or_else(|| self.url.authority().map(|authority| authority.as_str().as_bytes()));
        let authority = authority.unwrap_or_default();
        let target = self.url.path_and_query().map_or("/", |target| target.as_str());
        let uri = if self.is_http2() {
            let uri = Uri::builder().scheme("http").authority(authority).path_and_query(target);
            uri.build().map_err(|error| bad(&error))?
        } else {
            headers.insert(HOST, HeaderValue::from_bytes(authority).map_err(|error| bad(&error))?);
            target.parse().map_err(|error| bad(&error))?
        };
        self.announce_body(&mut headers);
        let mut request = Request::new(content);
        *request.method_mut() = self.method();
        *request.uri_mut() = uri;
        *request.version_mut() = self.version;
        *request.headers_mut() = headers;
        Ok(request)
    }

    /// What a streamed body needs to have said of it beforehand.
    fn announce_body(&self, headers: &mut HeaderMap) {
        let length = match &self.payload {
            Payload::None => return,
            Payload::Text(text) => text.len() as u64,
            Payload::Size(length) => *length,
        };
        if !self.chunked && self.trailers.is_empty() {
            headers.insert(CONTENT_LENGTH, length.into());
        }
        // HTTP/1 sends only those trailers that were announced (RFC 9110, section 6.6.2).
        for name in self.trailers.keys() {
            headers.append(TRAILER, name.clone().into());
        }
        if self.expect {
            headers.insert(EXPECT, HeaderValue::from_static("100-continue"));
        }
    }

    fn method(&self) -> Method {
        let usual = match self.payload {
            Payload::None => Method::GET,
            Payload::Text(_) | Payload::Size(_) => Method::POST,
        };
        self.method.clone().unwrap_or(usual)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::content::whole;
    use super::*;

    fn wanted(args: &[&str]) -> Wanted {
        Wanted::parse(args).unwrap_or_else(|broken| panic!("{args:?}: {broken}"))
    }

    #[test]
    fn requests_are_as_asked_for() {
        let check = |args: &[&str], (method, uri, host): (&str, &str, Option<&str>)| {
            let request = wanted(args).head(whole("")).expect("a request");
            assert_eq!((request.method().as_str(), request.uri().to_string().as_str()), (method, uri));
            let found = request.headers().get(HOST).map(|host| host.to_str().expect("text"));
            assert_eq!(found, host, "{args:?}");
        };
        check(&["http://a/x?y"], ("GET", "/x?y", Some("a")));
        check(&["--data", "x", "http://a:85"], ("POST", "/", Some("a:85")));
        check(&["--method", "PUT", "--header", "Host: b", "http://a/"], ("PUT", "/", Some("b")));
        check(&["--http2", "--header", "host: b", "http://a/x"], ("GET", "http://b/x", None));
        check(&["--http2", "http://[fd77::1]:81/x"], ("GET", "http://[fd77::1]:81/x", None));
    }

    #[test]
    fn places_are_the_urls_unless_told_otherwise() {
        let place = |args: &[&str]| wanted(args).place;
        let plain = place(&["http://[fd77::1]:81/"]);
        assert_eq!((plain.host.as_str(), plain.port), ("fd77::1", 81));
        let other = place(&["--timeout", "0.5", "--connect", "10.0.0.1:85", "http://a/"]);
        assert_eq!((other.host.as_str(), other.port, other.timeout.as_millis()), ("10.0.0.1", 85, 500));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            &["a"][..],
            &["https://a/"],
            &["http://a/", "http://b/"],
            &["--count", "x", "http://a/"],
            &["--header", "none", "http://a/"],
            &["--what", "http://a/"],
            &["--count"],
            &[],
        ] {
            assert!(matches!(Wanted::parse(bad), Err(Broken::Usage(_))), "{bad:?}");
        }
    }
}
