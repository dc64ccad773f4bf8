//! What stays open: WebSocket, and calls in gRPC's form with messages both ways.

use baremesh_tests::{exit, told_by};
use serde_json::Value;

use crate::town::{REVIEWS, Town, routes, subsets, to};

/// What `stream` says of a call.
fn call(town: &Town, options: &[&str], path: &str) -> (Value, u8) {
    let url = format!("{REVIEWS}{path}");
    told_by(town.web.host.shop(["stream"].iter().chain(options).chain([&url.as_str()])))
}

#[test]
fn a_websocket_echoes_for_as_long_as_it_is_used() {
    let town = Town::new("websocket", 1);
    let [v1] = town.open();
    // A timeout is for answers to requests that were sent to their end, and this one has none.
    let route = format!("{{ route = [{}], timeout = \"2s\" }}", to("v1", 1));
    town.mesh.enforce(&(subsets() + &routes(&route)));
    let check = |options: &[&str], messages: u64| {
        let url = format!("{REVIEWS}/chat");
        let (told, code) =
            told_by(town.web.host.shop(["websocket"].iter().chain(options).chain([&url.as_str()])));
        assert_eq!(
            (told["status"].as_u64(), told["messages"].as_u64()),
            (Some(101), Some(messages)),
            "{told}"
        );
        assert_eq!((code, &told["instance"]), (exit::DONE, &"v1".into()), "{told}");
    };
    check(&["--messages", "20", "--pause", "1"], 20);
    check(&["--messages", "500", "--bytes", "70000"], 500);
    v1.wait_for_output("websocket ended after 500 messages: Ok(())");
    let line = town.web.wait_for_log("the upgrade", |line| line["path"] == "/chat");
    assert_eq!(line["response_code"], 101, "{line}");
    let refused =
        town.web.host.get(&["--header", "Connection: upgrade", "--header", "Upgrade: websocket"], REVIEWS);
    assert_eq!(refused.status, Some(400), "what the instance answers instead comes through: {refused:?}");
}

#[test]
fn calls_carry_messages_both_ways_and_a_status() {
    for protocol in ["grpc", "http2"] {
        let town = Town::new(protocol, 1);
        let [v1] = town.open_with(protocol, |_| Vec::new());
        let check = |options: &[&str], (status, messages): (Option<&str>, u64)| {
            let (told, code) = call(&town, options, "/shop.Shop/Order");
            assert_eq!((code, told["grpcStatus"].as_str()), (exit::DONE, status), "{options:?}: {told}");
            assert_eq!(told["messages"], messages, "{options:?}: {told}");
        };
        check(&["--messages", "0"], (Some("0"), 0));
        check(&[], (Some("0"), 1));
        // Each message waits for the one before to come back: nothing on the way holds one until there are more.
        check(&["--messages", "50"], (Some("0"), 50));
        check(&["--messages", "200", "--bytes", "100000", "--flood", "--timeout", "60"], (Some("0"), 200));
        check(&["--messages", "5", "--pause", "1"], (Some("0"), 5));
        check(&["--header", "want-status: 7"], (Some("7"), 0));
        check(&["--messages", "5", "--cancel-after", "2"], (None, 2));
        v1.wait_for_output("stream ended unread after 2 messages");
    }
}

#[test]
fn a_call_that_fails_at_once_is_made_again_and_one_that_hangs_ends_at_its_deadline() {
    let town = Town::new("grpc-retries", 1);
    let [v1] = town.open_with("grpc", |_| Vec::new());
    let (told, _) = call(&town, &[], "/shop.Shop/First?fail-first=1");
    assert_eq!((&told["grpcStatus"], v1.seen("/shop.Shop/First")), (&"0".into(), 2), "{told}");
    // The time of a route begins with the end of what is sent, and a caller may send for as long as it likes.
    town.mesh.enforce(&(subsets() + &routes(&format!("{{ route = [{}], timeout = \"2s\" }}", to("v1", 1)))));
    let (told, _) = call(&town, &["--messages", "5", "--pause", "1"], "/shop.Shop/Long");
    assert_eq!((&told["grpcStatus"], &told["messages"]), (&"0".into(), &5.into()), "{told}");
    // A deadline begins with the call, whether its last message has been sent or not.
    for messages in ["1", "2"] {
        let options = ["--header", "grpc-timeout: 1S", "--messages", messages];
        let (told, _) = call(&town, &options, "/shop.Shop/Hang?hang");
        let status = told["grpcStatus"].as_str();
        assert!(
            matches!(status, Some("4" | "14")),
            "DEADLINE_EXCEEDED, or UNAVAILABLE as Envoy has it: {told}"
        );
    }
    v1.wait_for_output("abandoned");
}
