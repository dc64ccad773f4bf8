use super::*;

#[test]
fn expressions_that_are_patterns_are_known() {
    for (regex, expected) in [
        ("/a", Some("/a")),
        ("^/a/.*$", Some("/a/*")),
        (".*\\.php", Some("*.php")),
        ("/users/[^/]+/cart", Some("/users/{*}/cart")),
        ("/a\\*", None),
        ("/a\\d", None),
        (".*", None),
        ("/a.b", None),
        ("/a|/b", None),
        ("/a/[^/]+.*", None),
        ("/a\\.b\\$", Some("/a.b$")),
    ] {
        assert_eq!(pattern(regex).as_deref(), expected, "{regex}");
    }
}

#[test]
fn the_first_permission_that_matches_is_carved_out_of_the_later_ones() {
    let permission = |action, path: &str, method: &str| Permission {
        action,
        asks: vec![Ask::Path(path.into()), Ask::Methods([method.to_owned()].into())],
    };
    let list =
        [permission(DefaultPolicy::Deny, "/admin*", "GET"), permission(DefaultPolicy::Allow, "/*", "GET")];
    let terms = region(&list, DefaultPolicy::Deny, DefaultPolicy::Allow).expect("few terms");
    let expected: Term =
        [Ask::Path("/*".into()), Ask::NotPath("/admin*".into()), Ask::Methods(["GET".to_owned()].into())]
            .into();
    assert_eq!(terms, [expected]);
    // Nothing is left of what an earlier permission decides in full.
    let list = [permission(DefaultPolicy::Deny, "/*", "GET"), permission(DefaultPolicy::Allow, "/a", "GET")];
    assert_eq!(region(&list, DefaultPolicy::Deny, DefaultPolicy::Allow), Ok(Vec::new()));
}

#[test]
fn what_nobody_could_read_is_refused() {
    let asks = |index: usize| (0..4).map(|part| Ask::Has(format!("x-{index}-{part}"), "a".into())).collect();
    let deny = |index| Permission { action: DefaultPolicy::Deny, asks: asks(index) };
    let list: Vec<Permission> = (0..5).map(deny).collect();
    assert_eq!(region(&list, DefaultPolicy::Allow, DefaultPolicy::Allow), Err(TooMany));
}
