//! How many requests are let through: counted by who calls, where they arrive or where they are made.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;

use baremesh_tests::{Answer, Instance, Member, WAIT_BOUND, wait_until};

use crate::pair::virtual_addresses;
use crate::town::{REVIEWS, Town};

/// Connections of an attacker, and the keys that it makes up on each: together more than an agent keeps apart.
const CONNECTIONS: usize = 4;
const RANDOM_KEYS: usize = 4_500;
/// The most that it does.
const MAX_COUNTS: usize = 16_384;

/// A RateLimit for the instances of `reviews`, with these further lines.
fn limit(lines: &str) -> String {
    let selector = "selector = { matchLabels = { version = \"v1\" } }";
    format!("[[RateLimit]]\nname = \"reviews\"\n{selector}\n{lines}\n")
}

/// A town with one instance of `reviews`, and a caller with another identity than `web`.
fn town(name: &str) -> (Town, Member) {
    let town = Town::new(name, 1);
    let other = town.mesh.member("other", 9, &["*"]);
    (town, other)
}

#[track_caller]
fn check_refused(answer: &Answer, retry_after: &str) {
    let field = |name: &str| answer.header(name);
    assert_eq!((answer.status, &*answer.body), (Some(429), "local_rate_limited"), "{answer:?}");
    assert_eq!(
        (&*field("retry-after"), &*field("ratelimit-reset")),
        (retry_after, retry_after),
        "{answer:?}"
    );
    assert_eq!((&*field("ratelimit-limit"), &*field("ratelimit-remaining")), ("5", "0"), "{answer:?}");
    assert_eq!(field("x-envoy-ratelimited"), "true", "{answer:?}");
}

/// A sample of the metrics: that of the first line that begins so.
fn sample(member: &Member, line: &str) -> u64 {
    let text = member.metrics();
    let found = text.lines().find_map(|said| said.strip_prefix(line)?.trim().parse().ok());
    found.unwrap_or_else(|| panic!("{line} is not in {text}"))
}

#[test]
fn who_is_over_a_limit_is_told_when_to_come_back_and_others_are_not_affected() {
    let (town, other) = town("limited");
    let [v1] = town.open();
    other.wait_for_endpoints("reviews.default", 1);
    let by_caller = "key = [\"sourceIdentity\"]\n";
    let hourly = limit(&format!("{by_caller}limit = {{ requests = 5, per = \"1h\" }}"));
    town.mesh.enforce(&hourly);
    let answers = town.web.host.get_all(&["--count", "8"], &format!("{REVIEWS}/limited"));
    assert!(answers[..5].iter().all(Answer::is_ok), "{answers:?}");
    // A fifth of an hour for each request, less what has passed since the first.
    let wait = |answer: &Answer| answer.header("retry-after").parse::<u64>().expect("seconds");
    for answer in &answers[5..] {
        assert!((1..=720).contains(&wait(answer)), "{answer:?}");
        check_refused(answer, &answer.header("retry-after"));
    }
    assert_eq!(v1.seen("/limited"), 5);
    let said = |line: &serde_json::Value| line["response_flags"] == "RL" && line["reporter"] == "destination";
    let line = town.hosts[0].wait_for_log("the refusal", said);
    assert_eq!(line["response_code_details"], "local_rate_limited", "{line}");
    assert_eq!(line["rate_limits"][0], "default/reviews: refused", "{line}");
    assert_eq!(line["source_principal"], "spiffe://mesh.internal/ns/default/sa/web", "{line}");
    let series = |outcome: &str| {
        let labels = "namespace=\"default\",name=\"reviews\",service=\"reviews.default\"";
        format!("baremesh_rate_limit_requests_total{{{labels},outcome=\"{outcome}\"}} ")
    };
    assert_eq!(sample(&town.hosts[0], &series("allowed")), 5);
    wait_until("every refusal is counted", || sample(&town.hosts[0], &series("refused")) == 3);
    assert!(other.host.get(&[], REVIEWS).is_ok(), "another identity");

    // A change of something else, and of the limit's own numbers: what is used stays used.
    town.mesh.enforce(&format!("{hourly}[[Service]]\nname = \"new\"\nports = [{{ port = 80 }}]\n"));
    assert_eq!(town.web.host.get(&[], REVIEWS).status, Some(429));
    town.mesh.enforce(&limit(&format!("{by_caller}limit = {{ requests = 7, per = \"1h\" }}")));
    let answers = town.web.host.get_all(&["--count", "3"], REVIEWS);
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 2, "{answers:?}");
    assert!(other.host.get(&[], REVIEWS).is_ok());
    // Under a limit that comes back quickly it recovers; without one nothing is left of it.
    town.mesh.enforce(&limit(&format!("{by_caller}limit = {{ requests = 7, per = \"7s\" }}")));
    wait_until("a request goes through again", || town.web.host.get(&[], REVIEWS).is_ok());
    let gone = town.mesh.control.baremesh(["delete", "RateLimit", "reviews"]);
    baremesh_tests::output_of(gone);
    town.mesh.wait_until_in_force();
    assert!(town.web.host.get_all(&["--count", "20"], REVIEWS).iter().all(Answer::is_ok));
    assert!(!town.hosts[0].metrics().contains("baremesh_rate_limit_"));
}

