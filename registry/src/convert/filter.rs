//! Filters of subsets: of Consul's expressions those that say which labels an endpoint has.

use std::collections::BTreeMap;

/// Reads `Service.Meta.version == v1 and Service.Meta["zone"] == "a"` as labels; otherwise the part that is not so.
pub(super) fn labels(filter: &str) -> Result<BTreeMap<String, String>, String> {
    let mut labels = BTreeMap::new();
    let mut rest = filter.trim();
    loop {
        let (key, value, after) = comparison(rest).ok_or_else(|| rest.to_owned())?;
        if labels.insert(key, value.clone()).is_some_and(|before| before != value) {
            return Err(filter.to_owned());
        }
        rest = after.trim_start();
        if rest.is_empty() {
            return Ok(labels);
        }
        let next = rest.strip_prefix("and").filter(|next| next.starts_with(char::is_whitespace));
        rest = next.ok_or_else(|| rest.to_owned())?.trim_start();
    }
}

/// `Service.Meta.KEY == VALUE`, and what stands behind it.
fn comparison(text: &str) -> Option<(String, String, &str)> {
    let rest = text.strip_prefix("Service.Meta")?;
    let (key, rest) = match rest.strip_prefix('.') {
        Some(rest) => word(rest, &['_', '-'])?,
        None => {
            let (key, rest) = quoted(rest.strip_prefix('[')?.trim_start())?;
            (key, rest.trim_start().strip_prefix(']')?)
        }
    };
    let rest = rest.trim_start().strip_prefix("==")?.trim_start();
    let (value, rest) = quoted(rest).or_else(|| word(rest, &['_', '-', '.', '/']))?;
    let ends = rest.is_empty() || rest.starts_with(char::is_whitespace);
    ends.then_some((key, value, rest))
}

/// A text in double quotes or backticks, without escapes.
fn quoted(text: &str) -> Option<(String, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '`'))?;
    let (inner, rest) = text[1..].split_once(quote)?;
    (!inner.contains('\\')).then(|| (inner.to_owned(), rest))
}

fn word<'t>(text: &'t str, also: &[char]) -> Option<(String, &'t str)> {
    let belongs = |c: char| c.is_ascii_alphanumeric() || also.contains(&c);
    let end = text.find(|c| !belongs(c)).unwrap_or(text.len());
    (end > 0).then(|| (text[..end].to_owned(), &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::labels;

    #[test]
    fn what_says_labels_is_read_and_all_else_is_named() {
        let check = |filter: &str, expected: Result<&[(&str, &str)], &str>| {
            let found = labels(filter);
            let found: Result<Vec<(String, String)>, String> = found.map(|map| map.into_iter().collect());
            let expected = expected.map(|pairs| {
                pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
            });
            assert_eq!(found, expected.map_err(str::to_owned), "{filter}");
        };
        check("Service.Meta.version == v1", Ok(&[("version", "v1")]));
        check("Service.Meta.version==\"v 1\"", Ok(&[("version", "v 1")]));
        check("Service.Meta[\"a-b\"] == `x`", Ok(&[("a-b", "x")]));
        check("Service.Meta.a == 1 and Service.Meta.b == 2", Ok(&[("a", "1"), ("b", "2")]));
        check(
            "Service.Meta.a == 1 and Service.Meta.a == 2",
            Err("Service.Meta.a == 1 and Service.Meta.a == 2"),
        );
        check("Service.Meta.a == 1 or Service.Meta.b == 2", Err("or Service.Meta.b == 2"));
        check("Service.Meta.a != 1", Err("Service.Meta.a != 1"));
        check("not Service.Meta.a == 1", Err("not Service.Meta.a == 1"));
        check("\"v1\" in Service.Tags", Err("\"v1\" in Service.Tags"));
        check("Service.Meta.a == \"x\\\"y\"", Err("Service.Meta.a == \"x\\\"y\""));
        check("Service.Meta.a == x)", Err("Service.Meta.a == x)"));
        check("Service.Meta.a == x and", Err("and"));
        check("", Err(""));
    }
}
