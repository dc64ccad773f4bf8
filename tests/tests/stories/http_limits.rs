//! What is kept from whom: too much at once, and instances that fail.

use baremesh_tests::{Requests, wait_until};

use crate::town::{REVIEWS, Town, rule};

/// How long an instance takes in the story about overload.
const SLOW: u64 = 5_000;

#[test]
fn overload_is_refused_at_once_and_passes() {
    let town = Town::new("overload", 1);
    let [v1] = town.open();
    town.mesh.enforce(&rule(
        "{ connectionPool = { tcp = { maxConnections = 1 }, http = { http1MaxPendingRequests = 1 } } }",
    ));
    v1.behave(&format!("delay={}", SLOW / 1000));
    let options = ["--count", "20", "--parallel", "20", "--timeout", "60"];
    let answers = town.web.host.get_all(&options, REVIEWS);
    let (well, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.is_ok());
    // One is under way, and one waits for it.
    assert!((1..=3).contains(&well.len()), "{answers:?}");
    for answer in &refused {
        assert_eq!(
            (answer.status, answer.header("x-envoy-overloaded").as_str()),
            (Some(503), "true"),
            "{answer:?}"
        );
        // It did not wait for those that were under way.
        assert!(answer.ms < SLOW, "{answer:?}");
    }
    town.web.wait_for_log("the limit", |line| line["response_flags"] == "UO");
    v1.behave("");
    assert_eq!(town.web.host.counts(20, &["--parallel", "1"], REVIEWS)["v1"], 20, "there is room again");
}

#[test]
fn an_instance_that_fails_is_left_out_and_comes_back() {
    let town = Town::new("ejection", 2);
    let [v1, _v2] = town.open();
    town.mesh.enforce(&rule(
        "{ outlierDetection = { consecutive5xxErrors = 3, interval = \"1s\", baseEjectionTime = \"3s\", maxEjectionPercent = 50 } }",
    ));
    let counts = || town.web.host.counts(40, &[], REVIEWS);
    let both = counts();
    assert!(both.contains_key("v1") && both.contains_key("v2"), "{both:?}");
    v1.behave("status=500");
    wait_until("the failing one is left out", || !counts().contains_key("v1"));
    v1.behave("");
    wait_until("it comes back", || counts().contains_key("v1"));
}

#[test]
fn the_near_ones_are_called_until_they_fail() {
    let town = Town::new("failover", 2);
    town.web.register("web", ["--port", "80", "--user", "0", "--locality", "eu/a"]);
    let [near, _far] = town.open_with("http", |number| match number {
        1 => vec!["--locality", "eu/a"],
        _ => vec!["--locality", "us/a"],
    });
    town.mesh.enforce(&rule(
        "{ outlierDetection = { consecutive5xxErrors = 2, interval = \"1s\", baseEjectionTime = \"3s\", maxEjectionPercent = 100 } }",
    ));
    let counts = || town.web.host.counts(20, &[], REVIEWS);
    wait_until("the near one alone is called", || counts().get("v1") == Some(&20));
    near.behave("status=503");
    wait_until("the far one takes over", || counts().get("v2") == Some(&20));
    near.behave("");
    wait_until("the near one is called again", || counts().get("v1") == Some(&20));
}

#[test]
fn a_hundred_reloads_fail_no_request() {
    let town = Town::new("reloads", 2);
    let [_v1, _v2] = town.open();
    let kept = Requests::start(&town.web.host, &["--keep", "--parallel", "2"], REVIEWS);
    let single = Requests::start(&town.web.host, &["--parallel", "1"], REVIEWS);
    for number in 0..100 {
        let policy = match number % 2 {
            0 => "{ connectionPool = { http = { http2MaxRequests = 1000 } } }",
            _ => "{ loadBalancer = { simple = \"ROUND_ROBIN\" } }",
        };
        let share = format!(
            "{{ route = [{}, {}] }}",
            crate::town::to("v1", number),
            crate::town::to("v2", 100 - number)
        );
        town.mesh.enforce(&(rule(policy) + &crate::town::routes(&share)));
    }
    for requests in [kept, single] {
        requests.wait_for_more(10);
        let failed: Vec<_> = requests.stop().into_iter().filter(|answer| !answer.is_ok()).collect();
        assert!(failed.is_empty(), "{failed:?}");
    }
}
