//! Answers that the agent gives itself, in the words that Envoy uses, because dashboards and clients know them. A gRPC
//! call gets its status in the trailers' place, with HTTP 200 (the gRPC specification, "Responses").

use std::borrow::Cow;
use std::sync::Arc;

use baremesh_model::authorization::Verdict;
use baremesh_model::external_authorization::Denial;
use baremesh_model::http::{Headers, ResponseHead};

use super::attempt::Failure;
use crate::snapshot::rate_limit::Refusal;

/// What a caller is told, and what the record says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The body, plain text unless `headers` say otherwise.
    pub body: Arc<[u8]>,
    /// Envoy's response flags, or `-`.
    pub flags: &'static str,
    /// Envoy's response code details.
    pub details: Cow<'static, str>,
    /// Fields besides those of every answer.
    pub headers: Headers,
    /// The gRPC status, where another than the HTTP status stands for.
    pub grpc_status: Option<u16>,
}

/// What a refused caller is told, as Envoy's RBAC filter does.
const DENIED: &str = "RBAC: access denied";

impl Reply {
    /// An answer with a text.
    pub fn new(status: u16, body: &str, flags: &'static str, details: &'static str) -> Self {
        let (body, details) = (body.as_bytes().into(), details.into());
        Self { status, body, flags, details, headers: Headers::default(), grpc_status: None }
    }

    /// The request was malformed, or over a limit.
    pub fn malformed(status: u16, details: &'static str) -> Self {
        Self::new(status, "", "DPE", details)
    }

    /// A policy refuses the request, here or at the called side's agent.
    pub fn denied() -> Self {
        Self::new(403, DENIED, "UAEX", "rbac_access_denied")
    }

    /// The policies of a service of this host refuse the request: in the words of the one that denies, if it has some.
    /// Which one that is stands in the log alone.
    pub fn denied_by(verdict: &Verdict<'_>) -> Self {
        let response = verdict.response();
        let body = response.and_then(|response| response.body()).unwrap_or(DENIED);
        let status = response.map_or(403, |response| response.status());
        Self { details: verdict.details(), ..Self::new(status, body, "UAEX", "") }
    }

    /// A provider of a CUSTOM policy refuses the request, in its own words.
    pub fn denied_by_provider(denial: &Denial) -> Self {
        let (headers, body) = (denial.headers.clone(), Arc::clone(&denial.body));
        Self { headers, body, ..Self::new(denial.status, "", "UAEX", "ext_authz_denied") }
    }

    /// A provider of a CUSTOM policy says nothing of the request, which does not go on without.
    pub fn not_answered_for(status: u16) -> Self {
        Self::new(status, "", "UAEX", "ext_authz_error")
    }

    /// The body is longer than what a provider of a CUSTOM policy is sent, and is to be sent all of it.
    pub fn body_too_long() -> Self {
        Self::new(413, "Payload Too Large", "-", "request_payload_too_large")
    }

    /// No route takes the request.
    pub fn no_route() -> Self {
        Self::new(404, "", "NR", "route_not_found")
    }

    /// A route names what there is not, or not yet (Envoy's answer for a cluster that it does not know).
    pub fn cluster_not_found() -> Self {
        Self::new(503, "", "NC", "cluster_not_found")
    }

    /// No endpoint is healthy.
    pub fn no_healthy_upstream() -> Self {
        Self::new(503, "no healthy upstream", "UH", "no_healthy_upstream")
    }

    /// The endpoints of a service that is called for the first time did not come.
    pub fn endpoints_unknown() -> Self {
        Self::new(503, "no healthy upstream", "UH", "endpoints_unknown")
    }

    /// What the caller is told of a request that was sent and not answered.
    pub fn to(failure: Failure) -> Self {
        match failure {
            Failure::UpstreamClosed | Failure::RefusedStream => Self::upstream_closed(),
            Failure::UpstreamMalformed(_) => Self::upstream_malformed(),
            Failure::PerTryTimeout => Self::upstream_timeout("upstream_per_try_timeout"),
            Failure::Timeout => Self::upstream_timeout("response_timeout"),
            Failure::CallerStalled => Self::new(408, "stream timeout", "SI", "request_body_timeout"),
            Failure::Idle => Self::new(504, "stream timeout", "SI", "stream_idle_timeout"),
            Failure::CallerGone => Self::caller_gone(),
            Failure::NoLongerAllowed => Self::denied(),
            Failure::CallerMalformed(details) => Self::malformed(400, details),
        }
    }

    /// Nobody is there to be answered.
    pub fn caller_gone() -> Self {
        Self::new(0, "", "DC", "downstream_remote_disconnect")
    }

    /// A limit of a DestinationRule's connection pool, or the agent's own, is reached.
    pub fn overflow() -> Self {
        let body = "upstream connect error or disconnect/reset before headers. reset reason: overflow";
        let mut reply = Self::new(503, body, "UO", "upstream_reset_before_response_started{overflow}");
        // A constant that may stand in a field.
        let _ = reply.headers.set("x-envoy-overloaded", b"true");
        reply
    }

