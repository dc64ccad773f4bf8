//! What `baremesh explain` says of a call is what becomes of it.

use std::collections::BTreeSet;

use baremesh_tests::{Member, exit, exit_code_of, run, wait_until};
use serde_json::Value;

use crate::pair::{Pair, virtual_addresses};
use crate::town::{REVIEWS, Town, routes, rule, subsets, to};

/// What is said of a call from this host, and the exit code that goes with it.
#[track_caller]
fn explained(member: &Member, arguments: &[&str]) -> (Value, i32) {
    let output = run(member.host.baremesh(["explain", "-o", "json"].iter().chain(arguments)));
    let code = output.status.code().expect("it ends by itself");
    match serde_json::from_slice(&output.stdout) {
        Ok(said) => (said, code),
        Err(error) => panic!("{arguments:?}: {error}: {}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// The subsets that a call may go to, and with them the instances that may answer it.
fn subsets_of(said: &Value) -> BTreeSet<String> {
    let destinations = said["destinations"].as_array().cloned().unwrap_or_default();
    let used = destinations.iter().filter(|destination| destination["share"].as_f64() > Some(0.0));
    used.filter_map(|destination| destination["subset"].as_str().map(str::to_owned)).collect()
}

/// Asks and then calls: the answer must be of an agent or an instance as it was said.
#[track_caller]
fn check(town: &Town, fields: &[&str], path: &str, (expected, code): (&str, i32)) {
    let url = format!("{REVIEWS}{path}");
    let with = |option| fields.iter().flat_map(move |field| [option, *field]).collect::<Vec<_>>();
    let (said, ended) = explained(&town.web, &[&with("-H")[..], &[&url, "--from", "web"]].concat());
    assert_eq!((said["outcome"].as_str(), ended), (Some(expected), code), "{path}: {said:#}");
    for _ in 0..4 {
        let answer = town.web.host.get(&with("--header"), &url);
        match &answer.instance {
            Some(instance) => {
                assert!(
                    said["passes"] == true && subsets_of(&said).contains(instance),
                    "{answer:?} {said:#}"
                );
            }
            None => {
                let status = answer.status.map(u64::from);
                assert_eq!(status, said["answer"]["status"].as_u64(), "{answer:?} {said:#}");
                assert_eq!(answer.header("location"), said["answer"]["location"].as_str().unwrap_or(""));
            }
        }
    }
}

#[test]
fn what_explain_says_of_a_request_is_what_becomes_of_it() {
    let town = Town::new("explained", 2);
    let [_v1, _v2] = town.open();
    let jason = format!(
        "{{ name = \"jason\", match = [{{ headers = {{ end-user = {{ exact = \"jason\" }} }} }}], route = [{}] }}",
        to("v2", 1)
    );
    let both = format!(
        "{{ match = [{{ uri = {{ prefix = \"/both\" }} }}], route = [{}, {}] }}",
        to("v1", 50),
        to("v2", 50)
    );
    let api = format!("{{ match = [{{ uri = {{ prefix = \"/api\" }} }}], route = [{}] }}", to("v1", 1));
    let moved = "{ match = [{ uri = { prefix = \"/moved\" } }], redirect = { uri = \"/api\" } }";
    let gone = format!("{{ match = [{{ uri = {{ prefix = \"/gone\" }} }}], route = [{}] }}", to("v3", 1));
    town.mesh.enforce(&(subsets() + &routes(&[&*jason, &both, &api, moved, &gone].join(", "))));
    check(&town, &[], "/api", ("forwarded", 0));
    check(&town, &["end-user: jason"], "/api", ("forwarded", 0));
    check(&town, &[], "/both", ("forwarded", 0));
    check(&town, &[], "/moved/1", ("answered", 0));
    check(&town, &[], "/other", ("no_route", 1));
    check(&town, &[], "/gone", ("no_destination", 1));
    // What is refused at v2 is refused by its own agent, which this one knows the policies of.
    let deny = "[[AuthorizationPolicy]]\nname = \"v2\"\naction = \"DENY\"\nselector = { matchLabels = { version = \"v2\" } }\nrules = [{ from = [{ source = { serviceAccounts = [\"web\"] } }] }]\n";
    town.mesh.enforce(deny);
    check(&town, &["end-user: jason"], "/api", ("refused", 1));
    check(&town, &[], "/api", ("forwarded", 0));
    let (said, code) = explained(&town.web, &[&format!("{REVIEWS}/both"), "--from", "web"]);
    assert_eq!((said["outcome"].as_str(), code), (Some("partly"), 1));
    // The host itself is nobody whom the policy names.
    let (said, code) = explained(&town.web, &[&format!("{REVIEWS}/both")]);
    assert_eq!((said["outcome"].as_str(), code), (Some("forwarded"), 0), "{said:#}");
    let text = run(town.web.host.baremesh(["explain", &format!("{REVIEWS}/api"), "--from", "web"]));
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("asks for headers end-user = jason, not none"), "{text}");
    for (arguments, code) in [
        (["explain", "http://reviws/", "--from", "web"], 2),
        (["explain", "http://reviews/", "--from", "wbe"], 2),
        (["explain", "reviews/", "--from", "web"], 2),
    ] {
        let output = run(town.web.host.baremesh(arguments));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains("did you mean") || said.contains("http://SERVICE:PORT"), "{said}");
    }
    town.web.kill_agent();
    let output = run(town.web.host.baremesh(["explain", "http://reviews/"]));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("-f FILE"), "{said}");
}

