//! Routes taken from another VirtualService. A delegate's route holds for what both it and its root match; where its match
//! is not wholly within one of the root's, the route is dropped, because it would take what the root does not give.

use std::sync::Arc;

use super::http_match::HttpMatch;
use super::http_route::{Delegation, HttpRoute, RouteOptions};
use super::scope::Scope;
use crate::string_match::{Case, StringMatch};

/// The delegate's route as it holds within the root; `None` if their matches conflict.
pub(super) fn merged(root: &Delegation, route: &HttpRoute) -> Option<HttpRoute> {
    Some(HttpRoute {
        name: joined(root.name.as_ref(), route.name.as_ref()),
        matches: all_matches(&root.matches, &route.matches)?,
        action: route.action.clone(),
        options: options(&root.options, &route.options),
    })
}

fn joined(root: Option<&Arc<str>>, inner: Option<&Arc<str>>) -> Option<Arc<str>> {
    match (root, inner) {
        (Some(root), Some(inner)) => Some(format!("{root}-{inner}").into()),
        (root, inner) => root.or(inner).cloned(),
    }
}

fn options(root: &RouteOptions, inner: &RouteOptions) -> RouteOptions {
    let mirrors = if inner.mirrors.is_empty() { &root.mirrors } else { &inner.mirrors };
    RouteOptions {
        rewrite: inner.rewrite.clone().or_else(|| root.rewrite.clone()),
        timeout: inner.timeout.or(root.timeout),
        retries: inner.retries.clone().or_else(|| root.retries.clone()),
        fault: inner.fault.clone().or_else(|| root.fault.clone()),
        mirrors: mirrors.clone(),
        cors: inner.cors.clone().or_else(|| root.cors.clone()),
        headers: inner.headers.clone().or_else(|| root.headers.clone()),
    }
}

/// Every block of the delegate within every block of the root that holds it. A block that none holds drops the route.
fn all_matches(root: &[HttpMatch], inner: &[HttpMatch]) -> Option<Vec<HttpMatch>> {
    if root.is_empty() || inner.is_empty() {
        return Some(if inner.is_empty() { root.to_vec() } else { inner.to_vec() });
    }
    let mut all = Vec::new();
    for inner in inner {
        let before = all.len();
        all.extend(root.iter().filter_map(|root| one_match(root, inner)));
        if all.len() == before {
            return None;
        }
    }
    Some(all)
}

fn one_match(root: &HttpMatch, inner: &HttpMatch) -> Option<HttpMatch> {
    let (uri, uri_case) = match (&root.uri, &inner.uri) {
        (Some(_), Some(_)) if root.uri_case != inner.uri_case => return None,
        (_, Some(_)) => (narrower(&root.uri, &inner.uri, inner.uri_case)?, inner.uri_case),
        (uri, None) => (uri.clone(), root.uri_case),
    };
    Some(HttpMatch {
        name: joined(root.name.as_ref(), inner.name.as_ref()),
        scope: scope(&root.scope, &inner.scope)?,
        uri,
        uri_case,
        scheme: narrower(&root.scheme, &inner.scheme, Case::Sensitive)?,
        method: narrower(&root.method, &inner.method, Case::Sensitive)?,
        authority: narrower(&root.authority, &inner.authority, Case::Sensitive)?,
        headers: both(&root.headers, &inner.headers, is_within)?,
        // Narrower here is what excludes more, which two patterns do not tell: only the same one is sure.
        without_headers: both(&root.without_headers, &inner.without_headers, |root, inner, _| root == inner)?,
        query_params: both(&root.query_params, &inner.query_params, is_within)?,
        claims: both(&root.claims, &inner.claims, is_within)?,
        without_claims: both(&root.without_claims, &inner.without_claims, |root, inner, _| root == inner)?,
    })
}

fn narrower(
    root: &Option<StringMatch>,
    inner: &Option<StringMatch>,
    case: Case,
) -> Option<Option<StringMatch>> {
    match (root, inner) {
        (Some(root), Some(inner)) if !is_within(root, inner, case) => None,
        (root, inner) => Some(inner.as_ref().or(root.as_ref()).cloned()),
    }
}

/// Whether everything that `inner` takes is taken by `root`. Of a regex nobody can say.
fn is_within(root: &StringMatch, inner: &StringMatch, case: Case) -> bool {
    match (root, inner) {
        (StringMatch::Present, _) => true,
        (StringMatch::Exact(_), StringMatch::Exact(text)) => root.matches_in(text, case),
        (StringMatch::Prefix(_), StringMatch::Exact(text) | StringMatch::Prefix(text)) => {
            root.matches_in(text, case)
        }
        _ => false,
    }
}

fn both<Name: Clone + PartialEq>(
    root: &[(Name, StringMatch)],
    inner: &[(Name, StringMatch)],
    within: impl Fn(&StringMatch, &StringMatch, Case) -> bool,
) -> Option<Vec<(Name, StringMatch)>> {
    let of_inner = |name: &Name| inner.iter().find(|(other, _)| other == name);
    let mut all = inner.to_vec();
    for (name, asked) in root {
        match of_inner(name) {
            Some((_, inner)) if !within(asked, inner, Case::Sensitive) => return None,
            Some(_) => {}
            None => all.push((name.clone(), asked.clone())),
        }
    }
    Some(all)
}

