//! What a line of the access log looks like: JSON, or text after a format of Envoy's, of which the operators are known
//! here. Which value an operator stands for is decided when the format is read, so that writing a line looks nothing up.

use std::fmt;

/// The format that Istio writes unless another is set: `EnvoyTextLogFormat` of its documentation.
pub const ISTIO_TEXT: &str = concat!(
    r#"[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% "#,
    r#"%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% "#,
    r#"%BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "#,
    r#""%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER% %UPSTREAM_LOCAL_ADDRESS% "#,
    r#"%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%"#,
);

/// The longest format, in bytes.
pub const MAX_FORMAT: usize = 4096;
/// The most parts of a format: operators, and the texts between them.
pub const MAX_PARTS: usize = 200;

/// What the access log looks like.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AccessLogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// One line of text.
    Text(TextFormat),
}

/// A format of lines of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextFormat {
    written: String,
    parts: Vec<Part>,
}

/// A part of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Text as it stands.
    Text(String),
    /// A value of the record.
    Value(Operator),
}

/// An operator: what stands between two percent signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operator {
    /// What it stands for.
    pub value: LogValue,
    /// What it stands for where the first is not there.
    pub otherwise: Option<LogValue>,
    /// The most characters that are written of it.
    pub most: Option<usize>,
}

/// Why a text is no format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It is longer than formats may be.
    #[error("it is longer than {MAX_FORMAT} bytes, or has more than {MAX_PARTS} parts")]
    TooLong,
    /// A percent sign has no other.
    #[error("a `%` has no other one; `%%` stands for a percent sign")]
    Unclosed,
    /// There is a control character in it, but for a line end at its end.
    #[error("it has a control character, or a line end that is not its last character")]
    Control,
    /// An operator that is not known.
    #[error("`%{0}%` is not an operator that is known here")]
    Unknown(String),
    /// A field that is not logged.
    #[error("`%{0}%` names a field that no record keeps")]
    Field(String),
}

