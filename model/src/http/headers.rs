//! Header fields in the order in which they came, names in lower case, in one block of memory. A message has some
//! ten of them: looking through a list beats hashing, and copying one block beats copying forty strings.

use std::borrow::Cow;
use std::fmt;

/// Fields of one message.
#[derive(Clone, Default)]
pub struct Headers {
    text: Vec<u8>,
    fields: Vec<Field>,
}

/// Where a field stands in `text`: the name, and the value right after it.
#[derive(Debug, Clone, Copy)]
struct Field {
    start: u32,
    name: u32,
    value: u32,
}

/// What cannot be a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// Not a token of RFC 9110, section 5.6.2.
    #[error("a field name holds only letters, digits and !#$%&'*+-.^_`|~")]
    Name,
    /// A control character other than tab.
    #[error("a field value holds no control characters, line ends among them")]
    Value,
    /// Over 4 GiB.
    #[error("the fields are too long")]
    TooLong,
}

/// Looked up a byte of every name that comes.
const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let marks = b"!#$%&'*+-.^_`|~";
    let mut at = 0;
    while at < 256 {
        table[at] = (at as u8).is_ascii_alphanumeric();
        at += 1;
    }
    at = 0;
    while at < marks.len() {
        table[marks[at] as usize] = true;
        at += 1;
    }
    table
};

/// Whether `byte` may stand in a token (RFC 9110, section 5.6.2).
pub fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

/// Whether `byte` may stand in a field value (RFC 9110, section 5.5).
pub fn is_value(byte: u8) -> bool {
    byte >= 0x20 && byte != 0x7f || byte == b'\t'
}

/// Whether some program takes a field `name` for `field`, which is in lower case. Those that are told of fields in
/// variables (RFC 3875, section 4.1.18, and what came after it) have one name for all that servers write as `_`: dashes,
/// and with some of them everything that is neither letter nor digit.
pub fn may_be_read_as(name: &[u8], field: &str) -> bool {
    let alike = |(a, b): (&u8, u8)| {
        a.to_ascii_lowercase() == b || !(a.is_ascii_alphanumeric() || b.is_ascii_alphanumeric())
    };
    name.len() == field.len() && name.iter().zip(field.bytes()).all(alike)
}

impl Headers {
    /// Empties them and keeps their memory.
    pub fn clear(&mut self) {
        self.text.clear();
        self.fields.clear();
    }

    /// How many fields there are, each line counted.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// The length of all names and values together, in bytes.
    pub fn bytes(&self) -> usize {
        self.fields.iter().map(|field| (field.name + field.value) as usize).sum()
    }

    /// Names and values in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.fields.iter().map(|field| (self.name(*field), self.value(*field)))
    }

    /// Names and values in their order, for writing them out.
    pub fn lines(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|field| (name_in(&self.text, *field), self.value(*field)))
    }

    /// The first value of `name`, which is in lower case.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.fields.iter().find(|field| self.is_named(**field, name)).map(|field| self.value(*field))
    }

    /// All values of `name`, which is in lower case.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().filter(move |field| self.is_named(**field, name)).map(|field| self.value(*field))
    }

    /// Whether there is a field `name`, which is in lower case.
    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// The values of `name` as one text, joined by commas as a list is (RFC 9110, section 5.3). What is not UTF-8 shows
    /// replacement characters.
    pub fn text(&self, name: &str) -> Option<Cow<'_, str>> {
        let mut values = self.fields.iter().filter(|field| self.is_named(**field, name));
        let first = String::from_utf8_lossy(self.value(*values.next()?));
        Some(values.fold(first, |mut all, field| {
            let text = all.to_mut();
            text.push(',');
            text.push_str(&String::from_utf8_lossy(self.value(*field)));
            all
        }))
    }

    /// Whether a list-valued field holds `token`, in whatever case (`connection: close, te`).
    pub fn lists(&self, name: &str, token: &str) -> bool {
        let is_token = |part: &[u8]| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes());
        self.fields
            .iter()
            .filter(|field| self.is_named(**field, name))
            .any(|field| self.value(*field).split(|byte| *byte == b',').any(is_token))
    }

    /// Adds a field after all others. The name is turned to lower case.
    pub fn append(&mut self, name: &str, value: &[u8]) -> Result<(), FieldError> {
        self.append_line(name.as_bytes(), value)
    }

    /// As `append`, for a name as it stands in a message.
    pub fn append_line(&mut self, name: &[u8], value: &[u8]) -> Result<(), FieldError> {
        if name.is_empty() || !name.iter().copied().all(is_token) {
            return Err(FieldError::Name);
        }
        if !value.iter().copied().all(is_value) {
            return Err(FieldError::Value);
        }
        let whole = self.text.len() + name.len() + value.len();
        let _ = u32::try_from(whole).map_err(|_| FieldError::TooLong)?;
        let (start, name_length) = (self.text.len() as u32, name.len() as u32);
        self.text.extend(name.iter().map(u8::to_ascii_lowercase));
        self.text.extend_from_slice(value);
        self.fields.push(Field { start, name: name_length, value: value.len() as u32 });
        Ok(())
    }

    /// Replaces all fields `name` by one.
    pub fn set(&mut self, name: &str, value: &[u8]) -> Result<(), FieldError> {
        // Looked at before anything goes: what cannot be set leaves the old one.
        if !value.iter().copied().all(is_value) {
            return Err(FieldError::Value);
        }
        self.remove(name);
        self.append(name, value)
    }

    /// Keeps the fields whose names, in lower case, are to stay.
    pub fn retain(&mut self, stays: impl Fn(&str) -> bool) {
        let Self { text, fields } = self;
        fields.retain(|field| std::str::from_utf8(name_in(text, *field)).is_ok_and(&stays));
    }

    /// Removes all fields `name`, in whatever case it is given, and says whether there were any. Their bytes are let go
    /// with the next `clear`.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.fields.len();
        let Self { text, fields } = self;
        fields.retain(|field| !name_in(text, *field).eq_ignore_ascii_case(name.as_bytes()));
        fields.len() < before
    }

    fn is_named(&self, field: Field, name: &str) -> bool {
        name_in(&self.text, field) == name.as_bytes()
    }

    fn name(&self, field: Field) -> &str {
        std::str::from_utf8(name_in(&self.text, field)).unwrap_or("")
    }

    fn value(&self, field: Field) -> &[u8] {
        let start = (field.start + field.name) as usize;
        &self.text[start..start + field.value as usize]
    }
}

