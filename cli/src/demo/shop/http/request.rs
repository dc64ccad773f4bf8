//! The account of a request: what a server saw of it, as JSON.

use hyper::HeaderMap;
use hyper::http::HeaderValue;
use hyper::http::request::Parts;
use serde_json::{Map, Value, json};

use super::content::Read;

/// Which of a server's connections a request came over, and which of that connection's requests it is, from 1.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) connection: u64,
    pub(super) request: u64,
}

/// What the head says, and who read it.
pub(super) fn account(instance: &str, head: &Parts, place: Place) -> Map<String, Value> {
    let account = json!({
        "instance": instance,
        "method": head.method.as_str(),
        "path": head.uri.path(),
        "query": head.uri.query(),
        "authority": authority(head),
        "version": format!("{:?}", head.version),
        "connection": place.connection,
        "request": place.request,
        "headers": lists(&head.headers),
    });
    match account {
        Value::Object(account) => account,
        _ => Map::new(),
    }
}

/// What the body came to.
pub(super) fn body(read: &Read) -> Value {
    json!({
        "length": read.sum.length(),
        "checksum": read.sum.digest(),
        "text": read.text(),
        "trailers": lists(&read.trailers),
    })
}

/// Path and query as they were sent.
pub(super) fn target(head: &Parts) -> &str {
    head.uri.path_and_query().map_or("/", |target| target.as_str())
}

/// Whom the request is for: HTTP/2's `:authority`, or `Host`.
fn authority(head: &Parts) -> Option<String> {
    let host = || head.headers.get("host").map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
    head.uri.authority().map(ToString::to_string).or_else(host)
}

/// Every name with the list of its values.
pub(super) fn lists(headers: &HeaderMap) -> Value {
    let values = |name| headers.get_all(name).into_iter().map(text).collect::<Vec<_>>();
    headers.keys().map(|name| (name.as_str().to_owned(), Value::from(values(name)))).collect()
}

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}
