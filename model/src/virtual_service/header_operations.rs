//! What a route does to the fields of requests and responses.

use std::sync::Arc;

use crate::http::Headers;
use crate::http::headers::{is_token, is_value};

/// Operations on requests and on their responses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderRules {
    /// On the request, before it is sent.
    pub request: HeaderOperations,
    /// The authority that the request is given: `set` or `add` of `:authority` or `host`.
    pub authority: Option<Arc<str>>,
    /// On the response, before it is passed on.
    pub response: HeaderOperations,
}

/// Operations on one head. Names are in lower case, and neither `host` nor pseudo-headers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderOperations {
    /// Replaced, or added where there were none.
    pub set: Vec<HeaderValue>,
    /// Added beside those that are there.
    pub add: Vec<HeaderValue>,
    /// Removed.
    pub remove: Vec<Arc<str>>,
}

/// A field that is set or added. Only [`HeaderValue::new`] makes one, so that it always fits into a head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderValue {
    name: Arc<str>,
    value: Arc<str>,
}

/// Fields that say where a body ends or concern one connection alone: a route that touched them would make the two sides
/// of it read different messages (RFC 9110, section 7.6.1; RFC 9112, section 6.3).
const FRAMING: [&str; 7] =
    ["connection", "content-length", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];

/// Whether a route may touch fields of that name, in whatever case. The authority is none of them.
pub fn is_changeable(name: &str) -> bool {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    !name.is_empty() && name.bytes().all(is_token) && !is("host") && !FRAMING.into_iter().any(is)
}

impl HeaderValue {
    /// A field of a name in whatever case and a value; `None` if it cannot stand in a head, or no route may touch it.
    pub fn new(name: &str, value: &str) -> Option<Self> {
        let valid = is_changeable(name) && value.bytes().all(is_value);
        valid.then(|| Self { name: name.to_ascii_lowercase().into(), value: value.into() })
    }

    /// The name in lower case.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value.
    pub fn value(&self) -> &str {
        &self.value
    }
}

impl HeaderOperations {
    /// Whether nothing is done.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }

    /// Removes, then sets, then adds: what is removed and added is there.
    pub fn apply(&self, headers: &mut Headers) {
        for name in &self.remove {
            headers.remove(name);
        }
        // A value was checked when it was made; only 4 GiB of fields could be refused here, and those are kept as they are.
        for field in &self.set {
            _ = headers.set(&field.name, field.value.as_bytes());
        }
        for field in &self.add {
            _ = headers.append(&field.name, field.value.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(name: &str, value: &str) -> HeaderValue {
        HeaderValue::new(name, value).expect("a field")
    }

    #[test]
    fn removes_then_sets_then_adds() {
        let operations = HeaderOperations {
            set: vec![value("X-Set", "new")],
            add: vec![value("x-add", "second"), value("x-gone", "again")],
            remove: vec!["x-gone".into(), "x-absent".into()],
        };
        let mut headers = Headers::default();
        for (name, value) in
            [("x-set", "1"), ("x-set", "2"), ("x-add", "first"), ("x-gone", "old"), ("x", "y")]
        {
            headers.append(name, value.as_bytes()).expect("a field");
        }
        operations.apply(&mut headers);
        let check = |name: &str, expected: &str| assert_eq!(headers.text(name).as_deref(), Some(expected));
        check("x-set", "new");
        check("x-add", "first,second");
        check("x-gone", "again");
        check("x", "y");
    }

    #[test]
    fn what_cannot_stand_in_a_head_is_no_value() {
        for (name, content) in [
            ("", "a"),
            ("a b", "a"),
            (":path", "/"),
            ("Host", "a"),
            ("a", "b\r\nc: d"),
            ("Content-Length", "1"),
            ("te", "x"),
        ] {
            assert_eq!(HeaderValue::new(name, content), None, "{name}: {content}");
        }
    }
}
