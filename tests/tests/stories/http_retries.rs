//! What is sent again, and what must not be.

use baremesh_tests::{Instance, exit};

use crate::town::{REVIEWS, Town, routes, subsets, to};

/// A town whose requests are sent up to three times, each time for up to five seconds.
fn patient(name: &str) -> (Town, String) {
    let retries =
        "{ attempts = 2, perTryTimeout = \"5s\", retryOn = \"5xx,reset,connect-failure,refused-stream\" }";
    let route = routes(&format!("{{ route = [{}], retries = {retries} }}", to("v1", 1)));
    (Town::new(name, 1), subsets() + &route)
}

/// Sends a request whose first attempts fail, and returns what became of it and how often it was seen.
fn failing(town: &Town, v1: &Instance<'_>, (path, query): (&str, &str)) -> (baremesh_tests::Answer, usize) {
    let answer = town.web.host.get(&["--timeout", "30"], &format!("{REVIEWS}{path}?{query}"));
    let seen = v1.seen(path);
    (answer, seen)
}

#[test]
fn a_retry_hides_whatever_befell_the_first_attempt() {
    let (town, resources) = patient("retries");
    let [v1] = town.open();
    town.mesh.enforce(&resources);
    for (path, query) in
        [("/status", "status=503&"), ("/reset", "close=before-head&"), ("/hang", "hang&"), ("/plain", "")]
    {
        let (answer, seen) = failing(&town, &v1, (path, &format!("{query}fail-first=1")));
        assert!(answer.is_ok(), "{path}: {answer:?}");
        assert_eq!(seen, 2, "{path}");
        let attempts: Vec<_> = v1
            .requests()
            .iter()
            .filter(|request| request["path"] == path)
            .map(|request| request["headers"]["x-envoy-attempt-count"][0].clone())
            .collect();
        // A connection that was kept and dies is no attempt of the route's: its agent asks again itself.
        let again = if path == "/reset" { &attempts[1] == "1" } else { false };
        assert!(again || attempts == ["1", "2"], "{path}: {attempts:?}");
    }
    // The body is sent again too.
    let answer = town.web.host.get(&["--data", "order tea"], &format!("{REVIEWS}/body?fail-first=2"));
    assert_eq!(answer.account()["body"]["text"], "order tea");
    assert_eq!(v1.seen("/body"), 3);
}

#[test]
fn retries_end() {
    let (town, resources) = patient("retries-end");
    let [v1] = town.open();
    town.mesh.enforce(&resources);
    let (answer, seen) = failing(&town, &v1, ("/status", "status=503"));
    assert_eq!((answer.status, answer.instance.as_deref(), seen), (Some(503), Some("v1"), 3));
    let (answer, seen) = failing(&town, &v1, ("/hang", "hang"));
    assert_eq!((answer.status, seen), (Some(504), 3), "{answer:?}");
    let line = town.web.wait_for_log("the last attempt", |line| line["path"] == "/hang?hang");
    let flags = line["response_flags"].as_str().unwrap_or_default();
    assert!(flags.contains("URX") || flags.contains("UT"), "{line}");
    let (answer, seen) = failing(&town, &v1, ("/reset", "close=before-head"));
    assert_eq!((answer.status, seen), (Some(503), 3), "{answer:?}");
    // What is sent again is counted at the budget of none other: the instance is as good as before.
    assert!(town.web.host.get(&[], REVIEWS).is_ok());
}

#[test]
fn an_answer_that_dies_in_its_middle_is_cut_off_and_not_asked_for_again() {
    let (town, resources) = patient("mid-body");
    let [v1] = town.open();
    town.mesh.enforce(&resources);
    for (path, options) in [("/one", &[][..]), ("/two", &["--http2"]), ("/chunked", &["--keep"])] {
        let chunked = if path == "/chunked" { "&chunked" } else { "" };
        let url = format!("{REVIEWS}{path}?close=mid-body&size=100000{chunked}");
        let answer = town.web.host.get(options, &url);
        assert_eq!((answer.status, answer.code), (Some(200), exit::CUT), "{answer:?}");
        assert_eq!(v1.seen(path), 1, "{path}");
    }
}

#[test]
fn a_request_that_may_have_been_seen_is_not_repeated_unless_asked_for() {
    let town = Town::new("not-repeated", 1);
    let [v1] = town.open();
    // A first request leaves a connection behind, on which the next one dies.
    assert!(town.web.host.get(&[], REVIEWS).is_ok());
    let url = format!("{REVIEWS}/order?close=before-head");
    let answer = town.web.host.get(&["--data", "order tea"], &url);
    assert_eq!((answer.status, answer.instance.as_deref()), (Some(503), None), "{answer:?}");
    assert_eq!(v1.seen("/order"), 1);
    let line = town.hosts[0].wait_for_log("the reset", |line| line["path"] == "/order?close=before-head");
    assert_eq!(line["response_flags"], "UC", "{line}");
    let (answer, seen) = failing(&town, &v1, ("/status", "status=503"));
    assert_eq!((answer.status, seen), (Some(503), 1), "an answer of 503 is an answer");
}

#[test]
fn what_nobody_has_seen_is_sent_elsewhere() {
    let town = Town::new("elsewhere", 2);
    let [v1, v2] = town.open();
    v1.process().kill();
    v1.process().wait();
    for number in 0..20 {
        let answer = town.web.host.get(&["--data", "order tea"], &format!("{REVIEWS}/{number}"));
        assert_eq!(answer.instance.as_deref(), Some("v2"), "{answer:?}");
        assert_eq!(v2.seen(&format!("/{number}")), 1);
    }
}

#[test]
fn a_refused_stream_is_asked_for_again() {
    let town = Town::new("refused", 1);
    let [v1] = town.open_with("http2", |_| Vec::new());
    let (answer, seen) = failing(&town, &v1, ("/refused", "close=refused&fail-first=1"));
    assert!(answer.is_ok(), "{answer:?}");
    assert_eq!(seen, 2);
}
