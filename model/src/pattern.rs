//! Value patterns as Istio's policies write them: exact, `prefix*`, `*suffix`, and `*` for presence.

use std::fmt;
use std::sync::Arc;

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
        match self {
            Self::Exact(exact) => **exact == *text,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::Suffix(suffix) => text.ends_with(&**suffix),
            Self::Present => !text.is_empty(),
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
}
