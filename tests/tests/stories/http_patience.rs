//! How long is waited, and what is done on purpose: timeouts, faults, mirrors.

use baremesh_tests::wait_until;

use crate::town::{REVIEWS, Town, routes, subsets, to};

#[test]
fn a_timeout_ends_what_hangs_and_the_instance_is_told() {
    let town = Town::new("timeout", 1);
    let [v1] = town.open();
    // Long enough for the instance to have begun.
    let route = format!("{{ route = [{}], timeout = \"5s\", retries = {{ attempts = 0 }} }}", to("v1", 1));
    town.mesh.enforce(&(subsets() + &routes(&route)));
    for (path, options) in [("/one", &[][..]), ("/two", &["--http2"])] {
        let answer = town.web.host.get(options, &format!("{REVIEWS}{path}?hang"));
        assert_eq!((answer.status, answer.instance.as_deref()), (Some(504), None), "{answer:?}");
        assert!(answer.ms >= 5000, "{answer:?}");
        v1.wait_for_output(&format!("abandoned {path}?hang"));
        let line = town.web.wait_for_log("the timeout", |line| line["path"] == format!("{path}?hang"));
        assert_eq!(line["response_flags"], "UT", "{line}");
    }
    let answer = town.web.host.get(&[], &format!("{REVIEWS}/in-time"));
    assert!(answer.is_ok(), "{answer:?}");
}

#[test]
fn a_client_that_gives_up_is_noticed_by_the_instance() {
    let town = Town::new("gives-up", 1);
    let [v1] = town.open();
    for (path, options) in [("/one", &[][..]), ("/two", &["--http2"])] {
        // Long enough for the instance to have begun.
        let options = [options, &["--timeout", "5"]].concat();
        let answer = town.web.host.get(&options, &format!("{REVIEWS}{path}?hang"));
        assert_eq!((answer.status, answer.code), (None, baremesh_tests::exit::SILENT), "{answer:?}");
        v1.wait_for_output(&format!("abandoned {path}?hang"));
        let line = town.web.wait_for_log("the end", |line| line["path"] == format!("{path}?hang"));
        assert_eq!(line["response_flags"], "DC", "{line}");
    }
}

#[test]
fn faults_befall_whom_they_are_meant_for() {
    const REQUESTS: usize = 400;
    let town = Town::new("faults", 1);
    let [v1] = town.open();
    let fault = |user: &str, fault: &str| {
        format!(
            "{{ match = [{{ headers = {{ end-user = {{ exact = \"{user}\" }} }} }}], fault = {fault}, route = [{}] }}",
            to("v1", 1)
        )
    };
    let slow = fault("slow", "{ delay = { fixedDelay = \"1s\", percentage = { value = 100 } } }");
    let none = fault("none", "{ abort = { httpStatus = 418, percentage = { value = 100 } } }");
    let half = fault("half", "{ abort = { httpStatus = 500, percentage = { value = 50 } } }");
    let rest = format!("{{ route = [{}] }}", to("v1", 1));
    town.mesh.enforce(&(subsets() + &routes(&[slow, none, half, rest].join(", "))));
    let user = |name: &str| format!("end-user: {name}");
    let answer = town.web.host.get(&["--header", &user("slow")], REVIEWS);
    assert!(answer.is_ok() && answer.ms >= 1000, "{answer:?}");
    let answer = town.web.host.get(&["--header", &user("none")], &format!("{REVIEWS}/none"));
    assert_eq!((answer.status, answer.instance.as_deref()), (Some(418), None), "{answer:?}");
    assert_eq!((v1.seen("/none"), answer.body.as_str()), (0, "fault filter abort"));
    let line = town.web.wait_for_log("the fault", |line| line["path"] == "/none");
    assert_eq!(
        (&line["response_flags"], &line["response_code_details"]),
        (&"FI".into(), &"fault_filter_abort".into())
    );
    // Five standard deviations of a half.
    let counts = town.web.host.counts(REQUESTS, &["--header", &user("half")], REVIEWS);
    assert!(
        counts["v1"].abs_diff(REQUESTS / 2) <= 50 && counts["v1"] + counts["500"] == REQUESTS,
        "{counts:?}"
    );
    assert!(town.web.host.get(&[], REVIEWS).is_ok());
}

#[test]
fn a_mirror_that_hangs_does_not_hold_up_the_original() {
    let town = Town::new("mirror", 2);
    let [v1, v2] = town.open();
    let mirrored = |percent: u8| {
        routes(&format!(
            "{{ route = [{}], mirrors = [{{ destination = {{ host = \"reviews\", subset = \"v2\" }}, percentage = {{ value = {percent} }} }}] }}",
            to("v1", 1)
        ))
    };
    town.mesh.enforce(&(subsets() + &mirrored(100)));
    let answer = town.web.host.get(&["--data", "order tea"], &format!("{REVIEWS}/copied"));
    assert_eq!(answer.instance.as_deref(), Some("v1"), "{answer:?}");
    wait_until("the copy arrives", || v2.seen("/copied") == 1);
    let copy = v2.requests().into_iter().find(|request| request["path"] == "/copied").unwrap_or_default();
    assert_eq!((&copy["authority"], &copy["method"]), (&"reviews-shadow".into(), &"POST".into()), "{copy}");
    for trouble in ["hang", "close=before-head", "status=503"] {
        v2.behave(trouble);
        let before = v2.requests().len();
        let counts = town.web.host.counts(50, &["--timeout", "20"], REVIEWS);
        assert_eq!(counts, [("v1".to_owned(), 50)].into(), "{trouble}");
        wait_until("copies are sent all the same", || v2.requests().len() > before);
    }
    v2.process().kill();
    assert_eq!(town.web.host.counts(50, &[], REVIEWS)["v1"], 50, "nobody takes the copies");
    town.mesh.enforce(&mirrored(0));
    assert_eq!(town.web.host.get(&[], &format!("{REVIEWS}/last")).instance.as_deref(), Some("v1"));
    assert_eq!(v1.seen("/last"), 1);
}
