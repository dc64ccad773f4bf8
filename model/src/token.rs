//! What a verified token says of who sends a request: the claims of a JWT, without its signature and without JSON.

use std::collections::BTreeMap;

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
#[derive(Debug, Clone, PartialEq, Eq)]
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
}
