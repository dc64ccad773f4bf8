//! What a snapshot decides, on a host `h1` (10.0.0.1, fd00::1) with `orders` of its own, in a mesh where `web` is on
//! another host and `legacy` has no agent.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use baremesh_model::mesh::{Mesh, Parts};
use baremesh_model::name::Label;
use baremesh_registry::format::toml::parse;
use baremesh_registry::set::assemble;

use super::*;
use crate::capture::{AgentPorts, DnsCapture, Outbound};
use crate::dns::Found;
use crate::registration::file::Written;

const MESH: &str = r#"
[[Service]]
name = "web"
addresses = ["240.240.0.2", "fdba:4e3e:5400::2"]
ports = [{ port = 80, targetPort = 8080, protocol = "tcp" }]

[[WorkloadEntry]]
name = "web-h2"
address = "10.0.0.2"
otherAddresses = ["fd00::2"]
labels = { app = "web" }
tunnel = "hbone"

[[Service]]
name = "legacy"
addresses = ["240.240.0.3"]
ports = [{ port = 5432, protocol = "tcp" }]

[[WorkloadEntry]]
name = "legacy-1"
address = "10.0.0.9"
labels = { app = "legacy" }

[[PeerAuthentication]]
name = "default"
namespace = "mesh-system"
mtls = { mode = "STRICT" }
"#;

pub(crate) const ORDERS: &str =
    "name = \"orders\"\nports = [{ port = 7000, deliver = \"127.0.0.1:9000\" }]\nuser = 7\n";

pub(crate) fn registration(toml: &str) -> Arc<LocalService> {
    let written: Written = toml::from_str(toml).expect("a registration");
    Arc::new(LocalService::try_from(&written).expect("a registration"))
}

pub(crate) fn mesh(toml: &str) -> Mesh {
    let parsed = parse(toml, "mesh.toml");
    assemble(parsed.resources, parsed.findings).expect("a mesh").mesh
}

pub(crate) fn settings() -> plan::CaptureSettings {
    plan::CaptureSettings {
        agent_uid: 0,
        ports: AgentPorts::default(),
        dns: DnsCapture::Off,
        interfaces: BTreeSet::new(),
        outbound: Outbound::Registered,
        ssh_ports: [].into(),
    }
}

pub(crate) fn host() -> Host {
    Host {
        name: Label::new("h1").expect("a label"),
        addresses: ["10.0.0.1", "fd00::1"].iter().map(|text| text.parse().expect("an address")).collect(),
        why: "".into(),
        network: None,
    }
}

fn snapshot(toml: &str, registrations: &[&str]) -> Snapshot {
    let registrations: Vec<_> = registrations.iter().map(|text| registration(text)).collect();
    Snapshot::build(&mesh(toml), &registrations, &host(), 15008, None).expect("a snapshot")
}

pub(super) fn routed(snapshot: &Snapshot, destination: &str) -> String {
    match snapshot.route(destination.parse().expect("an address")) {
        Ok(Route::Service(service, port)) => format!("service {} {}", service.key, service.ports[port].port),
        Ok(Route::Endpoint(service, port, endpoint)) => match &endpoint.transport {
            Transport::Hbone(agent) => format!("endpoint {} {port} by {}", service.key, agent.address),
            _ => format!("endpoint {} {port}", service.key),
        },
        Ok(Route::Local(local)) => format!("local {} at {}", local.service, local.deliver),
        Ok(Route::Unheld(service, port)) => format!("unheld {} {port}", service.key),
        Ok(Route::Passthrough) => "passthrough".to_owned(),
        Err(error) => error.reason().to_string(),
    }
}

#[test]
fn routes_by_virtual_real_and_local_address() {
    let snapshot = snapshot(MESH, &[ORDERS]);
    for (destination, expected) in [
        ("240.240.0.2:80", "service web.default 80"),
        ("[fdba:4e3e:5400::2]:80", "service web.default 80"),
        ("240.240.0.2:81", "no_such_port"),
        ("240.240.0.77:80", "no_such_service"),
        ("10.0.0.2:8080", "endpoint web.default 80 by 10.0.0.2:15008"),
        ("[fd00::2]:8080", "endpoint web.default 80 by [fd00::2]:15008"),
        ("10.0.0.2:80", "passthrough"),
        ("10.0.0.9:5432", "passthrough"),
        ("127.0.0.1:9000", "local orders.default at 127.0.0.1:9000"),
        ("127.0.0.2:9000", "local orders.default at 127.0.0.1:9000"),
        ("[::1]:9000", "local orders.default at 127.0.0.1:9000"),
        ("10.0.0.1:7000", "local orders.default at 127.0.0.1:9000"),
        ("[fd00::1]:9000", "local orders.default at 127.0.0.1:9000"),
        ("10.0.0.2:9000", "passthrough"),
    ] {
        assert_eq!(routed(&snapshot, destination), expected, "{destination}");
    }
}

