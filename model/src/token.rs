//! What a verified token says of who sends a request: the claims of a JWT, without its signature and without JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A token whose signature and times have been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// `iss`
    pub issuer: String,
    /// `sub`; empty where there is none.
    pub subject: String,
    /// `aud`, one or several.
    pub audiences: Vec<String>,
    /// `azp`
    pub presenter: Option<String>,
    /// All claims, those above included.
    pub claims: BTreeMap<String, Claim>,
}

/// One claim's value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Claim {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number, as it was written.
    Number(String),
    /// A text.
    Text(String),
    /// Several values.
    List(Vec<Self>),
    /// Claims within a claim.
    Map(BTreeMap<String, Self>),
}

impl Token {
    /// Who sends the request, as policies name it: `<issuer>/<subject>`.
    pub fn principal(&self) -> String {
        format!("{}/{}", self.issuer, self.subject)
    }

    /// The claim at a path, one name for each level.
    pub fn claim<T: AsRef<str>>(&self, path: &[T]) -> Option<&Claim> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.claims.get(first.as_ref())?, |claim, name| match claim {
            Claim::Map(within) => within.get(name.as_ref()),
            _ => None,
        })
    }
}

impl Claim {
    /// Whether it is a text that `holds`, or a list with one: policies ask nothing of numbers, truth values and maps.
    pub fn any_text(&self, mut holds: impl FnMut(&str) -> bool) -> bool {
        match self {
            Self::Text(text) => holds(text),
            Self::List(list) => list.iter().any(|one| matches!(one, Self::Text(text) if holds(text))),
            _ => false,
        }
    }
}

/// Where a claim stands: one name for each level, at least one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClaimPath(Arc<[Arc<str>]>);

impl ClaimPath {
    /// The most levels.
    pub const MAX_DEPTH: usize = 16;

    /// The path of these names.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self(names.into_iter().map(Arc::from).collect())
    }

    /// Reads what stands behind a prefix such as `@request.auth.claims`: `.a.b`, or `[a][b]` where names have dots.
    pub fn parse(text: &str) -> Option<Self> {
        let names: Vec<&str> = match text.strip_prefix('.') {
            Some(rest) if !rest.contains(['[', ']']) => rest.split('.').collect(),
            _ => text.strip_prefix('[')?.strip_suffix(']')?.split("][").collect(),
        };
        let plain = |name: &&str| !name.is_empty() && !name.contains(['[', ']']);
        (names.iter().all(plain) && names.len() <= Self::MAX_DEPTH).then(|| Self::of(names))
    }
}

impl AsRef<[Arc<str>]> for ClaimPath {
    fn as_ref(&self) -> &[Arc<str>] {
        &self.0
    }
}

impl fmt::Display for ClaimPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|name| write!(f, "[{name}]"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> Claim {
        Claim::Text(value.to_owned())
    }

    fn map(entries: impl IntoIterator<Item = (&'static str, Claim)>) -> BTreeMap<String, Claim> {
        entries.into_iter().map(|(name, claim)| (name.to_owned(), claim)).collect()
    }

    #[test]
    fn claims_are_found_by_their_path_and_texts_in_them() {
        let groups =
            Claim::List(vec![Claim::Number("1".to_owned()), text("admin"), Claim::List(vec![text("in")])]);
        let token = Token {
            issuer: "https://issuer".to_owned(),
            subject: "jason".to_owned(),
            audiences: Vec::new(),
            presenter: None,
            claims: map([("realm", Claim::Map(map([("groups", groups)]))), ("iss", text("https://issuer"))]),
        };
        assert_eq!(token.principal(), "https://issuer/jason");
        let groups = token.claim(&["realm", "groups"]).expect("it is there");
        assert!(groups.any_text(|text| text == "admin"));
        assert!(!groups.any_text(|text| text == "in"), "no list within a list");
        assert!(!token.claim(&["realm"]).expect("it is there").any_text(|_| true), "a map is no text");
        for absent in [&["realm", "groups", "admin"][..], &["iss", "x"], &["other"], &[]] {
            assert_eq!(token.claim(absent), None, "{absent:?}");
        }
    }

    #[test]
    fn paths_are_read_with_dots_or_brackets() {
        let check = |written: &str, expected: Option<&str>| {
            let path = ClaimPath::parse(written);
            assert_eq!(path.map(|path| path.to_string()).as_deref(), expected, "{written}");
        };
        check(".sub", Some("[sub]"));
        check(".realm.groups", Some("[realm][groups]"));
        check("[https://issuer/groups]", Some("[https://issuer/groups]"));
        check("[realm][groups]", Some("[realm][groups]"));
        for bad in
            ["", ".", "sub", "..a", ".a.", "[]", "[a", "[a]b", "[a].b", "[a][]", ".a[b]", "[a]]", "[[a]"]
        {
            check(bad, None);
        }
        check(&".a".repeat(17), None);
    }
}