fn name_in(text: &[u8], field: Field) -> &[u8] {
    &text[field.start as usize..(field.start + field.name) as usize]
}

impl PartialEq for Headers {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Headers {}

impl fmt::Debug for Headers {
    /// Names alone: values hold tokens and cookies.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(fields: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::default();
        for (name, value) in fields {
            headers.append(name, value.as_bytes()).expect("a field");
        }
        headers
    }

    #[test]
    fn names_are_lower_case_and_the_order_stays() {
        let headers = of(&[("Accept", "a"), ("X-B", ""), ("accept", "c")]);
        let all: Vec<_> = headers.iter().collect();
        assert_eq!(all, [("accept", &b"a"[..]), ("x-b", b""), ("accept", b"c")]);
        assert!(headers.lines().eq(all.iter().map(|(name, value)| (name.as_bytes(), *value))));
        assert_eq!(headers.text("accept").as_deref(), Some("a,c"));
        assert_eq!(headers.get("x-b"), Some(&b""[..]));
        assert_eq!((headers.len(), headers.bytes()), (3, 17));
        assert_eq!(headers.text("missing"), None);
        assert!(!format!("{headers:?}").contains("c\""), "no values in logs");
    }

    #[test]
    fn names_that_some_program_takes_for_another_are_known() {
        for (name, expected) in [
            ("x-user", true),
            ("X_User", true),
            ("x.user", true),
            ("x~user", true),
            ("xuser", false),
            ("x--user", false),
            ("x-users", false),
            ("x-usex", false),
            ("xauser", false),
        ] {
            assert_eq!(may_be_read_as(name.as_bytes(), "x-user"), expected, "{name}");
            assert_eq!(may_be_read_as(name.as_bytes(), "x_user"), expected, "{name}");
        }
    }

    #[test]
    fn fields_are_set_and_removed() {
        let mut headers = of(&[("a", "1"), ("b", "2"), ("A", "3")]);
        headers.set("A", b"4").expect("a field");
        assert_eq!(headers, of(&[("b", "2"), ("a", "4")]));
        assert_eq!(headers.set("a", b"x\r\ny: z"), Err(FieldError::Value));
        assert_eq!(headers.get("a"), Some(&b"4"[..]), "what cannot be set changes nothing");
        assert!(headers.remove("B") && !headers.remove("b"));
        headers.clear();
        assert!(headers.is_empty());
    }

    #[test]
    fn lists_are_looked_through() {
        let headers = of(&[("connection", "keep-alive, TE"), ("connection", "upgrade")]);
        for (token, expected) in [("te", true), ("Upgrade", true), ("close", false), ("keep", false)] {
            assert_eq!(headers.lists("connection", token), expected, "{token}");
        }
    }

    #[test]
    fn what_is_no_field_is_refused() {
        let mut headers = Headers::default();
        for name in ["", "a b", "a:", "a\n", "ä"] {
            assert_eq!(headers.append(name, b"x"), Err(FieldError::Name), "{name:?}");
        }
        for value in ["a\nb", "a\rb", "\0", "\u{7f}"] {
            assert_eq!(headers.append("a", value.as_bytes()), Err(FieldError::Value), "{value:?}");
        }
        assert!(headers.append("a", "tab\tand ä".as_bytes()).is_ok());
    }
}