#[test]
fn only_the_advertised_address_is_an_authority() {
    let snapshot = snapshot(MESH, &[ORDERS]);
    let advertised = |text: &str| snapshot.advertised(text.parse().expect("an address")).is_some();
    assert!(advertised("10.0.0.1:7000") && advertised("[fd00::1]:7000"));
    for other in ["10.0.0.1:9000", "127.0.0.1:9000", "127.0.0.1:7000", "10.0.0.1:22", "10.0.0.2:8080"] {
        assert!(!advertised(other), "{other}");
    }
}

#[test]
fn names_exist_with_their_namespaces_and_no_others() {
    let snapshot = snapshot(MESH, &[ORDERS]);
    let found = |name: &str| match snapshot.find_name(name, ShortNames::Answered) {
        Found::Ports(ports) => format!("{} {:?}", ports.host, ports.ports),
        Found::Service { v4, v6 } => format!("{} {}", v4.len(), v6.len()),
        Found::NoSuchName => "none".to_owned(),
        Found::NotOurs => "other".to_owned(),
    };
    for (name, expected) in [
        ("web", "1 1"),
        ("web.default", "1 1"),
        ("web.mesh.internal", "1 1"),
        ("orders.default.mesh.internal", "1 1"),
        ("default.mesh.internal", "0 0"),
        ("mesh.internal", "0 0"),
        ("nope.mesh.internal", "none"),
        ("nope", "other"),
        ("example.com", "other"),
        ("web.default.svc.cluster.local", "1 1"),
        ("_tcp.web.mesh.internal", "0 0"),
        ("_tcp.nope.mesh.internal", "none"),
        ("_80._tcp.web.mesh.internal", "web.default.mesh.internal [80]"),
        ("_tcp._tcp.web", "web.default.mesh.internal [80]"),
        ("_http._tcp.web.mesh.internal", "none"),
        ("_80._udp.web.mesh.internal", "none"),
        ("_udp.web.mesh.internal", "none"),
        ("_80._tcp.example.com", "other"),
    ] {
        assert_eq!(found(name), expected, "{name}");
    }
    for (name, ours) in [
        ("web", false),
        ("web.default", false),
        ("_80._tcp.web", false),
        ("web.mesh.internal", true),
        ("nope.mesh.internal", true),
        ("web.default.svc.cluster.local", true),
    ] {
        assert_eq!(snapshot.find_name(name, ShortNames::Left) != Found::NotOurs, ours, "{name}");
    }
    assert_eq!(
        snapshot.find_address("240.240.0.2".parse().expect("an address")).as_deref(),
        Some("web.default.mesh.internal")
    );
}

#[test]
fn plain_endpoints_at_a_service_of_this_host_are_that_service() {
    let sneaky = "[[Service]]\nname = \"sneak\"\nports = [{ port = 1, targetPort = 7000, protocol = \"tcp\" }]\n\
                  [[WorkloadEntry]]\nname = \"sneak-1\"\naddress = \"10.0.0.1\"\nlabels = { app = \"sneak\" }\n";
    let snapshot = snapshot(sneaky, &[ORDERS]);
    let service =
        snapshot.services().find(|service| &*service.key.to_string() == "sneak.default").expect("a service");
    assert!(matches!(service.ports[0].endpoints[0].transport, Transport::Local(_)));
}

#[test]
fn unnamed_peers_reach_the_only_service_or_the_default_one() {
    let address = "10.0.0.1".parse().expect("an address");
    let second = "name = \"second\"\nports = [{ port = 7001 }]\n";
    let default = "name = \"second\"\nports = [{ port = 7001 }]\ndefaultForAddress = true\n";
    let of = |registrations: &[&str]| {
        snapshot(MESH, registrations).unnamed(address).map(|identity| identity.service_account().to_string())
    };
    assert_eq!(of(&[ORDERS]).as_deref(), Some("orders"));
    assert_eq!(of(&[ORDERS, second]), None);
    assert_eq!(of(&[ORDERS, default]).as_deref(), Some("second"));
}

#[test]
fn what_was_learnt_of_an_endpoint_outlives_a_change() {
    let first = snapshot(MESH, &[ORDERS]);
    let state = |snapshot: &Snapshot| {
        let Ok(Route::Service(service, port)) = snapshot.route("240.240.0.2:80".parse().expect("an address"))
        else {
            panic!("web is a service");
        };
        Arc::clone(&service.ports[port].endpoints[0].state)
    };
    state(&first).failed();
    let second =
        Snapshot::build(&mesh(MESH), &[registration(ORDERS)], &host(), 15008, Some(&first)).expect("built");
    assert!(state(&second).is_ejected());
    assert!(!state(&snapshot(MESH, &[ORDERS])).is_ejected());
}

