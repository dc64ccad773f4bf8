//! Lines of text, as Envoy writes them: what there is not is `-`. Quotes, backslashes and whatever ends a line are escaped
//! in every value, and values that the agent words itself have no spaces, so that columns stay where they are.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use baremesh_model::access_log::{LogValue, Operator, Part, TextFormat};
use time::OffsetDateTime;

use super::Subject;
use crate::proxy::error::{ProxyError, Reason};
use crate::proxy::relay::Meter;
use crate::telemetry::{Record, milliseconds};

pub(super) fn line(subject: Subject<'_>, format: &TextFormat) -> String {
    let mut line = String::with_capacity(512);
    for part in format.parts() {
        match part {
            Part::Text(text) => line.push_str(text),
            Part::Value(operator) => write_value(&mut line, subject, operator),
        }
    }
    line
}

fn write_value(line: &mut String, subject: Subject<'_>, operator: &Operator) {
    let value = subject.value(operator.value);
    let value = value.or_else(|| operator.otherwise.and_then(|value| subject.value(value)));
    let most = operator.most.unwrap_or(usize::MAX);
    match value.filter(|text| !text.is_empty()) {
        // Writing to a string does not fail.
        Some(text) => text.chars().take(most).for_each(|char| _ = escaped(line, char)),
        None => line.push('-'),
    }
}

fn escaped(line: &mut String, char: char) -> fmt::Result {
    match char {
        '"' | '\\' => write!(line, "\\{char}"),
        '\n' => line.write_str("\\n"),
        '\r' => line.write_str("\\r"),
        '\t' => line.write_str("\\t"),
        // What some readers take for the end of a line, and what terminals obey.
        '\u{2028}' | '\u{2029}' => write!(line, "\\u{{{:x}}}", u32::from(char)),
        _ if char.is_control() => write!(line, "\\x{:02x}", u32::from(char)),
        _ => line.write_char(char),
    }
}

/// A text of the agent's own, as one word.
fn word(text: &str) -> Cow<'_, str> {
    match text.contains(' ') {
        true => Cow::Owned(text.replace(' ', "_")),
        false => Cow::Borrowed(text),
    }
}

fn number(number: u64) -> Option<Cow<'static, str>> {
    Some(Cow::Owned(number.to_string()))
}

fn shown(value: Option<impl fmt::Display>) -> Option<Cow<'static, str>> {
    value.map(|value| Cow::Owned(value.to_string()))
}

impl<'a> Subject<'a> {
    fn peers(self) -> &'a Record {
        match self {
            Self::Connection(record, ..) => record,
            Self::Request(record) => &record.peers,
        }
    }

    /// What a value is here; nothing where there is none.
    fn value(self, value: LogValue) -> Option<Cow<'a, str>> {
        let peers = self.peers();
        match value {
            LogValue::StartTime => Some(Cow::Owned(start_time(peers))),
            LogValue::UpstreamHost => shown(peers.upstream),
            LogValue::UpstreamCluster => peers.service_host.as_deref().map(Cow::Borrowed),
            LogValue::DownstreamLocalAddress => shown(peers.destination),
            LogValue::DownstreamRemoteAddress => shown(Some(peers.client)),
            LogValue::DownstreamRemoteAddressWithoutPort => shown(Some(peers.client.ip())),
            LogValue::DownstreamPeerUriSan => shown(peers.source.identity.as_ref()),
            LogValue::DownstreamPeerSerial => peers.peer_serial.as_deref().map(Cow::Borrowed),
            // No record keeps them.
            LogValue::UpstreamLocalAddress | LogValue::RequestedServerName => None,
            other => match self {
                Self::Connection(record, meter, outcome) => of_connection(record, meter, outcome, other),
                Self::Request(record) => of_request(record, other),
            },
        }
    }
}

fn of_connection(
    record: &Record,
    meter: Option<&Meter>,
    outcome: &Result<(), ProxyError>,
    value: LogValue,
) -> Option<Cow<'static, str>> {
    let reason = outcome.as_ref().err().map(ProxyError::reason);
    match value {
        LogValue::ResponseCode => number(0),
        LogValue::ResponseFlags => reason.map(|reason| Cow::Borrowed(reason.response_flags())),
        LogValue::ResponseCodeDetails => reason.map(|reason| Cow::Borrowed(Reason::name(reason))),
        LogValue::ConnectionTerminationDetails => {
            outcome.as_ref().err().map(|error| Cow::Owned(word(&error.to_string()).into_owned()))
        }
        LogValue::BytesReceived => number(meter.map_or(0, Meter::bytes_from_client)),
        LogValue::BytesSent => number(meter.map_or(0, Meter::bytes_to_client)),
        LogValue::Duration => number(milliseconds(record.started.elapsed())),
        // Requests alone have the others.
        _ => None,
    }
}

