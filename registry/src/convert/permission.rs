//! What a permission of an intention asks of a request, and what a list of them comes to. Consul takes the first
//! permission that matches; a policy's rules have no order. So what an earlier permission decides otherwise is carved out
//! of a later one: the requests that are allowed (or denied) as a list of terms, each a set of conditions that must all
//! hold.

use std::collections::BTreeSet;

use serde_json::{Value as Json, json};

use super::fields::Fields;
use super::{DefaultPolicy, Findings};

/// Terms that a list of permissions may come to; beyond it nobody could read the policy.
pub const MAX_TERMS: usize = 256;

/// One permission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Permission {
    /// What becomes of a request that matches.
    pub(super) action: DefaultPolicy,
    /// All that it asks; nothing matches every request.
    pub(super) asks: Vec<Ask>,
}

/// One condition, or its opposite.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ask {
    /// The path matches the pattern.
    Path(String),
    /// It does not.
    NotPath(String),
    /// The method is one of these.
    Methods(BTreeSet<String>),
    /// It is none of these.
    NotMethods(BTreeSet<String>),
    /// The field is there and matches the pattern.
    Has(String, String),
    /// The field is missing, or does not match.
    Lacks(String, String),
}

impl Ask {
    fn opposite(&self) -> Self {
        match self.clone() {
            Self::Path(path) => Self::NotPath(path),
            Self::NotPath(path) => Self::Path(path),
            Self::Methods(methods) => Self::NotMethods(methods),
            Self::NotMethods(methods) => Self::Methods(methods),
            Self::Has(name, value) => Self::Lacks(name, value),
            Self::Lacks(name, value) => Self::Has(name, value),
        }
    }
}

/// Conditions that must all hold.
pub(super) type Term = BTreeSet<Ask>;

/// A list of permissions came to more than `MAX_TERMS` terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooMany;

/// The requests that come to `wanted`: one of the terms holds. `default` decides on those that no permission matches.
pub(super) fn region(
    permissions: &[Permission],
    default: DefaultPolicy,
    wanted: DefaultPolicy,
) -> Result<Vec<Term>, TooMany> {
    let mut terms: Vec<Term> = Vec::new();
    for (index, permission) in permissions.iter().enumerate() {
        if permission.action == wanted {
            let base = Term::from_iter(permission.asks.iter().cloned());
            let earlier = permissions.iter().take(index).filter(|earlier| earlier.action != wanted);
            terms.extend(without(base, earlier)?);
            limited(&terms)?;
        }
    }
    if default == wanted {
        let others = permissions.iter().filter(|permission| permission.action != wanted);
        terms.extend(without(Term::new(), others)?);
    }
    Ok(irredundant(terms))
}

/// A term with what the permissions match taken away.
fn without<'p>(base: Term, taken: impl Iterator<Item = &'p Permission>) -> Result<Vec<Term>, TooMany> {
    let mut terms = Vec::from_iter(tidy(base));
    for permission in taken {
        // Not all of them hold: one does not. A permission that asks for nothing leaves nothing.
        let mut left = Vec::new();
        for term in &terms {
            for ask in &permission.asks {
                let mut narrower = term.clone();
                narrower.insert(ask.opposite());
                left.extend(tidy(narrower));
            }
        }
        terms = irredundant(left);
        limited(&terms)?;
    }
    Ok(terms)
}

fn limited(terms: &[Term]) -> Result<(), TooMany> {
    if terms.len() > MAX_TERMS { Err(TooMany) } else { Ok(()) }
}

/// The term with its methods in one condition; none where nothing can fulfil it.
fn tidy(term: Term) -> Option<Term> {
    let (mut out, mut only, mut none) = (Term::new(), None::<BTreeSet<String>>, BTreeSet::new());
    for ask in term {
        match ask {
            Ask::Methods(methods) => {
                only = Some(match only {
                    Some(only) => only.intersection(&methods).cloned().collect(),
                    None => methods,
                });
            }
            Ask::NotMethods(methods) => none.extend(methods),
            other => _ = out.insert(other),
        }
    }
    match only {
        Some(only) => {
            let left: BTreeSet<String> = only.difference(&none).cloned().collect();
            if left.is_empty() {
                return None;
            }
            out.insert(Ask::Methods(left));
        }
        None if !none.is_empty() => _ = out.insert(Ask::NotMethods(none)),
        None => {}
    }
    let impossible = out.iter().any(|ask| match ask {
        Ask::Path(path) => out.iter().any(|other| match other {
            Ask::NotPath(not) => covers(not, path),
            _ => false,
        }),
        Ask::Has(name, value) => out.iter().any(|other| match other {
            Ask::Lacks(also, not) => name == also && covers(not, value),
            _ => false,
        }),
        _ => false,
    });
    (!impossible).then_some(out)
}

