//! The table of fields. Each kind lists every field that it knows with the state that it is in; the decoder
//! checks what is written against it, and the reference is written from it, so that the two cannot differ.

/// What becomes of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It does what it says.
    Enforced,
    /// It is taken and does nothing; a warning says why.
    NoEffect,
    /// It is an error; the message says what to do.
    Refused,
}

/// One field of a kind.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Where it stands, from the resource's own level, such as `rules[].from[].source.principals`.
    pub path: &'static str,
    /// What becomes of it.
    pub state: State,
    /// What it means; or why it does nothing; or what to do instead.
    pub note: &'static str,
}

/// A field that does what it says.
pub(super) const fn enforced(path: &'static str, note: &'static str) -> Field {
    Field { path, state: State::Enforced, note }
}

/// A field that does nothing.
pub(super) const fn no_effect(path: &'static str, note: &'static str) -> Field {
    Field { path, state: State::NoEffect, note }
}

/// A field that is not taken.
pub(super) const fn refused(path: &'static str, note: &'static str) -> Field {
    Field { path, state: State::Refused, note }
}

/// The field at a path as written, in which indices stand in brackets.
pub(super) fn find(table: &'static [Field], path: &str) -> Option<&'static Field> {
    let general = without_indices(path);
    table.iter().find(|field| field.path == general)
}

/// A name in brackets may have brackets itself: `headers[@request.auth.claims[a]].exact`.
fn without_indices(path: &str) -> String {
    let mut general = String::with_capacity(path.len());
    let mut depth = 0_usize;
    for c in path.chars() {
        let before = depth;
        match c {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if before.min(depth) == 0 {
            general.push(c);
        }
    }
    general
}

/// What somebody who wrote `path` may have meant: a near miss of a neighbour, or a field of that very name in
/// another place.
pub(super) fn suggestion(table: &'static [Field], path: &str) -> Option<String> {
    let general = without_indices(path);
    let (parent, name) = general.rsplit_once('.').unwrap_or(("", &general));
    let takes = |field: &&Field| field.state != State::Refused;
    let neighbours = table.iter().filter(takes).filter_map(|field| {
        let (above, last) = field.path.rsplit_once('.').unwrap_or(("", field.path));
        (above == parent).then_some(last)
    });
    if let Some(near) = nearest(name, neighbours) {
        return Some(format!("did you mean `{near}`?"));
    }
    let elsewhere = table.iter().filter(takes).find(|field| {
        field.path.rsplit_once('.').map_or(field.path, |(_, last)| last) == name && field.path != general
    });
    elsewhere.map(|field| format!("`{name}` stands at `{}`", field.path))
}

/// The candidate that a mistyped name most likely meant, if one is near enough.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    /// Longer names are no near miss of anything.
    const LONGEST: usize = 64;
    let plain = |text: &str| text.replace(['_', '-'], "").to_lowercase();
    let wanted = plain(name);
    if wanted.len() > LONGEST {
        return None;
    }
    let allowed = (wanted.chars().count() / 3).clamp(1, 3);
    candidates
        .map(|candidate| (distance(&wanted, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= allowed && *distance < candidate.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// How many letters have to be put in, left out, changed or swapped with the next one (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0_usize; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let changed = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = changed.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    static TABLE: &[Field] = &[
        enforced("action", ""),
        enforced("rules", ""),
        enforced("rules[].from", ""),
        enforced("rules[].from[].source", ""),
        enforced("rules[].from[].source.principals", ""),
        refused("rules[].from[].source.requestPrincipals", ""),
    ];

    #[test]
    fn finds_fields_below_lists() {
        assert!(find(TABLE, "rules[12].from[0].source.principals").is_some());
        assert!(find(TABLE, "rules[12].from[0].principals").is_none());
        assert!(find(TABLE, "rules[1]x").is_none());
        assert!(find(TABLE, "rules[a[b][c]].from").is_some());
        assert!(find(TABLE, "rules[a[b].from[0]").is_none());
    }

    #[test]
    fn suggests_near_misses_and_the_right_place() {
        let check = |path: &str, expected: Option<&str>| {
            let found = suggestion(TABLE, path);
            match expected {
                Some(part) => assert!(found.as_ref().is_some_and(|f| f.contains(part)), "{path}: {found:?}"),
                None => assert_eq!(found, None, "{path}"),
            }
        };
        check("rules[0].from[0].source.principal", Some("`principals`"));
        check("rules[0].from[0].source.pricnipals", Some("`principals`"));
        check("acton", Some("`action`"));
        check("rules[0].from[0].principals", Some("`rules[].from[].source.principals`"));
        check("zzz", None);
        check(&"z".repeat(10_000), None);
    }
}