#[test]
fn what_explain_says_of_an_endpoint_is_how_it_is_used() {
    let town = Town::new("explained-ejected", 2);
    let [v1, _v2] = town.open();
    town.mesh.enforce(&rule(
        "{ outlierDetection = { consecutive5xxErrors = 1, baseEjectionTime = \"300s\", maxEjectionPercent = 50 } }",
    ));
    let endpoints = || {
        let (said, code) = explained(&town.web, &[REVIEWS, "--from", "web"]);
        assert_eq!(code, 0, "{said:#}");
        said["destinations"][0]["endpoints"].as_array().cloned().unwrap_or_default()
    };
    let both = endpoints();
    assert!(
        both.iter().all(|endpoint| endpoint["health"] == "healthy" && endpoint["share"] == 50.0),
        "{both:?}"
    );
    v1.behave("status=500");
    wait_until("the failing one is said to be left out", || {
        town.web.host.get(&[], REVIEWS);
        endpoints().iter().any(|endpoint| endpoint["health"] == "ejected")
    });
    let found = endpoints();
    let of = |name: &str| found.iter().find(|endpoint| endpoint["workload"] == name).expect("it is shown");
    let (failing, other) = (of("reviews-host-1"), of("reviews-host-2"));
    assert_eq!((failing["share"].as_f64(), other["share"].as_f64()), (Some(0.0), Some(100.0)), "{found:?}");
    assert!(failing["ejected_for"].as_u64() > Some(0) && other["health"] == "healthy", "{found:?}");
    let counts = town.web.host.counts(20, &[], REVIEWS);
    assert_eq!(counts.get("v2"), Some(&20), "{counts:?}");
}

#[test]
fn what_explain_says_of_a_connection_is_what_becomes_of_it() {
    let pair = Pair::new("explained-tcp");
    let _echo = pair.serve("echo", 7000);
    pair.web.host.serve("own", ["echo", "127.0.0.1:7100"]);
    pair.web.register("own", ["--port", "7100"]);
    pair.web.wait_for_endpoints("own.default", 1);
    let check = |name: &str, port: u16, allowed: bool, by: &str| {
        let url = format!("tcp://{name}:{port}");
        let (said, code) = explained(&pair.web, &[&url, "--from", "web"]);
        let decision = &said["destinations"][0]["decisions"][0];
        assert_eq!((said["passes"].as_bool(), code), (Some(allowed), i32::from(!allowed)), "{url}: {said:#}");
        assert_eq!(decision["by"], by, "{url}: {said:#}");
        let address = virtual_addresses(&pair.web, name)[0].to_string();
        let call = || exit_code_of(pair.call(&address, port, "hello"));
        assert_eq!(call() == exit::DONE, allowed, "{url}: {said:#}");
    };
    let policy = |app: &str, rule: &str| {
        format!(
            "[[AuthorizationPolicy]]\nname = \"{app}\"\nselector = {{ matchLabels = {{ app = \"{app}\" }} }}\nrules = [{rule}]\n"
        )
    };
    check("echo", 7000, true, "agent");
    check("own", 7100, true, "this_agent");
    pair.mesh.enforce(&policy("echo", "{ from = [{ source = { namespaces = [\"shop\"] } }] }"));
    check("echo", 7000, false, "agent");
    pair.mesh.enforce(&policy("echo", "{ from = [{ source = { namespaces = [\"default\"] } }] }"));
    check("echo", 7000, true, "agent");
    // From which addresses calls are seen to come: the host's by others, the virtual one within a host.
    let from = |block: &str| format!("{{ from = [{{ source = {{ ipBlocks = [\"{block}\"] }} }}] }}");
    pair.mesh.enforce(&(policy("echo", &from("240.240.0.0/16")) + &policy("own", &from("10.0.0.0/8"))));
    check("echo", 7000, false, "agent");
    check("own", 7100, false, "this_agent");
    let own = from("240.240.0.0/16");
    pair.mesh.enforce(&(policy("echo", &from("10.0.0.0/8")) + &policy("own", &own)));
    check("echo", 7000, true, "agent");
    check("own", 7100, true, "this_agent");
}