macro_rules! values {
    ($($name:ident, $text:literal;)*) => {
        /// A value of a record, under the name of Envoy's operator for it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs)] // Envoy documents its operators by these names.
        pub enum LogValue { $($name),* }

        impl LogValue {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// As it stands between percent signs.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

values! {
    StartTime, "START_TIME";
    Protocol, "PROTOCOL";
    ResponseCode, "RESPONSE_CODE";
    ResponseFlags, "RESPONSE_FLAGS";
    ResponseCodeDetails, "RESPONSE_CODE_DETAILS";
    ConnectionTerminationDetails, "CONNECTION_TERMINATION_DETAILS";
    UpstreamTransportFailureReason, "UPSTREAM_TRANSPORT_FAILURE_REASON";
    BytesReceived, "BYTES_RECEIVED";
    BytesSent, "BYTES_SENT";
    Duration, "DURATION";
    UpstreamHost, "UPSTREAM_HOST";
    UpstreamCluster, "UPSTREAM_CLUSTER";
    UpstreamLocalAddress, "UPSTREAM_LOCAL_ADDRESS";
    UpstreamRequestAttemptCount, "UPSTREAM_REQUEST_ATTEMPT_COUNT";
    DownstreamLocalAddress, "DOWNSTREAM_LOCAL_ADDRESS";
    DownstreamRemoteAddress, "DOWNSTREAM_REMOTE_ADDRESS";
    DownstreamRemoteAddressWithoutPort, "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT";
    DownstreamPeerUriSan, "DOWNSTREAM_PEER_URI_SAN";
    DownstreamPeerSerial, "DOWNSTREAM_PEER_SERIAL";
    RequestedServerName, "REQUESTED_SERVER_NAME";
    RouteName, "ROUTE_NAME";
    GrpcStatusNumber, "GRPC_STATUS_NUMBER";
    Method, "REQ(:METHOD)";
    Path, "REQ(:PATH)";
    OriginalPath, "REQ(X-ENVOY-ORIGINAL-PATH)";
    Authority, "REQ(:AUTHORITY)";
    ForwardedFor, "REQ(X-FORWARDED-FOR)";
    UserAgent, "REQ(USER-AGENT)";
    RequestId, "REQ(X-REQUEST-ID)";
    Traceparent, "REQ(TRACEPARENT)";
    UpstreamServiceTime, "RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)";
}

impl Default for TextFormat {
    fn default() -> Self {
        Self::parse(ISTIO_TEXT).expect("the format is known")
    }
}

impl TextFormat {
    /// Reads a format. A line end at its end may stand there or not.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        if text.len() > MAX_FORMAT {
            return Err(FormatError::TooLong);
        }
        let written = text.strip_suffix('\n').unwrap_or(text);
        if written.chars().any(char::is_control) {
            return Err(FormatError::Control);
        }
        let (mut parts, mut plain) = (Vec::new(), String::new());
        let mut rest = written;
        while let Some((before, behind)) = rest.split_once('%') {
            plain.push_str(before);
            let (operator, after) = behind.split_once('%').ok_or(FormatError::Unclosed)?;
            if operator.is_empty() {
                plain.push('%');
            } else {
                if !plain.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                }
                parts.push(Part::Value(Operator::parse(operator)?));
            }
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        if parts.len() > MAX_PARTS {
            return Err(FormatError::TooLong);
        }
        Ok(Self { written: written.to_owned(), parts })
    }

    /// The parts, in their order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }
}

impl fmt::Display for TextFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

impl Operator {
    fn parse(text: &str) -> Result<Self, FormatError> {
        let unknown = || FormatError::Unknown(text.to_owned());
        let named = |name: &str| LogValue::ALL.iter().copied().find(|value| value.name() == name);
        let Some((kind, behind)) = text.split_once('(') else {
            let value = named(text).ok_or_else(unknown)?;
            return Ok(Self { value, otherwise: None, most: None });
        };
        let (names, behind) = behind.rsplit_once(')').ok_or_else(unknown)?;
        if !matches!(kind, "REQ" | "RESP") {
            return Err(unknown());
        }
        let most = match behind.strip_prefix(':') {
            Some(number) => Some(number.parse().map_err(|_| unknown())?),
            None if behind.is_empty() => None,
            None => return Err(unknown()),
        };
        let field = |name: &str| {
            let value = named(&format!("{kind}({})", name.to_ascii_uppercase()));
            value.ok_or_else(|| FormatError::Field(text.to_owned()))
        };
        let (first, second) = match names.split_once('?') {
            Some((first, second)) => (first, Some(second)),
            None => (names, None),
        };
        Ok(Self { value: field(first)?, otherwise: second.map(field).transpose()?, most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_istios() {
        let format = TextFormat::default();
        assert_eq!(format.to_string(), ISTIO_TEXT);
        let path = Operator { value: LogValue::OriginalPath, otherwise: Some(LogValue::Path), most: None };
        assert!(format.parts().contains(&Part::Value(path)));
        assert_eq!(format.parts()[0], Part::Text("[".to_owned()));
        assert_eq!(TextFormat::parse(&format!("{ISTIO_TEXT}\n")), Ok(format));
    }

    #[test]
    fn what_is_known_is_taken_and_nothing_else() {
        let value = |value| Part::Value(Operator { value, otherwise: None, most: None });
        let check = |text: &str, expected: Result<Vec<Part>, FormatError>| {
            assert_eq!(TextFormat::parse(text).map(|format| format.parts), expected, "{text}");
        };
        check("", Ok(Vec::new()));
        check("100%% %DURATION%", Ok(vec![Part::Text("100% ".into()), value(LogValue::Duration)]));
        let agent = Operator { value: LogValue::UserAgent, otherwise: None, most: Some(10) };
        check("%REQ(User-Agent):10%", Ok(vec![Part::Value(agent)]));
        for value in LogValue::ALL {
            assert!(TextFormat::parse(&format!("%{}%", value.name())).is_ok(), "{value:?}");
        }
        check("%DURATION", Err(FormatError::Unclosed));
        check("%DYNAMIC_METADATA(a)%", Err(FormatError::Unknown("DYNAMIC_METADATA(a)".into())));
        check("%START_TIME(%s)%", Err(FormatError::Unknown("START_TIME(".into())));
        check("%REQ(COOKIE)%", Err(FormatError::Field("REQ(COOKIE)".into())));
        check("%REQ(:PATH?COOKIE)%", Err(FormatError::Field("REQ(:PATH?COOKIE)".into())));
        check("%REQ(:PATH)x%", Err(FormatError::Unknown("REQ(:PATH)x".into())));
        check("%REQ(:PATH):x%", Err(FormatError::Unknown("REQ(:PATH):x".into())));
        check("one\ntwo", Err(FormatError::Control));
        check("one\u{7f}", Err(FormatError::Control));
        check(&"x".repeat(MAX_FORMAT + 1), Err(FormatError::TooLong));
        check(&"%DURATION%".repeat(MAX_PARTS + 1), Err(FormatError::TooLong));
    }
}
