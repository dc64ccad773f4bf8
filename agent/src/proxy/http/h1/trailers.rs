//! Fields after a chunked body's content (RFC 9112, section 7.1.2).

use baremesh_model::http::headers::{is_token, is_value, may_be_read_as};
use baremesh_model::http::{FieldError, Headers};

use super::{H1Error, fields};

/// Fields that mean nothing after the content, or that a reader who merges them into the head would be misled by (RFC
/// 9110, section 6.5.1): framing, routing, who sent it, and what the content is.
const NOT_IN_TRAILERS: [&str; 34] = [
    "age",
    "authorization",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "expect",
    "expires",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "retry-after",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "x-request-id",
];

/// Puts the fields of trailers into `headers`, but for those that may not stand there.
pub fn read<'a>(lines: impl Iterator<Item = &'a [u8]>, headers: &mut Headers) -> Result<(), H1Error> {
    for line in lines {
        let (name, value) = fields::split(line)?;
        if may_trail(name) {
            headers.append_line(name, value)?;
        } else if !value.iter().copied().all(is_value) {
            return Err(FieldError::Value.into());
        } else if !name.iter().copied().all(is_token) {
            return Err(FieldError::Name.into());
        }
    }
    Ok(())
}

/// Whether a field, its name in lower case, may stand behind a body (RFC 9110, section 6.5.1).
pub fn may_trail(name: &[u8]) -> bool {
    let starts = |prefix: &&str| name.get(..prefix.len()).is_some_and(|start| may_be_read_as(start, prefix));
    let is = |other: &&str| may_be_read_as(name, other);
    !NOT_IN_TRAILERS.iter().any(is) && !["if-", "x-forwarded-", "x-envoy-"].iter().any(starts)
}
