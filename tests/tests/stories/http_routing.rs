//! Where a request goes: by shares, by what it says, and by what is done to it on the way.

use baremesh_tests::Answer;

use crate::town::{REVIEWS, Town, routes, subsets, to};

/// Six standard deviations of a share of 0.1 in this many requests: chance alone exceeds it once in a hundred million runs.
const REQUESTS: usize = 2000;
const SLACK: usize = 80;

#[test]
fn a_tenth_of_the_requests_goes_to_the_canary() {
    let town = Town::new("canary", 2);
    let [_v1, _v2] = town.open();
    let shares =
        |first, second| routes(&format!("{{ route = [{}, {}] }}", to("v1", first), to("v2", second)));
    town.mesh.enforce(&(subsets() + &shares(90, 10)));
    let counts = town.web.host.counts(REQUESTS, &[], REVIEWS);
    let (stable, canary) = (counts["v1"], counts["v2"]);
    assert_eq!(stable + canary, REQUESTS, "{counts:?}");
    assert!(canary.abs_diff(REQUESTS / 10) < SLACK, "{counts:?}");
    town.mesh.enforce(&shares(0, 100));
    assert_eq!(town.web.host.counts(100, &[], REVIEWS).get("v1"), None, "all of it has moved");
    // HTTP/2 on the caller's side makes no difference.
    town.mesh.enforce(&shares(50, 50));
    let counts = town.web.host.counts(400, &["--http2"], REVIEWS);
    assert!(counts["v1"].abs_diff(200) < 60 && counts["v1"] + counts["v2"] == 400, "{counts:?}");
}

#[test]
fn what_a_request_says_decides_where_it_goes() {
    let town = Town::new("by-header", 2);
    let [_v1, _v2] = town.open();
    let jason = format!(
        "{{ match = [{{ headers = {{ end-user = {{ exact = \"jason\" }} }} }}, {{ uri = {{ prefix = \"/beta\" }}, method = {{ exact = \"GET\" }} }}], route = [{}] }}",
        to("v2", 1)
    );
    let others = format!("{{ route = [{}] }}", to("v1", 1));
    town.mesh.enforce(&(subsets() + &routes(&format!("{jason}, {others}"))));
    let check = |options: &[&str], path: &str, expected: &str| {
        let answer = town.web.host.get(options, &format!("{REVIEWS}{path}"));
        assert_eq!(answer.instance.as_deref(), Some(expected), "{options:?} {path}: {answer:?}");
    };
    for options in [&[][..], &["--http2"], &["--http1.0"]] {
        let with = |header| [options, &["--header", header]].concat();
        check(options, "/", "v1");
        check(&with("End-User: jason"), "/", "v2");
        check(&with("end-user: jasonx"), "/", "v1");
        check(options, "/beta/1", "v2");
        check(&[options, &["--data", "x"]].concat(), "/beta/1", "v1");
    }
    town.mesh.enforce(&routes(&jason));
    let answer = town.web.host.get(&[], REVIEWS);
    assert_eq!((answer.status, answer.instance), (Some(404), None), "no route, no guess");
}

#[test]
fn requests_and_answers_are_changed_on_their_way() {
    let town = Town::new("changed", 2);
    let [_v1, _v2] = town.open();
    let changed = format!(
        "{{ match = [{{ uri = {{ prefix = \"/old/\" }} }}], rewrite = {{ uri = \"/new/\", authority = \"ratings\" }}, headers = {{ request = {{ set = {{ x-set = \"a\" }}, add = {{ x-add = \"b\" }}, remove = [\"x-gone\"] }}, response = {{ set = {{ x-answer = \"c\" }}, remove = [\"x-instance\"] }} }}, route = [{}] }}",
        to("v1", 1)
    );
    let moved =
        "{ match = [{ uri = { exact = \"/moved\" } }], redirect = { uri = \"/there\", redirectCode = 302 } }";
    let said = "{ match = [{ uri = { exact = \"/said\" } }], directResponse = { status = 418, body = { string = \"short\" } } }";
    town.mesh.enforce(&(subsets() + &routes(&[&changed, moved, said].join(", "))));
    let get = |path: &str| -> Answer {
        town.web.host.get(&["--header", "x-gone: 1", "--header", "x-add: a"], &format!("{REVIEWS}{path}"))
    };
    let answer = get("/old/page?q=1");
    let account = answer.account();
    assert_eq!((&account["path"], &account["query"]), (&"/new/page".into(), &"q=1".into()), "{account}");
    assert_eq!(account["authority"], "ratings");
    let headers = &account["headers"];
    assert_eq!((&headers["x-set"][0], headers.get("x-gone")), (&"a".into(), None), "{headers}");
    let added = headers["x-add"].as_array().map(|values| values.iter().filter_map(|v| v.as_str()).collect());
    assert_eq!(added.map(|values: Vec<_>| values.join(",")).as_deref(), Some("a,b"));
    assert_eq!((answer.header("x-answer").as_str(), answer.header("x-instance").as_str()), ("c", ""));
    let answer = get("/moved");
    assert_eq!((answer.status, answer.header("location")), (Some(302), "http://reviews/there".to_owned()));
    let answer = get("/said");
    assert_eq!((answer.status, answer.body.as_str()), (Some(418), "short"));
}
