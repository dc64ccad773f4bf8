//! The machine's own name: as it is, and as a host of a mesh could bear it.

use baremesh_model::name::Label;

/// The longest label (RFC 1123).
const MAX_LABEL: usize = 63;

/// This machine's name, as the most likely one under which other hosts reach it.
pub fn name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The machine's name as one of the mesh, where it can be one.
pub fn label() -> Option<Label> {
    label_of(&name())
}

/// The first part of a name, in lower case, with hyphens in place of what a label cannot have.
fn label_of(name: &str) -> Option<Label> {
    let first = name.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let plain: String =
        first.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(MAX_LABEL).collect();
    Label::new(plain.trim_matches('-')).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_a_label_of_the_machine_s_name() {
        let check = |name: &str, expected: Option<&str>| {
            assert_eq!(label_of(name).map(|label| label.to_string()).as_deref(), expected, "{name}");
        };
        check("web1", Some("web1"));
        check("Web_1.example.com", Some("web-1"));
        check("_x_", Some("x"));
        check(&"a".repeat(64), Some(&"a".repeat(63)));
        check("", None);
        check("---", None);
    }
}
