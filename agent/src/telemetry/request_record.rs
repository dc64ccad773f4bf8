//! The final record of one HTTP request: what the access log says of it, and what the metrics count.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use baremesh_model::http::{RequestHead, Version};

use super::Record;
use super::requests::{RequestProtocol, RequestSizes};
use crate::snapshot::rate_limit::Decision;

/// What is known of one request. It fills up as the request goes on, and is written once at its end.
#[derive(Debug)]
pub struct RequestRecord {
    /// The peers, as of a connection.
    pub peers: Record,
    /// The method, as it came.
    pub method: String,
    /// Path and query, as they came.
    pub target: String,
    /// The authority, as it came.
    pub authority: String,
    /// The version of the caller's side.
    pub version: Version,
    /// What it was spoken in.
    pub protocol: RequestProtocol,
    /// The status that the caller saw; 0 where it saw none.
    pub status: u16,
    /// The gRPC status, where there was one.
    pub grpc_status: Option<u16>,
    /// Envoy's response flags, or `-`.
    pub flags: &'static str,
    /// Envoy's response code details: `via_upstream`, or why the agent answered itself.
    pub details: Cow<'static, str>,
    /// What went wrong, in words, where something did.
    pub fault: Option<String>,
    /// The name of the route taken.
    pub route: Option<Arc<str>>,
    /// The number of attempts.
    pub attempts: u32,
    /// From the first byte to the upstream until the first of its answer.
    pub upstream_time: Option<Duration>,
    /// Fields of the request that the log repeats.
    pub fields: LoggedFields,
    /// Bytes and messages.
    pub sizes: RequestSizes,
    /// What limits said of it.
    pub limited: Vec<Decision>,
    /// What became of its tokens, where the service has rules for them.
    pub token: Option<&'static str>,
}

/// The most of one field that is repeated in the log: thousands of lines may wait there.
const MAX_FIELD: usize = 2048;

/// As much of a field as the log repeats.
fn shortened(text: &str) -> &str {
    let end = (0..=MAX_FIELD.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// A target without the tokens in its query, where they stand in the parameter that is for them (RFC 6750, section 2.3):
/// the calling side writes down requests too, and verifies nothing.
fn without_token(target: &str) -> Cow<'_, str> {
    const PARAMETER: &str = "access_token=";
    if !target.contains(PARAMETER) {
        return Cow::Borrowed(target);
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let pairs =
        query.split('&').map(|pair| if pair.starts_with(PARAMETER) { "access_token=-" } else { pair });
    Cow::Owned(format!("{path}?{}", pairs.collect::<Vec<_>>().join("&")))
}

/// Fields of a request that the log repeats.
#[derive(Debug, Default)]
pub struct LoggedFields {
    /// `x-request-id`
    pub request_id: Option<String>,
    /// `user-agent`
    pub user_agent: Option<String>,
    /// `x-forwarded-for`
    pub forwarded_for: Option<String>,
    /// `traceparent`
    pub traceparent: Option<String>,
    /// `x-envoy-original-path`
    pub original_path: Option<String>,
}

impl LoggedFields {
    /// What `head` says.
    pub fn of(head: &RequestHead) -> Self {
        let text = |name: &str| head.headers.text(name).map(|text| shortened(&text).to_owned());
        Self {
            request_id: text("x-request-id"),
            user_agent: text("user-agent"),
            forwarded_for: text("x-forwarded-for"),
            traceparent: text("traceparent"),
            original_path: head
                .headers
                .text("x-envoy-original-path")
                .map(|path| shortened(&without_token(&path)).to_owned()),
        }
    }
}

impl RequestRecord {
    /// A request that has just come in.
    pub fn new(peers: Record, head: &RequestHead) -> Self {
        Self {
            peers,
            method: shortened(&head.method).to_owned(),
            target: shortened(&without_token(&head.target)).to_owned(),
            authority: shortened(&head.authority).to_owned(),
            version: head.version,
            protocol: if head.is_grpc() { RequestProtocol::Grpc } else { RequestProtocol::Http },
            status: 0,
            grpc_status: None,
            flags: "-",
            details: Cow::Borrowed("via_upstream"),
            fault: None,
            route: None,
            attempts: 0,
            upstream_time: None,
            fields: LoggedFields::default(),
            sizes: RequestSizes::default(),
            limited: Vec::new(),
            token: None,
        }
    }

    /// Repeats no token that stood in the query of a request, or of what it was before a route rewrote it.
    pub fn show_without_token(&mut self, head: &RequestHead) {
        self.target = shortened(&without_token(&head.target)).to_owned();
        self.fields.original_path = LoggedFields::of(head).original_path;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_token_of_a_query_is_repeated() {
        let check = |target: &str, expected: &str| assert_eq!(without_token(target), expected);
        check("/a?b=c", "/a?b=c");
        check("/a?access_token=secret", "/a?access_token=-");
        check(
            "/a?x=1&access_token=secret&y=2&access_token=other",
            "/a?x=1&access_token=-&y=2&access_token=-",
        );
        check("/a?xaccess_token=1", "/a?xaccess_token=1");
    }
}
