//! Value patterns as Istio's policies write them: exact, `prefix*`, `*suffix`, and `*` for presence.

use std::fmt;
use std::sync::Arc;

use crate::http::headers::may_be_read_as;

/// One value of a policy's list.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// The whole text, byte for byte.
    Exact(Arc<str>),
    /// Text that starts so.
    Prefix(Arc<str>),
    /// Text that ends so.
    Suffix(Arc<str>),
    /// Any text that is not empty.
    Present,
}

impl Pattern {
    /// Reads a pattern. A star elsewhere than at the start or the end is an ordinary character.
    pub fn new(text: &str) -> Self {
        match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(""), _) => Self::Present,
            (Some(suffix), _) => Self::Suffix(suffix.into()),
            (None, Some(prefix)) => Self::Prefix(prefix.into()),
            (None, None) => Self::Exact(text.into()),
        }
    }

    /// Whether `text` matches. No regular expressions: every character stands for itself.
    pub fn matches(&self, text: &str) -> bool {
        self.matches_bytes(text.as_bytes())
    }

    /// Whether what need not be text matches: the value of a header field.
    pub fn matches_bytes(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact.as_bytes() == bytes,
            Self::Prefix(prefix) => bytes.starts_with(prefix.as_bytes()),
            Self::Suffix(suffix) => bytes.ends_with(suffix.as_bytes()),
            Self::Present => !bytes.is_empty(),
        }
    }

    /// Whether some program takes a field `name` for one that matches, where both are in lower case.
    pub fn may_be_read_in(&self, name: &str) -> bool {
        let name = name.as_bytes();
        let cut = |length: usize| name.len().checked_sub(length);
        match self {
            Self::Exact(exact) => may_be_read_as(name, exact),
            Self::Prefix(prefix) => {
                cut(prefix.len()).is_some_and(|_| may_be_read_as(&name[..prefix.len()], prefix))
            }
            Self::Suffix(suffix) => {
                cut(suffix.len()).is_some_and(|start| may_be_read_as(&name[start..], suffix))
            }
            Self::Present => !name.is_empty(),
        }
    }

    /// Whether `text` matches when the case of ASCII letters does not count.
    pub fn matches_in_any_case(&self, text: &str) -> bool {
        let text = text.as_bytes();
        let start = |length: usize| text.get(..length).unwrap_or_default();
        let end = |length: usize| text.get(text.len().saturating_sub(length)..).unwrap_or_default();
        match self {
            Self::Exact(exact) => exact.as_bytes().eq_ignore_ascii_case(text),
            Self::Prefix(prefix) => prefix.as_bytes().eq_ignore_ascii_case(start(prefix.len())),
            Self::Suffix(suffix) => suffix.as_bytes().eq_ignore_ascii_case(end(suffix.len())),
            Self::Present => !text.is_empty(),
        }
    }

    /// Whether the text that `parts` make together matches.
    pub fn matches_parts(&self, parts: &[&str]) -> bool {
        match self {
            Self::Exact(exact) => {
                let left = parts.iter().try_fold(&**exact, |left, part| left.strip_prefix(part));
                left.is_some_and(str::is_empty)
            }
            Self::Prefix(prefix) => {
                let mut left = &**prefix;
                for part in parts {
                    match left.strip_prefix(part) {
                        Some(rest) => left = rest,
                        None => return part.starts_with(left),
                    }
                }
                left.is_empty()
            }
            Self::Suffix(suffix) => {
                let mut left = &**suffix;
                for part in parts.iter().rev() {
                    match left.strip_suffix(part) {
                        Some(rest) => left = rest,
                        None => return part.ends_with(left),
                    }
                }
                left.is_empty()
            }
            Self::Present => parts.iter().any(|part| !part.is_empty()),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
            Self::Present => f.write_str("*"),
        }
    }
}

/// A list and its negation, as in `principals` and `notPrincipals`. An empty list asks for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match<T> {
    /// At least one must match, unless there are none.
    pub any_of: Vec<T>,
    /// None may match.
    pub none_of: Vec<T>,
}

impl<T> Default for Match<T> {
    fn default() -> Self {
        Self { any_of: Vec::new(), none_of: Vec::new() }
    }
}

impl<T> Match<T> {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.any_of.is_empty() && self.none_of.is_empty()
    }

    /// Whether a value passes, given what it means for one entry to match.
    pub fn allows(&self, matches: impl Fn(&T) -> bool) -> bool {
        (self.any_of.is_empty() || self.any_of.iter().any(&matches)) && !self.none_of.iter().any(&matches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_matches_each_form() {
        for (pattern, text, expected) in [
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("abc*", "abcd", true),
            ("*abc", "xabc", true),
            ("*abc", "abcx", false),
            ("*", "x", true),
            ("*", "", false),
            ("a*c", "abc", false),
            ("a*c", "a*c", true),
            ("a.c", "abc", false),
        ] {
            let read = Pattern::new(pattern);
            assert_eq!(read.matches(text), expected, "{pattern} on {text}");
            assert_eq!(read.to_string(), pattern);
        }
    }

    #[test]
    fn parts_match_as_their_text_does() {
        let parts = ["td", "/ns/", "shop", "/sa/", "web", ""];
        let whole = parts.concat();
        let cuts = (0..=whole.len()).flat_map(|at| {
            let (start, end) = whole.split_at(at);
            [format!("{start}*"), format!("*{end}"), start.to_owned(), end.to_owned()]
        });
        for text in
            cuts.chain(["td/ns/shop/sa/webx", "xtd/*", "*sa/other", "td/ns/shop/sa/web*"].map(str::to_owned))
        {
            let pattern = Pattern::new(&text);
            assert_eq!(pattern.matches_parts(&parts), pattern.matches(&whole), "{text}");
        }
        assert!(!Pattern::Present.matches_parts(&["", ""]));
    }

    #[test]
    fn case_counts_where_it_is_to() {
        for (pattern, text) in
            [("Deny.b.com", "DENY.B.com"), ("*.B.com", "x.b.COM"), ("prefix.*", "PREFIX.x"), ("*", "x")]
        {
            assert!(Pattern::new(pattern).matches_in_any_case(text), "{pattern} on {text}");
        }
        for (pattern, text) in [("b.com", "a.b.com"), ("*.b.com", "b.com"), ("prefix.*", "prefix"), ("*", "")]
        {
            assert!(!Pattern::new(pattern).matches_in_any_case(text), "{pattern} on {text}");
        }
    }
}
