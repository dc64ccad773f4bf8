//! What agents find of their hosts' services, and that nobody is sent to what is unhealthy.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;

use baremesh_tests::{Member, Mesh, Process, exit, exit_code_of, output_of, run, wait_until};
use serde_json::Value;

use crate::pair::{Pair, because, is_cut};
use crate::town::{REVIEWS, Town, rule};

/// Looks that come often, so that a story is short.
const OFTEN: [&str; 4] = ["--check-interval", "0.2s", "--check-failure", "2"];

/// How a member sees the endpoints of a service.
fn health(member: &Member, service: &str) -> Vec<String> {
    let services = member.ask("/services").unwrap_or_default();
    let known = services.as_array().cloned().unwrap_or_default();
    let entry = known.into_iter().find(|known| known["service"] == service).unwrap_or_default();
    let endpoints = entry["endpoints"].as_array().cloned().unwrap_or_default();
    endpoints.iter().map(|endpoint| endpoint["health"].as_str().unwrap_or_default().to_owned()).collect()
}

#[track_caller]
fn wait_for_health(member: &Member, service: &str, expected: &[&str]) {
    // Who does not call a service is not told how its endpoints are.
    member.ask_for_endpoints(service);
    wait_until(&format!("{service} is {expected:?}"), || health(member, service) == expected);
}

#[test]
fn an_instance_that_fails_its_check_takes_no_calls_and_comes_back() {
    let town = Town::new("health-http", 2);
    let check = [&["--check-http", "/healthz"][..], &OFTEN].concat();
    let [one, two] = town.open_with("http", |_| check.clone());
    let reviews = "reviews.default";
    wait_for_health(&town.web, reviews, &["healthy", "healthy"]);
    // What looked at them was no call of the mesh.
    assert!(one.seen("/healthz") > 0);
    assert!(!town.hosts[0].metrics().contains("istio_requests_total{"), "a look is no call");
    assert!(town.hosts[0].log().iter().all(|line| line["path"] != "/healthz"));
    one.behave("status=500");
    wait_for_health(&town.web, reviews, &["unhealthy", "healthy"]);
    assert_eq!(town.web.host.counts(40, &[], REVIEWS), [("v2".to_owned(), 40)].into());
    assert!(town.hosts[0].metrics().contains("baremesh_health_check_up{service=\"reviews.default\"} 0"));
    let listed = output_of(town.hosts[0].host.baremesh(["service", "list"]));
    assert!(listed.contains("unhealthy (httpGet: /healthz answered 500"), "{listed}");
    let status = output_of(town.mesh.control.baremesh(["status"]));
    assert!(status.contains("reviews.default (unhealthy: "), "{status}");
    // Who dials it means it.
    let real = format!("http://{}:8080/", town.hosts[0].host.v4());
    assert_eq!(town.web.host.get(&[], &real).instance.as_deref(), Some("v1"));
    two.behave("status=500");
    wait_for_health(&town.web, reviews, &["unhealthy", "unhealthy"]);
    let refused = town.web.host.get(&[], REVIEWS);
    assert_eq!((refused.status, refused.instance), (Some(503), None));
    let line = town.web.wait_for_log("nobody is healthy", because("no_healthy_upstream"));
    assert_eq!(line["response_flags"], "UH");
    // With fewer healthy than that, all of them are better than none.
    town.mesh.enforce(&rule("{ outlierDetection = { minHealthPercent = 50 } }"));
    wait_until("panic", || {
        let counts = town.web.host.counts(40, &[], REVIEWS);
        counts.contains_key("v1") && counts.contains_key("v2")
    });
    one.behave("");
    two.behave("");
    wait_for_health(&town.web, reviews, &["healthy", "healthy"]);
    let counts = town.web.host.counts(40, &[], REVIEWS);
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["v1", "v2"], "{counts:?}");
}

/// `echo` of a test's own on `store`, which is well while something listens at another port.
fn checked_echo(pair: &Pair) -> std::net::TcpListener {
    let at: SocketAddr = ([127, 0, 0, 1], 7000).into();
    let listener = pair.store.host.listen(at);
    let check = [&["--port", "7000", "--check-tcp", "--check-port", "7100"][..], &OFTEN].concat();
    pair.store.register_with("echo", &check);
    pair.web.wait_for_endpoints("echo.default", 1);
    listener
}

/// What `echo` is well by.
fn well(pair: &Pair) -> Process {
    pair.store.host.serve("well", ["echo", "127.0.0.1:7100"])
}

fn end(process: &Process) {
    process.kill();
    process.wait();
}

#[test]
fn a_tcp_service_that_is_unhealthy_takes_no_new_connections_and_keeps_those_that_are_open() {
    let pair = Pair::new("health-tcp");
    let listener = checked_echo(&pair);
    let cut = || is_cut(pair.call("echo", 7000, "hello"));
    assert!(cut(), "what is new is unhealthy before it has passed");
    pair.web.wait_for_log("why", because("all_unhealthy"));
    let well = well(&pair);
    wait_for_health(&pair.web, "echo.default", &["healthy"]);
    let (mut caller, mut called) = pair.both_ends("echo", &listener);
    end(&well);
    wait_for_health(&pair.web, "echo.default", &["unhealthy"]);
    assert!(cut());
    let mut read = [0; 5];
    caller.write_all(b"still").expect("it is open");
    called.read_exact(&mut read).expect("it arrives");
    called.write_all(&read).expect("it is open");
    caller.read_exact(&mut read).expect("it comes back");
    assert_eq!(&read, b"still");
    let _again = self::well(&pair);
    wait_for_health(&pair.web, "echo.default", &["healthy"]);
    drop(pair.both_ends("echo", &listener));
    drop((caller, called));
    // An agent that restarts registers what it has looked at.
    pair.store.stop_agent();
    pair.store.start();
    wait_for_health(&pair.web, "echo.default", &["healthy"]);
    drop(pair.both_ends("echo", &listener));
}

