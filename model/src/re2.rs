//! Regular expressions with RE2's syntax and linear time. They are compiled once, within a bound of memory, and matched
//! against whole texts. RE2's syntax is nearly that of the `regex` crate; `translate` brings what differs into its form,
//! and refuses what RE2 does not have, so that an expression means the same as where it was copied from.

use std::fmt;
use std::sync::Arc;

/// Bytes that an expression may have as written.
pub const MAX_LENGTH: usize = 4096;
/// Bytes that a compiled expression may take.
const MAX_COMPILED: usize = 1 << 20;
/// Bytes that the states of one expression may take while it is matched; beyond it, it is matched more slowly.
const MAX_STATES: usize = 256 << 10;
/// Levels of nesting in an expression.
const MAX_NESTING: u32 = 64;

/// Why a text is not an expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Re2Error {
    /// Longer than [`MAX_LENGTH`].
    #[error("a regular expression has at most {MAX_LENGTH} bytes: match a prefix, or split it")]
    TooLong,
    /// Compiled, it would take more memory than allowed.
    #[error("the regular expression takes too much memory: lower its counts, such as `{{1,1000}}`")]
    TooLarge,
    /// Not of RE2's syntax.
    #[error("not a regular expression of RE2's syntax: {0}")]
    Syntax(String),
}

/// A compiled expression. Equal where the texts are.
#[derive(Clone)]
pub struct Re2 {
    text: Arc<str>,
    whole: regex::Regex,
    anywhere: regex::Regex,
}

impl Re2 {
    /// Compiles an expression.
    pub fn new(text: &str) -> Result<Self, Re2Error> {
        if text.len() > MAX_LENGTH {
            return Err(Re2Error::TooLong);
        }
        let translated = translate(text)?;
        // Compiled alone first, so that no parenthesis of it can close the group around it.
        let anywhere = compile(&translated)?;
        let whole = compile(&format!(r"\A(?:{translated})\z"))?;
        Ok(Self { text: text.into(), whole, anywhere })
    }

    /// The text as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether `text` matches as a whole.
    pub fn is_whole(&self, text: &str) -> bool {
        self.whole.is_match(text)
    }

    /// Every place that matches replaced by `substitution`, in which `\0` to `\9` are the groups and `\\` is a backslash
    /// (RE2's GlobalReplace). A group that does not exist or did not take part is empty.
    pub fn replace_all(&self, text: &str, substitution: &str) -> String {
        let replaced = self.anywhere.replace_all(text, |groups: &regex::Captures<'_>| {
            let (mut out, mut chars) = (String::new(), substitution.chars());
            while let Some(c) = chars.next() {
                if c != '\\' {
                    out.push(c);
                    continue;
                }
                match chars.next() {
                    Some(digit @ '0'..='9') => {
                        let group = groups.get(usize::from(digit as u8 - b'0'));
                        out.push_str(group.map_or("", |group| group.as_str()));
                    }
                    Some(other) => out.push(other),
                    None => out.push('\\'),
                }
            }
            out
        });
        replaced.into_owned()
    }

    /// How many groups there are, the whole match not counted.
    pub fn groups(&self) -> usize {
        self.anywhere.captures_len() - 1
    }
}

fn compile(text: &str) -> Result<regex::Regex, Re2Error> {
    let compiled = regex::RegexBuilder::new(text)
        .octal(true)
        .nest_limit(MAX_NESTING)
        .size_limit(MAX_COMPILED)
        .dfa_size_limit(MAX_STATES)
        .build();
    compiled.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => Re2Error::TooLarge,
        error => {
            // The crate's message has the expression and a mark below it; its last line says what is wrong.
            let text = error.to_string();
            let last = text.lines().next_back().unwrap_or_default();
            Re2Error::Syntax(last.trim_start_matches("error: ").to_owned())
        }
    })
}

/// RE2's text in the crate's syntax: classes of Perl are ASCII, `[`, `&&`, `--` and `~~` in a class stand for themselves,
/// `\Q…\E` quotes.
fn translate(text: &str) -> Result<String, Re2Error> {
    let mut out = String::with_capacity(text.len() + 16);
    let mut rest = text;
    let mut in_class = false;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        if c == '\\' {
            rest = escape(after, in_class, &mut out)?;
        } else if in_class {
            rest = within_class(rest, &mut out);
            in_class = c != ']';
        } else if c == '[' {
            rest = open_class(after, &mut out);
            in_class = true;
        } else {
            if c == '(' && after.starts_with('?') {
                check_flags(after)?;
            }
            if c == '{' && !is_repetition(after) {
                out.push('\\');
            }
            out.push(c);
            rest = after;
        }
    }
    Ok(out)
}

