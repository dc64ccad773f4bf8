//! What a provider that allows a request changes of it, and of its answer.

use std::sync::Arc;

use super::query;
use crate::http::headers::may_be_read_as;
use crate::http::{Headers, RequestHead};
use crate::pattern::Pattern;

/// Fields that a message is framed, addressed or vouched for by: no provider sets or removes any. Of the first, two readers
/// would see two messages; the last says whose certificate the caller showed.
const KEPT: [&str; 13] = [
    "host",
    "connection",
    "content-length",
    "expect",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-forwarded-client-cert",
];

/// Whether a provider may set, or remove, the field of this name: none that some program takes for one of those.
pub fn may_be_set(name: &str) -> bool {
    !name.starts_with(':') && !KEPT.iter().any(|kept| may_be_read_as(name.as_bytes(), kept))
}

/// What becomes of a field that may be there already (`HeaderValueOption.HeaderAppendAction`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FieldAction {
    /// It is added, whatever is there.
    Append,
    /// It is added if there is none.
    AddIfAbsent,
    /// It stands alone.
    Overwrite,
    /// It stands alone if there is one.
    OverwriteIfExists,
}

/// One field.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FieldChange {
    /// What is done.
    pub action: FieldAction,
    /// The name.
    pub name: Arc<str>,
    /// The value.
    pub value: Arc<[u8]>,
}

/// All that changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Fields of the request, in their order.
    pub request: Vec<FieldChange>,
    /// Fields of the request that go.
    pub removed: Vec<Arc<str>>,
    /// Parameters of the query that are set.
    pub query: Vec<(String, String)>,
    /// Parameters of the query that go.
    pub query_removed: Vec<String>,
    /// Fields of the answer.
    pub answer: Vec<FieldChange>,
}

/// Fields of a request that are its providers' to say: those that they have set or removed, and those that they might have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Vouched {
    /// In lower case.
    names: Vec<Box<str>>,
    patterns: Vec<Pattern>,
}

impl Vouched {
    /// Adds what another provider says, or might have said.
    pub fn add(&mut self, patterns: &[Pattern], changes: &Changes) {
        self.patterns.extend_from_slice(patterns);
        self.names.extend(changes.names().map(|name| name.to_ascii_lowercase().into()));
    }

    /// Takes out of trailers what a program that merges them into the head would take for what a provider has said.
    pub fn strip_trailers(&self, trailers: &mut Headers) {
        let is_vouched = |name: &str| {
            self.names.iter().any(|vouched| may_be_read_as(name.as_bytes(), vouched))
                || self.patterns.iter().any(|pattern| pattern.may_be_read_in(name))
        };
        trailers.retain(|name| !is_vouched(name));
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.patterns.is_empty()
    }
}

impl Changes {
    /// The names of the request's fields that are set or go, where a provider may do that.
    fn names(&self) -> impl Iterator<Item = &str> {
        let set = self.request.iter().map(|field| &*field.name);
        set.chain(self.removed.iter().map(|name| &**name)).filter(|name| may_be_set(name))
    }

    /// Takes out what a program could take for a field that is set or goes, and has another name.
    fn strip(&self, headers: &mut Headers) {
        let names: Vec<String> = self.names().map(str::to_ascii_lowercase).collect();
        headers.retain(|name| {
            names.iter().any(|changed| changed == name)
                || !names.iter().any(|changed| may_be_read_as(name.as_bytes(), changed))
        });
    }