fn scope(root: &Scope, inner: &Scope) -> Option<Scope> {
    let mut source_labels = root.source_labels.clone();
    for (key, value) in &inner.source_labels {
        if source_labels.insert(Arc::clone(key), Arc::clone(value)).is_some_and(|old| old != *value) {
            return None;
        }
    }
    Some(Scope {
        gateways: agreed(&root.gateways, &inner.gateways)?,
        source_labels,
        source_namespace: one(&root.source_namespace, &inner.source_namespace)?,
        port: one(&root.port, &inner.port)?,
    })
}

fn one<T: Clone + PartialEq>(root: &Option<T>, inner: &Option<T>) -> Option<Option<T>> {
    match (root, inner) {
        (Some(root), Some(inner)) if root != inner => None,
        (root, inner) => Some(inner.as_ref().or(root.as_ref()).cloned()),
    }
}

/// The gateways of both, where each names some.
fn agreed<T: Clone + PartialEq>(root: &[T], inner: &[T]) -> Option<Vec<T>> {
    if root.is_empty() || inner.is_empty() {
        return Some(if inner.is_empty() { root.to_vec() } else { inner.to_vec() });
    }
    let both: Vec<T> = inner.iter().filter(|gateway| root.contains(gateway)).cloned().collect();
    (!both.is_empty()).then_some(both)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(text: &str) -> Option<StringMatch> {
        Some(StringMatch::Exact(text.into()))
    }

    fn prefix(text: &str) -> Option<StringMatch> {
        Some(StringMatch::Prefix(text.into()))
    }

    fn uri(uri: Option<StringMatch>) -> HttpMatch {
        HttpMatch { uri, ..HttpMatch::default() }
    }

    fn check(root: &[&HttpMatch], inner: &[&HttpMatch], expected: Option<&[&HttpMatch]>) {
        let owned = |blocks: &[&HttpMatch]| blocks.iter().copied().cloned().collect::<Vec<_>>();
        let found = all_matches(&owned(root), &owned(inner));
        assert_eq!(found, expected.map(owned), "{root:?} and {inner:?}");
    }

    #[test]
    fn a_delegate_takes_no_more_than_its_root() {
        let product = uri(prefix("/productpage"));
        let v1 = uri(exact("/productpage/v1"));
        let other = uri(exact("/other"));
        check(&[&product], &[&v1], Some(&[&v1]));
        check(&[&product], &[], Some(&[&product]));
        check(&[], &[&v1], Some(&[&v1]));
        check(&[&v1], &[&product], None);
        check(&[&v1], &[&other], None);
        let regex = uri(crate::re2::Re2::new("/p.*").ok().map(StringMatch::Regex));
        check(&[&product], &[&regex], None);
        let any_case = HttpMatch { uri_case: Case::Ignored, ..v1.clone() };
        check(&[&product], &[&any_case], None);
        check(&[&product], &[&v1, &other], None);
        check(&[&product, &uri(prefix("/"))], &[&v1], Some(&[&v1, &v1]));
    }

    #[test]
    fn everything_that_both_ask_for_stays() {
        let header = |name: &str, asked| (Arc::from(name), asked);
        let root = HttpMatch {
            name: Some("r".into()),
            method: exact("GET"),
            headers: vec![header("a", StringMatch::Present), header("b", StringMatch::Exact("1".into()))],
            scope: Scope { port: 80.try_into().ok(), ..Scope::default() },
            ..HttpMatch::default()
        };
        let inner = HttpMatch {
            name: Some("d".into()),
            headers: vec![header("a", StringMatch::Exact("x".into()))],
            ..HttpMatch::default()
        };
        let merged = one_match(&root, &inner).expect("no conflict");
        assert_eq!(merged.name.as_deref(), Some("r-d"));
        assert_eq!(merged.method, exact("GET"));
        assert_eq!(merged.scope.port, 80.try_into().ok());
        assert_eq!(merged.headers, [inner.headers[0].clone(), root.headers[1].clone()]);
        let other_port = HttpMatch { scope: Scope { port: 81.try_into().ok(), ..Scope::default() }, ..inner };
        assert_eq!(one_match(&root, &other_port), None);
        let without = |text: &str| HttpMatch {
            without_headers: vec![header("x", StringMatch::Exact(text.into()))],
            ..HttpMatch::default()
        };
        assert_eq!(one_match(&without("a"), &without("b")), None);
        assert_eq!(one_match(&without("a"), &without("a")), Some(without("a")));
    }

    #[test]
    fn the_root_says_what_the_delegate_leaves_open() {
        let second = std::time::Duration::from_secs(1);
        let root = RouteOptions { timeout: Some(second), ..RouteOptions::default() };
        assert_eq!(options(&root, &RouteOptions::default()).timeout, Some(second));
        let inner = RouteOptions { timeout: Some(second * 2), ..RouteOptions::default() };
        assert_eq!(options(&root, &inner).timeout, Some(second * 2));
    }
}
