//! Paths as policies write them: `/exact`, `/prefix*`, `*suffix`, `*`, and Istio's templates, in which `{*}` stands for
//! one segment that is not empty and `{**}` for any text, slashes and none at all included.

use std::fmt;
use std::sync::Arc;

use crate::pattern::Pattern;

/// One value of `paths`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PathPattern {
    /// A text, with a star at its start or end perhaps.
    Plain(Pattern),
    /// A template.
    Template(PathTemplate),
}

/// A path in which segments are left open.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PathTemplate {
    /// Segments from the start; those that are `None` are `{*}`.
    segments: Vec<Option<Arc<str>>>,
    /// What the path ends with behind `{**}`; none where there is no `{**}`.
    rest: Option<Arc<str>>,
}

/// Why a text is no template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It does not start with a slash.
    #[error("a template starts with a slash")]
    Start,
    /// A brace or a star that is not a whole segment `{*}` or `{**}`.
    #[error("in a template, braces and stars are only those of `{{*}}` and `{{**}}`, each a whole segment")]
    Segment,
    /// Something is left open behind `{**}`.
    #[error("`{{**}}` is the last of a template's open segments")]
    Order,
}

impl PathPattern {
    /// Reads a value: a template if there are braces in it.
    pub fn new(text: &str) -> Result<Self, TemplateError> {
        match text.contains(['{', '}']) {
            true => PathTemplate::new(text).map(Self::Template),
            false => Ok(Self::Plain(Pattern::new(text))),
        }
    }

    /// Whether a path without its query matches.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Plain(pattern) => pattern.matches(path),
            Self::Template(template) => template.matches(path),
        }
    }
}

impl PathTemplate {
    fn new(text: &str) -> Result<Self, TemplateError> {
        let (mut segments, mut rest) = (Vec::new(), None::<String>);
        for segment in text.strip_prefix('/').ok_or(TemplateError::Start)?.split('/') {
            match (segment, &mut rest) {
                ("{*}" | "{**}", Some(_)) => return Err(TemplateError::Order),
                ("{*}", None) => segments.push(None),
                ("{**}", None) => rest = Some(String::new()),
                (literal, _) if literal.contains(['{', '}', '*']) => return Err(TemplateError::Segment),
                (literal, Some(rest)) => {
                    rest.push('/');
                    rest.push_str(literal);
                }
                (literal, None) => segments.push(Some(literal.into())),
            }
        }
        Ok(Self { segments, rest: rest.map(Into::into) })
    }

    fn matches(&self, path: &str) -> bool {
        let mut left = Some(path);
        for segment in &self.segments {
            let Some(inside) = left.and_then(|left| left.strip_prefix('/')) else { return false };
            let end = inside.find('/').unwrap_or(inside.len());
            let fits = match segment {
                Some(literal) => inside[..end] == **literal,
                None => end > 0,
            };
            if !fits {
                return false;
            }
            left = Some(&inside[end..]).filter(|left| !left.is_empty());
        }
        match &self.rest {
            None => left.is_none(),
            Some(rest) => {
                left.and_then(|left| left.strip_prefix('/')).is_some_and(|left| left.ends_with(&**rest))
            }
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(pattern) => pattern.fmt(f),
            Self::Template(template) => template.fmt(f),
        }
    }
}

impl fmt::Display for PathTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            write!(f, "/{}", segment.as_deref().unwrap_or("{*}"))?;
        }
        match &self.rest {
            Some(rest) => write!(f, "/{{**}}{rest}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_leave_segments_open() {
        for (template, path, expected) in [
            ("/allow/admin/{**}", "/allow/admin/", true),
            ("/allow/admin/{**}", "/allow/admin", false),
            ("/allow/admin/{**}", "/allow/admin/foo/temp.txt", true),
            ("/foo/{*}/bar/{**}", "/foo/buzz/bar/bat/fuzz.txt", true),
            ("/foo/{*}/bar/{**}", "/foo//bar/bat.txt", false),
            ("/foo/{*}/bar/{**}", "/foo/a/b/bar/x", false),
            ("/store/{**}/cart", "/store//cart", true),
            ("/store/{**}/cart", "/store/cart", false),
            ("/store/{**}/cart", "/store/foo/bar/cart", true),
            ("/store/{**}/cart", "/store/foo/cart/", false),
            ("/{*}", "/a", true),
            ("/{*}", "/", false),
            ("/{*}", "/a/", false),
            ("/{*}", "/a/b", false),
            ("/{**}", "/", true),
            ("/{**}", "", false),
            ("/a/{*}/", "/a/b/", true),
            ("/a/{*}/", "/a/b", false),
            ("/a/{*}", "/A/b", false),
            ("/a/{*}", "/a/b|c{}", true),
        ] {
            let read = PathPattern::new(template).expect("a template");
            assert_eq!(read.matches(path), expected, "{template} on {path}");
            assert_eq!(read.to_string(), template);
        }
    }

    #[test]
    fn what_is_no_template_is_said() {
        for (text, expected) in [
            ("a/{*}", TemplateError::Start),
            ("/a{*}", TemplateError::Segment),
            ("/{id}/b", TemplateError::Segment),
            ("/{*}/b*", TemplateError::Segment),
            ("/{***}", TemplateError::Segment),
            ("/a}", TemplateError::Segment),
            ("/{**}/{*}", TemplateError::Order),
            ("/{**}/a/{**}", TemplateError::Order),
        ] {
            assert_eq!(PathPattern::new(text), Err(expected), "{text}");
        }
    }
}
