//! How routes match texts: `exact`, `prefix`, `regex` and presence, as Istio's StringMatch has them.

use std::fmt;
use std::sync::Arc;

use crate::re2::Re2;

/// One StringMatch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StringMatch {
    /// The whole text, byte for byte.
    Exact(Arc<str>),
    /// Text that starts so; not by path segments.
    Prefix(Arc<str>),
    /// Text that the expression matches as a whole.
    Regex(Re2),
    /// Any text, an empty one too: written as `{}` or as the regex `*`.
    Present,
}

/// Whether letters match in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Case {
    /// Only as written.
    #[default]
    Sensitive,
    /// In either case (ASCII); a regex says so itself and is not touched.
    Ignored,
}

impl StringMatch {
    /// Whether `text` matches.
    pub fn matches(&self, text: &str) -> bool {
        self.matches_in(text, Case::Sensitive)
    }

    /// Whether `text` matches when case counts or not.
    pub fn matches_in(&self, text: &str, case: Case) -> bool {
        match (self, case) {
            (Self::Exact(exact), Case::Sensitive) => **exact == *text,
            (Self::Exact(exact), Case::Ignored) => exact.eq_ignore_ascii_case(text),
            (Self::Prefix(prefix), Case::Sensitive) => text.starts_with(&**prefix),
            (Self::Prefix(prefix), Case::Ignored) => {
                let start = text.as_bytes().get(..prefix.len());
                start.is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
            }
            (Self::Regex(regex), _) => regex.is_whole(text),
            (Self::Present, _) => true,
        }
    }
}

impl fmt::Display for StringMatch {
    /// As `explain` shows it: `/a`, `/a*`, `~/a.*`, `*`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Regex(regex) => write!(f, "~{}", regex.as_str()),
            Self::Present => f.write_str("*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_each_way() {
        let check = |asked: &StringMatch, text: &str, case, expected| {
            assert_eq!(asked.matches_in(text, case), expected, "{asked} on {text}");
        };
        let exact = StringMatch::Exact("/Two".into());
        check(&exact, "/Two", Case::Sensitive, true);
        check(&exact, "/two", Case::Sensitive, false);
        check(&exact, "/two", Case::Ignored, true);
        check(&exact, "/Two/", Case::Ignored, false);
        let prefix = StringMatch::Prefix("/v2".into());
        check(&prefix, "/v2example", Case::Sensitive, true);
        check(&prefix, "/V2/x", Case::Sensitive, false);
        check(&prefix, "/V2/x", Case::Ignored, true);
        check(&prefix, "/v", Case::Ignored, false);
        check(&prefix, "/vä", Case::Ignored, false);
        let regex = StringMatch::Regex(Re2::new("/a+").expect("an expression"));
        check(&regex, "/aaa", Case::Sensitive, true);
        check(&regex, "/AAA", Case::Ignored, false);
        check(&regex, "/aab", Case::Sensitive, false);
        check(&StringMatch::Present, "", Case::Sensitive, true);
    }
}
