//! Parameters of a query, set and removed. What is not touched stays byte for byte as it is.

/// The target with the parameters of `removed` gone, and each of `set` standing once, at its end.
pub(super) fn changed(target: &str, set: &[(String, String)], removed: &[String]) -> String {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let goes = |pair: &&str| {
        let name = decoded(pair.split_once('=').map_or(*pair, |(name, _)| name));
        set.iter().any(|(set, _)| set.as_bytes() == name)
            || removed.iter().any(|gone| gone.as_bytes() == name)
    };
    let kept = query.split('&').filter(|pair| !pair.is_empty() && !goes(pair)).map(str::to_owned);
    // Of two that are set under one name the later one holds.
    let last = |at: usize, name: &str| !set[at + 1..].iter().any(|(later, _)| later == name);
    let added = set.iter().enumerate().filter(|(at, (name, _))| last(*at, name));
    let added = added.map(|(_, (name, value))| format!("{}={}", encoded(name), encoded(value)));
    let pairs: Vec<String> = kept.chain(added).collect();
    if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
}

/// A name as it is meant: `%6e` and `n` are the same to who reads it, and so is `+` and a space.
fn decoded(name: &str) -> Vec<u8> {
    let (bytes, mut out, mut at) = (name.as_bytes(), Vec::with_capacity(name.len()), 0);
    while let Some(byte) = bytes.get(at) {
        let digits = bytes.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        match (byte, digits.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            (b'%', Some(value)) => {
                out.push(value);
                at += 3;
                continue;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(*byte),
        }
        at += 1;
    }
    out
}

/// What stands for itself in any query (RFC 3986, section 2.3), and the rest in hexadecimal.
fn encoded(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => _ = write!(out, "%{byte:02X}"),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::syntax::check_target;

    #[test]
    fn sets_and_removes_what_is_meant_and_touches_nothing_else() {
        let check = |target: &str, set: &[(&str, &str)], removed: &[&str], expected: &str| {
            let set: Vec<_> = set.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
            let removed: Vec<_> = removed.iter().map(|name| (*name).to_owned()).collect();
            let found = changed(target, &set, &removed);
            assert_eq!(found, expected);
            assert_eq!(check_target(found.as_bytes()), Ok(()), "{found}");
        };
        check("/a?x=1&y=2", &[], &["x"], "/a?y=2");
        check("/a?x=1", &[], &["x"], "/a");
        check("/a", &[("x", "1 &=#\n\u{e4}")], &[], "/a?x=1%20%26%3D%23%0A%C3%A4");
        check("/a?x=1&x=2&z=%20", &[("x", "3")], &[], "/a?z=%20&x=3");
        check("/a?token&to%6ben=1&t+k=2", &[], &["token", "t k"], "/a");
        check("/a?x=1", &[("y", "1"), ("y", "2")], &[], "/a?x=1&y=2");
        check("/a?%zz=1&%=2&%4", &[], &["%zz"], "/a?%=2&%4");
        check("/a?b=c?d", &[], &["e"], "/a?b=c?d");
    }
}
