//! The server and the clients against each other, over loopback.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::super::connection::Broken;
use super::super::exit;
use super::{get, stream, web, websocket};

/// Starts an instance named `one`.
fn start() -> SocketAddr {
    let listener = web::listen(([127, 0, 0, 1], 0).into()).expect("a port of loopback");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(web::accept(Arc::new(web::Web::new("one")), listener));
    address
}

/// What `get` with these options says of each request, and how it ends.
async fn answers(args: &[&str], url: &str) -> (Vec<Value>, u8) {
    let args: Vec<&str> = args.iter().copied().chain([url]).collect();
    let wanted = get::Wanted::parse(&args).unwrap_or_else(|broken| panic!("{args:?}: {broken}"));
    let told = Arc::new(Mutex::new(Vec::new()));
    let lines = Arc::clone(&told);
    let ended = get::run(wanted, move |line| lines.lock().expect("no panic").push(line)).await;
    let lines = told.lock().expect("no panic").clone();
    (lines, ended.map_or_else(|broken| broken.code(), |()| exit::DONE))
}

/// The one answer, which has to come, and the account in it.
async fn answer(args: &[&str], url: &str) -> (Value, Value) {
    let (mut lines, code) = answers(args, url).await;
    assert_eq!((lines.len(), code), (1, exit::DONE), "{args:?} {url}: {lines:?}");
    let line = lines.remove(0);
    let account = serde_json::from_str(line["body"].as_str().unwrap_or("null")).unwrap_or(Value::Null);
    (line, account)
}

#[tokio::test]
async fn every_version_is_answered_with_what_was_asked() {
    let server = start();
    for (option, version) in [("--keep", "HTTP/1.1"), ("--http1.0", "HTTP/1.0"), ("--http2", "HTTP/2.0")] {
        let url = format!("http://{server}/a%20b?q=1");
        let args = [option, "--method", "PUT", "--data", "four", "--header", "X-A: 1", "--header", "x-a: 2"];
        let (line, account) = answer(&args, &url).await;
        assert_eq!(line["status"], 200, "{line}");
        assert_eq!((&line["instance"], &line["version"]), (&"one".into(), &version.into()), "{line}");
        assert_eq!(account["version"], version);
        assert_eq!(account["path"], "/a%20b", "{account}");
        assert_eq!((&account["query"], &account["method"]), (&"q=1".into(), &"PUT".into()));
        assert_eq!(account["authority"], server.to_string());
        assert_eq!(account["headers"]["x-a"], serde_json::json!(["1", "2"]));
        assert_eq!((&account["body"]["length"], &account["body"]["text"]), (&4.into(), &"four".into()));
    }
}

#[tokio::test]
async fn large_bodies_arrive_as_they_were_sent() {
    let server = start();
    for option in ["--keep", "--http2", "--chunked"] {
        let size = 3_000_005;
        let (_, sent) = answer(&[option, "--size", &size.to_string()], &format!("http://{server}/")).await;
        let (line, _) = answer(&[option], &format!("http://{server}/?size={size}")).await;
        assert_eq!((&line["length"], &sent["body"]["length"]), (&size.into(), &size.into()));
        assert_eq!(line["checksum"], sent["body"]["checksum"]);
    }
    let (line, _) = answer(&["--method", "HEAD"], &format!("http://{server}/?size=77")).await;
    assert_eq!((&line["length"], &line["headers"]["content-length"][0]), (&0.into(), &"77".into()));
}

#[tokio::test]
async fn it_misbehaves_as_it_is_told() {
    let server = start();
    let get = async |option: &str, query: &str| {
        // Only what never comes is given up soon.
        let limit = if query == "hang" || query.starts_with("body-delay") { "1" } else { "30" };
        answers(&["--timeout", limit, option], &format!("http://{server}/?{query}")).await
    };
    for option in ["--keep", "--http2"] {
        let (lines, code) = get(option, "status=503&header=x-b:c").await;
        assert_eq!((&lines[0]["status"], &lines[0]["headers"]["x-b"][0]), (&503.into(), &"c".into()));
        assert_eq!(code, exit::DONE, "an answer is an answer");
        for query in ["close=before-head", "close=refused"] {
            let (lines, code) = get(option, query).await;
            assert_eq!((code, &lines[0]["status"]), (exit::CUT, &Value::Null), "{query}: {lines:?}");
        }
        let (lines, code) = get(option, "close=mid-body&size=100000").await;
        assert_eq!((code, &lines[0]["status"]), (exit::CUT, &200.into()), "{lines:?}");
        assert_eq!(get(option, "hang").await.1, exit::SILENT);
        let (lines, code) = get(option, "body-delay=100").await;
        assert_eq!((code, &lines[0]["status"]), (exit::SILENT, &200.into()), "{lines:?}");
        let (lines, _) = get(option, "delay=0.2").await;
        assert!(lines[0]["ms"].as_u64() >= Some(200), "{lines:?}");
        let query = format!("fail-first=2&{option}");
        let mut statuses = Vec::new();
        for _ in 0..3 {
            statuses.push(get(option, &query).await.0[0]["status"].clone());
        }
        assert_eq!(statuses, [503, 503, 200]);
    }
}