/// Whether what follows a `{` makes it a repetition; otherwise it stands for itself.
fn is_repetition(after: &str) -> bool {
    let Some((counts, _)) = after.split_once('}') else { return false };
    let (least, most) = counts.split_once(',').unwrap_or((counts, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    !least.is_empty() && digits(least) && digits(most)
}

/// What follows a backslash.
fn escape<'a>(after: &'a str, in_class: bool, out: &mut String) -> Result<&'a str, Re2Error> {
    let Some(c) = after.chars().next() else {
        return Err(Re2Error::Syntax("a backslash stands at the end".to_owned()));
    };
    let rest = &after[c.len_utf8()..];
    match c {
        'Q' => {
            let (quoted, rest) = rest.split_once("\\E").unwrap_or((rest, ""));
            out.push_str(&regex::escape(quoted));
            return Ok(rest);
        }
        'd' | 's' | 'w' => out.push_str(&format!("[{}]", ascii_class(c))),
        'D' | 'S' | 'W' => out.push_str(&format!("[^{}]", ascii_class(c.to_ascii_lowercase()))),
        'b' | 'B' if !in_class => out.push_str(&format!("(?-u:\\{c})")),
        // A single digit would be a group's text, which takes more than linear time; more of them are an octal number.
        '1'..='7' if !rest.starts_with(|next: char| ('0'..='7').contains(&next)) => {
            return Err(Re2Error::Syntax(format!("`\\{c}` is not supported")));
        }
        // A class or a number in braces.
        'p' | 'P' | 'x' if rest.starts_with('{') => {
            let end = rest.find('}').map_or(rest.len(), |end| end + 1);
            out.push('\\');
            out.push(c);
            out.push_str(&rest[..end]);
            return Ok(if in_class && c == 'x' { range_end(&rest[end..], out) } else { &rest[end..] });
        }
        // RE2's byte, an end without a start, and boundaries that only the crate has.
        'C' | 'E' | '<' | '>' | 'h' | 'u' | 'U' => {
            return Err(Re2Error::Syntax(format!("`\\{c}` is not supported")));
        }
        _ => {
            out.push('\\');
            out.push(c);
            if in_class && c.is_ascii_punctuation() {
                return Ok(range_end(rest, out));
            }
        }
    }
    Ok(rest)
}

/// Perl's classes as RE2 has them: ASCII alone.
fn ascii_class(c: char) -> &'static str {
    match c {
        'd' => "0-9",
        's' => r"\t\n\f\r ",
        _ => "0-9A-Za-z_",
    }
}

/// The start of a class: a `]` that comes first stands for itself.
fn open_class<'a>(after: &'a str, out: &mut String) -> &'a str {
    out.push('[');
    let rest = match after.strip_prefix('^') {
        Some(rest) => {
            out.push('^');
            rest
        }
        None => after,
    };
    match rest.strip_prefix(']') {
        Some(rest) => {
            out.push_str("\\]");
            rest
        }
        None => rest,
    }
}

/// One item of a class, or its end; returns what is left.
fn within_class<'a>(rest: &'a str, out: &mut String) -> &'a str {
    if rest.starts_with("[:")
        && let Some(end) = rest.find(":]")
    {
        out.push_str(&rest[..end + 2]);
        return &rest[end + 2..];
    }
    let c = rest.chars().next().unwrap_or_default();
    let after = &rest[c.len_utf8()..];
    if c == ']' {
        out.push(c);
        return after;
    }
    literal_in_class(c, out);
    range_end(after, out)
}

/// The end of a range whose start was written, if this is one; returns what is left.
fn range_end<'a>(rest: &'a str, out: &mut String) -> &'a str {
    match rest.strip_prefix('-').and_then(|end| Some((end, end.chars().next()?))) {
        None | Some((_, ']')) => rest,
        // An escape goes its own way.
        Some((end, '\\')) => {
            out.push('-');
            end
        }
        Some((end, c)) => {
            out.push('-');
            literal_in_class(c, out);
            &end[c.len_utf8()..]
        }
    }
}

/// To the crate these would be a nested class, or an operation on classes.
fn literal_in_class(c: char, out: &mut String) {
    if matches!(c, '[' | '&' | '~' | '-' | '^') {
        out.push('\\');
    }
    out.push(c);
}