fn of_request(record: &super::RequestRecord, value: LogValue) -> Option<Cow<'_, str>> {
    let fields = &record.fields;
    let text = |text: &'_ Option<String>| text.as_deref().map(|text| Cow::Owned(text.to_owned()));
    match value {
        LogValue::Protocol => Some(Cow::Borrowed(record.version.name())),
        LogValue::ResponseCode => number(record.status.into()),
        LogValue::ResponseFlags => Some(Cow::Borrowed(record.flags)),
        LogValue::ResponseCodeDetails => Some(word(&record.details)),
        LogValue::UpstreamTransportFailureReason => record.fault.as_deref().map(word),
        LogValue::BytesReceived => number(record.sizes.request_bytes),
        LogValue::BytesSent => number(record.sizes.response_bytes),
        LogValue::Duration => number(milliseconds(record.sizes.duration)),
        LogValue::UpstreamServiceTime => shown(record.upstream_time.map(milliseconds)),
        LogValue::UpstreamRequestAttemptCount => number(record.attempts.into()),
        LogValue::GrpcStatusNumber => shown(record.grpc_status),
        LogValue::RouteName => record.route.as_deref().map(Cow::Borrowed),
        LogValue::Method => Some(Cow::Borrowed(&record.method)),
        LogValue::Path => Some(Cow::Borrowed(&record.target)),
        LogValue::Authority => Some(Cow::Borrowed(&record.authority)),
        LogValue::OriginalPath => text(&fields.original_path),
        LogValue::ForwardedFor => text(&fields.forwarded_for),
        LogValue::UserAgent => text(&fields.user_agent),
        LogValue::RequestId => text(&fields.request_id),
        LogValue::Traceparent => text(&fields.traceparent),
        _ => None,
    }
}

/// As Envoy writes it: UTC, to the millisecond.
fn start_time(record: &Record) -> String {
    let at = OffsetDateTime::from(record.at);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.millisecond()
    )
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use baremesh_model::http::RequestHead;

    use super::*;
    use crate::telemetry::request_record::{LoggedFields, RequestRecord};
    use crate::telemetry::{Reporter, Security};

    fn peers() -> Record {
        let mut record = Record::new(Reporter::Source, "10.0.0.1:4711".parse().expect("an address"));
        record.at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_461_529_020_310);
        record.destination = Some("240.240.0.7:80".parse().expect("an address"));
        record.upstream = Some("10.0.0.2:8080".parse().expect("an address"));
        record.service_host = Some("orders.default.mesh.internal".into());
        record.security = Security::MutualTls;
        record
    }

    fn request(user_agent: &[u8]) -> RequestRecord {
        let mut head = RequestHead::default();
        head.method.push_str("GET");
        head.target.push_str("/a?b");
        head.authority.push_str("orders");
        for (name, value) in [("user-agent", user_agent), ("x-request-id", b"4-2")] {
            head.headers.append(name, value).expect("a field");
        }
        let mut record = RequestRecord::new(peers(), &head);
        record.fields = LoggedFields::of(&head);
        record.status = 200;
        record.upstream_time = Some(Duration::from_millis(7));
        record.sizes.response_bytes = 42;
        record
    }

    #[test]
    fn a_request_is_written_as_istio_has_envoy_write_it() {
        let record = request(b"curl/8");
        assert_eq!(
            line(Subject::Request(&record), &TextFormat::default()),
            "[2016-04-24T20:17:00.310Z] \"GET /a?b HTTP/1.1\" 200 - via_upstream - \"-\" 0 42 0 7 \"-\" \"curl/8\" \
             \"4-2\" \"orders\" \"10.0.0.2:8080\" orders.default.mesh.internal - 240.240.0.7:80 10.0.0.1:4711 - -"
        );
    }

    #[test]
    fn a_connection_is_written_so_too() {
        let outcome = Err(ProxyError::Denied("denied by \"a\"\nb".to_owned()));
        let format = TextFormat::parse(
            "%PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% %REQ(:METHOD)% %ROUTE_NAME%",
        );
        assert_eq!(
            line(Subject::Connection(&peers(), None, &outcome), &format.expect("a format")),
            "- 0 UAEX denied denied_by_\\\"a\\\"\\nb - -"
        );
    }

    #[test]
    fn no_client_forges_a_line_or_ends_a_quoted_value() {
        let check = |sent: &str, format: &str, expected: &str| {
            let mut record = request(b"");
            record.fields.user_agent = Some(sent.to_owned());
            let format = TextFormat::parse(format).expect("a format");
            assert_eq!(line(Subject::Request(&record), &format), expected);
        };
        let agent = "\"%REQ(USER-AGENT)%\"";
        check("a\" 200 - \"", agent, "\"a\\\" 200 - \\\"\"");
        check("a\\", agent, "\"a\\\\\"");
        check("a\r\n[forged]\t", agent, "\"a\\r\\n[forged]\\t\"");
        check("\u{1b}[2J\u{0}\u{85}\u{2028}\u{7f}", agent, "\"\\x1b[2J\\x00\\x85\\u{2028}\\x7f\"");
        check("Mozilla", "%REQ(USER-AGENT):3%|%REQ(TRACEPARENT?USER-AGENT):4%", "Moz|Mozi");
        check("%DURATION%", agent, "\"%DURATION%\"");
    }
}