/// Whether the pattern `wide` matches all that `narrow` does.
fn covers(wide: &str, narrow: &str) -> bool {
    if wide == "*" || wide == narrow {
        return true;
    }
    match (wide.strip_suffix('*'), wide.strip_prefix('*')) {
        (Some(start), _) => !narrow.starts_with('*') && narrow.starts_with(start),
        (None, Some(end)) => !narrow.ends_with('*') && narrow.ends_with(end),
        (None, None) => false,
    }
}

/// Without terms that ask for more than another one does.
fn irredundant(mut terms: Vec<Term>) -> Vec<Term> {
    terms.sort_by_key(Term::len);
    let mut kept: Vec<Term> = Vec::new();
    for term in terms {
        if !kept.iter().any(|wider| wider.is_subset(&term)) {
            kept.push(term);
        }
    }
    kept
}

/// The term as `to` and `when` of a rule.
pub(super) fn of_rule(term: &Term) -> (Option<Json>, Vec<Json>) {
    let mut operation = serde_json::Map::new();
    let mut when = Vec::new();
    let mut not_paths = Vec::new();
    for ask in term {
        match ask {
            Ask::Path(path) => _ = operation.insert("paths".into(), json!([path])),
            Ask::NotPath(path) => not_paths.push(path),
            Ask::Methods(methods) => _ = operation.insert("methods".into(), json!(methods)),
            Ask::NotMethods(methods) => _ = operation.insert("notMethods".into(), json!(methods)),
            Ask::Has(name, value) => when.push(json!({ "key": key(name), "values": [value] })),
            Ask::Lacks(name, value) => when.push(json!({ "key": key(name), "notValues": [value] })),
        }
    }
    if !not_paths.is_empty() {
        operation.insert("notPaths".into(), json!(not_paths));
    }
    let to = (!operation.is_empty()).then(|| json!([{ "operation": operation }]));
    (to, when)
}

fn key(name: &str) -> String {
    format!("request.headers[{name}]")
}

/// Reads the permissions of an intention.
pub(super) fn read(outer: &Fields<'_>, f: &mut Findings) -> Vec<Permission> {
    let all = outer.objects(f, "Permissions");
    all.into_iter().map(|fields| permission(fields, f)).collect()
}

fn permission(fields: Fields<'_>, f: &mut Findings) -> Permission {
    let action = action(&fields, f);
    fields.unsaid(
        f,
        "JWT",
        "asks for tokens",
        "write a RequestAuthentication and `requestPrincipals`: docs/tokens.md",
    );
    let mut asks = Vec::new();
    match fields.object(f, "HTTP") {
        Some(http) => {
            path(&http, &mut asks, f);
            methods(&http, &mut asks, f);
            for header in http.objects(f, "Header") {
                header_asks(header, &mut asks, f);
            }
            http.finish(f);
        }
        // One without conditions matches everything.
        None if fields.stands("HTTP").is_some() => {}
        None => {
            fields.refuse(f, "HTTP", "a permission asks for something of HTTP", "use the intention's Action");
        }
    }
    fields.finish(f);
    Permission { action, asks }
}

/// `Action`, of an intention or a permission.
pub(super) fn action(fields: &Fields<'_>, f: &mut Findings) -> DefaultPolicy {
    match fields.text(f, "Action") {
        Some("allow") => DefaultPolicy::Allow,
        Some("deny") => DefaultPolicy::Deny,
        _ => {
            fields.refuse(f, "Action", "is neither `allow` nor `deny`", "");
            DefaultPolicy::Deny
        }
    }
}

/// What a pattern of ours would take for more than it is.
const SPECIAL: [char; 3] = ['*', '{', '}'];

fn path(http: &Fields<'_>, asks: &mut Vec<Ask>, f: &mut Findings) {
    if let Some(exact) = http.text(f, "PathExact") {
        plain_text(http, "PathExact", exact, f);
        asks.push(Ask::Path(exact.to_owned()));
    }
    if let Some(prefix) = http.text(f, "PathPrefix") {
        plain_text(http, "PathPrefix", prefix, f);
        asks.push(Ask::Path(format!("{prefix}*")));
    }
    if let Some(regex) = http.text(f, "PathRegex") {
        match pattern(regex) {
            Some(pattern) => asks.push(Ask::Path(pattern)),
            None => no_regex(http, "PathRegex", f),
        }
    }
}

fn plain_text(fields: &Fields<'_>, key: &str, text: &str, f: &mut Findings) {
    if text.contains(SPECIAL) {
        fields.refuse(f, key, "holds `*`, `{` or `}`, which are no plain characters in policies", "");
    }
}