#[test]
fn programs_of_the_service_s_own_host_are_held_to_it_however_they_call() {
    let (town, _other) = town("limited-within");
    let [v1] = town.open();
    town.mesh.enforce(&limit("limit = { requests = 5, per = \"1h\" }"));
    let host = &town.hosts[0].host;
    for url in
        ["http://reviews/named", "http://127.0.0.1:8080/local", &format!("http://{}:8080/real", host.v4())]
    {
        assert!(host.get(&[], url).is_ok(), "{url}");
    }
    assert!(town.web.host.get_all(&["--count", "2"], REVIEWS).iter().all(Answer::is_ok));
    for url in
        ["http://reviews/named", "http://127.0.0.1:8080/local", &format!("http://{}:8080/real", host.v4())]
    {
        let answer = host.get(&[], url);
        check_refused(&answer, &answer.header("retry-after"));
    }
    assert_eq!((v1.seen("/named"), v1.seen("/local"), v1.seen("/real")), (1, 1, 1));
    let line = town.hosts[0]
        .wait_for_log("the refusal", |line| line["path"] == "/local" && line["response_flags"] == "RL");
    assert_eq!(line["source_principal"], "spiffe://mesh.internal/ns/hosts/sa/host-1", "{line}");
}

#[test]
fn a_host_s_limit_is_kept_where_requests_are_made() {
    let (town, other) = town("limited-host");
    let [v1] = town.open();
    other.wait_for_endpoints("reviews.default", 1);
    let block = "match = [{ uri = { prefix = \"/api\" }, method = { exact = \"GET\" } }]";
    town.mesh.enforce(&format!(
        "[[RateLimit]]\nname = \"calls\"\nhost = \"reviews\"\n{block}\nlimit = {{ requests = 5, per = \"1h\" }}\n"
    ));
    let api = format!("{REVIEWS}/api");
    let answers = town.web.host.get_all(&["--count", "7"], &api);
    assert!(answers[..5].iter().all(Answer::is_ok), "{answers:?}");
    answers[5..].iter().for_each(|answer| check_refused(answer, &answer.header("retry-after")));
    assert_eq!(v1.seen("/api"), 5, "the others went nowhere");
    town.web
        .wait_for_log("the refusal", |line| line["response_flags"] == "RL" && line["reporter"] == "source");
    assert!(town.web.host.get(&[], REVIEWS).is_ok(), "another path");
    assert!(town.web.host.get(&["--method", "POST"], &api).is_ok(), "another method");
    // What is not registered calls from the namespace `hosts`, which is not this limit's.
    assert!(other.host.get(&[], &api).is_ok());
}

