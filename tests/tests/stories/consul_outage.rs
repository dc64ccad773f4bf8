//! Consul is killed for ten minutes, by the clocks of agents and of the control server: those run ten times fast, so that
//! timers, leases, bounds on staleness and pauses between attempts have ten minutes behind them. Consul's own clock, the
//! network and the callers are as always: Consul is away for a minute of theirs, longer than what it was told of health holds.
//! So a question that waits a minute of Consul's for something new is given up by agents before that, and asked anew.

use baremesh_tests::clock::FastClock;
use baremesh_tests::consul::{Consul, instances, register_foreign};
use baremesh_tests::{Host, Load, Member, Mesh, Process, Requests, wait_until};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::consul::{is_connected, notes, orders, patiently, web};

/// How many seconds of agents pass in one.
const RATE: u32 = 10;
/// How long Consul is away, by the agents' clocks.
const AWAY: u64 = 600;
/// How often the agent of `watched` looks, in seconds of its own.
const LOOK: usize = 10;
/// Where the requests go. One endpoint alone: nothing else could take its calls.
const SHOP: &str = "http://shop.mesh.internal/";
const NONE: [String; 0] = [];
const DENY_WATCHED: &str = "[[AuthorizationPolicy]]\nname = \"watched\"\naction = \"DENY\"\n\
    selector = { matchLabels = { app = \"watched\" } }\nrules = [{}]\n";

/// Everything that goes on while Consul is away.
struct Traffic {
    /// A connection for each call, to a service of two endpoints.
    calls: Load,
    /// Requests on connections that are kept.
    requests: Requests,
    /// One connection all the time.
    stream: Process,
}

impl Traffic {
    fn start(from: &Host) -> Self {
        let stream = from.spawn("stream", from.shop(["hold", "--timeout", "30", "orders", "80"]));
        stream.wait_for_output("open");
        let options = ["--keep", "--parallel", "2", "--timeout", "30"];
        let requests = Requests::start(from, &options, SHOP);
        Self { calls: Load::start_with_timeout(from, "orders", 80, 30), requests, stream }
    }

    /// How many calls and requests went well so far.
    fn done(&self) -> (usize, usize) {
        (self.calls.done(), self.requests.answers().len())
    }

    /// Ends it: nothing of it failed.
    #[track_caller]
    fn stop_unharmed(self) {
        let requests = self.requests.stop();
        let failed: Vec<_> = requests.iter().filter(|answer| !answer.is_ok()).collect();
        assert!(failed.is_empty(), "{} of {}: {:?}", failed.len(), requests.len(), failed.first());
        let calls = self.calls.done();
        assert_eq!(self.calls.stop(), NONE, "beside {calls} that went well");
        assert!(self.stream.is_running(), "the long connection ended: {}", self.stream.stdout());
        eprintln!("{} requests and {calls} calls, none of them failed", requests.len());
    }
}

/// What time it is for an agent, in seconds since 1970, by what it wrote last.
fn clock_of(member: &Member) -> u64 {
    let read = |line: &serde_json::Value| {
        let time = OffsetDateTime::parse(line["start_time"].as_str()?, &Rfc3339).ok()?;
        u64::try_from(time.unix_timestamp()).ok()
    };
    member.log().iter().rev().find_map(read).unwrap_or_default()
}

/// Lets connecting to a service take a minute of the agents' time.
fn patient(service: &str) -> String {
    format!(
        "[[DestinationRule]]\nname = \"{service}\"\nhost = \"{service}\"\n\
         [DestinationRule.trafficPolicy.connectionPool.tcp]\nconnectTimeout = \"60s\"\n"
    )
}