#[test]
fn what_is_registered_here_holds_against_claims_of_others() {
    let taken = "[[Service]]\nname = \"other\"\nports = [{ port = 7000, protocol = \"tcp\" }]\n\
                 [[WorkloadEntry]]\nname = \"other-1\"\naddress = \"10.0.0.1\"\nlabels = { app = \"other\" }\ntunnel = \"hbone\"\n";
    let snapshot = snapshot(taken, &[ORDERS]);
    assert_eq!(routed(&snapshot, "10.0.0.1:7000"), "local orders.default at 127.0.0.1:9000");
    let other =
        snapshot.services().find(|service| service.key.to_string() == "other.default").expect("a service");
    assert!(other.ports[0].endpoints.is_empty());
}

#[test]
fn the_plan_captures_what_is_meshed_and_nothing_else() {
    let plan = snapshot(MESH, &[ORDERS]).capture_plan(&settings());
    let endpoints: Vec<_> = plan.endpoints.iter().map(SocketAddr::to_string).collect();
    assert_eq!(endpoints, ["10.0.0.2:8080", "[fd00::2]:8080"]);
    assert_eq!(plan.local.len(), 1);
    assert_eq!(plan.local[0].ports, [7000, 9000].into());
    assert!(plan.local[0].addresses.is_empty());
    assert_eq!(plan.local[0].strictness, crate::capture::Strictness::Strict);
    assert_eq!(Parts::default().config.virtual_ranges.v4, plan.virtual_v4);
}

#[test]
fn containers_are_held_wherever_they_are_and_captured_on_bridges_alone() {
    let container = |name: &str, port: u16, (bridge, address): (&str, &str), more: &str| {
        format!(
            "name = \"{name}\"\nports = [{{ port = {port} }}]\ninterface = \"{bridge}\"\nsources = [\"{address}\"]\n{more}"
        )
    };
    let registered = [
        container("cart", 81, ("br0", "172.17.0.2"), "whenGone = \"open\"\n"),
        container("till", 82, ("br0", "172.17.0.3"), ""),
        container("elsewhere", 83, ("br-lan", "192.168.1.5"), ""),
    ];
    let registered: Vec<&str> = registered.iter().map(String::as_str).collect();
    let held = format!("{MESH}[[MeshConfig]]\noutboundTrafficPolicy = {{ mode = \"REGISTRY_ONLY\" }}\n");
    let settings =
        plan::CaptureSettings { interfaces: ["br0".parse().expect("a bridge")].into(), ..settings() };
    let text = |containers: crate::capture::Containers| {
        let on = |(bridge, addresses): (crate::capture::Interface, BTreeSet<IpAddr>)| {
            addresses.into_iter().map(move |address| format!("{bridge} {address}")).collect::<Vec<_>>()
        };
        containers.into_iter().flat_map(on).collect::<Vec<_>>()
    };
    let snapshot_of = |toml: &str| snapshot(toml, &registered);
    let plan = snapshot_of(MESH).capture_plan(&settings);
    assert_eq!(text(plan.bridges), ["br0 172.17.0.2", "br0 172.17.0.3"]);
    assert_eq!(text(plan.uncaptured), ["br-lan 192.168.1.5"]);
    assert!(snapshot_of(MESH).held_containers(None).is_empty());
    let held = snapshot_of(&held);
    let all = ["br-lan 192.168.1.5", "br0 172.17.0.2", "br0 172.17.0.3"];
    assert_eq!(text(held.held_containers(None)), all);
    let closed = held.held_containers(Some(crate::registration::WhenGone::Closed));
    assert_eq!(text(closed), ["br-lan 192.168.1.5", "br0 172.17.0.3"]);
    // The agent judges by the same registration.
    let cart = held.container("172.17.0.2".parse().expect("an address"));
    let lets_out = |to: &str| held.lets_out(cart, to.parse().expect("an address"));
    assert_eq!(["198.51.100.1:443", "10.0.0.9:5432"].map(lets_out), [false, true]);
}