fn no_regex(fields: &Fields<'_>, key: &str, f: &mut Findings) {
    let help = "policies know texts, texts with `.*` at the start or at the end, and `[^/]+` for a segment of a path: \
                write several permissions of these";
    fields.refuse(f, key, "is a regular expression that no pattern of a policy says", help);
}

/// A regular expression that is a text, or a text with `.*` before or behind it, as a pattern.
fn pattern(regex: &str) -> Option<String> {
    let inner = regex.strip_prefix('^').unwrap_or(regex);
    let inner = inner.strip_suffix('$').filter(|rest| !rest.ends_with('\\')).unwrap_or(inner);
    // A segment of a path, marked before the expression is split at its slashes.
    let marked = inner.replace("[^/]+", "\u{0}");
    if marked.split('/').any(|part| part == "\u{0}") {
        let part = |part: &str| if part == "\u{0}" { Some("{*}".to_owned()) } else { literal(part) };
        let parts: Option<Vec<String>> = marked.split('/').map(part).collect();
        return parts.map(|parts| parts.join("/")).filter(|template| template.starts_with('/'));
    }
    match (inner.strip_prefix(".*"), inner.strip_suffix(".*")) {
        (Some(""), _) => None,
        (Some(rest), _) => literal(rest).map(|text| format!("*{text}")),
        (None, Some(rest)) => literal(rest).map(|text| format!("{text}*")),
        (None, None) => literal(inner).filter(|text| !text.is_empty()),
    }
}

/// The text that an expression without anything special stands for.
fn literal(regex: &str) -> Option<String> {
    let (mut text, mut chars) = (String::new(), regex.chars());
    while let Some(c) = chars.next() {
        match c {
            '\\' => text.push(chars.next().filter(|c| c.is_ascii_punctuation() && !SPECIAL.contains(c))?),
            '.' | '+' | '*' | '?' | '(' | ')' | '[' | ']' | '{' | '}' | '|' | '^' | '$' | '\u{0}' => {
                return None;
            }
            c => text.push(c),
        }
    }
    Some(text)
}

fn methods(http: &Fields<'_>, asks: &mut Vec<Ask>, f: &mut Findings) {
    let methods = http.texts(f, "Methods");
    if methods.iter().any(|method| !method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-')) {
        http.refuse(f, "Methods", "holds something that is no method", "write methods in upper case");
    } else if !methods.is_empty() {
        asks.push(Ask::Methods(methods.into_iter().map(str::to_owned).collect()));
    }
}

/// A field that matches, or with `Invert` one that is there and does not, as Envoy has it; of `Present` one that is missing.
fn header_asks(header: Fields<'_>, asks: &mut Vec<Ask>, f: &mut Findings) {
    let Some(name) = header.text(f, "Name").map(str::to_ascii_lowercase) else {
        header.refuse(f, "Name", "a header without a name", "");
        return;
    };
    let inverted = header.flag(f, "Invert");
    let help = "write several permissions with Exact, Prefix or Suffix";
    header.unsaid(f, "Contains", "policies do not look for a text within another", help);
    header.unsaid(f, "IgnoreCase", "policies compare the values of fields with case", help);
    let mut patterns = Vec::new();
    for (key, before, behind) in [("Exact", "", ""), ("Prefix", "", "*"), ("Suffix", "*", "")] {
        if let Some(text) = header.text(f, key) {
            if text.starts_with('*') || text.ends_with('*') {
                header.refuse(f, key, "begins or ends with `*`, which is no plain character in policies", "");
            }
            patterns.push(format!("{before}{text}{behind}"));
        }
    }
    if let Some(regex) = header.text(f, "Regex") {
        // What a path's segment is, is nothing special in a field.
        match pattern(regex).filter(|pattern| !pattern.contains('{')) {
            Some(pattern) => patterns.push(pattern),
            None => no_regex(&header, "Regex", f),
        }
    }
    let present = header.flag(f, "Present");
    if patterns.len() + usize::from(present) > 1 {
        header.refuse(f, "Name", "more than one way to match", "keep one");
    }
    let any = || "*".to_owned();
    match (patterns.pop(), present, inverted) {
        (Some(pattern), _, false) => asks.push(Ask::Has(name, pattern)),
        (Some(pattern), _, true) => {
            asks.push(Ask::Has(name.clone(), any()));
            asks.push(Ask::Lacks(name, pattern));
        }
        (None, true, false) => asks.push(Ask::Has(name, any())),
        (None, true, true) => asks.push(Ask::Lacks(name, any())),
        (None, false, _) => {}
    }
    header.finish(f);
}

#[cfg(test)]
mod tests;
