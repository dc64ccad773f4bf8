//! Where tokens stand in a request: read from there, and taken out again.

use std::borrow::Cow;

use baremesh_model::http::{Headers, RequestHead};
use baremesh_model::request_authentication::TokenPlace;

/// What a rewriting route keeps of the path as it was (Envoy's name). A token may stand in that, too.
const ORIGINAL_PATH: &str = "x-envoy-original-path";
/// The scheme of RFC 6750, section 2.1.
const BEARER: &[u8] = b"bearer";

/// Every token that stands at a place; what is no text is one that nobody signed.
pub(super) fn tokens_at(place: &TokenPlace, head: &RequestHead, mut each: impl FnMut(Cow<'_, str>)) {
    match place {
        TokenPlace::Bearer => {
            for value in head.headers.get_all("authorization").filter_map(after_bearer) {
                each(String::from_utf8_lossy(value));
            }
        }
        TokenPlace::Header(name, prefix) => {
            let values = head.headers.get_all(name).filter_map(|value| after_prefix(value, prefix));
            values.for_each(|value| each(String::from_utf8_lossy(value)));
        }
        TokenPlace::Param(name) => {
            let pairs = head.query().into_iter().flat_map(|query| query.split('&'));
            pairs.filter_map(|pair| value_of_pair(pair, name)).for_each(each);
        }
        TokenPlace::Cookie(name) => {
            for value in head.headers.get_all("cookie") {
                let pairs = value.split(|byte| *byte == b';').filter_map(|pair| value_of_cookie(pair, name));
                pairs.for_each(|value| each(String::from_utf8_lossy(value)));
            }
        }
    }
}

/// Takes all tokens out of a place.
pub(super) fn remove_from(place: &TokenPlace, head: &mut RequestHead) {
    match place {
        TokenPlace::Bearer => keep_values(&mut head.headers, "authorization", |value| {
            after_bearer(value).is_none().then_some(Cow::Borrowed(value))
        }),
        TokenPlace::Header(name, prefix) => keep_values(&mut head.headers, name, |value| {
            after_prefix(value, prefix).is_none().then_some(Cow::Borrowed(value))
        }),
        TokenPlace::Param(name) => {
            if let Some(target) = without_param(&head.target, name) {
                head.target = target;
            }
            keep_values(&mut head.headers, ORIGINAL_PATH, |value| {
                let without = without_param(&String::from_utf8_lossy(value), name);
                Some(without.map_or(Cow::Borrowed(value), |without| Cow::Owned(without.into_bytes())))
            });
        }
        TokenPlace::Cookie(name) => keep_values(&mut head.headers, "cookie", |value| {
            let pairs = || value.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            if !pairs().any(|pair| value_of_cookie(pair, name).is_some()) {
                return Some(Cow::Borrowed(value));
            }
            let kept: Vec<_> = pairs().filter(|pair| value_of_cookie(pair, name).is_none()).collect();
            (!kept.is_empty()).then(|| Cow::Owned(kept.join(&b"; "[..])))
        }),
    }
}

/// Replaces each value of a field by what it is to be, or takes it out.
fn keep_values(headers: &mut Headers, name: &str, keep: impl for<'v> Fn(&'v [u8]) -> Option<Cow<'v, [u8]>>) {
    let unchanged = |value: &[u8]| keep(value).is_some_and(|kept| *kept == *value);
    if headers.get_all(name).all(unchanged) {
        return;
    }
    let kept: Vec<Vec<u8>> =
        headers.get_all(name).filter_map(|value| Some(keep(value)?.into_owned())).collect();
    headers.remove(name);
    for value in kept {
        // What stood in a field, or a part of it, may stand in one.
        let _ = headers.append(name, &value);
    }
}

fn after_bearer(value: &[u8]) -> Option<&[u8]> {
    let value = value.trim_ascii();
    let (scheme, rest) = value.split_at_checked(BEARER.len())?;
    let is_apart = rest.first().is_some_and(u8::is_ascii_whitespace);
    (scheme.eq_ignore_ascii_case(BEARER) && is_apart).then(|| rest.trim_ascii())
}

fn after_prefix<'v>(value: &'v [u8], prefix: &str) -> Option<&'v [u8]> {
    let token = value.strip_prefix(prefix.as_bytes())?.trim_ascii();
    (!token.is_empty()).then_some(token)
}

/// The value of a pair of a query with this name, both decoded as programs do (the URL standard, section 5.1).
fn value_of_pair<'q>(pair: &'q str, name: &str) -> Option<Cow<'q, str>> {
    let (key, value) = pair.split_once('=')?;
    (decoded(key) == name && !value.is_empty()).then(|| decoded(value))
}

fn value_of_cookie<'v>(pair: &'v [u8], name: &str) -> Option<&'v [u8]> {
    let pair = pair.trim_ascii();
    let equals = pair.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (pair[..equals].trim_ascii(), pair[equals + 1..].trim_ascii());
    let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    (key == name.as_bytes() && !value.is_empty()).then_some(value)
}