/// Groups with flags that RE2 does not have are refused: `(?x)` would read the rest as something else.
fn check_flags(after: &str) -> Result<(), Re2Error> {
    let group = &after[1..];
    if group.starts_with("P<") || group.starts_with('<') {
        return Ok(());
    }
    let flags: String = group.chars().take_while(|c| !matches!(c, ':' | ')')).collect();
    if flags.chars().all(|c| "imsU-".contains(c)) {
        return Ok(());
    }
    Err(Re2Error::Syntax(format!("`(?{flags}` is not supported")))
}

impl PartialEq for Re2 {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Re2 {}

impl fmt::Debug for Re2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expression: &str, text: &str, expected: bool) {
        let regex = Re2::new(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
        assert_eq!(regex.is_whole(text), expected, "{expression} on {text}");
    }

    #[test]
    fn matches_whole_texts() {
        check("a|ab", "ab", true);
        check("a", "ba", false);
        check("a$", "a\n", false);
        check(".*", "", true);
        check(".*", "a\nb", false);
        check("(?s).*", "a\nb", true);
        check("(?i)jason", "JaSon", true);
        check("^(.*?;)?(user=jason)(;.*)?$", "a=b;user=jason", true);
    }

    #[test]
    fn classes_are_those_of_re2() {
        check(r"\d+", "42", true);
        check(r"\d", "٣", false);
        check(r"\w", "ä", false);
        check(r"\W", "ä", true);
        check(r"[^\d]", "5", false);
        check(r"[\w-]+", "a-b", true);
        check(r"\bä", "ä", false);
        check("[[]", "[", true);
        check("[]a]+", "]a", true);
        check("[^]a]", "]", false);
        check("[a&&b]+", "&b", true);
        check("[+--]+", "+,-", true);
        check("[--0]+", "-./0", true);
        check("[a-]+", "a-", true);
        check("[a^]", "^", true);
        check(r"[\--0]+", "-./0", true);
        check(r"[!-\-]+", "#$", true);
        check(r"[\d-z]+", "5-z", true);
        check("[a~~b]", "~", true);
        check("[[:digit:]x]+", "3x", true);
        check(r"\pN", "٣", true);
        check(r"\Qa.b\E+", "a.bb", true);
        check(r"\Qa.b", "axb", false);
        check("/{id}/a{2}/x{,3}", "/{id}/aa/x{,3}", true);
        check(r"\p{Greek}\x{41}{2,}", "αAAA", true);
        check(r"[\x{41}-C]", "B", true);
        check(r"\x41\101", "AA", true);
    }

    #[test]
    fn refuses_what_re2_does_not_have_and_what_is_too_large() {
        for bad in
            [r"a\E", "(", "a)(b", "*", "(?=a)", r"(a)\1", "(?x)a b", r"a\", r"\C", r"\u0041", "[a", "a{2,1}"]
        {
            assert!(matches!(Re2::new(bad), Err(Re2Error::Syntax(_))), "{bad}: {:?}", Re2::new(bad));
        }
        assert_eq!(Re2::new(&"a".repeat(MAX_LENGTH + 1)), Err(Re2Error::TooLong));
        assert_eq!(Re2::new(r"(?:\pL{1000}){1000}"), Err(Re2Error::TooLarge));
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(expression in "[ab\\\\\\[\\](){}?*+^$|.,:&~<>=PQEdwxpié0-9-]{0,24}", text in "\\PC{0,8}") {
            if let Ok(regex) = Re2::new(&expression) {
                regex.is_whole(&text);
                regex.replace_all(&text, &expression);
            }
        }
    }

    #[test]
    fn replaces_every_place_with_its_groups() {
        let check = |expression: &str, text: &str, substitution: &str, expected: &str| {
            let regex = Re2::new(expression).expect("an expression");
            assert_eq!(regex.replace_all(text, substitution), expected, "{expression} on {text}");
        };
        check("^/service/([^/]+)(/.*)$", "/service/foo/v1/api", r"\2/instance/\1", "/v1/api/instance/foo");
        check("one", "/xxx/one/yyy/one/zzz", "two", "/xxx/two/yyy/two/zzz");
        check("^(.*?)one(.*)$", "/xxx/one/yyy/one/zzz", r"\1two\2", "/xxx/two/yyy/one/zzz");
        check("(?i)/xxx/", "/aaa/XxX/bbb", "/yyy/", "/aaa/yyy/bbb");
        check("a(x)?", "/a", r"[\0\1\9\\$1]", r"/[a\$1]");
    }
}