    /// Changes a request. Gives back the names that no provider may set.
    pub fn apply<'a>(&'a self, head: &mut RequestHead) -> Vec<&'a str> {
        let mut refused = Vec::new();
        self.strip(&mut head.headers);
        for field in &self.request {
            if !field.apply(&mut head.headers) {
                refused.push(&*field.name);
            }
        }
        for name in &self.removed {
            match may_be_set(name) {
                true => _ = head.headers.remove(name),
                false => refused.push(name),
            }
        }
        if !(self.query.is_empty() && self.query_removed.is_empty()) && head.target.starts_with('/') {
            head.target = query::changed(&head.target, &self.query, &self.query_removed);
        }
        refused
    }

    /// Changes the answer.
    pub fn mark_answer(&self, headers: &mut Headers) {
        for field in &self.answer {
            field.apply(headers);
        }
    }

    /// What the answers of several providers come to, the later one's after those before.
    pub fn then(&mut self, later: &Self) {
        self.answer.extend(later.answer.iter().cloned());
    }

    /// How much room it takes, in bytes, about.
    pub fn size(&self) -> usize {
        let fields = |fields: &[FieldChange]| -> usize {
            fields.iter().map(|field| field.name.len() + field.value.len()).sum()
        };
        let names = |names: &[Arc<str>]| -> usize { names.iter().map(|name| name.len()).sum() };
        let query: usize = self.query.iter().map(|(name, value)| name.len() + value.len()).sum();
        let gone: usize = self.query_removed.iter().map(String::len).sum();
        fields(&self.request) + fields(&self.answer) + names(&self.removed) + query + gone
    }
}