#[test]
fn what_may_be_a_container_and_is_not_certain_is_held_and_nobody() {
    use crate::containers::{Engine, Following, Known, Running};
    use crate::registration::labelled::in_containers;

    let cart = registration(
        "name = \"cart\"\nports = [{ port = 81, deliver = \"container:7000\" }]\ncontainerLabels = [\"app\"]\n",
    );
    let place = crate::registration::Container {
        interface: "br0".parse().expect("a bridge"),
        addresses: vec!["172.17.0.2".parse().expect("an address")],
    };
    let running = Running {
        id: "1".into(),
        name: "cart".into(),
        created: 1,
        labels: [("app".to_owned(), String::new())].into(),
        places: vec![place],
    };
    let toml = format!("{MESH}[[MeshConfig]]\noutboundTrafficPolicy = {{ mode = \"REGISTRY_ONLY\" }}\n");
    let settings =
        plan::CaptureSettings { interfaces: ["br0".parse().expect("a bridge")].into(), ..settings() };
    let address = "172.17.0.2".parse().expect("an address");
    for (following, is_known) in [
        (Some(Following::Followed), true),
        (Some(Following::Lingering), false),
        (Some(Following::Lost), false),
        (None, false),
    ] {
        let engine = |following| Engine { containers: vec![running.clone()], following };
        let engines = following.map(|following| ("docker".to_owned(), engine(following)));
        let settled =
            in_containers(std::slice::from_ref(&cart), &Known { engines: engines.into_iter().collect() });
        let snapshot = Snapshot::build(&mesh(&toml), &settled, &host(), 15008, None).expect("a snapshot");
        assert_eq!(snapshot.container(address).is_some(), is_known, "{following:?}");
        let plan = snapshot.capture_plan(&settings);
        let was_seen = following.is_some();
        let held = snapshot.held_containers(None);
        assert_eq!(held.values().flatten().any(|own| *own == address), was_seen, "{following:?}");
        assert_eq!(plan.bridges.values().flatten().any(|own| *own == address), was_seen, "{following:?}");
        // Whoever goes to where it is delivered comes to the agent, delivered or not; to nowhere nobody goes.
        let exact: Vec<_> = plan.local[0].addresses.iter().map(ToString::to_string).collect();
        assert_eq!(exact, if was_seen { vec!["172.17.0.2:7000"] } else { vec![] }, "{following:?}");
        assert_eq!(plan.local[0].ports, [81].into());
    }
}

#[test]
fn what_did_not_change_is_taken_over_and_what_depends_on_it_is_not() {
    let registrations = [registration(ORDERS)];
    let build = |toml: &str, host: &Host, previous: Option<&Snapshot>| {
        Snapshot::build(&mesh(toml), &registrations, host, 15008, previous).expect("a snapshot")
    };
    let key =
        |name: &str| Key::resolve(name, &baremesh_model::name::default_namespace(), &mesh("").config.domain);
    let entry = |snapshot: &Snapshot, name: &str| {
        Arc::clone(snapshot.service(&key(name).expect("a name")).expect("a service"))
    };
    let first = build(MESH, &host(), None);
    let taken_over = |toml: &str, host: &Host| -> Vec<&str> {
        let second = build(toml, host, Some(&first));
        let same = |name: &&str| Arc::ptr_eq(&entry(&first, name), &entry(&second, name));
        ["web", "legacy", "orders"].into_iter().filter(same).collect()
    };
    assert_eq!(taken_over(MESH, &host()), ["web", "legacy"], "what runs here belongs to each snapshot");
    let ill = MESH.replace("address = \"10.0.0.9\"", "address = \"10.0.0.9\"\nhealth = \"unhealthy\"");
    assert_eq!(taken_over(&ill, &host()), ["web"]);
    let more = format!(
        "{MESH}[[WorkloadEntry]]\nname = \"web-h3\"\naddress = \"10.0.0.3\"\nlabels = {{ app = \"web\" }}\ntunnel = \"hbone\"\n"
    );
    assert_eq!(taken_over(&more, &host()), ["legacy"]);
    let port = MESH.replace("targetPort = 8080", "targetPort = 8081");
    assert_eq!(taken_over(&port, &host()), ["legacy"]);
    let rule = format!("{MESH}[[DestinationRule]]\nname = \"r\"\nhost = \"web\"\n");
    assert!(taken_over(&rule, &host()).is_empty());
    let moved = Host { addresses: vec!["10.0.0.9".parse().expect("an address")], ..host() };
    assert!(taken_over(MESH, &moved).is_empty(), "an endpoint may be on this host now");
    let domain = format!("{MESH}[[MeshConfig]]\ndomain = \"other.internal\"\n");
    let second = build(&domain, &host(), Some(&first));
    assert!(second.service_of_host("web.default.other.internal").is_some());
    // What was learnt stays with what is compiled anew.
    let state = |snapshot: &Snapshot| Arc::clone(&entry(snapshot, "web").ports[0].endpoints[0].state);
    assert!(Arc::ptr_eq(&state(&first), &state(&build(&more, &host(), Some(&first)))));
    assert!(Arc::ptr_eq(&state(&first), &state(&build(&rule, &host(), Some(&first)))));
}
