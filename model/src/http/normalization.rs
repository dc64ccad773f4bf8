//! One form for paths that are written in several ways: Istio's `pathNormalization`. Policies, limits and routes see the
//! form in which a path is forwarded, so that no spelling goes past a rule and means the same to the program.

/// What is done to the path of every request. The query is never touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PathNormalization {
    /// Nothing.
    None,
    /// RFC 3986, section 6.2.2: escapes of characters that need none are undone, `.` and `..` resolved; and `\` becomes
    /// `/`, which programs take it for.
    #[default]
    Base,
    /// Base, and several slashes become one.
    MergeSlashes,
    /// `%2F` and `%5C` become slashes first; then as with `MergeSlashes`.
    DecodeAndMergeSlashes,
}

impl PathNormalization {
    /// Brings the path of a request's target, path and query, into its one form.
    pub fn apply(self, target: &mut String) {
        let end = target.find('?').unwrap_or(target.len());
        // CONNECT has no path, and `*` is none.
        if !target.starts_with('/') || self.is_done(&target.as_bytes()[..end]) {
            return;
        }
        let (path, query) = target.split_at(end);
        let mut path = self.decoded(path.as_bytes());
        if path.windows(2).any(|pair| pair == b"/.") {
            path = without_dots(&path);
        }
        if self.merges() {
            path.dedup_by(|next, before| *next == b'/' && *before == b'/');
        }
        // Only ASCII was put in where ASCII was.
        if let Ok(mut normal) = String::from_utf8(path) {
            normal.push_str(query);
            *target = normal;
        }
    }

    fn merges(self) -> bool {
        matches!(self, Self::MergeSlashes | Self::DecodeAndMergeSlashes)
    }

    /// Whether nothing is to be done, as with almost every path.
    fn is_done(self, path: &[u8]) -> bool {
        let odd = |pair: &[u8]| pair == b"/." || (self.merges() && pair == b"//");
        self == Self::None
            || !(path.iter().any(|byte| matches!(byte, b'%' | b'\\')) || path.windows(2).any(odd))
    }

    /// The path with backslashes turned, and with what needs no escape written as it is. What that leaves is not decoded
    /// again: `%252e` is a dot to nobody who decodes once.
    fn decoded(self, path: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(path.len());
        let mut at = 0;
        while let Some(byte) = path.get(at) {
            let escaped = (*byte == b'%').then(|| escaped(path.get(at + 1..at + 3)?)).flatten();
            let (put, read) = match escaped {
                Some(b'/' | b'\\') if self == Self::DecodeAndMergeSlashes => (b'/', 3),
                // Behind a stray `%` it would make an escape that nobody wrote.
                Some(byte) if byte.is_ascii_hexdigit() && ends_within_escape(&out) => (b'%', 1),
                Some(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => (byte, 3),
                _ if *byte == b'\\' => (b'/', 1),
                _ => (*byte, 1),
            };
            out.push(put);
            at += read;
        }
        out
    }
}

fn escaped(digits: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(digits[0])? << 4 | digit(digits[1])?)
}

/// Whether a hexadecimal digit or two more would make an escape.
fn ends_within_escape(path: &[u8]) -> bool {
    matches!(path, [.., b'%']) || matches!(path, [.., b'%', digit] if digit.is_ascii_hexdigit())
}

/// Removes dot segments (RFC 3986, section 5.2.4); `..` at the root stays there.
fn without_dots(path: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let mut segments = path.split(|byte| *byte == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            b"." => {}
            b".." => out.truncate(out.iter().rposition(|byte| *byte == b'/').unwrap_or(0)),
            segment => {
                out.push(b'/');
                out.extend_from_slice(segment);
                continue;
            }
        }
        // What a dot segment leaves at the end is a directory.
        if is_last {
            out.push(b'/');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    use super::*;
    use PathNormalization::{Base, DecodeAndMergeSlashes, MergeSlashes, None};

    fn check(mode: PathNormalization, path: &str, expected: &str) {
        for query in ["", "?a=/../%2e//\\"] {
            let mut target = format!("{path}{query}");
            mode.apply(&mut target);
            assert_eq!(target, format!("{expected}{query}"), "{mode:?} of {path}");
            let once = target.clone();
            mode.apply(&mut target);
            assert_eq!(target, once, "{mode:?} of {path} twice");
        }
    }

    #[test]
    fn paths_have_one_form() {
        for path in ["/a/../b", "/a//b", "/%2e", "/a\\b", "/%2F"] {
            check(None, path, path);
        }
        for (path, expected) in [
            ("/", "/"),
            ("/app/", "/app/"),
            ("/app//", "/app//"),
            ("/app/../admin", "/admin"),
            ("/app/%2E./admin", "/admin"),
            ("/app/%2e%2E", "/"),
            ("/app/.", "/app/"),
            ("/..", "/"),
            ("/../../a", "/a"),
            ("/app//../admin", "/app/admin"),
            ("/app//../../admin", "/admin"),
            ("/app\\..\\admin", "/admin"),
            ("/app/\\/\\/\\admin", "/app//////admin"),
            ("/xyz%30..//abc", "/xyz0..//abc"),
            ("/%2Fapp%5cadmin%5Cabc", "/%2Fapp%5cadmin%5Cabc"),
            ("/%5Capp%2f%5c%2F%2e%2e%2fadmin%5c\\abc", "/%5Capp%2f%5c%2F..%2fadmin%5c/abc"),
            ("/%252e%252e/a", "/%252e%252e/a"),
            ("/a/.b/..c/...", "/a/.b/..c/..."),
            ("/a;b/..;/c", "/a;b/..;/c"),
            ("/%4", "/%4"),
            ("/%zz%", "/%zz%"),
            ("/%41%7E%20", "/A~%20"),
            ("/%%36%31dmin", "/%%361dmin"),
            ("/%4%31", "/%4%31"),
        ] {
            check(Base, path, expected);
        }
        check(MergeSlashes, "/a//b///c", "/a/b/c");
        check(MergeSlashes, "/a//../b", "/a/b");
        check(MergeSlashes, "/a%2f/b", "/a%2f/b");
        check(DecodeAndMergeSlashes, "/a%2f%5c/b%2F..%2Fc", "/a/c");
        check(DecodeAndMergeSlashes, "/a%2f%2e%2e%5Cadmin", "/admin");
    }

    proptest! {
        /// Whoever normalises again, as the called side does after the calling one, changes nothing.
        #[test]
        fn once_is_enough(path in "/[/.%2e5cF4\\\\a]{0,24}") {
            for mode in [None, Base, MergeSlashes, DecodeAndMergeSlashes] {
                let mut target = path.clone();
                mode.apply(&mut target);
                let once = target.clone();
                mode.apply(&mut target);
                prop_assert_eq!(&target, &once);
                let is_dots = |segment: &str| matches!(segment, "." | "..");
                prop_assert!(mode == None || !once.split('/').any(is_dots) && !once.contains('\\'), "{}", once);
                prop_assert!(!mode.merges() || !once.contains("//"), "{}", once);
            }
        }
    }

    #[test]
    fn what_is_no_path_stays() {
        for target in ["*", "", "a/../b"] {
            let mut normal = target.to_owned();
            DecodeAndMergeSlashes.apply(&mut normal);
            assert_eq!(normal, target);
        }
    }
}