#[test]
fn what_is_found_while_the_control_server_is_away_is_told_when_it_is_back() {
    let pair = Pair::new("health-away");
    let _listener = checked_echo(&pair);
    let well = well(&pair);
    wait_for_health(&pair.web, "echo.default", &["healthy"]);
    pair.mesh.kill_control();
    end(&well);
    wait_for_health(&pair.store, "echo.default", &["unhealthy"]);
    assert_eq!(health(&pair.web, "echo.default"), ["healthy"], "nobody told it");
    pair.mesh.start_control();
    wait_for_health(&pair.web, "echo.default", &["unhealthy"]);
}

#[test]
fn a_service_that_speaks_for_itself_is_called_while_it_does() {
    let pair = Pair::new("health-ttl");
    let _echo = pair.store.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    pair.store.register("echo", ["--port", "7000", "--check-ttl", "5s"]);
    pair.web.wait_for_endpoints("echo.default", 1);
    let say = |further: &[&str]| {
        let words = [&["service", "heartbeat", "echo"], further].concat();
        output_of(pair.store.host.baremesh(words))
    };
    let is_called = || exit_code_of(pair.call("echo", 7000, "hello")) == exit::DONE;
    assert!(is_cut(pair.call("echo", 7000, "hello")), "nothing was said yet");
    wait_until("it is called while it speaks", || say(&[]) == "echo.default is healthy" && is_called());
    wait_until("it is silent for too long", || is_cut(pair.call("echo", 7000, "hello")));
    wait_until("it speaks again", || say(&[]) == "echo.default is healthy" && is_called());
    let said = say(&["--status", "failing", "--note", "out of tea"]);
    assert_eq!(said, "echo.default is unhealthy");
    let listed = output_of(pair.store.host.baremesh(["service", "list"]));
    assert!(listed.contains("unhealthy (ttl: out of tea)"), "{listed}");
    wait_for_health(&pair.web, "echo.default", &["unhealthy"]);
    let nobody = run(pair.store.host.baremesh(["service", "heartbeat", "tea"]));
    assert_eq!(nobody.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("is not registered"), "{nobody:?}");
}

#[test]
fn a_command_decides_and_one_that_hangs_decides_too() {
    let pair = Pair::new("health-exec");
    let _echo = pair.store.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    let needed = pair.store.host.serve("needed", ["echo", "127.0.0.1:7100"]);
    let alive = format!("test -d /proc/{}", needed.pid());
    let check = ["--check-exec", "/bin/sh", "-c", &alive];
    pair.store.register_with("echo", &[&["--port", "7000"][..], &OFTEN, &check].concat());
    let hang = ["--check-timeout", "0.5s", "--check-exec", "/bin/sleep", "1000"];
    pair.store.register_with("hangs", &[&["--port", "7001"][..], &OFTEN, &hang].concat());
    wait_for_health(&pair.web, "echo.default", &["healthy"]);
    wait_until("it is called", || exit_code_of(pair.call("echo", 7000, "hello")) == exit::DONE);
    wait_until("the other one has failed", || {
        let listed = output_of(pair.store.host.baremesh(["service", "list"]));
        listed.contains("unhealthy (exec: no answer within 500ms)")
    });
    end(&needed);
    wait_for_health(&pair.web, "echo.default", &["unhealthy"]);
    assert!(is_cut(pair.call("echo", 7000, "hello")));
}

#[test]
fn a_grpc_server_says_itself_whether_it_serves() {
    let mesh = Mesh::new("health-grpc");
    let (web, store) = (mesh.member("web", 1, &["*"]), mesh.member("store", 2, &["*"]));
    let mut python = store.host.command("python3");
    python.args(["-c", "import grpc"]);
    assert!(run(python).status.success(), "this story needs python3 with grpcio: `pip install grpcio`");
    let mut server = store.host.command("python3");
    server.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/grpc_serving.py"));
    server.args(["127.0.0.1:50051", "/run/baremesh/serves"]);
    store.host.spawn("grpc", server).wait_for_output("listening on");
    let check = |service: &'static str| {
        let check = ["--port", "50051", "--protocol", "grpc", "--check-grpc", service];
        [&check[..], &OFTEN].concat()
    };
    store.register_with("shop", &check("shop.Shop"));
    web.wait_for_endpoints("shop.default", 1);
    let says = |text: &str| {
        let status = store.status().unwrap_or_default();
        let services = status["services"].as_array().cloned().unwrap_or_default();
        let reason = |service: &Value| service["health"]["reason"].as_str().unwrap_or_default().to_owned();
        services.iter().any(|service| reason(service).contains(text))
    };
    wait_until("it does not serve", || says("it says NOT_SERVING"));
    wait_for_health(&web, "shop.default", &["unhealthy"]);
    fs::write(store.host.path("/run/baremesh/serves"), "").expect("the host's runtime directory");
    wait_for_health(&web, "shop.default", &["healthy"]);
    fs::remove_file(store.host.path("/run/baremesh/serves")).expect("removed");
    wait_for_health(&web, "shop.default", &["unhealthy"]);
    store.register_with("shop", &check("shop.Other"));
    wait_until("it is asked about another", || says("the server does not know this service"));
}