impl FieldChange {
    /// Changes fields; whether that was a change that a provider may make.
    fn apply(&self, headers: &mut Headers) -> bool {
        if !may_be_set(&self.name) {
            return false;
        }
        let name = self.name.to_ascii_lowercase();
        let is_there = headers.contains(&name);
        let done = match self.action {
            FieldAction::Append => headers.append(&name, &self.value),
            FieldAction::AddIfAbsent if is_there => Ok(()),
            FieldAction::OverwriteIfExists if !is_there => Ok(()),
            FieldAction::AddIfAbsent | FieldAction::Overwrite | FieldAction::OverwriteIfExists => {
                headers.set(&name, &self.value)
            }
        };
        done.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(action: FieldAction, name: &str, value: &str) -> FieldChange {
        FieldChange { action, name: name.into(), value: value.as_bytes().into() }
    }

    fn head(fields: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead { target: "/a?b=1".into(), ..RequestHead::default() };
        for (name, value) in fields {
            head.headers.append(name, value.as_bytes()).expect("a field");
        }
        head
    }

    #[test]
    fn fields_are_set_by_their_action() {
        let check = |action, before: &[(&str, &str)], expected: Option<&str>| {
            let mut head = head(before);
            let changes = Changes { request: vec![change(action, "X-User", "eve")], ..Changes::default() };
            assert!(changes.apply(&mut head).is_empty());
            assert_eq!(head.headers.text("x-user").as_deref(), expected, "{action:?}");
        };
        let there = [("x-user", "bob"), ("x-user", "ann")];
        check(FieldAction::Append, &there, Some("bob,ann,eve"));
        check(FieldAction::Append, &[], Some("eve"));
        check(FieldAction::AddIfAbsent, &there, Some("bob,ann"));
        check(FieldAction::AddIfAbsent, &[], Some("eve"));
        check(FieldAction::Overwrite, &there, Some("eve"));
        check(FieldAction::Overwrite, &[], Some("eve"));
        check(FieldAction::OverwriteIfExists, &there, Some("eve"));
        check(FieldAction::OverwriteIfExists, &[], None);
    }

    #[test]
    fn what_frames_a_message_or_vouches_for_the_caller_is_no_providers() {
        let before = [("x-forwarded-client-cert", "By=a;URI=b"), ("content-length", "3")];
        for name in [
            ":authority",
            ":path",
            "Host",
            "Connection",
            "Content-Length",
            "Transfer-Encoding",
            "TE",
            "Upgrade",
            "X-Forwarded-Client-Cert",
            "x_forwarded_client_cert",
            "Content_Length",
            "content.length",
            "x~forwarded.client-cert",
            "a b",
            "x\r\ny",
        ] {
            let mut changed = head(&before);
            let changes =
                Changes { request: vec![change(FieldAction::Overwrite, name, "1")], ..Changes::default() };
            assert_eq!(changes.apply(&mut changed), [name]);
            assert_eq!(changed, head(&before), "{name}");
            if !name.contains([' ', '\r']) {
                let changes = Changes { removed: vec![name.into()], ..Changes::default() };
                assert_eq!(changes.apply(&mut changed), [name]);
            }
            assert_eq!(changed, head(&before), "{name}");
            let mut answer = Headers::default();
            Changes { answer: vec![change(FieldAction::Append, name, "1")], ..Changes::default() }
                .mark_answer(&mut answer);
            assert!(answer.is_empty(), "{name}");
        }
        let mut changed = head(&[]);
        let split = Changes {
            request: vec![change(FieldAction::Append, "x-a", "1\r\nx-b: 2")],
            ..Changes::default()
        };
        assert_eq!(split.apply(&mut changed), ["x-a"]);
        assert!(changed.headers.is_empty());
    }

    #[test]
    fn a_field_that_is_set_or_goes_has_no_other_spelling() {
        let forged =
            [("x_user", "admin"), ("x.user", "admin"), ("x-user", "bob"), ("xuser", "1"), ("x-users", "2")];
        let check = |changes: Changes, expected: Option<&str>| {
            let mut changed = head(&forged);
            assert!(changes.apply(&mut changed).is_empty());
            let others: Vec<_> = changed.headers.iter().map(|(name, _)| name.to_owned()).collect();
            assert!(!others.iter().any(|name| name == "x_user" || name == "x.user"), "{others:?}");
            assert!(changed.headers.contains("xuser") && changed.headers.contains("x-users"));
            assert_eq!(changed.headers.text("x-user").as_deref(), expected, "{changes:?}");
        };
        let set = |action, name| Changes { request: vec![change(action, name, "eve")], ..Changes::default() };
        check(set(FieldAction::Overwrite, "X-User"), Some("eve"));
        check(set(FieldAction::Append, "x-user"), Some("bob,eve"));
        check(set(FieldAction::AddIfAbsent, "x-user"), Some("bob"));
        check(set(FieldAction::OverwriteIfExists, "x-user"), Some("eve"));
        check(Changes { removed: vec!["X-User".into()], ..Changes::default() }, None);
        // What a provider itself says by two names stands by both.
        let mut both = set(FieldAction::Overwrite, "x-user");
        both.request.push(change(FieldAction::Overwrite, "x_user", "eve"));
        let mut changed = head(&[("x.user", "admin")]);
        assert!(both.apply(&mut changed).is_empty());
        assert_eq!(changed.headers, head(&[("x-user", "eve"), ("x_user", "eve")]).headers);
    }

    #[test]
    fn trailers_say_nothing_that_is_the_providers_to_say() {
        let mut vouched = Vouched::default();
        assert!(vouched.is_empty());
        let changes = Changes {
            request: vec![
                change(FieldAction::Append, "X-User", "eve"),
                change(FieldAction::Append, "te", "a"),
            ],
            removed: vec!["x-gone".into()],
            ..Changes::default()
        };
        vouched.add(&[Pattern::new("x-role-*"), Pattern::new("*-claim")], &changes);
        assert!(!vouched.is_empty());
        let mut trailers = head(&[
            ("x-user", "admin"),
            ("x_user", "admin"),
            ("x.gone", "1"),
            ("x_role_a", "root"),
            ("any_claim", "root"),
            ("x-role", "kept"),
            ("grpc-status", "0"),
        ])
        .headers;
        vouched.strip_trailers(&mut trailers);
        assert_eq!(trailers, head(&[("x-role", "kept"), ("grpc-status", "0")]).headers);
    }

    #[test]
    fn what_goes_goes_and_the_query_changes() {
        let mut changed = head(&[("cookie", "a"), ("x-keep", "1")]);
        let changes = Changes {
            removed: vec!["Cookie".into()],
            query: vec![("c".into(), "2".into())],
            query_removed: vec!["b".into()],
            ..Changes::default()
        };
        assert!(changes.apply(&mut changed).is_empty());
        assert_eq!((changed.headers.len(), &*changed.target), (1, "/a?c=2"));
    }
}