#[tokio::test]
async fn the_standing_behaviour_can_be_switched() {
    let server = start();
    let url = format!("http://{server}/");
    let behave = |query| format!("http://{server}/behave?{query}");
    answer(&["--method", "POST"], &behave("status=500")).await;
    assert_eq!(answer(&[], &url).await.0["status"], 500);
    assert_eq!(answer(&[], &format!("{url}?size=1")).await.0["status"], 200, "a request's own wish counts");
    assert_eq!(answer(&["--method", "POST"], &behave("no-such-thing")).await.0["status"], 400);
    answer(&["--method", "POST"], &behave("fail-first=1")).await;
    assert_eq!(answer(&[], &url).await.0["status"], 503);
    assert_eq!(answer(&[], &format!("{url}other")).await.0["status"], 200);
    answer(&["--method", "POST"], &behave("literal")).await;
    assert_eq!(answer(&[], &format!("{url}?status=500")).await.0["status"], 200);
    answer(&["--method", "POST"], &behave("")).await;
    assert_eq!(answer(&[], &format!("{url}?status=204")).await.0["length"], 0);
}

#[tokio::test]
async fn connections_are_kept_when_asked_for() {
    let server = start();
    let check = async |args: &[&str], connections: u64, requests: u64| {
        let (lines, code) = answers(args, &format!("http://{server}/")).await;
        assert_eq!((lines.len() as u64, code), (requests, exit::DONE), "{lines:?}");
        let highest = lines.iter().filter_map(|line| line["connection"].as_u64()).max();
        assert_eq!(highest, Some(connections), "{args:?}");
    };
    check(&["--count", "6", "--keep"], 1, 6).await;
    check(&["--count", "6"], 6, 6).await;
    check(&["--count", "6", "--keep", "--parallel", "2"], 2, 6).await;
    check(&["--count", "6", "--keep", "--parallel", "2", "--http2"], 1, 6).await;
    check(&["--count", "2", "--keep", "--http1.0"], 2, 2).await;
    let (line, account) = answer(&["--keep"], &format!("http://{server}/?delay=0")).await;
    assert_eq!((&line["connection"], &account["request"]), (&1.into(), &1.into()));
}

#[tokio::test]
async fn bodies_wait_for_a_hundred_and_end_with_trailers() {
    let server = start();
    let (line, account) =
        answer(&["--expect", "--data", "late", "--timeout", "5"], &format!("http://{server}/")).await;
    assert_eq!(line["informational"], serde_json::json!([100]), "{line}");
    assert_eq!(account["body"]["text"], "late");
    let (line, _) = answer(&["--expect", "--data", "late"], &format!("http://{server}/?early&size=1")).await;
    assert_eq!(line["status"], 200, "{line}");
    for option in ["--keep", "--http2"] {
        let args = [option, "--header", "TE: trailers", "--data", "x", "--trailer", "x-end: yes"];
        let (line, _) = answer(&args, &format!("http://{server}/?trailers&size=9")).await;
        assert_eq!(line["trailers"]["x-checksum"][0], line["checksum"], "{line}");
        let (_, account) = answer(&args, &format!("http://{server}/")).await;
        assert_eq!(account["body"]["trailers"]["x-end"][0], "yes", "{account}");
    }
    // The second half would come after the client has given up.
    let args = ["--size", "100000", "--body-pause", "1000", "--timeout", "100"];
    let (_, account) = answer(&args, &format!("http://{server}/?early")).await;
    assert_eq!((&account["method"], &account["body"]), (&"POST".into(), &Value::Null));
}

async fn call(args: &[&str], url: &str) -> (Value, Result<(), Broken>) {
    let args: Vec<&str> = args.iter().copied().chain([url]).collect();
    let told = Mutex::new(Value::Null);
    let wanted = stream::Wanted::parse(&args).unwrap_or_else(|broken| panic!("{args:?}: {broken}"));
    let ended = stream::run(wanted, |line| *told.lock().expect("no panic") = line).await;
    (told.into_inner().expect("no panic"), ended)
}

#[tokio::test]
async fn streams_come_back_and_end_with_a_status() {
    let url = format!("http://{}/shop.Shop/Order", start());
    let check = async |args: &[&str], status: Option<&str>, messages: u64| {
        let (line, ended) = call(args, &url).await;
        assert!(ended.is_ok(), "{args:?}: {line}");
        assert_eq!(
            (line["grpcStatus"].as_str(), line["messages"].as_u64()),
            (status, Some(messages)),
            "{line}"
        );
    };
    check(&["--messages", "0"], Some("0"), 0).await;
    check(&["--messages", "5"], Some("0"), 5).await;
    check(&["--messages", "50", "--bytes", "100000", "--flood"], Some("0"), 50).await;
    check(&["--messages", "5", "--cancel-after", "2"], None, 2).await;
    check(&["--header", "want-status: 7"], Some("7"), 0).await;
    let (line, _) = call(&["--timeout", "1"], &format!("{url}?hang")).await;
    assert_eq!(line, Value::Null);
    let (line, _) = call(&[], &format!("{url}?fail-first=1")).await;
    assert_eq!(line["grpcStatus"], "14");
}

#[tokio::test]
async fn websockets_echo() {
    let url = format!("http://{}/chat", start());
    let told = Mutex::new(Value::Null);
    let wanted = websocket::Wanted::parse(&["--messages", "3", "--bytes", "70000", &url]).expect("sense");
    let ended = websocket::run(wanted, |line| *told.lock().expect("no panic") = line).await;
    let line = told.into_inner().expect("no panic");
    assert!(ended.is_ok(), "{line}");
    assert_eq!((&line["status"], &line["messages"]), (&101.into(), &3.into()), "{line}");
    let (line, _) = answer(&["--header", "upgrade: websocket"], &url).await;
    assert_eq!(line["status"], 400, "an upgrade has to be asked for as it is specified");
}
