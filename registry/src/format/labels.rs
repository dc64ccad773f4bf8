//! The syntax of labels, which is Kubernetes': an optional DNS prefix, a name, and a value.

/// Why a label was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum LabelFault {
    #[error("a label's key must not be empty")]
    EmptyKey,
    #[error("wildcards are not supported in labels and selectors: a label matches as a whole")]
    Wildcard,
    #[error(
        "a label's key is at most 63 letters, digits, `-`, `_` and `.`, with a DNS name and `/` before it if wanted"
    )]
    Key,
    #[error(
        "a label's value is at most 63 letters, digits, `-`, `_` and `.`, starting and ending with a letter or digit"
    )]
    Value,
}

/// Checks one label.
pub(super) fn check_label(key: &str, value: &str) -> Result<(), LabelFault> {
    if key.is_empty() {
        return Err(LabelFault::EmptyKey);
    }
    if key.contains('*') || value.contains('*') {
        return Err(LabelFault::Wildcard);
    }
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let dns = |text: &str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
        (1..=253).contains(&text.len()) && text.bytes().all(allowed)
    };
    if !is_name(name) || !prefix.is_none_or(dns) {
        return Err(LabelFault::Key);
    }
    if value.is_empty() || is_name(value) { Ok(()) } else { Err(LabelFault::Value) }
}

fn is_name(text: &str) -> bool {
    let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    text.len() <= 63
        && text.bytes().all(allowed)
        && ends(text.bytes().next())
        && ends(text.bytes().next_back())
}

/// Whether a text can name a port: letters, digits and hyphens, at most 63.
pub(super) fn is_port_name(text: &str) -> bool {
    is_name(text) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_those_of_kubernetes() {
        let check =
            |key: &str, value: &str, expected| assert_eq!(check_label(key, value), expected, "{key}={value}");
        check("app", "orders", Ok(()));
        check("app", "", Ok(()));
        check("app.kubernetes.io/name", "Orders_1.2", Ok(()));
        check("", "x", Err(LabelFault::EmptyKey));
        check("app*", "x", Err(LabelFault::Wildcard));
        check("app", "or*", Err(LabelFault::Wildcard));
        check("a b", "x", Err(LabelFault::Key));
        check("/a", "x", Err(LabelFault::Key));
        check("a/", "x", Err(LabelFault::Key));
        check("a/b/c", "x", Err(LabelFault::Key));
        check("app", "-x", Err(LabelFault::Value));
        check("app", &"x".repeat(64), Err(LabelFault::Value));
    }
}