#[track_caller]
fn consul_is_away_for_ten_minutes(name: &str, meanwhile: impl FnOnce(&Consul, &Host)) {
    let (mesh, host, consul) = Mesh::in_consul(name);
    let (web, one) = (web(&mesh, &consul), orders(&mesh, &consul, "orders-a", 2));
    let two = orders(&mesh, &consul, "orders-b", 3);
    let shop = mesh.member_with("shop", 4, &["shop", "watched"], &consul.config());
    let _shop = shop.web("shop", "v1", &[]);
    let looked_at = shop.host.serve("watched", ["web", "watched", "127.0.0.1:8090"]);
    let look = LOOK.to_string() + "s";
    shop.register(
        "watched",
        ["--port", "80:8090", "--protocol", "http", "--check-http", "/look", "--check-interval", &look],
    );
    let looks = || looked_at.stdout().lines().filter(|line| line.contains("/look")).count();
    web.wait_for_endpoints("orders.default", 2);
    // A second of theirs is a tenth of one here: what waits for the network waits long enough for a busy machine.
    mesh.apply(&["orders", "shop"].map(patient).concat());

    let clock = FastClock::new(RATE);
    mesh.restart_control_by(&clock);
    let agents = [&web, &one, &two, &shop];
    agents.iter().for_each(|member| member.restart_by(&clock));
    wait_until("all is known", || {
        let known = |service, count| web.endpoints(service) == Some(count);
        known("orders.default", 2) && known("shop.default", 1) && known("watched.default", 1)
    });
    patiently("everybody is connected", || agents.iter().all(|member| is_connected(member)));
    let traffic = Traffic::start(&web.host);
    let before = traffic.done();
    let (killed, looks_before) = (clock_of(&web), looks());
    consul.kill();
    patiently("the agents say that Consul is away", || agents.iter().all(|member| !is_connected(member)));
    patiently("ten minutes have passed for the agents", || clock_of(&web) >= killed + AWAY);
    assert!(
        agents.iter().all(|member| !is_connected(member) && notes(member).contains("what was known holds"))
    );
    // Not the time of day alone: what waits by the monotonic clock was as often due.
    let looked = looks() - looks_before;
    let due = usize::try_from(AWAY).expect("small") / LOOK;
    assert!(looked >= due / 2, "{looked} looks, where {due} were due");

    meanwhile(&consul, &host);
    let has_all = || web.endpoints("orders.default") == Some(2) && web.endpoints("shop.default") == Some(1);
    assert!(has_all(), "nothing was dropped while it was away");
    consul.run(&host);
    let well = |service: &str, count: usize| {
        let all = instances(&host, service);
        all.len() == count && all.iter().all(|(_, status)| status == "passing")
    };
    patiently("everybody is back, and Consul knows that all is well", || {
        assert!(has_all(), "an endpoint was dropped when Consul came back");
        let connected = agents.iter().all(|member| is_connected(member));
        connected && well("orders", 2) && well("shop", 1) && well("watched", 1)
    });
    // And changes are followed again: of the catalog, and of policy.
    register_foreign(
        &host,
        &json!({ "ID": "l", "Name": "legacy", "Address": host.v4().to_string(), "Port": 7100 }),
    );
    patiently("a new service is known", || web.endpoints("legacy.default") == Some(1));
    let reaches = || web.host.get(&[], "http://watched.mesh.internal/").status == Some(200);
    // Nobody has called it before, and an agent of that clock has a tenth of a second for Consul's answer.
    wait_until("it is called", reaches);
    mesh.apply(DENY_WATCHED);
    patiently("a new policy is in force", || !reaches());
    traffic.calls.wait_for_more(20);
    traffic.requests.wait_for_more(20);
    assert!(has_all());
    let (calls, requests) = traffic.done();
    assert!(calls > before.0 + 100 && requests > before.1 + 500, "{calls} calls and {requests} requests");
    traffic.stop_unharmed();
}

#[test]
fn ten_minutes_without_consul_fail_no_request() {
    consul_is_away_for_ten_minutes("outage", |_, _| {});
}

#[test]
fn ten_minutes_without_consul_that_then_knows_nothing_fail_no_request() {
    consul_is_away_for_ten_minutes("outage-forgot", |consul, host| consul.forget(host));
}
