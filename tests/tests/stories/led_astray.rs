//! What is pushed, and what routes say, leads nobody elsewhere: not to another port of a host, and not in circles.

use baremesh_tests::{exit, exit_code_of, wait_until};
use serde_json::Value;

use crate::pair::{Pair, because, connections_of, counted, is_cut};
use crate::town::{REVIEWS, Town};

/// Resources declare a service at another port of the host, an endpoint of one that is registered there elsewhere, and an
/// identity that is not its own. The called side delivers what it registered, or nothing.
#[test]
fn where_a_connection_is_delivered_is_not_for_pushed_resources_to_say() {
    let pair = Pair::new("delivery");
    let echo = pair.serve("echo", 7000);
    let bystanders: Vec<_> = [22, 9998, 9999]
        .iter()
        .map(|port| pair.store.host.serve("bystander", ["echo", &format!("[::]:{port}")]))
        .collect();
    let own = pair.store.host.v4();
    let trap = |name: &str, port: u16, account: &str| {
        format!(
            "[[Service]]\nname = \"{name}\"\nports = [{{ port = 7777, targetPort = {port} }}]\n{account}\n\
             [[WorkloadEntry]]\nname = \"{name}\"\nservice = \"{name}\"\naddress = \"{own}\"\ntunnel = \"hbone\"\n"
        )
    };
    // The last claims that a neighbour's port is the registered service's, under its identity.
    for (name, port, account) in [
        ("trap", 9999, ""),
        ("ssh", 22, ""),
        ("agent", 15008, ""),
        ("metrics", 15020, ""),
        ("posing", 9998, "serviceAccount = \"echo\""),
    ] {
        pair.mesh.enforce(&trap(name, port, account));
        pair.web.wait_for_endpoints(&format!("{name}.default"), 1);
        assert!(is_cut(pair.web.host.shop(["call", "--timeout", "20", name, "7777", "hello"])), "{name}");
    }
    pair.store.wait_for_log("who asked for a port that is not registered", because("not_registered"));
    assert!(counted(&pair.store, "not_registered") > 0, "it is counted");
    assert!(bystanders.iter().all(|bystander| connections_of(bystander) == 0), "none of them was reached");
    let before = connections_of(&echo);
    assert_eq!(exit_code_of(pair.call("echo", 7000, "hello")), exit::DONE);
    assert_eq!(connections_of(&echo), before + 1, "delivered where it is registered, as before");
}

#[test]
fn routes_and_redirections_that_lead_to_each_other_are_followed_for_one_hop() {
    let town = Town::new("circles", 2);
    let reviews = town.hosts[0].web("reviews", "v1", &[]);
    let ratings = town.hosts[1].web("ratings", "r1", &[]);
    for service in ["reviews.default", "ratings.default"] {
        town.web.wait_for_endpoints(service, 1);
    }
    town.mesh.wait_until_in_force();
    let both = |of: &dyn Fn(&str) -> String| {
        [("reviews", "ratings"), ("ratings", "reviews")]
            .map(|(from, to)| {
                format!(
                    "[[VirtualService]]\nname = \"{from}\"\nhosts = [\"{from}\"]\nhttp = [{{ {} }}]\n",
                    of(to)
                )
            })
            .concat()
    };
    // Every failure is tried again, at either service, and both lead to the other.
    town.mesh.enforce(&both(&|to| {
        format!(
            "route = [{{ destination = {{ host = \"{to}\" }} }}], retries = {{ attempts = 2, retryOn = \"5xx\" }}"
        )
    }));
    let answer = town.web.host.get(&[], &format!("{REVIEWS}/once"));
    assert!(answer.is_ok(), "{answer:?}");
    assert_eq!((reviews.seen("/once"), ratings.seen("/once")), (0, 1), "one hop, to whom the route names");
    let answer = town.web.host.get(&[], &format!("{REVIEWS}/failing?status=503"));
    assert_eq!(answer.status, Some(503), "{answer:?}");
    assert_eq!(
        (reviews.seen("/failing"), ratings.seen("/failing")),
        (0, 3),
        "the first attempt, and two more"
    );
    town.mesh.enforce(&both(&|to| format!("redirect = {{ authority = \"{to}\" }}")));
    for (url, location) in [
        (format!("{REVIEWS}/round"), "http://ratings/round"),
        ("http://ratings/round".to_owned(), "http://reviews/round"),
    ] {
        let answer = town.web.host.get(&[], &url);
        assert_eq!((answer.status, &*answer.header("location")), (Some(301), location), "{answer:?}");
    }
    assert_eq!((reviews.seen("/round"), ratings.seen("/round")), (0, 0), "it is the caller's to follow");
    let of = |path: &'static str| move |line: &Value| line["reporter"] == "source" && line["path"] == path;
    wait_until("each has its one line", || {
        town.web.log().iter().filter(|line| of("/round")(line)).count() == 2
    });
}