    /// A RateLimit refuses the request. The fields are those of draft-ietf-httpapi-ratelimit-headers-03, whose reset is
    /// `Retry-After`'s moment.
    pub fn rate_limited(Refusal { limit, wait }: Refusal) -> Self {
        let mut reply = Self::new(429, "local_rate_limited", "RL", "local_rate_limited");
        let seconds = wait.as_nanos().div_ceil(1_000_000_000).to_string();
        let limit = limit.to_string();
        for (name, value) in [
            ("retry-after", &*seconds),
            ("ratelimit-limit", &limit),
            ("ratelimit-remaining", "0"),
            ("ratelimit-reset", &seconds),
            ("x-envoy-ratelimited", "true"),
        ] {
            // Numbers and constants may stand in a field.
            let _ = reply.headers.set(name, value.as_bytes());
        }
        reply
    }

    /// No connection to the upstream came about.
    pub fn connect_failed() -> Self {
        let body =
            "upstream connect error or disconnect/reset before headers. reset reason: connection failure";
        Self::new(503, body, "UF", "upstream_reset_before_response_started{connection_failure}")
    }

    /// The upstream closed before it answered.
    pub fn upstream_closed() -> Self {
        let body =
            "upstream connect error or disconnect/reset before headers. reset reason: connection termination";
        Self::new(503, body, "UC", "upstream_reset_before_response_started{connection_termination}")
    }

    /// The upstream answered something that is no HTTP.
    pub fn upstream_malformed() -> Self {
        let body = "upstream connect error or disconnect/reset before headers. reset reason: protocol error";
        Self::new(502, body, "UPE", "upstream_reset_before_response_started{protocol_error}")
    }

    /// The upstream did not answer in time.
    pub fn upstream_timeout(details: &'static str) -> Self {
        Self::new(504, "upstream request timeout", "UT", details)
    }

    /// The head, for a gRPC call or for HTTP. The body goes with HTTP alone.
    pub fn head(&self, head: &mut ResponseHead, is_grpc: bool) {
        head.clear();
        // What stands here is made of constants, numbers and encoded text: all of it may stand in a field.
        let mut set = |name: &str, value: &[u8]| _ = head.headers.set(name, value);
        if is_grpc {
            set("content-type", b"application/grpc");
            set("grpc-status", self.grpc_status().to_string().as_bytes());
            if !self.body.is_empty() {
                set("grpc-message", percent_encoded(&self.body).as_bytes());
            }
        } else if !self.body.is_empty() {
            set("content-type", b"text/plain");
        }
        // What the message is framed by, and what a gRPC call is told, is the agent's.
        let is_own = |name: &str| is_grpc && name == "content-type";
        for (name, _) in self.headers.iter().filter(|(name, _)| !is_own(name)) {
            head.headers.remove(name);
        }
        for (name, value) in self.headers.iter().filter(|(name, _)| !is_own(name)) {
            let _ = head.headers.append(name, value);
        }
        let _ = head.headers.set("server", b"baremesh");
        head.status = if is_grpc { 200 } else { self.status };
    }

    /// The gRPC status that stands for this answer.
    pub fn grpc_status(&self) -> u16 {
        self.grpc_status.unwrap_or(match self.status {
            400 => 13,
            401 => 16,
            403 => 7,
            404 => 12,
            429 | 502..=504 => 14,
            _ => 2,
        })
    }
}

/// `grpc-message` (the gRPC specification): printable ASCII but the percent sign stands for itself.
fn percent_encoded(text: &[u8]) -> String {
    use std::fmt::Write as _;
    text.iter().copied().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            _ => _ = write!(out, "%{byte:02X}"),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn grpc_calls_get_their_status_with_http_200() {
        let mut head = ResponseHead::default();
        Reply::no_healthy_upstream().head(&mut head, true);
        assert_eq!(head.status, 200);
        assert_eq!(head.headers.text("grpc-status").as_deref(), Some("14"));
        assert_eq!(head.headers.text("grpc-message").as_deref(), Some("no healthy upstream"));
        Reply::no_healthy_upstream().head(&mut head, false);
        assert_eq!(head.status, 503);
        assert!(!head.headers.contains("grpc-status"));
    }

    #[test]
    fn who_is_over_a_limit_is_told_when_to_come_back() {
        let check = |wait: Duration, is_grpc: bool, seconds: &str| {
            let mut head = ResponseHead::default();
            let reply = Reply::rate_limited(Refusal { limit: 5, wait });
            reply.head(&mut head, is_grpc);
            assert_eq!(head.status, if is_grpc { 200 } else { 429 });
            let field = |name: &str| head.headers.text(name).unwrap_or_default().into_owned();
            assert_eq!(
                (field("retry-after"), field("ratelimit-reset")),
                (seconds.to_owned(), seconds.to_owned())
            );
            assert_eq!((&*field("ratelimit-limit"), &*field("ratelimit-remaining")), ("5", "0"));
            assert_eq!((&*field("x-envoy-ratelimited"), reply.flags), ("true", "RL"));
            // Envoy's local rate limit says UNAVAILABLE.
            assert_eq!(&*field("grpc-status"), if is_grpc { "14" } else { "" });
        };
        check(Duration::from_nanos(1), false, "1");
        check(Duration::from_secs(2), false, "2");
        check(Duration::from_millis(2001), true, "3");
    }

    #[test]
    fn messages_are_encoded() {
        assert_eq!(percent_encoded("a b%\n\u{e4}".as_bytes()), "a b%25%0A%C3%A4");
    }
}
