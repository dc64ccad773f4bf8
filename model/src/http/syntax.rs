//! What may stand in the parts of a request, whatever carries it. What passes here is written out as it came, and no
//! reader behind takes it for something else.

use std::net::Ipv6Addr;

use super::headers::is_token;

/// Why a target is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// It does not start with a slash.
    #[error("a target starts with a slash")]
    Form,
    /// A character that may not stand in it.
    #[error("a target holds printable ASCII without spaces and `#`")]
    Character,
    /// A NUL in the path, where one reader sees the end of the path and another does not.
    #[error("a path holds no %00")]
    Nul,
}

/// Whether `method` is one (RFC 9110, section 9.1).
pub fn is_method(method: &[u8]) -> bool {
    !method.is_empty() && method.iter().copied().all(is_token)
}

/// Judges path and query of a request. More is let through than RFC 3986 allows, since programs send braces and bars; no
/// control characters, no spaces, nothing outside ASCII, and no fragment, which servers cut off or not.
pub fn check_target(target: &[u8]) -> Result<(), TargetError> {
    if target.first() != Some(&b'/') {
        return Err(TargetError::Form);
    }
    let mut in_path = true;
    for (at, byte) in target.iter().enumerate() {
        match byte {
            b'#' => return Err(TargetError::Character),
            b'?' => in_path = false,
            b'%' if in_path && target[at + 1..].starts_with(b"00") => return Err(TargetError::Nul),
            0x21..=0x7e => {}
            _ => return Err(TargetError::Character),
        }
    }
    Ok(())
}

/// Whether `authority` is a name or an address, with a port or without. Only what names and addresses are made of: of
/// RFC 3986's other characters, `@` starts a user's name, `%` spells a character in a second way, and `,` joins two.
pub fn is_authority(authority: &[u8]) -> bool {
    let (host, port) = match authority.strip_prefix(b"[") {
        Some(rest) => {
            let Some(end) = rest.iter().position(|byte| *byte == b']') else { return false };
            let address = std::str::from_utf8(&rest[..end]).ok();
            if address.is_none_or(|address| address.parse::<Ipv6Addr>().is_err()) {
                return false;
            }
            (&rest[..end], &rest[end + 1..])
        }
        None => {
            let end = authority.iter().position(|byte| *byte == b':').unwrap_or(authority.len());
            let host = &authority[..end];
            if !host.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(byte)) {
                return false;
            }
            // One dot may end it. Of more, or of others in a row, one reader takes what another leaves.
            let labels = host.strip_suffix(b".").unwrap_or(host);
            if labels.split(|byte| *byte == b'.').any(<[u8]>::is_empty) {
                return false;
            }
            (host, &authority[end..])
        }
    };
    !host.is_empty() && (port.is_empty() || port.strip_prefix(b":").is_some_and(is_port))
}

fn is_port(port: &[u8]) -> bool {
    let digits = (1..=5).contains(&port.len()) && port.iter().all(u8::is_ascii_digit);
    digits && port.iter().fold(0, |port, digit| port * 10 + u32::from(digit - b'0')) <= 65535
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_names_and_addresses() {
        for good in
            ["a", "a.b-c_d~e", "a:80", "a:65535", "10.0.0.1:1", "[::1]", "[fd00::1]:8080", "A.", "x:080"]
        {
            assert!(is_authority(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            ".",
            "a..",
            ".a",
            "a..b:80",
            ":80",
            "a:",
            "a:b",
            "a:65536",
            "a:123456",
            "a:-1",
            "a:1:2",
            "u@a",
            "a%2eb",
            "a,b",
            "a b",
            "a/b",
            "a?",
            "a#",
            "[::1",
            "[::1]a",
            "[::1]:",
            "[a]",
            "[fe80::1%eth0]",
            "::1",
            "ä",
            "a\\b",
            "a\tb",
            "[]",
        ] {
            assert!(!is_authority(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn targets_are_printable_and_have_one_reading() {
        let check = |target: &[u8], expected| assert_eq!(check_target(target), expected, "{target:?}");
        check(b"/", Ok(()));
        check(b"//a/../b;c=d\\{|}?%00#"[..20].into(), Ok(()));
        check(b"/a?b=%00&c?", Ok(()));
        check(b"/%2F%2e%0", Ok(()));
        check(b"", Err(TargetError::Form));
        check(b"*", Err(TargetError::Form));
        check(b"a/", Err(TargetError::Form));
        check(b"/a%00b", Err(TargetError::Nul));
        check(b"/a#b", Err(TargetError::Character));
        check(b"/a?b#c", Err(TargetError::Character));
        check(b"/a b", Err(TargetError::Character));
        check(b"/a\tb", Err(TargetError::Character));
        check(b"/\x7f", Err(TargetError::Character));
        check("/ä".as_bytes(), Err(TargetError::Character));
    }

    #[test]
    fn methods_are_tokens() {
        for (method, expected) in
            [("GET", true), ("M-SEARCH", true), ("", false), ("G T", false), ("GE(", false)]
        {
            assert_eq!(is_method(method.as_bytes()), expected, "{method}");
        }
    }
}