/// A target without the pairs of its query that hold a token; nothing where there are none.
fn without_param(target: &str, name: &str) -> Option<String> {
    let (path, query) = target.split_once('?')?;
    let is_token = |pair: &&str| value_of_pair(pair, name).is_some();
    query.split('&').find(is_token)?;
    let kept: Vec<&str> = query.split('&').filter(|pair| !is_token(pair)).collect();
    Some(if kept.is_empty() { path.to_owned() } else { format!("{path}?{}", kept.join("&")) })
}

fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(byte) = bytes.get(at) {
        let digits = bytes.get(at + 1..at + 3).and_then(|pair| std::str::from_utf8(pair).ok());
        let digits = digits.filter(|pair| pair.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match (byte, digits.and_then(|pair| u8::from_str_radix(pair, 16).ok())) {
            (b'%', Some(value)) => {
                out.push(value);
                at += 3;
            }
            (b'+', _) => {
                out.push(b' ');
                at += 1;
            }
            _ => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(target: &str, fields: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead { method: "GET".into(), target: target.into(), ..RequestHead::default() };
        for (name, value) in fields {
            head.headers.append(name, value.as_bytes()).expect("a field");
        }
        head
    }

    fn found(place: &TokenPlace, head: &RequestHead) -> Vec<String> {
        let mut all = Vec::new();
        tokens_at(place, head, |token| all.push(token.into_owned()));
        all
    }

    fn fields(head: &RequestHead) -> Vec<String> {
        head.headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value)))
            .collect()
    }

    /// What is found, and what is left when it has been taken out.
    fn check(place: &TokenPlace, sent: &[(&str, &str)], tokens: &[&str], left: &[&str]) {
        let mut head = head("/", sent);
        assert_eq!(found(place, &head), tokens, "{place:?} {sent:?}");
        remove_from(place, &mut head);
        assert_eq!(fields(&head), left, "{place:?} {sent:?}");
        assert_eq!(found(place, &head), [""; 0], "{place:?} {sent:?}");
    }

    #[test]
    fn tokens_in_fields_are_found_whatever_stands_around_them() {
        let bearer = TokenPlace::Bearer;
        check(&bearer, &[("authorization", "Bearer a.b.c")], &["a.b.c"], &[]);
        check(&bearer, &[("authorization", "bEARER \t a")], &["a"], &[]);
        check(&bearer, &[("authorization", "Basic a")], &[], &["authorization: Basic a"]);
        check(&bearer, &[("authorization", "Bearera")], &[], &["authorization: Bearera"]);
        check(
            &bearer,
            &[("authorization", "Bearer a"), ("authorization", "Basic b"), ("authorization", "Bearer c")],
            &["a", "c"],
            &["authorization: Basic b"],
        );
        let header = TokenPlace::Header("x-jwt".into(), "Token:".into());
        check(&header, &[("x-jwt", "Token:a"), ("x-jwt", "b")], &["a"], &["x-jwt: b"]);
        check(&header, &[("x-jwt", "token:a")], &[], &["x-jwt: token:a"]);
        let bare = TokenPlace::Header("x-jwt".into(), "".into());
        check(&bare, &[("x-jwt", "a"), ("x-other", "b")], &["a"], &["x-other: b"]);
        check(&bare, &[("x-jwt", "")], &[], &["x-jwt: "]);
    }

    #[test]
    fn cookies_beside_a_token_stay() {
        let cookie = TokenPlace::Cookie("t".into());
        check(&cookie, &[("cookie", "a=1; t=x; b=2")], &["x"], &["cookie: a=1; b=2"]);
        check(&cookie, &[("cookie", "t=x")], &["x"], &[]);
        check(&cookie, &[("cookie", "t=\"x\";t=y"), ("cookie", "tt=z")], &["x", "y"], &["cookie: tt=z"]);
        check(&cookie, &[("cookie", "t=; T=x; xt=y")], &[], &["cookie: t=; T=x; xt=y"]);
    }

    #[test]
    fn parameters_are_found_as_a_program_would_find_them() {
        let param = TokenPlace::Param("access_token".into());
        let check = |target: &str, tokens: &[&str], left: &str| {
            let mut head = head(target, &[(ORIGINAL_PATH, target)]);
            assert_eq!(found(&param, &head), tokens, "{target}");
            remove_from(&param, &mut head);
            assert_eq!(
                (&*head.target, &*fields(&head)[0]),
                (left, &*format!("{ORIGINAL_PATH}: {left}")),
                "{target}"
            );
        };
        check("/a?access_token=x", &["x"], "/a");
        check("/a?b=1&access_token=x&c=2", &["x"], "/a?b=1&c=2");
        check("/a?access_token=x&access_token=y", &["x", "y"], "/a");
        check("/a?access%5Ftoken=x%2Ey", &["x.y"], "/a");
        check("/a?access_token=", &[], "/a?access_token=");
        check("/a?access_token", &[], "/a?access_token");
        check("/a?Access_token=x", &[], "/a?Access_token=x");
        check("/a?b=%zz%", &[], "/a?b=%zz%");
        check("/access_token=x", &[], "/access_token=x");
    }
}