#[test]
fn a_grpc_call_over_a_limit_is_told_unavailable_and_a_dry_run_refuses_nothing() {
    let (town, _other) = town("limited-grpc");
    let [_v1]: [Instance<'_>; 1] = town.open_with("grpc", |_| Vec::new());
    let numbers = "limit = { requests = 5, per = \"1h\" }";
    town.mesh.enforce(&limit(&format!("dryRun = true\n{numbers}")));
    let call = ["--http2", "--method", "POST", "--header", "content-type: application/grpc", "--count", "6"];
    let answers = town.web.host.get_all(&call, REVIEWS);
    assert!(answers.iter().all(|answer| answer.header("grpc-status") != "14"), "{answers:?}");
    town.hosts[0]
        .wait_for_log("the dry run", |line| line["rate_limits"][0] == "default/reviews: would refuse");
    town.mesh.enforce(&limit(numbers));
    let answer = town.web.host.get_all(&call, REVIEWS).remove(5);
    assert_eq!((answer.status, &*answer.header("grpc-status")), (Some(200), "14"), "{answer:?}");
    assert_eq!(answer.header("grpc-message"), "local_rate_limited");
}

/// Asks with each of these keys, and counts answers of 200 and of 429.
fn ask_with_keys(stream: TcpStream, keys: Range<usize>) -> (usize, usize) {
    let (mut through, mut refused, all) = (0, 0, keys.len());
    let mut requests = stream.try_clone().expect("a descriptor");
    let sending = std::thread::spawn(move || {
        for key in keys {
            let head = format!("GET / HTTP/1.1\r\nHost: reviews\r\nx-tenant: {key}\r\n\r\n");
            requests.write_all(head.as_bytes()).expect("it is taken");
        }
    });
    let mut lines = BufReader::new(stream).lines();
    while through + refused < all {
        let line = lines.next().expect("more").expect("it stands");
        // A refusal's body has no line's end: the next head follows it.
        if let Some((_, rest)) = line.split_once("HTTP/1.1 ") {
            match &rest[..3] {
                "200" => through += 1,
                "429" => refused += 1,
                _ => panic!("{line}"),
            }
        }
    }
    sending.join().expect("all was sent");
    (through, refused)
}

#[test]
fn keys_that_a_caller_makes_up_are_bounded_and_harm_nobody_else() {
    let (town, other) = town("limited-keys");
    let [_v1] = town.open();
    other.wait_for_endpoints("reviews.default", 1);
    town.mesh.enforce(&limit("key = [{ header = \"x-tenant\" }]\nlimit = { requests = 1, per = \"1h\" }"));
    let tenant = |name: &str| format!("x-tenant: {name}");
    assert!(other.host.get(&["--header", &tenant("first")], REVIEWS).is_ok());
    let address = SocketAddr::new(virtual_addresses(&town.web, "reviews")[0], 80);
    let connections: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            let stream = town.web.host.connect(address).expect("the agent takes it");
            stream.set_read_timeout(Some(WAIT_BOUND)).expect("a timeout");
            std::thread::spawn(move || {
                ask_with_keys(stream, number * RANDOM_KEYS..(number + 1) * RANDOM_KEYS)
            })
        })
        .collect();
    let counts = connections.into_iter().map(|asking| asking.join().expect("every request is answered"));
    let (through, refused) =
        counts.fold((0, 0), |all, (through, refused)| (all.0 + through, all.1 + refused));
    assert!(through <= MAX_COUNTS + 1 && refused > 0, "{through} were let through, {refused} refused");
    let labels = "{namespace=\"default\",name=\"reviews\",service=\"reviews.default\"} ";
    let keys = sample(&town.hosts[0], &format!("baremesh_rate_limit_keys{labels}"));
    assert!(keys <= MAX_COUNTS as u64 + 2, "{keys}");
    assert!(sample(&town.hosts[0], &format!("baremesh_rate_limit_shared_total{labels}")) > 0);
    // Another caller has its own keys, old and new.
    assert_eq!(other.host.get(&["--header", &tenant("first")], REVIEWS).status, Some(429));
    for name in ["second", "third"] {
        assert!(other.host.get(&["--header", &tenant(name)], REVIEWS).is_ok(), "{name}");
        assert_eq!(other.host.get(&["--header", &tenant(name)], REVIEWS).status, Some(429), "{name}");
    }
}
